"""Runs kernels on the GPUs of this machine. The CUDA libraries are loaded when first needed."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._cuda.launcher import Arguments
from stn_engine.backends._cuda.programs import Program

OLDEST = (8, 0)
"""Compute capability that the kernels need."""


class DeviceLauncher:
    """Launches on torch's current stream of the operands' device."""

    def __init__(self) -> None:
        self._retained: list[object] = []

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Another kind of device, missing libraries, or a GPU that is too old."""
        if device.type == "cuda":
            return _reasons_against_gpu(device)
        return _reasons_against_other(device)

    def upload(self, words: np.ndarray, device: torch.device) -> Tensor:
        """Through pinned memory, which torch keeps until the copy is done."""
        pinned = torch.empty(len(words), dtype=torch.int64, device="cpu", pin_memory=True)
        pinned.numpy()[:] = words
        self.retain(pinned)
        return pinned.to(device, non_blocking=True)

    def hold(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """By torch's allocator, which waits for the current stream then."""
        stream = torch.cuda.current_stream(device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def retain(self, things: object) -> None:
        """Nobody tells when a graph is gone; what one call of it reads are some kilobytes."""
        if torch.cuda.is_current_stream_capturing():
            self._retained.append(things)

    def launch(
        self, program: Program, kernel: str, arguments: Arguments, device: torch.device
    ) -> None:
        """One block of threads per tile."""
        _driver().launch(program, kernel, arguments, device)


@cache
def _driver() -> ModuleType:
    return import_module("stn_engine.backends._cuda.driver")


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
