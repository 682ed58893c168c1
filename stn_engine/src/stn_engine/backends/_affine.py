"""Equation (5) and its adjoint, for theta itself and for what theta is made of.

theta is made, and composed with the unit changes, in float64 and rounded once.
"""

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends._lattices import (
    compute_dtype,
    lattice,
    linear,
    linear_adjoint,
    pixel_lattice,
)
from stn_engine.backends._trees import tree_sum
from stn_engine.coords import pixel_affine
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.transforms import Affine, Attention, Rotation, Similarity, Transform, Translation

IDENTITY = (1.0, 0.0, 0.0, 0.0)
"""s, φ, t_x and t_y of a similarity that changes nothing."""

GIVEN: dict[type[Transform], tuple[int, ...]] = {
    Attention: (0, 2, 3),
    Similarity: (0, 1, 2, 3),
    Translation: (2, 3),
    Rotation: (1,),
}
"""Which of s, φ, t_x and t_y are parameters; the others are those of the identity."""


def points(problem: WarpProblem) -> Tensor:
    """Source points in pixels, (N, dims, P)."""
    scales, offsets, scale, offset = _pixel_affine(problem)
    theta = _theta(problem.transform)
    by_axes, by_1 = theta[..., :-1], theta[..., -1]
    m_0 = tree_sum(by_axes * offsets, 2) + (by_1 * scale + offset)
    matrix = torch.cat((by_axes * scales, m_0[..., None]), -1)
    dtype = compute_dtype(problem)
    return linear(matrix.to(dtype), pixel_lattice(problem, dtype)).flatten(2)


def points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Gradient of the parameters from that of ``points``, summed in float64."""
    grad = grad_points.double().view(-1, problem.transform.dims, *problem.output_shape[2:])
    grad_matrix = linear_adjoint(grad, pixel_lattice(problem, torch.float64))
    grad_axes, grad_m_0 = grad_matrix[..., :-1], grad_matrix[..., -1:]
    scales, offsets, scale, _ = _pixel_affine(problem)
    grad_by_axes = grad_axes * scales + grad_m_0 * offsets
    grad_theta = torch.cat((grad_by_axes, grad_m_0 * scale[:, None]), -1)
    return _theta_adjoint(problem.transform, grad_theta)


def grid(problem: GridProblem) -> Tensor:
    """Equation (5) on the target lattice, (N, dims, [Do,] Ho, Wo)."""
    dtype = problem.output_dtype
    return linear(_theta(problem.transform).to(dtype), lattice(problem, dtype))


def grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Equations (6) and (7), summed in float64, and (8) for what theta is made of."""
    grad_theta = linear_adjoint(grad_grid.double(), lattice(problem, torch.float64))
    return _theta_adjoint(problem.transform, grad_theta)


def _theta(transform: Transform) -> Tensor:
    """theta, (N, dims, dims + 1), float64."""
    if isinstance(transform, Affine):
        return transform.theta.double()
    s, phi, t_x, t_y = _similarity(transform)
    a, b = s * phi.cos(), s * phi.sin()
    return torch.stack((a, -b, t_x, b, a, t_y), -1).view(-1, 2, 3)


def _theta_adjoint(transform: Transform, grad_theta: Tensor) -> Tensor:
    """Gradient of the parameters from that of ``_theta``."""
    dtype = transform.parameters.dtype
    if isinstance(transform, Affine):
        return grad_theta.to(dtype)
    s, phi, _, _ = _similarity(transform)
    (by_1, by_2, by_5), (by_3, by_4, by_6) = (row.unbind(-1) for row in grad_theta.unbind(1))
    by_a, by_b = by_1 + by_4, by_3 - by_2
    by_s = by_a * phi.cos() + by_b * phi.sin()
    by_phi = s * (by_b * phi.cos() - by_a * phi.sin())
    gradients = (by_s, by_phi, by_5, by_6)
    return torch.stack([gradients[k] for k in GIVEN[type(transform)]], -1).to(dtype)


def _similarity(transform: Transform) -> list[Tensor]:
    """s, φ, t_x and t_y, each (N,), float64."""
    given = dict(zip(GIVEN[type(transform)], transform.parameters.double().unbind(-1), strict=True))
    n, device = transform.parameters.shape[0], transform.parameters.device
    identity = constant(IDENTITY, torch.float64, device).expand(n, 4).unbind(-1)
    return [given.get(k, identity[k]) for k in range(4)]


def _pixel_affine(problem: WarpProblem) -> list[Tensor]:
    """The fields of ``coords.PixelAffine`` as float64 tensors."""
    spec, source_size = problem.spec, tuple(problem.feature_map.shape[2:])
    change = pixel_affine(
        problem.output_shape[2:], source_size, spec.coordinates, spec.align_corners
    )
    fields = change.scales, change.offsets, change.scale, change.offset
    return [constant(field, torch.float64, problem.feature_map.device) for field in fields]
