"""Runs kernels on the GPUs of this machine. The CUDA libraries are loaded when first needed."""

from array import array
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stn_engine.backends.cuda.programs import Kernel

OLDEST = (8, 0)
"""Compute capability that the kernels need."""


Arguments: TypeAlias = "array[int]"
"""What a kernel is called with: the 64-bit words of the structure ``Launch``."""


class Launcher(Protocol):
    """Compiles programs and runs their kernels on a device, in the order of the calls."""

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Why kernels cannot run on ``device``; empty if they can."""

    def stream(self, device: torch.device) -> int:
        """Which queue of ``device`` kernels go to now."""

    def upload(self, words: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """A copy of 64-bit words that kernels can read; ``words`` may be reused at once."""

    def zero(self, address: int, size_bytes: int, device: torch.device) -> None:
        """Fill memory with 0, in the order of launches."""

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Let the present stream end before others get the memory of ``tensors``.

        For those that were made on another stream, and that somebody else may let go of.
        """

    def retain(self, things: object) -> None:
        """Keep for ever what a graph will read at every replay, if one is being captured."""

    def launch(self, kernel: Kernel, arguments: Arguments, device: torch.device) -> None:
        """Run one kernel over all tiles; ``arguments`` may be changed at once."""


class DeviceLauncher:
    """Launches on torch's current stream of the operands' device."""

    def __init__(self) -> None:
        self._retained: list[object] = []

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Another kind of device, missing libraries, or a GPU that is too old."""
        if device.type == "cuda":
            return _reasons_against_gpu(device)
        return _reasons_against_other(device)

    def stream(self, device: torch.device) -> int:
        """The handle of torch's current stream."""
        handle: int = _driver().stream(device)
        return handle

    def upload(self, words: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """Copies words through pinned memory, which torch keeps until the copy is done."""
        pinned = torch.empty(len(words), dtype=torch.int64, device="cpu", pin_memory=True)
        pinned.numpy()[:] = words
        self.retain(pinned)
        return pinned.to(device, non_blocking=True)

    def zero(self, address: int, size_bytes: int, device: torch.device) -> None:
        """Zeroes memory on the current stream."""
        _driver().zero(address, size_bytes, device)

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Holds the tensors by torch's allocator."""
        stream = torch.cuda.current_stream(device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def retain(self, things: object) -> None:
        """Keeps for good what a graph that is being captured reads.

        Nobody tells when a graph is gone; what one call of it reads are some kilobytes.
        """
        if torch.cuda.is_current_stream_capturing():
            self._retained.append(things)

    def launch(self, kernel: Kernel, arguments: Arguments, device: torch.device) -> None:
        """Launches a kernel, with one thread block per tile, or per few of them."""
        _driver().launch(kernel, arguments, device)


@cache
def _driver() -> ModuleType:
    return import_module("stn_engine.backends.cuda.driver")


@cache
def _reasons_against_other(device: torch.device) -> tuple[str, ...]:
    return (f"computes on CUDA devices, the operands are on {device}",)


@cache
def _reasons_against_gpu(device: torch.device) -> tuple[str, ...]:
    try:
        _driver()
    except (ImportError, RuntimeError) as error:  # RuntimeError: a library of CUDA is not found
        return (
            f"cuda.core is not usable: {error}. In the checkout: pip install './stn_engine[cuda]'",
        )
    capability = torch.cuda.get_device_capability(device)
    if capability >= OLDEST:
        return ()
    needed, found = ("{}.{}".format(*one) for one in (OLDEST, capability))
    return (f"needs compute capability {needed}, {device} has {found}",)
