"""Waits and answers: the asyncio shell around `Policy`.

Every admitted item has one waiter, and every waiter is answered exactly once: with a result, or
with the error that says why there is none.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stn_server.batching.admission import Full
from stn_server.batching.policy import (
    NO_DECISIONS,
    Abandon,
    Arrive,
    Decisions,
    Event,
    Finish,
    Policy,
    Refusal,
    Tick,
)
from stn_server.batching.roles import Call, Counts, Observer, Runner, Statistics
from stn_server.batching.work import (
    Batch,
    BatchKey,
    Cost,
    Finished,
    Place,
    WorkItem,
    as_it_is,
)
from stn_server.errors import (
    BatchFailedError,
    BrokenError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceLostError,
    DrainingError,
    OverloadedError,
    QueueFullError,
    RefusedError,
)
from stn_server.faults import Point, Seam, no_fault

LEAST_RETRY_S = 0.05
"""Told to refused callers at least: a few batches of typical length."""


@dataclass(slots=True)
class _Run:
    """A batch that was run."""

    batch: Batch
    launched: float
    ended: float
    outcomes: Sequence[Any] = ()


class Batcher:
    """Groups waiting calls into batches and hands them to a runner.

    Args:
        policy: Decides.
        runner: Computes.
        observer: Is told.
        now: The clock that deadlines refer to, in seconds. Not the event loop's: uvloop's counts
            whole milliseconds, and small warps take less.
        stall_s: A batch that takes longer means that the device is lost.
        seam: Crossed at the door.

    Concurrency: all methods belong to one event loop; `statistics` and `queue_age_s` may be called
    from other threads.
    """

    def __init__(
        self,
        policy: Policy,
        runner: Runner,
        observer: Observer,
        now: Callable[[], float] = time.monotonic,
        *,
        stall_s: float = math.inf,
        seam: Seam = no_fault,
    ) -> None:
        self.now = now
        self._policy = policy
        self._runner = runner
        self._observer = observer
        self._stall_s = stall_s
        self._seam = seam
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[WorkItem, asyncio.Future[Any]] = {}
        self._gone: set[WorkItem] = set()
        """Those of `_waiters` whose call is over."""
        self._placed: dict[Place, WorkItem] = {}
        """Items that came in at a place that was reserved."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf
        self._oldest_arrival = math.inf
        self._draining = False
        self._broken: asyncio.Future[Exception] = self._loop.create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self._counts = Counts()

    def reserve(self, size_bytes: int, *, caller: str, call: Call) -> Place:
        """Takes a place for a call before its item is known, until the call is done.

        Args:
            size_bytes: What it counts for until it is resized, or its item comes in.
            caller: Whom it is for; callers get equal shares.
            call: Its place is free again when it is done and its item does not run any more.

        Raises:
            OverloadedError: The limits on admitted items or bytes are reached.
            DrainingError: `drain` has been called.
            BrokenError: The device is lost; only a restart helps.
        """
        self._require_service()
        place = self._policy.reserve(caller, size_bytes, self.now())
        if isinstance(place, Refusal):
            raise self._refused(_overloaded(place))
        # gRPC ties a call and its callbacks into a ring that only the collector unties, some day;
        # the item, and with it the message, must not hang on that.
        held = [place]
        call.add_done_callback(lambda _call: self._vacate(held.pop()))
        return place

    def resize(self, place: Place, size_bytes: int) -> None:
        """Lets a place at which no item has come in yet count for another size.

        Raises:
            OverloadedError: The limit on admitted bytes is reached.
        """
        refusal = self._policy.resize(place, size_bytes, self.now())
        if refusal is not None:
            raise self._refused(_overloaded(refusal))

    async def submit(
        self,
        problem: Any,
        *,
        key: BatchKey,
        cost: Cost,
        deadline: float = math.inf,
        caller: str = "",
        place: Place | None = None,
        reply: Callable[[Finished], Any] = as_it_is,
    ) -> Any:
        """Queues one problem and waits for the reply.

        Args:
            problem: What the runner understands.
            key: What it must share with others to run beside them.
            cost: What it takes of the budgets.
            deadline: Instant of `now` after which the result is unwanted.
            caller: Whom it is for; callers get equal shares.
            place: What was reserved for it; its cost counts there until the call of the place is
                done. None: takes one until this returns.
            reply: What is made of the outcome; for a whole batch in a row, which caches like.

        Raises:
            OverloadedError: The limits on admitted items or bytes are reached, or the deadline
                could not be met.
            DrainingError: `drain` has been called.
            BrokenError: The device is lost; only a restart helps.
            DeadlineExceededError: The deadline passed while the item was queued.
            BatchFailedError: The runner failed as a whole.

        Concurrency:
            Cancellation: an item that waits is removed, one that runs is left to finish and its
            outcome dropped. Deadline: checked until the item is launched.
        """
        self._require_service()
        self._seam(Point.ADMIT)
        item = WorkItem(
            key=key,
            cost=cost,
            problem=problem,
            arrived=self.now(),
            deadline=deadline,
            caller=caller,
            place=place,
            reply=reply,
        )
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._waiters[item] = waiter
        self._idle.clear()
        try:
            decisions = self._step(Arrive(item))
            if decisions.refusal is not None:
                raise self._refused(_overloaded(decisions.refusal))
            if decisions is not NO_DECISIONS:  # else this was what the policy failed at
                if place is None:
                    self._gone.add(item)
                else:
                    self._placed[place] = item
            return await waiter
        except asyncio.CancelledError:
            self._abandon(item)
            raise
        finally:
            del self._waiters[item]
            if item in self._gone:
                self._gone.remove(item)
                self._leave(item)
            self._settle()

    async def drain(self) -> None:
        """Refuses new items from now on and returns when the last admitted one is answered."""
        self._draining = True
        await self._idle.wait()

    async def broken(self) -> Exception:
        """Returns, with the reason, when nothing can be computed any more."""
        return await asyncio.shield(self._broken)

    def statistics(self) -> Statistics:
        """A snapshot of the counts."""
        return Statistics(
            queued_items=self._policy.queued_items,
            running_items=self._policy.running_items,
            admitted_bytes=self._policy.admitted_bytes,
            **asdict(self._counts),
        )

    def queue_age_s(self) -> float:
        """How long the oldest queued item has waited; 0 if none does."""
        return max(0.0, self.now() - self._oldest_arrival)

    def _require_service(self) -> None:
        if self._broken.done():
            raise self._refused(BrokenError())
        if self._draining:
            raise self._refused(DrainingError())

    def _step(self, event: Event) -> Decisions:
        """Lets the policy decide, then carries out what concerns every event."""
        now = self.now()
        try:
            decisions = self._policy.step(event, now)
        except Exception as error:  # noqa: BLE001 - a policy that fails cannot be relied on again
            self._break(error)
            return NO_DECISIONS
        self._oldest_arrival = self._policy.oldest_arrival()
        for item in decisions.expired:
            self._abandoned()
            self._fail(item, DeadlineExceededError())
        self._set_timer(decisions.wake_at, now)
        for batch in decisions.launches:
            # What follows a batch is left to a task, so that not every batch is inside another.
            if not (isinstance(event, Arrive) and self._run_at_once(batch)):
                self._launch(batch)
        return decisions

    def _set_timer(self, wake_at: float, now: float) -> None:
        if self._timer is not None:
            if wake_at == self._wake_at:
                return
            self._timer.cancel()
            self._timer = None
        self._wake_at = wake_at
        if wake_at < math.inf:
            self._timer = self._loop.call_later(wake_at - now, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._step(Tick())

    def _launch(self, batch: Batch) -> None:
        task = self._loop.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: Batch) -> None:
        """Runs a batch and answers its waiters, whatever the runner does."""
        launched, outcomes, cause = self.now(), None, None
        try:
            outcomes = await self._watched(batch)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - all must be answered
            cause = error
        run = _Run(batch, launched, self.now())
        if self._end(run, outcomes, cause).launches:
            await asyncio.sleep(0)  # so that the device does not wait for the answers
        self._answer(run)

    def _run_at_once(self, batch: Batch) -> bool:
        """Runs a batch that is not worth a task, and answers; says whether it was such a one."""
        launched, outcomes, cause = self.now(), None, None
        try:
            outcomes = self._runner.at_once(batch)
        except Exception as error:  # noqa: BLE001 - all must be answered
            cause = error
        if outcomes is None and cause is None:
            return False
        run = _Run(batch, launched, self.now())
        self._end(run, outcomes, cause)
        self._answer(run)
        return True

    def _end(
        self, run: _Run, outcomes: Sequence[Any] | None, cause: BaseException | None
    ) -> Decisions:
        """A batch is through, also when the runner broke its promise of one outcome per item."""
        computed = outcomes is not None and len(outcomes) == len(run.batch.items)
        if outcomes is not None and computed:
            run.outcomes = outcomes
        else:
            if isinstance(cause, DeviceLostError):
                self._break(cause)
            run.outcomes = [BatchFailedError(len(run.batch.items)) for _ in run.batch.items]
            for failure in run.outcomes:
                failure.__cause__ = cause
        return self._step(Finish(run.batch, computed))

    def _answer(self, run: _Run) -> None:
        """Every waiter, and who watches."""
        batch, compute_s = run.batch, run.ended - run.launched
        queue_s = [run.launched - item.arrived for item in batch.items]
        for item, outcome, waited_s in zip(batch.items, run.outcomes, queue_s, strict=True):
            if isinstance(outcome, BaseException):
                self._counts.failed_items += 1
                self._fail(item, outcome)
            else:
                self._counts.finished_items += 1
                self._reply(item, Finished(outcome, waited_s, compute_s, len(batch.items)))
        self._counts.batches += 1
        self._counts.largest_batch_items = max(self._counts.largest_batch_items, len(batch.items))
        self._settle()
        try:
            self._observer.batch_finished(batch, queue_s, compute_s)
        except Exception as error:  # noqa: BLE001 - an observer that fails is nobody's failure
            self._loop.call_exception_handler({"message": "observer failed", "exception": error})

    async def _watched(self, batch: Batch) -> Sequence[Any]:
        """The outcomes of the runner. If they do not come, nothing will."""
        if self._stall_s == math.inf:
            return await self._runner.run(batch)
        stalled = DeviceLostError(f"expected a batch within {self._stall_s:g} s, got none")
        watchdog = self._loop.call_later(self._stall_s, self._break, stalled)
        try:
            return await self._runner.run(batch)
        finally:
            watchdog.cancel()

    def _break(self, cause: Exception) -> None:
        """Answers everybody and takes nothing more."""
        if self._broken.done():
            return
        self._broken.set_result(cause)
        for item in list(self._waiters):
            self._abandon(item)
            self._fail(item, BrokenError())

    def _reply(self, item: WorkItem, finished: Finished) -> None:
        waiter = self._waiter(item)
        if waiter is None:
            return
        try:
            waiter.set_result(item.reply(finished))
        except Exception as error:  # noqa: BLE001 - what fails for one must not for the others
            waiter.set_exception(error)

    def _fail(self, item: WorkItem, error: BaseException) -> None:
        waiter = self._waiter(item)
        if waiter is not None:
            waiter.set_exception(error)

    def _waiter(self, item: WorkItem) -> asyncio.Future[Any] | None:
        """Who still waits for an item."""
        waiter = self._waiters.get(item)
        return None if waiter is None or waiter.done() else waiter

    def _vacate(self, place: Place) -> None:
        """Gives a place back whose call is over."""
        item = self._placed.pop(place, None)
        if item is None:
            self._policy.release(place)
        else:
            self._leave(item)

    def _leave(self, item: WorkItem) -> None:
        """Gives the place of an item back once its call is over and nobody waits for it."""
        if item in self._waiters:
            self._gone.add(item)
        else:
            self._policy.depart(item)

    def _abandon(self, item: WorkItem) -> None:
        if self._step(Abandon(item)).abandoned:
            self._abandoned()

    def _abandoned(self) -> None:
        self._counts.abandoned_items += 1
        self._observer.item_abandoned()

    def _refused(self, error: RefusedError) -> RefusedError:
        self._counts.refused_items += 1
        return error

    def _settle(self) -> None:
        """Wakes `drain` once nobody waits and nothing runs, or nothing ever will."""
        if not self._waiters and (self._broken.done() or not self._policy.running_items):
            self._idle.set()


def _overloaded(refusal: Refusal) -> OverloadedError:
    """What the caller of a refused item is told."""
    why, retry_after_s = refusal.why, max(refusal.wait_s, LEAST_RETRY_S)
    if isinstance(why, Full):
        return QueueFullError(why.what, why.limit, why.actual, retry_after_s)
    return DeadlineUnreachableError(why.needed_s, why.remaining_s, retry_after_s)
