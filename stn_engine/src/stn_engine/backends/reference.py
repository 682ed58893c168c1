"""The ``reference`` backend: the oracle behind the backend protocol, one problem at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stn_engine import reference
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.transforms import SamplingGrid, Transform


class ReferenceBackend:
    """Float64 on the host for every dtype, rounded once at the end; slow and plain."""

    name = "reference"

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """The device, if it is not the host."""
        device = _parameters(problem).device
        if device.type == "cpu":
            return ()
        return (f"computes in host memory, the operands are on {device}",)

    def warp(self, problems: Sequence[WarpProblem]) -> list[Tensor]:
        """V of each problem, (N, C, Ho, Wo)."""
        return [_warp(problem) for problem in problems]

    def warp_gradients(self, problems: Sequence[WarpGradientsProblem]) -> list[Gradients]:
        """The gradients that each problem needs."""
        return [_warp_gradients(problem) for problem in problems]

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """The sampling grid of each problem, (N, Ho, Wo, 2)."""
        return [_generate_grid(problem) for problem in problems]

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """The gradient of theta of each problem, (N, 2, 3)."""
        return [_generate_grid_gradients(problem) for problem in problems]


def _parameters(problem: Problem) -> Tensor:
    match problem:
        case WarpProblem() | GridProblem():
            return problem.transform.parameters
        case WarpGradientsProblem():
            return problem.warp.transform.parameters
        case GridGradientsProblem():
            return problem.grid.transform.parameters


def _warp(problem: WarpProblem) -> Tensor:
    U = _array(problem.feature_map)
    return _tensor(reference.sampler(U, _grid(problem), _options(problem)), problem.output_dtype)


def _warp_gradients(problem: WarpGradientsProblem) -> Gradients:
    warp = problem.warp
    U, grid, G = _array(warp.feature_map), _grid(warp), _array(problem.grad_output)
    grad_U, grad_grid = reference.sampler_adjoint(G, U, grid, _options(warp))
    of_map = _tensor(grad_U, warp.output_dtype) if "feature_map" in problem.needs else None
    if "transform" not in problem.needs:
        return Gradients(of_map, None)
    spec, dtype = warp.spec, warp.transform.parameters.dtype
    if not isinstance(warp.transform, SamplingGrid):
        grad_grid = reference.affine_generator_adjoint(
            grad_grid, spec.coordinates, align_corners=spec.align_corners
        )
    return Gradients(of_map, _tensor(grad_grid, dtype))


def _generate_grid(problem: GridProblem) -> Tensor:
    grid = _affine_grid(
        problem.transform,
        problem.output_shape[1:3],
        problem.coordinates,
        align_corners=problem.align_corners,
    )
    return _tensor(grid, problem.output_dtype)


def _generate_grid_gradients(problem: GridGradientsProblem) -> Tensor:
    grid = problem.grid
    grad_theta = reference.affine_generator_adjoint(
        _array(problem.grad_grid), grid.coordinates, align_corners=grid.align_corners
    )
    return _tensor(grad_theta, grid.output_dtype)


def _grid(problem: WarpProblem) -> reference.Array:
    if isinstance(problem.transform, SamplingGrid):
        return _array(problem.transform.grid)
    spec = problem.spec
    return _affine_grid(
        problem.transform,
        problem.output_shape[2:],
        spec.coordinates,
        align_corners=spec.align_corners,
    )


def _affine_grid(
    transform: Transform, size: tuple[int, int], coordinates: str, *, align_corners: bool
) -> reference.Array:
    theta = _array(transform.parameters)
    return reference.affine_generator(theta, size, coordinates, align_corners=align_corners)


def _options(problem: WarpProblem) -> reference.Sampling:
    spec = problem.spec
    return reference.Sampling(
        interpolation=spec.interpolation,
        padding=spec.padding,
        fill=spec.fill,
        coordinates=spec.coordinates,
        align_corners=spec.align_corners,
        subgradient=spec.subgradient,
    )


def _array(tensor: Tensor) -> reference.Array:
    return tensor.detach().double().numpy()


def _tensor(array: reference.Array, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        array = np.clip(np.rint(array), 0, 255)
    return torch.from_numpy(array).to(dtype)
