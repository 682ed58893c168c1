"""A connection by ttrpc for threads.

It has no thread of its own: of those that wait for answers, one reads, hands every answer to whom
it belongs, and once it has its own, leaves reading to another one. So a thread that calls alone
never waits for a second one to wake up, and a fork finds no thread in the middle of something.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from stn_client._arenas import Pool
from stn_client._ttrpc import (
    CONNECT_S,
    SOCKET,
    ConnectionLostError,
    Metadata,
    milliseconds_until,
    no_answer_in_time,
    reply_of,
    request_of,
)
from stn_proto.ttrpc import ClientConnection, FrameError

READ_BYTES = 64 * 1024

BUSY_POLL_S = 200e-6
"""The time for which a thread that calls alone polls for its answer before it sleeps: it makes 5300
calls of 1x1x28x28 a second out of 4200. More takes time from others that need the core."""

MAX_UNPOLLED = 64
"""The most answers that are not polled for after one was late: at first one, then two, four and so
on."""


class _Waiter:
    """A thread that waits for its answer, or for its turn to read."""

    def __init__(self, held: object) -> None:
        self.woken: SimpleQueue[None] = SimpleQueue()
        self.is_there = True
        self.is_answered = False
        self.data: bytes | None = None
        self.held = held
        """Memory that is kept until the answer is there, also if the thread has given up."""

    def answer(self, data: bytes | None) -> None:
        self.data = data
        self.is_answered = True
        self.woken.put(None)


class _BusyPoll:
    """Polls for an answer for a moment before sleeping: small calls take less than to wake up.

    Only where there is a core for that, and only now and then once answers have taken longer.
    """

    def __init__(self) -> None:
        self._pause = 0 if len(os.sched_getaffinity(0)) > 1 else sys.maxsize
        """Number of answers that are not polled for."""
        self._next_pause = 1
        self._caller = 0
        self.is_of_one_thread = False
        """Whether the call before this one was of the same thread."""

    def begin(self) -> None:
        """Notes which thread makes a call."""
        caller = threading.get_ident()
        self.is_of_one_thread = caller == self._caller
        self._caller = caller

    def is_there_soon(self, poll: Any) -> bool:
        """Returns whether there is something to read within `BUSY_POLL_S`."""
        if self._pause:
            self._pause -= 1
            return False
        give_up_s = time.perf_counter() + BUSY_POLL_S
        while not poll.poll(0):
            if time.perf_counter() > give_up_s:
                self._pause = self._next_pause
                self._next_pause = min(2 * self._next_pause, MAX_UNPOLLED)
                return False
        self._next_pause = 1
        return True


class Connection:
    """Calls of any threads on one socket.

    Args:
        folder: Where the socket is.
        metadata: Says who asks for arenas.

    Attributes:
        pool: Memory that the server sees, too.

    Raises:
        OSError: Nobody listens there.

    Concurrency: thread-safe.
    """

    def __init__(self, folder: Path, metadata: Callable[[], Metadata]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(CONNECT_S)
            self._socket.connect(str(folder / SOCKET))
            # Deadlines come from poll: a timeout of the socket would be shared by all threads.
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        self.pool = Pool(folder, metadata)
        self._frames = ClientConnection()
        self._sending, self._reading = threading.Lock(), threading.Lock()
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable.register(self._socket, select.POLLOUT)
        self._waiting: dict[int, _Waiter] = {}
        self._busy_poll = _BusyPoll()
        self.is_lost = False

    def call(
        self,
        path: str,
        message: bytes,
        *,
        timeout: float | None,
        metadata: Metadata = (),
        held: object = None,
    ) -> bytes:
        """Makes a call, and returns its serialized reply.

        Args:
            path: The path of the method.
            message: Serialized request.
            timeout: In seconds; None: any.
            metadata: Sent along.
            held: Kept until the server has answered, or the connection is lost.

        Raises:
            CallError: The call ended with a status.
            ConnectionLostError: It has no answer.
        """
        self._busy_poll.begin()
        deadline_s = None if timeout is None else time.monotonic() + timeout
        data = request_of(path, message, timeout, metadata)
        waiter = _Waiter(held)
        left_ms = milliseconds_until(deadline_s)
        # Whole frames are sent under the lock, in the order of their stream ids.
        if not self._sending.acquire(timeout=-1 if left_ms is None else left_ms / 1e3):
            raise no_answer_in_time()
        try:
            self._begin(data, waiter, deadline_s)
        finally:
            self._sending.release()
        try:
            self._wait(waiter, deadline_s)
        finally:
            # This thread may have been told to read, just before or just now.
            waiter.is_there = False
            self._let_another_read()
        return reply_of(waiter.data)

    def close(self) -> None:
        """Ends the connection; calls under way have no answer.

        Its descriptor is closed when no thread is in a call any more: one that is about to wait
        for it must not wait for another file that has got its number.
        """
        self._lose()

    def abandon(self) -> None:
        """Closes a forked process's copy of the socket; the parent keeps its own."""
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()  # lost, or of a client that nobody closed: no reason for a warning

    def _begin(self, data: bytes, waiter: _Waiter, deadline_s: float | None) -> None:
        """Sends a request on a stream of its own."""
        if self.is_lost:
            raise ConnectionLostError
        try:
            stream_id, frame = self._frames.request(data)
        except FrameError as error:  # too long, or the last stream id is gone
            raise ConnectionLostError from error
        # Before the first byte goes: the answer may be read by another thread at any time.
        self._waiting[stream_id] = waiter
        unsent = memoryview(frame)
        try:
            while unsent:
                try:
                    unsent = unsent[self._socket.send(unsent, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    self._wait_for(self._writable, deadline_s)
        except BaseException as error:
            if isinstance(error, OSError) or len(unsent) < len(frame):
                self._lose()  # half a frame makes all that follows unreadable
            self._waiting.pop(stream_id, None)
            if isinstance(error, OSError):
                raise ConnectionLostError from error
            raise
        # After the entry in `_waiting`: either `_lose` sees this
        # waiter, or the waiter sees the loss.
        self._answer_if_lost(waiter)

    def _answer_if_lost(self, waiter: _Waiter) -> None:
        """Answers a waiter that the loss of the connection may have missed."""
        if self.is_lost:
            waiter.answer(None)

    def _wait(self, waiter: _Waiter, deadline_s: float | None) -> None:
        """Waits for an answer; reads meanwhile, unless another thread does."""
        while not waiter.is_answered:
            # One thread reads for all. Who finds it taken sleeps
            # until it is answered, or must read.
            if not self._reading.acquire(blocking=False):
                _sleep(waiter, deadline_s)
                continue
            try:
                while not waiter.is_answered:
                    self._read(deadline_s)
            finally:
                self._reading.release()

    def _read(self, deadline_s: float | None) -> None:
        """Waits for bytes, and gives complete answers to their waiters."""
        # To poll takes the interpreter from other threads, which would make their calls meanwhile.
        is_alone = len(self._waiting) == 1 and self._busy_poll.is_of_one_thread
        if not (is_alone and self._busy_poll.is_there_soon(self._readable)):
            self._wait_for(self._readable, deadline_s)
        try:
            received = self._socket.recv(READ_BYTES)
            answers = self._frames.receive(received)
        except BlockingIOError:
            return
        except (OSError, FrameError):
            self._lose()
            return
        if not received:
            self._lose()
        for stream_id, data in answers:
            waiter = self._waiting.pop(stream_id, None)
            if waiter is not None:
                waiter.answer(data)

    def _wait_for(self, poll: Any, deadline_s: float | None) -> None:
        if not poll.poll(milliseconds_until(deadline_s)):
            raise no_answer_in_time()

    def _let_another_read(self) -> None:
        """Wakes one waiting thread, if any; to wake too often does no harm."""
        for waiter in list(self._waiting.values()):
            if waiter.is_there:
                waiter.woken.put(None)
                return

    def _lose(self) -> None:
        """Fails all waiting calls, as there will be no answers.

        First the pool is closed: until the server sees the loss it may still write to slots that
        those who wait give back, and no other call may get them.
        """
        self.is_lost = True
        self.pool.close()
        # Shut down, not closed: the number of the descriptor stays taken while others poll it.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(KeyError):  # of the last one, which another thread may have told
            while self._waiting:
                self._waiting.popitem()[1].answer(None)


def _sleep(waiter: _Waiter, deadline_s: float | None) -> None:
    """Sleeps until there is an answer, or a turn to read."""
    left_ms = milliseconds_until(deadline_s)
    try:
        waiter.woken.get(timeout=None if left_ms is None else left_ms / 1e3)
    except Empty:
        raise no_answer_in_time() from None
