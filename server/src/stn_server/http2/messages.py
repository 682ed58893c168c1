"""gRPC's messages in the data of a stream: a flag and a length before each of them."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from typing import cast

PREFIX = struct.Struct(">BI")

PREFIX_BYTES = PREFIX.size

LONG_PART_BYTES = 2**12
"""From this length on, a copy of a part costs more than to pass it on as it is."""

MOST_SURROUNDINGS = 4
"""Unless they would keep more than this many times their length of other input in memory."""

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the formats, by the name of the encoding."""


def parts(message: bytes) -> tuple[bytes, ...]:
    """Returns a message with what stands before it, for one frame unless it is long."""
    prefix = PREFIX.pack(0, len(message))
    return (prefix + message,) if len(message) < LONG_PART_BYTES else (prefix, message)


class Messages:
    """Puts together the messages of one stream from its data as it comes.

    Attributes:
        whole: Messages that are there, each with whether it is compressed.
        announced_bytes: The length of the one under way; None: it is not known yet.
        missing_bytes: How many bytes of it are missing, as far as that is known.
    """

    __slots__ = ("_head", "_is_compressed", "_parts", "announced_bytes", "missing_bytes", "whole")

    def __init__(self) -> None:
        self.whole: deque[tuple[bytes, bool]] = deque()
        self.announced_bytes: int | None = None
        self.missing_bytes = PREFIX_BYTES
        self._head = b""
        self._is_compressed = False
        self._parts: list[memoryview | bytearray] = []
        """Of the message under way: long parts are views of the input, so that they are copied but
        once; short ones are gathered, or a message in frames of one byte would take hundreds of
        times its length."""

    @property
    def is_amid(self) -> bool:
        """Whether a part of a message is there that is not whole."""
        return bool(self._head) or self.announced_bytes is not None

    @property
    def is_compressed(self) -> bool:
        """Whether the message under way is compressed."""
        return self._is_compressed

    def feed(self, data: memoryview) -> None:
        """Takes the next data of the stream."""
        while data or (self.announced_bytes is not None and not self.missing_bytes):
            if self.announced_bytes is None:
                data = self._read_prefix(data)
                continue
            part = data[: self.missing_bytes]
            self._keep(part)
            self.missing_bytes -= len(part)
            data = data[len(part) :]
            if not self.missing_bytes:
                # Of one part as well: a view would keep all that came in with it.
                message = b"".join(self._parts)
                self.whole.append((message, self._is_compressed))
                self._parts, self._head = [], b""
                self.announced_bytes, self.missing_bytes = None, PREFIX_BYTES

    def _keep(self, part: memoryview) -> None:
        """Adds a part to the message under way."""
        surroundings = len(cast("bytes", part.obj))
        if LONG_PART_BYTES <= len(part) >= surroundings / MOST_SURROUNDINGS:
            self._parts.append(part)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += part
        else:
            self._parts.append(bytearray(part))

    def _read_prefix(self, data: memoryview) -> memoryview:
        """Reads a part of the prefix; returns what is behind it."""
        taken = min(self.missing_bytes, len(data))
        self._head += data[:taken]
        self.missing_bytes -= taken
        if not self.missing_bytes:
            flag, length = PREFIX.unpack(self._head)
            self._is_compressed = bool(flag)
            self.announced_bytes = self.missing_bytes = length
        return data[taken:]


def decompressed(message: bytes, encoding: str, max_bytes: int) -> bytes | None:
    """Returns what a message holds; None if that is above a limit.

    Args:
        message: The compressed bytes.
        encoding: "gzip" or "deflate".
        max_bytes: The limit.

    Raises:
        zlib.error: It is not compressed so, or not whole.
    """
    stream = zlib.decompressobj(_WINDOWS[encoding])
    found = stream.decompress(message, max_bytes + 1)
    if len(found) > max_bytes:
        return None
    if not stream.eof:
        raise zlib.error("incomplete")
    return found
