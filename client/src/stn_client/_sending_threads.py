"""Sends the calls of threads, which wait for their replies."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from stn_client._envelopes import Places
from stn_client._sending import Packet, SendQueue, Waiter
from stn_client._steps import completed
from stn_client._transports import Transports
from stn_client._ttrpc import no_answer_in_time


class Sender:
    """Sends the calls of a client in their turns, each or each message by a thread of its calls.

    Args:
        transports: The ways to the server.
        queue: The calls that wait.

    Concurrency: thread-safe.
    """

    def __init__(self, transports: Transports, queue: SendQueue) -> None:
        self.transports = transports
        self._queue = queue
        self._lock = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way."""
        return self._queue.in_flight > 0

    def enter(self, *waiters: Waiter) -> None:
        """Adds calls to the queue, and starts those whose turn it is."""
        with self._lock:
            for waiter in waiters:
                self._queue.add(waiter)
            self._start()

    def leave(self, waiter: Waiter) -> None:
        """Removes a call that has ended from the queue, however it ended."""
        waiter.progress.end()
        # It may lie in the inbox that it refers to: a reference cycle, which would keep operands
        # until the garbage collector runs.
        waiter.woken = _ignored
        if not waiter.is_in_queue:  # it was answered
            return
        with self._lock:
            # A call that was interrupted between its turn and sending must not block the queue.
            goes, waiter.goes = waiter.goes, None
            if goes is not None:  # interrupted
                self._queue.answered(goes)
            self._queue.leave(waiter)
            self._start()
        # Outside of the lock: `fail` wakes other threads, which want it.
        if isinstance(goes, Packet):
            goes.fail(KeyboardInterrupt(), is_lost=True)
            goes.wake()

    def give_up_turn(self, waiter: Waiter) -> None:
        """Lets others go in the place of a call that will enter again."""
        with self._lock:
            self._queue.leave(waiter)
            self._start()

    def answer(self, waiter: Waiter, inbox: SimpleQueue[Waiter]) -> tuple[bytes, Places]:
        """Returns the reply to a call, which is sent in its turn, alone or with others.

        Raises:
            RpcError: The attempt failed.
            DeadlineExceededError: Its time was over before its turn came.
            GoAlone: It has to be tried again.
            StnClientError: It cannot be sent.
        """
        while waiter.outcome is None:
            if waiter.goes is not None:
                self._send_waiting(waiter)
                continue
            try:
                # Another call of this thread may be woken first; it is sent here, and this one
                # waits on.
                woken = inbox.get(timeout=waiter.progress.remaining_s())
            except Empty:
                with self._lock:
                    # Under the lock: its turn may have come between the timeout and here, and then
                    # it goes.
                    if waiter.goes is None and waiter.outcome is None:
                        waited = self._queue.leave(waiter)
                        raise waiter.progress.no_turn() if waited else no_answer_in_time() from None
            else:
                self._send_waiting(woken)
        outcome, waiter.outcome = waiter.outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _start(self) -> None:
        """Starts the calls whose turn it is; the lock must be held."""
        self._queue.start(self.transports.most_bytes)

    def _send_waiting(self, waiter: Waiter) -> None:
        """Sends the call or packet that a waiter leads, if any, and sets outcomes."""
        goes = waiter.goes
        if goes is None:
            return
        try:
            if isinstance(goes, Packet):
                self._send_together(goes)
            else:
                attempt = waiter.progress.start()
                steps = self.transports.send(waiter.call, attempt, waiter.progress)
                waiter.outcome = completed(steps)
        except Exception as error:  # noqa: BLE001 - raised by the call
            waiter.outcome = error
        finally:
            with self._lock:
                # Before others start: what is answered frees the turns that they take.
                waiter.goes = None
                self._queue.answered(goes)
                self._start()

    def _send_together(self, packet: Packet) -> None:
        """Sends a message of several calls, and gives each its outcome."""
        try:
            attempt = packet.start()
            steps = self.transports.send(packet.call, attempt, packet.lead.progress)
            reply, _ = completed(steps)
            packet.succeed(reply)
        except ValueError as error:
            # gRPC raises ValueError on a channel that was closed meanwhile; then no call has failed
            # itself.
            packet.fail(error, is_lost=not self.transports.is_open)
        except BaseException as error:
            packet.fail(error, is_lost=False)
            # An interrupt is of this thread alone: the others' calls go on, and this one ends.
            if not isinstance(error, Exception):
                raise
        finally:
            packet.wake()


def _ignored(_waiter: Waiter) -> None:
    """Wakes nobody: the call has left."""
