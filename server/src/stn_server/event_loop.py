"""Measures whether the event loop keeps up: its lateness, gRPC's backlog, and hangs.

Everything the server does but computing goes through one event loop. When that has no time, calls
wait where no queue of ours sees them: gRPC has accepted them and the server has not begun them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # channelz, as its package asks it

from stn_server.events import Events
from stn_server.tuning import BEAT_S, QUIET_LOOKS

Hung = Callable[[float, str], None]
"""Receives for how many seconds the event loop has stood still, and the stack where it stands."""


class Backlog:
    """Calls that gRPC has accepted and that the server has not begun.

    gRPC counts calls when their headers come in, in threads of its own. It hands them over in that
    order, so the call that begins now came in when the count was what it is of calls begun.

    Concurrency: `begun` and `wait_s` belong to the event loop, which adds to the one and reads the
    other; everything else, any thread.
    """

    def __init__(self) -> None:
        self.begun = 0
        """Counts the calls that the server has begun."""
        self.wait_s = 0.0
        """How long the call that begins now has waited, in seconds, as of the last look."""
        self._accepted: Callable[[], int] = lambda: 0
        self._elsewhere = 0
        """Counts calls that other handlers have begun, as reflection."""
        self._looks: deque[tuple[float, int]] = deque()
        """Instants with the number of calls accepted by then, as far back as the oldest unbegun
        call."""
        self._before = 0, 0
        self._quiet = 0

    def watch(self, accepted: Callable[[], int]) -> None:
        """Starts to count the calls that gRPC accepts.

        Args:
            accepted: Returns how many calls gRPC has accepted since the start, in any thread.
        """
        self._accepted = accepted

    def pending(self) -> int:
        """Counts the calls that gRPC has accepted and the server has not begun."""
        return max(0, self._accepted() - self.begun - self._elsewhere)

    def look(self, now: float, *, is_turning: bool) -> None:
        """Measures anew how long calls wait before they begin.

        Args:
            now: The present instant, in seconds.
            is_turning: Whether the event loop has had a turn since the last look.
        """
        accepted, begun = self._accepted(), self.begun + self._elsewhere
        is_quiet = is_turning and (accepted, begun) == self._before
        # Quiet: the loop has run, yet no call came or began since the last look.
        self._quiet = self._quiet + 1 if is_quiet else 0
        if self._quiet >= QUIET_LOOKS:  # what has time and begins nothing has nothing to begin
            # Calls of other handlers, whose begin is never told.
            self._elsewhere += accepted - begun
            begun = accepted
        self._before = accepted, begun
        if len(self._looks) > 1 and self._looks[-2][1] == accepted:  # as long as nothing comes
            self._looks.pop()
        self._looks.append((now, accepted))
        # One look from before the oldest waiting call stays, to interpolate from.
        while len(self._looks) > 1 and self._looks[1][1] <= begun:
            self._looks.popleft()
        self.wait_s = now - self._arrival(begun) if accepted > begun else 0.0

    def _arrival(self, number: int) -> float:
        """Estimates when the call of this number was accepted, between the two nearest looks."""
        for (earlier, fewer), (later, more) in pairwise(self._looks):
            if fewer <= number < more:
                return earlier + (later - earlier) * (number - fewer) / (more - fewer)
        return self._looks[0][0]


def accepted_calls(
    make: Callable[[], grpc.aio.Server],
) -> tuple[grpc.aio.Server, Callable[[], int]]:
    """Makes a server, and a function that counts its accepted calls in any thread.

    Args:
        make: Makes the server.
    """
    # Only channelz tells how many calls were accepted, by the number of a server, which gRPC does
    # not tell: it is the one that is new after `make`.
    before = set(_servers())
    server = make()
    (number,) = set(_servers()) - before
    last = 0

    def accepted() -> int:
        nonlocal last
        with suppress(ValueError):  # the server has been stopped, and is gone
            data = json.loads(cygrpc.channelz_get_server(number))["server"]["data"]
            last = int(data.get("callsStarted", 0))
        return last

    return server, accepted


def _servers() -> list[int]:
    """Returns gRPC's numbers of all gRPC servers of this process."""
    numbers: list[int] = []
    while True:
        found = json.loads(cygrpc.channelz_get_servers(numbers[-1] + 1 if numbers else 0))
        numbers += [int(server["ref"]["serverId"]) for server in found.get("server", ())]
        if found.get("end") or not found.get("server"):
            return numbers


class LoopMonitor:
    """Measures how late the event loop is, and watches from a thread whether it runs at all.

    Args:
        backlog: Measured at the same interval.
        events: Listeners of the lag of the event loop.
        hang_s: How long it may stand still before it counts as hung; 0: for ever.

    Concurrency: `start` and `stop` belong to the event loop; `still_s`, any thread.
    """

    def __init__(self, backlog: Backlog, events: Events, hang_s: float) -> None:
        self._backlog = backlog
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
            self._backlog.look(time.perf_counter(), is_turning=is_turning)
            if self._hang_s and turns * BEAT_S >= self._hang_s:
                frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - documented so
                hung(turns * BEAT_S, "".join(traceback.format_stack(frame)))
                return
