"""Windows that zoom and move."""

from dataclasses import dataclass

from stn_engine.transforms.base import Generator, Kind
from stn_engine.transforms.similarity import SimilarityTransform


@dataclass(frozen=True, eq=False)
class Attention(SimilarityTransform):
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

    shapes = (("N", 3),)
    kind = Kind("attention", 2, Generator.AFFINE)
    given = ("s", "t_x", "t_y")
