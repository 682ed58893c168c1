"""Runs kernels on the GPUs of this machine. The CUDA libraries are loaded when first needed."""

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

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Another kind of device, missing libraries, or a GPU that is too old."""
        if device.type == "cuda":
            return _reasons_against_gpu(device)
        return _reasons_against_other(device)

    def upload(self, words: np.ndarray, device: torch.device) -> Tensor:
        """Through pinned memory, which torch keeps until the copy is done."""
        pinned = torch.empty(len(words), dtype=torch.int64, pin_memory=True)
        pinned.numpy()[:] = words
        return pinned.to(device, non_blocking=True)

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
