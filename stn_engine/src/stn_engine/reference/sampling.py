"""Sections 1 and 5: the sampler, and its gradients."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stn_engine.reference.arrays import Array, Indices, Mask
from stn_engine.reference.lattices import source_pixels, source_pixels_slope


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The options of one sampler run."""

    interpolation: str = "bilinear"
    padding: str = "zeros"
    fill: Sequence[float] = (0.0,)
    coordinates: str = "normalized"
    align_corners: bool = False
    subgradient: str = "right"


@dataclass(frozen=True)
class Tap:
    """A pixel that a sample reads along one axis.

    Attributes:
        index: Row or column in U, or plane in 3-D; may lie outside.
        weight: Its factor in equation (1), or that of cubic convolution.
        slope: Derivative of that factor by the coordinate along the axis.
    """

    index: Array
    weight: Array
    slope: Array


@dataclass(frozen=True)
class Neighbour:
    """A pixel that a sample reads: a tap on every axis, y before x, z before both."""

    taps: tuple[Tap, ...]

    @property
    def index(self) -> tuple[Array, ...]:
        """Row and column in U, in 3-D plane, row and column."""
        return tuple(tap.index for tap in self.taps)

    @property
    def weight(self) -> Array:
        """Weight of the pixel in equation (1): the product of its factors."""
        return np.asarray(math.prod(tap.weight for tap in self.taps))

    @property
    def weight_by(self) -> list[Array]:
        """Derivatives of the weight by x, y (and z), as in equations (2) and (3)."""
        return [
            np.asarray(math.prod(tap.slope if tap is along else tap.weight for tap in self.taps))
            for along in reversed(self.taps)
        ]


@np.errstate(all="ignore")
def sampler(U: Array, grid: Array, options: Sampling) -> Array:
    """Evaluates equation (1): V from U, float64 or labels, and source points."""
    # Of 0 and 1 items the broadcast is 0 items, which the larger one would not tell.
    batch = max(len(U), len(grid)) if len(U) and len(grid) else 0
    V = np.zeros((batch, U.shape[1], *grid.shape[1:-1]), U.dtype)
    for b in range(batch):
        image, points = U[b % len(U)], grid[b % len(grid)]
        for neighbour in _neighbours(points, image, options):
            value = _value(image, neighbour, options)
            V[b] += value if _holds_labels(image) else neighbour.weight * value
        # A NaN or infinite point reads the constant: its taps
        # were those of the origin, to be legal.
        V[b] = np.where(_finite(points), V[b], _per_channel(options.fill, image))
    return V


@np.errstate(all="ignore")
def sampler_adjoint(G: Array, U: Array, grid: Array, options: Sampling) -> tuple[Array, Array]:
    """Evaluates equations (2) to (4): the gradients of U and of the grid."""
    grad_U, grad_grid = np.zeros_like(U), np.zeros_like(grid)
    for b in range(len(G)):
        image, points = U[b % len(U)], grid[b % len(grid)]
        # A non-finite point has no gradient.
        g = np.where(_finite(points), G[b], 0.0)
        grad_U[b % len(U)] += _feature_map_gradient(g, image, points, options)
        grad_grid[b % len(grid)] += _grid_gradient(g, image, points, options)
    return grad_U, grad_grid


def _feature_map_gradient(g: Array, image: Array, points: Array, options: Sampling) -> Array:
    """Evaluates equation (4): adds G·∂V/∂U at every neighbour, in one pass over the grid."""
    grad = np.zeros_like(image)
    for neighbour in _neighbours(points, image, options):
        inside, index = _locate(image, neighbour)
        # Selected, not multiplied by 0: an infinite gradient times 0 would be NaN.
        product = np.where(inside, g * neighbour.weight, 0.0)
        for channel in range(len(image)):
            # Unlike `grad[index] +=` this adds every product, also where points share a pixel.
            np.add.at(grad[channel], index, product[channel])
    return grad


def _grid_gradient(g: Array, image: Array, points: Array, options: Sampling) -> Array:
    """Equations (2) and (3), summed over channels, times the slopes of padding and units."""
    by = np.zeros_like(points)
    neighbours = list(_neighbours(points, image, options))
    # Derivatives of weights add up to 0: measured from one of the taps, equal taps have no slope,
    # not even by rounding.
    origin = _value(image, neighbours[0], options)
    for neighbour in neighbours:
        contrast = _value(image, neighbour, options) - origin
        by += (g * contrast).sum(axis=0)[..., None] * np.stack(neighbour.weight_by, axis=-1)
    slopes = [slope for _, slope in _read_axes(points, image, options)]
    return by * np.stack(slopes, axis=-1)


def _neighbours(points: Array, image: Array, options: Sampling) -> Iterator[Neighbour]:
    """Yields the pixels around each point, for equation (1) in its order: UL, UR, LL, LR."""
    taps_by_axis = [
        _taps(x, size, options)
        for (x, _), size in zip(_read_axes(points, image, options), _sizes(image), strict=True)
    ]
    for taps in itertools.product(*reversed(taps_by_axis)):
        yield Neighbour(taps)


def _taps(x: Array, size: int, options: Sampling) -> list[Tap]:
    """Returns the pixels around x along one axis: factors dx and 1 - dx of equation (1)."""
    if options.interpolation == "bicubic":
        return _cubic_taps(x, size, options)
    one = np.ones_like(x)
    if options.interpolation == "nearest":
        # rint rounds half to even, as nearbyint in torch's sampler.
        return [Tap(np.rint(x), one, 0 * one)]
    floor = np.floor(x)
    # At integer x both taps are one pixel with slope 0, unless the right-hand slope is wanted.
    ceil = floor + 1 if options.subgradient == "right" else np.ceil(x)
    dx = ceil - x
    return [Tap(floor, dx, -one), Tap(ceil, 1 - dx, one)]


def _cubic_taps(x: Array, size: int, options: Sampling) -> list[Tap]:
    """Returns the four pixels around x along one axis; padding moves each, not the point."""
    floor = np.floor(x)
    return [Tap(_pad(floor + q, size, options)[0], *_keys(x - floor - q)) for q in (-1, 0, 1, 2)]


def _keys(distance: Array) -> tuple[Array, Array]:
    """Evaluates Keys' cubic convolution kernel with a = -0.75, and its derivative."""
    # torch and OpenCV use -0.75; Keys himself recommends -0.5.
    a, s = -0.75, np.abs(distance)
    near = (a + 2) * s**3 - (a + 3) * s**2 + 1
    far = a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
    near_slope = 3 * (a + 2) * s**2 - 2 * (a + 3) * s
    far_slope = 3 * a * s**2 - 10 * a * s + 8 * a
    weight = np.where(s <= 1, near, np.where(s < 2, far, 0.0))
    slope = np.where(s <= 1, near_slope, np.where(s < 2, far_slope, 0.0))
    return weight, slope * np.sign(distance)


def _locate(image: Array, neighbour: Neighbour) -> tuple[Mask, tuple[Indices, ...]]:
    """Returns whether a neighbour is inside, and its index clipped to be readable anyway."""
    axes = list(zip(neighbour.index, image.shape[1:], strict=True))
    inside = np.logical_and.reduce([(m >= 0) & (m < size) for m, size in axes])
    return inside, tuple(np.clip(m, 0, size - 1).astype(np.int64) for m, size in axes)


def _value(image: Array, neighbour: Neighbour, options: Sampling) -> Array:
    """Returns U at a neighbour in every channel; the constant where the neighbour is outside."""
    inside, index = _locate(image, neighbour)
    fill = options.fill if options.padding == "fill" else (0.0,)
    outside = _per_channel(fill, image)
    read = image[:, *index]  # type: ignore[arg-type]  # the stubs know no starred index
    return np.where(inside, read, outside)


def _sizes(image: Array) -> tuple[int, ...]:
    """Returns (W, H), in 3-D (W, H, D): in the order of x, y, z."""
    return image.shape[:0:-1]


def _read_axes(points: Array, image: Array, options: Sampling) -> list[tuple[Array, Array]]:
    """Returns ``_read_axis`` of x, y (and z); of the origin for a non-finite point."""
    readable = np.where(_finite(points), np.moveaxis(points, -1, 0), 0.0)
    return [_read_axis(x, n, options) for x, n in zip(readable, _sizes(image), strict=True)]


def _read_axis(x: Array, size: int, options: Sampling) -> tuple[Array, Array]:
    """Returns the coordinate that is read, and its derivative by x (sections 3 and 5)."""
    unit = options.coordinates
    x_px = source_pixels(x, size, unit, align_corners=options.align_corners)
    slope = source_pixels_slope(size, unit, align_corners=options.align_corners)
    if options.interpolation == "bicubic":
        return x_px, np.full_like(x_px, slope)
    # Bilinear and nearest pad the point, whose slope counts; bicubic pads each of its pixels.
    x_px, sign = _pad(x_px, size, options)
    return x_px, slope * sign


def _pad(x_px: Array, size: int, options: Sampling) -> tuple[Array, Array]:
    """Returns a coordinate as the padding moves it, and the derivative of that (section 5)."""
    slope = np.ones_like(x_px)
    if options.padding == "reflection":
        # Mirrors stand at the corners of the unit: at pixel edges, or at outermost pixel centres.
        edges = options.coordinates == "normalized" and not options.align_corners
        low, high = (-0.5, size - 0.5) if edges else (0.0, size - 1.0)
        x_px, slope = _reflect(x_px, low, high)
    if options.padding in {"border", "reflection"}:
        # 0 also on the border itself, as in torch: its clip passes a gradient strictly inside only.
        slope = np.where((x_px <= 0) | (x_px >= size - 1), 0.0, slope)
        x_px = np.clip(x_px, 0, size - 1)
    return x_px, slope


def _reflect(x: Array, low: float, high: float) -> tuple[Array, Array]:
    """Mirrors x at low and at high until it lies between them; derivative 1 or -1."""
    span = high - low
    # One pixel mirrors everything onto itself; fmod by 0 would be NaN.
    if span == 0:
        return np.full_like(x, low), np.zeros_like(x)
    distance = np.abs(x - low)
    sign = np.where(x < low, -1.0, 1.0)
    beyond = np.fmod(distance, 2 * span)  # the pattern repeats every two spans
    on_way_back = beyond >= span
    mirrored = low + np.where(on_way_back, 2 * span - beyond, beyond)
    return mirrored, np.where(on_way_back, -sign, sign)


def _finite(points: Array) -> Mask:
    return np.asarray(np.isfinite(points).all(axis=-1))


def _per_channel(fill: Sequence[float], image: Array) -> Array:
    """Returns a value per channel, to be broadcast over pixels."""
    values = [_label(one, image.dtype) for one in fill] if _holds_labels(image) else fill
    return np.asarray(values, image.dtype).reshape(-1, *[1] * (image.ndim - 1))


def _holds_labels(image: Array) -> bool:
    return image.dtype.kind != "f"


def _label(value: float, dtype: np.dtype[Any]) -> int:
    """Returns a constant among labels: rounded half to even, saturated."""
    limits = np.iinfo(np.uint8 if dtype == np.bool_ else dtype)
    most = 1 if dtype == np.bool_ else int(limits.max)
    return min(max(round(value), int(limits.min)), most)
