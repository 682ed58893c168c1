"""Builds requests and reads replies. Knows no connection, so that both clients share it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Real
from typing import Any, Generic, TypeVar, get_args

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import ArrayLike

from stn_client._envelopes import (
    METHOD_PREFIX,
    NESTED,
    Array,
    Envelope,
    Kept,
    Payloads,
    Places,
    Reads,
    Replies,
    mismatch,
)
from stn_client._errors import invalid
from stn_client._layouts import warn_of_channels_last
from stn_client._options import GridOptions, WarpOptions
from stn_client._transforms import ParametricTransform, Transform
from stn_proto import (
    WireFormatError,
    join,
    join_many,
    put_tensor,
    split_many,
    to_payload,
)
from stn_proto.codec import DTYPES
from stn_proto.v1 import many_pb2, objective_pb2, server_info_pb2, tensor_pb2, warp_pb2

T = TypeVar("T")

_OPERANDS = {
    "feature_map": warp_pb2.OPERAND_FEATURE_MAP,
    "transform": warp_pb2.OPERAND_TRANSFORM,
}
_OBJECTIVE_NEEDS = {
    "gradient": objective_pb2.OBJECTIVE_RESULT_GRADIENT,
    "gauss_newton": objective_pb2.OBJECTIVE_RESULT_GAUSS_NEWTON,
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

_PLAIN_KINDS = {kind for kind in _KINDS if len(fields(kind)) == 1}
"""Transforms that have nothing but parameters."""

_PLAIN_OPTIONS = {str, bool}
"""Types of options of which equal ones are the same; of numbers they need not be."""

_kept = Kept()
"""Envelopes of the calls of this process."""


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
class Objective:
    """How far the warp of one map is from another; None for what was not asked for.

    Shapes:
        value          (N,)         float64
        count          (N,)         float64, the sum of the weights
        gradient       (N, ...)     of each item's value by its own parameters; their dtype
        gauss_newton   (N, K, K)    float64; K parameters an item, row by row
    """

    value: Array
    count: Array
    gradient: Array | None
    gauss_newton: Array | None


@dataclass(eq=False)
class Call(Generic[T]):
    """One RPC, ready to be sent as often as needed."""

    envelope: Envelope[T]
    payloads: Payloads

    @property
    def method(self) -> str:
        """The full path of its method."""
        return self.envelope.method

    @property
    def message(self) -> Message:
        """The request without its payloads; not to be changed."""
        return self.envelope.message

    @property
    def results_bytes(self) -> tuple[int, ...]:
        """Bytes of each tensor of the reply; see `Envelope`."""
        return self.envelope.results_bytes

    @cached_property
    def request(self) -> bytes:
        """The request as it is sent, serialized."""
        return self.envelope.around(self.payloads)

    def parse(self, reply: bytes, places: Places = ()) -> T:
        """The result in a serialized reply; see `Replies`."""
        return self.envelope.replies.read(reply, places)


def warp(
    feature_map: ArrayLike,
    transform: Transform,
    output_size: Sequence[int] | None,
    options: WarpOptions,
) -> Call[Array]:
    """Makes the call of the method `Warp`."""
    key = _key("Warp", [feature_map], transform, output_size, options)
    if (envelope := _kept.get(key)) is not None:
        return _again(envelope, feature_map, transform.parameters)
    payloads: Payloads = []
    request = warp_pb2.WarpRequest(
        feature_map=_put_map("feature_map", feature_map, payloads, options),
        transform=_transform(transform, payloads),
        output_size=None if output_size is None else _size(output_size),
        spec=_spec(options),
    )
    replies = Replies("Warp", warp_pb2.WarpReply, ["output"], _only)
    return _call("Warp", request, payloads, replies, [_output_bytes(request)], key)


def warp_gradients(
    grad_output: ArrayLike,
    feature_map: ArrayLike,
    transform: Transform,
    needs: Iterable[str],
    options: WarpOptions,
) -> Call[Gradients]:
    """Makes the call of the method `WarpGradients`."""
    key = _key("WarpGradients", [grad_output, feature_map], transform, needs, options)
    if (envelope := _kept.get(key)) is not None:
        return _again(envelope, grad_output, feature_map, transform.parameters)
    payloads: Payloads = []
    request = warp_pb2.WarpGradientsRequest(
        grad_output=_put_map("grad_output", grad_output, payloads, options),
        feature_map=_put_map("feature_map", feature_map, payloads, options),
        transform=_transform(transform, payloads),
        spec=_spec(options),
        needs=_needs(needs),
    )

    operands = {
        warp_pb2.OPERAND_FEATURE_MAP: request.feature_map,
        warp_pb2.OPERAND_TRANSFORM: _parameters(request.transform),
    }
    sizes = [
        _size_bytes(tensor) for operand, tensor in operands.items() if operand in request.needs
    ]
    fields = ["grad_feature_map", "grad_transform"]
    kind = warp_pb2.WarpGradientsReply
    replies = Replies("WarpGradients", kind, fields, Gradients, optional=fields)
    return _call("WarpGradients", request, payloads, replies, sizes, key)


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

    parameters, target = _parameters(request.transform), request.output_size
    points = math.prod((*parameters.shape[:1], *target, len(target)))
    sizes = [points * DTYPES[parameters.data_type].itemsize]
    replies = Replies("GenerateGrid", warp_pb2.GenerateGridReply, ["grid"], _only)
    return _call("GenerateGrid", request, payloads, replies, sizes)


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

    kind, method = warp_pb2.GenerateGridGradientsReply, "GenerateGridGradients"
    sizes = [_size_bytes(_parameters(request.transform))]
    return _call(method, request, payloads, Replies(method, kind, ["grad_transform"], _only), sizes)


def objective(
    moving: ArrayLike,
    fixed: ArrayLike,
    transform: Transform,
    weights: ArrayLike | None,
    comparison: Mapping[str, Any],
    needs: Iterable[str],
    options: WarpOptions,
) -> Call[Objective]:
    """Makes the call of the method `Objective`."""
    payloads: Payloads = []
    delta = comparison["delta"]
    if isinstance(delta, bool) or not isinstance(delta, Real):
        raise invalid("delta", f"expected a number, got {delta!r}.")
    request = objective_pb2.ObjectiveRequest(
        moving=_put_map("moving", moving, payloads, options),
        fixed=_put_map("fixed", fixed, payloads, options),
        transform=_transform(transform, payloads),
        spec=_spec(options),
        weights=None if weights is None else _put_map("weights", weights, payloads, options),
        loss=_enum(objective_pb2.Loss, "loss", comparison["loss"]),
        delta=float(delta),
        domain=_enum(objective_pb2.Domain, "domain", comparison["domain"]),
        needs=_objective_needs(needs),
    )

    fields = ["value", "count", *_OBJECTIVE_NEEDS]
    kind, optional = objective_pb2.ObjectiveReply, _OBJECTIVE_NEEDS.keys()
    replies = Replies("Objective", kind, fields, Objective, optional=optional)
    return _call("Objective", request, payloads, replies, ())  # small, so that none is placed


def server_info() -> Call[server_info_pb2.GetServerInfoReply]:
    """Makes the call of the method `GetServerInfo`."""
    request = server_info_pb2.GetServerInfoRequest()
    return _call("GetServerInfo", request, [], _ServerInfoReplies(), [])


class _ServerInfoReplies:
    """Reads replies that have no tensors."""

    def read(self, message: bytes, _places: Places = ()) -> server_info_pb2.GetServerInfoReply:
        try:
            return server_info_pb2.GetServerInfoReply.FromString(message)
        except DecodeError as error:
            raise mismatch("GetServerInfo", error) from error


def compute_many(calls: Sequence[Call[Any]]) -> Call[list[bytes | many_pb2.Status]]:
    """Makes the call of the method `ComputeMany`.

    Returns:
        A call whose result has, for each of these calls, its serialized reply, in memory of its
        own, or a status.
    """
    payloads = [payload for call in calls for payload in call.payloads]
    request = join_many([call.envelope.nested for call in calls], payloads)
    replies = _ManyReplies([NESTED[call.method].name for call in calls])
    message = many_pb2.ComputeManyRequest()
    envelope = Envelope(METHOD_PREFIX + "ComputeMany", message, (), (), replies)
    envelope.size_bytes = len(request)
    call = Call(envelope, payloads)
    call.request = request
    return call


class _ManyReplies:
    """Reads replies of ComputeMany.

    Args:
        names: Of the kind of each reply within, unless it is a status.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def read(self, message: bytes, _places: Places = ()) -> list[bytes | many_pb2.Status]:
        try:
            return list(self._replies(message))
        except (WireFormatError, DecodeError) as error:
            raise mismatch("ComputeMany", error) from error

    def _replies(self, message: bytes) -> Iterator[bytes | many_pb2.Status]:
        found, names = split_many(message), self._names
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
    replies: Reads[T],
    results_bytes: Iterable[int],
    key: Hashable = None,
) -> Call[T]:
    """A call, whose envelope is kept if it has a key."""
    operands_bytes = tuple(map(len, payloads))
    path = METHOD_PREFIX + method
    envelope = Envelope(path, request, operands_bytes, tuple(results_bytes), replies)
    if key is not None:
        _kept.keep(key, envelope)
    return Call(envelope, payloads)


def _again(envelope: Envelope[T], *operands: Any) -> Call[T]:
    """A call of other values."""
    return Call(envelope, [to_payload(operand) for operand in operands])


def _key(
    method: str,
    maps: Sequence[ArrayLike],
    transform: Transform,
    others: Iterable[Any] | None,
    options: Mapping[str, Any],
) -> Hashable:
    """What calls with the same envelope have in common; None: that would take longer to say."""
    if type(transform) not in _PLAIN_KINDS:
        return None
    if options and not all(type(value) in _PLAIN_OPTIONS for value in options.values()):
        return None
    arrays = *maps, transform.parameters
    for array in arrays:
        if type(array) is not np.ndarray:
            return None
    if arrays[-1].dtype.char not in "fd":
        return None
    if others is not None:
        if type(others) not in {list, tuple} or not all(type(one) in {int, str} for one in others):
            return None
        others = tuple(others)
    layouts = [(array.dtype, array.shape) for array in arrays]
    return method, type(transform), others, *options.items(), *layouts


def _only(array: Array) -> Array:
    return array


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


def _objective_needs(needs: Iterable[str]) -> list[objective_pb2.ObjectiveResult]:
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise invalid("needs", f"expected a list of {', '.join(_OBJECTIVE_NEEDS)}, got {needs!r}.")
    value = objective_pb2.OBJECTIVE_RESULT_VALUE  # so that it is never empty, which has a default
    return [value, *(_choice("needs", need, _OBJECTIVE_NEEDS) for need in needs)]


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
