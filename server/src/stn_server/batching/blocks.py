"""Many tensors in one block of memory, so that a batch crosses the bus in one copy each way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT_BYTES = 256
"""Of every tensor in a block: what vector loads and whole cache lines want."""


class Block:
    """Uninitialized memory for tensors, one behind the other.

    Args:
        likes: Shapes, dtypes and memory formats; values are not looked at, meta tensors will do.
        device: Where the memory is.
        pinned: Whether a GPU may copy from it while the host goes on.
    """

    def __init__(
        self, likes: Sequence[Tensor], device: torch.device, *, pinned: bool = False
    ) -> None:
        self._likes = likes
        sizes = [-like.nbytes % ALIGNMENT_BYTES + like.nbytes for like in likes]
        self._offsets = list(itertools.accumulate(sizes, initial=0))
        # torch keeps freed blocks for the next batch, pinned ones as well.
        self._memory = torch.empty(
            self._offsets[-1], dtype=torch.uint8, device=device, pin_memory=pinned
        )

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors, as views; each as dense as the one it is like."""
        places = zip(self._likes, self._offsets[:-1], strict=True)
        return [self._view(like, offset) for like, offset in places]

    @property
    def bytes(self) -> list[memoryview]:
        """The memory of every tensor, which must be that of the host."""
        memory = self._memory.numpy().data
        places = zip(self._likes, self._offsets[:-1], strict=True)
        return [memory[offset : offset + like.nbytes] for like, offset in places]

    def copy_from(self, other: Block) -> None:
        """Takes over the bytes of a block of the same tensors; with pinned memory nobody waits."""
        self._memory.copy_(other._memory, non_blocking=True)

    def _view(self, like: Tensor, offset: int) -> Tensor:
        numbers = self._memory[offset : offset + like.nbytes].view(like.dtype)
        return numbers.as_strided(like.shape, dense_strides(like))


def dense_strides(like: Tensor) -> tuple[int, ...]:
    """Its own strides if its elements lie side by side, else those of row-major order."""
    return torch.empty_like(like, device="meta").stride()
