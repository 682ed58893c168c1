"""Where target pixels read from: the transforms, each a tensor of parameters with a meaning.

There is one file for each kind, which says all that others need to know of it: shapes, the name of
its argument, what kernels call it, and the theta of kinds that are expanded to one.
"""

from typing import TypeAlias, get_args

from stn_engine.transforms.affine import Affine
from stn_engine.transforms.attention import Attention
from stn_engine.transforms.flow import Flow
from stn_engine.transforms.homography import Homography
from stn_engine.transforms.rotation import Rotation
from stn_engine.transforms.sampling_grid import SamplingGrid
from stn_engine.transforms.similarity import Similarity
from stn_engine.transforms.thin_plate_spline import ThinPlateSpline
from stn_engine.transforms.translation import Translation

__all__ = [
    "Affine",
    "Attention",
    "Flow",
    "Homography",
    "ParametricTransform",
    "Rotation",
    "SamplingGrid",
    "Similarity",
    "ThinPlateSpline",
    "Transform",
    "Translation",
]

ParametricTransform: TypeAlias = (
    Affine | Homography | Attention | Similarity | Translation | Rotation | ThinPlateSpline | Flow
)
"""Transforms that the grid generator takes."""

Transform: TypeAlias = ParametricTransform | SamplingGrid
"""Transforms that a warp takes."""

KINDS: tuple[type[Transform], ...] = get_args(Transform)
"""All kinds of transforms."""
