"""Loads and launches compiled kernels on torch's current stream; importing it needs cuda.core."""

import threading
from array import array
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from cuda.bindings.driver import (
    CUfunction,
    CUresult,
    CUstream,
    cuLaunchKernel,
    cuMemsetD8Async,
)
from cuda.core import Device, ObjectCode
from cuda.core._utils.cuda_utils import CUDAError
from cuda.pathfinder import load_nvidia_dynamic_lib

from stn_engine.backends.cuda.compiler import cubin
from stn_engine.backends.cuda.device import Arguments
from stn_engine.backends.cuda.programs import Kernel, Program
from stn_engine.backends.cuda.structures import TILES
from stn_engine.backends.cuda.tuning import FAR_FILLS, FILLS, MOST_TILES, THREADS

MOST_BLOCKS = (1 << 31) - 1
"""The most thread blocks of one launch."""

load_nvidia_dynamic_lib("nvrtc")


class Loaded(NamedTuple):
    """A kernel on a device."""

    kernel: Any
    """That of cuda.core, which keeps the code loaded."""
    function: CUfunction
    multiprocessors: int


class _Touched(threading.local):
    """The devices whose context this thread has had."""

    def __init__(self) -> None:
        self.indices: set[int] = set()


_TOUCHED = _Touched()
_LOADED: dict[tuple[Kernel, int], Loaded] = {}


def stream(device: torch.device) -> int:
    """The handle of torch's current stream; that of the default streams is 0."""
    return _current_stream(_index(device))


def launch(kernel: Kernel, arguments: Arguments, device: torch.device) -> None:
    """Thread blocks over all tiles, on the current stream of ``device``.

    Raises:
        torch.OutOfMemoryError: There is no memory for the code of the kernel, or its stack.
        torch.AcceleratorError: The driver refuses in another way; ``error_code`` says how.
    """
    index = _index(device)
    if not _is_current(index):
        _with_current(index, launch, kernel, arguments, device)
        return
    loaded = _LOADED.get((kernel, index)) or _load(kernel, index)
    blocks = _blocks(kernel, arguments[TILES], loaded.multiprocessors)
    parameters = array("Q", arguments.buffer_info()[:1])  # whose memory the driver copies at once
    (result,) = cuLaunchKernel(
        *(loaded.function, blocks, 1, 1, THREADS, 1, 1, 0),
        *(_stream(_current_stream(index)), parameters, 0),
    )
    if result != CUresult.CUDA_SUCCESS:
        raise as_torch_error(CUDAError(f"{result.name}: {kernel.name} is not launched"))


def zero(address: int, size_bytes: int, device: torch.device) -> None:
    """Fill memory with 0, on the current stream of ``device``; errors are those of ``launch``."""
    index = _index(device)
    if not _is_current(index):
        _with_current(index, zero, address, size_bytes, device)
        return
    (result,) = cuMemsetD8Async(address, 0, size_bytes, _stream(_current_stream(index)))
    if result != CUresult.CUDA_SUCCESS:
        raise as_torch_error(CUDAError(f"{result.name}: memory is not filled with 0"))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _current_stream(index: int) -> int:
    return torch._C._cuda_getCurrentRawStream(index)  # noqa: SLF001 - the public one builds objects


def _is_current(index: int) -> bool:
    """Whether the driver takes this device for the present one, in this thread."""
    # As above: the public function makes sure of what is so, since there are tensors.
    return index in _TOUCHED.indices and torch._C._cuda_getDevice() == index  # noqa: SLF001


def _with_current(index: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function while a device is the present one.

    A thread that has used none of it, not even to allocate, has no context of the driver either.
    """
    with torch.cuda.device(index):
        Device(index).set_current()
        _TOUCHED.indices.add(index)
        function(*arguments)


def as_torch_error(error: Exception) -> Exception:
    """What torch would have raised in place of this error of cuda.core, which begins by a name."""
    name = str(error).partition(":")[0]
    code = CUresult[name].value if name in CUresult.__members__ else CUresult.CUDA_ERROR_UNKNOWN
    if code == CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        return torch.OutOfMemoryError(f"cuda.core: {error}")
    translated = torch.AcceleratorError(f"cuda.core: {error}")
    translated.error_code = int(code)  # type: ignore[attr-defined]  # as torch sets it
    return translated


@cache
def _stream(handle: int) -> CUstream:
    """A stream of torch, which has few of each device and never frees them."""
    return CUstream(handle)


def _blocks(kernel: Kernel, tiles: int, multiprocessors: int) -> int:
    """How many thread blocks share the tiles, in runs: each reads descriptor and matrix once.

    There are enough of them to fill the device several times over, so that it is busy to the end.
    Kernels that mostly find nothing to do take no more than are there at a time.
    """
    if kernel.is_far:
        return min(tiles, FAR_FILLS * multiprocessors)
    run = min(MOST_TILES, max(1, tiles // (FILLS * multiprocessors)))
    return min(-(-tiles // run), MOST_BLOCKS)


def _load(kernel: Kernel, index: int) -> Loaded:
    """The kernel on a device, loaded from now on."""
    properties = torch.cuda.get_device_properties(index)
    code = _code(kernel.program, f"sm_{properties.major}{properties.minor}")
    try:
        there = code.get_kernel(kernel.name)
    except CUDAError as error:
        raise as_torch_error(error) from error
    loaded = Loaded(there, CUfunction(int(there.handle)), properties.multi_processor_count)
    _LOADED[kernel, index] = loaded
    return loaded


@cache
def _code(program: Program, architecture: str) -> ObjectCode:
    return cubin(program, architecture)
