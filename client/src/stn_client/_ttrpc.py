"""Calls to a server on the same host, by ttrpc on a unix socket: what both clients share of it.

A call that the server ends with a status fails as by gRPC (`CallError` is a `grpc.RpcError`), so
that retries and errors are the same. A connection that is lost is `ConnectionLostError`: the call
may go by gRPC then, whatever the server has seen of it, because methods are pure functions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from stn_client._credentials import stays_here
from stn_client._errors import reason_of
from stn_client._words import SERVICE
from stn_proto.ttrpc import KeyValue, Request, Response, Status
from stn_proto.v1.server_info_pb2 import GetServerInfoReply

LOG = logging.getLogger("stn_client")

INFO = f"/{SERVICE}/GetServerInfo"

SOCKET = "ttrpc.sock"
"""The name of the socket in the folder that a server names."""

CONNECT_S = 1.0
"""Timeout for finding out whether there is a local transport."""

MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""The pauses between attempts to find one: twice as long after each that fails."""

MAX_WAIT_S = 1e6
"""The longest wait at a time: what `poll` can count, in milliseconds."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Metadata = Iterable[tuple[str, str]]


class ConnectionLostError(Exception):
    """The connection, or what the server held for it, is gone, and the call has no answer."""


class CallError(grpc.RpcError):
    """A call that ended with a status other than OK.

    Args:
        status: That of ttrpc, or of a call within ComputeMany, which has the same fields.
    """

    def __init__(self, status: Status) -> None:
        super().__init__(status)  # as pickling wants it
        self._status = status

    def __str__(self) -> str:
        return str(self._status.message)

    def code(self) -> grpc.StatusCode:
        """Returns the status code."""
        return _CODES.get(self._status.code, grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        """Returns the status message, for people."""
        return self._status.message

    def trailing_metadata(self) -> Any:
        """Returns the status details for programs, as gRPC's metadata has them."""
        return (("grpc-status-details-bin", self._status.SerializeToString()),)


def no_answer_in_time() -> CallError:
    """Returns the error of a call whose timeout is over, in gRPC's words."""
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    return CallError(Status(code=code.value[0], message="Deadline Exceeded"))


def request_of(path: str, message: bytes, timeout_s: float | None, metadata: Metadata) -> bytes:
    """Returns the data of a frame that makes a call."""
    service, _, method = path[1:].partition("/")
    return Request(
        service=service,
        method=method,
        payload=message,
        timeout_nano=0 if timeout_s is None else max(1, int(timeout_s * 1e9)),
        metadata=[KeyValue(key=k, value=v) for k, v in metadata],
    ).SerializeToString()


def reply_of(data: bytes | None) -> bytes:
    """Returns the serialized reply in a response; raises if data is None: the connection ended.

    Raises:
        CallError: The call ended with a status.
        ConnectionLostError: There is no such thing in it, or the server has forgotten the arena of
            a tensor.
    """
    if data is None:
        raise ConnectionLostError
    try:
        response = Response.FromString(data)
    except DecodeError as error:
        raise ConnectionLostError from error
    if response.status.code:
        failure = CallError(response.status)
        # Without its arenas a connection is of no use, and by gRPC the call needs none.
        if reason_of(failure) == "ARENA_NOT_FOUND":
            raise ConnectionLostError from failure
        raise failure
    reply: bytes = response.payload
    return reply


@dataclass(frozen=True, slots=True)
class Offer:
    """A local transport that a server offers."""

    folder: Path
    instance_id: str
    """The identity of the server that told."""

    @classmethod
    def of(cls, reply: bytes) -> Offer | None:
        """Reads the offer in a server's info; None if it has no local transport."""
        info = GetServerInfoReply.FromString(reply)
        return cls(Path(info.local_dir), info.instance_id) if info.local_dir else None

    def is_from(self, reply: bytes) -> bool:
        """Returns whether the server that answers on the socket made this offer."""
        return GetServerInfoReply.FromString(reply).instance_id == self.instance_id


def who_asks(metadata: Metadata) -> tuple[tuple[str, str], ...]:
    """Returns metadata for asking a server about itself: no request id."""
    return tuple((key, value) for key, value in metadata if key == "authorization")


def inquiry(metadata: Metadata, timeout_s: float | None) -> dict[str, Any]:
    """Returns arguments for asking a server about itself within the time of a call."""
    about_s = CONNECT_S if timeout_s is None else min(CONNECT_S, timeout_s)
    return {"timeout": about_s, "metadata": who_asks(metadata)}


FAILURES = (grpc.RpcError, OSError, ConnectionLostError, DecodeError, ValueError)
"""Exceptions of a failed search for a local transport; ValueError: a closed channel."""


class Discovery:
    """The times at which the local transport of a server is looked for.

    Not where there can be none, and less and less often where none was found.

    Args:
        target: gRPC target.
        is_wanted: Whether to look at all.

    Concurrency: thread-safe.
    """

    def __init__(self, target: str, *, is_wanted: bool) -> None:
        self._target = target
        self._is_possible = is_wanted and is_one_server_here(target)
        self._lock = threading.Lock()
        self._next_s = 0.0
        self._pause_s = MIN_PAUSE_S

    def is_due(self) -> bool:
        """Returns whether to look now; that caller alone must look, then report the result."""
        if not self._is_possible:
            return False
        with self._lock:
            if time.monotonic() < self._next_s:
                return False
            self._next_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            return True

    def found(self, offer: Offer) -> None:
        """Notes that there is a local transport."""
        self._pause_s = MIN_PAUSE_S
        LOG.debug("%s: calls go by the local transport in %s.", self._target, offer.folder)

    def failed(self, error: Exception | str) -> None:
        """Notes that no local transport was found, and looks again later."""
        LOG.debug("%s: calls go by gRPC, without a local transport: %s", self._target, error)

    def lost(self) -> None:
        """Notes that the local transport was lost."""
        LOG.debug("%s: calls go by gRPC, as the local transport was lost.", self._target)


def is_one_server_here(target: str) -> bool:
    """Returns whether a target is an address of one server on this host."""
    return stays_here(target) and not target.startswith(("dns:", "ipv4:", "ipv6:"))


def milliseconds_until(deadline_s: float | None) -> float | None:
    """Returns what is left until an instant of `time.monotonic`; None: no limit.

    Raises:
        CallError: Nothing is left.
    """
    if deadline_s is None:
        return None
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise no_answer_in_time()
    return min(left_s, MAX_WAIT_S) * 1e3
