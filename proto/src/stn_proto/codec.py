"""NumPy arrays to and from `stn.v1.Tensor` and its payload, without copies where possible."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from stn_proto.errors import WireFormatError
from stn_proto.limits import MAX_ELEMENTS, MAX_RANK
from stn_proto.v1.tensor_pb2 import (
    DATA_TYPE_BFLOAT16,
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT16,
    DATA_TYPE_FLOAT32,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_INT8,
    DATA_TYPE_INT16,
    DATA_TYPE_INT32,
    DATA_TYPE_INT64,
    DATA_TYPE_UINT8,
    DATA_TYPE_UINT16,
    DATA_TYPE_UINT32,
    DATA_TYPE_UINT64,
    LAYOUT_UNSPECIFIED,
    DataType,
    Layout,
    Tensor,
)

DTYPES: dict[DataType, np.dtype[Any]] = {
    DATA_TYPE_FLOAT32: np.dtype("<f4"),
    DATA_TYPE_FLOAT64: np.dtype("<f8"),
    DATA_TYPE_FLOAT16: np.dtype("<f2"),
    DATA_TYPE_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DATA_TYPE_UINT8: np.dtype("u1"),
    DATA_TYPE_UINT16: np.dtype("<u2"),
    DATA_TYPE_INT16: np.dtype("<i2"),
    DATA_TYPE_BOOL: np.dtype("?"),
    DATA_TYPE_INT8: np.dtype("i1"),
    DATA_TYPE_INT32: np.dtype("<i4"),
    DATA_TYPE_UINT32: np.dtype("<u4"),
    DATA_TYPE_INT64: np.dtype("<i8"),
    DATA_TYPE_UINT64: np.dtype("<u8"),
}
"""The NumPy type of every DataType."""

_NATIVE = "fde?bBhHiIlLqQ" if sys.byteorder == "little" else ""
"""Types whose memory is as the wire wants it, and that Python knows: not bfloat16."""

_DATA_TYPES = {dtype: number for number, dtype in DTYPES.items()}


def data_type(dtype: DTypeLike) -> DataType:
    """Returns the DataType of a NumPy dtype, in either byte order.

    Raises:
        WireFormatError: The wire does not carry this type.
    """
    little_endian = np.dtype(dtype).newbyteorder("<")
    if little_endian not in _DATA_TYPES:
        known = ", ".join(str(known) for known in _DATA_TYPES)
        raise WireFormatError("data_type", f"one of {known}", str(np.dtype(dtype)), "Cast first.")
    return _DATA_TYPES[little_endian]


def put_tensor(
    array: NDArray[Any],
    payloads: list[memoryview] | list[memoryview | bytes],
    *,
    layout: Layout = LAYOUT_UNSPECIFIED,
) -> Tensor:
    """Describes an array and appends its bytes to the payloads of a message.

    Args:
        array: Any shape and strides. Copied only if not little endian and row major.
        payloads: Grows by a view of the array's bytes.
        layout: Order of the axes, for feature maps.

    Raises:
        WireFormatError: The wire does not carry this type.
    """
    description = describe_tensor(array.dtype, array.shape, len(payloads), layout=layout)
    payloads.append(to_payload(array))
    return description


def describe_tensor(
    dtype: DTypeLike, shape: Sequence[int], payload: int, *, layout: Layout = LAYOUT_UNSPECIFIED
) -> Tensor:
    """Returns the message of a tensor whose bytes are the payload of this index.

    Raises:
        WireFormatError: The wire does not carry this type.
    """
    return Tensor(data_type=data_type(dtype), shape=shape, layout=layout, payload=payload)


def to_payload(array: NDArray[Any]) -> memoryview:
    """Returns the bytes of an array of a wire type; copied only as `put_tensor` does."""
    if array.flags.c_contiguous and array.dtype.char in _NATIVE and array.dtype.isnative:
        return array.data.cast("B") if array.size else memoryview(b"")
    little_endian = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, little_endian).reshape(-1).view(np.uint8).data


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of a tensor in a message, checked as far as possible without its bytes."""

    field: str
    """Path of the tensor in its message, for errors."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    payload: int | None
    """Index of its payload; None: its bytes are in an arena, or resident on the server."""
    is_resident: bool = False
    """Whether it is resident on the server, and not in an arena."""

    @property
    def size_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, sizes_bytes: Sequence[int]) -> None:
        """Checks that the payload exists and is as large as the shape says.

        Args:
            sizes_bytes: Of the payloads of the message that the tensor stands in.

        Raises:
            WireFormatError: No such payload, or a byte count that does not match the shape.
        """
        if self.payload is None:
            elsewhere = "a resident tensor" if self.is_resident else "a region of an arena"
            raise _no_payload(self.field, elsewhere)
        if self.payload >= len(sizes_bytes):
            expected = f"the index of one of {len(sizes_bytes)} payloads"
            raise WireFormatError(f"{self.field}.payload", expected, str(self.payload))
        self._require(sizes_bytes[self.payload], "payload")

    def check_room(self, room_bytes: int) -> None:
        """Checks that the tensor fits into the region of an arena that it was given.

        Raises:
            WireFormatError: It is larger.
        """
        if self.size_bytes > room_bytes:
            self._require(room_bytes, "arena.byte_count")

    def _require(self, actual_bytes: int, source: str) -> None:
        """Checks that there are as many bytes as the shape says."""
        if actual_bytes != self.size_bytes:
            expected = f"{self.size_bytes} bytes for shape {self.shape} of {self.dtype}"
            raise WireFormatError(f"{self.field}.{source}", expected, f"{actual_bytes} bytes")

    def view(self, payloads: Sequence[memoryview | bytes]) -> NDArray[Any]:
        """Returns the tensor as an array over its payload.

        Args:
            payloads: Views of the payloads of the message that the tensor stands in.

        Returns:
            Read-only; a view of its payload, or a copy if that is not aligned for its type.

        Raises:
            WireFormatError: As `check`.
        """
        self.check([len(payload) for payload in payloads])
        payload = payloads[self.payload or 0]
        array = np.ndarray(self.shape, self.dtype, buffer=payload)
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        return array


def get_declaration(tensor: Tensor, field: str) -> Declaration:
    """Returns the declaration of a tensor, checked as far as possible without its bytes.

    Args:
        tensor: The description.
        field: Its path in the message, for errors.

    Raises:
        WireFormatError: Unknown data type, no source of its bytes, negative size, too many axes
            or elements, or a byte count in an arena that does not match the shape.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        known = ", ".join(DataType.Name(number) for number in DTYPES)
        raise WireFormatError(f"{field}.data_type", f"one of {known}", _data_type_name(tensor))
    shape = _checked_shape(tensor, field)
    source = tensor.WhichOneof("source")
    if source == "arena":
        declaration = Declaration(field, dtype, shape, None)
        declaration._require(tensor.arena.byte_count, "arena.byte_count")  # noqa: SLF001
        return declaration
    if source == "resident":
        return Declaration(field, dtype, shape, None, is_resident=True)
    if source != "payload":
        raise _no_payload(field, "none")
    return Declaration(field, dtype, shape, tensor.payload)


def get_tensor(tensor: Tensor, payloads: Sequence[memoryview | bytes], field: str) -> NDArray[Any]:
    """Returns the array of a tensor in a message: `get_declaration`, then `Declaration.view`.

    Raises:
        WireFormatError: As those two. Nothing has been allocated then.
    """
    return get_declaration(tensor, field).view(payloads)


def _no_payload(field: str, actual: str) -> WireFormatError:
    expected = "the index of a payload"
    return WireFormatError(f"{field}.payload", expected, actual, "Set it, 0 included.")


def _data_type_name(tensor: Tensor) -> str:
    names: dict[int, str] = {number: name for name, number in DataType.items()}
    return names.get(tensor.data_type, str(tensor.data_type))


def _checked_shape(tensor: Tensor, field: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if len(shape) > MAX_RANK:
        raise WireFormatError(f"{field}.shape", f"at most {MAX_RANK} axes", str(len(shape)))
    if any(size < 0 for size in shape):
        raise WireFormatError(f"{field}.shape", "sizes of at least 0", str(shape))
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise WireFormatError(f"{field}.shape", f"at most {MAX_ELEMENTS} elements", str(shape))
    return shape
