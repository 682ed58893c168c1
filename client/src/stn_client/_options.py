"""The keyword options that warps share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class GridOptions(TypedDict, total=False):
    """Options of the grid generator."""

    coordinates: Literal["normalized", "pixel"]
    """Unit of all coordinates, those of parameters and grids; default "normalized": [-1, 1]."""
    align_corners: bool
    """Whether -1 and 1 are centres of the corner pixels (True) or their outer edges (default)."""


class WarpOptions(GridOptions, total=False):
    """Options of a warp: grid generator and sampler."""

    interpolation: Literal["nearest", "bilinear", "bicubic"]
    """Default "bilinear"."""
    padding: Literal["zeros", "border", "reflection", "fill"]
    """What reads outside the feature map return; default "zeros"."""
    fill: float | Sequence[float]
    """The constant of padding "fill", or one per channel; default 0."""
    subgradient: Literal["right", "zero"]
    """Derivative at integer coordinates; default "right", as PyTorch."""
    deterministic: bool
    """Whether feature-map gradients must be bit-reproducible; default True."""
    layout: Literal["NCHW", "NHWC"]
    """Order of the axes of all maps of the call, given or returned: the feature map, the output and
    the gradients to both. "NCHW" (default) is (N, C, [D,] H, W), "NHWC" is (N, [D,] H, W, C)."""
