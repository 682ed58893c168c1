"""The transform that takes given points to given points, exactly or by least squares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._errors import invalid
from stn_client._transforms import Affine, Homography, ThinPlateSpline
from stn_client.geometry._arguments import TransformArguments, arguments, choice, numbers

Points = NDArray[np.float64]
"""(K, d)."""
Kind = Literal["rigid", "similarity", "affine", "homography", "spline"]

_NEARLY = 1e-6
"""Relative to the spread of points: what is flatter is a line, or a plane, but for its rounding."""

_REFINEMENTS = 100
"""More steps than Gauss and Newton take to the last digit."""


def from_points(
    source: ArrayLike, target: ArrayLike, kind: Kind, *, regularization: float = 0.0
) -> TransformArguments[Any]:
    """Returns the transform under which every target point reads the source point beside it.

    As `cv2.getAffineTransform(source, target)` and `cv2.getPerspectiveTransform(source, target)`
    say where the content goes. Of more points than the kind needs, least squares: the sum of
    squared distances, in the feature map, between where target points read and their source points
    is least. A spline takes any number of points, exactly unless `regularization` says otherwise.

    Kinds:
        "rigid"        turn and shift; of at least 2 points, in volumes 3
        "similarity"   turn, shift and one scale; of 2 points, in volumes 3
        "affine"       any matrix; of 3 points, in volumes 4
        "homography"   projective, of images only; of 4 points
        "spline"       the smoothest map, of images only; of 3 points

    Shapes:
        source    (K, 2) or (K, 3), or N of them   points (x, y[, z]) of the feature map, in pixels;
                                                   OpenCV's (K, 1, 2) are K, too
        target    as source, (K, 2) for splines    points of the output, in pixels
        returns   an `Affine` (N, 2, 3) or (N, 3, 4), a `Homography` (N, 3, 3) or a
                  `ThinPlateSpline` (N, K, 2), float64, in pixels

    Args:
        source: Where to read.
        target: Where it is shown.
        kind: See above.
        regularization: That of a `ThinPlateSpline`; 0 for all others.

    Raises:
        InvalidRequestError: The points differ in number, are too few, not finite, or do not
            determine the transform: all on one line, or two of them the same.

    Example:
        >>> corners = [[112, 40], [590, 71], [555, 444], [80, 402]]
        >>> sheet = from_points(corners, [[0, 0], [419, 0], [419, 296], [0, 296]], "homography")
        >>> v = stn.warp(u, **sheet, output_size=(297, 420))
    """
    choice("kind", kind, tuple(_LEAST))
    read, shown = _checked("source", source), _checked("target", target)
    if read.shape[1:] != shown.shape[1:]:
        raise invalid("target", f"expected {read.shape[1:]} as source, got {shown.shape[1:]}.")
    if len(read) != len(shown) and 1 not in {len(read), len(shown)}:
        raise invalid("target", f"expected N = 1, or {len(read)} as source, got {len(shown)}.")
    count, dims = read.shape[1:]
    if dims == 3 and kind in {"homography", "spline"}:
        raise invalid("kind", "expected rigid, similarity or affine for points (x, y, z).")
    needed = _LEAST[kind] + (dims == 3)
    if count < needed:
        raise invalid("source", f"expected at least {needed} points for {kind}, got {count}.")
    if kind == "spline":
        return arguments(_spline(read, shown, regularization), "pixel")
    if regularization:
        raise invalid("regularization", f"expected 0 unless the kind is spline, got {kind}.")
    batch = max(len(read), len(shown))
    fit = _FITS[kind]
    matrices = np.stack([fit(read[n % len(read)], shown[n % len(shown)]) for n in range(batch)])
    if kind == "homography":
        return arguments(Homography(matrices), "pixel")
    return arguments(Affine(matrices[:, :-1]), "pixel")


def _checked(name: str, points: ArrayLike) -> NDArray[np.float64]:
    """Returns points of shape (N, K, d), checked."""
    given = numbers(name, points)
    if given.ndim not in {2, 3} or given.shape[-1] not in {2, 3} or not len(given):
        raise invalid(name, f"expected (K, 2) or (K, 3), or N of them, got {given.shape}.")
    if given.ndim == 3 and given.shape[1] == 1:  # no kind is found by one point
        return given.swapaxes(0, 1)
    return given if given.ndim == 3 else given[None]


def _centred(name: str, points: Points) -> tuple[Points, NDArray[np.float64]]:
    """Returns points about their mean in units of their spread, and the matrix of that change."""
    mean, dims = points.mean(axis=0), points.shape[1]
    spread = np.sqrt(((points - mean) ** 2).sum(axis=1).mean())
    if not spread > np.finfo(np.float64).eps * abs(points).max():
        raise invalid(name, f"expected different points, got {len(points)} times {mean.tolist()}.")
    matrix = np.diag([1 / spread] * dims + [1.0])
    matrix[:-1, -1] = -mean / spread
    return (points - mean) / spread, matrix


def _check_full(target: Points) -> None:
    """Refuses points, about their mean and in units of their spread, that leave a direction out."""
    if np.linalg.svd(target, compute_uv=False)[-1] <= _NEARLY:
        where = "line" if target.shape[1] == 2 else "plane"
        raise invalid("target", f"expected points that are not all on one {where}.")


def _affine(source: Points, target: Points) -> NDArray[np.float64]:
    read, of_source = _centred("source", source)
    shown, of_target = _centred("target", target)
    _check_full(shown)
    matrix = np.eye(shown.shape[1] + 1)
    matrix[:-1, :-1] = np.linalg.lstsq(shown, read, rcond=None)[0].T
    return np.linalg.inv(of_source) @ matrix @ of_target


def _similarity(source: Points, target: Points, *, rigid: bool = False) -> NDArray[np.float64]:
    """Fits a similarity by the method of Umeyama, 1991."""
    read, of_source = _centred("source", source)
    shown, of_target = _centred("target", target)
    u, values, vt = np.linalg.svd(read.T @ shown / len(read))
    signs = np.ones(len(values))
    # The best orthogonal matrix may be a reflection; the best rotation gives up its weakest axis.
    signs[-1] = np.sign(np.linalg.det(u @ vt))
    # At 0, turns about the weakest axes fit equally well: there is no best one.
    if values[-2] + signs[-1] * values[-1] <= _NEARLY:
        raise invalid(
            "source",
            "expected points that one turn takes to those of the target; these are mirrored, or "
            "on one line of a volume.",
        )
    dims = len(values)
    matrix = np.eye(dims + 1)
    ratio = of_target[0, 0] / of_source[0, 0]  # of the spreads
    scale = 1 / ratio if rigid else (values * signs).sum()
    matrix[:-1, :-1] = scale * (u * signs) @ vt
    return np.linalg.inv(of_source) @ matrix @ of_target


def _spline(
    source: NDArray[np.float64], target: NDArray[np.float64], regularization: float
) -> ThinPlateSpline:
    if len(target) > 1:
        raise invalid("target", f"expected (K, 2), the same for all items, got {target.shape}.")
    weight = numbers("regularization", regularization)
    if weight.ndim or weight < 0:
        raise invalid("regularization", f"expected a number of at least 0, got {regularization!r}.")
    shown, scaling = _centred("target", target[0])
    _check_full(shown)
    radius = np.linalg.norm(shown, axis=1).max()
    apart = np.linalg.norm(shown[:, None] - shown, axis=-1) + np.eye(len(shown)) * 3 * radius
    k, other = np.unravel_index(apart.argmin(), apart.shape)
    if apart[k, other] ** 2 + weight * scaling[0, 0] ** 2 <= (_NEARLY * radius) ** 2:
        raise invalid("target", f"expected different points, got {k} and {other} in one place.")
    return ThinPlateSpline(source, control_points=target[0], regularization=float(weight))


def _homography(source: Points, target: Points) -> NDArray[np.float64]:
    """Fits by the direct linear transform, refined by Gauss-Newton for more than four points."""
    read, of_source = _centred("source", source)
    shown, of_target = _centred("target", target)
    ones = np.column_stack([shown, np.ones(len(shown))])
    zeros = np.zeros_like(ones)
    x, y = read[:, :1], read[:, 1:]
    system = np.block([[ones, zeros, -x * ones], [zeros, ones, -y * ones]])
    _, values, vt = np.linalg.svd(system)
    # The solution is where the system gives least: one of many, if the eighth value is 0, too.
    matrix = vt[-1].reshape(3, 3)
    if values[7] <= _NEARLY or np.linalg.svd(matrix, compute_uv=False)[-1] <= _NEARLY:
        raise invalid(
            "target",
            "expected four points of which no three are on one line, here and in source, and no "
            "two the same.",
        )
    if len(read) > 4:
        matrix = _refined(matrix, ones, read)
    found: NDArray[np.float64] = np.linalg.inv(of_source) @ matrix @ of_target
    return found / found[2, 2] if abs(found[2, 2]) > _NEARLY * abs(found[2]).max() else found


def _refined(
    matrix: NDArray[np.float64], target: NDArray[np.float64], source: Points
) -> NDArray[np.float64]:
    """Returns the homography whose residuals in the source are least, near a first guess."""
    residuals, slope = _residuals(matrix, target, source)
    if not np.isfinite(residuals).all():  # a point on the horizon of the guess
        return matrix
    for _ in range(_REFINEMENTS):
        # A matrix and its multiples are one homography: `rcond` leaves that direction out.
        step = np.linalg.lstsq(slope, -residuals, rcond=1e-12)[0].reshape(3, 3)
        while True:
            # Far from the minimum a whole step may lead further away, or across the horizon.
            moved = matrix + step
            moved /= np.linalg.norm(moved)
            found, its_slope = _residuals(moved, target, source)
            if found @ found < residuals @ residuals:
                break
            step /= 2
            if np.linalg.norm(step) < np.finfo(np.float64).eps:
                return matrix
        matrix, residuals, slope = moved, found, its_slope
    return matrix


def _residuals(
    matrix: NDArray[np.float64], target: NDArray[np.float64], source: Points
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the residuals, (2K,), and their derivative by the nine entries of the matrix."""
    images = target @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        points, scaled = images[:, :2] / images[:, 2:], target / images[:, 2:]
    zeros = np.zeros_like(scaled)
    slope = np.block(
        [
            [scaled, zeros, -points[:, :1] * scaled],
            [zeros, scaled, -points[:, 1:] * scaled],
        ]
    )
    return (points - source).T.ravel(), slope


_FITS: dict[str, Callable[[Points, Points], NDArray[np.float64]]] = {
    "rigid": partial(_similarity, rigid=True),
    "similarity": _similarity,
    "affine": _affine,
    "homography": _homography,
}
_LEAST = {"rigid": 2, "similarity": 2, "affine": 3, "homography": 4, "spline": 3}
"""The least number of points of a plane that a kind needs."""
