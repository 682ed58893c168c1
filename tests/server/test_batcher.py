"""The asyncio shell: every submit ends exactly once, whatever happens around it."""

import asyncio
import math
import weakref

import pytest

from stn_server.batching.work import BatchKey, Cost, Finished, Operation, Wanted
from stn_server.errors import (
    BatchFailedError,
    BrokenError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceLostError,
    DrainingError,
    OverloadedError,
)
from stn_server.events import Listener, Stage
from stn_server.tuning import SAFETY
from support.clock import run_in_virtual_time
from support.fakes import FakeContext, FakeRunner, PromptRunner, Recorder, echo
from support.harness import (
    as_facts,
    assert_nothing_left,
    in_virtual_time,
    make_batcher,
    outcome_of,
    submit,
)


async def start(batcher, *problems, **options):
    """Submits problems as tasks, in order; returns when they wait or run."""
    tasks = [asyncio.create_task(submit(batcher, problem, **options)) for problem in problems]
    await asyncio.sleep(0)  # a turn of the loop, no time
    return tasks


async def occupied(runner, batcher):
    """Keeps the lane busy; returns the task whose batch does."""
    (task,) = await start(batcher, "busy")
    await runner.begun(1)
    return task


@in_virtual_time
async def test_a_result_carries_where_the_time_went():
    """Waiting and computing are measured apart; the batch is counted."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    loop = asyncio.get_running_loop()
    busy = await occupied(runner, batcher)
    tasks = await start(batcher, "a", "b")
    loop.call_later(2.0, runner.release)
    loop.call_later(5.0, runner.release)
    assert await busy == Finished("busy", 0.0, 2.0, 1)
    assert await asyncio.gather(*tasks) == [
        Finished("a", 2.0, 3.0, 2),
        Finished("b", 2.0, 3.0, 2),
    ]
    assert_nothing_left(batcher)


@in_virtual_time
async def test_work_gathers_while_a_batch_runs():
    """An idle server takes a call at once; what comes meanwhile shares the next launch."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    tasks = [await occupied(runner, batcher), *await start(batcher, 1, 2, 3)]
    runner.release()
    await runner.begun(2)
    runner.release()
    await asyncio.gather(*tasks)
    assert runner.batches == [["busy"], [1, 2, 3]]


@in_virtual_time
async def test_the_failure_of_one_item_is_its_own():
    """An exception as outcome reaches its waiter; neighbours get their results."""
    wrong = ValueError("wrong")
    runner = FakeRunner(lambda batch: [wrong if p == 2 else p for p in echo(batch)], held=True)
    batcher = make_batcher(runner)
    tasks = [await occupied(runner, batcher), *await start(batcher, 1, 2, 3)]
    runner.release_all()
    _, first, second, third = [await outcome_of(task) for task in tasks]
    assert (first.result, second, third.result) == (1, wrong, 3)
    assert as_facts(batcher.statistics()) == {
        "finished_items": 3,
        "failed_items": 1,
        "batches": 2,
        "largest_batch_items": 3,
    }


@in_virtual_time
async def test_a_failing_runner_fails_every_item_of_the_batch():
    """Each waiter gets an error of its own, whose cause is what the runner raised."""
    broken = RuntimeError("device lost")

    def answer(_batch):
        raise broken

    runner = FakeRunner(answer, held=True)
    batcher = make_batcher(runner)
    tasks = [await occupied(runner, batcher), *await start(batcher, 1, 2)]
    runner.release_all()
    errors = [await outcome_of(task) for task in tasks]
    assert [type(error) for error in errors] == [BatchFailedError] * 3
    assert [error.batch_items for error in errors] == [1, 2, 2]
    assert all(error.__cause__ is broken for error in errors)
    assert len(set(map(id, errors))) == 3
    assert_nothing_left(batcher)


@pytest.mark.parametrize("outcomes", [[], ["one", "too many"]], ids=len)
def test_a_wrong_number_of_outcomes_is_a_failed_batch(outcomes):
    """A runner that breaks its promise leaves nobody waiting."""

    async def scenario():
        batcher = make_batcher(FakeRunner(lambda _batch: outcomes))
        with pytest.raises(BatchFailedError, match="expected results for 1 items, got a failure"):
            await submit(batcher, 1)
        assert batcher.statistics().failed_items == 1
        assert_nothing_left(batcher)

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_the_server_works_on_after_a_failed_batch():
    """A failure belongs to its batch, not to the batcher."""
    answers = iter([[], ["good"]])
    batcher = make_batcher(FakeRunner(lambda _batch: next(answers)))
    first = await outcome_of(submit(batcher, 1))
    assert isinstance(first, BatchFailedError)
    assert (await submit(batcher, 2)).result == "good"


@in_virtual_time
async def test_a_cancelled_call_that_waits_is_never_run():
    """It is removed, counted and its bytes are given back at once."""
    runner, recorder = FakeRunner(held=True), Recorder()
    batcher = make_batcher(runner, recorder)
    busy = await occupied(runner, batcher)
    gone, stays = await start(batcher, "gone", "stays")
    held = batcher.statistics
    gone.cancel()
    assert isinstance(await outcome_of(gone), asyncio.CancelledError)
    assert (held().queued_items, held().admitted_bytes, held().abandoned_items) == (1, 20, 1)
    runner.release_all()
    assert [(await task).result for task in (busy, stays)] == ["busy", "stays"]
    assert runner.batches == [["busy"], ["stays"]]
    assert recorder.abandoned == 1
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_cancelled_call_that_runs_disturbs_nobody():
    """Its result is dropped, its neighbours are answered, and drain waits for the device."""
    runner, recorder = FakeRunner(held=True), Recorder()
    batcher = make_batcher(runner, recorder)
    busy = await occupied(runner, batcher)
    gone, stays = await start(batcher, "gone", "stays")
    runner.release()
    await runner.begun(2)
    gone.cancel()
    assert isinstance(await outcome_of(gone), asyncio.CancelledError)
    draining = asyncio.create_task(batcher.drain())
    runner.release()
    assert (await stays).result == "stays"
    await asyncio.gather(busy, draining)
    assert runner.batches == [["busy"], ["gone", "stays"]]
    assert recorder.abandoned == 0
    assert_nothing_left(batcher)


@in_virtual_time
async def test_drain_waits_for_a_batch_that_nobody_waits_for():
    """The device is busy until the launch ends, whoever has gone."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    busy = await occupied(runner, batcher)
    busy.cancel()
    await outcome_of(busy)
    draining = asyncio.create_task(batcher.drain())
    asyncio.get_running_loop().call_later(3.0, runner.release)
    await draining
    assert asyncio.get_running_loop().time() == 3.0


@in_virtual_time
async def test_a_deadline_ends_the_wait_at_its_instant():
    """Not when a device becomes free, and the item never runs."""
    runner, recorder = FakeRunner(held=True), Recorder()
    batcher = make_batcher(runner, recorder)
    busy = await occupied(runner, batcher)
    with pytest.raises(DeadlineExceededError, match="expected a result in time, got none while"):
        await submit(batcher, "late", deadline=4.5)
    assert asyncio.get_running_loop().time() == 4.5
    runner.release_all()
    await busy
    assert runner.batches == [["busy"]]
    assert (recorder.abandoned, batcher.statistics().abandoned_items) == (1, 1)
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_deadline_in_the_past_costs_no_device_time():
    """A call that arrives expired is answered at once, on an idle server too."""
    runner = FakeRunner()
    batcher = make_batcher(runner)
    with pytest.raises(DeadlineExceededError, match="deadline"):
        await submit(batcher, "late", deadline=-1.0)
    assert runner.batches == []
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_deadline_that_passes_while_running_changes_nothing():
    """What has cost device time is answered."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    (task,) = await start(batcher, "slow", deadline=1.0)
    asyncio.get_running_loop().call_later(2.0, runner.release)
    assert (await task).result == "slow"


@pytest.mark.parametrize(
    ("limits", "facts", "text"),
    [
        ({"max_admitted_items": 1}, (1, 2), "expected at most 1 admitted items, got 2"),
        ({"max_admitted_bytes": 15}, (15, 20), "expected at most 15 admitted bytes, got 20"),
    ],
    ids=["items", "bytes"],
)
def test_what_exceeds_the_limits_is_refused_at_once(limits, facts, text):
    """The refusal says limit, actual and when to come again; it takes no place."""

    async def scenario():
        runner, recorder = FakeRunner(held=True), Recorder()
        batcher = make_batcher(runner, recorder, **limits)
        busy = await occupied(runner, batcher)
        with pytest.raises(OverloadedError, match=text) as caught:
            await submit(batcher, "too much")
        assert (caught.value.limit, caught.value.actual) == facts
        assert caught.value.retry_after_s > 0
        runner.release_all()
        await busy
        assert (await submit(batcher, "later")).result == "later"
        assert batcher.statistics().refused_items == 1
        assert_nothing_left(batcher)

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_draining_refuses_new_calls_and_finishes_the_admitted_ones():
    """It returns when the last of them, queued or running, is answered."""
    runner, recorder = FakeRunner(held=True), Recorder()
    batcher = make_batcher(runner, recorder)
    busy = await occupied(runner, batcher)
    (queued,) = await start(batcher, "queued", deadline=math.inf)
    draining = asyncio.create_task(batcher.drain())
    runner.release()
    await runner.begun(2)
    with pytest.raises(DrainingError, match="expected to be serving, got shutdown"):
        await submit(batcher, "new")
    assert not draining.done()
    runner.release()
    await draining
    assert [task.result().result for task in (busy, queued)] == ["busy", "queued"]
    assert batcher.statistics().refused_items == 1
    assert_nothing_left(batcher)


@in_virtual_time
async def test_draining_an_idle_batcher_returns_at_once():
    """There is nothing to wait for, before the first call and after the last."""
    batcher = make_batcher(FakeRunner())
    await submit(batcher, 1)
    await batcher.drain()
    await make_batcher(FakeRunner()).drain()
    assert asyncio.get_running_loop().time() == 0.0


@in_virtual_time
async def test_draining_ends_after_a_refusal_on_an_idle_batcher():
    """A refused call leaves no trace that drain would wait for."""
    batcher = make_batcher(FakeRunner(), max_admitted_bytes=1)
    assert isinstance(await outcome_of(submit(batcher, "large")), OverloadedError)
    await batcher.drain()
    assert_nothing_left(batcher)


@in_virtual_time
async def test_the_queue_age_is_that_of_the_oldest_waiting_call():
    """It grows while nothing happens, and running calls do not count."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    loop = asyncio.get_running_loop()
    ages = []
    busy = await occupied(runner, batcher)
    ages.append(batcher.queue_age_s())
    (queued,) = await start(batcher, "queued")
    for instant in (1.0, 2.5):
        loop.call_at(instant, lambda: ages.append(batcher.queue_age_s()))
    loop.call_at(3.0, runner.release_all)
    await asyncio.gather(busy, queued)
    assert ages == [0.0, 1.0, 2.5]
    assert batcher.queue_age_s() == 0.0


def test_a_cancelled_runner_answers_its_waiters():
    """Whatever ends a batch, its lane is free again and nobody waits for ever."""

    async def scenario():
        def cancelled(_batch):
            raise asyncio.CancelledError

        batcher = make_batcher(FakeRunner(cancelled))
        with pytest.raises(BatchFailedError, match="expected results for 1 items"):
            await submit(batcher, "lost")
        assert_nothing_left(batcher)

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_what_takes_no_time_takes_no_turn_of_the_loop():
    """A batch that is not worth a task is answered before `submit` waits."""
    recorder = Recorder()
    batcher = make_batcher(PromptRunner(), recorder)
    asked = submit(batcher, "small")
    with pytest.raises(StopIteration) as stopped:
        asked.send(None)
    assert stopped.value.value == Finished("small", 0.0, 0.0, 1)
    assert_nothing_left(batcher)
    assert recorder.batches == [(1, [0.0], 0.0)]


@in_virtual_time
async def test_what_follows_a_batch_is_a_task():
    """However many wait: none is computed within another."""
    runner = PromptRunner(tasks={"busy"})
    batcher = make_batcher(runner)
    tasks = await start(batcher, "busy", "a", "b")
    assert await outcome_of(submit(batcher, "late", deadline=-1.0)) is not None
    assert [(await task).result for task in tasks] == ["busy", "a", "b"]
    assert runner.batches == [["busy"], ["a", "b"]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("bug"), BatchFailedError), (DeviceLostError(""), BrokenError)],
)
def test_what_fails_at_once_fails_as_a_batch(error, expected):
    """And is told as one: the call, or the device."""

    def failing(_batch):
        raise error

    async def scenario():
        batcher = make_batcher(PromptRunner(failing))
        assert isinstance(await outcome_of(submit(batcher, "lost")), expected)
        assert_nothing_left(batcher)

    run_in_virtual_time(scenario())


def test_a_listener_that_fails_holds_nobody_up():
    """Waiters are answered before anybody else is told."""

    class Failing(Recorder):
        def batch_ended(self, *told):
            raise RuntimeError(told)

    async def scenario():
        failures = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
        batcher = make_batcher(FakeRunner(), Failing())
        assert (await submit(batcher, "kept")).result == "kept"
        await batcher.drain()
        assert_nothing_left(batcher)

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_a_place_is_taken_until_the_call_is_over():
    """Not only until the batch ends: a reply that nobody reads takes memory as well."""
    batcher = make_batcher(FakeRunner(), max_admitted_items=1)
    call = FakeContext()
    place = batcher.reserve(10, caller="", call=call)
    assert (await submit(batcher, "unread", place=place)).result == "unread"
    assert batcher.statistics().admitted_bytes == 10
    assert isinstance(await outcome_of(submit(batcher, "next")), OverloadedError)
    call.finish()
    assert (await submit(batcher, "next")).result == "next"
    assert_nothing_left(batcher)


class RememberingCall:
    """Keeps its callbacks when it is over, as gRPC's calls do until they are collected."""

    def __init__(self):
        self.callbacks = []

    def add_done_callback(self, callback):
        self.callbacks.append(callback)

    def finish(self):
        for callback in self.callbacks:
            callback(self)


class Message:
    """Can be seen to die."""


@in_virtual_time
async def test_a_call_that_is_over_does_not_hold_its_message():
    """Megabytes would wait for the collector, which looks at numbers of objects only."""
    runner, call, message = FakeRunner(answer=silent), RememberingCall(), Message()
    seen = weakref.ref(message)
    batcher = make_batcher(runner)
    place = batcher.reserve(10, caller="", call=call)
    await submit(batcher, message, place=place)
    del message
    runner.batches.clear()
    call.finish()
    assert seen() is None
    assert_nothing_left(batcher)


def silent(batch):
    """Results that do not hold their problems."""
    return [None] * len(batch.items)


@in_virtual_time
async def test_a_call_that_is_over_early_holds_its_place_while_it_runs():
    """Its callback may come before its cancellation; the device still reads its bytes."""
    runner, call = FakeRunner(held=True), FakeContext()
    batcher = make_batcher(runner)
    place = batcher.reserve(10, caller="", call=call)
    (task,) = await start(batcher, "gone", place=place)
    await runner.begun(1)
    call.finish()
    task.cancel()
    await outcome_of(task)
    assert batcher.statistics().admitted_bytes == 10
    runner.release()
    await batcher.drain()
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_deadline_that_cannot_be_met_is_refused_with_a_time_to_come_again():
    """At once, while the device is busy."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    loop = asyncio.get_running_loop()
    for count in range(1, 12):
        task = asyncio.create_task(submit(batcher, count))
        await runner.begun(count)
        await asyncio.sleep(1.0)
        runner.release()
        await task
    (busy,) = await start(batcher, "busy")
    await runner.begun(12)
    began = loop.time()
    with pytest.raises(
        DeadlineUnreachableError, match=r"deadline: expected at least .* Try"
    ) as why:
        await submit(batcher, "hopeless", deadline=began + 1.5)
    assert loop.time() == began
    assert why.value.remaining_s == 1.5
    assert 1.0 < why.value.retry_after_s < why.value.needed_s <= SAFETY * (1.0 + 1.0)
    runner.release_all()
    await busy
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_lost_device_answers_everybody():
    """Queued and running alike; nothing is taken any more, and `broken` says why."""
    lost = DeviceLostError("expected a device, got smoke")

    def answer(_batch):
        raise lost

    runner = FakeRunner(answer, held=True)
    batcher = make_batcher(runner)
    tasks = [await occupied(runner, batcher), *await start(batcher, 1, 2)]
    runner.release()
    assert [type(await outcome_of(task)) for task in tasks] == [BrokenError] * 3
    assert await batcher.broken() is lost
    with pytest.raises(BrokenError, match="expected a working device, got none"):
        await submit(batcher, "late")
    await batcher.drain()
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_batch_that_never_ends_is_a_lost_device():
    """The watchdog answers everybody when it has taken too long, and not before."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner, stall_s=60.0)
    tasks = [await occupied(runner, batcher), *await start(batcher, 1)]
    outcomes = [await outcome_of(task) for task in tasks]
    assert [type(outcome) for outcome in outcomes] == [BrokenError] * 2
    assert asyncio.get_running_loop().time() == 60.0
    with pytest.raises(DeviceLostError, match="expected a batch within 60 s, got none"):
        raise await batcher.broken()
    await batcher.drain()
    runner.release()
    await asyncio.sleep(1.0)
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_batch_in_time_does_not_wake_the_watchdog():
    """It looks at batches one by one, not at the time since the start."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner, stall_s=60.0)
    for count in range(1, 4):
        task = asyncio.create_task(submit(batcher, count))
        await runner.begun(count)
        await asyncio.sleep(50.0)
        runner.release()
        assert (await task).result == count


@in_virtual_time
async def test_a_policy_that_fails_answers_everybody():
    """What cannot be relied on is not asked again; nobody waits for it."""

    class FailingPolicy:
        queued_items = running_items = admitted_bytes = 0

        def step(self, event, now):
            raise KeyError(event, now)

    batcher = make_batcher(FakeRunner(), policy=FailingPolicy())
    assert isinstance(await outcome_of(submit(batcher, 1)), BrokenError)
    assert isinstance(await batcher.broken(), KeyError)
    await batcher.drain()


UNKNOWN_BYTES, UNKNOWN_WORK = Cost(None, 1, 1), Cost(10, 1, None)
"""Costs with which a policy fails: as it admits an item, and as it queues one."""


@in_virtual_time
async def test_a_policy_that_fails_as_it_admits_a_call_leaves_its_place_to_the_call():
    """Which has it until its reply has left, as any other."""
    batcher, call = make_batcher(FakeRunner()), FakeContext()
    place = batcher.reserve(10, caller="", call=call)
    (one,) = wanted("any")
    submitted = batcher.submit(1, key=one.key, cost=UNKNOWN_BYTES, place=place)
    assert isinstance(await outcome_of(submitted), BrokenError)
    assert batcher.statistics().admitted_bytes == 10
    call.finish()
    assert batcher.statistics().admitted_bytes == 0


@in_virtual_time
async def test_a_policy_that_fails_amid_a_message_leaves_its_place_to_the_call():
    """Some of its calls are queued by then, and some are not."""
    batcher, call = make_batcher(FakeRunner()), FakeContext()
    place = batcher.reserve(10, caller="", call=call)
    (first,), (second,), (third,) = (wanted(spec, spec=spec) for spec in "abc")
    calls = [first, second._replace(cost=UNKNOWN_WORK), third]
    outcomes = await batcher.submit_together(calls, place=place)
    assert [type(outcome) for outcome in outcomes] == [BrokenError] * 3
    assert batcher.statistics().admitted_bytes == 30
    call.finish()
    assert batcher.statistics().admitted_bytes == 0


@in_virtual_time
async def test_a_fault_before_admission_is_its_callers_alone():
    """It leaves no trace."""

    class Faults(Listener):
        def reached(self, stage, calls):
            assert (stage, calls) == (Stage.QUEUE, (None,))
            if faults:
                raise faults.pop()

    faults = [OSError("injected")]
    batcher = make_batcher(FakeRunner(), Faults())
    with pytest.raises(OSError, match="injected"):
        await submit(batcher, 1)
    assert (await submit(batcher, 2)).result == 2
    assert_nothing_left(batcher)


def wanted(*problems, spec="spec"):
    """Calls of one message."""
    key = BatchKey(Operation.WARP, "float32", spec)
    return [Wanted(problem, key, Cost(10, 1, 1)) for problem in problems]


async def submit_together(batcher, calls, **options):
    """Submits the calls of a message that holds its place until it is answered."""
    place = batcher.reserve(0, caller="", call=FakeContext())
    try:
        return await batcher.submit_together(calls, place=place, **options)
    finally:
        batcher._policy.release(place)


@in_virtual_time
async def test_calls_of_a_message_have_outcomes_in_their_order():
    """Whatever their keys, each with where its time went; a bad one fails alone."""
    wrong = ValueError("wrong")
    runner = FakeRunner(lambda batch: [wrong if one == 2 else one for one in batch.problems])
    batcher = make_batcher(runner)
    mixed = [*wanted(1, 2), *wanted(3, spec="other"), *wanted(4)]
    outcomes = await submit_together(batcher, mixed)
    assert [one if one is wrong else one.result for one in outcomes] == [1, wrong, 3, 4]
    assert sorted(runner.batches) == [[1, 2, 4], [3]]
    assert [outcomes[0].batch_items, outcomes[2].batch_items] == [3, 1]
    assert as_facts(batcher.statistics()) == {
        "finished_items": 3,
        "failed_items": 1,
        "batches": 2,
        "largest_batch_items": 3,
    }


@in_virtual_time
async def test_calls_of_a_message_are_split_by_what_a_batch_takes():
    """A bundle is at most a turn, an eighth of the budget, so that others get in between."""
    runner = FakeRunner()
    batcher = make_batcher(runner, budget=Cost(1000, 40, 40), max_admitted_items=100)
    outcomes = await submit_together(batcher, wanted(*range(45)))
    assert [one.result for one in outcomes] == list(range(45))
    assert max(map(len, runner.batches)) <= 40
    assert all(len(batch) % 5 == 0 for batch in runner.batches)
    assert_nothing_left(batcher)


@in_virtual_time
async def test_calls_of_a_message_expire_at_its_deadline():
    """Each is told so, and counted."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    busy = await occupied(runner, batcher)
    outcomes = await submit_together(batcher, wanted(1, 2, 3), deadline=5.0)
    assert asyncio.get_running_loop().time() == 5.0
    assert [type(one) for one in outcomes] == [DeadlineExceededError] * 3
    assert batcher.statistics().abandoned_items == 3
    runner.release_all()
    await busy
    assert_nothing_left(batcher)


@in_virtual_time
async def test_calls_of_a_message_that_is_cancelled_are_not_computed():
    """They leave the queue; what runs is left to finish."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    busy = await occupied(runner, batcher)
    task = asyncio.create_task(submit_together(batcher, wanted(1, 2, 3)))
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    assert batcher.statistics().abandoned_items == 3
    runner.release_all()
    await busy
    assert runner.batches == [["busy"]]
    assert_nothing_left(batcher)


@in_virtual_time
async def test_calls_of_a_message_share_the_end_of_a_device():
    """All are told that it is lost, and the next message is refused as a whole."""
    runner = FakeRunner(lambda _batch: (_ for _ in ()).throw(DeviceLostError("gone")))
    batcher = make_batcher(runner)
    outcomes = await submit_together(batcher, wanted(1, 2))
    assert [type(one) for one in outcomes] == [BrokenError] * 2
    with pytest.raises(BrokenError, match="expected a working device"):
        await submit_together(batcher, wanted(3))
    assert_nothing_left(batcher)


@pytest.mark.parametrize("is_placed", [True, False])
def test_a_caller_whose_memory_is_written_to_is_answered_afterwards(is_placed):
    """Also one who has given up; others need not wait for what nobody wants."""

    async def scenario():
        runner = FakeRunner(held=True)
        batcher = make_batcher(runner)
        (call,) = await start(batcher, 1, is_placed=is_placed)
        await runner.begun(1)
        call.cancel()
        await asyncio.wait([call], timeout=1.0)
        assert call.done() is not is_placed
        runner.release()
        assert type(await outcome_of(call)) is asyncio.CancelledError
        await batcher.drain()
        assert_nothing_left(batcher)

    run_in_virtual_time(scenario())


@in_virtual_time
async def test_a_caller_who_gives_up_as_its_batch_ends_has_nothing_to_wait_for():
    """The batch, answered before the caller learns of it, finds nobody any more."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    placed = [Wanted(one.problem, one.key, one.cost, is_placed=True) for one in wanted(2, 3)]
    for count, call in enumerate(
        (submit(batcher, 1, is_placed=True), submit_together(batcher, placed)), 1
    ):
        task = asyncio.create_task(call)
        await runner.begun(count)
        runner.release()
        task.cancel()
        assert type(await outcome_of(task)) is asyncio.CancelledError
        assert_nothing_left(batcher)


@in_virtual_time
async def test_a_caller_whose_memory_is_written_to_can_be_cut_off():
    """As a connection does that ends, and takes its memory with it."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner)
    (call,) = await start(batcher, 1, is_placed=True)
    await runner.begun(1)
    for _ in range(2):
        call.cancel()
        await asyncio.wait([call], timeout=1.0)
    assert call.cancelled()
    runner.release()
    await batcher.drain()
    assert_nothing_left(batcher)


@in_virtual_time
async def test_a_caller_whose_memory_a_lost_device_may_write_to_has_no_answer():
    """Only the end of its connection ends it; one that waits is answered like all others."""
    runner = FakeRunner(held=True)
    batcher = make_batcher(runner, stall_s=60.0)
    (running,) = await start(batcher, 1, is_placed=True)
    await runner.begun(1)
    (waiting,) = await start(batcher, 2, is_placed=True)
    await batcher.broken()
    assert type(await outcome_of(waiting)) is BrokenError
    await asyncio.wait([running], timeout=1.0)
    assert not running.done()
    running.cancel()
    assert type(await outcome_of(running)) is asyncio.CancelledError
    await batcher.drain()
