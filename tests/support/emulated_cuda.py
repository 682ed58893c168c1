"""Runs the kernels of the ``cuda`` backend on the CPU: compiled by g++, in blocks of one thread.

Everything else is the backend's own: the table, the scratch memory, the order of launches.
``python -m support.emulated_cuda`` compiles all of them beforehand, on every core.
"""

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch

from stn_engine.backends._cuda.programs import Program, all_programs, sources_digest
from stn_engine.backends.cuda import CudaBackend

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "emulation" / "cuda.h"
BUILT = ROOT / "build" / "emulated-cuda"
COMPILER = ("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off")
"""No contraction, as on the device; a fused product is then one of the C library or of the CPU."""


def command(program: Program) -> list[str]:
    """What compiles a program, but for where the result goes."""
    macros = [f"-D{name}={value}" for name, value in program.macros.items()]
    return [*COMPILER, *macros, "-include", str(SHIM), "-x", "c++", str(program.path)]


@cache
def library(program: Program) -> ctypes.CDLL:
    """The program, loaded."""
    return ctypes.CDLL(str(compiled(program)))


def compiled(program: Program) -> Path:
    """The program as a shared library, compiled unless an earlier run did."""
    arguments = command(program)
    digest = sha256(
        "\0".join([*arguments, sources_digest(), SHIM.read_text(encoding="utf-8")]).encode()
    ).hexdigest()
    path = BUILT / f"{program.source}-{digest[:20]}.so"
    if not path.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*arguments, "-o", str(unfinished)], check=True, timeout=110)
        unfinished.rename(path)
    return path


class EmulatedLauncher:
    """Launches at once, in the calling thread."""

    def reasons_against(self, device):
        return () if device.type == "cpu" else (f"emulates in host memory, not on {device}",)

    def upload(self, words, device):
        del device
        return torch.from_numpy(words)

    def launch(self, program, kernel, arguments, device):
        del device
        getattr(library(program), kernel)(*map(ctypes.c_longlong, arguments))


EMULATED_CUDA = CudaBackend(EmulatedLauncher())


if __name__ == "__main__":
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, all_programs()))
