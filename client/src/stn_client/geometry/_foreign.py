"""Matrices and maps of OpenCV, and those in index order, as SciPy has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._errors import invalid
from stn_client._transforms import Affine, SamplingGrid, Transform
from stn_client.geometry._arguments import (
    Matrices,
    TransformArguments,
    arguments,
    check_affine,
    check_flag,
    floats,
    homogeneous,
    inverted,
    matrices_of,
    numbers,
    of_matrices,
    read,
    vector,
)


def from_opencv(matrix: ArrayLike, inverse: bool = False) -> TransformArguments[Any]:  # noqa: FBT001, FBT002 - a flag there, too
    """Returns the transform of a matrix of `cv2.warpAffine` or `cv2.warpPerspective`.

    Beside it, `dsize` of OpenCV is (width, height) and `output_size` here (height, width); an image
    (H, W, C) has `layout="HWC"`; `BORDER_CONSTANT` is padding "zeros" or "fill",
    `BORDER_REPLICATE` "border", `BORDER_REFLECT_101` "reflection".

    Shapes:
        matrix    (2, 3) for warpAffine, (3, 3) for warpPerspective; or N of them
        returns   an `Affine` (N, 2, 3) or a `Homography` (N, 3, 3), float64, in pixels

    Args:
        matrix: Source to target, as OpenCV has it unless told otherwise.
        inverse: Whether the matrix is given with the flag `WARP_INVERSE_MAP`: target to source.

    Raises:
        InvalidRequestError: The matrix has another shape, is not finite, or not invertible, or is
            None, which OpenCV's functions that look for one return when they find none.

    Example:
        >>> shown = cv2.warpAffine(image, matrix, (width, height))
        >>> options = {"output_size": (height, width), "layout": "HWC"}
        >>> shown = stn.warp(image, **from_opencv(matrix), **options)
    """
    check_flag("inverse", inverse)
    if matrix is None:  # which no type allows, and which happens
        got = "got None, which cv2.findHomography and its like return when they find none"  # type: ignore[unreachable]
        raise invalid("matrix", f"expected (2, 3) or (3, 3), {got}.")
    given = numbers("matrix", matrix)
    if given.shape[-2:] not in {(2, 3), (3, 3)}:
        raise invalid("matrix", f"expected (2, 3) or (3, 3), or N of them, got {given.shape}.")
    matrices = homogeneous("matrix", given)
    if not inverse:
        matrices = inverted("matrix", matrices)
    return arguments(of_matrices(matrices, projective=given.shape[-2] == 3), "pixel")


def from_remap(
    map_x: ArrayLike, map_y: ArrayLike | None = None, map_z: ArrayLike | None = None
) -> TransformArguments[SamplingGrid]:
    """Returns the sampling grid of the maps of `cv2.remap`; with `map_z`, of volumes.

    `scipy.ndimage.map_coordinates` has them as one array in index order: `from_remap(*c[::-1])`.

    Shapes:
        map_x, map_y, map_z   (H', W'), of volumes (D', H', W'), or N of them; numbers
        returns               a `SamplingGrid` (N, [D',] H', W', 2 or 3), in pixels, float32, or
                              float64 where a map is or would lose digits

    Args:
        map_x: The x at which every target pixel reads; or x and y, (H', W', 2), without `map_y`.
        map_y: The y.
        map_z: The z, of volumes.

    Raises:
        InvalidRequestError: The maps differ in shape, as those of `cv2.convertMaps` in fixed point
            do, or there is one too few.

    Example:
        >>> maps = cv2.initUndistortRectifyMap(k, distortion, None, k, (w, h), cv2.CV_32FC1)
        >>> straight = stn.warp(image, **from_remap(*maps), layout="HWC")
    """
    first = floats("map_x", map_x)
    maps = {"map_x": first}
    for name, each in (("map_y", map_y), ("map_z", map_z)):
        if each is not None:
            maps[name] = floats(name, each)
    for name, each in maps.items():
        if each.shape != first.shape:
            hint = ""
            if first.shape == (*each.shape, 2):
                hint = " In fixed point? Convert: cv2.convertMaps(map_x, map_y, cv2.CV_32FC1)."
            raise invalid(name, f"expected {first.shape} as map_x, got {each.shape}.{hint}")
    if map_y is None:
        if map_z is not None or first.shape[-1:] != (2,):
            raise invalid("map_y", "expected the y of every pixel unless map_x has both, got None.")
        grid, dims = first, 2
    else:
        grid, dims = np.stack(list(maps.values()), axis=-1), len(maps)
    if grid.ndim == dims + 1:
        grid = grid[None]
    if grid.ndim != dims + 2:
        sizes = "(H', W')" if dims == 2 else "(D', H', W')"
        raise invalid("map_x", f"expected {sizes}, or N of them, got {first.shape}.")
    return arguments(SamplingGrid(grid), "pixel")


def from_voxel(matrix: ArrayLike, offset: ArrayLike | None = None) -> TransformArguments[Any]:
    """Returns the transform of a matrix of `scipy.ndimage.affine_transform`, in index order.

    Shapes:
        matrix    (3, 4) or (4, 4) on (z, y, x, 1), of images (2, 3) or (3, 3) on (row, column, 1),
                  or N of them; with an offset (3, 3), of images (2, 2)
        returns   an `Affine` (N, 3, 4) or (N, 2, 3), float64, in pixels

    Args:
        matrix: Target index to source index.
        offset: What is added behind the matrix, one number or one for each axis; None: the matrix
            has it in its last column.

    Raises:
        InvalidRequestError: An argument has another shape or is not finite, or the last row of a
            square matrix is not (0, .., 0, 1).
    """
    linear = numbers("matrix", matrix)
    if offset is None:
        matrices = homogeneous("matrix", linear)
        hint = " Of a matrix without a last column, say offset=0."
        check_affine("matrix", matrices, hint)
    else:
        dims = linear.shape[-1] if linear.shape in {(2, 2), (3, 3)} else 0
        if not dims:
            raise invalid(
                "matrix", f"expected (2, 2) or (3, 3) beside an offset, got {linear.shape}."
            )
        given = numbers("offset", offset)
        shift = vector("offset", np.full(dims, given) if given.ndim == 0 else given, dims)
        matrices = homogeneous("matrix", np.column_stack([linear, shift]))
    return arguments(Affine(reversed_axes(matrices)[:, :-1]), "pixel")


def to_voxel(transform: Transform | TransformArguments[Any]) -> NDArray[np.float64]:
    """Returns a transform's matrices in index order, for `scipy.ndimage.affine_transform`.

    Shapes:
        returns   (N, 4, 4) on (z, y, x, 1), of images (N, 3, 3) on (row, column, 1), float64

    Args:
        transform: One with a matrix, in pixels.

    Raises:
        InvalidRequestError: It has no matrix, or is in normalized coordinates.
    """
    return reversed_axes(pixel_matrices("transform", transform))


def pixel_matrices(name: str, transform: Transform | TransformArguments[Any]) -> Matrices:
    """Returns the matrices of a transform that is in pixels."""
    bare, unit = read(name, transform)
    if unit != "pixel":
        raise invalid(name, "expected one in pixels, got a normalized one. Use to_pixel.")
    return matrices_of(name, bare)


def reversed_axes(matrices: Matrices) -> Matrices:
    """Converts matrices on (x, y[, z], 1) to index order, and back."""
    order = [*range(matrices.shape[-1] - 1)[::-1], matrices.shape[-1] - 1]
    return matrices[:, order][:, :, order]
