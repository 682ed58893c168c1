"""Compiles and launches kernels on the GPUs of this machine."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._cuda.launcher import Arguments
from stn_engine.backends._cuda.programs import Program

try:
    from cuda.core import Kernel, LaunchConfig, ObjectCode, launch

    from stn_engine.backends._cuda.compiler import cubin
except ImportError as error:
    MISSING: str | None = f"cuda.core is not usable (install stn-engine[cuda]): {error}"
else:
    MISSING = None

THREADS = 256
"""In every block; ``kThreads`` of the kernels."""
MOST_BLOCKS = (1 << 31) - 1
"""In one launch; blocks go on to further tiles if there are more."""
OLDEST = (8, 0)
"""Compute capability that the kernels need."""


class _CurrentStream:
    """Torch's current stream of a device, as cuda.core takes foreign streams."""

    def __init__(self, device: torch.device) -> None:
        self._handle = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol, and the handle."""
        return 0, self._handle


class DeviceLauncher:
    """Launches on torch's current stream of the operands' device."""

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Another kind of device, no cuda.core, or a GPU that is too old."""
        if device.type != "cuda":
            return (f"computes on CUDA devices, the operands are on {device}",)
        if MISSING is not None:
            return (MISSING,)
        return _reasons_against_gpu(device)

    def upload(self, words: np.ndarray, device: torch.device) -> Tensor:
        """Through pinned memory, which torch keeps until the copy is done."""
        pinned = torch.empty(len(words), dtype=torch.int64, pin_memory=True)
        pinned.numpy()[:] = words
        return pinned.to(device, non_blocking=True)

    def launch(
        self, program: Program, kernel: str, arguments: Arguments, device: torch.device
    ) -> None:
        """One block per tile."""
        with torch.cuda.device(device):
            launch(
                _CurrentStream(device),
                LaunchConfig(grid=min(arguments.tiles, MOST_BLOCKS), block=THREADS),
                _kernel(program, kernel, _architecture(device)),
                *arguments,
            )


@cache
def _reasons_against_gpu(device: torch.device) -> tuple[str, ...]:
    capability = torch.cuda.get_device_capability(device)
    if capability >= OLDEST:
        return ()
    needed, found = ("{}.{}".format(*one) for one in (OLDEST, capability))
    return (f"needs compute capability {needed}, {device} has {found}",)


@cache
def _architecture(device: torch.device) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@cache
def _kernel(program: Program, name: str, architecture: str) -> "Kernel":
    return _code(program, architecture).get_kernel(name)


@cache
def _code(program: Program, architecture: str) -> "ObjectCode":
    return cubin(program, architecture)
