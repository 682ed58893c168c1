"""How late the event loop is, what waits for it, and what is told when it hangs."""

import asyncio
import queue
import threading
import time

from stn_server.event_loop import Backlog, LoopMonitor
from stn_server.events import Events, Listener
from stn_server.tuning import BEAT_S, BEGIN_S


def test_calls_begin_in_their_order_a_slice_at_a_time():
    """Between two slices the loop has a turn for all else; what waits is counted, with its age."""

    async def scenario():
        backlog, begun, seen = Backlog(), [], []

        def begin(call):
            begun.append(call)
            threading.Event().wait(2 * BEGIN_S)  # longer than a slice

        arrived = time.perf_counter()
        backlog.add(arrived - 5, begin, ["a", "b"])
        backlog.add(arrived, begin, ["c"])
        while backlog.pending():
            seen.append((list(begun), backlog.pending(), backlog.age_s() >= 5))
            await asyncio.sleep(0)
        return begun, seen, backlog.age_s()

    begun, seen, age_s = asyncio.run(scenario())
    assert begun == ["a", "b", "c"]
    assert seen == [(["a"], 2, True), (["a", "b"], 1, False)]
    assert age_s == 0


def test_calls_that_begin_at_once_need_no_turn():
    """As nearly all do: they are answered before anything else is read."""

    async def scenario():
        backlog, begun = Backlog(), []
        backlog.add(time.perf_counter(), begun.append, range(3))
        return begun, backlog.pending()

    assert asyncio.run(scenario()) == ([0, 1, 2], 0)


class Lags(Listener):
    """Keeps how late the event loop was."""

    def __init__(self):
        self.found = asyncio.Queue()

    def loop_lagged(self, late_s):
        self.found.put_nowait(late_s)


def test_the_event_loop_is_as_late_as_it_was_held_up():
    """What is due at the end of a beat is done when a longer piece of work ends."""

    async def scenario():
        lags = Lags()
        monitor = LoopMonitor(Events(lags), hang_s=0)
        monitor.start(lambda _still_s, _stack: None)
        threading.Event().wait(3 * BEAT_S)  # of the event loop's own thread
        still_s = monitor.still_s()
        late_s = await lags.found.get()
        on_time_s = await lags.found.get()
        monitor.stop()
        return still_s, late_s, on_time_s

    still_s, late_s, on_time_s = asyncio.run(scenario())
    assert 2 * BEAT_S <= still_s <= late_s
    assert on_time_s < BEAT_S


def test_who_hangs_is_told_with_its_stack():
    """In a thread, as the event loop cannot; once."""

    async def scenario():
        told = queue.Queue()
        monitor = LoopMonitor(Events(), hang_s=2 * BEAT_S)
        monitor.start(lambda still_s, stack: told.put((still_s, stack)))
        found = told.get()  # hangs until it is told
        monitor.stop()
        return found, told.empty()

    (still_s, stack), is_last = asyncio.run(scenario())
    assert still_s >= 2 * BEAT_S
    assert "found = told.get()" in stack
    assert is_last


def test_an_event_loop_that_turns_does_not_hang():
    """Its monitor sees every beat and tells nothing until it is stopped."""

    async def scenario():
        told, lags = queue.Queue(), Lags()
        monitor = LoopMonitor(Events(lags), hang_s=2 * BEAT_S)
        monitor.start(lambda still_s, stack: told.put((still_s, stack)))
        for _ in range(6):
            await lags.found.get()
        monitor.stop()
        return told.empty()

    assert asyncio.run(scenario())
