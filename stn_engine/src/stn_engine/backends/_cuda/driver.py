"""Loads and launches compiled kernels on torch's current stream; importing it needs cuda.core."""

from functools import cache, lru_cache

import torch
from cuda.core import Kernel, LaunchConfig, ObjectCode
from cuda.core import launch as queue
from cuda.pathfinder import load_nvidia_dynamic_lib

from stn_engine.backends._cuda.compiler import cubin
from stn_engine.backends._cuda.launcher import Arguments
from stn_engine.backends._cuda.programs import THREADS, Program

MOST_BLOCKS = (1 << 31) - 1
"""In one launch; blocks go on to further tiles if there are more."""

load_nvidia_dynamic_lib("nvrtc")


class _Stream:
    """A stream of torch, as cuda.core takes those of others."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        """Version of the protocol, and the handle."""
        return 0, self._handle


def launch(program: Program, kernel: str, arguments: Arguments, device: torch.device) -> None:
    """One block per tile, on the current stream of ``device``."""
    config = _config(min(arguments.tiles, MOST_BLOCKS))
    with torch.cuda.device(device):
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
        queue(stream, config, _kernel(program, kernel, _architecture(device)), *arguments)


@lru_cache(maxsize=1024)
def _config(blocks: int) -> LaunchConfig:
    return LaunchConfig(grid=blocks, block=THREADS)


@cache
def _architecture(device: torch.device) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


@cache
def _kernel(program: Program, name: str, architecture: str) -> Kernel:
    return _code(program, architecture).get_kernel(name)


@cache
def _code(program: Program, architecture: str) -> ObjectCode:
    return cubin(program, architecture)
