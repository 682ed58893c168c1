"""Untrusted messages to validated engine problems, and results to messages.

Checks sizes as Python integers, which cannot overflow, and caps results before anything is
allocated. Every complaint names the field by its path in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from google.protobuf.message import DecodeError, Message

import stn_engine
from stn_proto import WireFormatError, get_tensor, join, put_tensor, split
from stn_proto.v1 import tensor_pb2, warp_pb2
from stn_proto.v1.tensor_pb2 import LAYOUT_NHWC, Tensor
from stn_server.batching.work import Cost, Finished, Operation
from stn_server.config import LimitsConfig
from stn_server.errors import InvalidRequestError, RequestTooLargeError, UnsupportedError
from stn_server.tensors import to_numpy, to_torch

M = TypeVar("M", bound=Message)
E = TypeVar("E")
Payloads = list[memoryview]

TRANSFORMS = ("affine", "sampling_grid")
"""Fields of `Transform.kind` that the engine computes."""


@dataclass(frozen=True, slots=True)
class Task:
    """A validated request: what to compute and how to put the result into words."""

    operation: Operation
    problem: Any
    dtype: Any
    spec: Any
    cost: Cost
    reply: Callable[[Any, Payloads], Any]
    """Result and payloads to fill -> reply message without timing."""

    def encode(self, finished: Finished) -> bytes:
        """The serialized reply."""
        payloads: Payloads = []
        message = self.reply(finished.result, payloads)
        message.timing.queue_s = finished.queue_s
        message.timing.compute_s = finished.compute_s
        message.timing.batch_items = finished.batch_items
        return join(message.SerializeToString(), payloads)


class Translator:
    """Decodes the compute methods of the service under the configured limits."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits

    def warp(self, message: bytes) -> Task:
        """`Warp`: feature map and transform to output."""
        request, payloads = parse(message, warp_pb2.WarpRequest)
        size = self._output_size(request.output_size)
        problem, layout = self._warp_problem(request, payloads, size)

        def reply(output: torch.Tensor, payloads: Payloads) -> warp_pb2.WarpReply:
            return warp_pb2.WarpReply(output=_put_map(output, payloads, layout))

        return self._task(Operation.WARP, problem, problem, problem.spec, reply, "output_size")

    def warp_gradients(self, message: bytes) -> Task:
        """`WarpGradients`: gradient of the output to gradients of the operands."""
        request, payloads = parse(message, warp_pb2.WarpGradientsRequest)
        grad_output = _get_map(request.grad_output, payloads, "grad_output")
        _, _, *size = _four_axes(grad_output, "grad_output", "(N, C, H', W')")
        if request.transform.HasField("sampling_grid"):
            size = []  # the grid says, and grad_output has to fit
        resolved = self._output_size(size, "grad_output")
        warp, layout = self._warp_problem(request, payloads, resolved)
        with _field_paths({}):
            problem = stn_engine.WarpGradientsProblem(warp, grad_output, _needs(request.needs))

        def reply(
            gradients: stn_engine.Gradients, payloads: Payloads
        ) -> warp_pb2.WarpGradientsReply:
            message = warp_pb2.WarpGradientsReply()
            if gradients.feature_map is not None:
                message.feature_map.CopyFrom(_put_map(gradients.feature_map, payloads, layout))
            if gradients.transform is not None:
                message.transform.CopyFrom(_put(gradients.transform, payloads))
            return message

        return self._task(Operation.WARP_GRADIENTS, problem, warp, warp.spec, reply, "grad_output")

    def generate_grid(self, message: bytes) -> Task:
        """`GenerateGrid`: transform to sampling grid."""
        request, payloads = parse(message, warp_pb2.GenerateGridRequest)
        problem = self._grid_problem(request, payloads, self._output_size(request.output_size))

        def reply(grid: torch.Tensor, payloads: Payloads) -> warp_pb2.GenerateGridReply:
            return warp_pb2.GenerateGridReply(grid=_put(grid, payloads))

        spec = _grid_spec(problem)
        return self._task(Operation.GENERATE_GRID, problem, problem, spec, reply, "output_size")

    def generate_grid_gradients(self, message: bytes) -> Task:
        """`GenerateGridGradients`: gradient of the grid to gradient of the transform."""
        request, payloads = parse(message, warp_pb2.GenerateGridGradientsRequest)
        grad_grid = _get(request.grad_grid, payloads, "grad_grid")
        _, *size, _ = _four_axes(grad_grid, "grad_grid", "(N, H', W', 2)")
        grid = self._grid_problem(request, payloads, self._output_size(size, "grad_grid"))
        with _field_paths({}):
            problem = stn_engine.GridGradientsProblem(grid, grad_grid)

        def reply(
            gradient: torch.Tensor, payloads: Payloads
        ) -> warp_pb2.GenerateGridGradientsReply:
            return warp_pb2.GenerateGridGradientsReply(transform=_put(gradient, payloads))

        spec = _grid_spec(grid)
        return self._task(
            Operation.GENERATE_GRID_GRADIENTS, problem, grid, spec, reply, "grad_grid"
        )

    def _warp_problem(
        self, request: Any, payloads: Payloads, size: tuple[int, int] | None
    ) -> tuple[stn_engine.WarpProblem, tensor_pb2.Layout]:
        feature_map = _get_map(request.feature_map, payloads, "feature_map")
        transform, paths = _transform(request.transform, payloads)
        with _field_paths({**paths, "fill": "spec.fill"}):
            problem = stn_engine.WarpProblem(feature_map, transform, size, _spec(request.spec))
        return problem, request.feature_map.layout

    def _grid_problem(
        self, request: Any, payloads: Payloads, size: tuple[int, int] | None
    ) -> stn_engine.GridProblem:
        transform, paths = _transform(request.transform, payloads)
        if not isinstance(transform, stn_engine.Affine):
            raise InvalidRequestError(
                "transform", "expected parameters to generate a grid from, got a sampling grid."
            )
        if size is None:
            raise InvalidRequestError("output_size", "expected (H', W'), got ().")
        coordinates = _coordinates(request.coordinates, "coordinates")
        with _field_paths(paths):
            return stn_engine.GridProblem(transform, size, coordinates, request.align_corners)

    def _output_size(
        self, output_size: Sequence[int], field: str = "output_size"
    ) -> tuple[int, int] | None:
        """(H', W') within the limits; None if the request leaves it to the operands."""
        if not output_size:
            return None
        if len(output_size) != 2:
            raise InvalidRequestError(
                field, f"expected two sizes (H', W'), got {len(output_size)}."
            )
        height, width = output_size
        if min(height, width) < 1:
            raise InvalidRequestError(
                field, f"expected sizes of at least 1, got ({height}, {width})."
            )
        limit = self._limits.max_dimension_px
        if max(height, width) > limit:
            raise RequestTooLargeError(field, limit, max(height, width), "px")
        return height, width

    def _task(
        self,
        operation: Operation,
        problem: Any,
        forward: stn_engine.WarpProblem | stn_engine.GridProblem,
        spec: Hashable,
        reply: Callable[[Any, Payloads], Any],
        size_field: str,
    ) -> Task:
        limit = self._limits.max_output_bytes
        for size_bytes in (forward.output_bytes, problem.output_bytes):
            if size_bytes > limit:
                raise RequestTooLargeError(size_field, limit, size_bytes, "bytes of output")
        cost = Cost(problem.input_bytes + problem.output_bytes, problem.output_samples)
        return Task(operation, problem, forward.output_dtype, spec, cost, reply)


def parse(message: bytes, kind: type[M]) -> tuple[M, Payloads]:
    """The envelope of a message and views of its payloads.

    Raises:
        WireFormatError: The bytes are not a message of this kind.
    """
    envelope, payloads = split(message)
    try:
        return kind.FromString(envelope), payloads
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise WireFormatError("message", f"a serialized {name}", "other bytes") from error


def offered(kind: Any, values: type) -> list[Any]:
    """The numbers of a wire enumeration that the engine computes."""
    prefix = _prefix(kind)
    known = {f"{prefix}{value.name}" for value in values}  # type: ignore[attr-defined]
    return [number for name, number in kind.items() if name in known]


@contextmanager
def _field_paths(paths: Mapping[str, str]) -> Iterator[None]:
    """Renames the argument that an engine error complains about to the field it came from."""
    try:
        yield
    except stn_engine.InvalidInputError as error:
        description = str(error).removeprefix(f"{error.argument}: ")
        field = paths.get(error.argument, error.argument)
        raise InvalidRequestError(field, description) from error


def _get(tensor: Tensor, payloads: Payloads, field: str) -> torch.Tensor:
    array = get_tensor(tensor, payloads, field)
    if array.size == 0:
        raise InvalidRequestError(
            f"{field}.shape", f"expected sizes of at least 1, got {array.shape}."
        )
    return to_torch(array)


def _get_map(tensor: Tensor, payloads: Payloads, field: str) -> torch.Tensor:
    """A feature map as (N, C, H, W), whatever its layout on the wire."""
    if tensor.layout not in tensor_pb2.Layout.values():
        raise _unknown(tensor_pb2.Layout, tensor.layout, f"{field}.layout")
    feature_map = _get(tensor, payloads, field)
    if tensor.layout == LAYOUT_NHWC and feature_map.ndim == 4:
        return feature_map.permute(0, 3, 1, 2)
    return feature_map


def _four_axes(tensor: torch.Tensor, field: str, axes: str) -> tuple[int, ...]:
    """The shape of a tensor that must have four axes."""
    if tensor.ndim != 4:
        raise InvalidRequestError(field, f"expected shape {axes}, got {tuple(tensor.shape)}.")
    return tuple(tensor.shape)


def _put(tensor: torch.Tensor, payloads: Payloads) -> Tensor:
    return put_tensor(to_numpy(tensor), payloads)


def _put_map(tensor: torch.Tensor, payloads: Payloads, layout: tensor_pb2.Layout) -> Tensor:
    ordered = tensor.permute(0, 2, 3, 1) if layout == LAYOUT_NHWC else tensor
    return put_tensor(to_numpy(ordered), payloads, layout=layout)


def _transform(
    transform: warp_pb2.Transform, payloads: Payloads
) -> tuple[stn_engine.Transform, dict[str, str]]:
    """The engine's transform, and the paths of its arguments in the message."""
    kind = transform.WhichOneof("kind")
    if kind is None:
        raise InvalidRequestError(
            "transform", f"expected one of {', '.join(TRANSFORMS)}, got none."
        )
    if kind == "affine":
        path = "transform.affine.theta"
        theta = _get(transform.affine.theta, payloads, path)
        affine = _built(stn_engine.Affine, theta, path)
        _require_finite(theta, path)
        return affine, {"theta": path}
    if kind == "sampling_grid":
        path = "transform.sampling_grid.grid"
        grid = _get(transform.sampling_grid.grid, payloads, path)
        return _built(stn_engine.SamplingGrid, grid, path), {"grid": path}
    raise UnsupportedError("transform", kind, TRANSFORMS)


def _built(kind: Callable[[torch.Tensor], E], parameters: torch.Tensor, path: str) -> E:
    with _field_paths({"theta": path, "grid": path}):
        return kind(parameters)


def _require_finite(theta: torch.Tensor, path: str) -> None:
    """A sampling grid may hold points that are not finite (they read `fill`); parameters not."""
    finite = np.isfinite(theta.numpy())
    if not finite.all():
        where = tuple(int(index) for index in np.argwhere(~finite)[0])
        value = theta[where].item()
        raise InvalidRequestError(path, f"expected finite numbers, got {value} at {where}.")


def _spec(spec: warp_pb2.WarpSpec) -> stn_engine.WarpSpec:
    return stn_engine.WarpSpec(
        interpolation=_enum(
            warp_pb2.Interpolation,
            spec.interpolation,
            stn_engine.Interpolation,
            stn_engine.Interpolation.BILINEAR,
            "spec.interpolation",
        ),
        padding=_enum(
            warp_pb2.Padding,
            spec.padding,
            stn_engine.Padding,
            stn_engine.Padding.ZEROS,
            "spec.padding",
        ),
        fill=tuple(spec.fill) or (0.0,),
        coordinates=_coordinates(spec.coordinates, "spec.coordinates"),
        align_corners=spec.align_corners,
        subgradient=_enum(
            warp_pb2.Subgradient,
            spec.subgradient,
            stn_engine.Subgradient,
            stn_engine.Subgradient.RIGHT,
            "spec.subgradient",
        ),
        deterministic=not spec.allow_nondeterministic,
    )


def _grid_spec(problem: stn_engine.GridProblem) -> Hashable:
    return problem.coordinates, problem.align_corners


def _coordinates(number: int, field: str) -> stn_engine.Coordinates:
    return _enum(
        warp_pb2.Coordinates,
        number,
        stn_engine.Coordinates,
        stn_engine.Coordinates.NORMALIZED,
        field,
    )


def _needs(needs: Sequence[int]) -> tuple[str, ...]:
    """Names of the operands whose gradients are wanted; all if the request names none."""
    names: dict[int, str] = {
        warp_pb2.OPERAND_FEATURE_MAP: "feature_map",
        warp_pb2.OPERAND_TRANSFORM: "transform",
    }
    for number in needs:
        if number not in names:
            raise _unknown(warp_pb2.Operand, number, "needs")
    return tuple(names[number] for number in needs) or tuple(names.values())


def _enum(kind: Any, number: int, values: Any, default: E, field: str) -> E:
    """The engine's value of a wire enumeration; UNSPECIFIED is the default."""
    if number == 0:
        return default
    if number not in kind.values():
        raise _unknown(kind, number, field)
    name = kind.Name(number).removeprefix(_prefix(kind))
    if name not in values.__members__:
        raise UnsupportedError(field, name, tuple(values.__members__))
    member: E = values[name]
    return member


def _prefix(kind: Any) -> str:
    """What the values of an enumeration begin with: `PADDING_` of `PADDING_ZEROS`."""
    return str(kind.Name(0)).removesuffix("UNSPECIFIED")


def _unknown(kind: Any, number: int, field: str) -> InvalidRequestError:
    names = ", ".join(kind.keys()[1:])
    return InvalidRequestError(field, f"expected one of {names}, got {number}.")
