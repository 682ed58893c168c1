"""Decodes untrusted messages to validated problems, and encodes results to messages.

The envelope of a request decides everything about it but the values: what to compute, on which
sizes, at what cost, and all of the reply but its numbers. A `RequestTemplate` holds that, checked;
clients that send the same shapes again send the same frame around other payloads, so templates are
kept. Sizes are Python integers, which cannot overflow, and results are capped before anything is
allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from google.protobuf.message import Message

import stn_engine
from stn_engine.adapters import on_bytes
from stn_proto import (
    Frame,
    gaps,
    join,
    values,
)
from stn_proto.codec import data_type
from stn_proto.v1 import objective_pb2, tensor_pb2, warp_pb2
from stn_proto.v1.tensor_pb2 import LAYOUT_UNSPECIFIED, ArenaRef, ResidentRef
from stn_server.batching.work import BatchKey, Cost, Finished, Operation
from stn_server.config import LimitsConfig
from stn_server.costs import basis_bytes, forward_of, work_of
from stn_server.errors import InvalidRequestError, ResultTooLargeError
from stn_server.operands import (
    NO_MEMORY,
    Location,
    Memory,
    Operand,
    Reference,
    Region,
    Result,
    TransformOperand,
    declare,
    declare_map,
    declare_transform,
    field_paths,
    parse,
    reference_of,
    region_of,
    require_shape,
)
from stn_server.vocabulary import (
    read_comparison,
    read_coordinates,
    read_needs,
    read_objective_needs,
    read_operands,
    read_spec,
)

MAX_TEMPLATE_BYTES = 4096
"""Templates of longer envelopes are not kept, so that memory stays small; such envelopes are
rare."""

PLACEMENT_FIELD = warp_pb2.WarpRequest.PLACEMENT_FIELD_NUMBER
"""The fields that are the same in every request."""

REQUESTS: dict[Operation, type[Message]] = {
    Operation.WARP: warp_pb2.WarpRequest,
    Operation.WARP_GRADIENTS: warp_pb2.WarpGradientsRequest,
    Operation.GENERATE_GRID: warp_pb2.GenerateGridRequest,
    Operation.GENERATE_GRID_GRADIENTS: warp_pb2.GenerateGridGradientsRequest,
    Operation.OBJECTIVE: objective_pb2.ObjectiveRequest,
}
"""The class of the requests of every operation."""

MAX_SIZES = 1024
"""The number of sizes of messages for which templates are kept."""

MAX_TEMPLATES = 4
"""How many templates are kept for messages of one size."""


class ReplyTemplate:
    """A reply but for its numbers and timing, serialized once.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, kind: type[Message], *results: Result) -> None:
        message: Any = kind
        self._kind, self.results = message, results
        tensors = {result.field: result.description(i) for i, result in enumerate(results)}
        self._head: bytes = message(**tensors).SerializeToString()
        sizes_bytes = [result.like.nbytes for result in results]
        first, *others = gaps(len(self._head), sizes_bytes)
        self._before = self._head + first, *others
        """The bytes before each payload."""
        self._tail = message()
        """The serialized fields beside the results; protobuf merges concatenated messages."""
        self._said: tuple[Any, ...] = ()
        self._envelope = b""

    def write(self, finished: Finished) -> bytes:
        """Returns the whole reply, serialized."""
        pieces: list[Any] = []
        for pair in zip(self._before, finished.result, strict=True):
            pieces += pair
        pieces.append(self._timed(finished).SerializeToString())
        return b"".join(pieces)

    def parts(self, finished: Finished) -> tuple[bytes, Sequence[Any]]:
        """Returns the serialized reply without its payloads, and the payloads."""
        if finished[1:] != self._said:  # mostly the same for all that ran together
            self._said = finished[1:]
            self._envelope = self._head + self._timed(finished).SerializeToString()
        return self._envelope, finished.result

    def parts_at(
        self,
        locations: Sequence[Location | None],
        kept: Sequence[ResidentRef],
        finished: Finished,
    ) -> tuple[bytes, Sequence[Any]]:
        """Returns the serialized reply of a call with tensors beside messages, and its payloads.

        Args:
            locations: The locations of results that have been written there; None: to be sent.
            kept: Operands that stay on the server.
            finished: The outcome.
        """
        tensors, payloads = dict[str, Any](), list[Any]()
        for result, value, location in zip(self.results, finished.result, locations, strict=True):
            if location is None:
                tensors[result.field] = result.description(len(payloads))
                payloads.append(value)
            else:
                tensors[result.field] = result.description_at(location)
        message = self._kind(**tensors, **({"kept": kept} if kept else {}))
        message.timing.CopyFrom(self._timed(finished).timing)
        return message.SerializeToString(), payloads

    def _timed(self, finished: Finished) -> Any:
        """Returns the fields of the reply beside its tensors."""
        timing = self._tail.timing
        timing.queue_s = finished.queue_s
        timing.compute_s = finished.compute_s
        timing.batch_items = finished.batch_items
        return self._tail


@dataclass(slots=True, eq=False)  # frozen ones take five times as long to make
class Request:
    """A valid request: the problem, the bytes of its operands, and its template."""

    job: on_bytes.Job
    """The bytes of the operands: views of the message, which they keep alive."""
    template: RequestTemplate
    locations: tuple[Location | None, ...] = ()
    """The locations of results in arenas; None for one that is sent."""
    keep: Callable[[], list[ResidentRef]] | None = None
    """Keeps operands as resident tensors, if any shall stay."""

    @property
    def key(self) -> BatchKey:
        """The batch key: what it must share with others to run beside them."""
        return self.template.key

    @property
    def cost(self) -> Cost:
        """The cost: what it takes of the budgets of a batch."""
        return self.template.cost

    @property
    def is_placed(self) -> bool:
        """Whether results are written to memory of the caller."""
        return bool(self.job.places)

    def encode(self, finished: Finished) -> bytes:
        """Returns the whole reply, serialized."""
        if self.template.is_plain:
            return self.template.reply.write(finished)
        return join(*self.encode_nested(finished))

    def encode_nested(self, finished: Finished) -> tuple[bytes, Sequence[Any]]:
        """Returns the serialized reply of a nested call without its payloads, and the payloads."""
        reply = self.template.reply
        if not self.is_placed and self.keep is None:
            return reply.parts(finished)
        locations = self.locations or [None] * len(reply.results)
        return reply.parts_at(locations, self.keep() if self.keep else (), finished)


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """A validated request but for the values of its tensors."""

    frame: Frame
    problem: Any
    """The problem, on meta tensors."""
    operands: tuple[Operand, ...]
    """The tensors of the request, in the order in which the problem has them."""
    key: BatchKey
    cost: Cost
    """The cost, in which the whole message counts: views keep all of it in memory."""
    reply: ReplyTemplate
    references: tuple[Reference | None, ...]
    """References to the operands; None for a payload."""
    places: tuple[Region | None, ...]
    """References for the results; None for one that becomes a payload."""
    kept: tuple[int, ...] = ()
    """Positions of the operands that shall stay on the server."""
    is_plain: bool = field(init=False)
    """Whether all tensors are payloads and none shall stay on the server."""

    def __post_init__(self) -> None:
        is_plain = not (any(self.references) or any(self.places) or self.kept)
        object.__setattr__(self, "is_plain", is_plain)
        object.__setattr__(self, "key", _only_one(self.key))

    @property
    def output_bytes(self) -> int:
        """Counts the bytes of all results."""
        return sum(result.like.nbytes for result in self.reply.results)

    def request(
        self,
        message: bytes,
        memory: Memory = NO_MEMORY,
        caller: str = "",
        payloads: list[memoryview] | None = None,
    ) -> Request:
        """Binds the bytes of a message that has this frame.

        Args:
            message: Serialized bytes.
            memory: The memory beside the message in which its tensors may lie.
            caller: Name of the caller.
            payloads: The payloads, if they stand in another message; None: they stand in this one.

        Raises:
            InvalidRequestError: A parameter is not finite, or a region is not within its arena or
                overlaps another one.
            ArenaNotFoundError: The caller has no such arena.
            HandleNotFoundError: The caller has no such resident tensor.
            UnsupportedError: This server has no arenas, or no resident tensors.
        """
        if payloads is None:
            payloads = self.frame.cut(message)
        if self.is_plain:  # as most are: nothing is looked up, and nothing can overlap
            operands = [operand.read(payloads) for operand in self.operands]
            return Request(on_bytes.Job(self.problem, operands), self)
        sources = [_located(reference, message, memory, caller) for reference in self.references]
        locations = [_located(place, message, memory, caller) for place in self.places]
        _require_apart(self.places, locations, sources)
        pairs = zip(self.operands, sources, strict=True)
        operands = [operand.read(payloads, source) for operand, source in pairs]
        places = [location and location.memory for location in locations]
        job = on_bytes.Job(self.problem, operands, places if any(self.places) else ())
        request = Request(job, self, tuple(locations))
        if self.kept and memory.residents is not None:
            kept = [
                (
                    data_type(self.operands[position].declaration.dtype),
                    operands[position],
                    source.handle if (source := sources[position]) else b"",
                )
                for position in self.kept
            ]
            request.keep = partial(memory.residents.keep, caller, kept)
        return request


@lru_cache(MAX_SIZES)
def _only_one(key: BatchKey) -> BatchKey:
    """Returns the same object for equal keys, so that dictionaries need not compare them.

    That would take 1 µs for each call of a message.
    """
    return key


class Translator:
    """Decodes the compute methods of the service.

    Args:
        limits: The configured limits.
        memory: The memory beside messages in which tensors may lie.
    """

    def __init__(self, limits: LimitsConfig, memory: Memory = NO_MEMORY) -> None:
        self.limits, self.memory = limits, memory
        self._makers: dict[Operation, Callable[[Any, Frame, bytes], RequestTemplate]] = {
            Operation.WARP: self._warp_template,
            Operation.WARP_GRADIENTS: self._warp_gradients_template,
            Operation.GENERATE_GRID: self._grid_template,
            Operation.GENERATE_GRID_GRADIENTS: self._grid_gradients_template,
            Operation.OBJECTIVE: self._objective_template,
        }
        self._templates: dict[tuple[Operation, int], tuple[RequestTemplate, ...]] = {}
        """The latest templates, by the size of their messages."""

    def decode(self, operation: Operation, message: bytes, caller: str = "") -> Request:
        """Returns the request that a message holds.

        Args:
            operation: The operation of the method that was called.
            message: Serialized bytes.
            caller: Name of the caller, for what tensors may lie in beside the message.

        Raises:
            WireFormatError: The bytes do not keep the wire contract.
            FrameTooLargeError: There are more payloads, or more bytes beside them, than allowed.
            InvalidRequestError: A field breaks a rule.
            UnsupportedError: A field asks for what the engine does not offer.
            ResultTooLargeError: A limit is exceeded.
            ArenaNotFoundError: A tensor lies in an arena that the caller does not have.
            HandleNotFoundError: A tensor is a resident one that the caller does not have.
        """
        # By size first, so that few templates are compared with the bytes of a message.
        alike = self._templates.get((operation, len(message)), ())
        for template in alike:
            if template.frame.fits(message):
                return template.request(message, self.memory, caller)
        limits = self.limits
        frame = Frame.of(message, limits.max_payloads, limits.max_envelope_bytes)
        template = self.template(
            operation, parse(frame.envelope, REQUESTS[operation]), frame, message
        )
        request = template.request(message, self.memory, caller)
        self._keep(template, operation, alike)
        return request

    def template(
        self, operation: Operation, request: Any, frame: Frame, message: bytes
    ) -> RequestTemplate:
        """Checks a parsed request and makes its template.

        Args:
            operation: The operation of the method that was called.
            request: The envelope of the request, of the class in `REQUESTS`.
            frame: The positions in `message` of the payloads that its tensors name by index.
            message: The message in which arenas and resident tensors are named, if any.

        Raises:
            ServerError: Any that `decode` raises, but for wrong values.
        """
        return self._makers[operation](request, frame, message)

    def _keep(
        self, template: RequestTemplate, operation: Operation, alike: tuple[RequestTemplate, ...]
    ) -> None:
        frame = template.frame
        if sum(len(piece) for _, piece in frame.rest) > MAX_TEMPLATE_BYTES:
            return
        if not alike and len(self._templates) == MAX_SIZES:
            # The oldest size makes room, as a dict keeps the order in which it was filled.
            del self._templates[next(iter(self._templates))]
        # The newest first: callers send one kind of message many times in a row.
        self._templates[operation, frame.size_bytes] = template, *alike[: MAX_TEMPLATES - 1]

    def _warp_template(
        self, request: warp_pb2.WarpRequest, frame: Frame, message: bytes
    ) -> RequestTemplate:
        layout = request.feature_map.layout
        transform = self._declare_transform(request.transform)
        feature_map = declare_map(request.feature_map, "feature_map", transform.source_axes)
        size = _output_size(request.output_size, transform.target_axes)
        problem = _warp_problem(request, feature_map, transform, size)

        self._check_size(problem, "output_size")
        key = BatchKey(Operation.WARP, problem.output_dtype, _warp_key(problem))
        reply = _reply(warp_pb2.WarpReply, problem, {"output": layout})
        operands = feature_map, transform.operand
        kept = read_operands(request.keep_for_gradients, "keep_for_gradients")
        positions = [("feature_map", "transform").index(name) for name in kept]
        return _template(request, message, frame, problem, operands, key, reply, positions)

    def _warp_gradients_template(
        self, request: warp_pb2.WarpGradientsRequest, frame: Frame, message: bytes
    ) -> RequestTemplate:
        layout = request.feature_map.layout
        transform = self._declare_transform(request.transform)
        grad_output = declare_map(request.grad_output, "grad_output", transform.target_axes)
        feature_map = declare_map(request.feature_map, "feature_map", transform.source_axes)
        # Where the transform says the size, grad_output has to fit it.
        size = grad_output.meta.shape[2:] if transform.meta.own_size is None else None
        warp = _warp_problem(request, feature_map, transform, size)
        with field_paths({}):
            needs = read_needs(request.needs)
            problem = stn_engine.WarpGradientsProblem(warp, grad_output.meta, needs)

        self._check_size(problem, "grad_output")
        key = BatchKey(Operation.WARP_GRADIENTS, warp.output_dtype, _warp_key(warp))
        layouts = {"feature_map": layout, "transform": LAYOUT_UNSPECIFIED}
        fields = {f"grad_{name}": layouts[name] for name in layouts if name in needs}
        reply = _reply(warp_pb2.WarpGradientsReply, problem, fields)
        operands = grad_output, feature_map, transform.operand
        return _template(request, message, frame, problem, operands, key, reply)

    def _grid_template(
        self, request: warp_pb2.GenerateGridRequest, frame: Frame, message: bytes
    ) -> RequestTemplate:
        transform = self._declare_transform(request.transform)
        axes = transform.target_axes
        size = _output_size(request.output_size, axes)
        if size is None:
            expected = f"expected ({', '.join(axes)}), got (). A grid has no other size."
            raise InvalidRequestError("output_size", expected)
        problem = _grid_problem(request, transform, size)

        self._check_size(problem, "output_size")
        key = BatchKey(Operation.GENERATE_GRID, problem.output_dtype, _grid_key(problem))
        reply = _reply(warp_pb2.GenerateGridReply, problem, {"grid": LAYOUT_UNSPECIFIED})
        operands = (transform.operand,)
        return _template(request, message, frame, problem, operands, key, reply)

    def _grid_gradients_template(
        self, request: warp_pb2.GenerateGridGradientsRequest, frame: Frame, message: bytes
    ) -> RequestTemplate:
        transform = self._declare_transform(request.transform)
        grad_grid = declare(request.grad_grid, "grad_grid")
        axes = ("N", *transform.target_axes, str(transform.meta.dims))
        require_shape(grad_grid.declaration, axes)
        grid = _grid_problem(request, transform, grad_grid.declaration.shape[1:-1])
        with field_paths({}):
            problem = stn_engine.GridGradientsProblem(grid, grad_grid.meta)

        self._check_size(problem, "grad_grid")
        key = BatchKey(Operation.GENERATE_GRID_GRADIENTS, grid.output_dtype, _grid_key(grid))
        fields = {"grad_transform": LAYOUT_UNSPECIFIED}
        reply = _reply(warp_pb2.GenerateGridGradientsReply, problem, fields)
        operands = grad_grid, transform.operand
        return _template(request, message, frame, problem, operands, key, reply)

    def _objective_template(
        self, request: objective_pb2.ObjectiveRequest, frame: Frame, message: bytes
    ) -> RequestTemplate:
        transform = self._declare_transform(request.transform)
        moving = declare_map(request.moving, "moving", transform.source_axes)
        compared = [declare_map(request.fixed, "fixed", transform.target_axes)]
        if request.HasField("weights"):
            compared.append(declare_map(request.weights, "weights", transform.target_axes))
        metas = [one.meta for one in compared]
        paths = {"fill": "spec.fill", "feature_map": "moving", "output_size": "fixed"}
        with field_paths({**transform.paths, **paths}):
            spec, size = read_spec(request.spec), tuple(metas[0].shape[2:])
            warp = stn_engine.WarpProblem(moving.meta, transform.meta, size, spec)
            needs = read_objective_needs(request.needs)
            weights = metas[1] if len(metas) > 1 else None
            problem = stn_engine.ObjectiveProblem(
                warp, metas[0], weights, read_comparison(request), needs
            )

        self._check_size(problem, "fixed")
        spec_key = _warp_key(warp), problem.comparison, problem.needs
        key = BatchKey(Operation.OBJECTIVE, warp.output_dtype, spec_key)
        fields = dict.fromkeys(("value", "count", *problem.needs), LAYOUT_UNSPECIFIED)
        reply = _reply(objective_pb2.ObjectiveReply, problem, fields)
        operands = moving, transform.operand, *compared
        return _template(request, message, frame, problem, operands, key, reply)

    def _declare_transform(self, transform: warp_pb2.Transform) -> TransformOperand:
        return declare_transform(transform, self.limits.max_control_points)

    def _check_size(self, problem: Any, field: str) -> None:
        """Refuses a problem that would take too much memory or time."""
        forward = forward_of(problem)
        output_bytes, bytes_of = problem.output_bytes, "bytes of output"
        if not isinstance(problem, stn_engine.ObjectiveProblem):  # whose warp is never in memory
            output_bytes = max(output_bytes, forward.output_bytes)
        if own_bytes := basis_bytes(forward):
            output_bytes, bytes_of = output_bytes + own_bytes, "bytes of output and basis"
        largest_px = max(forward.output_size)
        for actual, limit, unit in (
            (largest_px, self.limits.max_dimension_px, "px"),
            (output_bytes, self.limits.max_output_bytes, bytes_of),
            (problem.output_samples, self.limits.max_output_samples, "samples"),
        ):
            if actual > limit:
                raise ResultTooLargeError(field, limit, actual, unit)


def _template(
    request: Any,
    message: bytes,
    frame: Frame,
    problem: Any,
    operands: tuple[Operand, ...],
    key: BatchKey,
    reply: ReplyTemplate,
    kept: Sequence[int] = (),
) -> RequestTemplate:
    sizes_bytes = [span.stop - span.start for span in frame.payloads]
    size_bytes = frame.size_bytes + problem.output_bytes + basis_bytes(forward_of(problem))
    references = [reference_of(message, type(request), one.declaration) for one in operands]
    for operand, reference in zip(operands, references, strict=True):
        if reference is None:
            operand.declaration.check(sizes_bytes)
        else:  # its size is checked with every message, where its memory is looked up
            size_bytes += operand.declaration.size_bytes
    places = _places(request.placement, reply.results, message)
    used = [reference for reference in (*references, *places) if reference]
    if used:
        # Requests that name other memory are alike otherwise, and have this template as well.
        frame = frame.opened(message, [span for reference in used for span in reference.spans])
    cost = Cost(size_bytes, problem.output_samples, work_of(problem))
    return RequestTemplate(
        frame,
        problem,
        operands,
        key,
        cost,
        reply,
        tuple(references),
        tuple(places),
        tuple(kept),
    )


def _places(
    placement: Sequence[ArenaRef], results: Sequence[Result], message: bytes
) -> list[Region | None]:
    """Returns the regions in which the request wants results; None for those to be sent."""
    if len(placement) > len(results):
        expected = f"expected at most {len(results)}, one a result, got {len(placement)}."
        raise InvalidRequestError("placement", f"{expected} Leave the others out.")
    references = values(message, PLACEMENT_FIELD) if placement else []
    places: list[Region | None] = [None] * len(results)
    for index, (place, result) in enumerate(zip(placement, results, strict=False)):
        if not place.ByteSize():
            continue
        field, least = f"placement[{index}]", result.like.nbytes
        if place.byte_count < least:
            expected = f"expected at least {least} bytes, got {place.byte_count}. Give it more."
            raise InvalidRequestError(f"{field}.byte_count", expected)
        places[index] = region_of(message, field, references[index], least)
    return places


def _located(
    reference: Reference | None, message: bytes, memory: Memory, caller: str
) -> Location | None:
    return None if reference is None else reference.locate(message, memory, caller)


def _require_apart(
    places: Sequence[Region | None],
    locations: Sequence[Location | None],
    sources: Sequence[Location | None],
) -> None:
    """Refuses results that would be written over operands, or over each other."""
    taken = [source for source in sources if source]
    for place, location in zip(places, locations, strict=True):
        if place and location:
            if any(location.overlaps(other) for other in taken):
                expected = "expected a place apart from operands and other places, got one that"
                raise InvalidRequestError(place.field, f"{expected} overlaps. Move it.")
            taken.append(location)


def _reply(
    kind: type[Message], problem: Any, fields: Mapping[str, tensor_pb2.Layout]
) -> ReplyTemplate:
    """Makes the template of a reply with the results of a problem, in the layouts of maps."""
    likes = on_bytes.results_of(problem)
    results = zip(fields.items(), likes, strict=True)
    return ReplyTemplate(kind, *(Result(field, like, layout) for (field, layout), like in results))


def _output_size(output_size: Sequence[int], axes: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the output size of a request along each axis; None: that of the operands."""
    field, size = "output_size", tuple(output_size)
    if not size:
        return None
    if len(size) != len(axes):
        expected = f"expected sizes ({', '.join(axes)}), got {len(size)}. Give all or none."
        raise InvalidRequestError(field, expected)
    if min(size) < 1:
        expected = f"expected sizes of at least 1, got {size}. Enlarge them."
        raise InvalidRequestError(field, expected)
    return size


def _warp_problem(
    request: warp_pb2.WarpRequest | warp_pb2.WarpGradientsRequest,
    feature_map: Operand,
    transform: TransformOperand,
    size: Sequence[int] | None,
) -> stn_engine.WarpProblem:
    with field_paths({**transform.paths, "fill": "spec.fill"}):
        spec = read_spec(request.spec)
        return stn_engine.WarpProblem(feature_map.meta, transform.meta, size, spec)


def _grid_problem(
    request: warp_pb2.GenerateGridRequest | warp_pb2.GenerateGridGradientsRequest,
    transform: TransformOperand,
    size: Sequence[int],
) -> stn_engine.GridProblem:
    if isinstance(transform.meta, stn_engine.SamplingGrid):
        expected = "expected parameters to generate a grid from, got a sampling grid."
        raise InvalidRequestError("transform", f"{expected} Use it as it is.")
    coordinates = read_coordinates(request.coordinates, "coordinates")
    with field_paths(transform.paths):
        return stn_engine.GridProblem(transform.meta, size, coordinates, request.align_corners)


def _warp_key(problem: stn_engine.WarpProblem) -> Hashable:
    return problem.spec, problem.transform.dims, problem.transform.settings


def _grid_key(problem: stn_engine.GridProblem) -> Hashable:
    transform = problem.transform
    return problem.coordinates, problem.align_corners, transform.dims, transform.settings
