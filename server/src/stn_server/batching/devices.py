"""What computes batches: the host, where bytes already are, or GPUs, to which they travel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

import stn_engine
from stn_engine import Gradients
from stn_server.batching.blocks import Block
from stn_server.batching.work import NOTHING, Cost, Operation
from stn_server.config import ConfigError
from stn_server.errors import DeviceFullError, DeviceLostError
from stn_server.memory import resident_bytes

Launching = Callable[[], None]
"""Called when operands have landed and kernels are about to be launched."""

LANES_PER_GPU = 2
"""Batches at a time: one is copied while the other is computed."""

HOST = torch.device("cpu")

_RAGGED: dict[Operation, Callable[..., list[Any]]] = {
    Operation.WARP: stn_engine.warp_ragged,
    Operation.WARP_GRADIENTS: stn_engine.warp_gradients_ragged,
    Operation.GENERATE_GRID: stn_engine.generate_grid_ragged,
    Operation.GENERATE_GRID_GRADIENTS: stn_engine.generate_grid_gradients_ragged,
}


class Device(Protocol):
    """Computes the problems of one operation; belongs to one thread."""

    name: str
    """A label of metrics."""
    small: Cost
    """Batches up to this take less time than to wake a thread for them."""

    def run(self, operation: Operation, problems: Sequence[Any], launching: Launching) -> list[Any]:
        """One outcome per problem, in host memory.

        Raises:
            DeviceLostError: Nothing can be computed any more.
            Exception: The call failed as a whole.
        """

    def held_bytes(self) -> float:
        """Memory that this process holds there."""


class Host:
    """The engine on operands where they are: the bytes of requests."""

    name = "cpu"
    small = Cost(size_bytes=1 << 20, samples=1 << 15)

    def run(self, operation: Operation, problems: Sequence[Any], launching: Launching) -> list[Any]:
        """One ragged call."""
        launching()
        return _RAGGED[operation](problems)

    def held_bytes(self) -> float:
        """Resident memory of the process."""
        return resident_bytes()


class Accelerator:
    """A device with memory of its own: one copy in, one ragged call, one copy back.

    A batch for which its memory is too small is tried in halves, once; what still does not fit is
    refused.
    """

    small = NOTHING

    def __init__(self, device: torch.device) -> None:
        self.name = str(device)
        self._device = device

    def run(self, operation: Operation, problems: Sequence[Any], launching: Launching) -> list[Any]:
        """The problems together, or in two halves."""
        outcomes = self._tried(operation, problems, launching)
        if outcomes is not None:
            return outcomes
        middle = math.ceil(len(problems) / 2)
        found: list[Any] = []
        for half in filter(None, (problems[:middle], problems[middle:])):
            self._give_back()
            outcomes = self._tried(operation, half, launching)
            found += [DeviceFullError(self.name) for _ in half] if outcomes is None else outcomes
        return found

    def held_bytes(self) -> float:
        """What torch has reserved, whether it is in use or kept for later."""
        return float(torch.cuda.memory_reserved(self._device))

    def _tried(
        self, operation: Operation, problems: Sequence[Any], launching: Launching
    ) -> list[Any] | None:
        """One outcome per problem; None if the memory of the device does not suffice."""
        with self._current():
            try:
                return self._moved(operation, problems, launching)
            except torch.OutOfMemoryError:
                return None

    def _moved(
        self, operation: Operation, problems: Sequence[Any], launching: Launching
    ) -> list[Any]:
        operands = [problem.operands for problem in problems]
        landed = iter(self._landed([tensor for some in operands for tensor in some]))
        bound = [
            problem.bound(*(next(landed) for _ in some))
            for problem, some in zip(problems, operands, strict=True)
        ]
        launching()
        return self._computed(operation, bound)

    def _landed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        block = Block(tensors, HOST, pinned=self._is_remote)
        for place, tensor in zip(block.tensors, tensors, strict=True):
            place.copy_(tensor)
        landed = Block(tensors, self._device)
        landed.copy_from(block)
        return landed.tensors

    def _computed(self, operation: Operation, problems: Sequence[Any]) -> list[Any]:
        forms = [_result_like(operation, problem) for problem in problems]
        likes = [like for form in forms for like in _parts(form)]
        results = Block(likes, self._device)
        replies = Block(likes, HOST, pinned=self._is_remote)
        places = iter(results.tensors)
        out = [_rebuilt(form, places) for form in forms]
        if operation in {Operation.WARP, Operation.WARP_GRADIENTS}:
            _RAGGED[operation](problems, out)
        else:  # grids are composed by torch, which allocates for itself
            for place, grid in zip(results.tensors, _RAGGED[operation](problems), strict=True):
                place.copy_(grid)
        replies.copy_from(results)
        self._finish()
        values = iter(replies.tensors)
        return [_rebuilt(form, values) for form in forms]

    @property
    def _is_remote(self) -> bool:
        return self._device != HOST

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Where torch launches kernels meanwhile."""
        yield

    def _finish(self) -> None:
        """Waits for all that was launched."""

    def _give_back(self) -> None:
        """Lets go of memory that is kept for later."""


class Gpu(Accelerator):
    """A CUDA device, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch

    @contextmanager
    def _current(self) -> Iterator[None]:
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield
        except torch.AcceleratorError as error:  # sticky: every later call would fail, too
            raise DeviceLostError(f"expected {self.name} to compute, got {error}") from error

    def _finish(self) -> None:
        self._stream.synchronize()

    def _give_back(self) -> None:
        torch.cuda.empty_cache()


def _result_like(operation: Operation, problem: Any) -> Tensor | Gradients:
    """The result of a problem without values: shapes, dtypes and memory formats."""
    if operation == Operation.WARP_GRADIENTS:
        names = ("feature_map", "transform")
        likes = zip(names, problem.warp.operands, strict=True)
        return Gradients(
            *(_meta(like.shape, like) if name in problem.needs else None for name, like in likes)
        )
    if operation == Operation.GENERATE_GRID_GRADIENTS:
        return _meta(problem.grid.operands[0].shape, problem.grid.operands[0])
    return _meta(problem.output_shape, problem.operands[0])


def _meta(shape: Sequence[int], like: Tensor) -> Tensor:
    last = like.dim() == 4 and not like.is_contiguous()
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta", memory_format=order)


def _parts(result: Tensor | Gradients) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [part for part in (result.feature_map, result.transform) if part is not None]


def _rebuilt(like: Tensor | Gradients, parts: Iterator[Tensor]) -> Tensor | Gradients:
    """A result of the same form, made of other tensors."""
    if isinstance(like, Tensor):
        return next(parts)
    fields = like.feature_map, like.transform
    return Gradients(*(None if field is None else next(parts) for field in fields))


def devices_of(setting: str) -> list[Device]:
    """One device per lane for the setting `device`.

    Raises:
        ConfigError: It names a device that is not here.
    """
    here = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if setting == "cpu" or (setting == "auto" and not here):
        return [Host()]
    names = here if setting == "auto" else setting.split(",")
    for name in names:
        if name not in here:
            known = ", ".join(["auto", "cpu", *here])
            raise ConfigError(f"device: expected some of {known}, got {name}, which is not here.")
    return [Gpu(torch.device(name)) for _ in range(LANES_PER_GPU) for name in names]
