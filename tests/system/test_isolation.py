"""What one caller sends is nobody else's trouble, although it shares a batch with them."""

import asyncio
import contextlib

import grpc
import grpc.aio
import numpy as np

from stn_client import Affine
from stn_client._calls import warp
from stn_proto import split
from support.bad_requests import ramp, theta
from support.harness import METHOD_PREFIX, HeldEngine, outcome_of, serving

NEIGHBOURS = 63
POISON_SIZE = (13, 13)


class PoisonedEngine(HeldEngine):
    """The engine, of which a problem of the poisonous size is none at all when it reaches it."""

    def _compute(self, batch):
        batch.problems = [
            None if job.problem.output_size == POISON_SIZE else job for job in batch.problems
        ]
        return super()._compute(batch)


def request(number, size=(6, 7), value=None):
    """The bytes of a warp; all of them differ."""
    feature_map = ramp(1, 3, 4, 5) + number if value is None else np.full((1, 3, 4, 5), value, "f4")
    return warp(feature_map.astype("f4"), Affine(theta(1)), size, {}).request


async def together(messages, **limits):
    """Sends messages so that they gather behind one that runs; their outcomes, and the batches."""
    runner = PoisonedEngine()
    with contextlib.closing(runner):
        async with (
            serving(runner, max_admitted_items=200, **limits) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            call = channel.unary_unary(METHOD_PREFIX + "Warp")
            first = asyncio.create_task(outcome_of(call(request(0))))
            await service.admitted(1)
            calls = [asyncio.create_task(outcome_of(call(message))) for message in messages]
            await service.admitted(len(messages))
            runner.gate.set()
            outcomes = await asyncio.gather(*calls)
            await first
            return outcomes, runner.batches[1:]


LIMITS = {"max_batch_bytes": 10**6, "max_batch_samples": 10**6}


def payload_of(reply):
    """A reply without its timing."""
    _, (payload,) = split(reply)
    return bytes(payload)


def play(odd):
    """63 calls beside an odd one, and the same without; outcomes and batches of the first."""
    neighbours = [request(number) for number in range(NEIGHBOURS)]
    alone, _ = asyncio.run(together(neighbours, **LIMITS))
    middle = NEIGHBOURS // 2
    outcomes, batches = asyncio.run(
        together([*neighbours[:middle], odd, *neighbours[middle:]], **LIMITS)
    )
    outcome = outcomes.pop(middle)
    for beside, without in zip(outcomes, alone, strict=True):
        assert payload_of(beside) == payload_of(without)
    return outcome, batches


def test_a_poisoned_item_fails_alone():
    """One of 64 cannot be computed; 63 get the bits that they would get without it."""
    outcome, batches = play(request(0, size=POISON_SIZE))
    assert batches == [NEIGHBOURS + 1]
    assert outcome.code() is grpc.StatusCode.INTERNAL


def test_an_oversized_item_runs_alone():
    """It fills no batch that others wait for, and is served as well."""
    outcome, batches = play(request(0, size=(500, 500)))
    assert isinstance(outcome, bytes)
    assert batches == [NEIGHBOURS // 2, 1, NEIGHBOURS - NEIGHBOURS // 2]


def test_numbers_that_are_none_stay_where_they_are():
    """A map of NaN is warped to NaN; its neighbours do not notice."""
    outcome, batches = play(request(0, value=np.nan))
    assert batches == [NEIGHBOURS + 1]
    assert np.isnan(np.frombuffer(payload_of(outcome), np.float32)).any()
