"""Transforms with parameters for every target pixel: sampling grids and flows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends.torch.lattices import Lattice, compute_dtype, crossed, lattice
from stn_engine.coords import SourceAxis, source_axis, target_axis
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.spec import Coordinates


def grid_points(problem: WarpProblem) -> Tensor:
    """Returns points of a sampling grid in pixels, (N, dims, P)."""
    dtype = compute_dtype(problem)
    grid = problem.transform.parameters
    points = grid.to(torch.promote_types(grid.dtype, dtype)).movedim(-1, 1).flatten(2)
    spec = problem.spec
    if spec.coordinates == Coordinates.PIXEL:
        return points.to(dtype)
    sizes = tuple((size,) for size in reversed(problem.feature_map.shape[2:]))
    size = constant(sizes, points.dtype, points.device)
    # PyTorch's own order of operations, so that ties of nearest fall on the same side.
    if spec.align_corners:
        return ((points + 1) / 2 * (size - 1)).to(dtype)
    return (((points + 1) * size - 1) / 2).to(dtype)


def flow_points(problem: WarpProblem) -> Tensor:
    """Returns target points plus displacements in pixels, (N, dims, P), rounded once."""
    displacement = problem.transform.parameters.double().movedim(-1, 1).flatten(2)
    identity = crossed(_identity_pixels(problem, axis) for axis in _axes(problem))
    targets = _stacked(identity, problem.output_shape[2:]).flatten(1)
    points = targets + displacement * _slopes(problem, torch.float64)
    return points.to(compute_dtype(problem))


def points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Returns the gradient of the parameters from that of the points, by the slope of the unit."""
    parameters = problem.transform.parameters
    by_axis = grad_points * _slopes(problem, grad_points.dtype)
    by_axis = by_axis.view(-1, problem.transform.dims, *parameters.shape[1:-1])
    return by_axis.movedim(1, -1).to(parameters.dtype)


def flow_grid(problem: GridProblem) -> Tensor:
    """Returns target points plus displacements, (N, dims, [Do,] Ho, Wo), rounded once."""
    displacement = problem.transform.parameters.double().movedim(-1, 1)
    targets = _stacked(lattice(problem, torch.float64), problem.output_size)
    return (targets + displacement).to(problem.output_dtype)


def flow_grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Returns the gradient, which passes through, as a tensor of its own."""
    return grad_grid.movedim(1, -1).to(problem.output_dtype, copy=True)


def _stacked(lattice: Lattice, size: Sequence[int]) -> Tensor:
    """Returns all points of a lattice of some size, (dims, [Do,] Ho, Wo)."""
    return torch.stack([axis.expand(*size) for axis in lattice])


def _axes(problem: WarpProblem) -> range:
    """Returns the axes of U and V along which x, y and z run."""
    return range(-1, -1 - problem.transform.dims, -1)


def _identity_pixels(problem: WarpProblem, axis: int) -> Tensor:
    """Returns source pixels of the target lattice along one axis of V, one division each."""
    spec, size = problem.spec, problem.output_shape[axis]
    target = target_axis(size, spec.coordinates, align_corners=spec.align_corners)
    source = _source_axis(problem, axis)
    j = torch.arange(size, dtype=torch.float64, device=problem.feature_map.device)
    # x_t = (p·j + q)/r in x_px = (u·x_t + v)/w
    slope, offset = source.u * target.p, source.u * target.q + source.v * target.r
    return (j * slope + offset) / (source.w * target.r)


def _slopes(problem: WarpProblem, dtype: torch.dtype) -> Tensor:
    """Returns d(source pixel) / d(source point), (dims, 1)."""
    axes = (_source_axis(problem, axis) for axis in _axes(problem))
    slopes = tuple((axis.u / axis.w,) for axis in axes)
    return constant(slopes, dtype, problem.feature_map.device)


def _source_axis(problem: WarpProblem, axis: int) -> SourceAxis:
    spec, size = problem.spec, problem.feature_map.shape[axis]
    return source_axis(size, spec.coordinates, align_corners=spec.align_corners)
