"""Two oracles: the float64 reference on unrounded operands, and torch.nn.functional."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from torch import Tensor
from torch.nn import functional as torch_functional

from stn_engine import (
    Affine,
    Attention,
    Flow,
    GridProblem,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.backends.reference import ReferenceBackend
from support.strategies import random_warp

REFERENCE = ReferenceBackend()


def in_float64(problem: WarpProblem) -> WarpProblem:
    """The same warp with both operands widened, so that the reference rounds nothing."""
    transform = problem.transform.with_parameters(problem.transform.parameters.double())
    return replace(problem, feature_map=problem.feature_map.double(), transform=transform)


def exact_warp(problem: WarpProblem) -> Tensor:
    """V in float64."""
    return REFERENCE.warp([in_float64(problem)])[0]


def exact_gradients(problem: WarpGradientsProblem) -> tuple[Tensor, Tensor]:
    """Gradients of the feature map and of the transform in float64."""
    wide = WarpGradientsProblem(in_float64(problem.warp), problem.grad_output.double())
    gradients = REFERENCE.warp_gradients([wide])[0]
    return gradients.feature_map, gradients.transform


def exact_points(problem: WarpProblem) -> Tensor:
    """Source points in pixels, float64, (N, [Do,] Ho, Wo, dims)."""
    spec, transform = problem.spec, in_float64(problem).transform
    if not isinstance(transform, SamplingGrid):
        size = problem.output_shape[2:]
        grid_problem = GridProblem(transform, size, spec.coordinates, spec.align_corners)
        transform = SamplingGrid(REFERENCE.generate_grid([grid_problem])[0])
    if spec.coordinates == "pixel":
        return transform.grid
    size = torch.tensor(problem.feature_map.shape[:1:-1]).double()
    if spec.align_corners:
        return (transform.grid + 1) / 2 * (size - 1)
    return ((transform.grid + 1) * size - 1) / 2


def coordinate_extent(problem: WarpProblem) -> float:
    """S of the coordinate tolerance: how far, in pixels, the terms of a coordinate reach.

    A homography divides by W what it rounds before: terms of X up to 3·S·r and of W up to 3·r,
    with r the largest row sum of |theta|, move x = X/W by the roundings of (3·S·r + 3·r·x)/W.
    """
    points = exact_points(problem)
    extent = max(*problem.feature_map.shape[2:], points.abs().max().item() if points.numel() else 0)
    if not isinstance(problem.transform, Homography) or points.numel() == 0:
        return extent
    theta = problem.transform.theta.double()
    _, W = torch_projection(problem)
    return 6 * extent * (theta.abs().sum(2).max() / W.abs().min()).item()


def settled(problem: WarpProblem) -> Tensor:
    """Which points keep 1e-3 px from every integer and half-integer: (N, [Do,] Ho, Wo).

    Elsewhere a coordinate gradient, or a nearest read, may jump by the last bit of a coordinate.
    """
    points = exact_points(problem)
    halves = points * 2
    away = ((halves - halves.round()).abs() > 2e-3).all(-1)
    # The target origin of a rotation stays where it is, to the last bit.
    fixed = (points == 0).all(-1) & isinstance(problem.transform, Rotation)
    return away | fixed


def settled_warp(**options) -> WarpProblem:
    """A random warp of which every point is settled: the first seed that makes one."""
    candidates = (random_warp(seed, **options) for seed in itertools.count())
    return next(problem for problem in candidates if settled(problem).all())


def torch_warp(problem: WarpProblem) -> Tensor:
    """V by torch.nn.functional, differentiable; for normalized coordinates and its paddings.

    For volumes torch has no bicubic.
    """
    spec, n = problem.spec, problem.output_shape[0]
    feature_map, grid = problem.feature_map, torch_grid(problem)
    return torch_functional.grid_sample(
        feature_map.expand(n, *feature_map.shape[1:]),
        grid.expand(n, *grid.shape[1:]),
        spec.interpolation.value,
        spec.padding.value,
        spec.align_corners,
    )


def torch_grid(problem: WarpProblem) -> Tensor:
    """The sampling grid by affine_grid, matrix exponentials, homogeneous coordinates and scipy."""
    parameters = problem.transform.parameters
    match problem.transform:
        case SamplingGrid():
            return parameters
        case Flow():
            return _lattice(problem) + parameters
        case ThinPlateSpline():
            return torch.einsum("ijk,nkc->nijc", scipy_basis(problem), parameters)
        case Homography():
            numerator, W = torch_projection(problem)
            return numerator / W
        case Affine():
            return _affine_grid(problem, parameters)
        case Similarity():
            s, phi, t = parameters.split((1, 1, 2), 1)
        case Attention():
            s, t = parameters.split((1, 2), 1)
            phi = torch.zeros_like(s)
        case Translation():
            s, phi, t = parameters[:, :1] * 0 + 1, parameters[:, :1] * 0, parameters
        case Rotation():
            s, phi, t = parameters * 0 + 1, parameters, parameters.expand(-1, 2) * 0
    generator = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=parameters.dtype)
    turn = torch.linalg.matrix_exp(phi[:, :, None] * generator)
    return _affine_grid(problem, torch.cat((s[:, :, None] * turn, t[:, :, None]), 2))


def scipy_basis(problem: WarpProblem) -> Tensor:
    """The response of scipy's spline to a unit at every control point: (Ho, Wo, K)."""
    spline, (height, width) = problem.transform, problem.output_shape[2:]
    interpolator = RBFInterpolator(
        np.asarray(spline.control_points),
        np.eye(len(spline.control_points)),
        kernel="thin_plate_spline",
        smoothing=spline.regularization,
    )
    basis = interpolator(_lattice(problem)[0].double().reshape(-1, 2).numpy())
    return torch.from_numpy(basis).view(height, width, -1)


def torch_projection(problem: WarpProblem) -> tuple[Tensor, Tensor]:
    """(X, Y) and W of a homography at every target point."""
    lattice = _lattice(problem)
    rays = torch.cat((lattice, torch.ones_like(lattice[..., :1])), 3)
    rays = torch.einsum("nab,nijb->nija", problem.transform.theta.to(rays.dtype), rays)
    return rays[..., :2], rays[..., 2:]


def _lattice(problem: WarpProblem) -> Tensor:
    """Target points, (N, [Do,] Ho, Wo, dims), in the dtype of the parameters."""
    parameters, size = problem.transform.parameters, problem.output_shape[2:]
    if problem.spec.coordinates == "pixel":
        axes = (torch.arange(n, dtype=parameters.dtype) for n in size)
        lattice = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
        return lattice.expand(len(parameters), *lattice.shape)
    dims = len(size)
    identity = torch.eye(dims, dims + 1, dtype=parameters.dtype).expand(len(parameters), -1, -1)
    return _affine_grid(problem, identity)


def _affine_grid(problem: WarpProblem, theta: Tensor) -> Tensor:
    size = (len(theta), 1, *problem.output_shape[2:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Since version 1.3.0, .* unit-size grids")
        return torch_functional.affine_grid(theta, size, problem.spec.align_corners)


def torch_gradients(problem: WarpGradientsProblem) -> tuple[Tensor, Tensor]:
    """Gradients of ``torch_warp`` by torch's own autograd."""
    feature_map = problem.warp.feature_map.detach().clone().requires_grad_()
    parameters = problem.warp.transform.parameters.detach().clone().requires_grad_()
    transform = problem.warp.transform.with_parameters(parameters)
    output = torch_warp(replace(problem.warp, feature_map=feature_map, transform=transform))
    return torch.autograd.grad(output, (feature_map, parameters), problem.grad_output)
