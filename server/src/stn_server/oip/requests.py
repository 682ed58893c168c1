"""Translates requests of the Open Inference Protocol to those of `stn.v1`, and results back.

A request is put into the words of the same request of `stn.v1`, and from then on is one: checked,
queued and computed as that would be. Its raw contents stay views of the message. What differs from
an earlier request in raw contents and id alone is compared with it instead of being read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    UnsupportedError,
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
from stn_server.oip.parameters import chosen, integer, require_known, set_field, text, truth
from stn_server.oip.regions import Region, Regions
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

REGION, REGION_BYTES, REGION_OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)

NONE, ZERO = InferParameter(), InferParameter(int64_param=0)
"""Stands for parameters that are absent."""

MAX_TIMEOUT_US = 2**53
"""The largest timeout; a longer one means none."""

ALIGNMENT_BYTES = 64
"""The alignment of gathered inputs in memory."""

LAYOUTS = {name.removeprefix("LAYOUT_"): n for name, n in tensor_pb2.Layout.items() if n}
"""Orders of the axes of maps, by name."""

_TYPED = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""The field of `InferTensorContents` for every datatype that has one."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a region, for an input or an output."""

    region: Region
    offset: int
    size_bytes: int
    parameters: Mapping[str, InferParameter]
    """The name in the request."""

    def overlaps(self, other: Span) -> bool:
        """Returns whether it has bytes in common with another one, of whatever region."""
        start, others = self.region.offset + self.offset, other.region.offset + other.offset
        is_apart = start + self.size_bytes <= others or others + other.size_bytes <= start
        return self.region.object == other.region.object and not is_apart


Source = slice | bytes | Span
"""The source of an input: in the message, made of typed contents, or in shared memory."""


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
            return self._decoded(message, owner)
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

    def _decoded(self, message: bytes, owner: str) -> Inference:
        limits = self._limits
        frame = Frame.of(
            message, limits.max_payloads, limits.max_envelope_bytes, payloads_field=RAW_INPUTS
        )
        infer = parse(frame.envelope, ModelInferRequest)
        model = self.model(infer.model_name, infer.model_version)
        sources = dict(self._sources(infer, frame, model, owner))
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
            return Inference(template, request_id, None, _views(operands, message))
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
            span = slice(start, start + _size_bytes(source))
            spans.append(span)
            start = -(-span.stop // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        limit = self._limits.max_message_bytes
        if start > limit:
            raise MessageTooLargeError("inputs", limit, start, "bytes")
        return Frame(b"", message_bytes + start, tuple(spans), ())

    def _sources(
        self, infer: ModelInferRequest, frame: Frame, model: Model, owner: str
    ) -> Iterator[tuple[str, Source]]:
        """Yields the source of each input, by name."""
        names = [tensor.name for tensor in infer.inputs]
        needed = {one.name for one in model.inputs.values() if not one.is_optional}
        if len(set(names)) < len(names) or not needed <= set(names) <= set(model.inputs):
            expected = f"expected {', '.join(model.inputs)}, each once, got others."
            raise InvalidRequestError("inputs", f"{expected} ModelMetadata lists them.")
        raw = iter(frame.payloads)
        sent = 0
        for tensor in infer.inputs:
            if tensor.datatype not in DATA_TYPES:  # first, however its elements are sent
                field = f"{tensor.name}.datatype"
                raise UnsupportedError(field, "another one", tuple(DATA_TYPES))
            span = self._span(tensor.parameters, tensor.name, owner)
            if span:
                if tensor.HasField("contents"):
                    raise _twice(tensor.name, "contents")
                yield tensor.name, span
                continue
            sent += 1
            if not frame.payloads:
                yield tensor.name, _typed(tensor)
                continue
            if tensor.HasField("contents"):
                raise _twice(tensor.name, "raw_input_contents and contents")
            source = next(raw, None)
            if source is None:
                break
            yield tensor.name, source
        if frame.payloads and sent != len(frame.payloads):
            count = sum(REGION not in tensor.parameters for tensor in infer.inputs)
            expected = f"expected {count}, one for every input that is not in shared memory"
            raise InvalidRequestError(
                "raw_input_contents", f"{expected}, got {len(frame.payloads)}. Send as many."
            )

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
            span = self._span(wanted.get(name, {}), name, owner)
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

    def _span(
        self, parameters: Mapping[str, InferParameter], tensor: str, owner: str
    ) -> Span | None:
        """Returns the bytes of shared memory that the parameters of a tensor name; None if none."""
        known = (REGION, REGION_BYTES, REGION_OFFSET)
        require_known(parameters, known, f"{tensor}.parameters")
        if REGION not in parameters:
            if parameters:
                expected = f"expected {REGION} beside the others, got none. Name it."
                raise InvalidRequestError(f"{tensor}.parameters", expected)
            return None
        field = f"{tensor}.{REGION}"
        name = text(parameters[REGION], field)
        size = integer(parameters.get(REGION_BYTES, NONE), f"{tensor}.{REGION_BYTES}")
        offset = integer(parameters.get(REGION_OFFSET, ZERO), f"{tensor}.{REGION_OFFSET}")
        region = self._regions.find(owner, field, name)
        if size > region.size_bytes or offset > region.size_bytes - size:
            expected = f"expected bytes within {region.size_bytes}, got {size} bytes at {offset}."
            raise InvalidRequestError(field, f"{expected} Register a larger region.")
        return Span(region, offset, size, dict(parameters))


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
            target.extend(_points(tensor, source, message))
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


def _points(tensor: Any, source: Source, message: bytes) -> list[float]:
    """Returns points that are the same for all items, as x and y in turn."""
    if tensor.shape[0] != 1:
        expected = f"expected N = 1, as they hold for all items, got {tensor.shape[0]}."
        raise InvalidRequestError(tensor.name, f"{expected} Send them once.")
    if tensor.datatype not in {"FP32", "FP64"}:
        raise UnsupportedError(f"{tensor.name}.datatype", tensor.datatype, ("FP64", "FP32"))
    if isinstance(source, Span):
        expected = "expected contents in the message, got shared memory. Send them."
        raise InvalidRequestError(tensor.name, expected)
    data = message[source] if isinstance(source, slice) else source
    dtype = DTYPES[DATA_TYPES[tensor.datatype]]
    if len(data) != math.prod(tensor.shape) * dtype.itemsize:
        expected = f"{math.prod(tensor.shape) * dtype.itemsize} bytes for its shape"
        raise WireFormatError(tensor.name, expected, f"{len(data)} bytes")
    numbers: list[float] = np.frombuffer(data, dtype).astype(float).tolist()
    return numbers


def _typed(tensor: Any) -> bytes:
    """Returns the bytes of typed contents."""
    name, contents = tensor.name, tensor.contents
    given = [field.name for field, _ in contents.ListFields()]
    field, dtype = _TYPED.get(tensor.datatype), DTYPES[DATA_TYPES[tensor.datatype]]
    if field is None:
        if not given:
            raise InvalidRequestError(name, "expected contents, got none. Send them raw.")
        raise UnsupportedError(f"{name}.contents", tensor.datatype, ("raw_input_contents",))
    if given != [field]:
        expected = f"expected {field} for {tensor.datatype}, got {', '.join(given) or 'none'}."
        raise InvalidRequestError(f"{name}.contents", f"{expected} Use that, or send them raw.")
    numbers = np.array(getattr(contents, field))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if numbers.min() < limits.min or numbers.max() > limits.max:
            expected = f"expected numbers from {limits.min} to {limits.max}, got others."
            raise InvalidRequestError(f"{name}.contents", f"{expected} Clip them.")
    return numbers.astype(dtype).tobytes()


def _size_bytes(source: Source) -> int:
    if isinstance(source, slice):
        return int(source.stop - source.start)
    return source.size_bytes if isinstance(source, Span) else len(source)


def _views(operands: Mapping[str, Source], message: bytes) -> dict[str, Any]:
    """Returns the parts to gather, those of the message as views that need not be kept."""
    view = memoryview(message)
    return {
        name: view[source] if isinstance(source, slice) else source
        for name, source in operands.items()
    }


def _require_shape(shape: Sequence[int], spec: ModelTensor) -> None:
    fits = len(shape) == len(spec.shape) and all(
        size in {ANY, actual} for size, actual in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        expected = f"expected shape {spec.shape}, where {ANY} is any size, got {shape}."
        raise InvalidRequestError(spec.name, f"{expected} Reshape it.")


def _twice(name: str, others: str) -> InvalidRequestError:
    expected = f"expected one source of its elements, got {others} beside it."
    return InvalidRequestError(name, f"{expected} Leave one out.")


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
