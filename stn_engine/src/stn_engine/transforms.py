"""Where target pixels read from: the transforms, each a tensor of parameters with a meaning."""

from dataclasses import dataclass
from typing import Self, TypeAlias

from torch import Tensor

from stn_engine import checks


@dataclass(frozen=True, eq=False)
class Affine:
    """Target points to source points by equation (5).

    ``x = theta[0, 0]·x_t + theta[0, 1]·y_t + theta[0, 2]``, and y from the second row.

    Shapes:
        theta   (N, 2, 3)   float32 | float64

    Convention:
        - theta maps target to source (backward mapping), in the unit the WarpSpec names
        - coordinates are (x, y), x to the right, y down

    Raises:
        InvalidInputError: theta is not a tensor.
        ShapeError: theta is not (N, 2, 3).
        DTypeError: theta is neither float32 nor float64.
    """

    theta: Tensor

    def __post_init__(self) -> None:
        checks.check_parameters("theta", self.theta, ("N", 2, 3))

    @property
    def parameters(self) -> Tensor:
        """What the transform is differentiated by: theta, (N, 2, 3)."""
        return self.theta

    def with_parameters(self, parameters: Tensor) -> Self:
        """The same kind of transform with other parameters."""
        return type(self)(parameters)


@dataclass(frozen=True, eq=False)
class SamplingGrid:
    """Source points given one by one.

    Shapes:
        grid   (N, Ho, Wo, 2)   float32 | float64

    Convention:
        - ``grid[n, i, j]`` is the source point (x, y) of target pixel in row i and column j,
          x to the right, y down, in the unit the WarpSpec names

    Raises:
        InvalidInputError: grid is not a tensor.
        ShapeError: grid is not (N, Ho, Wo, 2).
        DTypeError: grid is neither float32 nor float64.
    """

    grid: Tensor

    def __post_init__(self) -> None:
        checks.check_parameters("grid", self.grid, ("N", "Ho", "Wo", 2))

    @property
    def parameters(self) -> Tensor:
        """What the transform is differentiated by: the grid, (N, Ho, Wo, 2)."""
        return self.grid

    def with_parameters(self, parameters: Tensor) -> Self:
        """The same kind of transform with other parameters."""
        return type(self)(parameters)


Transform: TypeAlias = Affine | SamplingGrid
