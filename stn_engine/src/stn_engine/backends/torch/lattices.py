"""Target lattices, matrices applied to them, and the sums over them.

A lattice is one tensor per axis, x first, each shaped to be broadcast with the others: x is (Wo,),
y is (Ho, 1), and z is (Do, 1, 1) in 3-D.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from stn_engine import checks
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.coords import target_axis
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.spec import Coordinates


def compute_dtype(problem: WarpProblem) -> torch.dtype:
    """Returns the dtype of the problem's coordinates, weights and sums."""
    return checks.compute_dtype(problem.output_dtype)


HOST = torch.device("cpu")
"""Device on which constants are made; not torch's default device, which may be another."""

Lattice = tuple[Tensor, ...]


def crossed(axes: Iterable[Tensor]) -> Lattice:
    """Returns the lattice of points whose coordinates run along ``axes``, x first."""
    return tuple(axis.view(-1, *[1] * place) for place, axis in enumerate(axes))


def lattice(problem: GridProblem, dtype: torch.dtype) -> Lattice:
    """Returns target coordinates, made in float64 and rounded once."""
    device = problem.transform.parameters.device
    return crossed(
        lattice_axis(size, problem.coordinates, align_corners=problem.align_corners).to(
            device, dtype
        )
        for size in reversed(problem.output_size)
    )


def lattice_axis(size: int, coordinates: Coordinates | str, *, align_corners: bool) -> Tensor:
    """Returns target coordinates along one axis, float64, in host memory."""
    axis = target_axis(size, coordinates, align_corners=align_corners)
    return (torch.arange(size, dtype=torch.float64, device=HOST) * axis.p + axis.q) / axis.r


def pixel_lattice(problem: WarpProblem, dtype: torch.dtype) -> Lattice:
    """Returns columns j, rows i, and planes k in 3-D, of the target."""
    device = problem.feature_map.device
    sizes = reversed(problem.output_shape[2:])
    return crossed(torch.arange(size, dtype=dtype, device=device) for size in sizes)


def linear(matrix: Tensor, axes: Lattice) -> Tensor:
    """Returns ``matrix`` (N, R, dims + 1) times (x, y[, z], 1) on a lattice: (N, R, [Do,] Ho, Wo).

    One product per column, row and plane of the lattice: coordinates are never accumulated.
    """
    parts = matrix.view(*matrix.shape, *[1] * len(axes)).unbind(2)
    total = parts[-1]
    for factor, axis in zip(reversed(parts[:-1]), reversed(axes), strict=True):
        total = total + factor * axis
    return total


def linear_adjoint(grad: Tensor, axes: Lattice) -> Tensor:
    """Returns the gradient of the matrix of ``linear``: the sums of x·grad, ... and grad."""
    # Axis by axis, so that terms become few soon: the next axis weighs what this one has summed.
    sums = grad[:, :, None]
    for axis in reversed(axes):
        sums = tree_sum(torch.cat((sums[:, :, -1:] * axis, sums), 2), 3)
    return sums


def linear_curvature(
    curvature: Tensor, axes: Lattice, adjoint: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns the congruence of ``linear``, seen by what its matrix is made of: (N, K, K).

    Args:
        curvature: Symmetric matrices on the lattice, (N, R, R, [Do,] Ho, Wo).
        axes: The lattice.
        adjoint: The gradient of the K parameters from that of the matrix, (N, R, dims + 1).
    """
    n, rows = curvature.shape[:2]
    sums = [
        linear_adjoint((curvature * factor).flatten(1, 2), axes).view(n, rows, rows, -1)
        for factor in (*axes, torch.ones_like(axes[0]))
    ]
    by_matrix = torch.stack(sums, 2).unbind(4)  # (N, R, dims + 1, R) for each column
    half = [
        torch.stack([adjoint(row).flatten(1) for row in column.unbind(3)], 2)
        for column in by_matrix
    ]
    of_rows = torch.stack(half, 3)  # (N, K, R, dims + 1)
    return torch.stack([adjoint(row).flatten(1) for row in of_rows.unbind(1)], 1)
