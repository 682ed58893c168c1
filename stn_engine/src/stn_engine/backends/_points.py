"""Source points in pixels for each transform, and the way back: sections 2 and 3 in torch.

Points are (N, 2, P): x in row 0, y in row 1, P = Ho·Wo target pixels in row-major order.
"""

import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends._trees import tree_sum
from stn_engine.checks import compute_dtype
from stn_engine.coords import pixel_affine, source_axis, target_axis
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.spec import Coordinates
from stn_engine.transforms import SamplingGrid


def source_points(problem: WarpProblem) -> Tensor:
    """Where the feature map is read, (N of the transform, 2, P), in pixels and compute dtype."""
    if isinstance(problem.transform, SamplingGrid):
        return _grid_points(problem)
    return _affine_points(problem)


def source_points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Gradient of the transform's parameters from that of ``source_points``."""
    if isinstance(problem.transform, SamplingGrid):
        return _grid_points_adjoint(problem, grad_points)
    return _affine_points_adjoint(problem, grad_points)


def lattice(problem: GridProblem) -> tuple[Tensor, Tensor]:
    """Target coordinates x_t (Wo,) and y_t (Ho,), float64, each rounded once."""
    _, height, width, _ = problem.output_shape
    return _lattice_axis(problem, width), _lattice_axis(problem, height)


def affine_grid(problem: GridProblem) -> Tensor:
    """Equation (5) on the target lattice, (N, Ho, Wo, 2), in the unit of theta."""
    theta = problem.transform.theta
    x_t, y_t = (axis.to(theta.dtype)[:, None] for axis in lattice(problem))
    by_column = x_t * theta[:, None, :, 0]  # (N, Wo, 2)
    by_row = y_t * theta[:, None, :, 1] + theta[:, None, :, 2]  # (N, Ho, 2)
    return by_row[:, :, None] + by_column[:, None]


def affine_grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Equations (6) and (7): gradient of theta, (N, 2, 3), summed in float64."""
    x_t, y_t = lattice(problem)
    moments = _moments(grad_grid.movedim(3, 1).double(), x_t, y_t)
    return torch.stack(moments, -1).to(problem.output_dtype)


def _affine_points(problem: WarpProblem) -> Tensor:
    _, _, height, width = problem.output_shape
    theta = problem.transform.parameters.double()
    scale_j, scale_i, offset_j, offset_i, scale, offset = _pixel_affine(problem)
    by_x, by_y, by_1 = theta.unbind(-1)
    m_j = by_x * scale_j
    m_i = by_y * scale_i
    m_0 = (by_x * offset_j + by_y * offset_i) + (by_1 * scale + offset)
    dtype = compute_dtype(problem.output_dtype)
    m_j, m_i, m_0 = (part.to(dtype)[..., None] for part in (m_j, m_i, m_0))
    # One product per row and per column: coordinates are never accumulated.
    by_row = m_i * torch.arange(height, dtype=dtype, device=theta.device) + m_0
    by_column = m_j * torch.arange(width, dtype=dtype, device=theta.device)
    return (by_row[..., None] + by_column[:, :, None]).flatten(2)


def _affine_points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    _, _, height, width = problem.output_shape
    grad = grad_points.double().view(-1, 2, height, width)
    j = torch.arange(width, dtype=torch.float64, device=grad.device)
    i = torch.arange(height, dtype=torch.float64, device=grad.device)
    grad_m_j, grad_m_i, grad_m_0 = _moments(grad, j, i)
    scale_j, scale_i, offset_j, offset_i, scale, _ = _pixel_affine(problem)
    grad_by_x = grad_m_j * scale_j + grad_m_0 * offset_j
    grad_by_y = grad_m_i * scale_i + grad_m_0 * offset_i
    grad_theta = torch.stack((grad_by_x, grad_by_y, grad_m_0 * scale), -1)
    return grad_theta.to(problem.transform.parameters.dtype)


def _pixel_affine(problem: WarpProblem) -> list[Tensor]:
    """The fields of ``coords.PixelAffine`` as float64 tensors, each (2,)."""
    spec, shape = problem.spec, problem.feature_map.shape
    change = pixel_affine(
        problem.output_shape[2:], (shape[2], shape[3]), spec.coordinates, spec.align_corners
    )
    device = problem.feature_map.device
    return [constant(pair, torch.float64, device) for pair in change.pairs]


def _lattice_axis(problem: GridProblem, size: int) -> Tensor:
    axis = target_axis(size, problem.coordinates, align_corners=problem.align_corners)
    device = problem.transform.theta.device
    return (torch.arange(size, dtype=torch.float64, device=device) * axis.p + axis.q) / axis.r


def _grid_points(problem: WarpProblem) -> Tensor:
    dtype = compute_dtype(problem.output_dtype)
    grid = problem.transform.parameters
    points = grid.to(torch.promote_types(grid.dtype, dtype)).movedim(3, 1).flatten(2)
    spec = problem.spec
    if spec.coordinates == Coordinates.PIXEL:
        return points.to(dtype)
    height, width = problem.feature_map.shape[2:]
    size = constant(((width,), (height,)), points.dtype, points.device)
    # PyTorch's own order of operations, so that ties of nearest fall on the same side.
    if spec.align_corners:
        return ((points + 1) / 2 * (size - 1)).to(dtype)
    return (((points + 1) * size - 1) / 2).to(dtype)


def _grid_points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    grid = problem.transform.parameters
    spec = problem.spec
    axes = (
        source_axis(size, spec.coordinates, align_corners=spec.align_corners)
        for size in (problem.feature_map.shape[3], problem.feature_map.shape[2])
    )
    slopes = tuple((axis.u / axis.w,) for axis in axes)
    slope = constant(slopes, grad_points.dtype, grad_points.device)
    by_axis = (grad_points * slope).view(-1, 2, *grid.shape[1:3])
    return by_axis.movedim(1, 3).to(grid.dtype)


def _moments(grad: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the lattice of x·grad, y·grad and grad; grad is (N, 2, Ho, Wo), float64."""
    over_rows = tree_sum(torch.stack((grad, grad * y[:, None]), 2), 3)  # (N, 2, 2, Wo)
    plain, by_y = over_rows.unbind(2)
    sums = tree_sum(torch.stack((plain * x, by_y, plain), 2), 3)  # (N, 2, 3)
    by_x_sum, by_y_sum, plain_sum = sums.unbind(2)
    return by_x_sum, by_y_sum, plain_sum
