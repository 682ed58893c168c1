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
        pinned: Whether a GPU may copy from it while the host goes on.

    Attributes:
        memory: (size,) uint8.
        starts: Where in it each tensor begins, (tensors,).
        sizes_bytes: As given, (tensors,).
    """

    def __init__(
        self,
        sizes_bytes: Sequence[int] | npt.NDArray[np.int64],
        device: torch.device,
        *,
        pinned: bool = False,
    ) -> None:
        self.sizes_bytes: npt.NDArray[np.int64] = np.array(sizes_bytes, np.int64)
        ends = (-(-self.sizes_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES).cumsum()
        self.starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        # torch keeps freed memory for the next block, pinned memory as well.
        self.memory = torch.empty(
            int(ends[-1]) if len(ends) else 0, dtype=torch.uint8, device=device, pin_memory=pinned
        )

    @classmethod
    def of(cls, tensors: Sequence[bytes | memoryview], *, pinned: bool = False) -> "Block":
        """A block in host memory with the bytes of these tensors."""
        block = cls([len(tensor) for tensor in tensors], torch.device("cpu"), pinned=pinned)
        for place, tensor in zip(block.bytes, tensors, strict=True):
            place[:] = tensor
        return block

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
