"""Projective maps and their adjoint: section 4.

The unit changes are composed with theta in float64 and rounded once; the division runs per point.
"""

from functools import partial

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
from stn_engine.coords import pixel_homography
from stn_engine.problem import GridProblem, WarpProblem


def points(problem: WarpProblem) -> Tensor:
    """Returns source points in pixels, (N, 2, P); NaN where they are not finite."""
    points, _ = _quotient(_homogeneous_pixels(problem))
    return points.flatten(2)


def points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Returns the gradient of theta from that of ``points``, summed in float64."""
    grad = grad_points.view(-1, 2, *problem.output_shape[2:])
    grad_homogeneous = _quotient_adjoint(_homogeneous_pixels(problem), grad)
    return _matrix_adjoint(
        problem, linear_adjoint(grad_homogeneous, pixel_lattice(problem, torch.float64))
    )


def points_curvature(problem: WarpProblem, curvature: Tensor) -> Tensor:
    """Returns the congruence of ``points`` of matrices (N, 2, 2, P), (N, 9, 9)."""
    homogeneous = _homogeneous_pixels(problem)
    curvature = curvature.view(*curvature.shape[:3], *problem.output_shape[2:])
    unit = torch.eye(2, dtype=torch.float64, device=homogeneous.device)[:, None, :, None, None]
    jacobian = [_quotient_adjoint(homogeneous, one) for one in unit]  # of x, of y: (N, 3, Ho, Wo)
    terms = [
        jacobian[a][:, :, None] * jacobian[b][:, None] * curvature[:, a, b, None, None]
        for a in range(2)
        for b in range(2)
    ]
    lattice, adjoint = pixel_lattice(problem, torch.float64), partial(_matrix_adjoint, problem)
    return linear_curvature(tree_sum(torch.stack(terms), 0), lattice, adjoint)


def _matrix_adjoint(problem: WarpProblem, grad_matrix: Tensor) -> Tensor:
    """Returns the gradient of theta from that of the matrix that takes pixels to pixels."""
    change = _pixel_homography(problem)
    grad_theta = tree_sum(grad_matrix.flatten(1)[:, :, None] * change, 1)
    return grad_theta.view(-1, 3, 3).to(problem.transform.parameters.dtype)


def grid(problem: GridProblem) -> Tensor:
    """Returns the map on the target lattice, (N, 2, Ho, Wo); NaN where it is not finite."""
    points, _ = _quotient(_homogeneous_points(problem))
    return points


def grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Returns the gradient of theta from that of ``grid``, summed in float64."""
    grad = _quotient_adjoint(_homogeneous_points(problem), grad_grid)
    return linear_adjoint(grad, lattice(problem, torch.float64)).to(problem.output_dtype)


def _quotient(homogeneous: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (X/W, Y/W) of (N, 3, Ho, Wo), and the W that can be divided by, 1 elsewhere.

    Points that are not finite are cut off before the division, so that no infinite slope meets
    a gradient of zero.
    """
    numerator, W = homogeneous[:, :2], homogeneous[:, 2:]
    finite = (numerator / W).detach().isfinite().all(1, keepdim=True)
    divisor = torch.where(finite, W, 1)
    return torch.where(finite, numerator / divisor, torch.nan), divisor


def _quotient_adjoint(homogeneous: Tensor, grad: Tensor) -> Tensor:
    """Returns the gradient of (X, Y, W): gx/W, gy/W, -(gx·x + gy·y)/W; 0 if not finite."""
    points, divisor = _quotient(homogeneous)
    finite = points.isfinite()
    slope = torch.where(finite, grad, 0).double() / divisor.double()
    x_and_y = torch.where(finite, points, 0).double()
    by_x, by_y = (slope * x_and_y).unbind(1)
    return torch.cat((slope, -(by_x + by_y)[:, None]), 1)


def _homogeneous_pixels(problem: WarpProblem) -> Tensor:
    """Returns (X, Y, W) in pixel units for every target pixel, (N, 3, Ho, Wo), in compute dtype."""
    theta = problem.transform.parameters.double().flatten(1)
    # A sum over all nine entries: one that is not finite spoils the whole matrix.
    matrix = tree_sum(theta[:, None] * _pixel_homography(problem), 2).view(-1, 3, 3)
    dtype = compute_dtype(problem)
    return linear(matrix.to(dtype), pixel_lattice(problem, dtype))


def _homogeneous_points(problem: GridProblem) -> Tensor:
    """Returns (X, Y, W) for every point of the target lattice, (N, 3, Ho, Wo), in theta's dtype."""
    theta = problem.transform.parameters
    usable = theta.isfinite().all(2, keepdim=True).all(1, keepdim=True)
    return linear(torch.where(usable, theta, torch.nan), lattice(problem, theta.dtype))


def _pixel_homography(problem: WarpProblem) -> Tensor:
    """Returns ``coords.pixel_homography`` as a tensor, (9, 9), float64."""
    spec, source_size = problem.spec, tuple(problem.feature_map.shape[2:])
    change = pixel_homography(
        problem.output_shape[2:], source_size, spec.coordinates, spec.align_corners
    )
    return constant(change, torch.float64, problem.feature_map.device)
