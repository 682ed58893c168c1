"""Source points in pixels, and the way back: one table for all equations that make such points.

Points are (N, dims, P): x in row 0, y in row 1, z in row 2 of volumes; P = Ho·Wo or Do·Ho·Wo target
pixels in row-major order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from stn_engine.backends.torch import affine, homography, pointwise, thin_plate
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.transforms.base import Generator


@dataclass(frozen=True)
class Points:
    """How equations make source points in pixels, and the adjoint."""

    forward: Callable[[WarpProblem], Tensor]
    adjoint: Callable[[WarpProblem, Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """How equations make a grid in its own unit, and the adjoint.

    Grids are (N, dims, [Do,] Ho, Wo) here.
    """

    forward: Callable[[GridProblem], Tensor]
    adjoint: Callable[[GridProblem, Tensor], Tensor]


POINTS = {
    Generator.AFFINE: Points(affine.points, affine.points_adjoint),
    Generator.HOMOGRAPHY: Points(homography.points, homography.points_adjoint),
    Generator.SPLINE: Points(thin_plate.points, thin_plate.points_adjoint),
    Generator.FLOW: Points(pointwise.flow_points, pointwise.points_adjoint),
    Generator.GRID: Points(pointwise.grid_points, pointwise.points_adjoint),
}

CURVATURES = {
    Generator.AFFINE: affine.points_curvature,
    Generator.HOMOGRAPHY: homography.points_curvature,
}

GRIDS = {
    Generator.AFFINE: Grid(affine.grid, affine.grid_adjoint),
    Generator.HOMOGRAPHY: Grid(homography.grid, homography.grid_adjoint),
    Generator.SPLINE: Grid(thin_plate.grid, thin_plate.grid_adjoint),
    Generator.FLOW: Grid(pointwise.flow_grid, pointwise.flow_grid_adjoint),
}


def source_points(problem: WarpProblem) -> Tensor:
    """Returns the source points in pixels, (N of the transform, dims, P), in compute dtype."""
    return POINTS[problem.transform.kind.generator].forward(problem)


def source_points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Returns the gradient of the transform's parameters from that of ``source_points``."""
    return POINTS[problem.transform.kind.generator].adjoint(problem, grad_points)


def source_points_curvature(problem: WarpProblem, curvature: Tensor) -> Tensor:
    """Returns the congruence of ``source_points`` of (N, dims, dims, P), (N, K, K).

    K parameters of a transform that is a matrix, float64.
    """
    parameters = problem.transform.parameters.double()
    wide = replace(problem, transform=problem.transform.with_parameters(parameters))
    return CURVATURES[problem.transform.kind.generator](wide, curvature)


def generated_grid(problem: GridProblem) -> Tensor:
    """Returns the sampling grid, (N, [Do,] Ho, Wo, dims), in the unit of the transform."""
    return GRIDS[problem.transform.kind.generator].forward(problem).movedim(1, -1).contiguous()


def generated_grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Returns the gradient of the transform's parameters from that of ``generated_grid``."""
    return GRIDS[problem.transform.kind.generator].adjoint(problem, grad_grid.movedim(-1, 1))
