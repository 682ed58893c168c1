"""Reads parameters of requests into fields of `stn.v1`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from stn_proto import split_fill
from stn_proto.oip.inference_pb2 import InferParameter
from stn_server.errors import InvalidRequestError, UnsupportedError

_NUMBERS = {"int64_param", "uint64_param", "double_param"}

_DECIMAL = re.compile(r" *[+-]?[0-9.]+([eE][+-]?[0-9]+)? *")
"""The form of a number in a text."""

_INTEGER = re.compile(r" *[+-]?[0-9]+ *")

_MOST = 2**63 - 1
"""The largest number that a field of `stn.v1` takes."""


def require_known(parameters: Mapping[str, Any], known: Sequence[str], field: str) -> None:
    """Refuses parameters that would have no effect.

    Raises:
        UnsupportedError: The name of a parameter is unknown.
    """
    if any(name not in known for name in parameters):
        raise UnsupportedError(field, "another one", tuple(known))


def set_field(message: Any, field: Any, parameter: InferParameter) -> None:
    """Sets a field of a request of `stn.v1` from the parameter of its name.

    Raises:
        InvalidRequestError: The parameter is of another kind, or has no value of the field.
    """
    name = field.name
    if field.type == FieldDescriptor.TYPE_BOOL:
        setattr(message, name, truth(parameter, name))
    elif field.type == FieldDescriptor.TYPE_ENUM:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        values = field.enum_type.values[1:]
        known = {value.name.removeprefix(prefix).lower(): value.number for value in values}
        setattr(message, name, chosen(known, parameter, name))
    elif field.is_repeated:
        is_real = field.type == FieldDescriptor.TYPE_DOUBLE
        numbers = _listed(parameter, name, is_real=is_real)
        getattr(message, name).extend(numbers)
        if name == "fill":
            message.fill_remainder.extend(split_fill(numbers)[1])
    else:
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in _NUMBERS:
            raise _kind(name, "double_param or int64_param", parameter)
        setattr(message, name, float(getattr(parameter, kind)))


def chosen(known: Mapping[str, int], parameter: InferParameter, field: str) -> int:
    """Returns the number of the word that a parameter holds."""
    number = known.get(text(parameter, field))
    if number is None:
        raise InvalidRequestError(field, f"expected one of {', '.join(known)}, got another word.")
    return number


def text(parameter: InferParameter, field: str) -> str:
    """Returns the text that a parameter holds."""
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise _kind(field, "string_param", parameter)
    return parameter.string_param


def truth(parameter: InferParameter, field: str) -> bool:
    """Returns the truth value that a parameter holds."""
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise _kind(field, "bool_param", parameter)
    return parameter.bool_param


def integer(parameter: InferParameter, field: str) -> int:
    """Returns the integer that a parameter holds, of at least 0."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"}:
        raise _kind(field, "int64_param", parameter)
    value = int(getattr(parameter, kind))
    if value < 0:
        raise InvalidRequestError(field, f"expected at least 0, got {value}. Enlarge it.")
    return value


def _listed(parameter: InferParameter, field: str, *, is_real: bool) -> list[float]:
    """Returns numbers from a text with commas, or a single number as such."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind in _NUMBERS:
        number = getattr(parameter, kind) if is_real else integer(parameter, field)
        if not is_real and number > _MOST:
            raise InvalidRequestError(field, f"expected at most {_MOST}, got {number}. Reduce it.")
        return [number]
    parts = text(parameter, field).split(",")
    # Python's own numbers also take underscores, and digits of other scripts.
    if all(_DECIMAL.fullmatch(part) for part in parts):
        with suppress(ValueError):
            return [_real(part) if is_real else _size(part) for part in parts]
    expected = "expected numbers with commas between them, got other text."
    raise InvalidRequestError(field, f'{expected} Write them as "128,96".')


def _real(text: str) -> float:
    """Returns a number, to the last digit if it is an integer that may be a label."""
    number = float(text)
    return number if abs(number) > 1 << 64 or not _INTEGER.fullmatch(text) else int(text)


def _size(digits: str) -> int:
    size = int(digits)
    if abs(size) > _MOST:
        raise ValueError(digits)
    return size


def _kind(field: str, expected: str, parameter: InferParameter) -> InvalidRequestError:
    got = parameter.WhichOneof("parameter_choice") or "none"
    return InvalidRequestError(field, f"expected {expected}, got {got}. Send that kind.")
