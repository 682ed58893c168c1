"""Cuts a serialized message into envelope and payload views, and puts it together again.

Every message with tensors holds their bytes in `repeated bytes payloads = 15` at its top level.
Protobuf would copy each payload on parsing and again on serializing; scanning the top-level tags
leaves them where they are. Encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from stn_proto.errors import FrameTooLargeError, WireFormatError
from stn_proto.limits import MAX_FIELDS, PAYLOAD_ALIGNMENT_BYTES

NESTED_FIELD = 1
"""Number of the field of calls in a ComputeManyRequest, and of replies in its reply."""

PAYLOADS_FIELD = 15
ALIGNMENT_FIELD = 14

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_NESTED_TAG = NESTED_FIELD << 3 | _LENGTH_DELIMITED
_COUNT_TAG = bytes([1 << 3 | _VARINT])
_PAYLOAD_TAG = PAYLOADS_FIELD << 3 | _LENGTH_DELIMITED
_ALIGNMENT_TAG = ALIGNMENT_FIELD << 3 | _LENGTH_DELIMITED
_COMMON_TAGS = frozenset({_NESTED_TAG, _PAYLOAD_TAG, _ALIGNMENT_TAG})
"""Tags of the fields that are frequent in messages, and are read without a loop."""

_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Frame:
    """Positions of the payloads in a serialized message, and the bytes around them.

    A sender who repeats shapes repeats all but the payloads, so that the frame of one message
    mostly fits the next, which then need not be scanned.
    """

    envelope: bytes
    """Parses as the message without payloads."""
    size_bytes: int
    """The bytes of the whole message."""
    payloads: tuple[slice, ...]
    rest: tuple[tuple[slice, bytes], ...]
    """All that is not payload."""

    @classmethod
    def of(
        cls,
        message: bytes,
        max_payloads: int | None = None,
        max_envelope_bytes: int | None = None,
        *,
        payloads_field: int = PAYLOADS_FIELD,
    ) -> Frame:
        """Scans a serialized message, as it came from the network.

        Args:
            message: Serialized bytes.
            max_payloads: The most that are taken; None: any number.
            max_envelope_bytes: The most beside payloads and alignment that are taken.
            payloads_field: The number of the field that holds the payloads.

        Raises:
            FrameTooLargeError: There is more than that.
            WireFormatError: `message` is not protobuf, or has too many fields.
        """
        pieces: list[bytes] = []
        payloads: list[slice] = []
        alignments, payload_tag = 0, payloads_field << 3 | _LENGTH_DELIMITED
        for tag, start, value_start, end in _fields(message):
            if tag == payload_tag:
                payloads.append(slice(value_start, end))
                # Refused while scanning: a message of millions of tiny
                # fields must not take memory first.
                if len(payloads) - 1 == max_payloads:
                    raise _too_many_payloads(max_payloads)
            elif tag == _ALIGNMENT_TAG:
                alignments += 1
            else:
                pieces.append(message[start:end])
            # Every payload may have one alignment field; beyond that, more fields only cost time.
            if max(len(pieces), alignments - len(payloads)) > MAX_FIELDS:
                expected = f"at most {MAX_FIELDS} fields beside payloads"
                raise WireFormatError("message", expected, "more")
        envelope = b"".join(pieces)
        if max_envelope_bytes is not None and len(envelope) > max_envelope_bytes:
            unit, actual = "bytes without payloads", f"{len(envelope)} bytes"
            remedy = "Put tensor bytes into `payloads`."
            raise FrameTooLargeError("message", max_envelope_bytes, unit, actual, remedy)
        rest = tuple((span, message[span]) for span in _between(payloads, len(message)))
        return cls(envelope, len(message), tuple(payloads), rest)

    def fits(self, message: bytes) -> bool:
        """Returns whether a message differs from this one in the bytes of payloads alone."""
        # The size first: it tells most other shapes apart without looking at bytes.
        if len(message) != self.size_bytes:
            return False
        for span, expected in self.rest:  # noqa: SIM110 - every call comes here, and all() costs more
            if message[span] != expected:
                return False
        return True

    def cut(self, message: bytes) -> list[memoryview]:
        """Returns the payloads of a message that fits: read-only views that keep it alive."""
        view = memoryview(message)
        return [view[span] for span in self.payloads]

    def opened(self, message: bytes, spans: Iterable[slice]) -> Frame:
        """Returns this frame with further places in which other messages may differ.

        Args:
            message: What the frame was made of.
            spans: Where; not within payloads.
        """
        # What is left between all free places is what other messages must share.
        free = sorted((*self.payloads, *spans), key=lambda span: span.start)
        rest = tuple((span, message[span]) for span in _between(free, len(message)))
        return replace(self, rest=rest)


def values(message: bytes, number: int, within: slice | None = None) -> list[slice]:
    """Returns the positions of the values of a field, in the order of the message.

    Args:
        message: Serialized bytes.
        number: The number of the field.
        within: Where the message within the message stands that has the field; None: all of it.

    Raises:
        WireFormatError: There is no protobuf.
    """
    start, end = (0, len(message)) if within is None else (within.start, within.stop)
    fields = _fields(message, start, end)
    return [slice(first, last) for tag, _, first, last in fields if tag >> 3 == number]


def split(message: bytes) -> tuple[bytes, list[memoryview]]:
    """Separates a serialized message from its payloads without copying them.

    Args:
        message: Serialized bytes, as they came from the network.

    Returns:
        The envelope, which parses as the message without payloads, and read-only views into
        `message`, one per payload, in order. The views keep `message` alive.

    Raises:
        WireFormatError: `message` is not protobuf, or has too many fields.
    """
    frame = Frame.of(message)
    return frame.envelope, frame.cut(message)


class ManyParts(NamedTuple):
    """Parts of a request or a reply of ComputeMany."""

    nested: list[bytes]
    """The messages within, serialized, without payloads."""
    payloads: list[memoryview]
    """Those of all of them: read-only views that keep the whole message alive."""
    rest: bytes
    """What else stands in it: nothing, unless it is of a newer contract."""


def split_many(
    message: bytes, max_nested: int | None = None, max_payloads: int | None = None
) -> ManyParts:
    """Cuts a request or a reply of ComputeMany into the messages within and all payloads.

    Args:
        message: Serialized bytes, as they came from the network.
        max_nested: The most messages within that are taken; None: any number.
        max_payloads: The most payloads of all of them.

    Raises:
        FrameTooLargeError: There are more.
        WireFormatError: `message` is not protobuf, or has too many fields.
    """
    nested: list[bytes] = []
    payloads: list[memoryview] = []
    pieces: list[bytes] = []
    others = 0
    view = memoryview(message)
    for tag, start, value_start, end in _fields(message):
        if tag == _PAYLOAD_TAG:
            if len(payloads) == max_payloads:
                raise _too_many_payloads(max_payloads)
            payloads.append(view[value_start:end])
        elif tag == _NESTED_TAG:
            if len(nested) == max_nested:
                remedy = "Send fewer calls at once."
                raise FrameTooLargeError("calls", max_nested, "calls", "more", remedy)
            nested.append(message[value_start:end])
        else:
            # Nested calls and payloads are limited by their own maxima, all else by MAX_FIELDS.
            others += 1
            if others - len(payloads) > MAX_FIELDS:
                expected = f"at most {MAX_FIELDS} fields beside calls and payloads"
                raise WireFormatError("message", expected, "more")
            if tag != _ALIGNMENT_TAG:
                pieces.append(message[start:end])
    return ManyParts(nested, payloads, b"".join(pieces))


def nested(number: int, message: bytes, payload_count: int) -> bytes:
    """Serializes a call or a reply within ComputeMany.

    Args:
        number: Of the field of NestedCall, or of NestedReply, that it is.
        message: It, serialized, without payloads.
        payload_count: How many payloads it has.
    """
    count = _varint(payload_count)
    return b"".join(
        (_COUNT_TAG, count, _header(number << 3 | _LENGTH_DELIMITED, len(message)), message)
    )


def join_many(nested: Iterable[bytes], payloads: Sequence[memoryview | bytes]) -> bytes:
    """Serializes a request or a reply of ComputeMany; see `split_many`.

    Args:
        nested: The messages within, serialized, without payloads.
        payloads: Those of all of them, one message after the other, copied exactly once.
    """
    pieces: list[memoryview | bytes] = []
    for message in nested:
        pieces += (_header(_NESTED_TAG, len(message)), message)
    size = sum(map(len, pieces))
    for gap, payload in zip(gaps(size, map(len, payloads)), payloads, strict=True):
        pieces += (gap, payload)
    return b"".join(pieces)


def join(envelope: bytes, payloads: Sequence[memoryview | bytes]) -> bytes:
    """Serializes an envelope and its payloads; every payload is copied exactly once.

    Args:
        envelope: A serialized message whose field `payloads` is empty.
        payloads: Contiguous buffers of bytes, in the order in which tensors name them.

    Returns:
        The whole message. Payloads start at multiples of PAYLOAD_ALIGNMENT_BYTES.
    """
    pieces: list[memoryview | bytes] = [envelope]
    for gap, payload in zip(gaps(len(envelope), map(len, payloads)), payloads, strict=True):
        pieces += (gap, payload)
    return b"".join(pieces)


def gaps(start: int, sizes_bytes: Iterable[int]) -> Iterator[bytes]:
    """Yields the bytes before each payload: alignment, tag and length.

    Args:
        start: How many bytes stand before all of them.
        sizes_bytes: The sizes of the payloads.
    """
    for size in sizes_bytes:
        gap = _gap(start % PAYLOAD_ALIGNMENT_BYTES, size)
        yield gap
        start += len(gap) + size


@lru_cache(1024)
def _gap(offset: int, size: int) -> bytes:
    """Returns the bytes before a payload of a size, at an offset: alignment, tag and length."""
    header = _header(_PAYLOAD_TAG, size)
    return _padding(offset + len(header)) + header


@lru_cache(1024)
def _header(tag: int, size: int) -> bytes:
    """Returns the tag and the length of a field, which stand before its bytes."""
    return bytes([tag]) + _varint(size)


def _between(payloads: Sequence[slice], size: int) -> Iterator[slice]:
    """Returns the spans of a message between its payloads."""
    starts = (0, *(payload.stop for payload in payloads))
    ends = (*(payload.start for payload in payloads), size)
    return map(slice, starts, ends)


def _padding(offset: int) -> bytes:
    """Returns an alignment field after which `offset` is a multiple of the alignment."""
    if offset % PAYLOAD_ALIGNMENT_BYTES == 0:
        return b""
    header_bytes = 2  # tag and length
    # An alignment is less than 128 bytes, so that its length is a varint of one byte.
    fill = -(offset + header_bytes) % PAYLOAD_ALIGNMENT_BYTES
    return bytes([_ALIGNMENT_TAG, fill]) + bytes(fill)


def _fields(
    message: bytes, position: int = 0, size: int | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """Yields (tag, start of tag, start of value, end) for every field at the top of a message.

    Args:
        message: What it stands in.
        position: Where it begins.
        size: Where it ends; None: where `message` does.
    """
    size = len(message) if size is None else size
    while position < size:
        start = position
        tag = message[position]
        # Frequent fields with lengths of one or two bytes are read without a loop over bytes.
        if tag in _COMMON_TAGS and position + 2 < size and message[position + 1] < 0x80:
            value_start = position + 2
            end = value_start + message[position + 1]
        elif tag in _COMMON_TAGS and position + 2 < size and message[position + 2] < 0x80:
            value_start = position + 3
            end = value_start + (message[position + 1] & 0x7F | message[position + 2] << 7)
        else:
            tag, position = _read_varint(message, position)
            value_start, end = _extent(message, tag & 7, position)
        # Checked before the value is touched: lengths come from the network.
        if end > size:
            raise _malformed(f"a field of {end - value_start} bytes at byte {start} of {size}")
        # Field number 0 is illegal in protobuf; its parser would refuse the envelope, too.
        if tag < 8:
            raise _malformed(f"field number 0 at byte {start}")
        yield tag, start, value_start, end
        position = end


def _extent(message: bytes, wire_type: int, position: int) -> tuple[int, int]:
    """Returns the start and the end of the value of a field."""
    if wire_type == _LENGTH_DELIMITED:
        length, position = _read_varint(message, position)
        return position, position + length
    if wire_type == _VARINT:
        return position, _read_varint(message, position)[1]
    if wire_type in {_FIXED32, _FIXED64}:
        return position, position + (4 if wire_type == _FIXED32 else 8)
    raise _malformed(f"wire type {wire_type} at byte {position}")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Reads a varint; returns it and the position behind it."""
    value = 0
    # At most ten bytes hold 64 bits; a longer varint never ends.
    for shift, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise _malformed(f"an unfinished varint at byte {position}")


def _varint(value: int) -> bytes:
    # Seven bits a byte, the lowest first; the high bit says that another byte follows.
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _too_many_payloads(most: int) -> FrameTooLargeError:
    remedy = "Send fewer tensors at once."
    return FrameTooLargeError("payloads", most, "payloads", "more", remedy)


def _malformed(actual: str) -> WireFormatError:
    return WireFormatError("message", "serialized protobuf", actual)
