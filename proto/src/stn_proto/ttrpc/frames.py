"""Frames of ttrpc: a header of ten bytes, and data.

    bytes 0 to 3   length of the data, big endian, at most 4 MiB, so that byte 0 is 0
    bytes 4 to 7   stream id, big endian: odd and rising for calls, which the client begins
    byte  8        type: 1 request, 2 response, 3 data (of streams, which unary calls have none of)
    byte  9        flags: 0 for unary calls

Every call is one request and one response with the same stream id; responses come in any order.
There is no flow control, no ping and no cancellation.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from stn_proto.errors import WireFormatError

MAX_DATA_BYTES = 4 * 1024 * 1024
"""The most bytes of the data of one frame."""

MAX_STREAM_ID = 2**32 - 1

_HEADER = Struct(">IIBB")


class FrameType(IntEnum):
    """Type of a frame, byte 8 of its header."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Frame(NamedTuple):
    """A whole frame of the expected type."""

    stream_id: int
    data: bytes


class OversizedFrame(NamedTuple):
    """The header of a frame whose data is longer than allowed; its data is skipped."""

    stream_id: int
    size_bytes: int


class FrameError(WireFormatError):
    """The other end of a connection does not keep to the protocol; nothing after it can be read."""


class ServerConnection:
    """The server's end of one connection: requests come in, responses go out."""

    def __init__(self) -> None:
        self._reader = _Reader(FrameType.REQUEST, self._check)
        self._last_id = 0

    @property
    def is_amid_frame(self) -> bool:
        """True if a frame has been received in part."""
        return self._reader.is_amid_frame

    @property
    def awaited_bytes(self) -> int:
        """Length of the data of the frame whose header is in and whose end is not."""
        return self._reader.awaited_bytes

    def receive(self, received: bytes) -> list[Frame | OversizedFrame]:
        """Returns the requests that these bytes complete, in order.

        Raises:
            FrameError: The bytes break the protocol. The connection is of no use any more.
        """
        return self._reader.feed(received)

    @staticmethod
    def respond(stream_id: int, data: bytes) -> bytes:
        """Returns the frame that answers a request.

        Raises:
            FrameError: The data is longer than a frame can take.
        """
        return _encoded(stream_id, FrameType.RESPONSE, data)

    def _check(self, stream_id: int) -> None:
        if stream_id % 2 == 0:
            raise FrameError("frame.stream_id", "an odd number, as of every call", str(stream_id))
        # Ids rise, so that a late response can never be taken for that of another call.
        if stream_id <= self._last_id:
            raise FrameError("frame.stream_id", f"more than {self._last_id}", str(stream_id))
        self._last_id = stream_id


class ClientConnection:
    """The client's end of one connection: requests go out, responses come in."""

    def __init__(self) -> None:
        self._reader = _Reader(FrameType.RESPONSE, self._check)
        self._next_id = 1

    @property
    def is_used_up(self) -> bool:
        """True if all stream ids have been used: the next call needs a new connection."""
        return self._next_id > MAX_STREAM_ID

    def request(self, data: bytes) -> tuple[int, bytes]:
        """Returns the stream id of a new call, and the frame that begins it.

        Frames have to be sent in the order in which they were made.

        Raises:
            FrameError: The data is longer than a frame can take, or `is_used_up`.
        """
        if self.is_used_up:
            raise FrameError("frame.stream_id", f"at most {MAX_STREAM_ID}", str(self._next_id))
        frame = _encoded(self._next_id, FrameType.REQUEST, data)
        # Odd ids are the client's; even ones are those of servers, which begin no calls.
        stream_id, self._next_id = self._next_id, self._next_id + 2
        return stream_id, frame

    def receive(self, received: bytes) -> list[Frame]:
        """Returns the responses that these bytes complete, in order.

        Raises:
            FrameError: The bytes break the protocol. The connection is of no use any more.
        """
        frames: list[Frame] = []
        for frame in self._reader.feed(received):
            # A server answers a request that is too long; a client can only give up the connection.
            if isinstance(frame, OversizedFrame):
                raise _too_long(frame.size_bytes)
            frames.append(frame)
        return frames

    def _check(self, stream_id: int) -> None:
        # An id that was never given out means that the two ends disagree about the stream.
        if stream_id % 2 == 0 or stream_id >= self._next_id:
            raise FrameError("frame.stream_id", "that of a request", str(stream_id))


class _Reader:
    """Cuts the bytes of one direction of a connection into frames of one type.

    Args:
        kind: What all frames have to be.
        check: Told the stream id of every frame as soon as its header is there; raises FrameError.
    """

    def __init__(self, kind: FrameType, check: Callable[[int], None]) -> None:
        self._kind = kind
        self._check = check
        self._buffer = bytearray()
        self._header: tuple[int, int] | None = None
        """Length and stream id of the frame whose data comes next."""
        self._to_skip_bytes = 0

    @property
    def awaited_bytes(self) -> int:
        return 0 if self._header is None else self._header[0]

    @property
    def is_amid_frame(self) -> bool:
        return bool(self._buffer) or self._header is not None or self._to_skip_bytes > 0

    def feed(self, received: bytes) -> list[Frame | OversizedFrame]:
        if not (self._buffer or self._header or self._to_skip_bytes) and (
            len(received) - _HEADER.size == int.from_bytes(received[:4]) <= MAX_DATA_BYTES
        ):  # one whole frame, as mostly
            _, stream_id = self._read_header(received, 0)
            return [Frame(stream_id, received[_HEADER.size :])]
        # Bytes before `position` are cut off once, at the end:
        # cutting per frame would be quadratic.
        buffer, frames, position = self._buffer, list[Frame | OversizedFrame](), 0
        buffer += received
        while True:
            # The data of an oversized frame is dropped as it comes, and never held.
            skipped = min(self._to_skip_bytes, len(buffer) - position)
            self._to_skip_bytes -= skipped
            position += skipped
            if self._header is None:
                if len(buffer) - position < _HEADER.size:
                    break
                size, stream_id = self._read_header(buffer, position)
                position += _HEADER.size
                if size > MAX_DATA_BYTES:
                    self._to_skip_bytes = size
                    # Told at its header, so that the call fails at once
                    # and not after megabytes of data.
                    frames.append(OversizedFrame(stream_id, size))
                    continue
                self._header = size, stream_id
            size, stream_id = self._header
            if len(buffer) - position < size:
                break
            frames.append(Frame(stream_id, bytes(memoryview(buffer)[position : position + size])))
            position += size
            self._header = None
        del buffer[:position]
        return frames

    def _read_header(self, received: bytes | bytearray, position: int) -> tuple[int, int]:
        """Reads and checks a header; returns the length of the data and the stream id."""
        size, stream_id, kind, flags = _HEADER.unpack_from(received, position)
        if kind != self._kind:
            raise FrameError("frame.type", f"{self._kind:d}, a {self._kind.name}", str(kind))
        if flags:
            raise FrameError("frame.flags", "0, as of unary calls", str(flags))
        # Before the data comes: a wrong id ends the connection without waiting for the rest.
        self._check(stream_id)
        return size, stream_id


def _encoded(stream_id: int, kind: FrameType, data: bytes) -> bytes:
    if len(data) > MAX_DATA_BYTES:
        raise _too_long(len(data))
    return _HEADER.pack(len(data), stream_id, kind, 0) + data


def _too_long(size_bytes: int) -> FrameError:
    return FrameError("frame.length", f"at most {MAX_DATA_BYTES} bytes", str(size_bytes))
