"""Memory for new results, of which a launch has many."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from stn_engine.backends.kernels import NewResults
from stn_engine.call import Call, Layout

ALIGNMENT_BYTES = 256
"""Each result begins at a multiple of it: what vector loads and whole cache lines want."""


class Piece:
    """Memory for results of one dtype that are one of one kind, such as gradients of feature maps.

    Args:
        dtype: Of the results.
        device: Where they will be.
    """

    __slots__ = ("count", "device", "dtype", "first", "memory")

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device, self.count = dtype, device, 0

    def allocate(self) -> None:
        """Take the memory, when it is known of how many numbers."""
        self.memory = torch.empty(self.count, dtype=self.dtype, device=self.device)
        self.first = self.memory.data_ptr()


Share: TypeAlias = tuple[tuple[torch.dtype, torch.device, int], int, Layout]
"""Which piece of memory a result lies in, how many of its numbers it takes, and its layout."""


class SharedResults(NewResults):
    """New memory for several calls: results of one dtype and kind share one piece of it.

    Torch takes longer to allocate than kernels of small maps take to run, and nearly as long to
    make a view; views are made when kernels are on their way.

    Args:
        calls: Whose needed results it takes.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        pieces: dict[tuple[torch.dtype, torch.device, int], Piece] = {}
        self._places: list[list[tuple[Piece, int, Layout]]] = []
        for call in calls:
            row = []
            for key, count, layout in call.plans.get(_shares) or _shares(call):
                piece = pieces.get(key)
                if piece is None:
                    piece = pieces[key] = Piece(*key[:2])
                row.append((piece, piece.count, layout))
                piece.count += count
            self._places.append(row)
        for piece in pieces.values():
            piece.allocate()

    def addresses(self) -> list[list[int]]:
        """Where each needed result of each call begins."""
        return [
            [piece.first + start * piece.dtype.itemsize for piece, start, _ in row]
            for row in self._places
        ]

    def tensors(self) -> list[list[Tensor]]:
        """All results, as views."""
        return [
            [
                piece.memory.as_strided(layout.shape, layout.strides, start)
                for piece, start, layout in row
            ]
            for row in self._places
        ]


def _shares(call: Call) -> Sequence[Share]:
    """What the needed results of a call take, kept with it."""
    shares = []
    for place, layout in enumerate(call.results):
        if layout is not None:
            step = ALIGNMENT_BYTES // layout.dtype.itemsize
            count = -(-math.prod(layout.shape) // step) * step
            shares.append(((layout.dtype, call.device, place), count, layout))
    call.plans[_shares] = shares
    return shares
