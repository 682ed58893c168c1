"""Translates the words of the contract (enumerations, options) to those of the engine.

UNSPECIFIED is the documented default where the contract names one. Every other value that the
engine cannot compute is unsupported, whether or not this version of the contract knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import stn_engine
from stn_proto import join_fill
from stn_proto.v1 import objective_pb2, warp_pb2
from stn_server.errors import InvalidRequestError, UnsupportedError

E = TypeVar("E")


def offered(kind: Any, values: type) -> list[Any]:
    """Returns the numbers of a wire enumeration that the engine computes."""
    prefix = _prefix(kind)
    known = {f"{prefix}{value.name}" for value in values}  # type: ignore[attr-defined]
    return [number for name, number in kind.items() if name in known]


def read_spec(spec: warp_pb2.WarpSpec) -> stn_engine.WarpSpec:
    """Returns the engine's spec for the options of a warp."""
    return stn_engine.WarpSpec(
        interpolation=_read_enum(
            warp_pb2.Interpolation,
            spec.interpolation,
            stn_engine.Interpolation,
            stn_engine.Interpolation.BILINEAR,
            "spec.interpolation",
        ),
        padding=_read_enum(
            warp_pb2.Padding,
            spec.padding,
            stn_engine.Padding,
            stn_engine.Padding.ZEROS,
            "spec.padding",
        ),
        fill=join_fill(tuple(spec.fill) or (0.0,), spec.fill_remainder, "spec.fill"),
        coordinates=read_coordinates(spec.coordinates, "spec.coordinates"),
        align_corners=spec.align_corners,
        subgradient=_read_enum(
            warp_pb2.Subgradient,
            spec.subgradient,
            stn_engine.Subgradient,
            stn_engine.Subgradient.RIGHT,
            "spec.subgradient",
        ),
        deterministic=not spec.allow_nondeterministic,
    )


def read_coordinates(number: int, field: str) -> stn_engine.Coordinates:
    """Returns the engine's unit of coordinates."""
    return _read_enum(
        warp_pb2.Coordinates,
        number,
        stn_engine.Coordinates,
        stn_engine.Coordinates.NORMALIZED,
        field,
    )


def read_needs(needs: Sequence[int]) -> tuple[str, ...]:
    """Returns the names of the operands whose gradients are wanted.

    A request that names none means feature map and transform, also once the contract has others.
    """
    return read_operands(needs, "needs") or ("feature_map", "transform")


def read_operands(operands: Sequence[int], field: str) -> tuple[str, ...]:
    """Returns the names of the operands that a field of a message lists."""
    names: dict[int, str] = {
        warp_pb2.OPERAND_FEATURE_MAP: "feature_map",
        warp_pb2.OPERAND_TRANSFORM: "transform",
    }
    for number in operands:
        if number == warp_pb2.OPERAND_UNSPECIFIED:
            expected = (
                f"expected {' or '.join(warp_pb2.Operand.keys()[1:])}, got OPERAND_UNSPECIFIED."
            )
            raise InvalidRequestError(field, f"{expected} Leave it out.")
        if number not in names:
            raise unsupported(field, warp_pb2.Operand, number, names)
    return tuple(names[number] for number in operands)


def read_comparison(request: objective_pb2.ObjectiveRequest) -> stn_engine.Comparison:
    """Returns the engine's comparison for an objective."""
    return stn_engine.Comparison(
        loss=_read_enum(
            objective_pb2.Loss, request.loss, stn_engine.Loss, stn_engine.Loss.SSD, "loss"
        ),
        delta=request.delta if request.HasField("delta") else 1.0,
        domain=_read_enum(
            objective_pb2.Domain,
            request.domain,
            stn_engine.Domain,
            stn_engine.Domain.OVERLAP,
            "domain",
        ),
    )


def read_objective_needs(needs: Sequence[int]) -> tuple[str, ...]:
    """Returns what is wanted of an objective beside value and count, which are always sent."""
    names: dict[int, str] = {
        objective_pb2.OBJECTIVE_RESULT_VALUE: "",
        objective_pb2.OBJECTIVE_RESULT_GRADIENT: "gradient",
        objective_pb2.OBJECTIVE_RESULT_GAUSS_NEWTON: "gauss_newton",
    }
    for number in needs:
        if number == objective_pb2.OBJECTIVE_RESULT_UNSPECIFIED:
            known = " or ".join(objective_pb2.ObjectiveResult.keys()[1:])
            expected = f"expected {known}, got OBJECTIVE_RESULT_UNSPECIFIED."
            raise InvalidRequestError("needs", f"{expected} Leave it out.")
        if number not in names:
            raise unsupported("needs", objective_pb2.ObjectiveResult, number, names)
    if not needs:
        return ("gradient",)
    return tuple(names[number] for number in needs if names[number])


def _read_enum(kind: Any, number: int, values: Any, default: E, field: str) -> E:
    """Returns the engine's value of a wire enumeration; UNSPECIFIED is the default."""
    if number == 0:
        return default
    computed = offered(kind, values)
    if number not in computed:
        raise unsupported(field, kind, number, computed)
    member: E = values[kind.Name(number).removeprefix(_prefix(kind))]
    return member


def _prefix(kind: Any) -> str:
    """Returns the prefix of an enumeration's values: `PADDING_` of `PADDING_ZEROS`."""
    return str(kind.Name(0)).removesuffix("UNSPECIFIED")


def unsupported(field: str, kind: Any, number: int, known: Iterable[int]) -> UnsupportedError:
    """Makes the error of a value that is not among those that the server offers."""
    value = kind.Name(number) if number in kind.values() else str(number)
    return UnsupportedError(field, value, tuple(map(kind.Name, known)))
