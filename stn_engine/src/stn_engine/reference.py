"""The oracle: NumPy float64, equation by equation, in the notation of the paper.

Imports nothing of the engine and takes plain strings, so that it can be wrong only on its own.

    U (N, C, H, W)   V, G (N, C, H', W')   grid, displacement (N, H', W', 2) as (x, y)
    theta (N, 2, 3), or (N, 3, 3) of a homography

N of either operand may be 1. Options, spelled as in ``WarpSpec``:

    interpolation   "nearest" | "bilinear" | "bicubic"
    padding         "zeros" | "border" | "reflection" | "fill"
    fill            one value or one per channel: outside under "fill", at non-finite points always
    coordinates     "normalized" | "pixel"
    align_corners   True | False
    subgradient     "right" | "zero"

Overflow and NaN are answers here, not accidents: section 5 says what they read.
"""

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
class Neighbour:
    """One of the pixels that a sample reads.

    Attributes:
        m, n: Row and column in U; may lie outside.
        weight: Its factor in equation (1), or that of cubic convolution.
        weight_by_x, weight_by_y: Derivatives of that factor, such as equations (2) and (3).
    """

    m: Array
    n: Array
    weight: Array
    weight_by_x: Array
    weight_by_y: Array


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
    theta: Array, output_size: tuple[int, int], coordinates: str, *, align_corners: bool
) -> Array:
    """Equation (5): the sampling grid."""
    y_t = target_coordinates(output_size[0], coordinates, align_corners=align_corners)[:, None]
    x_t = target_coordinates(output_size[1], coordinates, align_corners=align_corners)[None, :]
    t = theta[:, :, :, None, None]
    x = t[:, 0, 0] * x_t + t[:, 0, 1] * y_t + t[:, 0, 2]
    y = t[:, 1, 0] * x_t + t[:, 1, 1] * y_t + t[:, 1, 2]
    return np.stack((x, y), axis=-1)


def affine_generator_adjoint(grad_grid: Array, coordinates: str, *, align_corners: bool) -> Array:
    """Equations (6) and (7): the gradient of theta."""
    _, height, width, _ = grad_grid.shape
    y_t = target_coordinates(height, coordinates, align_corners=align_corners)[:, None]
    x_t = target_coordinates(width, coordinates, align_corners=align_corners)[None, :]
    grad_theta = np.zeros((len(grad_grid), 2, 3))
    for row in (0, 1):
        g = grad_grid[..., row]
        grad_theta[:, row, 0] = (x_t * g).sum(axis=(1, 2))
        grad_theta[:, row, 1] = (y_t * g).sum(axis=(1, 2))
        grad_theta[:, row, 2] = g.sum(axis=(1, 2))
    return grad_theta


@np.errstate(all="ignore")
def homography_generator(
    theta: Array, output_size: tuple[int, int], coordinates: str, *, align_corners: bool
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
    size = grad_grid.shape[1], grad_grid.shape[2]
    p = np.stack(
        np.broadcast_arrays(*_target_points(size, coordinates, align_corners=align_corners))
    )
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
    output_size: tuple[int, int],
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
    size = grad_grid.shape[1], grad_grid.shape[2]
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
    size: tuple[int, int],
    control_points: Sequence[Sequence[float]],
    coordinates: str,
    *,
    align_corners: bool,
) -> Array:
    """U(|p - c_k|) for every k, then 1, x_t and y_t, at every target point: (H', W', K + 3)."""
    x_t, y_t, one = np.broadcast_arrays(
        *_target_points(size, coordinates, align_corners=align_corners)
    )
    p = np.stack((x_t, y_t), axis=-1)
    radial = _thin_plate(p[:, :, None] - np.asarray(control_points, dtype=np.float64))
    return np.concatenate((radial, one[..., None], p), axis=2)


def _thin_plate(difference: Array) -> Array:
    """U(r) = r²·log r of the length r of a difference; U(0) = 0."""
    r = np.hypot(difference[..., 0], difference[..., 1])
    return r**2 * np.log(np.where(r > 0, r, 1.0))


def flow_generator(displacement: Array, coordinates: str, *, align_corners: bool) -> Array:
    """Target point plus displacement; the gradient passes through."""
    size = displacement.shape[1], displacement.shape[2]
    x_t, y_t, _ = np.broadcast_arrays(
        *_target_points(size, coordinates, align_corners=align_corners)
    )
    return np.stack((x_t, y_t), axis=-1) + displacement


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
    size: tuple[int, int], coordinates: str, *, align_corners: bool
) -> tuple[Array, Array, Array]:
    """(x_t, y_t, 1), each to be broadcast to (H', W')."""
    y_t = target_coordinates(size[0], coordinates, align_corners=align_corners)[:, None]
    x_t = target_coordinates(size[1], coordinates, align_corners=align_corners)[None, :]
    return x_t, y_t, np.ones((1, 1))


def _projection(
    theta: Array, size: tuple[int, int], coordinates: str, *, align_corners: bool
) -> tuple[Array, Array, Array]:
    """(X, Y, W) of every target point; NaN for a theta that is not finite."""
    x_t, y_t, _ = _target_points(size, coordinates, align_corners=align_corners)
    usable = np.isfinite(theta).all(axis=(1, 2), keepdims=True)
    t = np.where(usable, theta, np.nan)[..., None, None]
    X, Y, W = (t[:, row, 0] * x_t + t[:, row, 1] * y_t + t[:, row, 2] for row in range(3))
    return X, Y, W


@np.errstate(all="ignore")
def sampler(U: Array, grid: Array, options: Sampling) -> Array:
    """Equation (1): V."""
    batch = max(len(U), len(grid)) if len(U) and len(grid) else 0
    V = np.zeros((batch, U.shape[1], *grid.shape[1:3]))
    for b in range(batch):
        image, points = U[b % len(U)], grid[b % len(grid)]
        x, y = _read_coordinates(points, image, options)
        for neighbour in _neighbours(x, y, image, options):
            V[b] += neighbour.weight * _tap(image, neighbour, options)
        V[b] = np.where(_finite(points), V[b], _per_channel(options.fill))
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
    x, y = _read_coordinates(points, image, options)
    for neighbour in _neighbours(x, y, image, options):
        inside, m, n = _locate(image, neighbour)
        product = np.where(inside, g * neighbour.weight, 0.0)
        for channel in range(len(image)):
            np.add.at(grad[channel], (m, n), product[channel])
    return grad


def _grid_gradient(g: Array, image: Array, points: Array, options: Sampling) -> Array:
    """Equations (2) and (3), summed over channels, times the slopes of padding and units."""
    x, y = _read_coordinates(points, image, options)
    by_x, by_y = np.zeros_like(x), np.zeros_like(y)
    neighbours = list(_neighbours(x, y, image, options))
    # Derivatives of weights add up to 0: measured from one of the taps, equal taps have no slope,
    # not even by rounding.
    origin = _tap(image, neighbours[0], options)
    for neighbour in neighbours:
        tap = _tap(image, neighbour, options) - origin
        by_x += (g * tap).sum(axis=0) * neighbour.weight_by_x
        by_y += (g * tap).sum(axis=0) * neighbour.weight_by_y
    slope_x, slope_y = _read_slopes(points, image, options)
    return np.stack((by_x * slope_x, by_y * slope_y), axis=-1)


def _neighbours(x: Array, y: Array, image: Array, options: Sampling) -> Iterator[Neighbour]:
    """The pixels around (x, y) and their parts in equations (1) to (3)."""
    if options.interpolation == "bicubic":
        yield from _cubic_neighbours(x, y, image, options)
        return
    if options.interpolation == "nearest":
        flat = np.zeros_like(x)
        yield Neighbour(np.rint(y), np.rint(x), np.ones_like(x), flat, flat)
        return
    right = options.subgradient == "right"
    left, top = np.floor(x), np.floor(y)
    right_of_x, below_y = (left + 1, top + 1) if right else (np.ceil(x), np.ceil(y))
    dx, dy = right_of_x - x, below_y - y
    yield Neighbour(top, left, dy * dx, -dy, -dx)  # UL
    yield Neighbour(top, right_of_x, dy * (1 - dx), dy, -(1 - dx))  # UR
    yield Neighbour(below_y, left, (1 - dy) * dx, -(1 - dy), dx)  # LL
    yield Neighbour(below_y, right_of_x, (1 - dy) * (1 - dx), 1 - dy, 1 - dx)  # LR


def _cubic_neighbours(x: Array, y: Array, image: Array, options: Sampling) -> Iterator[Neighbour]:
    """The 4 x 4 pixels around (x, y); padding moves each of them, not the point."""
    _, height, width = image.shape
    for p in (-1, 0, 1, 2):
        m, _ = _pad(np.floor(y) + p, height, options)
        weight_y, weight_y_by_y = _keys(y - np.floor(y) - p)
        for q in (-1, 0, 1, 2):
            n, _ = _pad(np.floor(x) + q, width, options)
            weight_x, weight_x_by_x = _keys(x - np.floor(x) - q)
            yield Neighbour(
                m, n, weight_y * weight_x, weight_y * weight_x_by_x, weight_y_by_y * weight_x
            )


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


def _locate(image: Array, neighbour: Neighbour) -> tuple[Mask, Indices, Indices]:
    """Whether a neighbour is inside, and its row and column clipped to be readable anyway."""
    _, height, width = image.shape
    inside_y = (neighbour.m >= 0) & (neighbour.m < height)
    inside_x = (neighbour.n >= 0) & (neighbour.n < width)
    m = np.clip(neighbour.m, 0, height - 1).astype(np.int64)
    n = np.clip(neighbour.n, 0, width - 1).astype(np.int64)
    return inside_y & inside_x, m, n


def _tap(image: Array, neighbour: Neighbour, options: Sampling) -> Array:
    """U at a neighbour in every channel; the constant where the neighbour is outside."""
    inside, m, n = _locate(image, neighbour)
    outside = _per_channel(options.fill) if options.padding == "fill" else 0.0
    return np.where(inside, image[:, m, n], outside)


def _read_coordinates(points: Array, image: Array, options: Sampling) -> tuple[Array, Array]:
    """Source coordinates in pixels after padding; (0, 0) for a non-finite point."""
    _, height, width = image.shape
    x, y = np.where(_finite(points), np.moveaxis(points, -1, 0), 0.0)
    return _read_axis(x, width, options)[0], _read_axis(y, height, options)[0]


def _read_slopes(points: Array, image: Array, options: Sampling) -> tuple[Array, Array]:
    """Derivatives of ``_read_coordinates`` with respect to the grid."""
    _, height, width = image.shape
    x, y = np.where(_finite(points), np.moveaxis(points, -1, 0), 0.0)
    return _read_axis(x, width, options)[1], _read_axis(y, height, options)[1]


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
    return np.isfinite(points[..., 0]) & np.isfinite(points[..., 1])


def _per_channel(fill: Sequence[float]) -> Array:
    return np.asarray(fill, dtype=np.float64)[:, None, None]
