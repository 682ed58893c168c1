"""The arguments of calls: checked, and made the fields of requests. Knows no call and no method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any, TypeVar, get_args

import numpy as np

from stn_client._arrays import Array, Operand, as_array, operand
from stn_client._checks import as_float
from stn_client._envelopes import Payloads
from stn_client._errors import InvalidRequestError, invalid
from stn_client._layouts import LAYOUTS, layout_of, with_batch
from stn_client._options import GridCallOptions, GridOptions, WarpCallOptions, WarpOptions
from stn_client._parameters import parameters_with_batch
from stn_client._transforms import Transform
from stn_client._warnings import warn_of_channels_last, warn_of_fill
from stn_client._words import meant, words_of
from stn_proto import WireFormatError, put_tensor, split_fill
from stn_proto.codec import DTYPES, data_type
from stn_proto.v1 import objective_pb2, tensor_pb2, warp_pb2

T = TypeVar("T")

OPERANDS = {
    "feature_map": warp_pb2.OPERAND_FEATURE_MAP,
    "transform": warp_pb2.OPERAND_TRANSFORM,
}
OBJECTIVE_NEEDS = {
    "gradient": objective_pb2.OBJECTIVE_RESULT_GRADIENT,
    "gauss_newton": objective_pb2.OBJECTIVE_RESULT_GAUSS_NEWTON,
}
KINDS = {
    kind: name
    for name in warp_pb2.Transform.DESCRIPTOR.fields_by_name
    for kind in get_args(Transform)
    if kind.__name__ == getattr(warp_pb2.Transform(), name).DESCRIPTOR.name
}
"""Field of `Transform.kind` of every transform.

Messages and classes have the same names, and so have their fields: first comes the tensor of
parameters; what else a message has is in `settings`.
"""

FLOATS = "float32", "float64", "float16", "bfloat16"
"""Maps of which there are gradients."""

INTERPOLATED = *FLOATS, "uint8", "uint16", "int16"
"""Maps that any interpolation reads; others, of integers, are labels."""


_MAX_COPIED_BYTES = 2**31 - 1
"""The most bytes of any message of gRPC and protobuf, and so of what is copied into one."""


def map_operand(field: str, value: object) -> Operand:
    """Returns a map as an operand; anything that NumPy takes for one opaque thing is refused."""
    given = operand(field, value)
    if given.array.dtype.kind in "OSU" and not given.array.ndim:
        advice = "Give arguments in the order of the signature, or by name."
        if value is None:
            advice = "Could a file not be read? Then cv2.imread returns None."
        elif isinstance(value, str | bytes | PathLike):
            advice = "Read the file first, as by PIL.Image.open(path)."
        raise invalid(field, f"expected an array, got {type(value).__name__}. {advice}")
    return given


def put(
    field: str,
    array: Array,
    payloads: Payloads,
    layout: tensor_pb2.Layout = tensor_pb2.LAYOUT_UNSPECIFIED,
) -> tensor_pb2.Tensor:
    """Adds the bytes of an array to the payloads; returns the message of the tensor."""
    check_copy(field, array)
    try:
        return put_tensor(array, payloads, layout=layout)
    except WireFormatError as error:
        raise invalid(field, f"expected {error.expected}, got {error.actual}. Cast it.") from error


def put_map(field: str, given: Operand, payloads: Payloads, layout: str) -> tensor_pb2.Tensor:
    """Adds the bytes of a map, with a batch axis, to the payloads; returns the message of it."""
    if layout == "NCHW":
        warn_of_channels_last(field, given.array.shape)
    on_wire = enum_of(tensor_pb2.Layout, "layout", LAYOUTS[layout].on_wire)
    return put(field, with_batch(field, given.array, layout), payloads, on_wire)


def put_transform(
    transform: Transform, payloads: Payloads, layout: str = "NCHW"
) -> tuple[warp_pb2.Transform, Operand]:
    """Returns the message of a transform, and its parameters as they were given."""
    if type(transform) not in KINDS:
        raise no_transform(transform)
    argument = fields(transform)[0].name
    given = operand(argument, transform.parameters)
    array = _real(argument, given.array)
    batched = parameters_with_batch(transform, argument, array, layout)
    tensor = put(argument, batched, payloads)
    settings = getattr(transform, "settings", {})
    message = warp_pb2.Transform()
    kind = getattr(message, KINDS[type(transform)])
    kind.MergeFrom(type(kind)(**{argument: tensor}, **settings))
    return message, given


def check_copy(field: str, array: Array) -> None:
    """Checks that an array is no larger than messages are, unless it can be sent as it is.

    A view may be larger than any memory: `np.broadcast_to` has one element of its own.
    """
    if array.nbytes > _MAX_COPIED_BYTES and not array.flags.c_contiguous:
        expected = f"expected at most {_MAX_COPIED_BYTES} bytes, as no message holds more"
        got = f"got {array.nbytes}, shape {array.shape} of {array.dtype}"
        raise invalid(field, f"{expected}, {got}. Send it in parts.")


def _real(field: str, array: Array) -> Array:
    """Returns parameters as float32 or float64; lists of Python numbers become float64.

    Those in half precision become float32, as torch's do under autocast.
    """
    if array.dtype.kind == "f" and array.itemsize in {4, 8}:
        return array
    check_copy(field, array)
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype.name in {"float16", "bfloat16"}:
        return array.astype(np.float32)
    raise invalid(field, f"expected float32 or float64, got {array.dtype}. Cast it.")


def no_transform(given: object) -> InvalidRequestError:
    """Returns the error of an argument that stands in the place of a transform."""
    expected = " or ".join(kind.__name__ for kind in KINDS)
    hint = " Unpack it: **transform." if isinstance(given, Mapping) else ""
    if hasattr(given, "__array__") or isinstance(given, list):
        hint = " Say what the numbers are, such as Affine(matrix)."
    return invalid("transform", f"expected {expected}, got {type(given).__name__}.{hint}")


def check_dtype(field: str, dtype: np.dtype[Any]) -> None:
    """Checks that the wire carries a dtype."""
    try:
        data_type(dtype)
    except WireFormatError as error:
        raise invalid(field, f"expected {error.expected}, got {error.actual}. Cast it.") from error


def check_labels(dtype: np.dtype[Any], interpolation: object) -> None:
    """Checks that labels, which are integers, are not interpolated."""
    known = dtype.newbyteorder("<") in DTYPES.values()
    if known and interpolation != "nearest" and dtype.name not in INTERPOLATED:
        expected = f"expected one of {', '.join(INTERPOLATED)}, got {dtype}."
        advice = 'Cast it; if these are labels, pass interpolation="nearest".'
        raise invalid("feature_map", f"{expected} {advice}")


def check_floats(field: str, dtype: np.dtype[Any]) -> None:
    """Checks that a map whose gradients are asked for holds floats."""
    if dtype.kind in "biu":
        expected = (
            f"expected one of {', '.join(FLOATS)}, of which there are gradients, got {dtype}."
        )
        raise invalid(field, f"{expected} Cast it.")


def check_same(field: str, dtype: np.dtype[Any], other: str, wanted: np.dtype[Any]) -> None:
    """Checks that a map has the dtype of another; the order of its bytes does not matter."""
    if dtype.newbyteorder("=") != wanted.newbyteorder("="):
        raise invalid(field, f"expected {wanted}, as {other}, got {dtype}. Cast it.")


def check_shape_of_output(grad_output: Any, shape: Any) -> None:
    """Checks that what a pullback is given may be the gradient to the output of its warp.

    By itself a gradient of another size is one of another warp, which the service computes.

    Args:
        grad_output: As given.
        shape: The shape of the output; None: it tells none, as an image of Pillow.
    """
    given: Any = getattr(grad_output, "shape", None)
    if shape is not None and given is not None and tuple(given) != tuple(shape):
        expected = f"expected shape {tuple(shape)}, as the output, got {tuple(given)}."
        raise invalid("grad_output", expected)


def spec_of(options: WarpOptions, arguments: Iterable[str] = ()) -> warp_pb2.WarpSpec:
    """Returns the message of how a feature map is read; warns of a constant that hardly counts.

    Args:
        options: The options of the call.
        arguments: The further arguments that `reject_unknown` takes.
    """
    reject_unknown(options, WarpCallOptions.__annotations__, arguments)
    fill, fill_remainder = _fill(options.get("fill", ()))
    if "padding" not in options and any(fill):
        warn_of_fill(options["fill"])
    return warp_pb2.WarpSpec(
        interpolation=enum_of(
            warp_pb2.Interpolation, "interpolation", options.get("interpolation", "bilinear")
        ),
        padding=enum_of(warp_pb2.Padding, "padding", options.get("padding", "zeros")),
        fill=fill,
        fill_remainder=fill_remainder,
        subgradient=enum_of(
            warp_pb2.Subgradient, "subgradient", options.get("subgradient", "right")
        ),
        allow_nondeterministic=not _flag("deterministic", options.get("deterministic", True)),
        **grid_fields(options, check=False),
    )


def grid_fields(options: GridOptions, *, check: bool = True) -> dict[str, Any]:
    """Returns the fields of requests that say what coordinates mean."""
    if check:
        reject_unknown(options, GridCallOptions.__annotations__)
    coordinates = options.get("coordinates", "normalized")
    return {
        "coordinates": enum_of(warp_pb2.Coordinates, "coordinates", coordinates),
        "align_corners": _flag("align_corners", options.get("align_corners", False)),
    }


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise invalid(option, f"expected True or False, got {value!r}.")
    return bool(value)


def size_of(size: Sequence[int]) -> Array:
    """Returns an output size as integers that the wire holds; the server says what is too large."""
    sizes = as_array("output_size", size)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
        raise invalid("output_size", f"expected integers ([D',] H', W'), got {size!r}.")
    if sizes.min(initial=1) < 1:
        raise invalid("output_size", f"expected sizes of at least 1, got {size!r}.")
    if sizes.max(initial=0) >= 2**63:
        raise invalid("output_size", f"expected sizes below 2**63, got {size!r}.")
    return sizes


def _fill(fill: float | Sequence[float]) -> tuple[list[float], list[int]]:
    numbers = np.atleast_1d(as_array("fill", fill))
    if numbers.dtype.kind == "O":  # as of integers beyond 64 bits, which saturate as others do
        floats = [as_float("fill", one, "numbers") for one in numbers.flat]
        numbers = np.reshape(floats, numbers.shape)
    if numbers.dtype.kind not in "iufb" and numbers.size:
        raise invalid("fill", f"expected numbers, got {fill!r}.")
    if numbers.ndim != 1:
        raise invalid("fill", f"expected one number, or one per channel, got {fill!r}.")
    if not np.isfinite(numbers).all():
        raise invalid("fill", f"expected finite numbers, got {fill!r}.")
    # NumPy makes floats of a list in which some are negative and others beyond int64.
    return split_fill(fill if isinstance(fill, list | tuple) else numbers.tolist())


def check_options(options: WarpOptions, output_size: Sequence[int] | None) -> None:
    """Checks the options of warps that are made later.

    Raises:
        TypeError: There is no such option.
        InvalidRequestError: A value breaks a rule.
    """
    reject_unknown(options, WarpOptions.__annotations__)
    spec_of(options)
    layout_of(options.get("layout"), None)
    if output_size is not None:
        size_of(output_size)


def gradient_needs(needs: Iterable[str]) -> list[warp_pb2.Operand]:
    """Returns the operands whose gradients are asked for, of which there is at least one."""
    numbers = _choices("needs", needs, OPERANDS)
    if not numbers:  # on the wire, none stands for all
        raise invalid("needs", f"expected at least one of {', '.join(OPERANDS)}, got none.")
    return numbers


def objective_needs(needs: Iterable[str]) -> list[objective_pb2.ObjectiveResult]:
    """Returns the results of an objective that are asked for; its value is always one."""
    value = objective_pb2.OBJECTIVE_RESULT_VALUE  # so that it is never empty, which has a default
    return [value, *_choices("needs", needs, OBJECTIVE_NEEDS)]


def reject_unknown(
    options: Iterable[str], known: Iterable[str], arguments: Iterable[str] = ()
) -> None:
    """Refuses names of options that do not exist, as Python does those of keywords.

    Args:
        options: Their names.
        known: Those that exist.
        arguments: Arguments of the call beside its options, which may have been meant.
    """
    for name in options:
        if name not in known:
            hint = f" Did you mean {other}?" if (other := meant(name, (*known, *arguments))) else ""
            expected = f"expected an option of {', '.join(known)}"
            raise TypeError(f"{name}: {expected}, got one that does not exist.{hint}")


def enum_of(kind: Any, option: str, name: str) -> Any:
    """Returns the number of `name` in a wire enumeration: "zeros" is PADDING_ZEROS."""
    numbers = {word: number for number, word in words_of(kind.DESCRIPTOR).items()}
    return _choice(option, name, numbers)


def _choices(option: str, names: Iterable[str], numbers: dict[str, T]) -> list[T]:
    # A text is one of letters, and an array without axes only says that it can be iterated over.
    if isinstance(names, str) or not isinstance(names, Iterable) or not getattr(names, "shape", 1):
        raise invalid(option, f"expected a list of {', '.join(numbers)}, got {names!r}.")
    return [_choice(option, name, numbers) for name in names]


def _choice(option: str, name: str, numbers: dict[str, T]) -> T:
    if not isinstance(name, str) or name not in numbers:
        hint = f" Did you mean {other!r}?" if (other := meant(name, numbers)) else ""
        raise invalid(option, f"expected one of {', '.join(numbers)}, got {name!r}.{hint}")
    return numbers[name]
