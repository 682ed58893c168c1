"""The failure point is walked through a call, until nothing is left that can fail."""

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from stn_server.batching.devices import EngineRunner
from stn_server.events import Events, Stage
from support.bad_requests import BASES
from support.faulty import NthStage
from support.harness import METHOD_PREFIX, assert_nothing_left, outcome_of, serving

WALKED = {name: make().SerializeToString() for name, make in BASES.items()}


async def calls(channel, method, count=3):
    """Some calls at once; how each of them ended."""
    warp = channel.unary_unary(METHOD_PREFIX + method)
    return await asyncio.gather(
        *(outcome_of(warp(WALKED[method], timeout=30)) for _ in range(count))
    )


async def play(method, faults):
    """Calls under faults, then one without; checks what must hold after any fault."""
    runner = EngineRunner(events=Events(faults))
    with contextlib.closing(runner):
        async with (
            serving(runner, faults) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            outcomes = await calls(channel, method)
            stages = list(faults.stages)
            faults.heal()
            (after,) = await calls(channel, method, count=1)
            assert isinstance(after, bytes), "the next call works"
            await service.batcher.drain()
            await service.idle()
            assert_nothing_left(service.batcher)
            return outcomes, stages


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("method", WALKED)
def test_a_fault_anywhere_leaves_nothing_behind(method, forever):
    """Each call has one outcome, the fault stays inside, and the next call works."""
    number, failed = 0, set()
    while True:
        number += 1
        outcomes, stages = asyncio.run(play(method, NthStage(number, forever=forever)))
        failures = [outcome for outcome in outcomes if not isinstance(outcome, bytes)]
        for failure in failures:
            assert failure.code() is grpc.StatusCode.INTERNAL
            assert "secret" not in failure.details()
        if len(stages) < number:
            break
        failed.add(stages[number - 1])
        assert failures or not forever
    assert failures == [], "untouched"
    assert failed == set(Stage), "every stage was walked over"
