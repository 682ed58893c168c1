"""Objectives: section 7 in torch. Their value is differentiable, all else is constant."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from stn_engine.backends.torch.lattices import compute_dtype
from stn_engine.backends.torch.points import (
    source_points,
    source_points_adjoint,
    source_points_curvature,
)
from stn_engine.backends.torch.sampler import coordinate_gradient, read_taps, sum_of_taps
from stn_engine.backends.torch.taps import coordinate_slope, find_taps, is_within
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.problem import Objective, ObjectiveProblem, WarpProblem
from stn_engine.spec import Comparison, Domain, Interpolation, Loss

CONSTANT_VARIANCE = 2.0**-38
"""A variance below this part of the mean square is 0: what is left of it is rounding."""


class Compared(NamedTuple):
    """Maps that were compared; P target points, all float64."""

    value: Tensor
    """(N,)"""
    grad: Tensor
    """The gradient by V, (N, C, P)."""
    curvature: Tensor
    """Weights in the Gauss-Newton matrix, (N, C, P)."""


def objective(problem: ObjectiveProblem) -> Objective:
    """Returns the results of section 7; of these the value has a graph, if an operand has."""
    n, channels, *size = problem.output_shape
    if n * math.prod(size) == 0:
        return _of_nothing(problem)
    warp = _warp_of_items(problem)
    points = source_points(warp)
    taps = find_taps(points, warp)
    w = _weights(problem, points)
    # What has no weight is left out, whatever it is: 0 times NaN would be NaN.
    values = torch.where(w[:, :, None] == 0, 0, read_taps(warp, taps))
    fixed = torch.where(w == 0, 0, problem.fixed.to(compute_dtype(warp)).flatten(2)).double()
    V = sum_of_taps(warp, taps, values).double()
    count = tree_sum(w[:, 0], 1)
    compare = _COMPARE[problem.comparison.loss]
    compared = compare(V, fixed, w, channels * count, problem.comparison)
    with torch.no_grad():
        slope = coordinate_slope(points, warp)
        moves = (slope != 0) & (w != 0) & (warp.spec.interpolation != Interpolation.NEAREST)

        def by_points(values: Tensor, grad: Tensor) -> Tensor:
            # Selected rather than multiplied: 0 times an infinite gradient would be NaN.
            return torch.where(moves, coordinate_gradient(values, taps, grad) * slope, 0)

        gradient = gauss_newton = None
        if "gradient" in problem.needs:
            gradient = source_points_adjoint(warp, by_points(values, compared.grad))
        if "gauss_newton" in problem.needs:
            by_channel = [by_points(one, torch.ones_like(w)) for one in torch.split(values, 1, 1)]
            slopes = torch.stack(by_channel, 1)  # (N, C, dims, P)
            products = slopes[:, :, :, None] * slopes[:, :, None]
            curvature = tree_sum(compared.curvature[:, :, None, None] * products, 1)
            gauss_newton = source_points_curvature(warp, curvature)
    return Objective(compared.value, count.detach(), gradient, gauss_newton)


def _warp_of_items(problem: ObjectiveProblem) -> WarpProblem:
    """Returns the warp with parameters of its own, and so a gradient, for every item."""
    transform, n = problem.warp.transform, problem.batch_size
    parameters = transform.parameters.expand(n, *transform.parameters.shape[1:])
    return replace(problem.warp, transform=transform.with_parameters(parameters))


def _of_nothing(problem: ObjectiveProblem) -> Objective:
    """Returns the objective of no target points: nothing is counted."""
    parameters, n = problem.warp.transform.parameters, problem.batch_size
    zeros = torch.zeros(n, dtype=torch.float64, device=parameters.device)
    size = math.prod(parameters.shape[1:])
    return Objective(
        zeros + (problem.comparison.loss == Loss.NCC),
        zeros,
        parameters.new_zeros(n, *parameters.shape[1:]) if "gradient" in problem.needs else None,
        zeros.new_zeros(n, size, size) if "gauss_newton" in problem.needs else None,
    )


def _weights(problem: ObjectiveProblem, points: Tensor) -> Tensor:
    """Returns the weight of every target point, (N, 1, P), float64; constant in the parameters."""
    w = torch.ones_like(points[:, :1], dtype=torch.float64)
    if problem.weights is not None:
        w = w * problem.weights.flatten(2)
    if problem.comparison.domain == Domain.ALL:
        return w
    return torch.where(is_within(points, problem.warp), w, 0)


def _sum(terms: Tensor) -> Tensor:
    """Returns the sum over channels and points of every item, (N,)."""
    return tree_sum(tree_sum(terms, 1), 1)


def _each(per_item: Tensor) -> Tensor:
    return per_item[:, None, None]


def _squares(V: Tensor, F: Tensor, w: Tensor, M: Tensor, _: Comparison) -> Compared:
    M = torch.where(M == 0, 1, M)
    e, factor = V - F, 2 * w / _each(M)
    return Compared(_sum(w * e * e) / M, factor * e, factor.expand_as(e))


def _huber(V: Tensor, F: Tensor, w: Tensor, M: Tensor, how: Comparison) -> Compared:
    M, delta = torch.where(M == 0, 1, M), how.delta
    e = V - F
    near, factor = e.abs() <= delta, w / _each(M)
    h = torch.where(near, e * e / 2, delta * (e.abs() - delta / 2))
    return Compared(_sum(w * h) / M, factor * e.clamp(-delta, delta), factor * near)


def _correlation(V: Tensor, F: Tensor, w: Tensor, M: Tensor, _: Comparison) -> Compared:
    size = torch.where(M == 0, 1, M)
    a, b = V - _each(_sum(w * V) / size), F - _each(_sum(w * F) / size)
    A, B, S = _sum(w * a * a), _sum(w * b * b), _sum(w * a * b)
    # A constant map correlates with nothing: its value is 1, and no parameter changes that.
    flat = (CONSTANT_VARIANCE * _sum(w * V * V) >= A) | (CONSTANT_VARIANCE * _sum(w * F * F) >= B)
    A, B, S = torch.where(flat, 1, A), torch.where(flat, 1, B), torch.where(flat, 0, S)
    # Each root by itself: A·B is beyond float64 sooner, and the quotient is 1 where maps are equal.
    ratio, gain = S / A, A.sqrt() / B.sqrt()
    # The means depend on V as well, but contribute nothing: the sums of w·a and of w·b are 0.
    grad = -w * (b - _each(ratio) * a) * _each(gain / A)
    return Compared(1 - ratio * gain, torch.where(_each(flat), 0, grad), torch.zeros_like(a))


_COMPARE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Comparison], Compared]] = {
    Loss.SSD: _squares,
    Loss.HUBER: _huber,
    Loss.NCC: _correlation,
}
