"""Warps of images that are larger than the limits of a server.

The target is halved until every tile fits. Of the source a tile sends only the window that its
points can reach, and the transform is moved into that window; the server does the rest, padding
included. This is right because of where windows end: at an edge of the image itself, where the
padding begins, or further away than any point of the tile reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from stn_client._arguments import check_options
from stn_client._arrays import AnyArray, as_array, operand
from stn_client._client import Client
from stn_client._errors import InvalidRequestError
from stn_client._layouts import LAYOUTS, layout_of, with_batch, without_batch
from stn_client._options import WarpOptions, takes_options
from stn_client._parameters import parameters_with_batch
from stn_client._server_info import Limits
from stn_client._transforms import Affine, Homography, ThinPlateSpline
from stn_client._units import Scaling, Unit, from_pixels, to_pixels, unit_of

Array = NDArray[Any]
Size = tuple[int, ...]
"""(H, W)."""

_ENVELOPE_BYTES = 4096
"""More than a request takes beside its feature map."""

_POINT_BYTES = 2 * 8
"""The bytes of a point of a grid in float64."""

_TAPS_PX = {"bicubic": 2}
"""Distance from its point at which a sample reads, if that is not 1."""

_ROUNDING = 8 * 2.0**-24
"""Bound of the relative error of the few float32 operations that make a coordinate."""

_FAR_PX = 2.0**31
"""Beyond this, a coordinate says nothing about its place in a period of the reflection."""


@takes_options(WarpOptions)
def warp(
    client: Client,
    feature_map: AnyArray,
    transform: Affine | Homography | ThinPlateSpline,
    output_size: Sequence[int] | None = None,
    *,
    limits: Limits | None = None,
    **options: Unpack[WarpOptions],
) -> Any:
    """Warps images of any size by `client.warp`, in one call or in as many tiles as needed.

    Values of tiles differ from those of one call by no more than the rounding of coordinates.

    Shapes:
        feature_map   (N, C, H, W)     as for `Client.warp`, in any layout and of any type
        returns       (N, C, H', W')   same dtype, layout and type

    Args:
        client: Where every tile is computed.
        feature_map: Images. N = 1 serves every transform. Volumes are sent whole.
        transform: Where to read, target to source. Splines are cut in pixel coordinates alone:
            other units are not the same in all tiles.
        output_size: (H', W'); None: that of the feature map.
        limits: Those of the server; None: ask it.
        options: See `WarpOptions`.

    Raises:
        InvalidRequestError: The transform is of another kind, or as for `Client.warp`.
        StnClientError: Any other way a call can fail.

    Example:
        >>> v = tiling.warp(stn, photo, Affine(theta), layout="NHWC", padding="reflection")
    """
    if type(transform) not in {Affine, Homography, ThinPlateSpline}:
        kinds, got = "Affine, Homography or ThinPlateSpline", type(transform).__name__
        what = f"expected {kinds}, got {got}. Make a theta of it."
        raise InvalidRequestError(f"transform: {what}", violations=[("transform", what)])
    check_options(options, output_size)
    given = operand("feature_map", feature_map)
    layout = layout_of(options.get("layout"), given.layout)
    name = fields(transform)[0].name
    parameters = as_array(name, transform.parameters)
    parameters = parameters_with_batch(transform, name, parameters, layout)
    images = with_batch("feature_map", given.array, layout)
    on_wire: Any = LAYOUTS[layout].on_wire
    changed: Any = {name: parameters}
    moved = replace(transform, **changed)
    output = _warp(client, images, moved, output_size, limits, {**options, "layout": on_wire})
    return given.like(without_batch(output, layout))


def _warp(
    client: Client,
    images: Array,
    transform: Affine | Homography | ThinPlateSpline,
    output_size: Sequence[int] | None,
    limits: Limits | None,
    options: WarpOptions,
) -> Array:
    """Warps arrays of NumPy in the layout of the wire; see `warp`."""
    parameters: Array = transform.parameters
    unit, count, shapes = unit_of(options), 0, {(2, 3), (3, 3)}
    if isinstance(transform, ThinPlateSpline):
        count = len(transform.settings["control_points"]) // 2
        shapes = {(count, 2)} if unit == "pixel" else set()
    if (
        images.ndim != 4
        or parameters.shape[1:] not in shapes
        or parameters.dtype.kind not in "fiu"
        or not np.isfinite(parameters).all()
    ):  # a volume, or nothing that the server takes: it says why
        return client.warp(images, transform, output_size, **options)
    to_nhwc, back = (0, 1, 2, 3), (0, 1, 2, 3)
    if options.get("layout") != "NHWC":
        to_nhwc, back = (0, 2, 3, 1), (0, 3, 1, 2)
    images = images.transpose(to_nhwc)
    batch, (height, width, channels) = max(len(images), len(parameters)), images.shape[1:]
    # In Python's integers, as those of NumPy wrap around in products.
    size = (height, width) if output_size is None else tuple(map(int, output_size))
    limits = client.server_info().limits if limits is None else limits
    room = _Room(limits, channels * images.itemsize, 8 * count)
    broken = not {len(images), len(parameters)} <= {1, batch} or len(size) != 2
    if broken or room.fits(images.shape[:3], (batch, *size)):
        return client.warp(images.transpose(back), transform, output_size, **options)

    output = np.empty((batch, *size, channels), images.dtype)
    reflection = options.get("padding") == "reflection"
    tile_unit: Unit = "edges" if reflection and unit == "edges" else "pixel"
    tile_options: WarpOptions = {**options, "align_corners": False}
    tile_options["coordinates"] = "pixel" if tile_unit == "pixel" else "normalized"
    for n in range(batch):
        source = images[n % len(images), None]
        own = parameters[n % len(parameters)]
        part: _Matrix | _Spline
        if isinstance(transform, ThinPlateSpline):
            part = _Spline(client, room, replace(transform, points=own.astype(np.float64)))
        else:
            matrix = _pixel_matrix(own, (height, width), size, unit)
            part = _Matrix(matrix, tile_unit, type(transform), len(own))
        plan = _Plan(part.preimage, (height, width), room, tile_unit, options)
        for tile in plan.tiles((0, size[0]), (0, size[1])):
            window = source[:, tile.rows.window, tile.columns.window].transpose(back)
            result = client.warp(window, part.of_tile(tile), tile.size, **tile_options)
            output[n, tile.rows.target, tile.columns.target] = result.transpose(to_nhwc)[0]
    return output.transpose(back)


@dataclass(frozen=True, slots=True)
class _Room:
    """The limits of a server for one call."""

    limits: Limits
    pixel_bytes: int
    basis_bytes: int
    """The bytes of each target pixel of an image, whatever their number."""

    def fits(self, source: Sequence[int], target: Sequence[int]) -> bool:
        """Returns whether a warp of (N, H, W) pixels to (N, H, W) is within the limits."""
        source_bytes = math.prod(source) * self.pixel_bytes
        return source_bytes + _ENVELOPE_BYTES <= self.limits.max_message_bytes and self.gives(
            target
        )

    def gives(self, target: Sequence[int]) -> bool:
        """Returns whether a result of (N, H, W) pixels is within the limits."""
        pixels = math.prod(target)
        output_bytes = pixels * self.pixel_bytes + math.prod(target[1:]) * self.basis_bytes
        return (
            output_bytes <= self.limits.max_output_bytes
            and pixels <= self.limits.max_output_samples
            and max(target[1:]) <= self.limits.max_dimension_px
        )


class _Axis(NamedTuple):
    """The rows, or columns, that a tile computes, and those that it reads."""

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


class _Matrix:
    """The map of an image by a matrix, from pixel to pixel."""

    def __init__(
        self, matrix: Array, unit: Unit, kind: type[Affine | Homography], rows: int
    ) -> None:
        self._exact = matrix
        self._matrix = matrix.astype(np.float64)
        self._unit: Unit = unit
        self._kind = kind
        self._rows = rows

    def preimage(
        self, rows: tuple[int, int], columns: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """Returns the preimage of a part of the target under this map; see `_preimage`."""
        return _preimage(self._matrix, rows, columns)

    def of_tile(self, tile: _Tile) -> Affine | Homography:
        """Returns the same map, from the tile into its window."""
        axes = tile.columns, tile.rows
        target = _matrix(([1, 1], [axis.target.start for axis in axes]))
        window = _matrix(([axis.sign for axis in axes], [axis.offset for axis in axes]))
        local = window @ self._exact @ target
        from_window = _matrix(from_pixels(tile.window_size, self._unit))
        moved = from_window @ local @ _matrix(to_pixels(tile.size, self._unit))
        rows = 2 if self._kind is Affine else 3
        return self._kind(moved.astype(np.float64)[None, :rows])


class _Spline:
    """The map of an image by a spline in pixels: shifts of both images shift its points."""

    def __init__(self, client: Client, room: _Room, spline: ThinPlateSpline) -> None:
        self._client = client
        self._room = room
        self._spline = spline
        self._control_points = np.reshape(spline.settings["control_points"], (-1, 2))
        # What is wrong with it is said of what was given, before any part of it is sent.
        client.generate_grid(replace(spline, points=spline.points[None]), (1, 1))

    def preimage(
        self, rows: tuple[int, int], columns: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """Returns the (lowest, highest) source row, then column, of a part of the target.

        The server says where its points are. Those of a part that is too large anyway may be
        anywhere.
        """
        size = rows[1] - rows[0], columns[1] - columns[0]
        if not self._room.gives((1, *size)):
            return [(-math.inf, math.inf)] * 2
        lowest, highest = self._bounds(rows, columns)
        error = _ROUNDING * float(np.abs([lowest, highest]).max())
        return [(float(lowest[axis]) - error, float(highest[axis]) + error) for axis in (1, 0)]

    def _bounds(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Array, Array]:
        """Returns the lowest and the highest source (x, y) of a part of the target."""
        size = rows[1] - rows[0], columns[1] - columns[0]
        if size != (1, 1) and not replace(self._room, pixel_bytes=_POINT_BYTES).gives((1, *size)):
            # The grid of all of it would be no call that a server takes.
            parts = [self._bounds(*halves) for halves in _halves(rows, columns)]
            return np.min([low for low, _ in parts], 0), np.max([high for _, high in parts], 0)
        whole = slice(0, 0)
        axes = (_Axis(slice(*target), whole, 1, 0) for target in (rows, columns))
        there = self.of_tile(_Tile(*axes))
        grid = self._client.generate_grid(there, size, coordinates="pixel")[0]
        return grid.min(axis=(0, 1)), grid.max(axis=(0, 1))

    def of_tile(self, tile: _Tile) -> ThinPlateSpline:
        """Returns the same map, from the tile into its window."""
        axes = tile.columns, tile.rows
        start = [axis.target.start for axis in axes]
        sign, offset = np.array([(axis.sign, axis.offset) for axis in axes], np.float64).T
        points = self._spline.points[None] * sign + offset
        return replace(self._spline, points=points, control_points=self._control_points - start)


class _Plan:
    """The plan by which the target of one image is cut into tiles."""

    def __init__(
        self,
        preimage: Callable[[tuple[int, int], tuple[int, int]], list[tuple[float, float]]],
        input_size: Size,
        room: _Room,
        unit: Unit,
        options: WarpOptions,
    ) -> None:
        self._preimage = preimage
        self._input_size = input_size
        self._room = room
        self._taps_px = _TAPS_PX.get(options.get("interpolation", ""), 1)
        self._mirror = unit if options.get("padding") == "reflection" else None

    def tiles(self, rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[_Tile]:
        """Yields the part of the target between these rows and columns, halved until it fits."""
        tile = self._tile(rows, columns)
        height, width = tile.size
        one = (1, *tile.window_size), (1, height, width)
        if height * width == 1 or self._room.fits(*one):
            yield tile
        else:
            for halves in _halves(rows, columns):
                yield from self.tiles(*halves)

    def _tile(self, rows: tuple[int, int], columns: tuple[int, int]) -> _Tile:
        preimage = self._preimage(rows, columns)
        axes = []
        for target, (low, high), size in zip(
            (rows, columns), preimage, self._input_size, strict=True
        ):
            taps = low - self._taps_px, high + self._taps_px
            axes.append(_axis(target, *taps, size, self._mirror))
        return _Tile(*axes)


def _halves(
    rows: tuple[int, int], columns: tuple[int, int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns the halves of a part of the target, cut across its longer side."""
    if rows[1] - rows[0] >= columns[1] - columns[0]:
        middle = sum(rows) // 2
        return [((rows[0], middle), columns), ((middle, rows[1]), columns)]
    middle = sum(columns) // 2
    return [(rows, (columns[0], middle)), (rows, (middle, columns[1]))]


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _preimage(
    matrix: NDArray[np.float64], rows: tuple[int, int], columns: tuple[int, int]
) -> list[tuple[float, float]]:
    """Returns the (lowest, highest) source row, then column, of a part; NaN if it reads none.

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
    preimage = []
    for points, bound in ((y / w, bound_y), (x / w, bound_x)):
        # A server rounds numerator and denominator in proportion to the largest of their terms.
        error = _ROUNDING * (bound + abs(points).max() * bound_w) / nearest
        preimage.append((float(points.min() - error), float(points.max() + error)))
    return preimage


def _axis(
    target: tuple[int, int], low: float, high: float, size: int, mirror: Unit | None
) -> _Axis:
    """Returns the part of a tile along one axis.

    Args:
        target: First and one after the last.
        low: Lowest source coordinate whose pixel is read; NaN: none is.
        high: Highest one.
        size: The size of the source along the axis.
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
        # Reflections repeat with this period: shifted by a multiple of it, the window begins in the
        # image or in the mirror image behind it.
        offset = -period * math.floor((low + edge / 2) / period)
        low, high = low + offset, high + offset
        if low > last + edge / 2:  # begins in a mirror image: seen in the mirror, it is upright
            sign, offset = -1, 2 * last + edge - offset
            low, high = 2 * last + edge - high, 2 * last + edge - low
        # What lies beyond one edge of the image is in it anyway, seen in the mirror there.
        if low < 0:
            low, high = 0, max(high, -edge - low)
        elif high > last:
            low, high = min(low, 2 * last + edge - high), last
    start = math.floor(min(max(low, 0), last))
    stop = math.ceil(min(max(high, 0), last)) + 1
    start -= start % 2  # ties go to even pixels
    return _Axis(slice(*target), slice(start, stop), sign, offset - start)


def _pixel_matrix(theta: Array, input_size: Size, output_size: Size, unit: Unit) -> Array:
    """Returns the matrix from target to source pixels, (3, 3), in exact fractions."""
    rows = [[Fraction(float(value)) for value in row] for row in theta]
    exact = np.array(rows if len(rows) == 3 else [*rows, [0, 0, 1]], dtype=object)
    to_source, from_target = to_pixels(input_size, unit), from_pixels(output_size, unit)
    return np.asarray(_matrix(to_source) @ exact @ _matrix(from_target))


def _matrix(scaling: Scaling) -> Array:
    """Returns the matrix (3, 3) that scales x and y and adds their offsets."""
    scale, offset = scaling
    rows = [[scale[0], 0, offset[0]], [0, scale[1], offset[1]], [0, 0, 1]]
    return np.array(rows, dtype=object)
