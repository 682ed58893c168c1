"""Tensors and transforms of a message, as the engine takes and gives them.

What a message declares is checked once, on tensors without memory (torch's meta device); the bytes
of each request are then bound to what was declared. Every complaint names the field by its path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import ml_dtypes
import numpy as np
import torch
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

import stn_engine
from stn_proto import (
    Declaration,
    WireFormatError,
    describe_tensor,
    get_declaration,
    values,
)
from stn_proto.codec import DTYPES, data_type
from stn_proto.v1 import tensor_pb2, warp_pb2
from stn_proto.v1.tensor_pb2 import (
    DATA_TYPE_UNSPECIFIED,
    LAYOUT_NCHW,
    LAYOUT_NHWC,
    LAYOUT_UNSPECIFIED,
    ArenaRef,
    ResidentRef,
    Tensor,
)
from stn_server.errors import (
    InvalidRequestError,
    ResultTooLargeError,
    UnknownFieldError,
    UnsupportedError,
)
from stn_server.local.arenas import ID_BYTES, Arenas
from stn_server.residents import HANDLE_BYTES, Residents
from stn_server.vocabulary import unsupported

M = TypeVar("M", bound=Message)
Payloads = list[memoryview]


KINDS: dict[str, type[Any]] = {
    name: getattr(stn_engine, getattr(warp_pb2.Transform(), name).DESCRIPTOR.name)
    for name in warp_pb2.Transform.DESCRIPTOR.fields_by_name
}
"""The engine's class for every field of `Transform.kind`.

Messages and classes have the same names, and so have their fields: one tensor of parameters, beside
which a message has numbers, and lists of points as x and y in turn.
"""

TRANSFORMS = tuple(KINDS)
"""Fields of `Transform.kind`, all of which the engine computes."""

TORCH_DTYPES = {
    np.dtype("<f4"): torch.float32,
    np.dtype("<f8"): torch.float64,
    np.dtype("<f2"): torch.float16,
    np.dtype(ml_dtypes.bfloat16): torch.bfloat16,
    np.dtype("u1"): torch.uint8,
    np.dtype("<u2"): torch.uint16,
    np.dtype("<i2"): torch.int16,
    np.dtype("?"): torch.bool,
    np.dtype("i1"): torch.int8,
    np.dtype("<i4"): torch.int32,
    np.dtype("<u4"): torch.uint32,
    np.dtype("<i8"): torch.int64,
    np.dtype("<u8"): torch.uint64,
}
"""The engine's dtype of every data type of the wire."""

NUMPY_DTYPES = {theirs: ours for ours, theirs in TORCH_DTYPES.items()}

LAYOUTS = (LAYOUT_NCHW, LAYOUT_NHWC)
"""The layouts that feature maps may have."""

_SOURCE_AXES = ("D", "H", "W")
_TARGET_AXES = ("D'", "H'", "W'")

FEW_BYTES = 1024
"""Up to so many numbers, a sum in Python takes less time than one by NumPy takes to begin."""


class Memory(NamedTuple):
    """The memory beside messages in which tensors may lie; None of a kind that is not offered."""

    arenas: Arenas | None = None
    residents: Residents | None = None


NO_MEMORY = Memory()


class Location(NamedTuple):
    """The bytes beside its message that a tensor of one request takes."""

    arena: bytes
    """The id of an arena; empty if it is a resident tensor."""
    offset: int
    memory: memoryview
    handle: bytes = b""
    """The handle of a resident tensor."""

    def overlaps(self, other: Location) -> bool:
        """Returns whether any byte is in both."""
        return (
            self.arena == other.arena != b""
            and self.offset < other.offset + len(other.memory)
            and other.offset < self.offset + len(self.memory)
        )


@dataclass(frozen=True, slots=True)
class Region:
    """A reference to bytes in an arena, known but for the arena and the offset."""

    field: str
    """The path of the reference in its message."""
    size_bytes: int
    id: slice
    """The slice of the message that names the arena."""
    offset: slice | None
    """The slice of the message that holds the offset; None: it is 0."""

    @property
    def spans(self) -> list[slice]:
        """The slices of the message in which requests that are otherwise alike may differ."""
        return [self.id, self.offset] if self.offset else [self.id]

    def locate(self, message: bytes, memory: Memory, caller: str) -> Location:
        """Returns the location in one request.

        Raises:
            UnsupportedError: This server has no arenas.
            ArenaNotFoundError: The caller has no such arena.
            InvalidRequestError: It is not within the arena.
        """
        if memory.arenas is None:
            raise UnsupportedError(self.field, "an arena", ("payload",))
        arena = memory.arenas.find(caller, self.field, message[self.id])
        offset = int.from_bytes(message[self.offset], "little") if self.offset else 0
        return Location(arena.id, offset, arena.view(self.field, offset, self.size_bytes))


@dataclass(frozen=True, slots=True)
class Handle:
    """A reference to a resident tensor, known but for its handle."""

    field: str
    """The path of the reference in its message."""
    declaration: Declaration
    """The declaration of the tensor in the message."""
    id: slice
    """The slice of the message that holds the handle."""

    @property
    def spans(self) -> list[slice]:
        """The slices of the message in which requests that are otherwise alike may differ."""
        return [self.id]

    def locate(self, message: bytes, memory: Memory, caller: str) -> Location:
        """Returns the location in one request, which holds the tensor from now on.

        Raises:
            UnsupportedError: This server has no resident tensors.
            HandleNotFoundError: The caller has no such tensor.
            InvalidRequestError: It is of another data type or size, or not all of it is there.
        """
        if memory.residents is None:
            raise UnsupportedError(self.field, "a resident tensor", ("payload",))
        resident = memory.residents.find(caller, self.field, message[self.id])
        expected = data_type(self.declaration.dtype), self.declaration.size_bytes
        if (resident.data_type, resident.size_bytes) != expected:
            names = [tensor_pb2.DataType.Name(one) for one in (expected[0], resident.data_type)]
            wanted = f"expected {expected[1]} bytes of {names[0]}"
            got = f"got {resident.size_bytes} of {names[1]}"
            raise InvalidRequestError(self.field, f"{wanted}, {got}. Name another tensor.")
        if resident.missing_bytes:
            wanted = f"expected all {resident.size_bytes} bytes of the tensor"
            got = f"got {resident.received_bytes} so far"
            raise InvalidRequestError(self.field, f"{wanted}, {got}. Upload the others first.")
        return Location(b"", 0, resident.view(), resident.handle)


Reference = Region | Handle
"""A reference to bytes of a tensor beside a message."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of a request, declared but for its bytes."""

    declaration: Declaration
    channels_last: bool = False
    """Whether it is (N, [D,] H, W, C) on the wire."""
    finite: bool = False
    """Whether every number must be finite."""
    is_parameter: bool = False
    """Whether its numbers determine where a feature map is read."""

    @property
    def meta(self) -> torch.Tensor:
        """The declared tensor in the engine's order of axes, without memory."""
        dtype = TORCH_DTYPES[self.declaration.dtype]
        meta = torch.empty(self.declaration.shape, dtype=dtype, device="meta")
        return meta.movedim(-1, 1) if self.channels_last else meta

    def read(self, payloads: Payloads, source: Location | None = None) -> memoryview:
        """Returns the bytes of the operand in a request, as many as were declared.

        Args:
            payloads: The payloads of the request.
            source: The location of its bytes beside the message; None: it is a payload.

        Raises:
            InvalidRequestError: A number must be finite and is not.
        """
        declaration = self.declaration
        # Without a location it is a payload, whose index mypy does not know to be there.
        read = payloads[declaration.payload] if source is None else source.memory  # type: ignore[index]
        if self.is_parameter and not read.readonly:
            # A caller can write to its arena at any time: numbers that addresses are made of, here
            # and in kernels, must not change between their check and their use.
            read = memoryview(bytes(read))
        if self.finite and not _is_finite(read, declaration.dtype):
            raise _not_finite(read, declaration)
        return read


@dataclass(frozen=True, slots=True)
class Result:
    """A tensor of a reply, known but for its numbers."""

    field: str
    """The name of its field in the reply."""
    like: torch.Tensor
    """Shape and dtype, in the engine's order of axes."""
    layout: tensor_pb2.Layout

    def description(self, payload: int) -> Tensor:
        """Returns the message that describes a tensor whose bytes are a payload."""
        last = self.layout == LAYOUT_NHWC
        shape = (self.like.movedim(1, -1) if last else self.like).shape
        return describe_tensor(NUMPY_DTYPES[self.like.dtype], shape, payload, layout=self.layout)

    def description_at(self, location: Location) -> Tensor:
        """Returns the message that describes a tensor whose bytes lie in an arena."""
        tensor = self.description(0)
        tensor.arena.id = location.arena
        tensor.arena.offset = location.offset
        tensor.arena.byte_count = self.like.nbytes
        return tensor


@dataclass(frozen=True, slots=True)
class TransformOperand:
    """The transform of a request."""

    operand: Operand
    """The tensor of its parameters."""
    meta: stn_engine.Transform
    """The declared transform, without memory."""
    paths: Mapping[str, str]
    """The paths in the message of the engine's arguments."""

    @property
    def source_axes(self) -> tuple[str, ...]:
        """The names of the axes of what a transform reads: those of an image, or of a volume."""
        return _SOURCE_AXES[-self.meta.dims :]

    @property
    def target_axes(self) -> tuple[str, ...]:
        """The names of the axes of what a transform writes."""
        return _TARGET_AXES[-self.meta.dims :]


def region_of(message: bytes, field: str, reference: slice, size_bytes: int) -> Region:
    """Returns the region that a reference to an arena names.

    Args:
        message: The message that holds the reference.
        field: The path of the reference in the message, for errors.
        reference: The slice of the reference in the message.
        size_bytes: The size of the region.

    Raises:
        InvalidRequestError: It names no arena.
    """
    found = values(message, ArenaRef.ID_FIELD_NUMBER, reference)
    offsets = values(message, ArenaRef.OFFSET_FIELD_NUMBER, reference)
    if len(found) != 1 or found[0].stop - found[0].start != ID_BYTES or len(offsets) > 1:
        expected = f"expected {ID_BYTES} bytes and at most one offset, got something else."
        raise InvalidRequestError(f"{field}.id", f"{expected} Use the id that came with the arena.")
    return Region(field, size_bytes, found[0], offsets[0] if offsets else None)


def _handle_of(message: bytes, declaration: Declaration, reference: slice) -> Handle:
    """Returns the handle that a reference to a resident tensor names.

    Args:
        message: The message that holds the reference.
        declaration: The declaration of the tensor.
        reference: The slice of the reference in the message.

    Raises:
        InvalidRequestError: It has no handle.
    """
    field = f"{declaration.field}.resident"
    found = values(message, ResidentRef.HANDLE_FIELD_NUMBER, reference)
    if len(found) != 1 or found[0].stop - found[0].start != HANDLE_BYTES:
        expected = f"expected {HANDLE_BYTES} bytes, got something else."
        raise InvalidRequestError(f"{field}.handle", f"{expected} Use what Upload has told.")
    return Handle(field, declaration, found[0])


def _place_of(message: bytes, kind: type[Message], field: str, source: str) -> slice:
    """Returns the slice of a message that refers to the bytes of a tensor beside it.

    Args:
        message: The message that holds the tensor.
        kind: The class of the message.
        field: Path of the tensor there.
        source: Field of the reference: "arena" or "resident".

    Raises:
        WireFormatError: A part of it stands there twice, which no serializer of protobuf does.
    """
    place: slice | None = None
    descriptor: Any = kind.DESCRIPTOR
    for name in (*field.split("."), source):
        known = descriptor.fields_by_name[name]
        found = values(message, known.number, place)
        if len(found) != 1:
            raise WireFormatError(f"{field}.{name}", "one field of this name", str(len(found)))
        place, descriptor = found[0], known.message_type
    return cast("slice", place)


def reference_of(message: bytes, kind: type[Message], declaration: Declaration) -> Reference | None:
    """Returns the reference to a tensor of a request; None if the tensor is a payload.

    Args:
        message: The message that holds the tensor.
        kind: The class of the message.
        declaration: The declaration of the tensor.

    Raises:
        InvalidRequestError: The reference names nothing.
        WireFormatError: A part of the reference stands there twice.
    """
    if declaration.payload is not None:
        return None
    field = declaration.field
    if declaration.is_resident:
        reference = _place_of(message, kind, field, "resident")
        return _handle_of(message, declaration, reference)
    reference = _place_of(message, kind, field, "arena")
    return region_of(message, f"{field}.arena", reference, declaration.size_bytes)


def transforms_in(dimensions: int) -> list[str]:
    """Returns those of `TRANSFORMS` that can be used with maps of so many dimensions."""
    return [name for name, kind in KINDS.items() if dimensions < 2 + len(kind.shapes)]


def parse_any_version(envelope: bytes, kind: type[M]) -> M:
    """Returns the message that an envelope holds, and accepts unknown fields.

    Raises:
        WireFormatError: The bytes are not a message of this kind.
    """
    try:
        return kind.FromString(envelope)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise WireFormatError("message", f"a serialized {name}", "other bytes") from error


def parse(envelope: bytes, kind: type[M]) -> M:
    """Returns the message that an envelope holds, without any unknown field.

    Raises:
        WireFormatError: The bytes are not a message of this kind.
        UnknownFieldError: A field, at any depth, is not in this version of the contract.
    """
    message = parse_any_version(envelope, kind)
    size_bytes = message.ByteSize()
    message.DiscardUnknownFields()  # at all depths at once; to look for them takes much longer
    if message.ByteSize() != size_bytes:
        _refuse_unknown_fields(kind.FromString(envelope))
    return message


def _refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Raises the error of the first field that protobuf does not know, at any depth.

    Args:
        message: The message, with the unknown fields that parsing kept.
        path: The path of the message, with a dot at the end.
    """
    unknown_fields: Any = UnknownFieldSet(message)  # the stubs do not know that it can be iterated
    for unknown in unknown_fields:
        number = unknown.field_number
        known = message.DESCRIPTOR.fields_by_number.get(number)
        if known is None:
            raise UnknownFieldError(f"{path}{number}")
        expected = f"the wire type of field {number} of {message.DESCRIPTOR.full_name}"
        raise WireFormatError(f"{path}{known.name}", expected, "another one")
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _refuse_unknown_fields(value, f"{path}{field.name}.")
        elif field.message_type is not None:
            for place, nested in enumerate(value):
                _refuse_unknown_fields(nested, f"{path}{field.name}[{place}].")


@contextmanager
def field_paths(paths: Mapping[str, str]) -> Iterator[None]:
    """Renames the argument that an engine error complains about to the field it came from."""
    try:
        yield
    except stn_engine.InvalidInputError as error:
        description = str(error).removeprefix(f"{error.argument}: ")
        field = paths.get(error.argument, error.argument)
        raise InvalidRequestError(field, description) from error


def declare(tensor: Tensor, field: str) -> Operand:
    """Declares a tensor that has no layout."""
    if tensor.layout in LAYOUTS:
        name = tensor_pb2.Layout.Name(tensor.layout)
        expected = f"expected LAYOUT_UNSPECIFIED, as only maps have a layout, got {name}."
        raise InvalidRequestError(f"{field}.layout", f"{expected} Leave it out.")
    return Operand(_declaration(tensor, field))


def declare_map(tensor: Tensor, field: str, axes: Sequence[str]) -> Operand:
    """Declares a feature map with N, C and these axes, whatever its layout on the wire."""
    declaration = _declaration(tensor, field)
    kind = "volumes" if len(axes) == 3 else "images"
    remedy = f"Add or remove axes: this transform reads {kind}."
    require_shape(declaration, ("N", "C", *axes), remedy)
    return Operand(declaration, channels_last=tensor.layout == LAYOUT_NHWC)


def _declaration(tensor: Tensor, field: str) -> Declaration:
    """Returns what a message declares of a tensor, if this server offers it."""
    if tensor.layout not in {LAYOUT_UNSPECIFIED, *LAYOUTS}:
        raise unsupported(f"{field}.layout", tensor_pb2.Layout, tensor.layout, LAYOUTS)
    if tensor.data_type not in {DATA_TYPE_UNSPECIFIED, *DTYPES}:
        raise unsupported(f"{field}.data_type", tensor_pb2.DataType, tensor.data_type, DTYPES)
    declaration = get_declaration(tensor, field)
    if 0 in declaration.shape:
        expected = f"expected sizes of at least 1, got {declaration.shape}. Leave empty calls out."
        raise InvalidRequestError(f"{field}.shape", expected)
    return declaration


def declare_transform(transform: warp_pb2.Transform, max_points: int) -> TransformOperand:
    """Declares the transform that a message holds.

    Args:
        transform: The message.
        max_points: The most in a list of points beside the parameters.
    """
    name = transform.WhichOneof("kind")
    if name is None:
        expected = f"expected one of {', '.join(TRANSFORMS)}, got none. Set one."
        raise InvalidRequestError("transform", expected)
    kind, message = KINDS[name], getattr(transform, name)
    paths = {field: f"transform.{name}.{field}" for field in message.DESCRIPTOR.fields_by_name}
    operand = declare(getattr(message, kind.argument), paths[kind.argument])
    settings = {
        field: _read_setting(getattr(message, field), path, max_points)
        for field, path in paths.items()
        if field != kind.argument
    }
    with field_paths(paths):
        meta = kind(operand.meta, **settings)
    # Single points need not be finite: they read `fill`.
    operand = replace(operand, finite=meta.own_size is None, is_parameter=True)
    return TransformOperand(operand, meta, paths)


def _read_setting(value: Any, path: str, max_points: int) -> Any:
    """Returns a number as it is, and a list of x and y in turn as points."""
    if isinstance(value, float):
        return value
    if len(value) > 2 * max_points:
        raise ResultTooLargeError(path, max_points, len(value) // 2, "points")
    if len(value) % 2:
        expected = f"expected x and y of every point, got {len(value)} numbers. Pair them."
        raise InvalidRequestError(path, expected)
    return list(zip(value[::2], value[1::2], strict=True))


def require_shape(
    declaration: Declaration, axes: Sequence[str], remedy: str = "Add or remove axes."
) -> None:
    """Refuses a tensor whose rank differs from the number of named axes."""
    if len(declaration.shape) != len(axes):
        expected = f"expected shape ({', '.join(axes)}), got {declaration.shape}."
        raise InvalidRequestError(declaration.field, f"{expected} {remedy}")


def _is_finite(payload: memoryview, dtype: np.dtype[Any]) -> bool:
    """Returns whether every number of float32 or float64 is finite."""
    if len(payload) <= FEW_BYTES:  # fewer than what a call of NumPy costs
        numbers = payload.cast("d" if dtype.itemsize == 8 else "f")
        if math.isfinite(sum(numbers)):
            return True  # of large ones the sum may overflow
    return bool(np.isfinite(np.frombuffer(payload, dtype)).all())


def _not_finite(payload: memoryview, declaration: Declaration) -> InvalidRequestError:
    array = np.frombuffer(payload, declaration.dtype).reshape(declaration.shape)
    finite = np.isfinite(array)
    where = tuple(map(int, np.unravel_index(np.argmin(finite), array.shape)))
    expected = f"expected finite numbers, got {array[where]} at {where}. Correct it."
    return InvalidRequestError(declaration.field, expected)
