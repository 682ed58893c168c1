"""The two wishes: to stop, and to stop now."""

import asyncio
import os
import signal

import pytest
import uvloop

from stn_server import signals
from stn_server.lifecycle import Shutdown
from support.clock import run_in_virtual_time


def now():
    return asyncio.get_running_loop().time()


def test_a_pause_takes_its_time():
    """Nobody is in a hurry."""

    async def scenario():
        shutdown = Shutdown()
        shutdown.ask()
        await shutdown.asked()
        await shutdown.pause(7.0)
        assert now() == 7.0

    run_in_virtual_time(scenario())


def test_a_second_wish_ends_a_pause():
    """At its instant, and every later wait as well."""

    async def scenario():
        shutdown = Shutdown()
        shutdown.ask()
        asyncio.get_running_loop().call_at(2.0, shutdown.ask)
        await shutdown.pause(7.0)
        assert now() == 2.0
        await shutdown.pause(7.0)
        await shutdown.wait_for(asyncio.create_task(asyncio.sleep(9.0)), 7.0)
        assert now() == 2.0

    run_in_virtual_time(scenario())


def test_the_first_wish_is_no_hurry():
    """It is what `asked` waits for, and nothing else."""

    async def scenario():
        shutdown = Shutdown()
        asyncio.get_running_loop().call_at(3.0, shutdown.ask)
        await shutdown.pause(1.0)
        await shutdown.asked()
        assert now() == 3.0
        await shutdown.pause(1.0)
        assert now() == 4.0

    run_in_virtual_time(scenario())


def test_waiting_for_a_task_ends_with_it():
    """The rest of the time is not waited for."""

    async def scenario():
        task = asyncio.create_task(asyncio.sleep(2.0))
        await Shutdown().wait_for(task, 30.0)
        assert task.done()
        assert now() == 2.0

    run_in_virtual_time(scenario())


def test_waiting_for_a_task_ends_with_the_time():
    """The task is left alone; what becomes of it is for the caller to say."""

    async def scenario():
        task = asyncio.create_task(asyncio.sleep(9.0))
        await Shutdown().wait_for(task, 4.0)
        assert now() == 4.0
        assert not task.done()
        await task
        assert now() == 9.0

    run_in_virtual_time(scenario())


def test_no_time_at_all_still_looks_at_the_task():
    """A grace of 0 s lets a finished task count as finished."""

    async def scenario():
        shutdown = Shutdown()
        done = asyncio.create_task(asyncio.sleep(0))
        await shutdown.wait_for(done, 0.0)
        await shutdown.pause(0.0)
        assert now() == 0.0

    run_in_virtual_time(scenario())


def test_what_is_over_before_anybody_asks_was_in_time():
    """As a start that is done before the first signal."""

    async def scenario():
        shutdown = Shutdown()
        task = asyncio.create_task(asyncio.sleep(2.0))
        assert not await shutdown.asked_before(task)
        assert now() == 2.0

    run_in_virtual_time(scenario())


def test_a_wish_need_not_wait_for_what_goes_on():
    """What becomes of the task is for the caller to say."""

    async def scenario():
        shutdown = Shutdown()
        task = asyncio.create_task(asyncio.sleep(9.0))
        asyncio.get_running_loop().call_at(2.0, shutdown.ask)
        assert await shutdown.asked_before(task)
        assert now() == 2.0
        assert not task.done()
        await task

    run_in_virtual_time(scenario())


def test_nothing_is_left_behind():
    """Every task that a wait makes is over with it."""

    async def scenario():
        shutdown = Shutdown()
        await shutdown.pause(1.0)
        await shutdown.wait_for(asyncio.create_task(asyncio.sleep(0.5)), 1.0)
        await shutdown.asked_before(asyncio.create_task(asyncio.sleep(0.5)))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_in_virtual_time(scenario())


@pytest.fixture
def handlers():
    """Those of the process, put back afterwards."""
    numbers = (*signals.ENDING, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_signals_are_wishes(run):
    """SIGTERM and SIGINT count alike: the first asks, the second hurries."""

    async def scenario():
        shutdown = Shutdown()
        shutdown.listen()
        os.kill(os.getpid(), signal.SIGINT)
        await shutdown.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(shutdown.pause(3600.0), timeout=60.0)
        return "hurried"

    assert run(scenario()) == "hurried"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_signal_can_call_something_again_and_again(run):
    """Also while the loop waits for nothing else."""

    async def scenario():
        calls = asyncio.Semaphore(0)
        signals.call(signal.SIGHUP, calls.release, asyncio.get_running_loop())
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.wait_for(calls.acquire(), timeout=60.0)
        return "called"

    assert run(scenario()) == "called"


def test_the_end_of_a_pipe_asks_to_stop_now():
    """What is written to it is not its end; a lame duck and a grace are cut short."""

    async def scenario():
        shutdown = Shutdown()
        server_end, owner_end = os.pipe()
        shutdown.ask_at_end_of(server_end)
        os.write(owner_end, b"anything")
        os.close(owner_end)
        async with asyncio.timeout(10):
            await shutdown.asked()
            await shutdown.pause(3600)
        os.close(server_end)

    asyncio.run(scenario())
