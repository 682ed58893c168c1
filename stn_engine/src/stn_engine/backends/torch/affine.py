"""Equation (5) and its adjoint, for theta itself and for what theta is made of.

theta is made, and composed with the unit changes, in float64 and rounded once.
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends.torch.lattices import (
    compute_dtype,
    lattice,
    linear,
    linear_adjoint,
    linear_curvature,
    pixel_lattice,
)
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.coords import pixel_affine
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.transforms.affine import ThetaTransform


def points(problem: WarpProblem) -> Tensor:
    """Returns the source points in pixels, (N, dims, P)."""
    scales, offsets, scale, offset = _pixel_affine(problem)
    theta = _expanded(problem).matrix()
    by_axes, by_1 = theta[..., :-1], theta[..., -1]
    m_0 = tree_sum(by_axes * offsets, 2) + (by_1 * scale + offset)
    matrix = torch.cat((by_axes * scales, m_0[..., None]), -1)
    dtype = compute_dtype(problem)
    return linear(matrix.to(dtype), pixel_lattice(problem, dtype)).flatten(2)


def points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Returns the gradient of the parameters from that of ``points``, summed in float64."""
    grad = grad_points.double().view(-1, problem.transform.dims, *problem.output_shape[2:])
    return _matrix_adjoint(problem, linear_adjoint(grad, pixel_lattice(problem, torch.float64)))


def points_curvature(problem: WarpProblem, curvature: Tensor) -> Tensor:
    """Returns the congruence of ``points`` of matrices (N, dims, dims, P), (N, K, K)."""
    curvature = curvature.view(*curvature.shape[:3], *problem.output_shape[2:])
    lattice, adjoint = pixel_lattice(problem, torch.float64), partial(_matrix_adjoint, problem)
    return linear_curvature(curvature, lattice, adjoint)


def _matrix_adjoint(problem: WarpProblem, grad_matrix: Tensor) -> Tensor:
    """Returns the gradient of the parameters from that of the pixel-to-pixel matrix."""
    grad_axes, grad_m_0 = grad_matrix[..., :-1], grad_matrix[..., -1:]
    scales, offsets, scale, _ = _pixel_affine(problem)
    grad_by_axes = grad_axes * scales + grad_m_0 * offsets
    grad_theta = torch.cat((grad_by_axes, grad_m_0 * scale[:, None]), -1)
    return _expanded(problem).matrix_adjoint(grad_theta)


def grid(problem: GridProblem) -> Tensor:
    """Evaluates equation (5) on the target lattice, (N, dims, [Do,] Ho, Wo)."""
    dtype = problem.output_dtype
    return linear(_expanded(problem).matrix().to(dtype), lattice(problem, dtype))


def grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Equations (6) and (7), summed in float64, and (8) for what theta is made of."""
    grad_theta = linear_adjoint(grad_grid.double(), lattice(problem, torch.float64))
    return _expanded(problem).matrix_adjoint(grad_theta)


def _expanded(problem: WarpProblem | GridProblem) -> ThetaTransform:
    return cast("ThetaTransform", problem.transform)


def _pixel_affine(problem: WarpProblem) -> list[Tensor]:
    """Returns the fields of ``coords.PixelAffine`` as float64 tensors."""
    spec, source_size = problem.spec, tuple(problem.feature_map.shape[2:])
    change = pixel_affine(
        problem.output_shape[2:], source_size, spec.coordinates, spec.align_corners
    )
    fields = change.scales, change.offsets, change.scale, change.offset
    return [constant(field, torch.float64, problem.feature_map.device) for field in fields]
