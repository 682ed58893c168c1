"""Estimates what a problem takes of a device: its time, and memory beside operands and results."""

from __future__ import annotations

import math
from typing import Any, cast

import stn_engine

TAPS = {
    stn_engine.Interpolation.NEAREST: 1,
    stn_engine.Interpolation.BILINEAR: 2,
    stn_engine.Interpolation.BICUBIC: 4,
}
"""How many values a point reads along each axis, of each channel."""

COORDINATE_READS = 4
"""The time to find where a point reads, in reads of a value, measured on CPUs."""

BASIS_READS = 3
"""What each control point of a spline adds to that once its basis is made, measured on CPUs."""

COLOUR_WORK = COORDINATE_READS + 3 * 4
"""The work of one bilinear point of a colour image."""


def forward_of(problem: Any) -> Any:
    """Returns the warp or the grid that a problem differentiates, compares or is."""
    if isinstance(problem, stn_engine.WarpGradientsProblem | stn_engine.ObjectiveProblem):
        return problem.warp
    return problem.grid if isinstance(problem, stn_engine.GridGradientsProblem) else problem


def basis_bytes(forward: stn_engine.WarpProblem | stn_engine.GridProblem) -> int:
    """Returns the bytes of the basis of a spline: all target pixels, once for all items."""
    pixels = math.prod(cast("tuple[int, ...]", forward.output_size))
    return 8 * forward.transform.basis_size * pixels


def work_of(problem: Any) -> int:
    """Returns a measure of the device's time, for any channels, dimensions and interpolation."""
    forward = forward_of(problem)
    reads: int = BASIS_READS * forward.transform.basis_size
    if isinstance(forward, stn_engine.WarpProblem):
        taps = TAPS[forward.spec.interpolation] ** forward.transform.dims
        reads += forward.output_shape[1] * taps
    return int(problem.output_samples) * (COORDINATE_READS + reads)
