"""What shape the parameters of every kind of transform have, with a batch axis and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from stn_client._arrays import Array
from stn_client._errors import invalid
from stn_client._layouts import LAYOUTS
from stn_client._transforms import (
    SIMILARITIES,
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    ThinPlateSpline,
    Transform,
)

_Shape: TypeAlias = tuple[int, ...]


def _advice_on_affine(argument: str, shape: _Shape) -> str:
    rows, columns = (0, 0, *shape)[-2:]
    if rows == columns and rows in {3, 4}:
        also = " if it is (0, 0, 1), or make it a Homography" if rows == 3 else ""
        return f"Leave out the last row, {argument}[..., :{rows - 1}, :]{also}."
    if columns in {6, 12}:
        matrix = "2, 3" if columns == 6 else "3, 4"
        return f"Reshape it: {argument}.reshape(-1, {matrix})."
    return ""


def _advice_on_homography(argument: str, shape: _Shape) -> str:
    rows, columns = (0, 0, *shape)[-2:]
    if (rows, columns) == (2, 3):
        return "That is an Affine."
    return f"Reshape it: {argument}.reshape(-1, 3, 3)." if columns == 9 else ""


def _advice_on_spline(argument: str, shape: _Shape) -> str:
    is_flat = len(shape) == 2 and shape[1] > 4
    return f"Reshape it: {argument}.reshape({shape[0]}, -1, 2)." if is_flat else ""


def _advice_on_field(argument: str, shape: _Shape) -> str:
    dims = len(shape) - 2  # (N, 2, H', W') of images, (N, 3, D', H', W') of volumes
    if shape[-1:] not in {(2,), (3,)}:
        for axis, count in ((1, dims), (0, dims + 1)):
            if count in {2, 3} and shape[axis] == count:
                return f"Coordinates are the last axis: np.moveaxis({argument}, {axis}, -1)."
    return ""


class ParameterShape(NamedTuple):
    """The shape of the parameters of a kind of transform."""

    of_batch: str
    """Notation of the shape in messages."""
    ndim: int | None
    """Axes of the parameters of one map; None: one more than their points have coordinates."""
    advice: Callable[[str, _Shape], str] = lambda _argument, _shape: ""
    """Says how an argument of a known other shape becomes one of this; empty: it is none."""
    is_number: bool = False
    """Whether those of one map may be a number without any axis."""


_FIELD = ParameterShape("(N, [D',] H', W', 2 or 3)", None, _advice_on_field)

PARAMETER_SHAPES = {
    Affine: ParameterShape("(N, 2, 3) or (N, 3, 4)", 2, _advice_on_affine),
    Homography: ParameterShape("(N, 3, 3)", 2, _advice_on_homography),
    ThinPlateSpline: ParameterShape("(N, K, 2)", 2, _advice_on_spline),
    Flow: _FIELD,
    SamplingGrid: _FIELD,
    **{
        kind: ParameterShape(f"(N, {len(kind.given)})", 1, is_number=len(kind.given) == 1)
        for kind in SIMILARITIES
    },
}
"""The shape of the parameters of every kind of transform."""


def parameters_with_batch(
    transform: Transform, argument: str, parameters: Array, layout: str
) -> Array:
    """Returns parameters with a batch axis, which may be missing beside a single map.

    Raises:
        InvalidRequestError: They have the shape of something else, or are those of several maps,
            beside one.
    """
    own, shape = PARAMETER_SHAPES[type(transform)], parameters.shape
    if advice := own.advice(argument, shape):
        raise invalid(argument, f"expected shape {own.of_batch}, got {shape}. {advice}")
    is_bare_number = own.is_number and not shape
    ndim = own.ndim
    if ndim is None:
        ndim = shape[-1] + 1 if shape else 0
    if not LAYOUTS[layout].added:
        if len(shape) != ndim and not is_bare_number:
            return parameters
        advice = f"Add one: {argument}[None] has N = 1."
        if own.is_number:
            advice = "Reshape it to (N, 1)."
        raise invalid(argument, f"expected a batch axis, got shape {shape}. {advice}")
    if is_bare_number:
        return parameters[None, None]
    if len(shape) == ndim:
        return parameters[None]
    if shape[:1] != (1,):
        expected = f"expected those of one map (N = 1) beside layout {layout!r}"
        advice = 'Give maps a batch axis: "NCHW" or "NHWC".'
        raise invalid(argument, f"{expected}, got shape {shape}. {advice}")
    return parameters
