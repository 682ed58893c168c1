"""Source points, one by one."""

from dataclasses import dataclass

from torch import Tensor

from stn_engine.transforms.base import Generator, Kind
from stn_engine.transforms.field import FieldTransform


@dataclass(frozen=True, eq=False)
class SamplingGrid(FieldTransform):
    """Source points given one by one.

    Shapes:
        grid   (N, Ho, Wo, 2), in 3-D (N, Do, Ho, Wo, 3)   float32 | float64

    Convention:
        - ``grid[n, i, j]`` is the source point (x, y) of target pixel in row i and column j,
          x to the right, y down, in the unit the WarpSpec names
        - in 3-D ``grid[n, k, i, j]`` is the (x, y, z) of the voxel in plane k, z along the depth

    Raises:
        InvalidInputError: grid is not a tensor.
        ShapeError: grid is neither (N, Ho, Wo, 2) nor (N, Do, Ho, Wo, 3).
        DTypeError: grid is neither float32 nor float64.
    """

    argument = "grid"
    kind = Kind("grid", 8, Generator.GRID)

    grid: Tensor
