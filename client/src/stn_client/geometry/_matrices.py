"""Composition, inversion, rotation, and changes of unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._errors import invalid
from stn_client._transforms import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    ThinPlateSpline,
    Transform,
)
from stn_client._units import Scaling, Unit, from_pixels, to_pixels
from stn_client.geometry._arguments import (
    Matrices,
    TransformArguments,
    arguments,
    check_flag,
    checked_size,
    inverted,
    matrices_of,
    numbers,
    of_matrices,
    points_of,
    read,
)


def rotation_about(
    center: ArrayLike,
    angle_deg: ArrayLike,
    scale: ArrayLike = 1.0,
    translate_px: ArrayLike | None = None,
) -> TransformArguments[Affine]:
    """Turns and scales the content of an image, or a volume, about a point, and then moves it.

    As `cv2.warpAffine` does with `cv2.getRotationMatrix2D(center, angle_deg, scale)`. A turn with a
    shift is every rigid transform, with a scale every similarity. N angles make N transforms, as of
    a batch that is turned at random; each other argument then is one for all, or N as well.

    Convention:
        - says what becomes of the content; the matrix that comes out says where to read
        - of images a positive angle turns anticlockwise, as seen on a screen
        - of volumes the angle is a rotation vector: its direction is the axis, its length the angle
          in degrees, right-handed in (x, y, z), as of
          `scipy.spatial.transform.Rotation.from_rotvec`; as y points down, (0, 0, a) turns a plane
          clockwise by a, as seen on a screen

    Shapes:
        center         (2,) or (3,), or N of them   (x, y) or (x, y, z) in pixels; that of an image
                                                    is ((W - 1) / 2, (H - 1) / 2)
        angle_deg      () for images, (3,) for volumes, or N of them
        scale          (), or N of them
        translate_px   as center
        returns        an `Affine` of (N, 2, 3) or (N, 3, 4), float64, in pixels

    Args:
        center: What stays where it is, but for the shift.
        angle_deg: In degrees.
        scale: Above 1 enlarges the content.
        translate_px: Shift of the content, one number for each axis; None: none.

    Raises:
        InvalidRequestError: An argument has another shape or is not finite, or scale is not
            above 0.
    """
    middle = numbers("center", center)
    if middle.ndim not in {1, 2} or middle.shape[-1] not in {2, 3}:
        raise invalid("center", f"expected (x, y) or (x, y, z), or N of them, got {center!r}.")
    dims = middle.shape[-1]
    angle = numbers("angle_deg", angle_deg)
    own = () if dims == 2 else (3,)
    if angle.shape not in {own, (*angle.shape[:1], *own)} or not angle.size:
        expected = "one number" if dims == 2 else "a rotation vector of 3 numbers"
        raise invalid(
            "angle_deg",
            f"expected {expected} as the center has {dims}, or N of them, got {angle.tolist()}.",
        )
    angle = angle.reshape(-1, *own)
    if len(middle.reshape(-1, dims)) not in {1, len(angle)}:
        raise invalid("center", f"expected one, or one for each angle, got shape {middle.shape}.")
    size = numbers("scale", scale)
    if size.shape not in {(), (len(angle),)}:
        raise invalid("scale", f"expected a number, or one for each angle, got {scale!r}.")
    if not (size >= np.finfo(np.float64).tiny).all():
        raise invalid("scale", f"expected a number above 0, got {scale!r}.")
    shift = np.zeros(dims) if translate_px is None else numbers("translate_px", translate_px)
    if shift.shape not in {(dims,), (len(angle), dims)}:
        raise invalid(
            "translate_px",
            f"expected {dims} numbers, or as many for each angle, got {translate_px!r}.",
        )
    back = np.stack([_turn(one).T for one in angle]) / size.reshape(-1, 1, 1)
    offset = middle[..., None] - back @ (middle + shift)[..., None]
    return arguments(Affine(np.concatenate([back, offset], axis=-1)), "pixel")


def _turn(angle_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the matrix by which the content turns; exact for quarters of a turn.

    Args:
        angle_deg: One number of an image, a rotation vector of a volume.
    """
    angle = float(np.linalg.norm(angle_deg)) if angle_deg.ndim else float(angle_deg)
    quarters, rest = divmod(angle, 90)
    cos, sin = np.cos(np.radians(rest)), np.sin(np.radians(rest))
    for _ in range(int(quarters) % 4):
        cos, sin = -sin, cos
    if not angle_deg.ndim:
        return np.array([[cos, sin], [-sin, cos]])
    x, y, z = angle_deg / angle if angle else angle_deg
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn: NDArray[np.float64] = np.eye(3) + sin * cross + (1 - cos) * cross @ cross
    return turn


def compose(*transforms: Transform | TransformArguments[Any]) -> TransformArguments[Any]:
    """Returns the one transform that reads as warps by each of these would, one after the other.

    `warp(warp(u, **first), **second)` and `warp(u, **compose(first, second))` show the same, but
    that the latter interpolates once and that nothing is cut off on the way. As matrices, first @
    second: the point of the last output goes through the last transform first.

    Args:
        transforms: All in one unit; alone, without a unit, they are normalized with align_corners
            False, as for `Client.warp`. The last may be a `SamplingGrid`, a `Flow` or, behind
            affine ones, a `ThinPlateSpline`; the others have matrices. N is the same of all, or 1.

    Returns:
        In the unit of the transforms: an `Affine` if all are affine, a `Homography` if one of them
        is, float64; if the last is a `ThinPlateSpline`, one, and if it is a `SamplingGrid` or a
        `Flow`, a `SamplingGrid`, of its dtype.

    Raises:
        InvalidRequestError: There is none, or their units, numbers of axes or N differ, or one that
            is not the last has no matrix, or one before a spline is projective.
    """
    if not transforms:
        raise invalid("transforms", "expected at least one, got none.")
    names = [f"transforms[{i}]" for i in range(len(transforms))]
    given = [read(name, each) for name, each in zip(names, transforms, strict=True)]
    unit, last = given[0][1], given[-1][0]
    for name, (_, other) in zip(names, given, strict=True):
        if other != unit:
            raise invalid(name, f"expected {_said(unit)} as the first, got {_said(other)}.")
    points, with_matrix = None, given
    if isinstance(last, SamplingGrid | Flow | ThinPlateSpline):
        points, with_matrix = _source_points(names[-1], last, unit), given[:-1]
    factors = [matrices_of(name, each) for name, (each, _) in zip(names, with_matrix, strict=False)]
    _check_alike(names, [(len(m), m.shape[-1] - 1) for m in factors], points)
    projective = [isinstance(each, Homography) for each, _ in with_matrix]
    if points is None:
        return arguments(of_matrices(reduce(np.matmul, factors), projective=any(projective)), unit)
    if factors:
        points = _moved(reduce(np.matmul, factors), points)
    if not isinstance(last, ThinPlateSpline):
        return arguments(SamplingGrid(points), unit)
    if any(projective):
        name = names[projective.index(True)]
        raise invalid(name, "expected an affine transform before a spline, got Homography.")
    # An affine map of a spline is the spline through the mapped points: it is linear in them, and
    # what it makes of a constant is that constant.
    return arguments(replace(last, points=points), unit)


def invert(transform: Transform | TransformArguments[Any]) -> TransformArguments[Any]:
    """Returns the transform that undoes another one, in its unit.

    Args:
        transform: One with a matrix; alone, without a unit, it is normalized with align_corners
            False, as for `Client.warp`.

    Returns:
        An `Affine`, or of a `Homography` a `Homography`; float64.

    Raises:
        InvalidRequestError: It has no matrix, or one that is not invertible.
    """
    bare, unit = read("transform", transform)
    matrices = inverted("transform", matrices_of("transform", bare))
    return arguments(of_matrices(matrices, projective=isinstance(bare, Homography)), unit)


def to_pixel(
    transform: Transform | TransformArguments[Any],
    input_size: Sequence[int],
    output_size: Sequence[int] | None = None,
) -> TransformArguments[Any]:
    """Returns the same map between pixels instead of normalized coordinates.

    Args:
        transform: Alone, without a unit, it is normalized with align_corners False, as for
            `Client.warp`; one with align_corners True is `{"transform": Affine(theta),
            "align_corners": True}`.
        input_size: ([D,] H, W) of the feature map.
        output_size: ([D',] H', W') of the output; None: that of the grid, else `input_size`.

    Returns:
        An `Affine` or a `Homography` (float64), a `SamplingGrid` or a `Flow`, as the transform is.

    Raises:
        InvalidRequestError: The transform has another shape, or a size does not fit it, or it is a
            spline: where width and height differ, no spline in other units is the same map.
    """
    return _change(transform, input_size, output_size, "pixel")


def to_normalized(
    transform: Transform | TransformArguments[Any],
    input_size: Sequence[int],
    output_size: Sequence[int] | None = None,
    *,
    align_corners: bool = False,
) -> TransformArguments[Any]:
    """Returns the same map between normalized coordinates instead of pixels.

    Args:
        transform: As for `to_pixel`.
        input_size: ([D,] H, W) of the feature map.
        output_size: ([D',] H', W') of the output; None: that of the grid, else `input_size`.
        align_corners: Whether -1 and 1 of the result are centres of the corner pixels (True) or
            their outer edges.

    Returns:
        An `Affine` or a `Homography` (float64), a `SamplingGrid` or a `Flow`, as the transform is.

    Raises:
        InvalidRequestError: As for `to_pixel`; and under align_corners True a feature map of one
            pixel along an axis has no unit there.
    """
    check_flag("align_corners", align_corners)
    return _change(transform, input_size, output_size, "centres" if align_corners else "edges")


def _change(
    transform: Transform | TransformArguments[Any],
    input_size: Sequence[int],
    output_size: Sequence[int] | None,
    unit: Unit,
) -> TransformArguments[Any]:
    bare, given_unit = read("transform", transform)
    if isinstance(bare, SamplingGrid | Flow):
        points = points_of("transform", bare)
        dims, own_size = points.shape[-1], points.shape[1:-1]
    else:
        matrices = matrices_of("transform", bare)
        dims, own_size = matrices.shape[-1] - 1, None
    source = checked_size("input_size", input_size, dims)
    target = own_size or source
    if output_size is not None:
        target = checked_size("output_size", output_size, dims)
        if own_size not in {None, target}:
            raise invalid("output_size", f"expected that of the grid, {own_size}, got {target}.")
    if unit == "centres" and min(source) == 1:
        raise invalid(
            "input_size",
            "expected at least 2 pixels along each axis under align_corners=True, where -1 and 1 "
            f"are the first and the last of them, got {source}.",
        )
    # By pixels on both sides: points are read in the unit asked for instead of the given one, and
    # target points come in the unit asked for, where the transform takes the given one.
    read_at = _matrix(from_pixels(source, unit)) @ _matrix(to_pixels(source, given_unit))
    written_at = _matrix(from_pixels(target, given_unit)) @ _matrix(to_pixels(target, unit))
    if isinstance(bare, SamplingGrid | Flow):
        moved = _moved(_floats(read_at), _source_points("transform", bare, given_unit))
        if isinstance(bare, SamplingGrid):
            return arguments(SamplingGrid(moved), unit)
        return arguments(Flow(moved - _lattice(target, unit, moved.dtype)), unit)
    changed = _floats(read_at) @ matrices @ _floats(written_at)
    return arguments(of_matrices(changed, projective=isinstance(bare, Homography)), unit)


def _source_points(
    name: str, transform: SamplingGrid | Flow | ThinPlateSpline, unit: Unit
) -> NDArray[Any]:
    """Returns the source points of target pixels or control points: (N, .., d)."""
    points = points_of(name, transform)
    if not isinstance(transform, Flow):
        return points
    read: NDArray[Any] = points + _lattice(points.shape[1:-1], unit, points.dtype)
    return read


def _lattice(size: Sequence[int], unit: Unit, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns the target points of an output of this size, ([D',] H', W', d)."""
    pixels = np.stack([*np.indices(size)[::-1]], axis=-1)
    scale, offset = (np.array(values, np.float64) for values in from_pixels(size, unit))
    lattice: NDArray[Any] = (pixels * scale + offset).astype(dtype)
    return lattice


def _moved(matrices: Matrices, points: NDArray[Any]) -> NDArray[Any]:
    """Applies matrices to points, in their dtype; where W = 0 the results are not finite."""
    n, *size, dims = points.shape
    rows = points.reshape(n, math.prod(size), dims).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        images = rows @ matrices[:, :, :-1].transpose(0, 2, 1) + matrices[:, None, :, -1]
        moved = (images[..., :-1] / images[..., -1:]).astype(points.dtype)
    return moved.reshape(len(moved), *size, dims)


def _check_alike(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], points: NDArray[Any] | None
) -> None:
    """Refuses transforms of different numbers of axes, or of different N that are not 1."""
    if points is not None:
        shapes = [*shapes, (len(points), points.shape[-1])]
    batch = max(n for n, _ in shapes)
    for name, (n, dims) in zip(names, shapes, strict=True):
        if dims != shapes[0][1]:
            raise invalid(name, f"expected points of {shapes[0][1]} axes as the first, got {dims}.")
        if n not in {1, batch}:
            raise invalid(name, f"expected N = 1, or {batch} as the longest, got {n}.")


def _said(unit: Unit) -> str:
    return "pixel" if unit == "pixel" else f"normalized, align_corners={unit == 'centres'}"


def _matrix(scaling: Scaling) -> NDArray[Any]:
    """Returns the matrix, in exact fractions, that scales each axis and adds its offset."""
    scale, offset = scaling
    matrix: NDArray[Any] = np.eye(len(scale) + 1, dtype=object)
    matrix[:-1, :-1] *= np.array(scale, dtype=object)
    matrix[:-1, -1] = offset
    return matrix


def _floats(matrix: NDArray[Any]) -> Matrices:
    floats: Matrices = matrix[None].astype(np.float64)
    return floats
