"""Memory for new results, of which a launch has many."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowADInplaceOrView as _BelowViews

from stn_engine.backends.kernels import NewResults, Words
from stn_engine.call import Call

ALIGNMENT_BYTES = 256
"""Each result begins at a multiple of it: what vector loads and whole cache lines want."""


Kind: TypeAlias = tuple[torch.dtype, torch.device, int]
"""Dtype, device, and which result of its call: those of one kind share one piece of memory."""

View: TypeAlias = tuple[int, tuple[Sequence[int], Sequence[int], int]]
"""A result as a view: the number of its piece of memory; shape, strides and first number there."""


class SharedResults(NewResults):
    """How new results of several calls lie: those of one kind share one piece of memory.

    Torch takes longer to allocate than kernels of small maps take to run, and nearly as long to
    make a view; views are made when kernels are on their way.

    Args:
        calls: Whose needed results it is about.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        pieces: dict[Kind, int] = {}  # in order, and how many numbers each has
        self._views: list[View] = []
        starts_bytes = []
        for call in calls:
            for place, layout in enumerate(call.results):
                if layout is None:
                    continue
                kind = layout.dtype, call.device, place
                start = pieces.setdefault(kind, 0)
                self._views.append(
                    (list(pieces).index(kind), (layout.shape, layout.strides, start))
                )
                starts_bytes.append(start * layout.dtype.itemsize)
                step = ALIGNMENT_BYTES // layout.dtype.itemsize
                pieces[kind] = start + -(-math.prod(layout.shape) // step) * step
        self._pieces = list(pieces.items())
        self._starts_bytes = np.array(starts_bytes, np.int64)
        self._of_view = np.array([piece for piece, _ in self._views], np.int64)

    def allocate(self) -> tuple[list[Tensor], Words]:
        """New memory, and where in it each needed result begins, call by call."""
        memory = [
            torch.empty(count, dtype=dtype, device=device)
            for (dtype, device, _), count in self._pieces
        ]
        firsts = np.array([piece.data_ptr() for piece in memory], np.int64)
        return memory, firsts[self._of_view] + self._starts_bytes

    def tensors(self, memory: Sequence[Tensor]) -> list[Tensor]:
        """All needed results, call by call, in the storage that they share.

        To autograd they are no views: a change of one does not count as a change of the others.
        """
        with _BelowViews():
            return [memory[piece].as_strided(*view) for piece, view in self._views]
