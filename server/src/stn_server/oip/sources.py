"""The sources of inputs, and where outputs go: the message, raw or typed, or shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stn_proto import Frame, WireFormatError
from stn_proto.codec import DTYPES
from stn_proto.oip.inference_pb2 import InferParameter, ModelInferRequest
from stn_server.errors import InvalidRequestError, UnsupportedError
from stn_server.oip.models import DATA_TYPES, Model
from stn_server.oip.parameters import integer, require_known, text
from stn_server.oip.regions import Region, Regions

REGION, REGION_BYTES, REGION_OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)

NONE, ZERO = InferParameter(), InferParameter(int64_param=0)
"""Stands for parameters that are absent."""

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


def sources_of(
    infer: ModelInferRequest, frame: Frame, model: Model, regions: Regions, owner: str
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
        span = span_of(tensor.parameters, tensor.name, regions, owner)
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


def span_of(
    parameters: Mapping[str, InferParameter], tensor: str, regions: Regions, owner: str
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
    region = regions.find(owner, field, name)
    if size > region.size_bytes or offset > region.size_bytes - size:
        expected = f"expected bytes within {region.size_bytes}, got {size} bytes at {offset}."
        raise InvalidRequestError(field, f"{expected} Register a larger region.")
    return Span(region, offset, size, dict(parameters))


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


def points(tensor: Any, source: Source, message: bytes) -> list[float]:
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


def size_bytes(source: Source) -> int:
    """Returns the size of the elements of an input."""
    if isinstance(source, slice):
        return int(source.stop - source.start)
    return source.size_bytes if isinstance(source, Span) else len(source)


def views(operands: Mapping[str, Source], message: bytes) -> dict[str, Any]:
    """Returns the parts to gather, those of the message as views that need not be kept."""
    view = memoryview(message)
    return {
        name: view[source] if isinstance(source, slice) else source
        for name, source in operands.items()
    }


def _twice(name: str, others: str) -> InvalidRequestError:
    expected = f"expected one source of its elements, got {others} beside it."
    return InvalidRequestError(name, f"{expected} Leave one out.")
