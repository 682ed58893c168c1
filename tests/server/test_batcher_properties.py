"""The asyncio shell under random arrivals, deadlines, cancellations and failures."""

import asyncio
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from stn_server.batching.work import Finished
from stn_server.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DrainingError,
    OverloadedError,
)
from support.clock import run_in_virtual_time
from support.fakes import Recorder, echo
from support.harness import assert_nothing_left, make_batcher, outcome_of, submit

CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 6),
            "spec": st.sampled_from(["a", "b"]),
            "size_bytes": st.integers(1, 60),
            "patience": st.one_of(st.just(math.inf), st.integers(0, 5)),
            "cancelled_after": st.one_of(st.none(), st.integers(0, 5)),
        }
    ),
    max_size=15,
)
BATCHES = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=150)
@given(calls=CALLS, batches=BATCHES, drain_at=st.integers(0, 12))
def test_every_submit_ends_exactly_once(calls, batches, drain_at):
    """Under random arrivals, deadlines, cancellations, failures and a drain, nothing is left."""
    outcomes = run_in_virtual_time(play(calls, batches, drain_at))
    kinds = (
        Finished,
        asyncio.CancelledError,
        BatchFailedError,
        DeadlineExceededError,
        DrainingError,
        OverloadedError,
    )
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, kinds)
        if isinstance(outcome, Finished):
            assert outcome.result == number


async def play(calls, batches, drain_at):
    """Plays a script in virtual time; returns how every call ended."""
    loop = asyncio.get_running_loop()
    turns = iter(batches * (len(calls) + 1))

    class ScriptedRunner:
        async def run(self, batch):
            duration_s, broken = next(turns)
            await asyncio.sleep(duration_s)
            if broken:
                raise RuntimeError("broken")
            return echo(batch)

        def run_inline(self, batch):
            """Half of what takes no time is not worth a task."""
            if batch.items[0].number % 2:
                return None
            _, broken = next(turns)
            if broken:
                raise RuntimeError("broken")
            return echo(batch)

    recorder = Recorder()
    batcher = make_batcher(
        ScriptedRunner(),
        recorder,
        max_admitted_items=6,
        max_admitted_bytes=150,
    )

    async def one(number, call):
        await asyncio.sleep(call["at"])
        deadline = loop.time() + call["patience"]
        size = {"spec": call["spec"], "size_bytes": call["size_bytes"]}
        task = asyncio.create_task(submit(batcher, number, deadline=deadline, **size))
        if call["cancelled_after"] is not None:
            loop.call_later(call["cancelled_after"], task.cancel)
        return await outcome_of(task)

    tasks = [asyncio.create_task(one(number, call)) for number, call in enumerate(calls)]
    await asyncio.sleep(drain_at)
    await batcher.drain()
    assert_nothing_left(batcher)
    outcomes = await asyncio.gather(*tasks)
    counts = batcher.statistics()
    counted = counts.finished_items + counts.failed_items + counts.abandoned_items
    never_begun = [o for c, o in zip(calls, outcomes, strict=True) if c["cancelled_after"] == 0]
    assert counted + counts.refused_items <= len(calls)
    assert counted + counts.refused_items >= len(calls) - len(never_begun)
    refused = [o for o in outcomes if isinstance(o, OverloadedError | DrainingError)]
    assert len(refused) == counts.refused_items
    assert counts.abandoned_items == recorder.abandoned
    assert_nothing_left(batcher)
    return outcomes
