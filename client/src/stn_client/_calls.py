"""Builds requests and reads replies. Knows no connection, so that both clients share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import ArrayLike, NDArray

from stn_client._errors import ProtocolMismatchError, invalid
from stn_client._layouts import warn_of_channels_last
from stn_client._options import GridOptions, WarpOptions
from stn_client._transforms import ParametricTransform, Transform
from stn_proto import (
    WireFormatError,
    get_tensor,
    join,
    join_many,
    nested,
    put_tensor,
    split,
    split_many,
)
from stn_proto.codec import DTYPES
from stn_proto.v1 import many_pb2, server_info_pb2, tensor_pb2, warp_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Array = NDArray[Any]
Payloads = list[memoryview]
Places = Sequence[NDArray[np.uint8] | None]

SERVICE = "stn.v1.SpatialTransformer"
METHOD_PREFIX = f"/{SERVICE}/"
_NESTED_CALL: Any = many_pb2.NestedCall.DESCRIPTOR

NESTED: dict[str, Any] = {
    METHOD_PREFIX + descriptor.message_type.name.removesuffix("Request"): descriptor
    for descriptor in _NESTED_CALL.oneofs_by_name["request"].fields
}
"""Fields of the calls that ComputeMany takes, by the path of their method."""

_OPERANDS = {
    "feature_map": warp_pb2.OPERAND_FEATURE_MAP,
    "transform": warp_pb2.OPERAND_TRANSFORM,
}
_KINDS = {
    kind: name
    for name in warp_pb2.Transform.DESCRIPTOR.fields_by_name
    for kind in get_args(Transform)
    if kind.__name__ == getattr(warp_pb2.Transform(), name).DESCRIPTOR.name
}
"""Field of `Transform.kind` of every transform.

Messages and classes have the same names, and so have their fields: first comes the tensor of
parameters; what else a message has is in `settings`.
"""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients to the operands of a warp; None for one that was not asked for.

    Shapes:
        feature_map   as the feature map
        transform     as the parameters of the transform
    """

    feature_map: Array | None
    transform: Array | None


@dataclass(eq=False)
class Call(Generic[T]):
    """One RPC, ready to be sent as often as needed."""

    method: str
    """Full path."""
    message: Message
    """The request without its payloads."""
    payloads: Payloads
    parse: Callable[[bytes, Places], T]
    """Serialized reply, and the places that the request names for its tensors -> result."""
    results_bytes: tuple[int, ...] = ()
    """Bytes of each tensor of the reply, as far as the request tells; a server may see it
    otherwise."""

    @cached_property
    def request(self) -> bytes:
        """The request as it is sent, serialized."""
        return join(self.message.SerializeToString(), self.payloads)


def warp(
    feature_map: ArrayLike,
    transform: Transform,
    output_size: Sequence[int] | None,
    options: WarpOptions,
) -> Call[Array]:
    """Makes the call of the method `Warp`."""
    payloads: Payloads = []
    request = warp_pb2.WarpRequest(
        feature_map=_put_map("feature_map", feature_map, payloads, options),
        transform=_transform(transform, payloads),
        output_size=None if output_size is None else _size(output_size),
        spec=_spec(options),
    )

    def result(reply: warp_pb2.WarpReply, payloads: Payloads) -> Array:
        return get_tensor(reply.output, payloads, "output")

    sizes = [_output_bytes(request)]
    return _call("Warp", request, payloads, warp_pb2.WarpReply, result, sizes)


def warp_gradients(
    grad_output: ArrayLike,
    feature_map: ArrayLike,
    transform: Transform,
    needs: Iterable[str],
    options: WarpOptions,
) -> Call[Gradients]:
    """Makes the call of the method `WarpGradients`."""
    payloads: Payloads = []
    request = warp_pb2.WarpGradientsRequest(
        grad_output=_put_map("grad_output", grad_output, payloads, options),
        feature_map=_put_map("feature_map", feature_map, payloads, options),
        transform=_transform(transform, payloads),
        spec=_spec(options),
        needs=_needs(needs),
    )

    def result(reply: warp_pb2.WarpGradientsReply, payloads: Payloads) -> Gradients:
        return Gradients(
            *(
                get_tensor(getattr(reply, name), payloads, name) if reply.HasField(name) else None
                for name in ("grad_feature_map", "grad_transform")
            )
        )

    operands = {
        warp_pb2.OPERAND_FEATURE_MAP: request.feature_map,
        warp_pb2.OPERAND_TRANSFORM: _parameters(request.transform),
    }
    sizes = [
        _size_bytes(tensor) for operand, tensor in operands.items() if operand in request.needs
    ]
    return _call("WarpGradients", request, payloads, warp_pb2.WarpGradientsReply, result, sizes)


def generate_grid(
    transform: ParametricTransform, output_size: Sequence[int], options: GridOptions
) -> Call[Array]:
    """Makes the call of the method `GenerateGrid`."""
    payloads: Payloads = []
    request = warp_pb2.GenerateGridRequest(
        transform=_transform(transform, payloads),
        output_size=_size(output_size),
        **_grid_fields(options),
    )

    def result(reply: warp_pb2.GenerateGridReply, payloads: Payloads) -> Array:
        return get_tensor(reply.grid, payloads, "grid")

    parameters, target = _parameters(request.transform), request.output_size
    points = math.prod((*parameters.shape[:1], *target, len(target)))
    sizes = [points * DTYPES[parameters.data_type].itemsize]
    return _call("GenerateGrid", request, payloads, warp_pb2.GenerateGridReply, result, sizes)


def generate_grid_gradients(
    grad_grid: ArrayLike, transform: ParametricTransform, options: GridOptions
) -> Call[Array]:
    """Makes the call of the method `GenerateGridGradients`."""
    payloads: Payloads = []
    request = warp_pb2.GenerateGridGradientsRequest(
        grad_grid=_put("grad_grid", grad_grid, payloads),
        transform=_transform(transform, payloads),
        **_grid_fields(options),
    )

    def result(reply: warp_pb2.GenerateGridGradientsReply, payloads: Payloads) -> Array:
        return get_tensor(reply.grad_transform, payloads, "grad_transform")

    reply_kind = warp_pb2.GenerateGridGradientsReply
    sizes = [_size_bytes(_parameters(request.transform))]
    return _call("GenerateGridGradients", request, payloads, reply_kind, result, sizes)


def server_info() -> Call[server_info_pb2.GetServerInfoReply]:
    """Makes the call of the method `GetServerInfo`."""
    request = server_info_pb2.GetServerInfoRequest()
    kind = server_info_pb2.GetServerInfoReply
    return _call("GetServerInfo", request, [], kind, lambda reply, _payloads: reply)


def compute_many(calls: Sequence[Call[Any]]) -> Call[list[bytes | many_pb2.Status]]:
    """Makes the call of the method `ComputeMany`.

    Returns:
        A call whose result has, for each of these calls, its serialized reply, in memory of its
        own, or a status.
    """
    payloads = [payload for call in calls for payload in call.payloads]
    pieces = [
        nested(NESTED[call.method].number, call.message.SerializeToString(), len(call.payloads))
        for call in calls
    ]
    names = [NESTED[call.method].name for call in calls]

    def parse(message: bytes, _places: Places = ()) -> list[bytes | many_pb2.Status]:
        try:
            return list(_replies(message, names))
        except (WireFormatError, DecodeError) as error:
            raise ProtocolMismatchError(f"ComputeMany: expected its reply, got {error}.") from error

    call = Call(METHOD_PREFIX + "ComputeMany", many_pb2.ComputeManyRequest(), payloads, parse)
    call.request = join_many(pieces, payloads)
    return call


def _replies(message: bytes, names: Sequence[str]) -> Iterator[bytes | many_pb2.Status]:
    """The replies in a reply of ComputeMany, which have to be of these kinds, or statuses."""
    found = split_many(message)
    if len(found.nested) != len(names):
        raise WireFormatError("replies", f"{len(names)} of them", str(len(found.nested)))
    end = 0
    for piece, name in zip(found.nested, names, strict=True):
        reply = many_pb2.NestedReply.FromString(piece)
        start, end = end, end + reply.payload_count
        kind = reply.WhichOneof("outcome")
        if kind == "status":
            yield reply.status
        elif kind == name:
            yield join(getattr(reply, name).SerializeToString(), found.payloads[start:end])
        else:
            raise WireFormatError("replies", f"one of {name}", f"one of {kind}")


def check_options(options: WarpOptions, output_size: Sequence[int] | None) -> None:
    """Options of warps that are yet to come.

    Raises:
        TypeError: There is no such option.
        InvalidRequestError: A value breaks a rule.
    """
    _spec(options)
    _layout(options)
    if output_size is not None:
        _size(output_size)


def _call(
    method: str,
    request: Message,
    payloads: Payloads,
    reply_kind: type[M],
    result: Callable[[M, Payloads], T],
    results_bytes: Iterable[int] = (),
) -> Call[T]:
    def parse(message: bytes, places: Places = ()) -> T:
        try:
            envelope, received = split(message)
            reply = reply_kind.FromString(envelope)
            _take_up(reply, received, places)
            return result(reply, received)
        except (WireFormatError, DecodeError) as error:
            raise ProtocolMismatchError(f"{method}: expected its reply, got {error}.") from error

    return Call(METHOD_PREFIX + method, request, payloads, parse, tuple(results_bytes))


def tensors_of(message: Message) -> Iterator[tensor_pb2.Tensor]:
    """The tensors of a request or a reply, in the order of their fields."""
    for _, value in message.ListFields():
        if isinstance(value, tensor_pb2.Tensor):
            yield value
        elif isinstance(value, Message):
            yield from tensors_of(value)


def _take_up(reply: Message, received: Payloads, places: Places) -> None:
    """Makes payloads of the tensors of a reply that lie where the request wanted them."""
    if not any(place is not None for place in places):
        return
    for tensor, place in zip(tensors_of(reply), places, strict=False):
        if tensor.WhichOneof("source") == "arena" and place is not None:
            received.append(place.data[: tensor.arena.byte_count])
            tensor.payload = len(received) - 1


def _size_bytes(tensor: tensor_pb2.Tensor) -> int:
    return math.prod(tensor.shape) * DTYPES[tensor.data_type].itemsize


def _parameters(transform: warp_pb2.Transform) -> tensor_pb2.Tensor:
    """Returns the parameters of the transform that a message has."""
    kind = getattr(transform, str(transform.WhichOneof("kind")))
    parameters: tensor_pb2.Tensor = kind.ListFields()[0][1]  # they come first
    return parameters


def _output_bytes(request: warp_pb2.WarpRequest) -> int:
    """Counts the bytes of the output of a warp, if the server finds no fault with the request."""
    feature_map, parameters = request.feature_map, _parameters(request.transform)
    batch, *others = feature_map.shape or (1,)
    if batch == 1 and parameters.shape:
        batch = parameters.shape[0]
    is_last = feature_map.layout == tensor_pb2.LAYOUT_NHWC
    source, channels = (others[:-1], others[-1:]) if is_last else (others[1:], others[:1])
    of_points = request.transform.WhichOneof("kind") in {"sampling_grid", "flow"}
    target = request.output_size or (parameters.shape[1:-1] if of_points else source)
    return math.prod((batch, *channels, *target)) * DTYPES[feature_map.data_type].itemsize


def _put(
    field: str,
    array: ArrayLike,
    payloads: Payloads,
    layout: tensor_pb2.Layout = tensor_pb2.LAYOUT_UNSPECIFIED,
) -> tensor_pb2.Tensor:
    try:
        return put_tensor(as_array(field, array), payloads, layout=layout)
    except WireFormatError as error:
        raise invalid(field, f"expected {error.expected}, got {error.actual}. Cast it.") from error


def _put_map(
    field: str, array: ArrayLike, payloads: Payloads, options: WarpOptions
) -> tensor_pb2.Tensor:
    layout = _layout(options)
    if layout == tensor_pb2.LAYOUT_NCHW:
        warn_of_channels_last(getattr(array, "shape", ()))
    return _put(field, array, payloads, layout)


def _layout(options: WarpOptions) -> tensor_pb2.Layout:
    layout: tensor_pb2.Layout = _enum(tensor_pb2.Layout, "layout", options.get("layout", "NCHW"))
    return layout


def _transform(transform: Transform, payloads: Payloads) -> warp_pb2.Transform:
    if type(transform) not in _KINDS:
        expected = " or ".join(kind.__name__ for kind in _KINDS)
        hint = " Unpack it: **transform." if isinstance(transform, Mapping) else ""
        raise invalid("transform", f"expected {expected}, got {type(transform).__name__}.{hint}")
    argument = fields(transform)[0].name
    tensor = _put(argument, _real(argument, as_array(argument, transform.parameters)), payloads)
    settings = getattr(transform, "settings", {})
    message = warp_pb2.Transform()
    kind = getattr(message, _KINDS[type(transform)])
    kind.MergeFrom(type(kind)(**{argument: tensor}, **settings))
    return message


def as_array(field: str, value: ArrayLike) -> Array:
    """What an argument is for NumPy.

    Raises:
        InvalidRequestError: Nothing: a list of lists of different lengths, a tensor elsewhere.
    """
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise invalid(field, f"expected an array, got {type(value).__name__}: {error}") from error


def _real(field: str, array: Array) -> Array:
    """Parameters in a precision that the service takes, as `[[1, 0, 0], [0, 1, 0]]` in float64.

    Those in half precision become float32, as torch's do under autocast.
    """
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype.name in {"float16", "bfloat16"}:
        return array.astype(np.float32)
    if array.dtype.kind != "f":
        raise invalid(field, f"expected float32 or float64, got {array.dtype}. Cast it.")
    return array


def _spec(options: WarpOptions) -> warp_pb2.WarpSpec:
    reject_unknown(options, WarpOptions.__annotations__)
    return warp_pb2.WarpSpec(
        interpolation=_enum(
            warp_pb2.Interpolation, "interpolation", options.get("interpolation", "bilinear")
        ),
        padding=_enum(warp_pb2.Padding, "padding", options.get("padding", "zeros")),
        fill=_fill(options.get("fill", ())),
        subgradient=_enum(warp_pb2.Subgradient, "subgradient", options.get("subgradient", "right")),
        allow_nondeterministic=not _flag("deterministic", options.get("deterministic", True)),
        **_grid_fields(options, check=False),
    )


def _grid_fields(options: GridOptions, *, check: bool = True) -> dict[str, Any]:
    if check:
        reject_unknown(options, GridOptions.__annotations__)
    coordinates = options.get("coordinates", "normalized")
    return {
        "coordinates": _enum(warp_pb2.Coordinates, "coordinates", coordinates),
        "align_corners": _flag("align_corners", options.get("align_corners", False)),
    }


def _flag(option: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise invalid(option, f"expected True or False, got {value!r}.")
    return bool(value)


def _size(size: Sequence[int]) -> Array:
    sizes = as_array("output_size", size)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
        raise invalid("output_size", f"expected integers ([D',] H', W'), got {size!r}.")
    if sizes.max(initial=0) >= 2**63:
        raise invalid("output_size", f"expected sizes below 2**63, got {size!r}.")
    return sizes


def _fill(fill: float | Sequence[float]) -> Array:
    values = np.atleast_1d(as_array("fill", fill))
    if values.dtype.kind not in "iufb" and values.size:
        raise invalid("fill", f"expected numbers, got {fill!r}.")
    if values.ndim != 1:
        raise invalid("fill", f"expected one number, or one per channel, got {fill!r}.")
    return values.astype(np.float64)


def _needs(needs: Iterable[str]) -> list[warp_pb2.Operand]:
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise invalid("needs", f"expected a list of {', '.join(_OPERANDS)}, got {needs!r}.")
    numbers = [_choice("needs", need, _OPERANDS) for need in needs]
    if not numbers:  # on the wire, none stands for all
        raise invalid("needs", f"expected at least one of {', '.join(_OPERANDS)}, got none.")
    return numbers


def reject_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    for name in options:
        if name not in known:
            raise TypeError(f"{name}: expected an option of {', '.join(known)}, got this.")


def _enum(kind: Any, option: str, name: str) -> Any:
    """The number of `name` in a wire enumeration: "zeros" is PADDING_ZEROS."""
    prefix = kind.Name(0).removesuffix("UNSPECIFIED")
    names = {key.removeprefix(prefix).lower(): number for key, number in kind.items() if number}
    if kind is tensor_pb2.Layout:
        names = {key.upper(): number for key, number in names.items()}
    return _choice(option, name, names)


def _choice(option: str, name: str, numbers: dict[str, T]) -> T:
    if not isinstance(name, str) or name not in numbers:
        raise invalid(option, f"expected one of {', '.join(numbers)}, got {name!r}.")
    return numbers[name]
