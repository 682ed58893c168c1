"""Source points in pixels for each transform, and the way back: one table for all transforms.

Points are (N, dims, P): x in row 0, y in row 1, z in row 2 of volumes; P = Ho·Wo or Do·Ho·Wo target
pixels in row-major order.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stn_engine.backends import _affine, _homography, _pointwise, _thin_plate
from stn_engine.problem import GridProblem, WarpProblem
from stn_engine.transforms import (
    Affine,
    Attention,
    Flow,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Transform,
    Translation,
)


@dataclass(frozen=True)
class Points:
    """How one kind of transform makes source points in pixels, and the adjoint."""

    forward: Callable[[WarpProblem], Tensor]
    adjoint: Callable[[WarpProblem, Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """How one kind of transform makes a grid in its own unit, and the adjoint.

    Grids are (N, dims, [Do,] Ho, Wo) here.
    """

    forward: Callable[[GridProblem], Tensor]
    adjoint: Callable[[GridProblem, Tensor], Tensor]


AFFINE_POINTS = Points(_affine.points, _affine.points_adjoint)
AFFINE_GRID = Grid(_affine.grid, _affine.grid_adjoint)

POINTS: dict[type[Transform], Points] = {
    Affine: AFFINE_POINTS,
    Attention: AFFINE_POINTS,
    Similarity: AFFINE_POINTS,
    Translation: AFFINE_POINTS,
    Rotation: AFFINE_POINTS,
    Homography: Points(_homography.points, _homography.points_adjoint),
    ThinPlateSpline: Points(_thin_plate.points, _thin_plate.points_adjoint),
    Flow: Points(_pointwise.flow_points, _pointwise.points_adjoint),
    SamplingGrid: Points(_pointwise.grid_points, _pointwise.points_adjoint),
}

GRIDS: dict[type[Transform], Grid] = {
    Affine: AFFINE_GRID,
    Attention: AFFINE_GRID,
    Similarity: AFFINE_GRID,
    Translation: AFFINE_GRID,
    Rotation: AFFINE_GRID,
    Homography: Grid(_homography.grid, _homography.grid_adjoint),
    ThinPlateSpline: Grid(_thin_plate.grid, _thin_plate.grid_adjoint),
    Flow: Grid(_pointwise.flow_grid, _pointwise.flow_grid_adjoint),
}


def source_points(problem: WarpProblem) -> Tensor:
    """Where the feature map is read, (N of the transform, dims, P), in pixels and compute dtype."""
    return POINTS[type(problem.transform)].forward(problem)


def source_points_adjoint(problem: WarpProblem, grad_points: Tensor) -> Tensor:
    """Gradient of the transform's parameters from that of ``source_points``."""
    return POINTS[type(problem.transform)].adjoint(problem, grad_points)


def generated_grid(problem: GridProblem) -> Tensor:
    """The sampling grid, (N, [Do,] Ho, Wo, dims), in the unit of the transform."""
    return GRIDS[type(problem.transform)].forward(problem).movedim(1, -1).contiguous()


def generated_grid_adjoint(problem: GridProblem, grad_grid: Tensor) -> Tensor:
    """Gradient of the transform's parameters from that of ``generated_grid``."""
    return GRIDS[type(problem.transform)].adjoint(problem, grad_grid.movedim(-1, 1))
