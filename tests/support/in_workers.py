"""What tests have worker processes call: these import it by its name."""

import numpy as np
import torch

from stn_engine import Affine, warp


def warp_of_columns(columns):
    """The shape of a warp by a theta of so many columns, of which 3 are right."""
    return tuple(warp(torch.zeros(1, 1, 2, 2), Affine(torch.zeros(1, 2, columns))).shape)


def warp_and_look(client, feature_map, transform, held, connection):
    """Says whether what it got is what a call gives, before and after the parent has gone on."""
    output = client.warp(feature_map, transform)
    connection.send((np.array_equal(held, output), client._transports().local is not None))
    connection.recv()
    connection.send(np.array_equal(held, output))
