"""Loads and launches compiled kernels on torch's current stream; importing it needs cuda.core."""

from functools import cache, lru_cache

import torch
from cuda.bindings.driver import CUresult, cuMemsetD8Async
from cuda.core import Kernel, LaunchConfig, ObjectCode, Stream
from cuda.core import launch as queue
from cuda.core._utils.cuda_utils import CUDAError
from cuda.pathfinder import load_nvidia_dynamic_lib

from stn_engine.backends.cuda.compiler import cubin
from stn_engine.backends.cuda.device import Arguments
from stn_engine.backends.cuda.programs import Program
from stn_engine.backends.cuda.tuning import FAR_FILLS, FILLS, MOST_TILES, THREADS

MOST_BLOCKS = (1 << 31) - 1
"""In one launch."""

load_nvidia_dynamic_lib("nvrtc")


def launch(program: Program, kernel: str, arguments: Arguments, device: torch.device) -> None:
    """Thread blocks over all tiles, on the current stream of ``device``.

    Raises:
        torch.OutOfMemoryError: There is no memory for the code of the kernel, or its stack.
        torch.AcceleratorError: The driver refuses in another way; ``error_code`` says how.
    """
    config = _config(_blocks(kernel, arguments.tiles, _multiprocessors(device)))
    with torch.cuda.device(device):
        stream = _stream(device, torch.cuda.current_stream(device).cuda_stream)
        try:
            queue(stream, config, _kernel(program, kernel, _architecture(device)), *arguments)
        except CUDAError as error:
            raise as_torch_error(error) from error


def zero(address: int, size_bytes: int, device: torch.device) -> None:
    """Fill memory with 0, on the current stream of ``device``; errors are those of ``launch``."""
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        (result,) = cuMemsetD8Async(address, 0, size_bytes, stream)
    if result != CUresult.CUDA_SUCCESS:
        raise as_torch_error(CUDAError(f"{result.name}: memory is not filled with 0"))


def as_torch_error(error: Exception) -> Exception:
    """What torch would have raised in place of this error of cuda.core, which begins by a name."""
    name = str(error).partition(":")[0]
    code = CUresult[name].value if name in CUresult.__members__ else CUresult.CUDA_ERROR_UNKNOWN
    if code == CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        return torch.OutOfMemoryError(f"cuda.core: {error}")
    translated = torch.AcceleratorError(f"cuda.core: {error}")
    translated.error_code = int(code)  # type: ignore[attr-defined]  # as torch sets it
    return translated


@lru_cache(maxsize=1024)
def _stream(device: torch.device, handle: int) -> Stream:
    """A stream of torch, which has few of each device and never frees them."""
    del device  # the default streams of all devices have one handle
    return Stream.from_handle(handle)


def _blocks(kernel: str, tiles: int, multiprocessors: int) -> int:
    """How many thread blocks share the tiles, in runs: each reads descriptor and matrix once.

    There are enough of them to fill the device several times over, so that it is busy to the end.
    Kernels that mostly find nothing to do take no more than are there at a time.
    """
    if "_far_" in kernel:
        return min(tiles, FAR_FILLS * multiprocessors)
    run = min(MOST_TILES, max(1, tiles // (FILLS * multiprocessors)))
    return min(-(-tiles // run), MOST_BLOCKS)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


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
