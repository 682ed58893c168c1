"""Rotations about a point: windows that turn."""

from dataclasses import dataclass

from stn_engine.transforms.base import Generator, Kind
from stn_engine.transforms.similarity import SimilarityTransform


@dataclass(frozen=True, eq=False)
class Rotation(SimilarityTransform):
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

    shapes = (("N", 1),)
    kind = Kind("rotation", 5, Generator.AFFINE)
    given = ("phi",)
