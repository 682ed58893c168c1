"""The failure point is walked through a call, until nothing is left that can fail."""

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from stn_proto.v1.many_pb2 import Status
from stn_server.batching.devices import EngineRunner
from stn_server.events import Events, Stage
from support.bad_requests import BASES
from support.faulty import NthStage
from support.harness import METHOD_PREFIX, assert_nothing_left, outcome_of, serving
from support.many import compute_many, replies

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


async def play_many(faults):
    """As `play`, with the calls of one message; how they ended, or the message if it failed."""
    runner = EngineRunner(events=Events(faults))
    message = compute_many(*((method, make()) for method, make in BASES.items()), *SAME)
    with contextlib.closing(runner):
        async with (
            serving(runner, faults) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            ask = channel.unary_unary(METHOD_PREFIX + "ComputeMany")
            outcome = await outcome_of(ask(message.SerializeToString(), timeout=30))
            stages = list(faults.stages)
            faults.heal()
            after = replies(await ask(message.SerializeToString(), timeout=30))
            assert not any(isinstance(one, Status) for one in after), "the next message works"
            await service.batcher.drain()
            await service.idle()
            assert_nothing_left(service.batcher)
            return replies(outcome) if isinstance(outcome, bytes) else [outcome], stages


SAME = [("Warp", BASES["Warp"]())] * 2


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_a_fault_anywhere_fails_single_calls_of_a_message_and_leaves_nothing_behind(forever):
    """A fault at a stage of one call is its own; only one at the message ends the message."""
    number, failed = 0, set()
    while True:
        number += 1
        outcomes, stages = asyncio.run(play_many(NthStage(number, forever=forever)))
        failures = [one for one in outcomes if isinstance(one, Status | grpc.RpcError)]
        for failure in failures:
            if isinstance(failure, Status):
                assert (failure.code, "secret" in failure.message) == (13, False)
            else:
                assert failure.code() is grpc.StatusCode.INTERNAL
                assert "secret" not in failure.details()
        if len(stages) < number:
            break
        failed.add(stages[number - 1])
        if not forever:
            assert len(failures) <= 1, "neighbours are answered"
        else:
            assert failures
    assert failures == [], "untouched"
    assert failed == set(Stage), "every stage was walked over"
