"""Warps of images that are larger than the limits of a server.

The target is halved until every tile fits. Of the source a tile sends only the window that its
points can reach, and the transform is moved into that window; the server does the rest, padding
included. This is right because of where windows end: at an edge of the image itself, where the
padding begins, or further away than any point of the tile reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._calls import check_options
from stn_client._client import Client
from stn_client._errors import InvalidRequestError
from stn_client._options import WarpOptions
from stn_client._transforms import Affine, Homography
from stn_proto.v1.server_info_pb2 import Limits

Array = NDArray[Any]
Size = tuple[int, ...]
"""(H, W)."""
Unit = Literal["pixel", "edges", "centres"]
"""Pixels, or -1 and 1 at the edges of the outermost pixels, or at their centres."""

_ENVELOPE_BYTES = 4096
"""More than a request takes beside its feature map."""

_TAPS_PX = {"bicubic": 2}
"""How far from its point a sample reads, if that is not 1."""

_ROUNDING = 8 * 2.0**-24
"""Bound of the relative error of the few float32 operations that make a coordinate."""

_FAR_PX = 2.0**31
"""Beyond this, a coordinate says nothing about its place in a period of the reflection."""


def warp(
    client: Client,
    feature_map: ArrayLike,
    transform: Affine | Homography,
    output_size: Sequence[int] | None = None,
    *,
    limits: Limits | None = None,
    **options: Unpack[WarpOptions],
) -> Array:
    """`client.warp` of images of any size: in one call, or in as many as the server's limits ask.

    Values of tiles differ from those of one call by no more than the rounding of coordinates.

    Shapes:
        feature_map   (N, C, H, W)     as for `Client.warp`; C is last under layout "NHWC"
        returns       (N, C, H', W')   same dtype

    Args:
        client: Where every tile is computed.
        feature_map: Images. N = 1 serves every transform. Volumes are sent whole.
        transform: Where to read, target to source.
        output_size: (H', W'); None: that of the feature map.
        limits: Those of the server; None: ask it.
        options: See `WarpOptions`.

    Raises:
        InvalidRequestError: The transform is of another kind, or as for `Client.warp`.
        StnClientError: Any other way a call can fail.

    Example:
        >>> v = tiling.warp(stn, photo, Affine(theta), layout="NHWC", padding="reflection")
    """
    if type(transform) not in {Affine, Homography}:
        what = f"expected Affine or Homography, got {type(transform).__name__}. Make a theta of it."
        raise InvalidRequestError(f"transform: {what}", violations=[("transform", what)])
    check_options(options, output_size)
    images, theta = np.asarray(feature_map), np.asarray(transform.theta)
    if (
        images.ndim != 4
        or theta.shape[1:] not in {(2, 3), (3, 3)}
        or theta.dtype.kind not in "fiu"
        or not np.isfinite(theta).all()
    ):  # a volume, or nothing that the server takes: it says why
        return client.warp(images, transform, output_size, **options)
    to_nhwc, back = (0, 1, 2, 3), (0, 1, 2, 3)
    if options.get("layout") != "NHWC":
        to_nhwc, back = (0, 2, 3, 1), (0, 3, 1, 2)
    images = images.transpose(to_nhwc)
    batch, (height, width, channels) = max(len(images), len(theta)), images.shape[1:]
    size = (height, width) if output_size is None else tuple(output_size)
    limits = client.server_info().limits if limits is None else limits
    pixel_bytes = channels * images.itemsize
    broken = not {len(images), len(theta)} <= {1, batch} or len(size) != 2
    if broken or _fits(limits, pixel_bytes, images.shape[:3], (batch, *size)):
        return client.warp(images.transpose(back), transform, output_size, **options)

    output = np.empty((batch, *size, channels), images.dtype)
    unit = _unit(options)
    reflection = options.get("padding") == "reflection"
    tile_unit: Unit = "edges" if reflection and unit == "edges" else "pixel"
    tile_options: WarpOptions = {**options, "align_corners": False}
    tile_options["coordinates"] = "pixel" if tile_unit == "pixel" else "normalized"
    for n in range(batch):
        source = images[n % len(images), None]
        matrix = _pixel_matrix(theta[n % len(theta)], (height, width), size, unit)
        plan = _Plan(matrix, (height, width), pixel_bytes, limits, tile_unit, options)
        for tile in plan.tiles((0, size[0]), (0, size[1])):
            window = source[:, tile.rows.window, tile.columns.window].transpose(back)
            local = tile.matrix(matrix, tile_unit)[None, : theta.shape[1]]
            moved = Affine(local) if isinstance(transform, Affine) else Homography(local)
            result = client.warp(window, moved, tile.size, **tile_options)
            output[n, tile.rows.target, tile.columns.target] = result.transpose(to_nhwc)[0]
    return output.transpose(back)


class _Axis(NamedTuple):
    """The rows, or the columns, of a tile: which it computes, and which it reads."""

    target: slice
    window: slice
    sign: int
    offset: int
    """Pixel of the window = sign · pixel of the source + offset."""


class _Tile(NamedTuple):
    """A part of the target."""

    rows: _Axis
    columns: _Axis

    @property
    def size(self) -> Size:
        return _length(self.rows.target), _length(self.columns.target)

    @property
    def window_size(self) -> Size:
        return _length(self.rows.window), _length(self.columns.window)

    def matrix(self, matrix: Array, unit: Unit) -> NDArray[np.float64]:
        """The map of the whole, from pixel to pixel, as that of the tile into its window."""
        axes = self.rows, self.columns
        target = _diagonal((1, 1), [axis.target.start for axis in axes])
        window = _diagonal([axis.sign for axis in axes], [axis.offset for axis in axes])
        local = window @ matrix @ target
        moved: NDArray[np.float64] = (
            _from_pixels(self.window_size, unit) @ local @ _to_pixels(self.size, unit)
        ).astype(np.float64)
        return moved


class _Plan:
    """How the target of one image is cut."""

    def __init__(
        self,
        matrix: Array,
        input_size: Size,
        pixel_bytes: int,
        limits: Limits,
        unit: Unit,
        options: WarpOptions,
    ) -> None:
        self._matrix = matrix.astype(np.float64)
        self._input_size = input_size
        self._pixel_bytes = pixel_bytes
        self._limits = limits
        self._taps_px = _TAPS_PX.get(options.get("interpolation", ""), 1)
        self._mirror = unit if options.get("padding") == "reflection" else None

    def tiles(self, rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[_Tile]:
        """The part of the target between these rows and columns, halved until it fits."""
        tile = self._tile(rows, columns)
        height, width = tile.size
        one = (1, *tile.window_size), (1, height, width)
        if height * width == 1 or _fits(self._limits, self._pixel_bytes, *one):
            yield tile
        elif height >= width:
            middle = rows[0] + height // 2
            yield from self.tiles((rows[0], middle), columns)
            yield from self.tiles((middle, rows[1]), columns)
        else:
            middle = columns[0] + width // 2
            yield from self.tiles(rows, (columns[0], middle))
            yield from self.tiles(rows, (middle, columns[1]))

    def _tile(self, rows: tuple[int, int], columns: tuple[int, int]) -> _Tile:
        reach = _reach(self._matrix, rows, columns)
        axes = []
        for target, (low, high), size in zip((rows, columns), reach, self._input_size, strict=True):
            taps = low - self._taps_px, high + self._taps_px
            axes.append(_axis(target, *taps, size, self._mirror))
        return _Tile(*axes)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _fits(limits: Limits, pixel_bytes: int, source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a server takes a warp of so many (N, H, W) pixels to so many."""
    return (
        math.prod(source) * pixel_bytes + _ENVELOPE_BYTES <= limits.max_message_bytes
        and math.prod(target) * pixel_bytes <= limits.max_output_bytes
        and math.prod(target) <= limits.max_output_samples
        and max(target[1:]) <= limits.max_dimension_px
    )


def _reach(
    matrix: NDArray[np.float64], rows: tuple[int, int], columns: tuple[int, int]
) -> list[tuple[float, float]]:
    """The (lowest, highest) source row, then column, of a part of the target; NaN if of none.

    Both coordinates are quotients of linear functions, and so lie between those of the corners
    wherever the denominator keeps its sign. Where it does not, points lie everywhere.
    """
    first, last = (columns[0], rows[0]), (columns[1] - 1, rows[1] - 1)
    corners = np.array([(j, i, 1) for j in (first[0], last[0]) for i in (first[1], last[1])]).T
    x, y, w = matrix @ corners
    bound_x, bound_y, bound_w = (abs(matrix) @ corners).max(axis=1)
    nearest = abs(w).min()
    one_point = first == last
    if one_point and nearest == 0:
        return [(math.nan, math.nan)] * 2
    if not one_point and (w.min() < 0 < w.max() or nearest <= _ROUNDING * bound_w):
        return [(-math.inf, math.inf)] * 2
    reach = []
    for points, bound in ((y / w, bound_y), (x / w, bound_x)):
        error = _ROUNDING * (bound + abs(points).max() * bound_w) / nearest
        reach.append((float(points.min() - error), float(points.max() + error)))
    return reach


def _axis(
    target: tuple[int, int], low: float, high: float, size: int, mirror: Unit | None
) -> _Axis:
    """The part of a tile along one axis.

    Args:
        target: First and one after the last.
        low: Lowest source coordinate whose pixel is read; NaN: none is.
        high: Highest one.
        size: Of the source.
        mirror: Unit of a reflection: it decides whether edges or centres are mirrors.
    """
    last, sign, offset = size - 1, 1, 0
    edge = 1 if mirror == "edges" else 0  # mirrors stand at -edge / 2 and last + edge / 2
    period = 2 * (last + edge)
    if math.isnan(low):
        low = high = 0
    elif mirror is not None and (period == 0 or max(-low, high) > _FAR_PX):
        low, high = 0, last
    elif mirror is not None:
        offset = -period * math.floor((low + edge / 2) / period)
        low, high = low + offset, high + offset
        if low > last + edge / 2:  # begins in a mirror image: seen in the mirror, it is upright
            sign, offset = -1, 2 * last + edge - offset
            low, high = 2 * last + edge - high, 2 * last + edge - low
        if low < 0:
            low, high = 0, max(high, -edge - low)
        elif high > last:
            low, high = min(low, 2 * last + edge - high), last
    start = math.floor(min(max(low, 0), last))
    stop = math.ceil(min(max(high, 0), last)) + 1
    start -= start % 2  # ties go to even pixels
    return _Axis(slice(*target), slice(start, stop), sign, offset - start)


def _unit(options: WarpOptions) -> Unit:
    if options.get("coordinates") == "pixel":
        return "pixel"
    return "centres" if options.get("align_corners", False) else "edges"


def _pixel_matrix(theta: Array, input_size: Size, output_size: Size, unit: Unit) -> Array:
    """(3, 3), exact fractions: target pixel to source pixel."""
    rows = [[Fraction(float(value)) for value in row] for row in theta]
    exact = np.array(rows if len(rows) == 3 else [*rows, [0, 0, 1]], dtype=object)
    return np.asarray(_to_pixels(input_size, unit) @ exact @ _from_pixels(output_size, unit))


def _to_pixels(size: Size, unit: Unit) -> Array:
    """(3, 3): coordinates of an image in some unit to its pixels."""
    if unit == "pixel":
        return _diagonal((1, 1), (0, 0))
    scale = [Fraction(n if unit == "edges" else n - 1, 2) for n in size]
    return _diagonal(scale, [Fraction(n - 1, 2) for n in size])


def _from_pixels(size: Size, unit: Unit) -> Array:
    """(3, 3): pixels of an image to coordinates in some unit."""
    if unit == "pixel":
        return _diagonal((1, 1), (0, 0))
    spans = [n if unit == "edges" else n - 1 for n in size]
    scale = [Fraction(2, span) if span else Fraction(0) for span in spans]
    offset = [
        Fraction(1 - n, span) if span else Fraction(0) for n, span in zip(size, spans, strict=True)
    ]
    return _diagonal(scale, offset)


def _diagonal(scale: Sequence[Any], offset: Sequence[Any]) -> Array:
    """(3, 3): x and y, each times its scale and plus its offset; those of y come first."""
    rows = [[scale[1], 0, offset[1]], [0, scale[0], offset[0]], [0, 0, 1]]
    return np.array(rows, dtype=object)
