"""Thin-plate splines through control points."""

from collections.abc import Hashable, Sequence
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from stn_engine.control_points import check_regularization, checked_control_points
from stn_engine.transforms.base import Generator, Kind, Parametric


@dataclass(frozen=True, eq=False)
class ThinPlateSpline(Parametric):
    """The smoothest map that takes fixed target control points to given source points.

    ``x(p) = a_0 + a_1·x_t + a_2·y_t + sum over k of w_k·U(|p - c_k|)`` with ``U(r) = r²·log r``,
    U(0) = 0, and the coefficients of ``(U(|c_k - c_l|) + regularization·I)·w + a(c) = points``,
    ``sum w_k = sum w_k·c_k = 0``; y likewise.

    Shapes:
        points           (N, K, 2)   float32 | float64
        control_points   (K, 2)      numbers, the same for all items

    Convention:
        - control points are target points, points their source points, both (x, y) in the unit
          the WarpSpec names
        - regularization 0 takes every control point to its point exactly; the larger it is, the
          closer the map comes to the affine one of least squares; its scale is that of U
        - the system is solved in float64, about the middle of the control points and in units of
          their radius, so that it makes no difference where they are and how large

    Args:
        points: Where the control points read from: what the transform is differentiated by.
        control_points: At least three different finite points that are not on one line, by more
            than 1e-6 of their radius: the longest distance from their mean.
        regularization: A finite number >= 0.

    Raises:
        InvalidInputError: points are not a tensor.
        ShapeError: points are not (N, K, 2) with the K of the control points.
        DTypeError: points are neither float32 nor float64.
        ParameterError: control_points or regularization is not as above. It names two points that
            are too near to each other, or the ends of the line that all are on.
    """

    argument = "points"
    shapes = (("N", "K", 2),)
    kind = Kind("spline", 6, Generator.SPLINE)

    points: Tensor
    _: KW_ONLY
    control_points: Sequence[Sequence[float]]
    regularization: float = 0.0

    @property
    def parameters(self) -> Tensor:
        """The tensor that gradients are taken of: the points, (N, K, 2)."""
        return self.points

    def __post_init__(self) -> None:
        check_regularization(self.regularization)
        control_points = checked_control_points(self.control_points, self.regularization)
        object.__setattr__(self, "control_points", control_points)
        self._check_parameters([("N", len(control_points), 2)])

    @property
    def basis_size(self) -> int:
        """Number of control points: each moves the source point of every pixel."""
        return len(self.control_points)

    @property
    def settings(self) -> Hashable:
        """The control points and the regularization."""
        return self.control_points, self.regularization
