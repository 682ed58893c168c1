"""The ``reference`` backend: the oracle behind the backend protocol, one problem at a time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stn_engine import checks, reference
from stn_engine.backends._results import delivered
from stn_engine.backends.base import reasons_against_device
from stn_engine.call import Call
from stn_engine.plan import Reasons
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Objective,
    ObjectiveProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.spec import Domain
from stn_engine.transforms import Flow, Homography, SamplingGrid, ThinPlateSpline, Transform


class ReferenceBackend:
    """Float64 on the host for every dtype, rounded once at the end; slow and plain."""

    reads_bytes = False
    name = "reference"

    def plan(self, call: Call) -> Reasons:  # noqa: ARG002 - protocol
        """Returns the reason why nothing runs on addresses."""
        return ("computes on arrays of its own, has no kernels",)

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """Returns the device as the reason, if it is not the host."""
        return reasons_against_device(problem)

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Returns V of each problem, (N, C, [Do,] Ho, Wo)."""
        return delivered([_warp(problem) for problem in problems], out)

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """Returns the gradients that each problem needs."""
        return delivered([_warp_gradients(problem) for problem in problems], out)

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """Returns the sampling grid of each problem, (N, [Do,] Ho, Wo, dims)."""
        return [_generate_grid(problem) for problem in problems]

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """Returns the gradient of the parameters of each problem, shaped like them."""
        return [_generate_grid_gradients(problem) for problem in problems]

    def objective(self, problems: Sequence[ObjectiveProblem]) -> list[Objective]:
        """Returns value, count and what else each problem needs."""
        return [_objective(problem) for problem in problems]


def _warp(problem: WarpProblem) -> Tensor:
    U = _map(problem.feature_map)
    return _tensor(reference.sampler(U, _grid(problem), _options(problem)), problem.output_dtype)


def _warp_gradients(problem: WarpGradientsProblem) -> Gradients:
    warp = problem.warp
    U, grid, G = _array(warp.feature_map), _grid(warp), _array(problem.grad_output)
    grad_U, grad_grid = reference.sampler_adjoint(G, U, grid, _options(warp))
    grad_feature_map = (
        _tensor(grad_U, warp.output_dtype) if "feature_map" in problem.needs else None
    )
    if "transform" not in problem.needs:
        return Gradients(grad_feature_map, None)
    spec, transform = warp.spec, warp.transform
    gradient = _generator_adjoint(
        transform, grad_grid, spec.coordinates, align_corners=spec.align_corners
    )
    return Gradients(grad_feature_map, _tensor(gradient, transform.parameters.dtype))


def _objective(problem: ObjectiveProblem) -> Objective:
    n, parameters = problem.batch_size, problem.warp.transform.parameters
    count = math.prod(parameters.shape[1:])
    value, points, gradient = np.zeros(n), np.zeros(n), np.zeros((n, *parameters.shape[1:]))
    matrix = np.zeros((n, count, count) if "gauss_newton" in problem.needs else n)
    for item in range(n):
        value[item], points[item], gradient[item], matrix[item] = _objective_of_item(problem, item)
    return Objective(
        torch.from_numpy(value),
        torch.from_numpy(points),
        _tensor(gradient, parameters.dtype) if "gradient" in problem.needs else None,
        torch.from_numpy(matrix) if "gauss_newton" in problem.needs else None,
    )


def _objective_of_item(
    problem: ObjectiveProblem, n: int
) -> tuple[float, float, reference.Array, reference.Array]:
    """Returns value, count, gradient and Gauss-Newton matrix of one item."""
    warp, comparison = problem.warp, problem.comparison
    options, spec = _options(warp), warp.spec
    transform = warp.transform.with_parameters(_item(warp.transform.parameters, n))
    # One item at a time, so that sums of items cannot mix, and broadcasting is plain indexing.
    U, F = _array(_item(warp.feature_map, n)), _array(_item(problem.fixed, n))
    size = problem.output_shape[2:]
    unit, corners = spec.coordinates, spec.align_corners
    grid = _generator(transform, size, unit, align_corners=corners)
    w = np.ones(size) if problem.weights is None else _array(_item(problem.weights, n))[0, 0]
    if comparison.domain == Domain.OVERLAP:
        # The overlap is constant in the parameters: it has no gradient of its own.
        w = np.where(reference.overlap(grid[0], U.shape[2:], options), w, 0.0)
    V = reference.sampler(U, grid, options)[0]
    how = reference.Comparing(loss=comparison.loss, delta=comparison.delta)
    found = reference.compare(V, F[0], w, how)
    _, grad_grid = reference.sampler_adjoint(found.G[None], U, grid, options)
    # What is not counted has no gradient, even where the slope of the map is NaN.
    grad_grid = np.where(w[..., None] == 0, 0.0, grad_grid)
    gradient = _generator_adjoint(transform, grad_grid, unit, align_corners=corners)[0]
    if "gauss_newton" not in problem.needs:
        return found.value, found.count, gradient, np.zeros(())
    matrix = np.zeros((gradient.size, gradient.size))
    slopes = reference.slopes(U, grid, options)
    # J^T·W·J sample by sample: slow, but with no algebra that kernels might share.
    for c, *pixel in np.argwhere(found.curvature != 0):
        alone = np.zeros_like(grid)
        alone[0, *pixel] = slopes[c, *pixel]
        J = _generator_adjoint(transform, alone, unit, align_corners=corners).ravel()
        matrix += found.curvature[c, *pixel] * np.outer(J, J)
    return found.value, found.count, gradient, matrix


def _item(tensor: Tensor, n: int) -> Tensor:
    """Returns item n of an operand that may be broadcast, as a batch of one."""
    return tensor[[n if len(tensor) > 1 else 0]]


def _generate_grid(problem: GridProblem) -> Tensor:
    size, align_corners = problem.output_shape[1:-1], problem.align_corners
    grid = _generator(problem.transform, size, problem.coordinates, align_corners=align_corners)
    return _tensor(grid, problem.output_dtype)


def _generate_grid_gradients(problem: GridGradientsProblem) -> Tensor:
    grid, grad_grid = problem.grid, _array(problem.grad_grid)
    gradient = _generator_adjoint(
        grid.transform, grad_grid, grid.coordinates, align_corners=grid.align_corners
    )
    return _tensor(gradient, grid.output_dtype)


def _grid(problem: WarpProblem) -> reference.Array:
    spec, size = problem.spec, problem.output_shape[2:]
    return _generator(problem.transform, size, spec.coordinates, align_corners=spec.align_corners)


def _generator(
    transform: Transform, size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> reference.Array:
    """Returns the sampling grid of any transform."""
    parameters = _array(transform.parameters)
    match transform:
        case SamplingGrid():
            return parameters
        case Flow():
            return reference.flow_generator(parameters, coordinates, align_corners=align_corners)
        case ThinPlateSpline():
            return reference.thin_plate_spline_generator(
                parameters,
                transform.control_points,
                transform.regularization,
                size,
                coordinates,
                align_corners=align_corners,
            )
        case Homography():
            generate = reference.homography_generator
        case _:
            generate = reference.affine_generator
            parameters = transform.oracle(parameters)
    return generate(parameters, size, coordinates, align_corners=align_corners)


def _generator_adjoint(
    transform: Transform, grad_grid: reference.Array, coordinates: str, *, align_corners: bool
) -> reference.Array:
    """Returns the gradient of the parameters of any transform."""
    parameters = _array(transform.parameters)
    match transform:
        # Both add or are points, so that the gradient passes through.
        case SamplingGrid() | Flow():
            return grad_grid
        case ThinPlateSpline():
            return reference.thin_plate_spline_generator_adjoint(
                grad_grid,
                transform.control_points,
                transform.regularization,
                coordinates,
                align_corners=align_corners,
            )
        case Homography():
            return reference.homography_generator_adjoint(
                grad_grid, parameters, coordinates, align_corners=align_corners
            )
        case _:
            # All other kinds are expanded to a theta, and differentiated through it.
            grad_theta = reference.affine_generator_adjoint(
                grad_grid, coordinates, align_corners=align_corners
            )
            return transform.oracle_adjoint(grad_theta, parameters)


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


def _map(tensor: Tensor) -> reference.Array:
    """Returns a feature map as an array of float64; labels stay as they are."""
    # int64 labels do not fit into float64: they are moved as they are.
    labels: Any = tensor.numpy() if tensor.dtype in checks.LABEL_DTYPES else None
    return _array(tensor) if labels is None else labels


def _array(tensor: Tensor) -> reference.Array:
    return tensor.detach().double().numpy()


def _tensor(array: reference.Array, dtype: torch.dtype) -> Tensor:
    if dtype in checks.LABEL_DTYPES:
        return torch.from_numpy(array)
    if dtype not in checks.GRADIENT_DTYPES:
        limits = torch.iinfo(dtype)
        array = np.clip(np.rint(array), limits.min, limits.max)
    return torch.from_numpy(array).to(dtype)
