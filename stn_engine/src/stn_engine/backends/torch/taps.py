"""Which pixels a source point reads, and with what weights: section 5 in torch.

Points are (N, dims, P) in pixels, x in row 0, y in row 1 and z in row 2, as ``points`` makes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.problem import WarpProblem
from stn_engine.spec import Coordinates, Interpolation, Padding, Subgradient


@dataclass(frozen=True, eq=False)
class Taps:
    """The pixels that P points read: K per axis, so T = K² per point, or K³ in 3-D.

    Shapes:
        index    (N, T, P)         int64, into the pixels of a channel, row-major, and the two
                                   constants behind them: what a tap outside reads, then fill
        weight   (N, dims, K, P)   per axis, x in row 0, y in row 1, z in row 2
        slope    (N, dims, K, P)   derivative of the weight by the coordinate of its axis
    """

    index: Tensor
    weight: Tensor
    slope: Tensor

    @property
    def product(self) -> Tensor:
        """Equation (4), the weight of each tap: (N, T, P)."""
        return _combined(self.weight, torch.mul)


def find_taps(points: Tensor, problem: WarpProblem) -> Taps:
    """Returns the taps of every point under the problem's interpolation and padding."""
    readable = _readable(points, problem)
    # From here on every coordinate is finite, and padding makes it small: fit for integers.
    inner = torch.where(readable, points, 0)
    make = _AXES[problem.spec.interpolation]
    position, weight, slope = make(inner, problem)
    return Taps(_index(points, position, readable, problem), weight, slope)


def _nearest(inner: Tensor, problem: WarpProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the closest pixel per axis: position, weight and slope, each (N, dims, 1, P)."""
    position = _padded(inner, problem).round()[:, :, None]
    return position, torch.ones_like(position), torch.zeros_like(position)


def _bilinear(inner: Tensor, problem: WarpProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the floor and ceil per axis: positions, weights and slopes, each (N, dims, 2, P)."""
    inner = _padded(inner, problem)
    lower = inner.floor()
    # At a whole coordinate the right-hand tap has no weight, but its slope counts: that is the
    # derivative to the right. With ceil both taps are one pixel there, whose slopes cancel to 0.
    upper = lower + 1 if problem.spec.subgradient == Subgradient.RIGHT else inner.ceil()
    near = upper - inner  # dx and dy of equation (1)
    weight = torch.stack((near, 1 - near), 2)
    slope = constant(((-1.0,), (1.0,)), weight.dtype, weight.device)
    return torch.stack((lower, upper), 2), weight, slope.expand_as(weight)


def _bicubic(inner: Tensor, problem: WarpProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Returns four pixels per axis, each padded on its own, as ``_bilinear``: (N, dims, 4, P)."""
    lower = inner.floor()
    position = torch.stack([lower + k for k in (-1, 0, 1, 2)], 1)  # (N, 4, dims, P)
    t = inner - lower
    s = 1 - t
    a = -0.75
    # Keys' kernel at distances 1 + t, t, 1 - t and 2 - t.
    weight = (
        a * t * s * s,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * s - (a + 3)) * s * s + 1,
        a * s * t * t,
    )
    slope = (
        a * s * (1 - 3 * t),
        t * (3 * (a + 2) * t - 2 * (a + 3)),
        s * (2 * (a + 3) - 3 * (a + 2) * s),
        a * t * (2 - 3 * t),
    )
    position = _padded(position, problem).transpose(1, 2)
    return position, torch.stack(weight, 2), torch.stack(slope, 2)


_AXES = {
    Interpolation.NEAREST: _nearest,
    Interpolation.BILINEAR: _bilinear,
    Interpolation.BICUBIC: _bicubic,
}


def coordinate_slope(points: Tensor, problem: WarpProblem) -> Tensor:
    """Returns d(coordinate that is read) / d(source point): -1, 0 or 1, (N, dims, P).

    0 marks points whose value does not depend on the coordinate at all. Bicubic pads its taps and
    not the coordinate.
    """
    readable = _readable(points, problem)
    padding, interpolation = problem.spec.padding, problem.spec.interpolation
    if padding in {Padding.ZEROS, Padding.FILL} or interpolation == Interpolation.BICUBIC:
        return readable.to(points.dtype).expand_as(points)
    if padding == Padding.BORDER:
        read, sign = points, torch.ones_like(points)
    else:
        read, sign = _reflected(points, problem)
    moving = readable & (read > 0) & (read < _last(problem, points.dtype))
    return torch.where(moving, sign, 0)


def _readable(points: Tensor, problem: WarpProblem) -> Tensor:
    """Returns False where a point reads nothing but the constant: (N, 1, P)."""
    if problem.spec.padding in {Padding.ZEROS, Padding.FILL}:
        reach = 2 if problem.spec.interpolation == Interpolation.BICUBIC else 1
        inside = (points >= -reach) & (points <= _last(problem, points.dtype) + reach)
        return inside.all(1, keepdim=True)
    return _finite(points)


def is_within(points: Tensor, problem: WarpProblem) -> Tensor:
    """Returns whether points are within the outermost pixel centres of the map: (N, 1, P)."""
    return ((points >= 0) & (points <= _last(problem, points.dtype))).all(1, keepdim=True)


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
    """Returns points mirrored into the map, not yet clipped, and the sign of each mirroring."""
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
    last = _last(problem, position.dtype)[:, None]
    inside = (position >= 0) & (position <= last) & readable[:, :, None]
    index = _combined(position.long() * _strides(problem), torch.add)
    return torch.where(_combined(inside, torch.logical_and), index, _blank(points, problem))


def _combined(per_axis: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combines one entry of every axis, x running fastest: (N, dims, K, P) to (N, T, P)."""
    return reduce(
        lambda inner, outer: combine(outer[:, :, None], inner[:, None]).flatten(1, 2),
        per_axis.unbind(1),
    )


def _blank(points: Tensor, problem: WarpProblem) -> Tensor | int:
    """Returns the index of the constant that a tap outside the map reads, an int or (N, 1, P)."""
    outside = math.prod(problem.feature_map.shape[2:])
    if problem.spec.padding == Padding.FILL or not any(problem.spec.fill):
        return outside  # both constants are equal
    return torch.where(_finite(points), outside, outside + 1)


def _last(problem: WarpProblem, dtype: torch.dtype) -> Tensor:
    """Returns the largest x, y and z inside the feature map, (dims, 1)."""
    last = tuple((size - 1,) for size in reversed(problem.feature_map.shape[2:]))
    return constant(last, dtype, problem.feature_map.device)


def _strides(problem: WarpProblem) -> Tensor:
    """Returns how far a step along x, y and z leads in row-major order, (dims, 1, 1)."""
    sizes = problem.feature_map.shape[:1:-1]
    strides = tuple(((math.prod(sizes[:axis]),),) for axis in range(len(sizes)))
    return constant(strides, torch.int64, problem.feature_map.device)
