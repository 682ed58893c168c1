"""How tensors come to stay on a server, and how they come back: the calls, for both clients."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import numpy as np

from stn_client import _calls
from stn_client._arrays import Array, Operand, operand
from stn_client._calls import Call
from stn_client._errors import InvalidRequestError, invalid
from stn_client._options import CallOptions
from stn_client._residents import LOST, MAX_LOSSES, Held, ResidentTensor
from stn_proto import WireFormatError, to_payload
from stn_proto.codec import data_type
from stn_proto.v1.tensor_pb2 import ResidentRef

PIECE_BYTES = (1 << 20) - (1 << 12)
"""Bytes of one piece of an upload: any server takes the message, and its overhead is small."""


def kept(given: Operand, client: str) -> ResidentTensor:
    """Returns an operand of a warp that the server keeps for the gradients of that warp."""
    return ResidentTensor(given.array, given.like, given.layout, held=Held(client, is_kept=True))


def resident_of(value: Any, client: str) -> ResidentTensor:
    """Returns a resident tensor that has not been uploaded yet.

    Args:
        value: What a caller gave; copied.
        client: Name of the client.

    Raises:
        InvalidRequestError: It is no array that the service takes.
    """
    given = operand("array", value)
    array = given.array
    try:
        data_type(array.dtype)
    except WireFormatError as error:
        expected = f"expected {error.expected}, got {error.actual}. Cast it."
        raise invalid("array", expected) from error
    if not array.size:
        raise invalid("array", f"expected at least one element, got shape {array.shape}.")
    # Kept for a later upload, so the caller must not be able to change what calls will compute.
    array = array.copy()
    array.flags.writeable = False
    return ResidentTensor(array, given.like, given.layout, held=Held(client, is_uploaded=True))


def uploading(
    resident: ResidentTensor, options: CallOptions
) -> Generator[Call[Any], tuple[ResidentRef, int], ResidentRef]:
    """Yields the calls that upload a tensor, one after the other.

    Args:
        resident: It.
        options: Of each call.

    Yields:
        The next call; to be sent its result.

    Returns:
        Where the tensor stays.
    """
    payload, dtype = to_payload(resident.array), resident.array.dtype
    offset, reference = 0, None
    while True:
        # In pieces, so that no message is larger than what every server takes.
        piece = payload[offset : offset + PIECE_BYTES]
        call = _calls.upload(piece, reference, offset, dtype, len(payload), options)
        # The first reply names the tensor; later pieces go to it by that name.
        reference, missing_bytes = yield call
        offset += len(piece)
        if not missing_bytes:
            return reference


def begins_anew(error: InvalidRequestError, losses: int) -> bool:
    """Returns whether an upload that failed for the nth time is worth another attempt."""
    return error.reason == LOST and losses < MAX_LOSSES


def downloading(
    resident: ResidentTensor, client: str, options: CallOptions
) -> Generator[Call[Any], Array, Array]:
    """Yields the calls that download a tensor, one after the other.

    Args:
        resident: It.
        client: Name of the client that makes them.
        options: Of each call.

    Yields:
        The next call; to be sent its result.

    Returns:
        The array.

    Raises:
        InvalidRequestError: The server does not hold it.
    """
    (reference,) = places_of([resident], client) or (None,)
    if reference is None:
        raise invalid("tensor", "expected a tensor on the server of this client, got another one.")
    # Bytes come in the wire's order and are written in place, whatever this host's order is.
    array = np.empty(resident.shape, resident.dtype.newbyteorder("<"))
    numbers = array.reshape(-1).view(np.uint8)
    for offset in range(0, numbers.size, PIECE_BYTES):
        size_bytes = min(PIECE_BYTES, numbers.size - offset)
        numbers[offset : offset + size_bytes] = yield _calls.download(
            reference, offset, size_bytes, options
        )
    return array


def given_up(residents: Iterable[ResidentTensor], client: str) -> list[ResidentRef]:
    """Releases tensors of a client; returns their references on the server."""
    residents = list(residents)
    references = places_of(residents, client)
    for resident in residents:
        # Before the server is told: a call that is made meanwhile must not name it any more.
        resident.held.is_uploaded, resident.held.reference = False, None
    return references


def places_of(residents: Iterable[ResidentTensor], client: str) -> list[ResidentRef]:
    """Returns the references of a client's tensors that are on the server."""
    held = [resident.held for resident in residents]
    return [one.reference for one in held if one.client == client and one.reference]
