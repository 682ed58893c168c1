"""Two oracles: the float64 reference on unrounded operands, and torch.nn.functional."""

import itertools
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from stn_engine import Affine, GridProblem, SamplingGrid, WarpGradientsProblem, WarpProblem
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
    """Source points in pixels, float64, (N, Ho, Wo, 2)."""
    spec, transform = problem.spec, in_float64(problem).transform
    if isinstance(transform, Affine):
        size = problem.output_shape[2:]
        grid_problem = GridProblem(transform, size, spec.coordinates, spec.align_corners)
        transform = SamplingGrid(REFERENCE.generate_grid([grid_problem])[0])
    if spec.coordinates == "pixel":
        return transform.grid
    size = torch.tensor(problem.feature_map.shape[:1:-1]).double()
    if spec.align_corners:
        return (transform.grid + 1) / 2 * (size - 1)
    return ((transform.grid + 1) * size - 1) / 2


def settled(problem: WarpProblem) -> Tensor:
    """Which points keep 1e-3 px from every integer and half-integer: (N, Ho, Wo).

    Elsewhere a coordinate gradient, or a nearest read, may jump by the last bit of a coordinate.
    """
    halves = exact_points(problem) * 2
    return ((halves - halves.round()).abs() > 2e-3).all(-1)


def settled_warp(**options) -> WarpProblem:
    """A random warp of which every point is settled: the first seed that makes one."""
    candidates = (random_warp(seed, **options) for seed in itertools.count())
    return next(problem for problem in candidates if settled(problem).all())


def torch_warp(problem: WarpProblem) -> Tensor:
    """V by torch.nn.functional, differentiable; for normalized coordinates and its paddings."""
    spec, (n, c, *size) = problem.spec, problem.output_shape
    parameters = problem.transform.parameters
    parameters = parameters.expand(n, *parameters.shape[1:])
    grid = parameters
    if isinstance(problem.transform, Affine):
        grid = torch_functional.affine_grid(parameters, (n, c, *size), spec.align_corners)
    return torch_functional.grid_sample(
        problem.feature_map.expand(n, -1, -1, -1),
        grid,
        spec.interpolation.value,
        spec.padding.value,
        spec.align_corners,
    )


def torch_gradients(problem: WarpGradientsProblem) -> tuple[Tensor, Tensor]:
    """Gradients of ``torch_warp`` by torch's own autograd."""
    feature_map = problem.warp.feature_map.detach().clone().requires_grad_()
    parameters = problem.warp.transform.parameters.detach().clone().requires_grad_()
    transform = problem.warp.transform.with_parameters(parameters)
    output = torch_warp(replace(problem.warp, feature_map=feature_map, transform=transform))
    return torch.autograd.grad(output, (feature_map, parameters), problem.grad_output)
