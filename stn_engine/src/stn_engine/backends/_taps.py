"""Which pixels a source point reads, and with what weights: section 5 in torch.

Points are (N, 2, P) in pixels, x in row 0 and y in row 1, as ``_points`` makes them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.problem import WarpProblem
from stn_engine.spec import Coordinates, Interpolation, Padding, Subgradient


@dataclass(frozen=True, eq=False)
class Taps:
    """The pixels that P points read: K per axis, so K² per point.

    Shapes:
        index    (N, K², P)     int64, into the H·W pixels of a channel, row-major, and the two
                                constants behind them: what a tap outside reads, then fill
        weight   (N, 2, K, P)   per axis, x in row 0 and y in row 1
    """

    index: Tensor
    weight: Tensor

    @property
    def pair_weight(self) -> Tensor:
        """Equation (4), the weight of each tap: (N, K², P)."""
        return (self.weight[:, 1, :, None] * self.weight[:, 0, None]).flatten(1, 2)


def find_taps(points: Tensor, problem: WarpProblem) -> Taps:
    """The taps of every point under the problem's interpolation and padding."""
    readable = _readable(points, problem)
    # From here on every coordinate is small and finite: conversion to integers is safe.
    inner = _padded(torch.where(readable, points, 0), problem)
    if problem.spec.interpolation == Interpolation.NEAREST:
        position = inner.round()[:, :, None]
        return Taps(_index(points, position, readable, problem), torch.ones_like(position))
    lower = inner.floor()
    upper = lower + 1 if problem.spec.subgradient == Subgradient.RIGHT else inner.ceil()
    near = upper - inner  # dx and dy of equation (1)
    index = _index(points, torch.stack((lower, upper), 2), readable, problem)
    return Taps(index, torch.stack((near, 1 - near), 2))


def coordinate_slope(points: Tensor, problem: WarpProblem) -> Tensor:
    """d(coordinate that is read) / d(source point): -1, 0 or 1, (N, 2, P).

    0 marks points whose value does not depend on the coordinate at all.
    """
    readable = _readable(points, problem)
    padding = problem.spec.padding
    if padding in {Padding.ZEROS, Padding.FILL}:
        return readable.to(points.dtype).expand_as(points)
    if padding == Padding.BORDER:
        read, sign = points, torch.ones_like(points)
    else:
        read, sign = _reflected(points, problem)
    moving = readable & (read > 0) & (read < _last(problem, points.dtype))
    return torch.where(moving, sign, 0)


def _readable(points: Tensor, problem: WarpProblem) -> Tensor:
    """False where a point is a constant through and through: (N, 1, P)."""
    if problem.spec.padding in {Padding.ZEROS, Padding.FILL}:
        inside = (points >= -1) & (points <= _last(problem, points.dtype) + 1)
        return inside.all(1, keepdim=True)
    return _finite(points)


def _finite(points: Tensor) -> Tensor:
    return points.isfinite().all(1, keepdim=True)


def _padded(points: Tensor, problem: WarpProblem) -> Tensor:
    padding = problem.spec.padding
    if padding in {Padding.ZEROS, Padding.FILL}:
        return points
    if padding == Padding.REFLECTION:
        points, _ = _reflected(points, problem)
    last = _last(problem, points.dtype)
    return points.clamp(torch.zeros_like(last), last)


def _reflected(points: Tensor, problem: WarpProblem) -> tuple[Tensor, Tensor]:
    """Points mirrored into the map, not yet clipped, and the sign of each mirroring."""
    spec = problem.spec
    last = _last(problem, points.dtype)
    about_edges = spec.coordinates == Coordinates.NORMALIZED and not spec.align_corners
    low, span = (-0.5, last + 1) if about_edges else (0.0, last.clamp(min=1))
    # fmod is exact at any magnitude; the parity of a rounded quotient is not.
    offset = torch.fmod((points - low).abs(), 2 * span)
    returning = offset >= span
    folded = torch.where(returning, 2 * span - offset, offset) + low
    return folded, torch.where(returning ^ (points < low), -1.0, 1.0).to(points.dtype)


def _index(points: Tensor, position: Tensor, readable: Tensor, problem: WarpProblem) -> Tensor:
    width = problem.feature_map.shape[3]
    last = _last(problem, position.dtype)[:, None]
    inside = (position >= 0) & (position <= last) & readable[:, :, None]
    x, y = position.long().unbind(1)
    index = y[:, :, None] * width + x[:, None]
    both = inside[:, 1, :, None] & inside[:, 0, None]
    return torch.where(both, index, _blank(points, problem)).flatten(1, 2)


def _blank(points: Tensor, problem: WarpProblem) -> Tensor | int:
    """Index of the constant that a tap outside the map reads."""
    height, width = problem.feature_map.shape[2:]
    outside, fill = height * width, height * width + 1
    if problem.spec.padding == Padding.FILL or not any(problem.spec.fill):
        return outside  # both constants are equal
    return torch.where(_finite(points), outside, fill)[:, :, None]


def _last(problem: WarpProblem, dtype: torch.dtype) -> Tensor:
    """The largest x and y inside the feature map, (2, 1)."""
    height, width = problem.feature_map.shape[2:]
    return constant(((width - 1,), (height - 1,)), dtype, problem.feature_map.device)
