"""The programs that the kernels are compiled into, and the kernels that each of them holds."""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path

import torch

from stn_engine.backends.cuda.tuning import THREADS
from stn_engine.spec import Interpolation

SOURCES = Path(__file__).parents[2] / "native" / "cuda"

STORAGES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "stn::Float16",
    torch.bfloat16: "stn::BFloat16",
    torch.uint8: "stn::UInt8",
    torch.uint16: "stn::UInt16",
    torch.int16: "stn::Int16",
}
"""The type of an element in the kernels."""

_LAYOUTS = ("planes", "interleaved")


@dataclass(frozen=True)
class Program:
    """A source file, specialised.

    Args:
        source: Name of the file, without its suffix.
        dtype: Of feature maps.
        dims: 2 or 3.
        interpolation: Of all problems.
    """

    source: str
    dtype: torch.dtype = torch.float32
    dims: int = 2
    interpolation: Interpolation = Interpolation.BILINEAR

    @property
    def path(self) -> Path:
        """The file with the source of the program."""
        return SOURCES / f"{self.source}.cu"

    @property
    def macros(self) -> dict[str, str]:
        """What the compiler is told."""
        return {
            "STN_STORAGE": STORAGES[self.dtype],
            "STN_AXES": str(self.dims),
            "STN_INTERPOLATION": f"stn::Interpolation::{self.interpolation}",
            "STN_THREADS": str(THREADS),
        }

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels in it; the backward ones read volumes plane by plane."""
        names = _KERNELS[self.source]
        if self.dims == 2 or self.source == "warp":
            return names
        return tuple(name for name in names if not re.search("interleaved|spline", name))


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel of a program. ``kernel_of`` makes each once, so that it is found by identity."""

    program: Program
    name: str

    @cached_property
    def is_far(self) -> bool:
        """Whether it mostly finds nothing to do."""
        return "_far_" in self.name


@cache
def kernel_of(program: Program, name: str) -> Kernel:
    """The kernel of this name."""
    return Kernel(program, name)


def _in_layouts(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{layout}" for stem in stems for layout in _LAYOUTS)


_KERNELS = {
    "warp": _in_layouts("stn_warp_matrix", "stn_warp_field"),
    "slopes": _in_layouts("stn_slopes_matrix", "stn_slopes_field", "stn_slopes_spline"),
    "gather": ("stn_preimage", *_in_layouts("stn_gather", "stn_gather_far")),
    "scatter": (
        "stn_peaks",
        *_in_layouts("stn_scatter", "stn_collect"),
    ),
    "moments": ("stn_moments",),
    "objective": ("stn_objective_matrix", "stn_objective_field", "stn_objective_spline"),
    "parameters": ("stn_prepare", "stn_finish", "stn_finish_moments", "stn_finish_objective"),
}


def all_programs() -> tuple[Program, ...]:
    """Every program that a launch may ask for."""
    gradients = tuple(dtype for dtype in STORAGES if dtype.is_floating_point)
    smooth = (Interpolation.BILINEAR, Interpolation.BICUBIC)
    dims = (2, 3)
    return (
        Program("parameters"),
        *(Program("warp", *one) for one in product(STORAGES, dims, Interpolation)),
        *(Program("slopes", *one) for one in product(gradients, dims, smooth)),
        *(Program("gather", *one) for one in product(gradients, dims, Interpolation)),
        *(Program("scatter", *one) for one in product(gradients, dims, Interpolation)),
        *(Program("moments", *one) for one in product(gradients, dims, Interpolation)),
        *(Program("objective", *one) for one in product(gradients, dims, smooth)),
    )


@cache
def sources_digest() -> str:
    """Returns a digest of every file that a program may include."""
    digest = sha256()
    folders = SOURCES, SOURCES.parent / "shared"
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
