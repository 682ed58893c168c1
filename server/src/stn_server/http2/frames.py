"""Frames of HTTP/2 (RFC 9113): their layout, and the error that ends a connection."""

from __future__ import annotations

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of every client."""

HEAD = struct.Struct(">BHBBI")
"""The layout of the head of a frame: the length in two parts, the type, the flags, the stream."""

HEAD_BYTES = HEAD.size

UINT32 = struct.Struct(">I")

SETTING = struct.Struct(">HI")

MAX_WINDOW_BYTES = 2**31 - 1
"""The largest window for which a sender may have data under way."""

DEFAULT_WINDOW_BYTES = 2**16 - 1
"""The window of every stream and connection until something else is said."""

LEAST_FRAME_BYTES, MOST_FRAME_BYTES = 2**14, 2**24 - 1
"""The bounds of what either side may set as its longest frame; the first is the default."""

STREAM_MASK = 2**31 - 1
"""The bits of a stream id or an increment; the one above is reserved."""


class Kind(enum.IntEnum):
    """The type of a frame."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(enum.IntFlag):
    """The flags of frames; what a bit means depends on the type."""

    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class Setting(enum.IntEnum):
    """The settings that a server reads or sends."""

    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(enum.IntEnum):
    """The reasons for which a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionEndedError(Exception):
    """What came in cannot be followed by anything that makes sense: the connection ends.

    Attributes:
        code: The reason, for the client.
        text: The same in words.
    """

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Returns a frame as it goes over the wire."""
    return frame_head(len(payload), kind, flags, stream_id) + payload


def frame_head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Returns the head of a frame whose payload has this length."""
    return HEAD.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id)


def settings_frame(settings: dict[Setting, int]) -> bytes:
    """Returns the frame that announces settings."""
    pairs = (SETTING.pack(name, value) for name, value in settings.items())
    return frame(Kind.SETTINGS, 0, 0, b"".join(pairs))


def window_frame(stream_id: int, increment: int) -> bytes:
    """Returns the frame that lets the client send so many more bytes."""
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, UINT32.pack(increment))


def goaway_frame(last_stream_id: int, code: int, text: str = "") -> bytes:
    """Returns the frame that announces the end of the connection."""
    payload = UINT32.pack(last_stream_id) + UINT32.pack(code) + text.encode()
    return frame(Kind.GOAWAY, 0, 0, payload)


def reset_frame(stream_id: int, code: int) -> bytes:
    """Returns the frame that ends a stream at once."""
    return frame(Kind.RST_STREAM, 0, stream_id, UINT32.pack(code))
