"""Projective maps of the plane: homographies."""

from dataclasses import dataclass

from torch import Tensor

from stn_engine.transforms.base import Generator, Kind, Parametric


@dataclass(frozen=True, eq=False)
class Homography(Parametric):
    """Target points to source points by a projective map.

    ``(X, Y, W) = theta·(x_t, y_t, 1)``, then ``x = X/W`` and ``y = Y/W``.

    Shapes:
        theta   (N, 3, 3)   float32 | float64

    Convention:
        - theta maps target to source, in the unit the WarpSpec names; its scale is free
        - a target point with W = 0 has no source point: it is not finite and reads fill
        - points with W < 0, behind the horizon, are read like all others
        - a theta with an entry that is not finite has no finite point

    Raises:
        InvalidInputError: theta is not a tensor.
        ShapeError: theta is not (N, 3, 3).
        DTypeError: theta is neither float32 nor float64.
    """

    argument = "theta"
    shapes = (("N", 3, 3),)
    kind = Kind("homography", 1, Generator.HOMOGRAPHY)

    theta: Tensor

    @property
    def parameters(self) -> Tensor:
        """The tensor that gradients are taken of: theta, (N, 3, 3)."""
        return self.theta
