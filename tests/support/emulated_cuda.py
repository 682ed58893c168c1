"""Runs the kernels of the ``cuda`` backend on the CPU: compiled by g++, for an emulated device.

Blocks have the threads and warps that they have on a GPU, and threads meet where kernels say so.
Everything else is the backend's own: the table, the scratch memory, the order of launches.
``python -m support.emulated_cuda`` compiles all of them beforehand, on every core.
"""

import ctypes
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch

from stn_engine.backends.cuda import CudaBackend
from stn_engine.backends.cuda.programs import Program, all_programs, sources_digest
from stn_engine.backends.cuda.structures import LAUNCH_WORDS, TILES
from stn_engine.backends.cuda.tuning import THREADS

ROOT = Path(__file__).parents[2]
EMULATION = ROOT / "tests" / "emulation"
HEADER, DEVICE = EMULATION / "cuda.h", EMULATION / "device.cpp"
BUILT = ROOT / "build" / "emulated-cuda"
COMPILER = (
    *("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"),
    "-U_FORTIFY_SOURCE",  # which takes a jump between stacks for an attack; some systems set it
)
"""No contraction, as on the device; a fused product is then one of the C library or of the CPU."""

WORDS = {"STN_LAUNCH_WORDS": str(LAUNCH_WORDS)}
"""What kernels are called with, for those who call them."""


class EmulatedDeviceError(RuntimeError):
    """A kernel did what a device does not survive, or what it need not notice."""


def command(program: Program) -> list[str]:
    """What compiles a program, but for where the result goes."""
    return kernel_command(program.path, program.macros)


def kernel_command(path: Path, macros: dict[str, str]) -> list[str]:
    """What compiles kernels of some file."""
    defined = [f"-D{name}={value}" for name, value in (macros | WORDS).items()]
    return [*COMPILER, *defined, "-include", str(HEADER), "-x", "c++", str(path)]


def compiled(name: str, arguments: Sequence[str], *sources: str) -> Path:
    """A shared library, compiled unless it was from the same sources, wherever they lay."""
    words = [word.replace(str(ROOT), "") for word in arguments]
    text = "\0".join([*words, HEADER.read_text(encoding="utf-8"), *sources])
    path = BUILT / f"{name}-{sha256(text.encode()).hexdigest()[:20]}.so"
    if not path.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*arguments, "-o", str(unfinished)], check=True, timeout=110)
        unfinished.rename(path)
    return path


def compiled_program(program: Program) -> Path:
    """A program of the backend as a shared library."""
    return compiled(program.source, command(program), sources_digest())


@cache
def load_device() -> ctypes.CDLL:
    """What kernels call; one for all programs."""
    defined = [f"-D{name}={value}" for name, value in {"STN_THREADS": THREADS, **WORDS}.items()]
    arguments = [*COMPILER, "-O2", *defined, str(DEVICE)]
    path = compiled("device", arguments, DEVICE.read_text(encoding="utf-8"))
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


@cache
def loaded(path: Path) -> ctypes.CDLL:
    """A program, on the device."""
    load_device()
    library = ctypes.CDLL(str(path))
    library.emulated_launch.restype = ctypes.c_char_p
    return library


@cache
def program_library(program: Program) -> ctypes.CDLL:
    """The program, loaded."""
    return loaded(compiled_program(program))


def run_kernel(
    library: ctypes.CDLL, kernel: str, arguments: Sequence[int], *, blocks: int, seed: int
) -> None:
    """Runs one kernel; threads and blocks take turns as ``seed`` says.

    Args:
        library: Holds it.
        kernel: Its name.
        arguments: The words of the structure ``Launch``.
        blocks: How many share the tiles.
        seed: Of the order.

    Raises:
        EmulatedDeviceError: Threads wait for others that do not come.
    """
    wrong = library.emulated_launch(
        getattr(library, kernel),
        (ctypes.c_longlong * LAUNCH_WORDS)(*arguments),
        ctypes.c_uint(blocks),
        ctypes.c_ulonglong(seed),
    )
    if wrong is not None:
        raise EmulatedDeviceError(f"{kernel}: {wrong.decode()}.")


class EmulatedLauncher:
    """Launches at once, in the calling thread.

    Args:
        most_blocks: Of a launch. Few, so that blocks go on to further tiles, as they do on a device
            where there are more tiles than a launch may have blocks.
        seed: Of the order in which threads and blocks take turns.
    """

    def __init__(self, *, most_blocks: int = 3, seed: int = 0) -> None:
        self._most_blocks, self._seed = most_blocks, seed

    def reasons_against(self, device):
        return () if device.type == "cpu" else (f"emulates in host memory, not on {device}",)

    def upload(self, words, device):
        del device
        return torch.from_numpy(words)

    def stream(self, device):
        del device
        return 0

    def zero(self, address, size_bytes, device):
        del device
        ctypes.memset(address, 0, size_bytes)

    def hold(self, tensors, device):
        del tensors, device  # a launch returns when its kernel is done

    def retain(self, things):
        del things

    def launch(self, kernel, arguments, device):
        del device
        blocks = min(arguments[TILES], self._most_blocks)
        library = program_library(kernel.program)
        run_kernel(library, kernel.name, arguments, blocks=blocks, seed=self._seed)


EMULATED_CUDA = CudaBackend(EmulatedLauncher())


if __name__ == "__main__":
    load_device()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled_program, all_programs()))
