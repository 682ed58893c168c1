"""Where target pixels read from, as the caller states it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, get_args

from stn_client._checks import as_float
from stn_client._errors import invalid

__all__ = [
    "Affine",
    "Attention",
    "Flow",
    "Homography",
    "ParametricTransform",
    "Rotation",
    "SamplingGrid",
    "Similarity",
    "ThinPlateSpline",
    "Transform",
    "Translation",
]


@dataclass(frozen=True, eq=False)
class Affine:
    """Target points to source points by a matrix.

    Shapes:
        theta   (N, 2, 3), of volumes (N, 3, 4)   float32 | float64; N = 1 serves the whole batch

    Convention:
        - maps target to source: x = theta[0] . (x_t, y_t, 1), y = theta[1] . (x_t, y_t, 1)
        - coordinates are (x, y), x right, y down; their unit is the option `coordinates`
        - of volumes (x, y, z), z along the depth: x = theta[0] . (x_t, y_t, z_t, 1) and so on
    """

    theta: Any

    @property
    def parameters(self) -> Any:
        """The array that gradients are taken of: theta."""
        return self.theta


@dataclass(frozen=True, eq=False)
class SamplingGrid:
    """Source points given one by one.

    Shapes:
        grid   (N, H', W', 2), of volumes (N, D', H', W', 3)   float32 | float64; N = 1 serves the
            whole batch

    Convention:
        - grid[n, i, j] is the source point (x, y) of target row i, column j
        - of volumes, grid[n, k, i, j] is the source point (x, y, z) of plane k, row i, column j
        - a point that is not finite reads the option `fill`
    """

    grid: Any

    @property
    def parameters(self) -> Any:
        """The array that gradients are taken of: the source points."""
        return self.grid


@dataclass(frozen=True, eq=False)
class Homography:
    """Target points to source points by a projective map.

    Shapes:
        theta   (N, 3, 3)   float32 | float64; N = 1 serves the whole batch

    Convention:
        - maps target to source: (X, Y, W) = theta . (x_t, y_t, 1), x = X/W, y = Y/W
        - a target point with W = 0 reads the option `fill`
    """

    theta: Any

    @property
    def parameters(self) -> Any:
        """The array that gradients are taken of: theta."""
        return self.theta


@dataclass(frozen=True, eq=False)
class ThinPlateSpline:
    """The smoothest map that takes fixed target points to given source points.

    Shapes:
        points           (N, K, 2)   float32 | float64; N = 1 serves the whole batch
        control_points   (K, 2)      numbers, the same for all items

    Convention:
        - maps target to source: (x, y) = control_points[k] reads from points[n, k]; both are in the
          unit of the option `coordinates`
        - control points are at least three, different and not on one line; calls that share them,
          and `regularization`, share what the server works out for them
        - regularization 0 takes every control point to its point exactly; the larger it is, the
          closer the map comes to the affine one of least squares; in squares of the unit
        - of images only
    """

    points: Any
    _: KW_ONLY
    control_points: Any
    regularization: float = 0.0

    @property
    def parameters(self) -> Any:
        """The array that gradients are taken of: the source points."""
        return self.points

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the message beside the parameters: points are x and y in turn.

        Raises:
            InvalidRequestError: They are not numbers.
        """
        given, regularization = self.control_points, self.regularization
        try:
            rows = given.tolist() if hasattr(given, "tolist") else given
            flat = [float(+number) for x, y in rows for number in (x, y)]  # + refuses texts
        except (OverflowError, TypeError, ValueError) as error:
            expected = f"expected points (x, y), got {given!r}."
            raise invalid("control_points", expected) from error
        weight = as_float("regularization", regularization)
        return {"control_points": flat, "regularization": weight}


@dataclass(frozen=True, eq=False)
class Flow:
    """A displacement of every target point.

    Shapes:
        displacement   (N, H', W', 2), of volumes (N, D', H', W', 3)   float32 | float64; N = 1
            serves the whole batch

    Convention:
        - source point = target point + displacement[n, i, j], (x, y), in the unit of `coordinates`
        - of volumes, displacement[n, k, i, j] is (x, y, z)
    """

    displacement: Any

    @property
    def parameters(self) -> Any:
        """The array that gradients are taken of: the displacements."""
        return self.displacement


class SimilarityTransform:
    """A kind whose parameters are some of s, phi, t_x and t_y; the others are the identity's."""

    given: ClassVar[tuple[str, ...]]
    """Names of the parts that are parameters, in their order."""
    parameters: Any


@dataclass(frozen=True, eq=False)
class Attention(SimilarityTransform):
    """A window that zooms and moves: theta = [[s, 0, t_x], [0, s, t_y]].

    Shapes:
        parameters   (N, 3)   (s, t_x, t_y), float32 | float64; N = 1 serves the whole batch

    Convention:
        - s < 1 reads a smaller window: the output shows it enlarged; s < 0 turns it by half a turn
        - (t_x, t_y) is the source point of the target origin, in the unit of `coordinates`: a
          positive t_x reads further right, a positive t_y further down, so that the content moves
          left, or up
        - the target origin is the centre in normalized units, where 1 is half a width or height,
          and the first pixel in pixel units
        - in normalized units s is a part of the width and of the height alike, so that an output of
          other proportions than the map's stretches it
    """

    given = ("s", "t_x", "t_y")

    parameters: Any


@dataclass(frozen=True, eq=False)
class Similarity(SimilarityTransform):
    """A window that zooms, turns and moves.

    theta = [[s cos phi, -s sin phi, t_x], [s sin phi, s cos phi, t_y]], phi in radians.

    Shapes:
        parameters   (N, 4)   (s, phi, t_x, t_y), float32 | float64; N = 1 serves the whole batch

    Convention:
        - phi turns the source point from the x axis towards the y axis; as y points down, the
          content of the output appears turned anticlockwise by phi
        - the turn is about the target origin: the centre in normalized units, the first pixel in
          pixel units
        - in normalized units a turn is not rigid where H and W differ: it shears, because 1 is half
          a width along x and half a height along y; the rigid turn of a map into its own size is
          the `Affine` of [[cos phi, -sin phi H/W, 0], [sin phi W/H, cos phi, 0]]
        - s < 1 reads a smaller window: the output shows it enlarged
        - (t_x, t_y) is the source point of the target origin, in the unit of `coordinates`: a
          positive t_x reads further right, a positive t_y further down, so that the content moves
          left, or up
    """

    given = ("s", "phi", "t_x", "t_y")

    parameters: Any


@dataclass(frozen=True, eq=False)
class Translation(SimilarityTransform):
    """A window that moves: theta = [[1, 0, t_x], [0, 1, t_y]].

    Shapes:
        parameters   (N, 2)   (t_x, t_y), float32 | float64; N = 1 serves the whole batch

    Convention:
        - (t_x, t_y) is the source point of the target origin, in the unit of `coordinates`: a
          positive t_x reads further right, a positive t_y further down, so that the content moves
          left, or up
        - the target origin is the centre in normalized units, where 1 is half a width or height,
          and the first pixel in pixel units
    """

    given = ("t_x", "t_y")

    parameters: Any


@dataclass(frozen=True, eq=False)
class Rotation(SimilarityTransform):
    """A window that turns: theta = [[cos phi, -sin phi, 0], [sin phi, cos phi, 0]].

    Shapes:
        parameters   (N, 1)   phi in radians, float32 | float64; N = 1 serves the whole batch

    Convention:
        - phi turns the source point from the x axis towards the y axis; as y points down, the
          content of the output appears turned anticlockwise by phi
        - the turn is about the target origin: the centre in normalized units, the first pixel in
          pixel units
        - in normalized units a turn is not rigid where H and W differ: it shears, because 1 is half
          a width along x and half a height along y; the rigid turn of a map into its own size is
          the `Affine` of [[cos phi, -sin phi H/W, 0], [sin phi W/H, cos phi, 0]]
    """

    given = ("phi",)

    parameters: Any


ParametricTransform = (
    Affine | Homography | ThinPlateSpline | Flow | Attention | Similarity | Translation | Rotation
)
"""Transforms from which a grid can be generated."""

SIMILARITIES: tuple[type[SimilarityTransform], ...] = tuple(
    kind for kind in get_args(ParametricTransform) if issubclass(kind, SimilarityTransform)
)
"""Transforms whose parameters are parts of a similarity."""

Transform = ParametricTransform | SamplingGrid
"""Transforms that a warp takes."""
