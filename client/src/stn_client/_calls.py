"""Builds requests and reads replies. Knows no connection, so that both clients share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_args

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from stn_client._arrays import AnyArray, Array, Operand, as_array, operand
from stn_client._checks import checked_metadata, checked_request_id, checked_timeout_s
from stn_client._errors import ProtocolMismatchError, invalid
from stn_client._layouts import (
    LAYOUTS,
    layout_of,
    warn_of_channels_last,
    with_batch,
    without_batch,
)
from stn_client._options import (
    TIMEOUT_OF_CLIENT,
    CallOptions,
    GridCallOptions,
    GridOptions,
    WarpCallOptions,
    WarpOptions,
)
from stn_client._retry import RetryPolicy
from stn_client._server_info import ServerInfo, from_message
from stn_client._transforms import (
    Affine,
    Flow,
    Homography,
    ParametricTransform,
    SamplingGrid,
    ThinPlateSpline,
    Transform,
)
from stn_client._words import words_of
from stn_proto import WireFormatError, get_tensor, join, put_tensor, split
from stn_proto.codec import DTYPES
from stn_proto.v1 import server_info_pb2, tensor_pb2, warp_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Payloads = list[memoryview]
Places = Sequence[NDArray[np.uint8] | None]

SERVICE = "stn.v1.SpatialTransformer"
METHOD_PREFIX = f"/{SERVICE}/"
_OPERANDS = {
    "feature_map": warp_pb2.OPERAND_FEATURE_MAP,
    "transform": warp_pb2.OPERAND_TRANSFORM,
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


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients to the operands of a warp; None for one that was not asked for.

    Shapes:
        feature_map   as the feature map
        transform     as the parameters of the transform
    """

    feature_map: Array | None
    transform: Array | None


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a call is made, whatever it computes."""

    timeout_s: Any = TIMEOUT_OF_CLIENT
    """None: no limit."""
    metadata: tuple[tuple[str, str], ...] = ()
    request_id: str | None = None
    retry: RetryPolicy | None = None
    """None: that of the client."""

    @classmethod
    def of(cls, options: CallOptions, retry: RetryPolicy | None = None) -> Conduct:
        """What the options of a call say, checked.

        Raises:
            InvalidRequestError: A value breaks a rule.
        """
        if not (options.keys() & CallOptions.__annotations__.keys()):
            return _USUAL if retry is None else cls(retry=retry)
        given: Any = options.get("timeout_s", TIMEOUT_OF_CLIENT)
        return cls(
            given if given is TIMEOUT_OF_CLIENT else checked_timeout_s(given),
            checked_metadata(options.get("metadata", {})),
            checked_request_id(options.get("request_id")),
            retry,
        )


_USUAL = Conduct()


class Result(NamedTuple):
    """A tensor of a reply."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


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
    results: tuple[Result, ...] = ()
    """The tensors of the reply, as far as the request tells; a server may see it otherwise."""
    conduct: Conduct = _USUAL

    @cached_property
    def results_bytes(self) -> tuple[int, ...]:
        """Bytes of each tensor of the reply."""
        return tuple(math.prod(one.shape) * one.dtype.itemsize for one in self.results)

    @cached_property
    def request(self) -> bytes:
        """The request as it is sent, serialized."""
        return join(self.message.SerializeToString(), self.payloads)


def warp(
    feature_map: AnyArray,
    transform: Transform,
    output_size: Sequence[int] | None,
    options: WarpCallOptions,
) -> Call[Array]:
    """Makes the call of the method `Warp`."""
    payloads: Payloads = []
    given = operand("feature_map", feature_map)
    layout = layout_of(options.get("layout"), given.layout)
    request = warp_pb2.WarpRequest(
        feature_map=_put_map("feature_map", given, payloads, layout),
        transform=_transform(transform, payloads, layout)[0],
        output_size=None if output_size is None else _size(output_size),
        spec=_spec(options),
    )

    def result(reply: warp_pb2.WarpReply, payloads: Payloads) -> Array:
        output = get_tensor(reply.output, payloads, "output")
        return cast("Array", given.like(without_batch(output, layout)))

    results = [_output(request)]
    return _call("Warp", request, payloads, warp_pb2.WarpReply, result, results, options)


def warp_gradients(
    grad_output: AnyArray,
    feature_map: AnyArray,
    transform: Transform,
    needs: Iterable[str],
    options: WarpCallOptions,
) -> Call[Gradients]:
    """Makes the call of the method `WarpGradients`."""
    payloads: Payloads = []
    given = operand("feature_map", feature_map)
    layout = layout_of(options.get("layout"), given.layout)
    incoming = operand("grad_output", grad_output)
    grad_output_tensor = _put_map("grad_output", incoming, payloads, layout)
    feature_map_tensor = _put_map("feature_map", given, payloads, layout)
    parameters, parameters_like = _transform(transform, payloads, layout)
    request = warp_pb2.WarpGradientsRequest(
        grad_output=grad_output_tensor,
        feature_map=feature_map_tensor,
        transform=parameters,
        spec=_spec(options),
        needs=_needs(needs),
    )

    def result(reply: warp_pb2.WarpGradientsReply, payloads: Payloads) -> Gradients:
        gradients: list[Array | None] = [None, None]
        if reply.HasField("grad_feature_map"):
            gradient = get_tensor(reply.grad_feature_map, payloads, "grad_feature_map")
            gradients[0] = given.like(without_batch(gradient, layout))
        if reply.HasField("grad_transform"):
            gradient = get_tensor(reply.grad_transform, payloads, "grad_transform")
            gradients[1] = parameters_like(gradient)
        return Gradients(*gradients)

    operands = {
        warp_pb2.OPERAND_FEATURE_MAP: request.feature_map,
        warp_pb2.OPERAND_TRANSFORM: _parameters(request.transform),
    }
    results = [_like(tensor) for operand, tensor in operands.items() if operand in request.needs]
    reply_kind = warp_pb2.WarpGradientsReply
    return _call("WarpGradients", request, payloads, reply_kind, result, results, options)


def generate_grid(
    transform: ParametricTransform, output_size: Sequence[int], options: GridCallOptions
) -> Call[Array]:
    """Makes the call of the method `GenerateGrid`."""
    payloads: Payloads = []
    request = warp_pb2.GenerateGridRequest(
        transform=_transform(transform, payloads)[0],
        output_size=_size(output_size),
        **_grid_fields(options),
    )

    def result(reply: warp_pb2.GenerateGridReply, payloads: Payloads) -> Array:
        grid = get_tensor(reply.grid, payloads, "grid")
        return cast("Array", operand("transform", transform.parameters).like(grid))

    parameters, target = _parameters(request.transform), request.output_size
    shape = (*parameters.shape[:1], *target, len(target))
    results = [Result(shape, DTYPES[parameters.data_type])]
    reply_kind = warp_pb2.GenerateGridReply
    return _call("GenerateGrid", request, payloads, reply_kind, result, results, options)


def generate_grid_gradients(
    grad_grid: AnyArray, transform: ParametricTransform, options: GridCallOptions
) -> Call[Array]:
    """Makes the call of the method `GenerateGridGradients`."""
    payloads: Payloads = []
    grad_grid_tensor = _put("grad_grid", as_array("grad_grid", grad_grid), payloads)
    sent, like = _transform(transform, payloads)
    request = warp_pb2.GenerateGridGradientsRequest(
        grad_grid=grad_grid_tensor,
        transform=sent,
        **_grid_fields(options),
    )

    def result(reply: warp_pb2.GenerateGridGradientsReply, payloads: Payloads) -> Array:
        gradient = get_tensor(reply.grad_transform, payloads, "grad_transform")
        return cast("Array", like(gradient))

    reply_kind = warp_pb2.GenerateGridGradientsReply
    results = [_like(_parameters(request.transform))]
    return _call("GenerateGridGradients", request, payloads, reply_kind, result, results, options)


def server_info(options: CallOptions, retry: RetryPolicy | None = None) -> Call[ServerInfo]:
    """Makes the call of the method `GetServerInfo`."""
    reject_unknown(options, CallOptions.__annotations__)
    request = server_info_pb2.GetServerInfoRequest()
    reply_kind = server_info_pb2.GetServerInfoReply

    def result(reply: server_info_pb2.GetServerInfoReply, _payloads: Payloads) -> ServerInfo:
        return from_message(ServerInfo, reply)

    return _call("GetServerInfo", request, [], reply_kind, result, (), options, retry)


def check_options(options: WarpOptions, output_size: Sequence[int] | None) -> None:
    """Options of warps that are yet to come.

    Raises:
        TypeError: There is no such option.
        InvalidRequestError: A value breaks a rule.
    """
    reject_unknown(options, WarpOptions.__annotations__)
    _spec(options)
    layout_of(options.get("layout"), None)
    if output_size is not None:
        _size(output_size)


def _call(
    method: str,
    request: Message,
    payloads: Payloads,
    reply_kind: type[M],
    result: Callable[[M, Payloads], T],
    results: Iterable[Result],
    options: CallOptions,
    retry: RetryPolicy | None = None,
) -> Call[T]:
    def parse(message: bytes, places: Places = ()) -> T:
        try:
            envelope, received = split(message)
            reply = reply_kind.FromString(envelope)
            _take_up(reply, received, places)
            return result(reply, received)
        except (WireFormatError, DecodeError) as error:
            raise ProtocolMismatchError(f"{method}: expected its reply, got {error}.") from error

    conduct = Conduct.of(options, retry)
    return Call(METHOD_PREFIX + method, request, payloads, parse, tuple(results), conduct)


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


def _like(tensor: tensor_pb2.Tensor) -> Result:
    return Result(tuple(tensor.shape), DTYPES[tensor.data_type])


def _parameters(transform: warp_pb2.Transform) -> tensor_pb2.Tensor:
    """Returns the parameters of the transform that a message has."""
    kind = getattr(transform, str(transform.WhichOneof("kind")))
    parameters: tensor_pb2.Tensor = kind.ListFields()[0][1]  # they come first
    return parameters


def _output(request: warp_pb2.WarpRequest) -> Result:
    """The output of a warp, if the server finds no fault with the request."""
    feature_map, parameters = request.feature_map, _parameters(request.transform)
    batch, *others = feature_map.shape or (1,)
    if batch == 1 and parameters.shape:
        batch = parameters.shape[0]
    is_last = feature_map.layout == tensor_pb2.LAYOUT_NHWC
    source, channels = (others[:-1], others[-1:]) if is_last else (others[1:], others[:1])
    of_points = request.transform.WhichOneof("kind") in {"sampling_grid", "flow"}
    target = request.output_size or (parameters.shape[1:-1] if of_points else source)
    shape = (batch, *target, *channels) if is_last else (batch, *channels, *target)
    return Result(shape, DTYPES[feature_map.data_type])


def _put(
    field: str,
    array: Array,
    payloads: Payloads,
    layout: tensor_pb2.Layout = tensor_pb2.LAYOUT_UNSPECIFIED,
) -> tensor_pb2.Tensor:
    try:
        return put_tensor(array, payloads, layout=layout)
    except WireFormatError as error:
        raise invalid(field, f"expected {error.expected}, got {error.actual}. Cast it.") from error


def _put_map(field: str, given: Operand, payloads: Payloads, layout: str) -> tensor_pb2.Tensor:
    if layout == "NCHW":
        warn_of_channels_last(given.array.shape)
    on_wire = _enum(tensor_pb2.Layout, "layout", LAYOUTS[layout].on_wire)
    return _put(field, with_batch(field, given.array, layout), payloads, on_wire)


def _transform(
    transform: Transform, payloads: Payloads, layout: str = "NCHW"
) -> tuple[warp_pb2.Transform, Callable[[Array], Any]]:
    """A transform as it is sent, and what makes gradients by its parameters like these."""
    if type(transform) not in KINDS:
        expected = " or ".join(kind.__name__ for kind in KINDS)
        hint = " Unpack it: **transform." if isinstance(transform, Mapping) else ""
        raise invalid("transform", f"expected {expected}, got {type(transform).__name__}.{hint}")
    argument = fields(transform)[0].name
    given = operand(argument, transform.parameters)
    array = _real(argument, given.array)
    batched = parameters_with_batch(transform, argument, array, layout)

    def like(gradient: Array) -> Any:
        return given.like(gradient.reshape(array.shape))

    tensor = _put(argument, batched, payloads)
    settings = getattr(transform, "settings", {})
    message = warp_pb2.Transform()
    kind = getattr(message, KINDS[type(transform)])
    kind.MergeFrom(type(kind)(**{argument: tensor}, **settings))
    return message, like


def parameters_with_batch(
    transform: Transform, argument: str, parameters: Array, layout: str
) -> Array:
    """Parameters with a batch axis, which those beside a map without one need not have.

    Raises:
        InvalidRequestError: They are those of several maps, beside one.
    """
    if not LAYOUTS[layout].added:
        return parameters
    rank = 1
    if isinstance(transform, Affine | Homography | ThinPlateSpline):
        rank = 2
    elif isinstance(transform, Flow | SamplingGrid):
        rank = parameters.shape[-1] + 1 if parameters.ndim else 0
    if parameters.ndim == rank:
        return parameters[None]
    if parameters.shape[:1] != (1,):
        expected = f"expected those of one map (N = 1) beside layout {layout!r}"
        advice = 'Give maps a batch axis: "NCHW" or "NHWC".'
        raise invalid(argument, f"{expected}, got shape {parameters.shape}. {advice}")
    return parameters


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
    reject_unknown(options, WarpCallOptions.__annotations__)
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
        reject_unknown(options, GridCallOptions.__annotations__)
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
    numbers = {word: number for number, word in words_of(kind.DESCRIPTOR).items()}
    return _choice(option, name, numbers)


def _choice(option: str, name: str, numbers: dict[str, T]) -> T:
    if not isinstance(name, str) or name not in numbers:
        raise invalid(option, f"expected one of {', '.join(numbers)}, got {name!r}.")
    return numbers[name]
