"""Makes the calls of every method. Knows no connection, so that both clients share it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from stn_client._arguments import (
    KINDS,
    OBJECTIVE_NEEDS,
    OPERANDS,
    check_floats,
    check_labels,
    check_same,
    enum_of,
    gradient_needs,
    grid_fields,
    map_operand,
    objective_needs,
    put,
    put_map,
    put_transform,
    size_of,
    spec_of,
)
from stn_client._arrays import AnyArray, Array, Operand, as_array, operand, unchanged
from stn_client._checks import as_float
from stn_client._envelopes import (
    METHOD_PREFIX,
    Envelope,
    Kept,
    Payloads,
    Places,
    Reads,
    Replies,
    Result,
    mismatch,
)
from stn_client._layouts import LAYOUTS, layout_of, without_batch
from stn_client._options import CallOptions, GridCallOptions, WarpCallOptions
from stn_client._prepared_call import Call, CallSettings, Gradients, Objective, settings_of
from stn_client._residents import ResidentTensor, residents_of
from stn_client._retry import RetryPolicy
from stn_client._server_info import ServerInfo, from_message
from stn_client._transforms import ParametricTransform, Transform
from stn_client._warnings import warn_of_zeros
from stn_proto import to_payload
from stn_proto.codec import DTYPES
from stn_proto.v1 import objective_pb2, server_info_pb2, tensor_pb2, warp_pb2

T = TypeVar("T")

MAX_COPIED_BYTES = 8 * 1024
"""The most bytes of an operand that are copied when its call is made."""

_LITTLE_ENDIAN = frozenset(DTYPES.values())

_PLAIN_KINDS = {kind for kind in KINDS if len(fields(kind)) == 1}
"""Transforms that have nothing but parameters."""

_PLAIN_OPTIONS = {str, bool}
"""Types of options of which equal ones are the same; of numbers they need not be."""

_PLAIN_OTHERS = {int, str}
"""Types of output sizes, and of names of operands, of which the same holds."""

_WITHOUT_BATCH = {
    layout: partial(without_batch, layout=layout) for layout, of in LAYOUTS.items() if of.added
}
"""Functions that make outputs of layouts without a batch axis of those of the wire."""

_kept = Kept()
"""Envelopes of the calls of this process."""


def warp(
    feature_map: AnyArray,
    transform: Transform,
    output_size: Sequence[int] | None,
    options: WarpCallOptions,
) -> Call[Array]:
    """Makes the call of the method `Warp`."""
    settings, options = CallSettings.of(options)
    given = map_operand("feature_map", feature_map)
    layout = layout_of(options.get("layout"), given.layout)
    finish = _maps(given, layout)
    residents = residents_of(given, getattr(transform, "parameters", None))
    keep = [
        name
        for name, one in zip(OPERANDS, residents, strict=False)
        if one is not None and one.held.is_kept
    ]
    key = _key(("Warp", *keep), (given.array,), transform, output_size, options, layout)
    if (envelope := _kept.get(key)) is not None:
        warn_of_zeros(transform, transform.parameters, options, given.array.shape, layout)
        return _again(envelope, settings, finish, keep, given, transform.parameters)
    spec = spec_of(options, ("output_size",))
    check_labels(given.array.dtype, options.get("interpolation", "bilinear"))
    payloads: Payloads = []
    feature_map_tensor = put_map("feature_map", given, payloads, layout)
    sent, parameters = put_transform(transform, payloads, layout)
    request = warp_pb2.WarpRequest(
        keep_for_gradients=[OPERANDS[name] for name in keep],
        feature_map=feature_map_tensor,
        transform=sent,
        output_size=None if output_size is None else size_of(output_size),
        spec=spec,
    )
    warn_of_zeros(transform, parameters.array, options, given.array.shape, layout)
    replies = Replies("Warp", warp_pb2.WarpReply, ["output"], _only)
    call = _call("Warp", request, payloads, replies, [_output(request)], key)
    call.settings, call.finish = settings, finish
    call.reside(given, transform.parameters, keep=keep)
    return call


def warp_gradients(
    grad_output: AnyArray,
    feature_map: AnyArray,
    transform: Transform,
    needs: Iterable[str],
    options: WarpCallOptions,
) -> Call[Gradients]:
    """Makes the call of the method `WarpGradients`."""
    settings, options = CallSettings.of(options)
    given = map_operand("feature_map", feature_map)
    incoming = map_operand("grad_output", grad_output)
    layout = layout_of(options.get("layout"), given.layout)
    maps = incoming.array, given.array
    key = _key(("WarpGradients",), maps, transform, needs, options, layout)
    if (envelope := _kept.get(key)) is not None:
        finish = _gradients(given, layout, operand("transform", transform.parameters))
        operands = incoming, given, transform.parameters
        return _again(envelope, settings, finish, (), *operands)
    for field, one in (("grad_output", incoming), ("feature_map", given)):
        check_floats(field, one.array.dtype)
    check_same("grad_output", incoming.array.dtype, "feature_map", given.array.dtype)
    payloads: Payloads = []
    grad_output_tensor = put_map("grad_output", incoming, payloads, layout)
    feature_map_tensor = put_map("feature_map", given, payloads, layout)
    sent, parameters = put_transform(transform, payloads, layout)
    request = warp_pb2.WarpGradientsRequest(
        grad_output=grad_output_tensor,
        feature_map=feature_map_tensor,
        transform=sent,
        spec=spec_of(options),
        needs=gradient_needs(needs),
    )

    tensors = {
        warp_pb2.OPERAND_FEATURE_MAP: request.feature_map,
        warp_pb2.OPERAND_TRANSFORM: _parameters(request.transform),
    }
    results = [_like(tensor) for operand, tensor in tensors.items() if operand in request.needs]
    fields = ["grad_feature_map", "grad_transform"]
    kind = warp_pb2.WarpGradientsReply
    replies = Replies("WarpGradients", kind, fields, Gradients, optional=fields)
    call = _call("WarpGradients", request, payloads, replies, results, key)
    call.settings, call.finish = settings, _gradients(given, layout, parameters)
    call.reside(incoming, given, transform.parameters)
    return call


def generate_grid(
    transform: ParametricTransform, output_size: Sequence[int], options: GridCallOptions
) -> Call[Array]:
    """Makes the call of the method `GenerateGrid`."""
    settings, options = CallSettings.of(options)
    payloads: Payloads = []
    sent, of_parameters = put_transform(transform, payloads)
    request = warp_pb2.GenerateGridRequest(
        transform=sent,
        output_size=size_of(output_size),
        **grid_fields(options),
    )

    parameters, target = _parameters(request.transform), request.output_size
    shape = (*parameters.shape[:1], *target, len(target))
    results = [Result(shape, DTYPES[parameters.data_type])]
    replies = Replies("GenerateGrid", warp_pb2.GenerateGridReply, ["grid"], _only)
    call = _call("GenerateGrid", request, payloads, replies, results)
    call.settings, call.finish = settings, of_parameters.like
    call.reside(transform.parameters)
    return call


def generate_grid_gradients(
    grad_grid: AnyArray, transform: ParametricTransform, options: GridCallOptions
) -> Call[Array]:
    """Makes the call of the method `GenerateGridGradients`."""
    settings, options = CallSettings.of(options)
    payloads: Payloads = []
    grad_grid_tensor = put("grad_grid", as_array("grad_grid", grad_grid), payloads)
    sent, of_parameters = put_transform(transform, payloads)
    request = warp_pb2.GenerateGridGradientsRequest(
        grad_grid=grad_grid_tensor,
        transform=sent,
        **grid_fields(options),
    )

    kind, method = warp_pb2.GenerateGridGradientsReply, "GenerateGridGradients"
    results = [_like(_parameters(request.transform))]
    replies = Replies(method, kind, ["grad_transform"], _only)
    call = _call(method, request, payloads, replies, results)
    call.settings, call.finish = settings, of_parameters.like
    call.reside(grad_grid, transform.parameters)
    return call


def objective(
    moving: AnyArray,
    fixed: AnyArray,
    transform: Transform,
    weights: AnyArray | None,
    comparison: Mapping[str, Any],
    needs: Iterable[str],
    options: WarpCallOptions,
) -> Call[Objective]:
    """Makes the call of the method `Objective`."""
    settings, options = CallSettings.of(options)
    payloads: Payloads = []
    delta = as_float("delta", comparison["delta"])
    given = map_operand("moving", moving)
    check_floats("moving", given.array.dtype)
    layout = layout_of(options.get("layout"), given.layout)
    target = map_operand("fixed", fixed)
    check_same("fixed", target.array.dtype, "moving", given.array.dtype)
    tensors: dict[str, Any] = {
        name: put_map(name, value, payloads, layout)
        for name, value in (("moving", given), ("fixed", target))
    }
    sent, parameters = put_transform(transform, payloads, layout)
    if weights is not None:
        of_points = map_operand("weights", weights)
        check_same("weights", of_points.array.dtype, "moving", given.array.dtype)
        tensors["weights"] = put_map("weights", of_points, payloads, layout)
    request = objective_pb2.ObjectiveRequest(
        **tensors,
        transform=sent,
        spec=spec_of(options),
        loss=enum_of(objective_pb2.Loss, "loss", comparison["loss"]),
        delta=delta,
        domain=enum_of(objective_pb2.Domain, "domain", comparison["domain"]),
        needs=objective_needs(needs),
    )

    fields = ["value", "count", *OBJECTIVE_NEEDS]
    kind, optional = objective_pb2.ObjectiveReply, OBJECTIVE_NEEDS.keys()
    replies = Replies("Objective", kind, fields, Objective, optional=optional)
    call = _call("Objective", request, payloads, replies, ())  # small, so that none is placed
    call.settings, call.finish = settings, _objective(given, layout, parameters)
    call.reside(moving, fixed, transform.parameters, *([] if weights is None else [weights]))
    return call


def server_info(options: CallOptions, retry: RetryPolicy | None = None) -> Call[ServerInfo]:
    """Makes the call of the method `GetServerInfo`."""
    request = server_info_pb2.GetServerInfoRequest()
    settings = replace(settings_of(options), retry=retry)
    return plain_call("GetServerInfo", request, [], _ServerInfoReplies(), settings)


class _ServerInfoReplies:
    """Reads replies that have no tensors."""

    def read(self, message: bytes, _places: Places = ()) -> ServerInfo:
        try:
            reply = server_info_pb2.GetServerInfoReply.FromString(message)
            return from_message(ServerInfo, reply)
        except DecodeError as error:
            raise mismatch("GetServerInfo", error) from error


def plain_call(
    method: str, request: Message, payloads: Payloads, replies: Reads[T], settings: CallSettings
) -> Call[T]:
    """Makes a call whose reply is a message, or so small that its tensors need no place."""
    call = _call(method, request, payloads, replies, [])
    call.settings = settings
    return call


def _call(
    method: str,
    request: Message,
    payloads: Payloads,
    replies: Reads[T],
    results: Iterable[Result],
    key: Hashable = None,
) -> Call[T]:
    """Makes a call, whose envelope is kept if it has a key."""
    operands_bytes = tuple(map(len, payloads))
    path = METHOD_PREFIX + method
    envelope = Envelope(path, request, operands_bytes, tuple(results), replies)
    if key is not None:
        _kept.keep(key, envelope)
    return Call(envelope, payloads)


def _again(
    envelope: Envelope[T],
    settings: CallSettings,
    finish: Callable[[Any], T] | None,
    keep: Sequence[str],
    *operands: Any,
) -> Call[T]:
    """Makes a call with a kept envelope and other values."""
    payloads = [_payload(one) for one in operands]
    call = Call(envelope, payloads, settings, finish)
    call.reside(*operands, keep=keep)
    return call


def _payload(given: Any) -> memoryview | bytes:
    """Returns the bytes of an operand: a copy of a small one, as a view costs more to make.

    A call therefore reads operands at any time between when it is made and when it is sent.
    """
    array: Array = given if type(given) is np.ndarray else given.array
    is_copied = array.nbytes <= MAX_COPIED_BYTES and array.dtype in _LITTLE_ENDIAN
    # A resident tensor is known by its memory.
    return to_payload(array) if not is_copied or type(given) is ResidentTensor else array.tobytes()


def _maps(given: Operand, layout: str) -> Callable[[Array], Any] | None:
    """Returns the function that makes outputs like a feature map; None if they already are."""
    if given.like is unchanged:
        return _WITHOUT_BATCH.get(layout)
    return lambda output: given.like(without_batch(output, layout))


def _gradients(
    given: Operand, layout: str, parameters: Operand
) -> Callable[[Gradients], Gradients] | None:
    """Returns the function that makes gradients like operands; None if they already are."""
    if given.like is unchanged and parameters.like is unchanged and (not LAYOUTS[layout].added):
        return None

    def finish(found: Gradients) -> Gradients:
        grad_map, grad_transform = found.feature_map, found.transform
        if grad_map is not None:
            grad_map = given.like(without_batch(grad_map, layout))
        if grad_transform is not None:
            grad_transform = parameters.like(grad_transform.reshape(parameters.array.shape))
        return Gradients(grad_map, grad_transform)

    return finish


def _objective(
    given: Operand, layout: str, parameters: Operand
) -> Callable[[Objective], Objective]:
    """Returns the function that makes the results of an objective arrays like the maps."""
    like = unchanged if given.layout else given.like

    def finish(found: Objective) -> Objective:
        gradient = found.gradient
        if gradient is not None:
            shape = parameters.array.shape if LAYOUTS[layout].added else gradient.shape
            gradient = parameters.like(gradient.reshape(shape))
        hessian = found.gauss_newton
        return Objective(
            like(found.value),
            like(found.count),
            gradient,
            None if hessian is None else like(hessian),
        )

    return finish


def _key(
    kind: tuple[str, ...],
    maps: Sequence[Array],
    transform: Transform,
    others: Iterable[Any] | None,
    options: Mapping[str, Any],
    layout: str,
) -> Hashable:
    """Returns what calls of one envelope have in common; None if that is too long to compare."""
    if type(transform) not in _PLAIN_KINDS or not _PLAIN_OPTIONS.issuperset(
        map(type, options.values())
    ):
        return None
    layouts: list[Hashable] = []
    for array in (*maps, transform.parameters):
        if type(array) is not np.ndarray:
            return None
        layouts += (array.dtype, array.shape)
    # The parameters, which came last: of other types they are converted, which is not the kept way.
    if array.dtype.char not in "fd":
        return None
    if others is not None:
        if type(others) not in {list, tuple} or not _PLAIN_OTHERS.issuperset(map(type, others)):
            return None
        others = tuple(others)
    return *kind, type(transform), others, layout, *options.items(), *layouts


def _only(array: Array) -> Array:
    return array


def _like(tensor: tensor_pb2.Tensor) -> Result:
    return Result(tuple(tensor.shape), DTYPES[tensor.data_type])


def _parameters(transform: warp_pb2.Transform) -> tensor_pb2.Tensor:
    """Returns the parameters of the transform that a message has."""
    kind = getattr(transform, str(transform.WhichOneof("kind")))
    parameters: tensor_pb2.Tensor = kind.ListFields()[0][1]  # they come first
    return parameters


def _output(request: warp_pb2.WarpRequest) -> Result:
    """Returns dtype and shape of the output of a warp, if the request is valid."""
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
