"""Target lattices, matrices applied to them, and the sums over them."""

import torch
from torch import Tensor

from stn_engine import checks
from stn_engine.backends._trees import tree_sum
from stn_engine.coords import target_axis
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.spec import Coordinates


def compute_dtype(problem: WarpProblem) -> torch.dtype:
    """Dtype of the problem's coordinates, weights and sums."""
    return checks.compute_dtype(problem.output_dtype)


def lattice(problem: GridProblem) -> tuple[Tensor, Tensor]:
    """Target coordinates x_t (Wo,) and y_t (Ho,), float64, each rounded once."""
    _, height, width, _ = problem.output_shape
    x_t, y_t = (
        lattice_axis(size, problem.coordinates, align_corners=problem.align_corners)
        for size in (width, height)
    )
    device = problem.transform.parameters.device
    return x_t.to(device), y_t.to(device)


def lattice_axis(size: int, coordinates: Coordinates | str, *, align_corners: bool) -> Tensor:
    """Target coordinates along one axis, float64, in host memory."""
    axis = target_axis(size, coordinates, align_corners=align_corners)
    return (torch.arange(size, dtype=torch.float64) * axis.p + axis.q) / axis.r


def pixel_lattice(problem: WarpProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Columns j (Wo,) and rows i (Ho,) of the target."""
    _, _, height, width = problem.output_shape
    device = problem.feature_map.device
    j = torch.arange(width, dtype=dtype, device=device)
    return j, torch.arange(height, dtype=dtype, device=device)


def linear(matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rows of ``matrix`` (N, R, 3) times (x, y, 1) on a lattice: (N, R, Ho, Wo).

    One product per row and per column of the lattice: coordinates are never accumulated.
    """
    by_x, by_y, by_1 = (part[..., None] for part in matrix.unbind(-1))
    return (by_y * y + by_1)[..., None] + (by_x * x)[:, :, None]


def linear_adjoint(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the matrix of ``linear``, (N, R, 3): the sums of x·grad, y·grad and grad."""
    over_rows = tree_sum(torch.stack((grad, grad * y[:, None]), 2), 3)  # (N, R, 2, Wo)
    plain, by_y = over_rows.unbind(2)
    return tree_sum(torch.stack((plain * x, by_y, plain), 2), 3)
