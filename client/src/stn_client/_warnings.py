"""Warnings of arguments that are valid and look like a mistake."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_client._arrays import Array
from stn_client._errors import InvalidRequestError
from stn_client._layouts import LAYOUTS
from stn_client._options import WarpOptions
from stn_client._transforms import (
    SIMILARITIES,
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    Transform,
)
from stn_client._units import from_pixels, unit_of
from stn_client.geometry._arguments import matrices_of

_INTERNAL = {"stn_client", "torch"}
"""Packages between a warning and the caller whom it is for."""

_suspected: list[Sequence[int]] = []
"""The first map of the process that looked wrong: one warning is enough."""

_OFFSETS: dict[tuple[type, tuple[int, ...]], tuple[int, ...]] = {
    (Affine, (3,)): (2, 5),
    (Affine, (4,)): (3, 7, 11),
    (Homography, (3,)): (2, 5),
    **{
        (kind, (len(kind.given),)): tuple(map(kind.given.index, ("t_x", "t_y")))
        for kind in SIMILARITIES
        if "t_x" in kind.given
    },
}
"""The places in the parameters of a matrix of the source point of the target origin, by their kind
and their last axis."""

_PROJECTIVE = 8
"""The place in the parameters of a homography of what these points are divided by."""

_FEW = 0.01
"""The share of the points of a grid or a flow up to which hardly one reads the map."""

_HALF = 0.5
"""The share of the points that lie within the map, read as pixels, from which on they may be."""

_LOOKED_AT = 32
"""How many rows and columns of points are looked at, at least."""


def warn(message: str) -> None:
    """Warns the first caller outside of this package and torch: once for each of its lines.

    Of a call that runs in a task of its own that is the line of asyncio, the same for all tasks.
    """
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - Python 3.12 can skip packages
    level = 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _INTERNAL:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def warn_of_fill(fill: object) -> None:
    """Warns of a constant that almost nothing reads: the default padding is another one."""
    warn(
        f'fill: expected padding="fill" beside it, got none, so that outside of the map is 0, and '
        f'{fill!r} only where points are not finite. If that is meant, pass padding="zeros".'
    )


def warn_of_channels_last(field: str, shape: Sequence[int]) -> None:
    """Warns once of a map with sizes as of (N, H, W, C) where (N, C, H, W) is expected.

    Such are more than 4 channels and rows, but at most 4 columns.
    """
    if not _suspected and len(shape) in {4, 5} and min(shape[1:-1]) > 4 >= shape[-1]:
        _suspected.append(shape)
        warn(
            f"{field}: expected (N, C, [D,] H, W), got {tuple(shape)}, which looks like "
            '(N, [D,] H, W, C). If it is, pass layout="NHWC".'
        )


def warn_of_zeros(
    transform: Transform, parameters: Array, options: WarpOptions, shape: Sequence[int], layout: str
) -> None:
    """Warns of a transform by which a warp reads nothing, as pixels do that are normalized.

    Of a matrix nothing is nothing at all; of a grid or a flow it is at most one point in a hundred,
    as the first pixels of a map lie between -1 and 1, where half of all would be pixels of it.

    Args:
        transform: The transform of the warp.
        parameters: Its parameters as an array; a batch axis may be missing.
        options: The options of the warp, which is judged only with normalized coordinates and
            zeros outside of the map.
        shape: The shape of the feature map.
        layout: The layout of the feature map.
    """
    kind: Any = type(transform)
    offsets = _OFFSETS.get((kind, parameters.shape[-1:]))
    last = _PROJECTIVE if kind is Homography else offsets[-1] if offsets else 0
    if offsets is None:
        if kind is SamplingGrid or kind is Flow:
            _warn_of_points(transform, parameters, options, shape, layout)
        return
    if parameters.size <= last:
        return
    # A loop, as it is all that most calls cost: the middle of the first output reads from within.
    scale = abs(parameters.item(_PROJECTIVE)) if kind is Homography else 1
    for offset in offsets:
        if abs(parameters.item(offset)) > scale:
            break
    else:
        return
    if not _are_judged(options):
        return
    rank = 2 if kind in {Affine, Homography} else 1
    with_batch = kind(parameters.reshape(-1, *parameters.shape[-rank:]))
    limits = _limits(_size(len(offsets), shape, layout), options)
    with suppress(InvalidRequestError):  # what is no matrix, the server refuses in its words
        matrices = matrices_of("transform", with_batch)
        if limits is not None and _read_nothing(matrices, limits):
            warn(
                f"{fields(transform)[0].name}: expected points between -1 and 1, got all of them "
                "outside of the map, so that the output is 0. If they are in pixels, pass "
                'coordinates="pixel"; matrices of OpenCV, which lead the other way, go through '
                "stn_client.geometry.from_opencv. If that is meant, pass "
                'coordinates="normalized".'
            )


def _warn_of_points(
    transform: Transform, parameters: Array, options: WarpOptions, shape: Sequence[int], layout: str
) -> None:
    """Does what `warn_of_zeros` does, for points and displacements, (N, [D',] H', W', 2 or 3)."""
    dims = parameters.shape[-1] if parameters.ndim else 0
    if dims not in {2, 3} or parameters.ndim not in {dims + 1, dims + 2} or not parameters.size:
        return
    target = parameters.shape[-1 - dims : -1]
    # What most calls cost: the one in the middle reads from within.
    middle = (0,) * (parameters.ndim - 1 - dims) + tuple(n // 2 for n in target)
    if not any(abs(one) > 1 for one in parameters[middle].tolist()) or not _are_judged(options):
        return
    size = _size(dims, shape, layout)
    limits = _limits(size, options)
    if limits is None:
        return
    steps = [slice(None, None, max(1, n // _LOOKED_AT)) for n in parameters.shape[:-1]]
    points = pixels = parameters[tuple(steps)].astype(np.float64)
    if isinstance(transform, Flow):
        scale, offset = (
            np.array(list(map(float, one))) for one in from_pixels(target, unit_of(options))
        )
        at = [np.arange(n)[step] for n, step in zip(target, steps[-dims:], strict=True)]
        lattice = np.stack(np.meshgrid(*at, indexing="ij")[::-1], axis=-1)
        points, pixels = points + lattice * scale + offset, pixels + lattice
    # A small map that is pasted far away reads as little, but its points would be no pixels of it.
    are_pixels = ((pixels > -1) & (pixels < size[::-1])).all(-1).mean() >= _HALF
    if are_pixels and (np.abs(points) <= limits).all(-1).mean() <= _FEW:
        warn(
            f"{fields(transform)[0].name}: expected points between -1 and 1, got hardly one "
            "within the map, so that the output is 0 almost everywhere. If they are in pixels, "
            'pass coordinates="pixel"; maps of cv2.remap go through '
            'stn_client.geometry.from_remap. If that is meant, pass coordinates="normalized".'
        )


def _are_judged(options: WarpOptions) -> bool:
    """Returns whether a warp reads zeros outside, by a unit that nobody has named."""
    return "coordinates" not in options and options.get("padding", "zeros") == "zeros"


def _size(dims: int, shape: Sequence[int], layout: str) -> Sequence[int]:
    """Returns the size of a map, ([D,] H, W); nothing if it has other axes."""
    first = LAYOUTS[layout].first
    size = shape[first : first + dims]
    return size if len(size) == dims else ()


def _limits(size: Sequence[int], options: WarpOptions) -> NDArray[np.float64] | None:
    """Returns from where on points read nothing but zeros, for x, y[, z], normalized.

    None: by these numbers nobody can tell, as the map has no such size, or as -1 and 1 are the same
    pixel, so that every point reads it.
    """
    scale, offset = from_pixels(size, unit_of(options))
    if not size or not all(scale):
        return None
    # Bicubic, which reaches furthest, reads 0 from two pixels outside of the last ones on.
    axes = zip(scale, offset, size[::-1], strict=True)
    return np.array([float(a * (length + 1) + b) for a, b, length in axes])


def _read_nothing(matrices: NDArray[np.float64], limits: NDArray[np.float64]) -> bool:
    """Returns whether all that the whole target reads is beyond one side of the map, for each item.

    Args:
        matrices: (N, d + 1, d + 1), target to source, both normalized.
        limits: (d,), from where on points read nothing.
    """
    # By its sign a point (X, ..., W) is the same as its opposite.
    matrices = matrices * np.where(matrices[:, -1:, -1:] < 0, -1.0, 1.0)
    weights, rows = matrices[:, -1:], matrices[:, :-1]
    beyond = weights * limits[:, None]
    sides = np.concatenate([rows - beyond, -rows - beyond], axis=1)
    return bool((_are_positive(weights).all(1) & _are_positive(sides).any(1)).all())


def _are_positive(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which linear functions of a point are above 0 on all of [-1, 1]^d."""
    found: NDArray[np.bool_] = rows[..., -1] > np.abs(rows[..., :-1]).sum(-1)
    return found
