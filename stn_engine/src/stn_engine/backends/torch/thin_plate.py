"""Thin-plate splines: a fixed basis on the target lattice, linear in the parameters; section 4."""

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends._watchers import is_watched
from stn_engine.backends.torch.lattices import HOST, compute_dtype, lattice_axis
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.call import Call
from stn_engine.coords import source_axis
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.spec import Coordinates
from stn_engine.transforms import ThinPlateSpline, Transform

Pairs = tuple[tuple[float, float], ...]


def points(problem: WarpProblem) -> Tensor:
    """Source points in pixels, (N, 2, P), rounded once."""
    slope, offset = _unit_change(problem)
    x = _combined(problem.transform, warp_basis(problem))
    return (x * slope + offset).to(compute_dtype(problem))


def points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Gradient of the control points' source points from that of ``points``."""
    slope, _ = _unit_change(problem)
    grad = grad_points.double() * slope
    return _combined_adjoint(problem.transform, warp_basis(problem), grad)


def grid(problem: GridProblem) -> Tensor:
    """The spline on the target lattice, (N, 2, Ho, Wo), rounded once."""
    x = _combined(problem.transform, _grid_basis(problem)).to(problem.output_dtype)
    return x.view(len(x), 2, *problem.output_size)


def grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Gradient of the control points' source points from that of ``grid``."""
    grad = grad_grid.double().flatten(2)
    return _combined_adjoint(problem.transform, _grid_basis(problem), grad)


def _combined(transform: Transform, basis: Tensor) -> Tensor:
    """B·Y by a fixed tree over the control points: (N, 2, P), float64."""
    source = transform.parameters.double().transpose(1, 2)
    return tree_sum(source[..., None] * basis, 2)


def _combined_adjoint(transform: Transform, basis: Tensor, grad: Tensor) -> Tensor:
    """The transpose of B times a gradient by a fixed tree over the target points: (N, K, 2)."""
    of_source = tree_sum(grad[:, :, None] * basis, 3)
    return of_source.transpose(1, 2).to(transform.parameters.dtype)


def warp_basis(problem: WarpProblem) -> Tensor:
    """B transposed, (K, P), float64: the spline is B times its points."""
    spec, size = problem.spec, problem.output_shape[2:]
    unit = spec.coordinates, spec.align_corners
    return _shared_basis(*_settings(problem.transform), size, *unit, problem.feature_map.device)


def warp_basis_of(call: Call) -> Tensor:
    """``warp_basis`` of a call of a warp, or of its gradients."""
    spec, size = call.spec, call.output_shape[2:]
    settings = cast("tuple[Pairs, float]", call.settings)
    return _shared_basis(*settings, size, spec.coordinates, spec.align_corners, call.device)


def _grid_basis(problem: GridProblem) -> Tensor:
    transform, size = problem.transform, problem.output_shape[1:-1]
    unit = problem.coordinates, problem.align_corners
    return _shared_basis(*_settings(transform), size, *unit, transform.parameters.device)


def _settings(transform: Transform) -> tuple[Pairs, float]:
    spline = cast("ThinPlateSpline", transform)
    return cast("Pairs", spline.control_points), spline.regularization


def _shared_basis(*description: Any) -> Tensor:
    """The last 32 of ``_basis``, never to be written to."""
    return _basis(*description) if is_watched() else _kept_basis(*description)


def _basis(
    control_points: Pairs,
    regularization: float,
    size: tuple[int, ...],
    coordinates: Coordinates | str,
    align_corners: bool,  # noqa: FBT001 - lru_cache keys positional arguments fastest
    device: torch.device,
) -> Tensor:
    """B transposed, (K, P): by how much each control point's source point moves every point.

    It takes 8·K·P bytes.
    """
    # A tensor born in inference mode could not be saved for a backward pass later on.
    with torch.inference_mode(mode=False), torch.no_grad():
        control = torch.tensor(control_points, dtype=torch.float64, device=HOST)
        count = len(control)
        system = torch.zeros(count + 3, count + 3, dtype=torch.float64, device=HOST)
        system[:count] = _terms(control, control)
        system[:count, :count].diagonal().add_(regularization)
        system[count:, :count] = system[:count, count:].T
        y, x = (lattice_axis(n, coordinates, align_corners=align_corners) for n in size)
        target = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
        # The system is symmetric: B transposed is its inverse times the transposed terms.
        inverse_terms: Tensor = torch.linalg.solve(system, _terms(target, control).T)
        return inverse_terms[:count].contiguous().to(device)


_kept_basis = lru_cache(maxsize=32)(_basis)


def _terms(at: Tensor, control: Tensor) -> Tensor:
    """U(|p - c_k|) for every k, then 1, x and y, for points (P, 2): (P, K + 3)."""
    squared = (at[:, None] - control).square().sum(2)
    # U(r) = r²·log r = r²·log(r²)/2; 0 at 0.
    radial = torch.xlogy(squared, squared) / 2
    return torch.cat((radial, torch.ones_like(at[:, :1]), at), 1)


def _unit_change(problem: WarpProblem) -> tuple[Tensor, Tensor]:
    """Slope and offset from source points to pixels, (2, 1) each."""
    spec, (height, width) = problem.spec, problem.feature_map.shape[2:]
    axes = [
        source_axis(size, spec.coordinates, align_corners=spec.align_corners)
        for size in (width, height)
    ]
    device = problem.feature_map.device
    slope = constant(tuple((axis.u / axis.w,) for axis in axes), torch.float64, device)
    return slope, constant(tuple((axis.v / axis.w,) for axis in axes), torch.float64, device)
