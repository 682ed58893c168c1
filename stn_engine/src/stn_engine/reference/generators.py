"""Sections 2 and 4: sampling grids, and the gradients of what they are made from."""

from collections.abc import Sequence

import numpy as np

from stn_engine.reference.arrays import Array
from stn_engine.reference.lattices import target_points


@np.errstate(all="ignore")
def affine_generator(
    theta: Array, output_size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> Array:
    """Evaluates equation (5): the sampling grid."""
    p = target_points(output_size, coordinates, align_corners=align_corners)
    return np.stack([_row_times(theta[:, row], p) for row in range(theta.shape[1])], axis=-1)


def affine_generator_adjoint(grad_grid: Array, coordinates: str, *, align_corners: bool) -> Array:
    """Returns the gradient of theta by equations (6) and (7)."""
    *size, dims = grad_grid.shape[1:]
    p = target_points(tuple(size), coordinates, align_corners=align_corners)
    grad_theta = np.zeros((len(grad_grid), dims, dims + 1))
    for row, column in np.ndindex(dims, dims + 1):
        products = p[column] * grad_grid[..., row]
        grad_theta[:, row, column] = products.sum(axis=tuple(range(1, dims + 1)))
    return grad_theta


@np.errstate(all="ignore")
def homography_generator(
    theta: Array, output_size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> Array:
    """Computes (X, Y, W) = theta·(x_t, y_t, 1), x = X/W, y = Y/W."""
    X, Y, W = _projection(theta, output_size, coordinates, align_corners=align_corners)
    return np.stack((X / W, Y / W), axis=-1)


@np.errstate(all="ignore")
def homography_generator_adjoint(
    grad_grid: Array, theta: Array, coordinates: str, *, align_corners: bool
) -> Array:
    """Sums gx·p/W, gy·p/W and -(gx·x + gy·y)·p/W of finite points (section 4).

    p = (x_t, y_t, 1).
    """
    size = grad_grid.shape[1:-1]
    p = np.stack(target_points(size, coordinates, align_corners=align_corners))
    X, Y, W = _projection(theta, size, coordinates, align_corners=align_corners)
    x, y = X / W, Y / W
    # Points on the horizon (W = 0) read the constant, so nothing depends on theta there.
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
    """Solves for the coefficients of every item, then evaluates them (section 4)."""
    E = _spline_terms(output_size, control_points, coordinates, align_corners=align_corners)
    L = _spline_system(control_points, regularization)
    # The three zeros are side conditions: the radial part has no affine component of its own.
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
    """Returns the gradient of the points: evaluation transposed, then solution."""
    size = grad_grid.shape[1:-1]
    E = _spline_terms(size, control_points, coordinates, align_corners=align_corners)
    L = _spline_system(control_points, regularization)
    grad_coefficients = np.einsum("ijk,nijc->nkc", E, grad_grid)
    # Only the first K right-hand sides are points; the gradient of the zeros is dropped.
    return np.asarray(np.linalg.solve(L.T[None], grad_coefficients)[:, : len(control_points)])


def _spline_system(control_points: Sequence[Sequence[float]], regularization: float) -> Array:
    """Returns the symmetric matrix of the spline, (K + 3, K + 3)."""
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
    """Returns U(|p - c_k|) for every k, then 1, x_t and y_t: (H', W', K + 3)."""
    x_t, y_t, one = target_points(size, coordinates, align_corners=align_corners)
    p = np.stack((x_t, y_t), axis=-1)
    radial = _thin_plate(p[:, :, None] - np.asarray(control_points, dtype=np.float64))
    return np.concatenate((radial, one[..., None], p), axis=2)


def _thin_plate(difference: Array) -> Array:
    """Returns U(r) = r²·log r of the length r of a difference; U(0) = 0."""
    r = np.hypot(difference[..., 0], difference[..., 1])
    # The limit at 0 is 0: log of 1 gives it without a NaN from 0 times infinity.
    return r**2 * np.log(np.where(r > 0, r, 1.0))


def flow_generator(displacement: Array, coordinates: str, *, align_corners: bool) -> Array:
    """Returns target points plus displacements; the gradient passes through."""
    size = displacement.shape[1:-1]
    *p, _ = target_points(size, coordinates, align_corners=align_corners)
    return np.stack(p, axis=-1) + displacement


def _row_times(row: Array, p: tuple[Array, ...]) -> Array:
    """Multiplies a row of every item's matrix, (N, len(p)), by every target point."""
    return np.asarray(sum(np.multiply.outer(t, p_k) for t, p_k in zip(row.T, p, strict=True)))


def _projection(
    theta: Array, size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> tuple[Array, Array, Array]:
    """Returns (X, Y, W) of every target point; NaN for a theta that is not finite."""
    p = target_points(size, coordinates, align_corners=align_corners)
    usable = np.isfinite(theta).all(axis=(1, 2), keepdims=True)
    t = np.where(usable, theta, np.nan)
    X, Y, W = (_row_times(t[:, row], p) for row in range(3))
    return X, Y, W
