"""What the functions of `stn_client.geometry` take and return, and the matrices behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Required, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_client._arrays import as_array
from stn_client._errors import invalid
from stn_client._options import GridOptions
from stn_client._transforms import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    SimilarityTransform,
    ThinPlateSpline,
    Transform,
)
from stn_client._units import Unit, unit_of
from stn_client._words import meant

T = TypeVar("T", bound=Transform)
Matrices = NDArray[np.float64]
"""(N, d + 1, d + 1), on homogeneous points (x, y[, z], 1)."""

_LARGEST = 1e100
"""Bound of matrix entries, so that products of matrices are finite."""

_UNITS: dict[Unit, GridOptions] = {
    "pixel": {"coordinates": "pixel"},
    "edges": {"coordinates": "normalized", "align_corners": False},
    "centres": {"coordinates": "normalized", "align_corners": True},
}


class TransformArguments(GridOptions, Generic[T]):
    """A transform and the unit of its parameters: keywords of every call that takes a transform.

    It is a dict. `stn.warp(u, **arguments)`, and `vjp`, `warp_gradients`, `generate_grid` and
    `tiling.warp` likewise, say the unit along with the transform, and Python refuses to be told
    another one.
    """

    transform: Required[T]
    """Target to source."""


def arguments(transform: T, unit: Unit) -> TransformArguments[T]:
    """Returns the arguments of a transform whose parameters are in this unit."""
    return cast("TransformArguments[T]", {"transform": transform, **_UNITS[unit]})


def read(name: str, given: Transform | TransformArguments[Any]) -> tuple[Transform, Unit]:
    """Returns a transform and its unit; a bare one is in the default unit of calls."""
    if isinstance(given, Transform):
        return given, "edges"
    if not isinstance(given, Mapping) or not isinstance(given.get("transform"), Transform):
        raise invalid(
            name, f"expected a transform, alone or with its unit, got {type(given).__name__}."
        )
    known = TransformArguments.__annotations__
    for key in given:
        if key not in known:
            raise invalid(name, f"expected no more than {', '.join(sorted(known))}, got {key!r}.")
    choice(f"{name}.coordinates", given.get("coordinates", "normalized"), ("normalized", "pixel"))
    check_flag(f"{name}.align_corners", given.get("align_corners", False))
    return given["transform"], unit_of(given)


def numbers(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """Returns finite numbers as float64."""
    array = _checked_kind(name, as_array(name, value)).astype(np.float64)
    outside = array[~(abs(array) <= _LARGEST)]
    if outside.size:
        raise invalid(name, f"expected finite numbers up to {_LARGEST:g}, got {outside[0]}.")
    return array


def floats(name: str, value: ArrayLike) -> NDArray[Any]:
    """Returns numbers as float32, or as float64 where float32 would lose digits."""
    array = _checked_kind(name, as_array(name, value))
    small = np.result_type(array.dtype, np.float32) == np.float32
    return array.astype(np.float32 if small else np.float64, copy=False)


def _checked_kind(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.name == "bfloat16":  # a dtype that NumPy itself does not know as a number
        return array.astype(np.float32)
    if array.dtype.kind not in "iuf":
        is_one_thing = array.dtype.kind == "O" and not array.ndim  # None, or of a class
        got = type(array.item()).__name__ if is_one_thing else array.dtype
        raise invalid(name, f"expected numbers, got {got}.")
    return array


def vector(name: str, value: ArrayLike, dims: int) -> NDArray[np.float64]:
    """Returns one number for each axis."""
    found = numbers(name, value)
    if found.shape != (dims,):
        raise invalid(name, f"expected {dims} numbers, got {value!r}.")
    return found


def homogeneous(name: str, value: ArrayLike) -> Matrices:
    """Returns matrices (d, d + 1) or (d + 1, d + 1), one or N, as (N, d + 1, d + 1)."""
    given = numbers(name, value)
    matrices = given if given.ndim == 3 else given[None]
    if matrices.shape[1:] in {(2, 3), (3, 4)}:
        row = np.zeros_like(matrices[:, :1])
        row[..., -1] = 1
        return np.concatenate([matrices, row], axis=1)
    if matrices.shape[1:] not in {(3, 3), (4, 4)}:
        raise invalid(
            name,
            "expected (2, 3) or (3, 3), of volumes (3, 4) or (4, 4), or N of them, "
            f"got {given.shape}.",
        )
    return matrices


def check_affine(name: str, matrices: Matrices, hint: str = "") -> None:
    """Checks that the last rows are (0, .., 0, 1)."""
    rows = matrices[:, -1]
    wrong = rows[(rows != np.eye(matrices.shape[-1])[-1]).any(axis=1)]
    if len(wrong):
        expected = [0] * (matrices.shape[-1] - 1) + [1]
        raise invalid(name, f"expected the last row {expected}, got {wrong[0].tolist()}.{hint}")


def inverted(name: str, matrices: Matrices) -> Matrices:
    """Inverts each of N matrices.

    Rows and columns are brought to 1 before it is judged what is singular: their units do not
    matter.
    """
    rows = abs(matrices).max(axis=2, keepdims=True)
    balanced = matrices / np.where(rows, rows, 1)
    columns = abs(balanced).max(axis=1, keepdims=True)
    values = np.linalg.svd(balanced / np.where(columns, columns, 1), compute_uv=False)
    singular = np.flatnonzero(values[:, -1] <= 8 * np.finfo(np.float64).eps * values[:, 0])
    if len(singular):
        n = singular[0]
        which = f"{name}[{n}]" if len(matrices) > 1 else name
        raise invalid(which, f"expected an invertible matrix, got {matrices[n].tolist()}.")
    return np.linalg.inv(matrices).astype(np.float64)


def matrices_of(name: str, transform: Transform) -> Matrices:
    """Returns the matrices of a transform that consists of nothing else."""
    if not isinstance(transform, (Affine, Homography, SimilarityTransform)):
        raise invalid(name, f"expected a transform with a matrix, got {type(transform).__name__}.")
    parameters = numbers(name, transform.parameters)
    if isinstance(transform, Affine):
        _check_shape(name, parameters, "(N, 2, 3) or (N, 3, 4)", {(2, 3), (3, 4)})
        return homogeneous(name, parameters)
    if isinstance(transform, Homography):
        _check_shape(name, parameters, "(N, 3, 3)", {(3, 3)})
        return parameters
    count = len(transform.given)
    _check_shape(name, parameters, f"(N, {count})", {(count,)})
    parts = dict(zip(transform.given, parameters.T, strict=True))
    s, phi = parts.get("s", np.ones(len(parameters))), parts.get("phi", np.zeros(len(parameters)))
    matrices = np.zeros((len(parameters), 3, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = s * np.cos(phi)
    matrices[:, 1, 0] = s * np.sin(phi)
    matrices[:, 0, 1] = -matrices[:, 1, 0]
    matrices[:, 0, 2], matrices[:, 1, 2] = parts.get("t_x", 0.0), parts.get("t_y", 0.0)
    matrices[:, 2, 2] = 1
    return matrices


def points_of(name: str, transform: SamplingGrid | Flow | ThinPlateSpline) -> NDArray[Any]:
    """Returns the parameters of a transform given by target pixels or control points."""
    points = floats(name, transform.parameters)
    shapes, expected = {(4, (2,)), (5, (3,))}, "(N, H', W', 2) or (N, D', H', W', 3)"
    if isinstance(transform, ThinPlateSpline):
        shapes, expected = {(3, (2,))}, "(N, K, 2)"
    if (points.ndim, points.shape[-1:]) not in shapes:
        raise invalid(name, f"expected parameters of {expected}, got {points.shape}.")
    return points


def checked_size(name: str, size: Sequence[int], dims: int) -> tuple[int, ...]:
    """Returns whole numbers of pixels, one for each axis of an array."""
    sizes = as_array(name, size)
    letters = "(H, W)" if dims == 2 else "(D, H, W)"
    if sizes.shape != (dims,) or sizes.dtype.kind not in "iu" or not (sizes > 0).all():
        raise invalid(name, f"expected {letters}, whole numbers of at least 1, got {size!r}.")
    return tuple(int(n) for n in sizes)


def choice(name: str, value: object, values: Sequence[str]) -> None:
    """Refuses a value that is not one of the choices."""
    if not isinstance(value, str) or value not in values:
        hint = f" Did you mean {other!r}?" if (other := meant(value, values)) else ""
        raise invalid(name, f"expected one of {', '.join(values)}, got {value!r}.{hint}")


def check_flag(name: str, value: object) -> None:
    """Refuses what is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise invalid(name, f"expected True or False, got {value!r}.")


def of_matrices(matrices: Matrices, *, projective: bool) -> Affine | Homography:
    """Returns the transform of these matrices; the last row is (0, .., 0, 1)."""
    return Homography(matrices) if projective else Affine(matrices[:, :-1])


def _check_shape(
    name: str, array: NDArray[Any], expected: str, shapes: set[tuple[int, ...]]
) -> None:
    if array.ndim == 0 or array.shape[1:] not in shapes:
        raise invalid(name, f"expected parameters of {expected}, got {array.shape}.")
