"""What people say about images (rotate, scale, shift, bend) as transforms in pixels."""

from __future__ import annotations

import argparse
import json
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stn_client._arguments import KINDS, grid_fields
from stn_client._errors import InvalidRequestError
from stn_client._options import GridOptions
from stn_client._parameters import PARAMETER_SHAPES, parameters_with_batch
from stn_client._transforms import Affine, Homography, SamplingGrid, ThinPlateSpline
from stn_client.geometry import TransformArguments, rotation_about

_KINDS: dict[str, Any] = {name: kind for kind, name in KINDS.items()}
"""Classes of transforms by their names in the contract."""

_BAD_ARRAY = (
    *(EOFError, MemoryError, OverflowError, RecursionError, SyntaxError, ValueError),
    tokenize.TokenError,
)
"""What NumPy raises of a file that is no array, or whose header, which is Python, is damaged."""


def pixel_theta(
    *,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    rotate_deg: float = 0.0,
    scale: float = 1.0,
    translate_px: Sequence[float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """Returns the 2 x 3 matrix that moves the content of an image about its centre.

    Convention:
        - maps target to source in pixels, x right, y down: the inverse of what the eye sees
        - sizes are (H, W); rotation is anticlockwise; translation is (x, y)
        - the centre of the input goes to the centre of the output, plus the translation

    Raises:
        InvalidRequestError: scale is not above 0.
    """
    centre = _centre(input_size)
    shift = _centre(output_size) - centre + translate_px
    turned = rotation_about(centre, rotate_deg, scale, shift)["transform"]
    theta: NDArray[np.float64] = turned.theta[0]
    return theta


def read_spline(path: str) -> ThinPlateSpline:
    """Reads the spline of a JSON file, for argparse: fields by name, `points` of one image.

    Raises:
        ArgumentTypeError: The file cannot be read, or does not hold one.
    """
    try:
        spline: ThinPlateSpline = _made(ThinPlateSpline, _json(path))
        count = len(spline.settings["control_points"]) // 2
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a readable file, got {error}") from error
    except (TypeError, ValueError) as error:
        expected = "expected JSON with control_points and points, each [[x, y], ...]"
        why = str(error).rstrip(".")
        raise argparse.ArgumentTypeError(f"{path}: {expected}: {why}") from error
    if spline.points.shape != (1, count, 2):
        expected = f"expected points to have {count} pairs of finite numbers, as control_points do"
        raise argparse.ArgumentTypeError(f"{path}: {expected}, got other ones")
    return spline


def read_transform(path: str) -> TransformArguments[Any]:
    """Reads the transform of a file, for argparse, with the unit of its parameters.

    JSON has the name of its kind in the contract, beside the fields of its class and, if they are
    not "pixel", the unit: {"affine": {"theta": [[1, 0, 5], [0, 1, 3]]}, "coordinates": "pixel"}.
    A file of NumPy, .npy, has a matrix of 2 x 3 or 3 x 3, or a grid (H', W', 2), in pixels. All map
    from OUT to IN, and are those of one image.

    Raises:
        ArgumentTypeError: The file cannot be read, or does not hold one.
    """
    try:
        given = _of_numpy(path) if path.endswith(".npy") else _of_json(_json(path))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a readable file, got {error}") from error
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {str(error).rstrip('.')}") from error
    return cast("TransformArguments[Any]", {"coordinates": "pixel", **given})


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())  # in any encoding of Unicode, as editors write
    except RecursionError:
        raise ValueError("expected JSON, got lists within lists without end") from None
    except ValueError as error:  # of bytes that are no text, too
        raise ValueError(f"expected JSON, got {error}") from error


def _of_numpy(path: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            # Not read: whatever size it claims to have.
            array: Any = np.lib.format.open_memmap(path, mode="r")
    except _BAD_ARRAY as error:
        raise ValueError(f"expected an array in the format of NumPy, got {error}") from error
    kinds: dict[Any, Any] = {(2, 3): Affine, (3, 3): Homography}
    kind = SamplingGrid if array.shape[2:] == (2,) else kinds.get(array.shape)
    if kind is None:
        expected = "expected a matrix of 2 x 3 or 3 x 3, or a grid (H', W', 2)"
        raise ValueError(f"{expected}, got shape {array.shape}")
    return {"transform": kind(_numbers(array)[None])}


def _of_json(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise TypeError(f'expected {{"affine": {{"theta": ...}}}}, got a {type(given).__name__}')
    names = [name for name in given if name in _KINDS]
    others = {name: value for name, value in given.items() if name not in names}
    if len(names) != 1 or not set(others) <= set(GridOptions.__annotations__):
        expected = f"one of {', '.join(_KINDS)}, beside coordinates and align_corners"
        raise ValueError(f"expected {expected}, got {', '.join(given) or 'nothing'}")
    grid_fields(cast("GridOptions", others))  # which refuses what cannot be
    return {"transform": _made(_KINDS[names[0]], given[names[0]]), **others}


def _made(kind: Any, given: Any) -> Any:
    """Returns the transform of one image that has these fields.

    Raises:
        TypeError: A field is missing, or is none of such a transform.
        ValueError: The value of a field is not allowed.
    """
    first = fields(kind)[0].name
    if not isinstance(given, dict):
        expected = f"expected an object with {first}"
        raise TypeError(f"{KINDS[kind]}: {expected}, got a {type(given).__name__}")
    known = signature(kind).parameters
    needed = [name for name, one in known.items() if one.default is one.empty]
    if not set(needed) <= set(given) <= set(known):
        raise TypeError(f"expected fields {', '.join(known)}, got {', '.join(given) or 'nothing'}")
    numbers = _numbers(given[first])
    made = kind(**{**given, first: numbers})
    if isinstance(made, ThinPlateSpline):
        _ = made.settings  # which refuses what cannot be
    return replace(made, **{first: _of_one_image(made, first, numbers)})


def _of_one_image(transform: Any, name: str, numbers: NDArray[Any]) -> NDArray[Any]:
    """Returns parameters with a batch axis, with or without which a file may have them.

    Raises:
        ValueError: They are those of several images, or of another kind.
    """
    own, shape = PARAMETER_SHAPES[type(transform)], numbers.shape
    try:
        return parameters_with_batch(transform, name, numbers, "HWC")
    except InvalidRequestError:
        expected = f"expected {own.of_batch} of one image, N = 1 or left out"
        advice = own.advice(name, shape)
        raise ValueError(f"{name}: {expected}, got {shape}. {advice}".rstrip()) from None


def _numbers(value: Any) -> NDArray[np.float64]:
    """Returns the parameters of a file.

    Raises:
        ValueError: They are not finite numbers.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"expected numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError("expected finite numbers, got others")
    return array.astype(np.float64)


def _centre(size: tuple[int, int]) -> NDArray[np.float64]:
    height, width = size
    return np.array([(width - 1) / 2, (height - 1) / 2])
