"""The oracle: NumPy float64, equation by equation, in the notation of the paper.

Imports nothing of the engine and takes plain strings, so that it can be wrong only on its own.

    U (N, C, H, W)   V, G (N, C, H', W')   grid, displacement (N, H', W', 2) as (x, y)
    theta (N, 2, 3), or (N, 3, 3) of a homography

and in 3-D, where each equation gets one more term or factor,

    U (N, C, D, H, W)   V, G (N, C, D', H', W')   grid, displacement (N, D', H', W', 3) as (x, y, z)
    theta (N, 3, 4)

N of either operand may be 1. Options, spelled as in ``WarpSpec``:

    interpolation   "nearest" | "bilinear" | "bicubic"
    padding         "zeros" | "border" | "reflection" | "fill"
    fill            one value or one per channel: outside under "fill", at non-finite points always
    coordinates     "normalized" | "pixel"
    align_corners   True | False
    subgradient     "right" | "zero"

Overflow and NaN are answers here, not accidents: section 5 says what they read.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int64]


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
    """One of the pixels that a sample reads along one axis.

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
    """One of the pixels that a sample reads: a tap on every axis, y before x, z before both."""

    taps: tuple[Tap, ...]

    @property
    def index(self) -> tuple[Array, ...]:
        """Row and column in U, in 3-D plane, row and column."""
        return tuple(tap.index for tap in self.taps)

    @property
    def weight(self) -> Array:
        """Its part in equation (1): the product of its factors."""
        return np.asarray(math.prod(tap.weight for tap in self.taps))

    @property
    def weight_by(self) -> list[Array]:
        """Derivatives of the weight by x, y (and z): its parts in equations (2) and (3)."""
        return [
            np.asarray(math.prod(tap.slope if tap is along else tap.weight for tap in self.taps))
            for along in reversed(self.taps)
        ]


def target_coordinates(size: int, coordinates: str, *, align_corners: bool) -> Array:
    """Section 3, second column: coordinate of each target pixel along one axis."""
    j = np.arange(size, dtype=np.float64)
    if coordinates == "pixel":
        return j
    if not align_corners:
        return (2 * j + 1) / size - 1
    return 2 * j / (size - 1) - 1 if size > 1 else np.zeros(size)


def source_pixels(x: Array, size: int, coordinates: str, *, align_corners: bool) -> Array:
    """Section 3, third column: source coordinate in pixels along one axis."""
    if coordinates == "pixel":
        return x
    return (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2


def source_pixels_slope(size: int, coordinates: str, *, align_corners: bool) -> float:
    """Derivative of ``source_pixels``."""
    if coordinates == "pixel":
        return 1.0
    return (size - 1) / 2 if align_corners else size / 2


@np.errstate(all="ignore")
def affine_generator(
    theta: Array, output_size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> Array:
    """Equation (5): the sampling grid."""
    p = _target_points(output_size, coordinates, align_corners=align_corners)
    return np.stack([_row_times(theta[:, row], p) for row in range(theta.shape[1])], axis=-1)


def affine_generator_adjoint(grad_grid: Array, coordinates: str, *, align_corners: bool) -> Array:
    """Equations (6) and (7): the gradient of theta."""
    *size, dims = grad_grid.shape[1:]
    p = _target_points(tuple(size), coordinates, align_corners=align_corners)
    grad_theta = np.zeros((len(grad_grid), dims, dims + 1))
    for row, column in np.ndindex(dims, dims + 1):
        products = p[column] * grad_grid[..., row]
        grad_theta[:, row, column] = products.sum(axis=tuple(range(1, dims + 1)))
    return grad_theta


@np.errstate(all="ignore")
def homography_generator(
    theta: Array, output_size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> Array:
    """(X, Y, W) = theta·(x_t, y_t, 1), x = X/W, y = Y/W."""
    X, Y, W = _projection(theta, output_size, coordinates, align_corners=align_corners)
    return np.stack((X / W, Y / W), axis=-1)


@np.errstate(all="ignore")
def homography_generator_adjoint(
    grad_grid: Array, theta: Array, coordinates: str, *, align_corners: bool
) -> Array:
    """Section 4: the sums of gx·p/W, gy·p/W and -(gx·x + gy·y)·p/W; nothing where x is not finite.

    p = (x_t, y_t, 1).
    """
    size = grad_grid.shape[1:-1]
    p = np.stack(_target_points(size, coordinates, align_corners=align_corners))
    X, Y, W = _projection(theta, size, coordinates, align_corners=align_corners)
    x, y = X / W, Y / W
    finite = np.isfinite(x) & np.isfinite(y)
    gx, gy = grad_grid[..., 0], grad_grid[..., 1]
    rows = (gx / W, gy / W, -(gx * x + gy * y) / W)
    terms = np.stack([np.where(finite, row, 0.0) for row in rows], axis=1)
    grad_theta: Array = (terms[:, :, None] * p).sum(axis=(3, 4))
    return grad_theta


@np.errstate(all="ignore")
def thin_plate_spline_generator(
    points: Array,
    control_points: Sequence[Sequence[float]],
    regularization: float,
    output_size: tuple[int, ...],
    coordinates: str,
    *,
    align_corners: bool,
) -> Array:
    """Section 4: solve for the coefficients of every item, then evaluate at the target points."""
    E = _spline_terms(output_size, control_points, coordinates, align_corners=align_corners)
    L = _spline_system(control_points, regularization)
    Y = np.concatenate((points, np.zeros((len(points), 3, 2))), axis=1)
    coefficients = np.linalg.solve(L[None], Y)
    return np.asarray(np.einsum("ijk,nkc->nijc", E, coefficients))


def thin_plate_spline_generator_adjoint(
    grad_grid: Array,
    control_points: Sequence[Sequence[float]],
    regularization: float,
    coordinates: str,
    *,
    align_corners: bool,
) -> Array:
    """The gradient of the points: the transpose of evaluation, then that of the solution."""
    size = grad_grid.shape[1:-1]
    E = _spline_terms(size, control_points, coordinates, align_corners=align_corners)
    L = _spline_system(control_points, regularization)
    grad_coefficients = np.einsum("ijk,nijc->nkc", E, grad_grid)
    return np.asarray(np.linalg.solve(L.T[None], grad_coefficients)[:, : len(control_points)])


def _spline_system(control_points: Sequence[Sequence[float]], regularization: float) -> Array:
    """The symmetric matrix of the spline, (K + 3, K + 3)."""
    c = np.asarray(control_points, dtype=np.float64)
    K = len(c)
    L = np.zeros((K + 3, K + 3))
    L[:K, :K] = _thin_plate(c[:, None] - c) + regularization * np.eye(K)
    L[:K, K] = L[K, :K] = 1
    L[:K, K + 1 :] = c
    L[K + 1 :, :K] = c.T
    return L


def _spline_terms(
    size: tuple[int, ...],
    control_points: Sequence[Sequence[float]],
    coordinates: str,
    *,
    align_corners: bool,
) -> Array:
    """U(|p - c_k|) for every k, then 1, x_t and y_t, at every target point: (H', W', K + 3)."""
    x_t, y_t, one = _target_points(size, coordinates, align_corners=align_corners)
    p = np.stack((x_t, y_t), axis=-1)
    radial = _thin_plate(p[:, :, None] - np.asarray(control_points, dtype=np.float64))
    return np.concatenate((radial, one[..., None], p), axis=2)


def _thin_plate(difference: Array) -> Array:
    """U(r) = r²·log r of the length r of a difference; U(0) = 0."""
    r = np.hypot(difference[..., 0], difference[..., 1])
    return r**2 * np.log(np.where(r > 0, r, 1.0))


def flow_generator(displacement: Array, coordinates: str, *, align_corners: bool) -> Array:
    """Target point plus displacement; the gradient passes through."""
    size = displacement.shape[1:-1]
    *p, _ = _target_points(size, coordinates, align_corners=align_corners)
    return np.stack(p, axis=-1) + displacement


def attention_theta(parameters: Array) -> Array:
    """The theta [[s, 0, t_x], [0, s, t_y]] of (s, t_x, t_y)."""
    s, t_x, t_y = parameters.T
    return _theta(s, 0 * s, t_x, 0 * s, s, t_y)


def attention_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of (s, t_x, t_y)."""
    del parameters
    by_1, _, by_5, _, by_4, by_6 = _entries(grad_theta)
    return np.stack((by_1 + by_4, by_5, by_6), axis=-1)


@np.errstate(all="ignore")
def similarity_theta(parameters: Array) -> Array:
    """The theta [[s·cos phi, -s·sin phi, t_x], [s·sin phi, s·cos phi, t_y]]."""
    s, phi, t_x, t_y = parameters.T
    return _theta(s * np.cos(phi), -s * np.sin(phi), t_x, s * np.sin(phi), s * np.cos(phi), t_y)


@np.errstate(all="ignore")
def similarity_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of (s, phi, t_x, t_y)."""
    s, phi, _, _ = parameters.T
    by_1, by_2, by_5, by_3, by_4, by_6 = _entries(grad_theta)
    by_s = (by_1 + by_4) * np.cos(phi) + (by_3 - by_2) * np.sin(phi)
    by_phi = (by_3 - by_2) * s * np.cos(phi) - (by_1 + by_4) * s * np.sin(phi)
    return np.stack((by_s, by_phi, by_5, by_6), axis=-1)


def translation_theta(parameters: Array) -> Array:
    """The theta [[1, 0, t_x], [0, 1, t_y]]."""
    t_x, t_y = parameters.T
    one, zero = np.ones_like(t_x), np.zeros_like(t_x)
    return _theta(one, zero, t_x, zero, one, t_y)


def translation_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of (t_x, t_y)."""
    del parameters
    return grad_theta[:, :, 2]


@np.errstate(all="ignore")
def rotation_theta(parameters: Array) -> Array:
    """The theta [[cos phi, -sin phi, 0], [sin phi, cos phi, 0]]."""
    (phi,) = parameters.T
    zero = np.zeros_like(phi)
    return _theta(np.cos(phi), -np.sin(phi), zero, np.sin(phi), np.cos(phi), zero)


@np.errstate(all="ignore")
def rotation_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of phi."""
    (phi,) = parameters.T
    by_1, by_2, _, by_3, by_4, _ = _entries(grad_theta)
    by_phi: Array = (by_3 - by_2) * np.cos(phi) - (by_1 + by_4) * np.sin(phi)
    return by_phi[:, None]


def _theta(*entries: Array) -> Array:
    """A theta (N, 2, 3) from its six entries, row by row."""
    return np.stack(entries, axis=-1).reshape(-1, 2, 3)


def _entries(theta: Array) -> Array:
    """The six entries of theta, row by row."""
    return theta.reshape(-1, 6).T


def _target_points(
    size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> tuple[Array, ...]:
    """(x_t, y_t, 1) of every target pixel, in 3-D (x_t, y_t, z_t, 1); each as large as V."""
    axes = [target_coordinates(n, coordinates, align_corners=align_corners) for n in size]
    return *np.meshgrid(*axes, indexing="ij")[::-1], np.ones(size)


def _row_times(row: Array, p: tuple[Array, ...]) -> Array:
    """A row of every item's matrix, (N, len(p)), times every target point."""
    return np.asarray(sum(np.multiply.outer(t, p_k) for t, p_k in zip(row.T, p, strict=True)))


def _projection(
    theta: Array, size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> tuple[Array, Array, Array]:
    """(X, Y, W) of every target point; NaN for a theta that is not finite."""
    p = _target_points(size, coordinates, align_corners=align_corners)
    usable = np.isfinite(theta).all(axis=(1, 2), keepdims=True)
    t = np.where(usable, theta, np.nan)
    X, Y, W = (_row_times(t[:, row], p) for row in range(3))
    return X, Y, W


@np.errstate(all="ignore")
def sampler(U: Array, grid: Array, options: Sampling) -> Array:
    """Equation (1): V."""
    batch = max(len(U), len(grid)) if len(U) and len(grid) else 0
    V = np.zeros((batch, U.shape[1], *grid.shape[1:-1]))
    for b in range(batch):
        image, points = U[b % len(U)], grid[b % len(grid)]
        for neighbour in _neighbours(points, image, options):
            V[b] += neighbour.weight * _value(image, neighbour, options)
        V[b] = np.where(_finite(points), V[b], _per_channel(options.fill, image))
    return V


@np.errstate(all="ignore")
def sampler_adjoint(G: Array, U: Array, grid: Array, options: Sampling) -> tuple[Array, Array]:
    """Equations (2) to (4): the gradients of U and of the grid."""
    grad_U, grad_grid = np.zeros_like(U), np.zeros_like(grid)
    for b in range(len(G)):
        image, points = U[b % len(U)], grid[b % len(grid)]
        # A non-finite point has no gradient.
        g = np.where(_finite(points), G[b], 0.0)
        grad_U[b % len(U)] += _feature_map_gradient(g, image, points, options)
        grad_grid[b % len(grid)] += _grid_gradient(g, image, points, options)
    return grad_U, grad_grid


def _feature_map_gradient(g: Array, image: Array, points: Array, options: Sampling) -> Array:
    """Equation (4): walk the grid once and add G·∂V/∂U at every neighbour."""
    grad = np.zeros_like(image)
    for neighbour in _neighbours(points, image, options):
        inside, index = _locate(image, neighbour)
        product = np.where(inside, g * neighbour.weight, 0.0)
        for channel in range(len(image)):
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
    """The pixels around each point, for equation (1) in its order: UL, UR, LL, LR."""
    taps_by_axis = [
        _taps(x, size, options)
        for (x, _), size in zip(_read_axes(points, image, options), _sizes(image), strict=True)
    ]
    for taps in itertools.product(*reversed(taps_by_axis)):
        yield Neighbour(taps)


def _taps(x: Array, size: int, options: Sampling) -> list[Tap]:
    """The pixels around x along one axis: factors dx and 1 - dx of equation (1), dy along y."""
    if options.interpolation == "bicubic":
        return _cubic_taps(x, size, options)
    one = np.ones_like(x)
    if options.interpolation == "nearest":
        return [Tap(np.rint(x), one, 0 * one)]
    floor = np.floor(x)
    ceil = floor + 1 if options.subgradient == "right" else np.ceil(x)
    dx = ceil - x
    return [Tap(floor, dx, -one), Tap(ceil, 1 - dx, one)]


def _cubic_taps(x: Array, size: int, options: Sampling) -> list[Tap]:
    """The four pixels around x along one axis; padding moves each of them, not the point."""
    floor = np.floor(x)
    return [Tap(_pad(floor + q, size, options)[0], *_keys(x - floor - q)) for q in (-1, 0, 1, 2)]


def _keys(distance: Array) -> tuple[Array, Array]:
    """Keys' cubic convolution kernel with a = -0.75, and its derivative."""
    a, s = -0.75, np.abs(distance)
    near = (a + 2) * s**3 - (a + 3) * s**2 + 1
    far = a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
    near_slope = 3 * (a + 2) * s**2 - 2 * (a + 3) * s
    far_slope = 3 * a * s**2 - 10 * a * s + 8 * a
    weight = np.where(s <= 1, near, np.where(s < 2, far, 0.0))
    slope = np.where(s <= 1, near_slope, np.where(s < 2, far_slope, 0.0))
    return weight, slope * np.sign(distance)


def _locate(image: Array, neighbour: Neighbour) -> tuple[Mask, tuple[Indices, ...]]:
    """Whether a neighbour is inside, and its index clipped to be readable anyway."""
    axes = list(zip(neighbour.index, image.shape[1:], strict=True))
    inside = np.logical_and.reduce([(m >= 0) & (m < size) for m, size in axes])
    return inside, tuple(np.clip(m, 0, size - 1).astype(np.int64) for m, size in axes)


def _value(image: Array, neighbour: Neighbour, options: Sampling) -> Array:
    """U at a neighbour in every channel; the constant where the neighbour is outside."""
    inside, index = _locate(image, neighbour)
    outside = _per_channel(options.fill, image) if options.padding == "fill" else 0.0
    read = image[:, *index]  # type: ignore[arg-type]  # the stubs know no starred index
    return np.where(inside, read, outside)


def _sizes(image: Array) -> tuple[int, ...]:
    """(W, H), in 3-D (W, H, D): in the order of x, y, z."""
    return image.shape[:0:-1]


def _read_axes(points: Array, image: Array, options: Sampling) -> list[tuple[Array, Array]]:
    """``_read_axis`` of x, y (and z); of the origin for a non-finite point."""
    readable = np.where(_finite(points), np.moveaxis(points, -1, 0), 0.0)
    return [_read_axis(x, n, options) for x, n in zip(readable, _sizes(image), strict=True)]


def _read_axis(x: Array, size: int, options: Sampling) -> tuple[Array, Array]:
    """Section 3, then section 5: the coordinate that is read, and its derivative by x."""
    unit = options.coordinates
    x_px = source_pixels(x, size, unit, align_corners=options.align_corners)
    slope = source_pixels_slope(size, unit, align_corners=options.align_corners)
    if options.interpolation == "bicubic":
        return x_px, np.full_like(x_px, slope)
    x_px, sign = _pad(x_px, size, options)
    return x_px, slope * sign


def _pad(x_px: Array, size: int, options: Sampling) -> tuple[Array, Array]:
    """Section 5: a coordinate as the padding moves it, and the derivative of that."""
    slope = np.ones_like(x_px)
    if options.padding == "reflection":
        edges = options.coordinates == "normalized" and not options.align_corners
        low, high = (-0.5, size - 0.5) if edges else (0.0, size - 1.0)
        x_px, slope = _reflect(x_px, low, high)
    if options.padding in {"border", "reflection"}:
        slope = np.where((x_px <= 0) | (x_px >= size - 1), 0.0, slope)
        x_px = np.clip(x_px, 0, size - 1)
    return x_px, slope


def _reflect(x: Array, low: float, high: float) -> tuple[Array, Array]:
    """Mirror x at low and at high until it lies between them; derivative 1 or -1."""
    span = high - low
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
    """A value per channel, to be broadcast over pixels."""
    return np.asarray(fill, dtype=np.float64).reshape(-1, *[1] * (image.ndim - 1))
