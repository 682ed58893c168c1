"""The oracle: NumPy float64, equation by equation, in the notation of the paper.

Imports nothing of the engine and takes plain strings, so that it can be wrong only on its own.

    U (N, C, H, W)   V, G (N, C, H', W')   grid, displacement (N, H', W', 2) as (x, y)
    theta (N, 2, 3), or (N, 3, 3) of a homography

and in 3-D, where each equation gets one more term or factor,

    U (N, C, D, H, W)   V, G (N, C, D', H', W')   grid, displacement (N, D', H', W', 3) as (x, y, z)
    theta (N, 3, 4)

N of either operand may be 1. Options, spelled as in ``WarpSpec``:

    interpolation   "nearest" | "bilinear" | "bicubic"
    padding         "zeros" | "border" | "reflection" | "fill"
    fill            one value or one per channel: outside under "fill", at non-finite points always
    coordinates     "normalized" | "pixel"
    align_corners   True | False
    subgradient     "right" | "zero"

Sections and equations are those of ``docs/equations.md``. Overflow and NaN are answers here, not
accidents: section 5 says what they read.
"""

from stn_engine.reference.arrays import Array
from stn_engine.reference.generators import (
    affine_generator,
    affine_generator_adjoint,
    flow_generator,
    homography_generator,
    homography_generator_adjoint,
    thin_plate_spline_generator,
    thin_plate_spline_generator_adjoint,
)
from stn_engine.reference.lattices import source_pixels, target_coordinates
from stn_engine.reference.objectives import Compared, Comparing, compare, overlap, slopes
from stn_engine.reference.sampling import Sampling, sampler, sampler_adjoint
from stn_engine.reference.thetas import similarity_theta, similarity_theta_adjoint

__all__ = [
    "Array",
    "Compared",
    "Comparing",
    "Sampling",
    "affine_generator",
    "affine_generator_adjoint",
    "compare",
    "flow_generator",
    "homography_generator",
    "homography_generator_adjoint",
    "overlap",
    "sampler",
    "sampler_adjoint",
    "similarity_theta",
    "similarity_theta_adjoint",
    "slopes",
    "source_pixels",
    "target_coordinates",
    "thin_plate_spline_generator",
    "thin_plate_spline_generator_adjoint",
]
