"""Coroutines that begin at once: as tasks, but for the turn of the loop that they wait."""

import asyncio
from contextvars import ContextVar

import pytest
import uvloop

from stn_server.eager import begun

name: ContextVar[str] = ContextVar("name", default="nobody")
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@LOOPS
def test_what_waits_for_nothing_is_through_at_once(run):
    """No task is made."""
    seen = []

    async def work():
        done = asyncio.get_running_loop().create_future()
        done.set_result(1)
        seen.append(await done)

    async def scenario():
        assert begun(work(), asyncio.get_running_loop()) is None
        assert seen == [1]

    run(scenario())


@LOOPS
def test_what_waits_goes_on_in_a_task(run):
    """Results and errors of what it waits for arrive, and its context is its own."""
    seen = []

    async def work(awaited):
        name.set("caller")
        for one in awaited:
            try:
                seen.append(await one)
            except KeyError as error:
                seen.append(error.args[0])
            await asyncio.sleep(0)
        seen.append(name.get())

    async def scenario():
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        task = begun(work([first, second]), loop)
        assert name.get() == "nobody"
        loop.call_soon(first.set_result, 1)
        loop.call_later(0, second.set_exception, KeyError("lost"))
        await task
        assert seen == [1, "lost", "caller"]

    run(scenario())


@LOOPS
def test_a_task_that_was_begun_can_be_cancelled(run):
    """The coroutine is told, and may clean up."""
    seen = []

    async def work():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append(asyncio.current_task().cancelling())

    async def scenario():
        task = begun(work(), asyncio.get_running_loop())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [1]

    run(scenario())


@LOOPS
def test_a_task_that_is_cancelled_before_its_first_step_tells_the_coroutine(run):
    """So is what it waits for, as by any other cancellation."""
    seen = []

    async def work(awaited):
        try:
            await awaited
        except asyncio.CancelledError:
            seen.append(awaited.cancelled())
            raise

    async def scenario():
        loop = asyncio.get_running_loop()
        task = begun(work(loop.create_future()), loop)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [True]

    run(scenario())


@LOOPS
def test_a_task_that_is_cancelled_before_its_first_step_may_wait_on(run):
    """What is left to do, as for memory that is still written, is done before it ends."""
    seen = []

    async def work(first, second):
        try:
            await first
        except asyncio.CancelledError:
            seen.append(await second)
            raise

    async def scenario():
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        task = begun(work(first, second), loop)
        task.cancel()
        loop.call_later(0, second.set_result, "written")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["written"]

    run(scenario())


@LOOPS
def test_an_error_is_told_to_the_loop(run):
    """Whoever began it goes on."""
    told = []

    async def work():
        raise KeyError("lost")

    async def scenario():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
        assert begun(work(), loop) is None
        assert [type(error) for error in told] == [KeyError]

    run(scenario())
