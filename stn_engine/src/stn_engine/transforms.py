"""Where target pixels read from: the transforms, each a tensor of parameters with a meaning."""

from collections.abc import Hashable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Self, TypeAlias

from torch import Tensor

from stn_engine import checks
from stn_engine.control_points import check_regularization, checked_control_points
from stn_engine.errors import Shape


@dataclass(frozen=True, eq=False)
class _Parametric:
    """What all transforms share: one tensor of parameters, valid from birth."""

    argument: ClassVar[str]
    """Name of the field that holds the parameters."""
    shapes: ClassVar[tuple[Shape, ...]]
    """Shapes that the parameters may have, in 2-D and maybe in 3-D."""

    def __post_init__(self) -> None:
        self._check_parameters(self.shapes)

    def _check_parameters(self, shapes: Sequence[Shape]) -> None:
        """Parameters of one of these shapes, in float32 if autocast has made half types of them."""
        given = getattr(self, self.argument)
        parameters = checks.checked_parameters(self.argument, given, shapes)
        if parameters is not given:
            object.__setattr__(self, self.argument, parameters)

    @property
    def dims(self) -> int:
        """Coordinates of its points: 2 in images, 3 in volumes."""
        return 2

    @property
    def own_size(self) -> tuple[int, ...] | None:
        """([Do,] Ho, Wo) of transforms with parameters for every target pixel, or else None."""
        return None

    @property
    def basis_size(self) -> int:
        """Numbers in float64 that are worked out for every target pixel before any is read."""
        return 0

    @property
    def settings(self) -> Hashable:
        """All that must agree, besides the kind, for parameters to be laid end to end."""
        return None

    def with_parameters(self, parameters: Tensor) -> Self:
        """The same kind of transform with other parameters."""
        return replace(self, **{self.argument: parameters})


@dataclass(frozen=True, eq=False)
class Affine(_Parametric):
    """Target points to source points by equation (5).

    ``x = theta[0, 0]·x_t + theta[0, 1]·y_t + theta[0, 2]``, and y from the second row; in 3-D each
    row is applied to (x_t, y_t, z_t, 1), and z comes from the third.

    Shapes:
        theta   (N, 2, 3), in 3-D (N, 3, 4)   float32 | float64

    Convention:
        - theta maps target to source (backward mapping), in the unit the WarpSpec names
        - coordinates are (x, y), x to the right, y down; in 3-D (x, y, z), z along the depth

    Raises:
        InvalidInputError: theta is not a tensor.
        ShapeError: theta is neither (N, 2, 3) nor (N, 3, 4).
        DTypeError: theta is neither float32 nor float64.
    """

    argument = "theta"
    shapes = (("N", 2, 3), ("N", 3, 4))

    theta: Tensor

    @property
    def parameters(self) -> Tensor:
        """What the transform is differentiated by: theta."""
        return self.theta

    @property
    def dims(self) -> int:
        """As many as theta has rows."""
        return 3 if self.theta.shape[1] == 3 else 2  # a number even where sizes are symbols


@dataclass(frozen=True, eq=False)
class Homography(_Parametric):
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

    theta: Tensor

    @property
    def parameters(self) -> Tensor:
        """What the transform is differentiated by: theta, (N, 3, 3)."""
        return self.theta


@dataclass(frozen=True, eq=False)
class Attention(_Parametric):
    """A window that zooms and moves, the attention of the STN paper (its equation 2).

    ``theta = [[s, 0, t_x], [0, s, t_y]]``, then as ``Affine``.

    Shapes:
        parameters   (N, 3)   float32 | float64, (s, t_x, t_y)

    Convention:
        - s < 1 reads a smaller window: the output shows it enlarged; s < 0 turns it by half a turn
        - (t_x, t_y) is the source point of the target origin, in the unit the WarpSpec names: the
          centre in normalized units, where 1 is half a width or height, the first pixel in pixel
          units
        - a positive t_x reads further right, a positive t_y further down, so that the content
          moves left, or up
        - in normalized units s is a part of the width and of the height alike, so that an output
          of other proportions than the map's stretches it

    Raises:
        InvalidInputError: parameters are not a tensor.
        ShapeError: parameters are not (N, 3).
        DTypeError: parameters are neither float32 nor float64.
    """

    argument = "parameters"
    shapes = (("N", 3),)

    parameters: Tensor


@dataclass(frozen=True, eq=False)
class Similarity(_Parametric):
    """A window that zooms, turns and moves.

    ``theta = [[s·cos φ, -s·sin φ, t_x], [s·sin φ, s·cos φ, t_y]]``, then as ``Affine``.

    Shapes:
        parameters   (N, 4)   float32 | float64, (s, φ, t_x, t_y)

    Convention:
        - φ in radians turns the source point from the x axis towards the y axis; as y points
          down, the content of the output appears turned anticlockwise by φ
        - the turn is about the target origin: the centre in normalized units, the first pixel
          in pixel units
        - in normalized units a turn is not rigid where H and W differ: it shears, because 1 is
          half a width along x and half a height along y; the rigid turn of a map into its own
          size is the ``Affine`` of [[cos φ, -sin φ·H/W, 0], [sin φ·W/H, cos φ, 0]]
        - s < 1 reads a smaller window: the output shows it enlarged
        - (t_x, t_y) is the source point of the target origin, in the unit the WarpSpec names; a
          positive t_x reads further right, a positive t_y further down, so that the content moves
          left, or up

    Raises:
        InvalidInputError: parameters are not a tensor.
        ShapeError: parameters are not (N, 4).
        DTypeError: parameters are neither float32 nor float64.
    """

    argument = "parameters"
    shapes = (("N", 4),)

    parameters: Tensor


@dataclass(frozen=True, eq=False)
class Translation(_Parametric):
    """A window that moves.

    ``theta = [[1, 0, t_x], [0, 1, t_y]]``, then as ``Affine``.

    Shapes:
        parameters   (N, 2)   float32 | float64, (t_x, t_y)

    Convention:
        - (t_x, t_y) is the source point of the target origin, in the unit the WarpSpec names: the
          centre in normalized units, the first pixel in pixel units
        - a positive t_x reads further right, a positive t_y further down, so that the content
          moves left, or up

    Raises:
        InvalidInputError: parameters are not a tensor.
        ShapeError: parameters are not (N, 2).
        DTypeError: parameters are neither float32 nor float64.
    """

    argument = "parameters"
    shapes = (("N", 2),)

    parameters: Tensor


@dataclass(frozen=True, eq=False)
class Rotation(_Parametric):
    """A window that turns.

    ``theta = [[cos φ, -sin φ, 0], [sin φ, cos φ, 0]]``, then as ``Affine``.

    Shapes:
        parameters   (N, 1)   float32 | float64, (φ,)

    Convention:
        - φ in radians turns the source point from the x axis towards the y axis; as y points
          down, the content of the output appears turned anticlockwise by φ
        - the turn is about the target origin: the centre in normalized units, the first pixel
          in pixel units
        - in normalized units a turn is not rigid where H and W differ: it shears, because 1 is
          half a width along x and half a height along y; the rigid turn of a map into its own
          size is the ``Affine`` of [[cos φ, -sin φ·H/W, 0], [sin φ·W/H, cos φ, 0]]

    Raises:
        InvalidInputError: parameters are not a tensor.
        ShapeError: parameters are not (N, 1).
        DTypeError: parameters are neither float32 nor float64.
    """

    argument = "parameters"
    shapes = (("N", 1),)

    parameters: Tensor


@dataclass(frozen=True, eq=False)
class ThinPlateSpline(_Parametric):
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

    points: Tensor
    _: KW_ONLY
    control_points: Sequence[Sequence[float]]
    regularization: float = 0.0

    def __post_init__(self) -> None:
        check_regularization(self.regularization)
        control_points = checked_control_points(self.control_points, self.regularization)
        object.__setattr__(self, "control_points", control_points)
        self._check_parameters([("N", len(control_points), 2)])

    @property
    def parameters(self) -> Tensor:
        """What the transform is differentiated by: the points, (N, K, 2)."""
        return self.points

    @property
    def basis_size(self) -> int:
        """One for each control point: how much its source point moves that of the pixel."""
        return len(self.control_points)

    @property
    def settings(self) -> Hashable:
        """The control points and the regularization."""
        return self.control_points, self.regularization


@dataclass(frozen=True, eq=False)
class _Pointwise(_Parametric):
    """What transforms share whose parameters are one vector for every target pixel."""

    shapes = (("N", "Ho", "Wo", 2), ("N", "Do", "Ho", "Wo", 3))

    @property
    def parameters(self) -> Tensor:
        """What the transform is differentiated by: all the vectors."""
        vectors: Tensor = getattr(self, self.argument)
        return vectors

    @property
    def dims(self) -> int:
        """As many as a vector has coordinates."""
        return self.parameters.dim() - 2

    @property
    def own_size(self) -> tuple[int, ...]:
        """(Ho, Wo) of the vectors, in 3-D (Do, Ho, Wo)."""
        return tuple(self.parameters.shape[1:-1])


@dataclass(frozen=True, eq=False)
class Flow(_Pointwise):
    """Source points as displacements from the target points.

    ``x = x_t + displacement[n, i, j, 0]`` and ``y = y_t + displacement[n, i, j, 1]``; z likewise.

    Shapes:
        displacement   (N, Ho, Wo, 2), in 3-D (N, Do, Ho, Wo, 3)   float32 | float64

    Convention:
        - the displacement leads from target to source, (x, y) or (x, y, z), in the unit the
          WarpSpec names
        - it says how large the output is

    Raises:
        InvalidInputError: displacement is not a tensor.
        ShapeError: displacement is neither (N, Ho, Wo, 2) nor (N, Do, Ho, Wo, 3).
        DTypeError: displacement is neither float32 nor float64.
    """

    argument = "displacement"

    displacement: Tensor


@dataclass(frozen=True, eq=False)
class SamplingGrid(_Pointwise):
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

    grid: Tensor


ParametricTransform: TypeAlias = (
    Affine | Homography | Attention | Similarity | Translation | Rotation | ThinPlateSpline | Flow
)
"""What the grid generator takes."""

Transform: TypeAlias = ParametricTransform | SamplingGrid
"""What a warp takes."""
