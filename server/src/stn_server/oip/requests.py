"""Translates requests of the Open Inference Protocol to those of `stn.v1`, and results back.

A request is put into the words of the same request of `stn.v1`, and from then on is one: checked,
queued and computed as that would be. Its raw contents stay views of the message. What differs from
an earlier request in raw contents and id alone is compared with it instead of being read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from stn_proto import Frame, WireFormatError, values
from stn_proto.codec import DTYPES
from stn_proto.oip.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from stn_proto.v1 import tensor_pb2
from stn_server.batching.work import Finished
from stn_server.config import LimitsConfig
from stn_server.errors import (
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    ServerError,
)
from stn_server.oip.models import (
    ANY,
    DATA_TYPES,
    DATATYPES,
    DEFAULT_PRIORITY,
    PRIORITIES,
    VERSION,
    Model,
    ModelTensor,
)
from stn_server.oip.parameters import chosen, integer, require_known, set_field, truth
from stn_server.oip.regions import Regions
from stn_server.oip.sources import (
    REGION,
    REGION_BYTES,
    ZERO,
    Source,
    Span,
    points,
    size_bytes,
    sources_of,
    span_of,
    views,
)
from stn_server.operands import Result, parse
from stn_server.translate import (
    MAX_SIZES,
    MAX_TEMPLATE_BYTES,
    MAX_TEMPLATES,
    REQUESTS,
    Request,
    RequestTemplate,
    Translator,
)
from stn_server.tuning import IMPLICIT_DEADLINE_S, PRIORITY_FACTOR

RAW_INPUTS = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
RAW_OUTPUTS = ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
ID = ModelInferRequest.ID_FIELD_NUMBER
REQUEST_ID = ModelInferResponse.ID_FIELD_NUMBER

PRIORITY, TIMEOUT, LAYOUT = "priority", "timeout", "layout"
FINAL_WANTED = "triton_enable_empty_final_response"
FINAL = "triton_final_response"

MAX_TIMEOUT_US = 2**53
"""The largest timeout; a longer one means none."""

ALIGNMENT_BYTES = 64
"""The alignment of gathered inputs in memory."""

LAYOUTS = {name.removeprefix("LAYOUT_"): n for name, n in tensor_pb2.Layout.items() if n}
"""Orders of the axes of maps, by name."""


class Response:
    """A response but for its numbers and the id, serialized once.

    Args:
        model: The model that was asked.
        results: The results of the model.
        wanted: Names of the outputs that were asked for; empty: all.
        spans: The shared memory for each result; None: it is in the response.
        parameters: The parameters of the response.
    """

    def __init__(
        self,
        model: Model,
        results: Sequence[Result],
        wanted: Collection[str],
        spans: Sequence[Span | None],
        parameters: Mapping[str, InferParameter],
    ) -> None:
        self.spans = spans
        self.is_spread = any(spans)
        """Whether some result goes to shared memory."""
        self.names = [_output_name(model, result) for result in results]
        head = ModelInferResponse(
            model_name=model.name, model_version=VERSION, parameters=parameters
        )
        self._before: list[bytes | None] = []
        """The bytes before the numbers of each result; None if it was not asked for."""
        for name, result, span in zip(self.names, results, spans, strict=True):
            if wanted and name not in wanted:
                self._before.append(None)
                continue
            description = result.description(0)
            head.outputs.add(
                name=name,
                datatype=DATATYPES[description.data_type],
                shape=description.shape,
                parameters=span.parameters if span else {},
            )
            self._before.append(field_head(RAW_OUTPUTS, 0 if span else result.like.nbytes))
        self._head = head.SerializeToString()

    def write(self, request_id: bytes, finished: Finished) -> bytes:
        """Returns the serialized response, without results that go to shared memory."""
        pieces: list[Any] = [self._head]
        for before, value, span in zip(self._before, finished.result, self.spans, strict=True):
            if before is not None:
                pieces += (before,) if span else (before, value)
        if request_id:
            pieces += (field_head(REQUEST_ID, len(request_id)), request_id)
        return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Standing:
    """The urgency of a request, and what its response says beside results."""

    timeout_s: float
    """After so many seconds in the queue the result is unwanted; infinity: never."""
    due_within_s: float
    parameters: Mapping[str, InferParameter]


@dataclass(frozen=True, slots=True)
class InferTemplate:
    """A validated request but for its id and the values of its tensors."""

    frame: Frame
    """Fits messages that differ in these parts alone."""
    model: Model
    made: RequestTemplate
    """The template of the same request of `stn.v1`."""
    response: Response
    id: slice | None
    """The slice of the message that holds the id; None: there is none."""
    standing: Standing
    items: int
    """The number of items of its batch."""

    def id_of(self, message: bytes) -> bytes:
        """Returns the id of a message that it fits.

        Raises:
            WireFormatError: It is no text.
        """
        if self.id is None:
            return b""
        found = message[self.id]
        try:
            found.decode()
        except UnicodeDecodeError:
            raise WireFormatError("id", "text in UTF-8", "other bytes") from None
        return found


@dataclass(slots=True, eq=False)
class Inference:
    """A valid request; `gather` first if some input is not in the message, or not raw."""

    template: InferTemplate
    request_id: bytes
    request: Request | None
    """The same request of `stn.v1`; None until it is gathered."""
    sources: Mapping[str, Source]
    """The inputs to gather, by name, in the order of the payloads of the template."""

    def gather(self) -> None:
        """Copies inputs side by side into memory of the server's own; runs in any thread.

        Raises:
            InvalidRequestError: They are not there, or a number breaks a rule.
        """
        made = self.template.made
        frame = made.frame
        array: Any = np.empty(frame.payloads[-1].stop, np.uint8)
        memory = memoryview(array)
        for (name, source), span in zip(self.sources.items(), frame.payloads, strict=True):
            if isinstance(source, Span):
                source.region.read(name, source.offset, memory[span])
            else:
                memory[span] = cast("bytes", source)
        view: Any = memory.toreadonly()
        try:
            self.request = made.request(view)
        except InvalidRequestError as error:
            raise in_callers_words(error) from error.__cause__

    def scatter(self, results: Sequence[bytes]) -> None:
        """Writes those results to shared memory that belong there; runs in any thread.

        Raises:
            InvalidRequestError: The memory is not there any more.
        """
        response = self.template.response
        for name, value, span in zip(response.names, results, response.spans, strict=True):
            if span:
                span.region.write(name, span.offset, value)


class Decoder:
    """Decodes requests under the configured limits.

    Args:
        translator: Checks what they become.
        limits: The limits of a request.
        models: All that there are.
        regions: The shared memory in which inputs and outputs may lie.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        translator: Translator,
        limits: LimitsConfig,
        models: Mapping[str, Model],
        regions: Regions,
    ) -> None:
        self._translator = translator
        self._limits = limits
        self._models = models
        self._regions = regions
        self._templates: dict[int, tuple[InferTemplate, ...]] = {}
        """The latest templates, by the size of their messages."""

    def decode(self, message: bytes, owner: str) -> Inference:
        """Returns the request that a message holds.

        Args:
            message: Serialized bytes.
            owner: Name of the caller.

        Raises:
            ModelNotFoundError: There is no such model.
            RegionNotFoundError: A tensor lies in shared memory that the caller has not registered.
            ServerError: Any that `Translator.decode` raises.
        """
        try:
            for template in self._templates.get(len(message), ()):
                if template.frame.fits(message):
                    request_id = template.id_of(message)
                    return Inference(template, request_id, template.made.request(message), {})
            return self._decode_anew(message, owner)
        except (ServerError, WireFormatError) as error:
            raise in_callers_words(error) from error.__cause__

    def model(self, name: str, version: str) -> Model:
        """Returns the model of this name and version.

        Raises:
            ModelNotFoundError: There is none, or not in this version.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError("model_name")
        if version not in {"", VERSION}:
            raise ModelNotFoundError("model_version")
        return model

    def _decode_anew(self, message: bytes, owner: str) -> Inference:
        """Reads a message that no template fits, and keeps a template of it."""
        limits = self._limits
        frame = Frame.of(
            message, limits.max_payloads, limits.max_envelope_bytes, payloads_field=RAW_INPUTS
        )
        infer = parse(frame.envelope, ModelInferRequest)
        model = self.model(infer.model_name, infer.model_version)
        sources = dict(sources_of(infer, frame, model, self._regions, owner))
        standing = _standing(infer.parameters, model)
        request, operands = _translated(infer, model, sources, message)
        slices = tuple(one for one in operands.values() if isinstance(one, slice))
        is_raw, ids = len(slices) == len(operands), values(message, ID)
        # Raw inputs are read where they are in the message; all others are first copied side by
        # side, to a message that has nothing else. The id differs from request to request; of
        # several the last one counts, as protobuf has it.
        frame = (
            replace(frame, payloads=slices).opened(message, ids[-1:])
            if is_raw
            else self._gathered(operands, len(message))
        )
        made = self._translator.template(model.operation, request, frame, message)
        spans = self._spans(infer, model, made.reply.results, owner)
        wanted = {output.name for output in infer.outputs}
        response = Response(model, made.reply.results, wanted, spans, standing.parameters)
        template = InferTemplate(
            frame,
            model,
            made,
            response,
            ids[-1] if ids else None,
            standing,
            int(made.reply.results[0].like.shape[0]),
        )
        request_id = infer.id.encode()
        if not is_raw:
            return Inference(template, request_id, None, views(operands, message))
        bound = made.request(message)
        if not response.is_spread:  # whether regions are there has to be asked anew each time
            self._keep(template)
        return Inference(template, request_id, bound, {})

    def _keep(self, template: InferTemplate) -> None:
        frame = template.frame
        if sum(len(piece) for _, piece in frame.rest) > MAX_TEMPLATE_BYTES:
            return
        alike = self._templates.get(frame.size_bytes, ())
        if not alike and len(self._templates) == MAX_SIZES:
            del self._templates[next(iter(self._templates))]
        self._templates[frame.size_bytes] = template, *alike[: MAX_TEMPLATES - 1]

    def _gathered(self, operands: Mapping[str, Source], message_bytes: int) -> Frame:
        """Returns the frame of inputs once they are gathered."""
        spans, start = list[slice](), 0
        for source in operands.values():
            span = slice(start, start + size_bytes(source))
            spans.append(span)
            start = -(-span.stop // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        limit = self._limits.max_message_bytes
        if start > limit:
            raise MessageTooLargeError("inputs", limit, start, "bytes")
        return Frame(b"", message_bytes + start, tuple(spans), ())

    def _spans(
        self,
        infer: ModelInferRequest,
        model: Model,
        results: Sequence[Result],
        owner: str,
    ) -> tuple[Span | None, ...]:
        """Returns the shared memory for each result; None for one in the response."""
        wanted = {output.name: output.parameters for output in infer.outputs}
        spans = list[Span | None]()
        for result in results:
            name = _output_name(model, result)
            span = span_of(wanted.get(name, {}), name, self._regions, owner)
            if span and span.size_bytes < result.like.nbytes:
                expected = f"expected at least {result.like.nbytes} bytes, got {span.size_bytes}."
                raise InvalidRequestError(f"{name}.{REGION_BYTES}", f"{expected} Give it more.")
            if span:
                span = replace(span, size_bytes=result.like.nbytes)
                if any(other and span.overlaps(other) for other in spans):
                    expected = "expected bytes apart from other outputs, got some that overlap."
                    raise InvalidRequestError(f"{name}.{REGION}", f"{expected} Move it.")
            spans.append(span)
        return tuple(spans)


def _standing(parameters: Mapping[str, InferParameter], model: Model) -> Standing:
    """Reads parameters that do not concern the problem, and refuses unknown ones."""
    known = (*model.options, *([LAYOUT] * model.has_layout), PRIORITY, TIMEOUT, FINAL_WANTED)
    require_known(parameters, known, "parameters")
    timeout_us = integer(parameters.get(TIMEOUT, ZERO), TIMEOUT)
    priority = integer(parameters.get(PRIORITY, ZERO), PRIORITY)
    steps = min(priority or DEFAULT_PRIORITY, PRIORITIES) - DEFAULT_PRIORITY
    wants_final = FINAL_WANTED in parameters and truth(parameters[FINAL_WANTED], FINAL_WANTED)
    return Standing(
        timeout_us / 1e6 if 0 < timeout_us < MAX_TIMEOUT_US else math.inf,
        IMPLICIT_DEADLINE_S * PRIORITY_FACTOR**steps,
        {FINAL: InferParameter(bool_param=True)} if wants_final else {},
    )


def _translated(
    infer: ModelInferRequest, model: Model, sources: Mapping[str, Source], message: bytes
) -> tuple[Any, dict[str, Source]]:
    """Returns the same request in `stn.v1`, and its payloads in the order of their indices."""
    request: Any = REQUESTS[model.operation]()
    operands: dict[str, Source] = {}
    layout: Any = 0
    if LAYOUT in infer.parameters:
        layout = chosen(LAYOUTS, infer.parameters[LAYOUT], LAYOUT)
    for tensor in infer.inputs:
        spec, source = model.inputs[tensor.name], sources[tensor.name]
        shape = tuple(tensor.shape)
        _require_shape(shape, spec)
        target = _at(request, spec.path)
        if not isinstance(target, tensor_pb2.Tensor):
            target.extend(points(tensor, source, message))
            continue
        target.data_type = DATA_TYPES[tensor.datatype]
        target.shape.extend(shape)
        target.payload = len(operands)
        if spec.is_map:
            target.layout = layout
        operands[tensor.name] = source
    for name, parameter in infer.parameters.items():
        option = model.options.get(name)
        if option:
            set_field(_at(request, option.path), option.field, parameter)
    _set_needs(request, infer, model)
    return request, operands


def _set_needs(request: Any, infer: ModelInferRequest, model: Model) -> None:
    """Reads which results are asked for."""
    names = [output.name for output in infer.outputs]
    if len(set(names)) < len(names) or set(names) - set(model.outputs):
        expected = f"expected some of {', '.join(model.outputs)}, each once, got others."
        raise InvalidRequestError("outputs", f"{expected} ModelMetadata lists them.")
    needs = request.DESCRIPTOR.fields_by_name.get("needs")
    if needs is None:
        return
    prefix = needs.enum_type.values[0].name.removesuffix("UNSPECIFIED")
    known = {value.name.removeprefix(prefix): value.number for value in needs.enum_type.values}
    wanted = (model.outputs[name].path[0].removeprefix("grad_").upper() for name in names)
    # What has no number is always told, as is the value of an objective.
    request.needs.extend(known.get(one, known.get("VALUE")) for one in wanted)


def _output_name(model: Model, result: Result) -> str:
    return next(one.name for one in model.outputs.values() if one.path == (result.field,))


def _at(message: Any, path: Sequence[str]) -> Any:
    for name in path:
        message = getattr(message, name)
    return message


def _require_shape(shape: Sequence[int], spec: ModelTensor) -> None:
    fits = len(shape) == len(spec.shape) and all(
        size in {ANY, actual} for size, actual in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        expected = f"expected shape {spec.shape}, where {ANY} is any size, got {shape}."
        raise InvalidRequestError(spec.name, f"{expected} Reshape it.")


def field_head(number: int, size_bytes: int) -> bytes:
    """Returns the bytes before the value of a field of so many bytes."""
    head = bytearray([number << 3 | 2])
    while size_bytes >= 0x80:
        head.append(size_bytes & 0x7F | 0x80)
        size_bytes >>= 7
    head.append(size_bytes)
    return bytes(head)


_OURS = re.compile(r"^(transform\.\w+\.|spec\.)|(?<=\w)\.payload$")

_ENGINES = {f"torch.{DTYPES[number].name}": name for name, number in DATA_TYPES.items()}
"""Datatypes by the names that the engine uses."""


def in_callers_words(error: ServerError | WireFormatError) -> ServerError | WireFormatError:
    """Returns the same error with the name that the caller gave the field."""
    field = getattr(error, "field", None)
    if field is not None:
        theirs = "raw_input_contents" if field == "payloads" else _OURS.sub("", field)
        theirs = theirs.replace(".data_type", ".datatype")
        complaint = theirs + str(error).removeprefix(field)
        complaint = re.sub(r"torch\.\w+", lambda one: _ENGINES.get(one[0], one[0]), complaint)
        complaint = complaint.replace(": Tensor.to.", ".")
        error.args = (complaint.replace("`payloads`", "`raw_input_contents`"),)
        error.field = theirs  # type: ignore[union-attr]
    return error
