"""Many tensors side by side in one piece of memory, so that they cross a bus in one copy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT_BYTES = 256
"""Of every tensor in a block: what vector loads and whole cache lines want."""


class Block:
    """Uninitialized memory for tensors, one behind the other.

    Args:
        sizes_bytes: Of the tensors.
        device: Where the memory is.
        arena: Memory of that device to lie in, for as long as nobody else takes it; None: new.

    Attributes:
        memory: (size,) uint8.
        starts: Where in it each tensor begins, (tensors,).
        sizes_bytes: As given, (tensors,).
    """

    def __init__(
        self,
        sizes_bytes: Sequence[int] | npt.NDArray[np.int64],
        device: torch.device,
        arena: "Arena | None" = None,
    ) -> None:
        self.sizes_bytes: npt.NDArray[np.int64] = np.array(sizes_bytes, np.int64)
        ends = (-(-self.sizes_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES).cumsum()
        self.starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        size_bytes = int(ends[-1]) if len(ends) else 0
        if arena is None:  # torch keeps freed memory for the next block
            self.memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        else:
            self.memory = arena.take(size_bytes)

    @classmethod
    def of(cls, tensors: Sequence[bytes | memoryview], arena: "Arena | None" = None) -> "Block":
        """A block in host memory with the bytes of these tensors."""
        block = cls([len(tensor) for tensor in tensors], torch.device("cpu"), arena)
        for place, tensor in zip(block.bytes, tensors, strict=True):
            # NumPy lets other threads run while it copies; assigning to a memoryview does not.
            np.copyto(np.frombuffer(place, np.uint8), np.frombuffer(tensor, np.uint8))
        return block

    def copies(self) -> list[memoryview]:
        """The bytes of every tensor in memory of its own, which must be that of the host."""
        return [np.frombuffer(place, np.uint8).copy().data for place in self.bytes]

    @property
    def addresses(self) -> npt.NDArray[np.int64]:
        """Where each tensor begins; multiples of 16 at least, wherever the memory is."""
        return self.starts + self.memory.data_ptr()

    @property
    def bytes(self) -> list[memoryview]:
        """The memory of every tensor, which must be that of the host."""
        memory = self.memory.numpy().data
        places = zip(self.starts.tolist(), self.sizes_bytes.tolist(), strict=True)
        return [memory[start : start + size] for start, size in places]

    def tensors(self, likes: Sequence[Tensor]) -> list[Tensor]:
        """Views of the memory: tensors like others, whose strides are dense."""
        places = zip(likes, self.starts.tolist(), self.sizes_bytes.tolist(), strict=True)
        return [
            self.memory[start : start + size].view(like.dtype).as_strided(like.shape, like.stride())
            for like, start, size in places
        ]

    def copy_from(self, other: "Block") -> None:
        """Takes over the bytes of a block of the same tensors; with pinned memory nobody waits."""
        self.memory.copy_(other.memory, non_blocking=True)


class Arena:
    """Host memory for one block at a time, kept for the next one.

    To allocate pinned memory takes longer than most batches, so it is done as seldom as can be:
    the arena grows to the next power of two, and never shrinks.

    Args:
        pinned: Whether a GPU may copy from it, and to it, while the host goes on.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, size_bytes: int) -> Tensor:
        """The first bytes of it, (size,) uint8, which were those of the last block."""
        if self._memory.numel() < size_bytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # so as not to hold both at a time
            rounded_bytes = 1 << (size_bytes - 1).bit_length()
            self._memory = torch.empty(rounded_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[:size_bytes]
