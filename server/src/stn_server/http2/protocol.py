"""One connection by gRPC: its calls, and how each is answered.

- A call begins when its headers are there, with all that came in along with them: most small
  messages are whole by then, and are answered before anything else is read.
- It is over, and its place free, when its reply has left but for 64 KiB, or its caller is gone.
- Whoever sends no headers in time, or what is no HTTP/2, is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from stn_server.context import AbortedError, Ending
from stn_server.deadlines import watch_deadline
from stn_server.eager import begun
from stn_server.event_loop import Backlog
from stn_server.handlers import Router
from stn_server.http2 import headers
from stn_server.http2.calls import StreamContext
from stn_server.http2.connection import (
    Acknowledged,
    Began,
    Ended,
    Event,
    Received,
    Reset,
    ServerConnection,
)
from stn_server.http2.frames import Code, ConnectionEndedError
from stn_server.http2.messages import parts
from stn_server.log import log

UNSENT_BYTES = 64 * 1024
"""The most bytes of unread replies; with more, calls count as not over."""

JOINED_BYTES = 64 * 1024
"""Up to this, what is sent at a time is copied together: one piece for the system to take."""


@dataclass(slots=True)
class Shared:
    """What all connections of a server have in common."""

    router: Router
    max_streams: int
    max_message_bytes: int
    handshake_s: float
    backlog: Backlog[StreamContext]
    age_s: Callable[[], float] = lambda: math.inf
    """After how many seconds a connection is asked to end."""
    connections: set[Http2Protocol] = field(default_factory=set)
    """The connections that are open."""
    has_none: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no connection is open."""

    def __post_init__(self) -> None:
        self.has_none.set()


class Http2Protocol(asyncio.Protocol):
    """The server's end of one connection.

    Args:
        shared: What it has in common with others.
        peer: The other end, as `peer_of` returns it.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, shared: Shared, peer: str) -> None:
        self._shared = shared
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._connection = ServerConnection(shared.max_streams)
        self._calls: dict[int, StreamContext] = {}
        """The calls that are not over, by their streams."""
        self._tasks: dict[StreamContext, asyncio.Task[None]] = {}
        self._leaving: list[StreamContext] = []
        """The calls all of whose replies are output, which may wait to be read."""
        self._is_blocked = False
        self._is_receiving = False
        self._is_ending = False
        """Whether the connection closes after its last call."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins: a client has connected."""
        self._transport: asyncio.Transport = transport
        self._shared.connections.add(self)
        self._shared.has_none.clear()
        # With `low=0` writing resumes when every reply has left, as `resume_writing` relies on.
        transport.set_write_buffer_limits(high=UNSENT_BYTES, low=0)
        self._certified_name = certified_name(transport.get_extra_info("peercert"))
        self._timer = self._loop.call_later(self._shared.handshake_s, self._give_up)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Begins and feeds the calls that these bytes are of."""
        connection, is_strange = self._connection, not self._connection.has_begun
        began: list[StreamContext] = []
        self._arrived = time.perf_counter()
        self._is_receiving = True
        try:
            for event in connection.receive(data):
                self._take(event, began)
        except ConnectionEndedError as error:
            self._cut_off(error)
            return
        if is_strange and connection.has_begun:
            self._watch_age()
        # With all that came along: what is whole needs no task to wait for the rest.
        self._shared.backlog.add(self._arrived, self._begin, began)
        self._is_receiving = False
        self._flush()

    def pause_writing(self) -> None:
        """Notes that the client does not read, so that calls are not over."""
        self._is_blocked = True
        self._connection.room_bytes = 0

    def resume_writing(self) -> None:
        """Finishes the calls whose replies have left by now."""
        self._is_blocked = False
        self._go_on()
        self._flush()

    def connection_lost(self, _reason: Exception | None) -> None:
        """Cancels all calls of the connection that ended."""
        self._shared.connections.discard(self)
        if not self._shared.connections:
            self._shared.has_none.set()
        if self._timer is not None:
            self._timer.cancel()
        # Replies that wait will never leave: their calls are over as well.
        self._is_blocked = False
        self._finish_leaving()
        for call in list(self._calls.values()):
            self._cancel(call)

    def grant(self, stream_id: int, window_bytes: int) -> None:
        """Lets the client send up to so many more bytes on a stream."""
        self._connection.grant(stream_id, window_bytes)
        self._flush()

    def write(self, call: StreamContext, message: bytes) -> None:
        """Sends a message on the stream of a call; sets `has_unsent` if it has to wait."""
        self._send_head(call)
        call.has_unsent = not self._connection.send(call.stream_id, *parts(message))
        self._flush()

    def end_soon(self) -> None:
        """Asks the client to call elsewhere, and closes after the last call that is under way.

        Only once its answer to a ping says that nothing more is on its way, or does not come.
        """
        self._connection.announce_end()
        self._connection.ping()
        self._timer = self._loop.call_later(self._shared.handshake_s, self._end_after_calls)
        self._flush()

    def abort(self) -> None:
        """Ends the connection, and with it its calls."""
        self._connection.end()
        self._close()
        for call in list(self._calls.values()):
            self._cancel(call)

    def _take(self, event: Event, began: list[StreamContext]) -> None:
        """Does what an event asks for; calls that begin are added to a list."""
        if isinstance(event, Began):
            self._open(event, began)
            return
        if isinstance(event, Acknowledged):  # of `end_soon`: what was on its way is here
            self._end_after_calls()
            return
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        if isinstance(event, Received):
            call.feed(event.data)
        elif isinstance(event, Ended):
            call.end()
        elif isinstance(event, Reset):
            if call in began:
                began.remove(call)
            self._cancel(call)
        else:
            call.sent()

    def _open(self, event: Began, began: list[StreamContext]) -> None:
        """Makes the call that a stream is, if it is one."""
        try:
            request = headers.read_request(event.headers)
        except headers.MalformedError:
            self._connection.reset(event.stream_id, Code.PROTOCOL_ERROR)
            return
        except headers.NoCallError as error:
            self._connection.end_stream(event.stream_id, headers.refusal(error.status))
            return
        timeout_s = request.timeout_s
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        limit = self._shared.max_message_bytes
        call = StreamContext(
            self,
            event.stream_id,
            request,
            self._peer,
            deadline,
            self._certified_name,
            limit,
            self._arrived,
        )
        self._calls[event.stream_id] = call
        began.append(call)

    def _begin(self, call: StreamContext) -> None:
        """Answers a call, here or in a task, of a caller that has not gone meanwhile."""
        if call.is_gone:
            return
        call.take_arrived()
        answer = self._answer(call)
        # What waits for its message asks for its task, which `begun` has only later.
        if call.message is None:
            task: asyncio.Task[None] | None = self._loop.create_task(answer)
        else:
            task = begun(answer, self._loop)
        if task is not None:
            self._tasks[call] = task
            task.add_done_callback(lambda _task: self._end_task(call))
            watch_deadline(task, call, self._loop)

    async def _answer(self, call: StreamContext) -> None:
        """Answers a call, whatever becomes of it."""
        try:
            ending = await self._ending(call)
        except asyncio.CancelledError:
            # For its deadline, or because its caller has gone: only then nobody is left to answer.
            # What was written before waits for a client that may never take it: no status follows.
            if call.is_gone or call.remaining_s() > 0 or call.has_unsent:
                raise
            ending = Ending(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        if call.is_gone or self._transport.is_closing():
            call.is_answered = True
            self._finish(call)
            return
        trailers = headers.trailers(ending.code, ending.message, ending.metadata)
        if not call.has_head:  # no message was sent: one block is all there is
            trailers = headers.HEAD + trailers
        call.has_unsent = not self._connection.end_stream(call.stream_id, trailers)
        if call.has_unsent:
            self._flush()
        if call.has_unsent:  # still: a reply that nobody reads is dropped at its deadline
            await call.sending()
        call.is_answered = True
        self._leaving.append(call)
        self._flush()

    async def _ending(self, call: StreamContext) -> Ending:
        """Runs the method of a call; returns how the call ends."""
        if call.encoding not in headers.ENCODINGS:
            known = ", ".join(headers.ENCODINGS)
            text = f"grpc-encoding: expected one of {known}, got {call.encoding[:100]}."
            return Ending(grpc.StatusCode.UNIMPLEMENTED, text)
        method = self._shared.router.find(call.path, call)
        try:
            reply = await method(call)
        except AbortedError:
            return call.ending or Ending(grpc.StatusCode.UNKNOWN)
        except Exception:  # noqa: BLE001 - of a method that answers its own failures
            log(logging.ERROR, "method failed", method=call.path[:200], exc_info=True)
            return Ending(grpc.StatusCode.UNKNOWN, "Unexpected failure of the method.")
        if reply is not None and not call.is_gone:
            self._send_head(call)
            self._connection.send(call.stream_id, *parts(reply))
        return Ending(grpc.StatusCode.OK)

    def _send_head(self, call: StreamContext) -> None:
        if not call.has_head:
            call.has_head = True
            self._connection.send_headers(call.stream_id, headers.HEAD)

    def _end_task(self, call: StreamContext) -> None:
        """Forgets the task of a call, which may have been cancelled before it began."""
        del self._tasks[call]
        if not call.is_answered:
            code = Code.CANCEL if call.remaining_s() == 0 else Code.INTERNAL_ERROR
            self._connection.reset(call.stream_id, code)
            self._finish(call)
            self._flush()

    def _cancel(self, call: StreamContext) -> None:
        """Ends a call whose reply nobody waits for any more."""
        call.is_gone = True
        task = self._tasks.get(call)
        if task is None:
            self._finish(call)
        else:
            task.cancel()

    def _go_on(self) -> None:
        """Makes more output of what waits, as the client has taken what was sent."""
        self._connection.answers_bytes = 0
        for event in self._connection.go_on():
            self._take(event, [])

    def _finish_leaving(self) -> None:
        """Counts the calls as over whose replies have left."""
        leaving, self._leaving = self._leaving, []
        for call in leaving:
            self._finish(call)

    def _finish(self, call: StreamContext) -> None:
        """Counts a call as over."""
        if self._calls.pop(call.stream_id, None) is not None:
            call.finish()
            self._close_if_idle()

    def _end_after_calls(self) -> None:
        """Takes no more calls, and closes after the last one."""
        if self._is_ending:
            return
        self._is_ending = True
        self._connection.end()
        self._flush()
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_ending and not self._calls:
            self._close()

    def _close(self) -> None:
        """Closes the connection once all has been sent, if that is taken in time."""
        self._is_receiving = False
        self._flush()
        self._transport.close()
        self._loop.call_later(self._shared.handshake_s, self._transport.abort)

    def _cut_off(self, error: ConnectionEndedError) -> None:
        """Ends a connection whose bytes cannot be understood any more."""
        # Strangers may come at any rate, as probes that speak HTTP/1.
        level = logging.INFO if self._connection.has_begun else logging.DEBUG
        log(level, "connection ended", caller=self._peer, reason=str(error))
        self._connection.end(error.code, str(error))
        self._close()
        for call in list(self._calls.values()):
            self._cancel(call)

    def _give_up(self) -> None:
        reason = f"expected a client of HTTP/2 within {self._shared.handshake_s:g} s"
        log(logging.DEBUG, "connection ended", caller=self._peer, reason=reason)
        self._transport.abort()

    def _watch_age(self) -> None:
        """Ends the wait for the client to introduce itself, and begins that for its age."""
        cast("asyncio.TimerHandle", self._timer).cancel()
        age_s = self._shared.age_s()
        self._timer = None if age_s == math.inf else self._loop.call_later(age_s, self.end_soon)

    def _flush(self) -> None:
        """Sends what there is to send, unless more is about to come."""
        if self._is_receiving:
            return
        while output := self._connection.output:
            self._connection.output = []
            if self._transport.is_closing():
                return
            if sum(map(len, output)) <= JOINED_BYTES:
                self._transport.write(b"".join(output))
            else:
                self._transport.writelines(output)
            if not self._is_blocked:
                self._go_on()
        if not self._is_blocked:
            self._finish_leaving()


def peer_of(family: socket.AddressFamily, address: Any) -> str:
    """Returns the other end of a connection, as `caller_of` reads it."""
    if family == socket.AF_INET6:
        return f"ipv6:[{address[0]}]:{address[1]}"
    return f"ipv4:{address[0]}:{address[1]}" if family == socket.AF_INET else "unix:"


def certified_name(certificate: dict[str, Any] | None) -> str:
    """Returns the name in a certificate that TLS has verified; empty if there is none."""
    if not certificate:
        return ""
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    others = (value for _, value in certificate.get("subjectAltName", ()))
    return subject.get("commonName") or next(others, "")
