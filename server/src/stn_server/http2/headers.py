"""The headers of gRPC's calls: those of a request are read, those of a reply are written.

Replies use no table of HPACK: their headers are few, short and the same for nearly every call.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

import grpc

from stn_server.http2.connection import MAX_HEADER_BYTES, Headers

Metadata = Sequence[tuple[str, str | bytes]]

CONTENT_TYPE = b"application/grpc"

ENTRY_BYTES = 32
"""What each header counts beside its name and value (RFC 7541, 4.1)."""

UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
"""The units of `grpc-timeout`."""

ENCODINGS = ("identity", "gzip", "deflate")
"""The compressions that callers may choose for their messages."""

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")

_RESERVED = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
"""Headers that are no metadata of the call."""

_OF_CONNECTIONS = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}
"""Headers of HTTP/1 that a request by HTTP/2 must not have."""

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
"""The names of headers: the tokens of HTTP, in lower case."""

_FORBIDDEN = re.compile(rb"[\0\r\n]")
"""What no value may have: whoever passes it on by HTTP/1 would end a line there."""

MAX_NAMES = 256
"""The number of names of which it is known whether headers may be called so."""

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

BINARY, _BINARY = "-bin", b"-bin"
"""The end of the keys whose values are bytes."""


class MalformedError(Exception):
    """The headers are none of a request by HTTP/2."""


class NoCallError(Exception):
    """The headers are of a request, but of no call by gRPC.

    Attributes:
        status: The status of HTTP.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What the headers of a call say."""

    path: str
    metadata: Metadata
    timeout_s: float | None
    encoding: str
    """How its messages are compressed if they say that they are."""


def read_request(headers: Headers) -> Request:
    """Returns what the headers of a call say.

    Raises:
        MalformedError: They break a rule of HTTP/2.
        NoCallError: They are no call's.
    """
    names, values = [name for name, _ in headers], [value for _, value in headers]
    size_bytes = len(b"".join(names)) + len(joined := b"".join(values)) + ENTRY_BYTES * len(headers)
    if size_bytes > MAX_HEADER_BYTES:
        raise NoCallError(431)
    if _FORBIDDEN.search(joined):
        raise MalformedError("unexpected end of a line")
    pseudo: dict[bytes, bytes] = {}
    given: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name in _PSEUDO:
            if name in pseudo or given or metadata:
                raise MalformedError(f"unexpected {name!r}")
            pseudo[name] = value
        elif name in _RESERVED:
            given[name] = value
        elif not _is_name(name):
            raise MalformedError(f"unexpected {name!r}")
        elif name.endswith(_BINARY):
            # Whoever joins headers of one name puts commas between them.
            metadata += ((name.decode(), _bytes_of(name, one)) for one in value.split(b","))
        else:
            metadata.append((name.decode(), value.decode(errors="replace")))
    _check_call(pseudo, given)
    encoding = given.get(b"grpc-encoding", b"identity").decode(errors="replace")
    timeout_s = _timeout_s(given.get(b"grpc-timeout"))
    return Request(pseudo[b":path"].decode(errors="replace"), metadata, timeout_s, encoding)


@lru_cache(MAX_NAMES)
def _is_name(name: bytes) -> bool:
    """Returns whether a header may be called so."""
    return name not in _OF_CONNECTIONS and _NAME.fullmatch(name) is not None


def _check_call(pseudo: Mapping[bytes, bytes], given: Mapping[bytes, bytes]) -> None:
    """Raises what `read_request` does for headers that are no call's."""
    if not pseudo.keys() >= _REQUIRED or not pseudo[b":path"]:
        raise MalformedError("expected a method, a scheme and a path")
    if given.get(b"te", b"trailers") != b"trailers":
        raise MalformedError("expected te: trailers")
    if pseudo[b":method"] != b"POST":
        raise NoCallError(405)
    kind = given.get(b"content-type", b"")
    if not kind.startswith(CONTENT_TYPE) or kind[len(CONTENT_TYPE) :][:1] not in _TYPE_ENDS:
        raise NoCallError(415)


_TYPE_ENDS = {b"", b"+", b";"}
"""What may follow the type of content, as before `+proto`; not what makes it that of gRPC-Web."""

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}

_REQUIRED = {b":method", b":scheme", b":path"}


def _bytes_of(name: bytes, value: bytes) -> bytes:
    """Returns the bytes that a value stands for, with or without padding."""
    value = value.strip()
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise MalformedError(f"expected base64 in {name!r}") from error


def _timeout_s(value: bytes | None) -> float | None:
    if value is None:
        return None
    found = _TIMEOUT.fullmatch(value.decode(errors="replace"))
    if found is None:
        raise MalformedError("expected a time as grpc-timeout")
    return int(found[1]) * UNITS_S[found[2]]


def block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns headers as HPACK encodes them without a table."""
    parts: list[bytes] = []
    for name, value in headers:
        parts += (b"\x00", _length(len(name)), name, _length(len(value)), value)
    return b"".join(parts)


def _length(number: int) -> bytes:
    """Returns the length of a string, of which 7 bits fit the first byte (RFC 7541, 5.1)."""
    if number < 127:
        return bytes((number,))
    number -= 127
    found = [127]
    while number >= 128:
        found.append(number % 128 + 128)
        number //= 128
    return bytes((*found, number))


OK_STATUS = b"\x88"
"""The status 200 of HTTP, by its index in the table that every decoder has."""

HEAD = OK_STATUS + block(
    (
        (b"content-type", CONTENT_TYPE),
        (b"grpc-accept-encoding", b",".join(name.encode() for name in ENCODINGS)),
    )
)
"""The headers of every reply."""

OK_TRAILERS = block(((b"grpc-status", b"0"),))


def refusal(status: int) -> bytes:
    """Returns the headers that answer a request which is no call."""
    return block(((b":status", str(status).encode()),))


def trailers(code: grpc.StatusCode, message: str = "", metadata: Metadata = ()) -> bytes:
    """Returns the headers that end a call."""
    if code is grpc.StatusCode.OK and not metadata:
        return OK_TRAILERS
    entries = [(b"grpc-status", str(code.value[0]).encode())]
    if message:
        entries.append(
            (b"grpc-message", quote(message, safe=_PRINTABLE, errors="replace").encode())
        )
    for key, value in metadata:
        sent = value.encode() if isinstance(value, str) else value
        if key.endswith(BINARY):
            sent = base64.b64encode(sent).rstrip(b"=")
        entries.append((key.encode(), sent))
    return block(entries)
