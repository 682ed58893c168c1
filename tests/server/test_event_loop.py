"""How late the event loop is, what waits for it in gRPC, and what is told when it hangs."""

import asyncio
import gc
import queue
import threading

import grpc
import grpc.aio
import pytest

from stn_server.event_loop import Backlog, LoopMonitor, accepted_calls
from stn_server.events import Events, Listener
from stn_server.tuning import BEAT_S, QUIET_LOOKS


class Accepting:
    """A backlog of a gRPC that accepts what the test says."""

    def __init__(self):
        self.calls = 0
        self.backlog = Backlog()
        self.backlog.watch(lambda: self.calls)

    def look(self, now, *, accepted, begun, is_turning=True):
        """The wait that a look at this instant finds."""
        self.calls, self.backlog.begun = accepted, begun
        self.backlog.look(now, is_turning=is_turning)
        return self.backlog.wait_s


def test_a_call_has_waited_since_gRPC_had_accepted_as_many():  # noqa: N802 - gRPC's name
    """400 at the instant 0, of which 100 a second begin: the last ones wait four seconds."""
    accepting = Accepting()
    assert accepting.look(-0.0, accepted=0, begun=0) == 0
    found = [accepting.look(0.01, accepted=400, begun=0)]
    found += [accepting.look(t, accepted=400, begun=100 * t) for t in (1, 2, 3)]
    assert found == pytest.approx([0.01, 1.0, 2.0, 3.0], abs=0.01)
    assert accepting.backlog.pending() == 100
    assert accepting.look(4.0, accepted=400, begun=400) == 0
    assert accepting.backlog.pending() == 0


def test_between_two_looks_calls_have_come_evenly():
    """100 a second come and 50 a second begin: who begins at the instant t came at t / 2."""
    accepting = Accepting()
    waits = [accepting.look(t, accepted=100 * t, begun=50 * t) for t in range(9)]
    assert waits == pytest.approx([t / 2 for t in range(9)])


def test_calls_that_others_begin_do_not_wait_for_ever():
    """Reflection counts nothing here; once nothing has moved for a second, nothing waits."""
    accepting = Accepting()
    for turn in range(QUIET_LOOKS + 1):
        assert accepting.backlog.pending() == (3 if turn else 0)
        accepting.look(turn * BEAT_S, accepted=3, begun=0)
    assert accepting.backlog.pending() == 0
    assert accepting.look(9.0, accepted=4, begun=0) > 0
    assert accepting.backlog.pending() == 1
    assert accepting.look(10.0, accepted=4, begun=1) == 0


def test_calls_of_an_event_loop_that_stands_still_wait():
    """However long nothing moves."""
    accepting = Accepting()
    for turn in range(5 * QUIET_LOOKS):
        accepting.look(turn * BEAT_S, accepted=3, begun=0, is_turning=False)
    assert accepting.backlog.pending() == 3
    assert accepting.backlog.wait_s == pytest.approx((5 * QUIET_LOOKS - 1) * BEAT_S)


def test_gRPC_counts_calls_before_the_event_loop_sees_them():  # noqa: N802 - gRPC's name
    """Each server its own, with another one beside it; those of a server that is gone, too."""

    async def scenario():
        other, accepted_there = accepted_calls(grpc.aio.server)
        server, accepted = accepted_calls(grpc.aio.server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        arrived = threading.Event()

        def call_and_wait():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                calls = [channel.unary_unary("/a/b").future(b"") for _ in range(5)]
                while accepted() < len(calls):
                    pass
                arrived.set()

        caller = threading.Thread(target=call_and_wait)
        caller.start()
        arrived.wait()  # the event loop stands still meanwhile
        seen = accepted(), accepted_there()
        await asyncio.to_thread(caller.join)
        await server.stop(None)
        await other.stop(None)
        del server, other
        gc.collect()
        return *seen, accepted()

    assert asyncio.run(scenario()) == (5, 0, 5)


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
        monitor = LoopMonitor(Backlog(), Events(lags), hang_s=0)
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
        monitor = LoopMonitor(Backlog(), Events(), hang_s=2 * BEAT_S)
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
        monitor = LoopMonitor(Backlog(), Events(lags), hang_s=2 * BEAT_S)
        monitor.start(lambda still_s, stack: told.put((still_s, stack)))
        for _ in range(6):
            await lags.found.get()
        monitor.stop()
        return told.empty()

    assert asyncio.run(scenario())
