"""Measures whether the event loop keeps up: how late it is, and whether it hangs.

Everything the server does but computing goes through one event loop. When that has no time, calls
wait until it begins them.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from stn_server.events import Events
from stn_server.tuning import BEAT_S, BEGIN_S

T = TypeVar("T")

Hung = Callable[[float, str], None]
"""Receives for how many seconds the event loop has stood still, and the stack where it stands."""


class Backlog(Generic[T]):
    """Calls that have come in by gRPC and that the event loop has not begun, the oldest first.

    The loop begins as many as it can in a slice of time, whosever they are. Before it goes on with
    the rest it sends the replies that are made and reads what has come in by then: so nothing waits
    in a socket for longer than a slice, where nobody would know of it.

    Concurrency: `add` belongs to the event loop; `pending` and `age_s`, any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, Callable[[T], None], T]] = deque()
        self._is_behind = False
        """Whether calls are left for the next turn of the event loop."""

    def add(self, arrived: float, begin: Callable[[T], None], calls: Iterable[T]) -> None:
        """Adds calls that have just come in, and begins them unless older ones wait.

        Args:
            arrived: The instant of `time.perf_counter` at which they came in.
            begin: Begins one.
            calls: The calls, in their order.
        """
        self._waiting.extend((arrived, begin, call) for call in calls)
        if not self._is_behind:
            self._go_on()

    def pending(self) -> int:
        """Returns how many calls wait to begin."""
        return len(self._waiting)

    def age_s(self) -> float:
        """Returns for how long the oldest of them has waited, in seconds."""
        with suppress(IndexError):  # none is left by now
            return time.perf_counter() - self._waiting[0][0]
        return 0.0

    def _go_on(self) -> None:
        """Begins the oldest calls for a slice of time."""
        self._is_behind = False
        waiting, until = self._waiting, time.perf_counter() + BEGIN_S
        while waiting:
            _, begin, call = waiting.popleft()
            begin(call)
            if time.perf_counter() >= until and waiting:
                self._is_behind = True
                self._loop.call_soon(self._go_on)
                return


class LoopMonitor:
    """Measures how late the event loop is, and watches from a thread whether it runs at all.

    Args:
        events: Listeners of the lag of the event loop.
        hang_s: How long it may stand still before it counts as hung; 0: for ever.

    Concurrency: `start` and `stop` belong to the event loop; `still_s`, any thread.
    """

    def __init__(self, events: Events, hang_s: float) -> None:
        self._events = events
        self._hang_s = hang_s
        self._beats = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    def start(self, hung: Hung) -> None:
        """Begins to watch the event loop that runs.

        Args:
            hung: Called in a thread when the event loop hangs.
        """
        self._thread = threading.get_ident()
        self._due = time.monotonic() + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        threading.Thread(target=self._watch, args=(hung,), daemon=True, name="stn-watch").start()

    def stop(self) -> None:
        """Asks the watching thread to end, and returns without waiting for it."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def still_s(self) -> float:
        """Returns for how many seconds the event loop is overdue by now."""
        return 0.0 if self._timer is None else max(0.0, time.monotonic() - self._due)

    def _beat(self) -> None:
        late_s = self.still_s()
        self._beats += 1
        # Before the listeners, so that their time counts as lag, too.
        self._due = time.monotonic() + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        for tell in self._events.loop_lagged:
            tell(late_s)

    def _watch(self, hung: Hung) -> None:
        """Counts turns of this thread without one of the loop: a frozen process has had neither."""
        beats, turns = 0, 0
        while not self._stopped.wait(BEAT_S):
            is_turning = self._beats != beats
            beats, turns = self._beats, 0 if is_turning else turns + 1
            if self._hang_s and turns * BEAT_S >= self._hang_s:
                frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - documented so
                hung(turns * BEAT_S, "".join(traceback.format_stack(frame)))
                return
