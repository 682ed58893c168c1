"""Untrusted messages to validated engine problems, and results to messages.

The envelope of a request decides everything about it but the values: what to compute, on which
sizes, at what cost. A `Plan` holds that, checked; clients that send the same shapes again send the
same envelope, so plans are kept. Sizes are Python integers, which cannot overflow, and results are
capped before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch

import stn_engine
from stn_proto import join, split
from stn_proto.v1 import warp_pb2
from stn_server.batching.work import BatchKey, Cost, Finished, Operation
from stn_server.config import LimitsConfig
from stn_server.errors import InvalidRequestError, RequestTooLargeError
from stn_server.operands import (
    Operand,
    Payloads,
    TransformOperand,
    declare,
    declare_map,
    declare_transform,
    field_paths,
    parse,
    put,
    put_map,
    require_four_axes,
)
from stn_server.vocabulary import read_coordinates, read_needs, read_spec

MAX_PLANS = 1024
MAX_PLANNED_BYTES = 4096
"""Longer envelopes are rare and are read anew each time, so that kept plans stay small."""

Reply = Callable[[Any, Payloads], Any]
"""Result and payloads to fill -> reply message, but for its timing."""


@dataclass(frozen=True, slots=True)
class Request:
    """A validated request: what to compute, and how to put the result into words."""

    problem: Any
    key: BatchKey
    cost: Cost
    reply: Reply

    def encode(self, finished: Finished) -> bytes:
        """The serialized reply."""
        payloads: Payloads = []
        message = self.reply(finished.result, payloads)
        message.timing.queue_s = finished.queue_s
        message.timing.compute_s = finished.compute_s
        message.timing.batch_items = finished.batch_items
        return join(message.SerializeToString(), payloads)


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated envelope: a request but for the values of its tensors."""

    problem: Any
    """On meta tensors."""
    operands: tuple[Operand, ...]
    """In the order in which `problem.bound` takes them."""
    key: BatchKey
    reply: Reply

    def bind(self, payloads: Payloads, message_bytes: int) -> Request:
        """The request with the bytes of one message.

        It costs the whole message, which its views keep in memory, whatever they use of it.
        """
        tensors = [operand.read(payloads) for operand in self.operands]
        cost = Cost(message_bytes + self.problem.output_bytes, self.problem.output_samples)
        return Request(self.problem.bound(*tensors), self.key, cost, self.reply)


class Translator:
    """Decodes the compute methods of the service under the configured limits."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._planners: dict[Operation, Callable[[bytes], Plan]] = {
            Operation.WARP: self._plan_warp,
            Operation.WARP_GRADIENTS: self._plan_warp_gradients,
            Operation.GENERATE_GRID: self._plan_grid,
            Operation.GENERATE_GRID_GRADIENTS: self._plan_grid_gradients,
        }
        self._kept_plan = lru_cache(MAX_PLANS)(self._plan)

    def decode(self, operation: Operation, message: bytes) -> Request:
        """The request that a message holds.

        Raises:
            WireFormatError: The bytes do not keep the wire contract.
            InvalidRequestError: A field breaks a rule.
            UnsupportedError: A field asks for what the engine does not offer.
            RequestTooLargeError: A limit is exceeded.
        """
        envelope, payloads = split(message)
        keep = len(envelope) <= MAX_PLANNED_BYTES
        plan = (self._kept_plan if keep else self._plan)(operation, envelope)
        return plan.bind(payloads, len(message))

    def _plan(self, operation: Operation, envelope: bytes) -> Plan:
        return self._planners[operation](envelope)

    def _plan_warp(self, envelope: bytes) -> Plan:
        request = parse(envelope, warp_pb2.WarpRequest)
        layout = request.feature_map.layout
        feature_map = declare_map(request.feature_map, "feature_map")
        transform = declare_transform(request.transform)
        size = _output_size(request.output_size)
        problem = _warp_problem(request, feature_map, transform, size)

        def reply(output: torch.Tensor, payloads: Payloads) -> warp_pb2.WarpReply:
            return warp_pb2.WarpReply(output=put_map(output, payloads, layout))

        key = BatchKey(Operation.WARP, problem.output_dtype, _warp_key(problem))
        self._check_size(problem, problem, "output_size")
        return Plan(problem, (feature_map, transform.operand), key, reply)

    def _plan_warp_gradients(self, envelope: bytes) -> Plan:
        request = parse(envelope, warp_pb2.WarpGradientsRequest)
        layout = request.feature_map.layout
        grad_output = declare_map(request.grad_output, "grad_output", "(N, C, H', W')")
        feature_map = declare_map(request.feature_map, "feature_map")
        transform = declare_transform(request.transform)
        height, width = grad_output.meta.shape[2:]
        # Where the transform says the size, grad_output has to fit it.
        size = (height, width) if transform.meta.own_size is None else None
        warp = _warp_problem(request, feature_map, transform, size)
        with field_paths({}):
            needs = read_needs(request.needs)
            problem = stn_engine.WarpGradientsProblem(warp, grad_output.meta, needs)

        def reply(
            gradients: stn_engine.Gradients, payloads: Payloads
        ) -> warp_pb2.WarpGradientsReply:
            message = warp_pb2.WarpGradientsReply()
            if gradients.feature_map is not None:
                message.feature_map.CopyFrom(put_map(gradients.feature_map, payloads, layout))
            if gradients.transform is not None:
                message.transform.CopyFrom(put(gradients.transform, payloads))
            return message

        key = BatchKey(Operation.WARP_GRADIENTS, warp.output_dtype, _warp_key(warp))
        self._check_size(problem, warp, "grad_output")
        return Plan(problem, (grad_output, feature_map, transform.operand), key, reply)

    def _plan_grid(self, envelope: bytes) -> Plan:
        request = parse(envelope, warp_pb2.GenerateGridRequest)
        transform = declare_transform(request.transform)
        size = _output_size(request.output_size)
        if size is None:
            raise InvalidRequestError(
                "output_size", "expected (H', W'), got (). A grid has no other size."
            )
        problem = _grid_problem(request, transform, size)

        def reply(grid: torch.Tensor, payloads: Payloads) -> warp_pb2.GenerateGridReply:
            return warp_pb2.GenerateGridReply(grid=put(grid, payloads))

        key = BatchKey(Operation.GENERATE_GRID, problem.output_dtype, _grid_key(problem))
        self._check_size(problem, problem, "output_size")
        return Plan(problem, (transform.operand,), key, reply)

    def _plan_grid_gradients(self, envelope: bytes) -> Plan:
        request = parse(envelope, warp_pb2.GenerateGridGradientsRequest)
        grad_grid = declare(request.grad_grid, "grad_grid")
        require_four_axes(grad_grid.declaration, "(N, H', W', 2)")
        transform = declare_transform(request.transform)
        height, width = grad_grid.declaration.shape[1:3]
        grid = _grid_problem(request, transform, (height, width))
        with field_paths({}):
            problem = stn_engine.GridGradientsProblem(grid, grad_grid.meta)

        def reply(
            gradient: torch.Tensor, payloads: Payloads
        ) -> warp_pb2.GenerateGridGradientsReply:
            return warp_pb2.GenerateGridGradientsReply(transform=put(gradient, payloads))

        key = BatchKey(Operation.GENERATE_GRID_GRADIENTS, grid.output_dtype, _grid_key(grid))
        self._check_size(problem, grid, "grad_grid")
        return Plan(problem, (grad_grid, transform.operand), key, reply)

    def _check_size(
        self,
        problem: Any,
        forward: stn_engine.WarpProblem | stn_engine.GridProblem,
        field: str,
    ) -> None:
        """Refuses what would take too much memory or time."""
        output_bytes = max(forward.output_bytes, problem.output_bytes)
        largest_px = max(cast("tuple[int, int]", forward.output_size))
        for actual, limit, unit in (
            (largest_px, self._limits.max_dimension_px, "px"),
            (output_bytes, self._limits.max_output_bytes, "bytes of output"),
            (problem.output_samples, self._limits.max_output_samples, "samples"),
        ):
            if actual > limit:
                raise RequestTooLargeError(field, limit, actual, unit)


def _output_size(output_size: Sequence[int]) -> tuple[int, int] | None:
    """(H', W') as a request gives it; None if it leaves that to the operands."""
    field = "output_size"
    if not output_size:
        return None
    if len(output_size) != 2:
        expected = f"expected two sizes (H', W'), got {len(output_size)}. Give both or none."
        raise InvalidRequestError(field, expected)
    height, width = output_size
    if min(height, width) < 1:
        expected = f"expected sizes of at least 1, got ({height}, {width}). Enlarge them."
        raise InvalidRequestError(field, expected)
    return height, width


def _warp_problem(
    request: warp_pb2.WarpRequest | warp_pb2.WarpGradientsRequest,
    feature_map: Operand,
    transform: TransformOperand,
    size: tuple[int, int] | None,
) -> stn_engine.WarpProblem:
    with field_paths({**transform.paths, "fill": "spec.fill"}):
        spec = read_spec(request.spec)
        return stn_engine.WarpProblem(feature_map.meta, transform.meta, size, spec)


def _grid_problem(
    request: warp_pb2.GenerateGridRequest | warp_pb2.GenerateGridGradientsRequest,
    transform: TransformOperand,
    size: tuple[int, int],
) -> stn_engine.GridProblem:
    if isinstance(transform.meta, stn_engine.SamplingGrid):
        expected = "expected parameters to generate a grid from, got a sampling grid."
        raise InvalidRequestError("transform", f"{expected} Use it as it is.")
    coordinates = read_coordinates(request.coordinates, "coordinates")
    with field_paths(transform.paths):
        return stn_engine.GridProblem(transform.meta, size, coordinates, request.align_corners)


def _warp_key(problem: stn_engine.WarpProblem) -> Hashable:
    return problem.spec, problem.transform.settings


def _grid_key(problem: stn_engine.GridProblem) -> Hashable:
    return problem.coordinates, problem.align_corners, problem.transform.settings
