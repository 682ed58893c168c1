"""Spatial transformer numerics: grid generator, sampler and their exact gradients.

For images (N, C, H, W) and volumes (N, C, D, H, W); ``warp`` states the conventions.
"""

from stn_engine import transforms
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
    objective,
    objective_ragged,
    warp,
    warp_gradients,
    warp_gradients_ragged,
    warp_ragged,
)
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Objective,
    ObjectiveProblem,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.spec import (
    Comparison,
    Coordinates,
    Domain,
    Interpolation,
    Loss,
    Padding,
    Subgradient,
    WarpSpec,
)
from stn_engine.transforms import *  # noqa: F403 - a kind is named there, and here by that

__all__ = [
    "BackendUnavailableError",
    "Comparison",
    "Coordinates",
    "DTypeError",
    "DeviceMismatchError",
    "Domain",
    "EngineError",
    "Gradients",
    "GridGradientsProblem",
    "GridProblem",
    "Interpolation",
    "InvalidInputError",
    "Loss",
    "Objective",
    "ObjectiveProblem",
    "Padding",
    "ParameterError",
    "ShapeError",
    "Subgradient",
    "WarpGradientsProblem",
    "WarpProblem",
    "WarpSpec",
    "affine_grid",
    "generate_grid",
    "generate_grid_gradients",
    "generate_grid_gradients_ragged",
    "generate_grid_ragged",
    "grid_sample",
    "objective",
    "objective_ragged",
    "warp",
    "warp_gradients",
    "warp_gradients_ragged",
    "warp_ragged",
]
__all__ += transforms.__all__
