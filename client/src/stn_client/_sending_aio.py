"""Sends the calls of tasks, which await their replies."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

import grpc.aio

from stn_client._envelopes import Places
from stn_client._sending import Packet, SendQueue, Waiter
from stn_client._steps import awaited
from stn_client._transports import Transports
from stn_client._ttrpc import no_answer_in_time


class Sender:
    """Sends the calls of one event loop in their turns, alone or several in a message.

    Args:
        transports: The ways to the server.
        queue: The calls that wait.
    """

    def __init__(self, transports: Transports, queue: SendQueue) -> None:
        self.transports = transports
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._woken: dict[Waiter, asyncio.Future[None]] = {}
        self._looks_at_s = math.inf
        """The instant at which the timer fires; infinity if there is none."""
        self._timer: asyncio.TimerHandle | None = None
        self._sending: dict[Packet, asyncio.Task[None]] = {}
        self._starts_soon = False
        """Whether calls are started at the end of this turn of the event loop."""

    async def answer(self, waiter: Waiter) -> tuple[bytes, Places]:
        """Returns the reply to a call, which is sent in its turn, alone or with others.

        Raises:
            RpcError: The attempt failed.
            DeadlineExceededError: Its time was over before its turn came.
            GoAlone: It has to be tried again.
            StnClientError: It cannot be sent.
        """
        self._queue.add(waiter)
        is_soon = self._starts_soon or (self._gathers and self._queue.is_packing)
        if is_soon and not waiter.goes_alone:
            self._start_soon()
        else:
            self._start()
        # `_start` may have woken it within this very call; then there is nothing to wait for.
        if waiter.goes is None and waiter.outcome is None:
            woken = self._woken[waiter] = self._loop.create_future()
            self._watch(waiter.progress.deadline_s)
            try:
                await woken
            finally:
                del self._woken[waiter]
                # The task was cancelled while a packet carries its call: perhaps it was the last
                # one to wait.
                if waiter.outcome is None and waiter.goes is None:
                    self._give_up()
        if waiter.outcome is None:
            try:
                attempt = waiter.progress.start()
                steps = self.transports.send(waiter.call, attempt, waiter.progress)
                waiter.outcome = await awaited(steps)
            finally:
                self._sent(waiter)
        # Taken, as the same waiter may enter the queue again for another attempt.
        outcome, waiter.outcome = waiter.outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def leave(self, waiter: Waiter) -> None:
        """Removes a call that has ended from the queue, however it ended."""
        self._sent(waiter)
        if waiter.is_in_queue:  # those that were answered have left
            self._queue.leave(waiter)
            self._start()

    def wake(self, waiter: Waiter) -> None:
        """Resumes a call that is to be sent or has its outcome, or sends its packet."""
        if isinstance(waiter.goes, Packet):
            packet, waiter.goes = waiter.goes, None
            # A task of its own: the cancellation of one call must not cancel the message of the
            # others.
            task = self._loop.create_task(self._send_together(packet))
            # Referred to as long as it runs: an event loop holds its tasks weakly.
            self._sending[packet] = task
            # It ends there, and not in itself: a task that is cancelled before its first step runs
            # nothing of its own.
            task.add_done_callback(partial(self._ended, packet))
            return
        woken = self._woken.get(waiter)
        if woken is not None and not woken.done():
            woken.set_result(None)

    def _watch(self, deadline_s: float) -> None:
        """Sets the one timer of all waiting calls, as a timer for each would cost more."""
        if deadline_s < self._looks_at_s:
            if self._timer is not None:
                self._timer.cancel()
            self._looks_at_s = deadline_s
            self._timer = self._loop.call_later(deadline_s - time.monotonic(), self._expire)

    def _expire(self) -> None:
        """Ends waiting calls whose deadlines have passed, and sets the timer anew."""
        # First, so that `_watch` below sets a new timer, whatever the old one was set to.
        self._timer, self._looks_at_s = None, math.inf
        now_s, next_s = time.monotonic(), math.inf
        for waiter, woken in self._woken.items():
            deadline_s = waiter.progress.deadline_s
            if deadline_s > now_s:
                next_s = min(next_s, deadline_s)
            elif not woken.done():
                # What was sent already had its turn: its time was over on the server, not in the
                # queue.
                waited = self._queue.leave(waiter)
                waiter.outcome = waiter.progress.no_turn() if waited else no_answer_in_time()
                woken.set_result(None)
        self._watch(next_s)

    def _give_up(self) -> None:
        """Cancels messages all of whose calls have been cancelled."""
        if self._loop.is_closed():  # and with it every message
            return
        for packet, task in self._sending.items():
            if not any(waiter in self._woken for waiter in packet.waiters):
                task.cancel()

    def _start(self, *, splits: bool = False) -> None:
        """Starts the calls whose turn it is, unless the loop was closed while they waited."""
        if not self._loop.is_closed():
            self._queue.start(self.transports.most_bytes, splits=splits)

    @property
    def _gathers(self) -> bool:
        """Whether calls of one turn of the event loop start together, at its end.

        They do by gRPC alone: by the local transport a message costs less than that would save.
        """
        return self.transports.local is None

    def _start_soon(self) -> None:
        """Starts calls when all that come in this turn of the event loop are there."""
        if not self._starts_soon:
            self._starts_soon = True
            self._loop.call_soon(self._start_turn)

    def _start_turn(self) -> None:
        """Starts the calls of a turn in parts: callers that come together come back together."""
        self._starts_soon = False
        self._start(splits=True)

    def _sent(self, waiter: Waiter) -> None:
        """Notes that a call that was sent alone is no longer under way."""
        if waiter.goes is not None:
            self._queue.answered(waiter.goes)
            waiter.goes = None
            self._start()

    async def _send_together(self, packet: Packet) -> None:
        """Sends a message of several calls, and gives each its outcome."""
        try:
            attempt = packet.start()
            steps = self.transports.send(packet.call, attempt, packet.lead.progress)
            reply, _ = await awaited(steps)
            packet.succeed(reply)
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            packet.fail(error, is_lost=True)
        except Exception as error:  # noqa: BLE001 - raised by each of its calls
            packet.fail(error, is_lost=False)

    def _ended(self, packet: Packet, _task: asyncio.Task[None]) -> None:
        """Notes that a message is no longer under way, and resumes its calls."""
        del self._sending[packet]
        self._queue.answered(packet)
        # The next message first: the server computes it while these calls read their replies.
        # But one of few calls waits for what their owners ask next: else they would stay few.
        try:
            if not (self._gathers and self._queue.waits_for(packet)):
                self._start()
        finally:  # they have their outcomes, whatever becomes of the next ones
            packet.wake()
        if self._gathers:
            self._start_soon()

    async def close(self) -> None:
        """Ends every connection that was made."""
        if self._timer is not None:
            self._timer.cancel()
        local = self.transports.local
        await asyncio.gather(*self.transports.close())
        if local is not None:
            # Else the loop may end with a socket that is open, of which asyncio warns.
            await local.wait_closed()
