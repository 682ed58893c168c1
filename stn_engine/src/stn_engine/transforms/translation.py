"""Translations: windows that move without turning."""

from dataclasses import dataclass

from stn_engine.transforms.base import Generator, Kind
from stn_engine.transforms.similarity import SimilarityTransform


@dataclass(frozen=True, eq=False)
class Translation(SimilarityTransform):
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

    shapes = (("N", 2),)
    kind = Kind("translation", 4, Generator.AFFINE)
    given = ("t_x", "t_y")
