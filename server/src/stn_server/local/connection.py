"""A connection by ttrpc: its frames, its calls, and how much of both there may be.

What ttrpc leaves open is decided here:

- A connection has so many calls in flight; as long as it has, it is not read.
- The end of a connection cancels its calls. One call alone cannot be cancelled, but has a timeout.
- A call is over, and its place free, when its reply has left but for 64 KiB.
- Bytes that are no frames end the connection, and so does a frame that is not there in time.
- What is too long for a frame is skipped, and its call refused.
- Caller and method are known when a frame is whole: its bytes are not counted until then. So few
  long frames come in at a time; other connections that send one are not read meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from stn_proto import ttrpc
from stn_proto.ttrpc import FrameError, OversizedFrame, ServerConnection
from stn_server.config import LimitsConfig
from stn_server.context import Context
from stn_server.deadlines import watch_deadline
from stn_server.eager import begun
from stn_server.local.calls import Asked, Responder, peer_of
from stn_server.log import log

UNSENT_BYTES = 64 * 1024
"""The most bytes of unread replies; with more, calls count as not over."""

LONG_BYTES = 64 * 1024
"""Frames up to this need not wait for others: most come in by one read."""


class LongFrameLimit:
    """Limits how many connections receive a long frame at the same time; others wait in order.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, at_a_time: int) -> None:
        self._free = at_a_time
        self._waiting: deque[Connection] = deque()

    def acquire(self, connection: Connection) -> bool:
        """Returns whether a connection may receive one now; if not, it is told later."""
        if self._free:
            self._free -= 1
            return True
        self._waiting.append(connection)
        return False

    def release(self, connection: Connection) -> None:
        """Lets the next connection receive one in place of this, or ends the wait of this one."""
        if connection in self._waiting:
            self._waiting.remove(connection)
        elif self._waiting:
            # Passed on, so that no newcomer comes before those who wait.
            self._waiting.popleft().go_on_receiving()
        else:
            self._free += 1


class Connection(asyncio.Protocol):
    """The server's end of one connection.

    Args:
        responder: Answers calls.
        limits: The limits of a connection.
        long_frames: The limit of long frames, for all connections together.
        connections: Has this as long as it is open.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        responder: Responder,
        limits: LimitsConfig,
        long_frames: LongFrameLimit,
        connections: set[Connection],
    ) -> None:
        self._responder = responder
        self._limits = limits
        self._long_frames = long_frames
        self._may_receive_long: bool | None = None
        """Whether a long frame may come in, or must wait; None: none is under way."""
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._frames = ServerConnection()
        self._waiting: deque[ttrpc.Frame | OversizedFrame] = deque()
        """The frames that came in with the one that reached the limit of calls in flight."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._leaving: list[Context] = []
        """The calls whose replies wait to be read."""
        self._is_blocked = False
        self._is_reading = True
        self._is_beginning = False
        self._upload: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins: a client has connected."""
        self._transport: asyncio.Transport = transport
        self._connections.add(self)
        # With `low=0` writing resumes when every reply has left, as `resume_writing` relies on.
        transport.set_write_buffer_limits(high=UNSENT_BYTES, low=0)
        self._peer = peer_of(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Begins the calls that are complete with these bytes."""
        try:
            frames = self._frames.receive(data)
        except FrameError as error:
            log(logging.INFO, "connection ended", caller=self._peer, reason=str(error))
            # What follows bytes that are no frame cannot be read any more.
            self._transport.abort()
            return
        self._waiting += frames
        if frames:
            # The long frame, if one was under way, is whole: it is the first of these.
            self._end_long_frame()
        # Before reading on: no more of the frame is read until it may be.
        if self._may_receive_long is None and self._frames.awaited_bytes > LONG_BYTES:
            self._may_receive_long = self._long_frames.acquire(self)
        self._go_on()
        self._watch_upload(restart=bool(frames))

    def go_on_receiving(self) -> None:
        """Receives the rest of the long frame, for which the connection has waited."""
        self._may_receive_long = True
        self._go_on()
        self._watch_upload(restart=True)

    def pause_writing(self) -> None:
        """Notes that the client does not read, so that calls stay in flight."""
        self._is_blocked = True

    def resume_writing(self) -> None:
        """Finishes the calls whose replies have left by now."""
        self._is_blocked = False
        leaving, self._leaving = self._leaving, []
        for call in leaving:
            self._finish(call)

    def connection_lost(self, _reason: Exception | None) -> None:
        """Cancels all calls of the connection that ended."""
        self._connections.discard(self)
        # Before calls finish below, each of which would begin one that waits.
        self._waiting.clear()
        self._is_reading = False
        self._end_long_frame()
        self._watch_upload()
        for task in self._tasks:
            task.cancel()
        # Replies that wait will never leave: their calls are over as well.
        self.resume_writing()

    def abort(self) -> None:
        """Ends the connection, and with it its calls."""
        self._transport.abort()

    def _go_on(self) -> None:
        """Begins calls that wait, and reads on if more may come in."""
        # The loop below goes on with what waits; a second one within it would nest with every call.
        if self._is_beginning:  # a call that has begun is over already
            return
        most = self._limits.max_concurrent_streams
        self._is_beginning = True
        # Once it is closing, which a reply may find out, nobody is left to answer.
        while self._waiting and self._in_flight < most and not self._transport.is_closing():
            self._begin(self._waiting.popleft())
        self._is_beginning = False
        # Without a long frame (None) it may always read.
        may_read = self._in_flight < most and self._may_receive_long is not False
        if may_read != self._is_reading and not self._transport.is_closing():
            self._is_reading = may_read
            if may_read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
            self._watch_upload()

    def _begin(self, frame: ttrpc.Frame | OversizedFrame) -> None:
        """Answers a call, here or in a task."""
        asked = self._responder.read(frame, self._peer)
        self._in_flight += 1
        task = begun(self._answer(frame.stream_id, asked), self._loop)
        if task is None:
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        watch_deadline(task, asked.call, self._loop)

    async def _answer(self, stream_id: int, asked: Asked) -> None:
        call, response = asked.call, None
        try:
            response = await self._responder.answer(asked)
        finally:
            if response is None or self._transport.is_closing():
                self._finish(call)
            else:
                self._transport.write(self._frames.respond(stream_id, response))
                # `write` sets it, by `pause_writing`, when too much is unsent.
                if self._is_blocked:
                    self._leaving.append(call)
                else:
                    self._finish(call)

    def _finish(self, call: Context) -> None:
        """Counts a call as over, and lets the next one begin."""
        self._in_flight -= 1
        call.finish()
        self._go_on()

    def _end_long_frame(self) -> None:
        """Lets others receive long frames, as its own is whole, or will never be."""
        if self._may_receive_long is not None:
            self._may_receive_long = None
            self._long_frames.release(self)

    def _watch_upload(self, *, restart: bool = False) -> None:
        """Bounds the time for which the beginning of a frame waits to go on, and for its end.

        Both, so that no connection waits for ever behind others that send slowly on purpose.
        """
        # A frame that is not read, as too many calls are in flight, is late by no fault of its own.
        is_waiting = self._may_receive_long is False or (
            self._is_reading and self._frames.is_amid_frame
        )
        if self._upload is not None and (restart or not is_waiting):
            self._upload.cancel()
            self._upload = None
        if is_waiting and self._upload is None:
            self._upload = self._loop.call_later(self._limits.upload_s, self._give_up)

    def _give_up(self) -> None:
        missing = (
            "a part, as others send long ones" if self._may_receive_long is False else "a part"
        )
        reason = f"expected a whole frame within {self._limits.upload_s:g} s, got {missing}"
        log(logging.INFO, "connection ended", caller=self._peer, reason=reason)
        self._transport.abort()
