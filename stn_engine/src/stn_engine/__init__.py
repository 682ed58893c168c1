"""Spatial transformer numerics: grid generator, sampler and their exact gradients.

For images (N, C, H, W) and volumes (N, C, D, H, W); ``warp`` states the conventions.
"""

from stn_engine.drop_ins import affine_grid, grid_sample
from stn_engine.errors import (
    BackendUnavailableError,
    DeviceMismatchError,
    DTypeError,
    EngineError,
    InvalidInputError,
    ParameterError,
    ShapeError,
)
from stn_engine.functional import (
    generate_grid,
    generate_grid_gradients,
    generate_grid_gradients_ragged,
    generate_grid_ragged,
    warp,
    warp_gradients,
    warp_gradients_ragged,
    warp_ragged,
)
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.spec import Coordinates, Interpolation, Padding, Subgradient, WarpSpec
from stn_engine.transforms import (
    Affine,
    Attention,
    Flow,
    Homography,
    ParametricTransform,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Transform,
    Translation,
)

__all__ = [
    "Affine",
    "Attention",
    "BackendUnavailableError",
    "Coordinates",
    "DTypeError",
    "DeviceMismatchError",
    "EngineError",
    "Flow",
    "Gradients",
    "GridGradientsProblem",
    "GridProblem",
    "Homography",
    "Interpolation",
    "InvalidInputError",
    "Padding",
    "ParameterError",
    "ParametricTransform",
    "Rotation",
    "SamplingGrid",
    "ShapeError",
    "Similarity",
    "Subgradient",
    "ThinPlateSpline",
    "Transform",
    "Translation",
    "WarpGradientsProblem",
    "WarpProblem",
    "WarpSpec",
    "affine_grid",
    "generate_grid",
    "generate_grid_gradients",
    "generate_grid_gradients_ragged",
    "generate_grid_ragged",
    "grid_sample",
    "warp",
    "warp_gradients",
    "warp_gradients_ragged",
    "warp_ragged",
]
