"""Where target pixels read from, as the caller states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Affine:
    """Target points to source points by a 2 x 3 matrix.

    Shapes:
        theta   (N, 2, 3)   float32 | float64; N = 1 serves the whole batch

    Convention:
        - maps target to source: x = theta[0] . (x_t, y_t, 1), y = theta[1] . (x_t, y_t, 1)
        - coordinates are (x, y), x right, y down; their unit is the option `coordinates`
    """

    theta: Any

    @property
    def parameters(self) -> Any:
        """What gradients are taken to."""
        return self.theta


@dataclass(frozen=True, eq=False)
class SamplingGrid:
    """Source points given one by one.

    Shapes:
        grid   (N, H', W', 2)   float32 | float64; N = 1 serves the whole batch

    Convention:
        - grid[n, i, j] is the source point (x, y) of target row i, column j
        - a point that is not finite reads the option `fill`
    """

    grid: Any

    @property
    def parameters(self) -> Any:
        """What gradients are taken to."""
        return self.grid


Transform = Affine | SamplingGrid
