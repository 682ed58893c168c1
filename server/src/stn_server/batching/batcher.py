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
from typing import Any, Protocol

from stn_server.batching.policy import Abandon, Arrive, Decisions, Event, Finish, Policy, Tick
from stn_server.batching.work import Batch, BatchKey, Cost, Finished, WorkItem
from stn_server.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DrainingError,
    OverloadedError,
    RefusedError,
)

RETRY_AFTER_S = 0.05
"""Told to refused callers: a few batches of typical length."""


class Runner(Protocol):
    """Computes batches on one device."""

    async def run(self, batch: Batch) -> Sequence[Any]:
        """One outcome per item, in order: a result, or the exception of that item alone."""
        ...

    def close(self) -> None:
        """Lets go of the device, after the batch that runs; does not wait for it."""


class Observer(Protocol):
    """Told what happens, so that metrics need not be known here."""

    def item_abandoned(self) -> None:
        """An item left the queue without having run."""

    def batch_finished(self, batch: Batch, queue_s: Sequence[float], compute_s: float) -> None:
        """A batch is through, with the time that each item waited."""


@dataclass(slots=True)
class _Counts:
    """Counts since the start."""

    finished_items: int = 0
    failed_items: int = 0
    refused_items: int = 0
    abandoned_items: int = 0
    batches: int = 0
    largest_batch_items: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the start, and what is on its way now."""

    queued_items: int
    running_items: int
    admitted_bytes: int
    finished_items: int
    failed_items: int
    refused_items: int
    abandoned_items: int
    batches: int
    largest_batch_items: int


class Batcher:
    """Groups waiting calls into batches and hands them to a runner.

    Args:
        policy: Decides.
        runner: Computes.
        observer: Is told.
        now: The clock that deadlines refer to, in seconds. Not the event loop's: uvloop's counts
            whole milliseconds, and small warps take less.

    Concurrency: all methods belong to one event loop; `statistics` and `queue_age_s` may be called
    from other threads.
    """

    def __init__(
        self,
        policy: Policy,
        runner: Runner,
        observer: Observer,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = now
        self._policy = policy
        self._runner = runner
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[int, asyncio.Future[Finished]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._oldest_arrival = math.inf
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._counts = _Counts()

    async def submit(
        self, problem: Any, *, key: BatchKey, cost: Cost, deadline: float = math.inf
    ) -> Finished:
        """Queues one problem and waits for its outcome.

        Args:
            problem: What the runner understands.
            key: What it must share with others to run beside them.
            cost: What it takes of the budgets.
            deadline: Instant of `now` after which the result is unwanted.

        Raises:
            OverloadedError: The limits on admitted items or bytes are reached.
            DrainingError: `drain` has been called.
            DeadlineExceededError: The deadline passed while the item was queued.
            BatchFailedError: The runner failed as a whole.

        Concurrency:
            Cancellation: an item that waits is removed, one that runs is left to finish and its
            outcome dropped. Deadline: checked until the item is launched.
        """
        if self._draining:
            raise self._refused(DrainingError())
        item = WorkItem(
            key=key,
            cost=cost,
            problem=problem,
            arrived=self.now(),
            deadline=deadline,
        )
        waiter: asyncio.Future[Finished] = self._loop.create_future()
        self._waiters[item.number] = waiter
        self._idle.clear()
        try:
            if refusal := self._step(Arrive(item)).refusal:
                raise self._refused(
                    OverloadedError(refusal.what, refusal.limit, refusal.actual, RETRY_AFTER_S)
                )
            return await waiter
        except asyncio.CancelledError:
            if self._step(Abandon(item)).abandoned:
                self._abandoned()
            raise
        finally:
            del self._waiters[item.number]
            self._settle()

    async def drain(self) -> None:
        """Refuses new items from now on and returns when the last admitted one is answered."""
        self._draining = True
        await self._idle.wait()

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

    def _step(self, event: Event) -> Decisions:
        """Lets the policy decide, then carries out what concerns every event."""
        now = self.now()
        decisions = self._policy.step(event, now)
        self._oldest_arrival = self._policy.oldest_arrival()
        for item in decisions.expired:
            self._abandoned()
            self._answer(item, DeadlineExceededError())
        for batch in decisions.launches:
            self._launch(batch)
        self._set_timer(decisions.wake_at - now)
        return decisions

    def _set_timer(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if delay_s < math.inf:
            self._timer = self._loop.call_later(delay_s, self._step, Tick())

    def _launch(self, batch: Batch) -> None:
        task = self._loop.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: Batch) -> None:
        """Runs a batch and answers its waiters, whatever the runner does."""
        launched = self.now()
        outcomes = await self._outcomes(batch)
        compute_s = self.now() - launched
        queue_s = [launched - item.arrived for item in batch.items]
        self._step(Finish(batch))  # first, so that the device does not wait for the answers
        for item, outcome, waited_s in zip(batch.items, outcomes, queue_s, strict=True):
            if isinstance(outcome, BaseException):
                self._counts.failed_items += 1
                self._answer(item, outcome)
            else:
                self._counts.finished_items += 1
                self._answer(item, Finished(outcome, waited_s, compute_s, len(batch.items)))
        self._counts.batches += 1
        self._counts.largest_batch_items = max(self._counts.largest_batch_items, len(batch.items))
        self._observer.batch_finished(batch, queue_s, compute_s)
        self._settle()

    async def _outcomes(self, batch: Batch) -> Sequence[Any]:
        """One outcome per item, also when the runner breaks its promise."""
        cause: BaseException | None = None
        try:
            outcomes = await self._runner.run(batch)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - all must be answered
            cause = error
        else:
            if len(outcomes) == len(batch.items):
                return outcomes
        failures = [BatchFailedError(len(batch.items)) for _ in batch.items]
        for failure in failures:
            failure.__cause__ = cause
        return failures

    def _answer(self, item: WorkItem, outcome: Finished | BaseException) -> None:
        waiter = self._waiters.get(item.number)
        if waiter is None or waiter.done():
            return
        if isinstance(outcome, BaseException):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)

    def _abandoned(self) -> None:
        self._counts.abandoned_items += 1
        self._observer.item_abandoned()

    def _refused(self, error: RefusedError) -> RefusedError:
        self._counts.refused_items += 1
        return error

    def _settle(self) -> None:
        """Wakes `drain` once nobody waits and nothing runs."""
        if not self._waiters and not self._policy.running_items:
            self._idle.set()
