"""Adapter for device buffers: many tensors side by side in memory of a device.

So they cross a bus in one copy. Where a backend has kernels for a problem, no tensor is made of
them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stn_engine import dispatch
from stn_engine.backends._results import parts_of, results_of, sizes_of
from stn_engine.checks import NEEDS
from stn_engine.problem import Gradients, Problem, WarpGradientsProblem, WarpProblem

ALIGNMENT_BYTES = 256
"""The alignment of every tensor in a buffer: what vector loads and whole cache lines want."""


class DeviceBuffer:
    """Uninitialized memory for tensors, one behind the other.

    Args:
        sizes_bytes: The sizes of the tensors.
        device: Where the memory is.
        arena: Memory of that device to use until it is taken again; None: new memory.

    Attributes:
        memory: (size,) uint8.
        starts: Where in it each tensor begins, (tensors,).
        sizes_bytes: As given, (tensors,).
        elsewhere: Tensors that lie in other memory of the device, by their number; see ``put``.
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
        if arena is None:  # torch keeps freed memory for the next buffer
            self.memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        else:
            self.memory = arena.take(size_bytes)
        self.elsewhere: dict[int, Tensor] = {}

    def put(self, number: int, tensor: Tensor) -> None:
        """Has a tensor of the same device, (size,) uint8, stand for one of this buffer.

        The buffer holds it, and gives none of its own memory for it from now on.
        """
        self.elsewhere[number] = tensor
        self.sizes_bytes[number] = tensor.numel()

    @classmethod
    def of(
        cls, tensors: Sequence[bytes | memoryview], arena: "Arena | None" = None
    ) -> "DeviceBuffer":
        """Returns a buffer in host memory with the bytes of these tensors."""
        buffer = cls([len(tensor) for tensor in tensors], torch.device("cpu"), arena)
        for place, tensor in zip(buffer.bytes, tensors, strict=True):
            # NumPy lets other threads run while it copies; assigning to a memoryview does not.
            np.copyto(np.frombuffer(place, np.uint8), np.frombuffer(tensor, np.uint8))
        return buffer

    def copies(self, places: Sequence[memoryview | None]) -> list[memoryview]:
        """Returns copies of the bytes of every tensor; the buffer must be in host memory.

        Args:
            places: Memory for each; None: new.
        """
        copies = []
        for tensor, place in zip(self.bytes, places, strict=True):
            copy = np.empty(len(tensor), np.uint8).data if place is None else place
            np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(tensor, np.uint8))
            copies.append(copy)
        return copies

    @property
    def addresses(self) -> npt.NDArray[np.int64]:
        """Addresses of the tensors: multiples of 16 at least, wherever the memory is."""
        addresses = self.starts + self.memory.data_ptr()
        for number, tensor in self.elsewhere.items():
            addresses[number] = tensor.data_ptr()
        return addresses

    @property
    def bytes(self) -> list[memoryview]:
        """The bytes of every tensor; the buffer must be in host memory."""
        memory = self.memory.numpy().data
        places = zip(self.starts.tolist(), self.sizes_bytes.tolist(), strict=True)
        return [memory[start : start + size] for start, size in places]

    @property
    def pieces(self) -> list[Tensor]:
        """The memory of every tensor, (size,) uint8."""
        places = zip(self.starts.tolist(), self.sizes_bytes.tolist(), strict=True)
        pieces = [self.memory[start : start + size] for start, size in places]
        for number, tensor in self.elsewhere.items():
            pieces[number] = tensor
        return pieces

    def tensors(self, likes: Sequence[Tensor]) -> list[Tensor]:
        """Returns views of the memory: tensors like others, whose strides are dense."""
        return [
            piece.view(like.dtype).as_strided(like.shape, like.stride())
            for piece, like in zip(self.pieces, likes, strict=True)
        ]

    def copy_from(self, other: "DeviceBuffer") -> None:
        """Copies the bytes of a buffer of the same tensors; asynchronously, if memory is pinned."""
        self.memory.copy_(other.memory, non_blocking=True)


class Arena:
    """Host memory for one buffer at a time, kept for the next one.

    To allocate pinned memory takes longer than most batches, so it is done as seldom as can be:
    the arena grows to the next power of two, and never shrinks.

    Args:
        pinned: Whether a GPU may copy from it, and to it, while the host goes on.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, size_bytes: int) -> Tensor:
        """Returns the first bytes of the arena, (size,) uint8, which the next call uses again."""
        if self._memory.numel() < size_bytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # so as not to hold both at a time
            rounded_bytes = 1 << (size_bytes - 1).bit_length()
            self._memory = torch.empty(rounded_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[:size_bytes]


def compute(problems: Sequence[Problem], operands: DeviceBuffer, results: DeviceBuffer) -> None:
    """Computes problems of one type in the memory of a device, in the order of its stream.

    Args:
        problems: As for ``on_bytes.compute``.
        operands: Those of every problem, one behind the other, in the order of ``bound``.
        results: Where those go that ``results_of`` lists.

    Raises:
        ValueError: A buffer holds tensors of other sizes.
        BackendUnavailableError: No backend can run one of the problems there.
    """
    sizes_bytes = [sizes_of(problem) for problem in problems]
    _require_sizes("operands", operands, [size for sizes, _ in sizes_bytes for size in sizes])
    _require_sizes("results", results, [size for _, sizes in sizes_bytes for size in sizes])
    planned = dispatch.planned(problems, operands.memory.device)
    if planned is None:
        _compute_views(problems, operands, results)
        return
    backend, plans = planned
    there, free = operands.addresses.tolist(), results.addresses.tolist()
    # A plan takes the addresses of its operands, and behind them those of its results.
    addresses, operand, result = [], 0, 0
    for of_operands, of_results in sizes_bytes:
        next_operand, next_result = operand + len(of_operands), result + len(of_results)
        addresses.append(there[operand:next_operand] + free[result:next_result])
        operand, result = next_operand, next_result
    backend.run(plans, addresses)


def _require_sizes(what: str, buffer: DeviceBuffer, expected: Sequence[int]) -> None:
    actual = buffer.sizes_bytes.tolist()
    if actual != expected:
        raise ValueError(f"{what}: expected tensors of {expected} bytes, got {actual}.")


def _compute_views(problems: Sequence[Any], operands: DeviceBuffer, results: DeviceBuffer) -> None:
    """Computes problems through tensors over a buffer, for any backend of the device."""
    there = iter(operands.tensors([like for problem in problems for like in problem.operands]))
    bound = [problem.bound(*(next(there) for _ in problem.operands)) for problem in problems]
    places = results.tensors([like for problem in problems for like in results_of(problem)])
    free = iter(places)
    if isinstance(problems[0], WarpProblem):
        dispatch.warp(bound, out=places)
    elif isinstance(problems[0], WarpGradientsProblem):
        dispatch.warp_gradients(bound, out=[_gradients(problem, free) for problem in bound])
    else:  # composed by torch, which allocates for itself
        for result in dispatch.compute(bound):
            for part in parts_of(result):
                next(free).copy_(part)


def _gradients(problem: WarpGradientsProblem, free: Iterator[Tensor]) -> Gradients:
    """Returns memory for the gradients that a problem needs."""
    return Gradients(*(next(free) if name in problem.needs else None for name in NEEDS))
