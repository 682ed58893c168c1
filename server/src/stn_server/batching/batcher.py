"""The asyncio shell around `Policy`: it lets calls wait, runs batches and answers.

Every admitted item has one waiter, and every waiter is answered exactly once: with a result, or
with the error that says why there is none.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from typing import Any, Protocol

from stn_server.batching.policy import (
    NOTHING_FOLLOWS,
    Abandon,
    Arrive,
    ArriveTogether,
    Decisions,
    Event,
    Finish,
    Policy,
    Tick,
)
from stn_server.batching.work import (
    Batch,
    BatchKey,
    Bundle,
    Cost,
    Finished,
    Place,
    Wanted,
    WorkItem,
    as_it_is,
)
from stn_server.errors import (
    BatchFailedError,
    BrokenError,
    DeadlineExceededError,
    DeviceLostError,
    DrainingError,
    RefusedError,
)
from stn_server.events import NO_LISTENERS, Events, Stage
from stn_server.tuning import IMPLICIT_DEADLINE_S


class Runner(Protocol):
    """Computes batches on one device."""

    async def run(self, batch: Batch) -> Sequence[Any]:
        """Returns one outcome per problem, in order: a result, or the exception of that one alone.

        Raises:
            DeviceLostError: Nothing can be computed any more.
            Exception: This batch could not be computed.
        """
        ...

    def run_inline(self, batch: Batch) -> Sequence[Any] | None:
        """Does what `run` does, or returns None if that takes longer than to wait for `run`."""
        ...

    def close(self) -> None:
        """Frees the device after the batch that runs; does not wait for it."""


class Ends(Protocol):
    """The call for which an item is computed, as far as it says when it is over."""

    def add_done_callback(self, callback: Any, /) -> None:
        """Registers a function for when the reply has left or the caller has gone."""
        ...


@dataclass(slots=True)
class Counts:
    """The counts since the start."""

    finished_items: int = 0
    failed_items: int = 0
    refused_items: int = 0
    abandoned_items: int = 0
    batches: int = 0
    largest_batch_items: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counts since the start, and of what is queued and running now."""

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
        policy: Makes the decisions.
        runner: Computes batches.
        events: Listeners of items and batches.
        now: The clock that deadlines refer to, in seconds. Not the event loop's: uvloop's counts
            whole milliseconds, and small warps take less.
        stall_s: A batch that takes longer means that the device is lost.

    Concurrency: all methods belong to one event loop; `statistics` and `queue_age_s` may be called
    from other threads.
    """

    def __init__(
        self,
        policy: Policy,
        runner: Runner,
        events: Events = NO_LISTENERS,
        now: Callable[[], float] = time.monotonic,
        *,
        stall_s: float = math.inf,
    ) -> None:
        self.now = now
        self._policy = policy
        self._runner = runner
        self._events = events
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[WorkItem, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf
        """The instant at which the timer fires; infinity if there is none."""
        self._oldest_arrival = math.inf
        self._draining = False
        self._broken: asyncio.Future[Exception] = self._loop.create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self._counts = Counts()

    def reserve(self, size_bytes: int, *, caller: str, call: Ends) -> Place:
        """Takes a place for a call before its item is known, until the call is done.

        Args:
            size_bytes: The size that counts until it is resized, or its item comes in.
            caller: The name of the caller; callers get equal shares.
            call: Its place is free again when it is done and its item does not run any more.

        Raises:
            OverloadedError: The limits on admitted items or bytes are reached.
            DrainingError: `drain` has been called.
            BrokenError: The device is lost; only a restart helps.
        """
        self._require_service()
        place = self._policy.reserve(caller, size_bytes, self.now())
        if not isinstance(place, Place):
            raise self._counted(place)
        call.add_done_callback(lambda _call: self._policy.release(place))
        return place

    def resize(self, place: Place, size_bytes: int) -> None:
        """Changes the size for which a place without an item counts.

        Raises:
            OverloadedError: The limit on admitted bytes is reached.
        """
        refusal = self._policy.resize(place, size_bytes, self.now())
        if refusal is not None:
            raise self._counted(refusal)

    async def submit(
        self,
        problem: Any,
        *,
        key: BatchKey,
        cost: Cost,
        deadline: float = math.inf,
        due_within_s: float = IMPLICIT_DEADLINE_S,
        caller: str = "",
        call: Any = None,
        place: Place | None = None,
        is_placed: bool = False,
        reply: Callable[[Finished], Any] = as_it_is,
    ) -> Any:
        """Queues one problem and waits for the reply.

        Args:
            problem: The problem, in a form that the runner understands.
            key: The facts that it must share with others to run beside them.
            cost: The amounts that it takes of the budgets.
            deadline: Instant of `now` after which the result is unwanted.
            due_within_s: It counts as due so long after its arrival if its deadline is later.
            caller: The name of the caller; callers get equal shares.
            call: The call of the item, for listeners.
            place: The place of its call, which counts for its cost until the call is done. None:
                takes one until this returns.
            is_placed: Whether the runner writes the results to memory of the caller.
            reply: Makes the reply from the outcome; called for a whole batch in a row.

        Raises:
            OverloadedError: The limits on admitted items or bytes are reached, or the deadline
                could not be met.
            DrainingError: `drain` has been called.
            BrokenError: The device is lost; only a restart helps.
            DeadlineExceededError: The deadline passed while the item was queued.
            BatchFailedError: The runner failed as a whole.

        Concurrency:
            Cancellation: an item that waits is removed, one that runs is left to finish and its
            outcome dropped; this returns when it has, if it is placed. Deadline: checked until
            the item is launched.
        """
        self._require_service()
        for tell in self._events.reached:
            tell(Stage.QUEUE, (call,))
        item = WorkItem(
            key=key,
            cost=cost,
            problems=(problem,),
            arrived=self.now(),
            deadline=deadline,
            due_within_s=due_within_s,
            caller=caller,
            calls=(call,),
            place=place,
            is_placed=is_placed,
            reply=reply,
        )
        # Before the policy decides: a small batch is computed and answered within that step.
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._waiters[item] = waiter
        self._idle.clear()
        # Taken and given back here, whatever the policy makes of the item, or if it fails.
        if place is not None:
            place.holders += 1
        try:
            refusal = self._step(Arrive(item)).refusal
            if refusal is not None:
                raise self._counted(refusal)
            return await waiter
        except asyncio.CancelledError:
            # A waiter with an outcome is not `cancelled`: then nothing runs for it.
            if waiter.cancelled():
                await self._abandon_until_written(item)
            raise
        finally:
            del self._waiters[item]
            if item.place is not None:  # its own, or the one that the policy gave it
                self._policy.release(item.place)
            self._settle()

    async def submit_together(
        self,
        wanted: Sequence[Wanted],
        *,
        deadline: float = math.inf,
        caller: str = "",
        place: Place,
    ) -> list[Finished | Exception]:
        """Queues the calls of one message, and waits until each has its outcome.

        Args:
            wanted: The calls.
            deadline: Instant of `now` after which no result is wanted.
            caller: The name of the caller; callers get equal shares.
            place: The place of the message, which from now on counts for the admitted calls.

        Returns:
            For each call its outcome, or what `submit` would have raised for it.

        Raises:
            DrainingError: `drain` has been called.
            BrokenError: The device is lost; only a restart helps.

        Concurrency:
            The same as that of `submit`.
        """
        self._require_service()
        outcomes: list[Any] = [None] * len(wanted)
        facts = {"arrived": self.now(), "deadline": deadline, "caller": caller, "place": place}
        bundles = self._bundles(wanted, outcomes, facts)
        waiters = {bundle: self._loop.create_future() for bundle in bundles}
        for bundle, waiter in waiters.items():
            self._waiters[bundle] = waiter
        self._idle.clear()
        place.holders += 1
        try:
            late = self._step(ArriveTogether(bundles)).late
            # Without any of them if the policy fails; then `_break` answers the bundles.
            for bundle, refusal in zip_longest(bundles, late):
                if refusal is None:
                    # One after the other: the message is answered after the last one anyway.
                    found = await _outcomes_of(bundle, waiters[bundle])
                else:
                    found = [self._counted(refusal) for _ in bundle.positions]
                for position, outcome in zip(bundle.positions, found, strict=True):
                    outcomes[position] = outcome
        except asyncio.CancelledError:
            await self._abandon_bundles(waiters)
            raise
        finally:
            for bundle, waiter in waiters.items():
                del self._waiters[bundle]
                waiter.cancel()
            self._policy.release(place)
            self._settle()
        return outcomes

    async def _abandon_bundles(self, waiters: Mapping[Bundle, asyncio.Future[Any]]) -> None:
        """Abandons bundles; returns when none of them is written to memory of its caller."""
        for bundle, waiter in waiters.items():
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # so that asyncio does not report it as lost
            else:
                await self._abandon_until_written(bundle)

    async def _abandon_until_written(self, item: WorkItem) -> None:
        """Abandons an item; returns when it is not written to memory of its caller."""
        if self._abandon(item) or not item.is_placed or self._broken.done():
            return
        # Its batch may have ended since the cancellation, and has then found nobody to answer.
        if self._policy.is_running(item):
            written = self._waiters[item] = self._loop.create_future()
            # `gather` makes a failure an outcome, to be dropped.
            await asyncio.gather(written, return_exceptions=True)

    def _bundles(
        self, wanted: Sequence[Wanted], outcomes: list[Any], facts: dict[str, Any]
    ) -> list[Bundle]:
        """Admits calls and bundles them by key; refused ones have their outcome then."""
        policy, now, place = self._policy, facts["arrived"], facts["place"]
        # The message counted by an estimate so far; from here on its calls count by their costs.
        policy.resize(place, 0, now)
        bundles: dict[BatchKey, Bundle] = {}
        full: list[Bundle] = []
        size_bytes = count = 0
        for position, one in enumerate(wanted):
            grown_bytes = size_bytes + one.cost.size_bytes
            refusal = policy.resize(place, grown_bytes, now, count + 1)
            if refusal is not None:
                outcomes[position] = self._counted(refusal)
                continue
            size_bytes, count = grown_bytes, count + 1
            bundle = bundles.get(one.key)
            if bundle is not None:
                cost = bundle.cost + one.cost
                # At most a turn, so that one message does not pass the turns of other callers.
                if cost.fits(policy.turn):
                    bundle.add(one, position, cost)
                    continue
                full.append(bundle)
            bundles[one.key] = Bundle.of(one, position, **facts)
        return [*full, *bundles.values()]

    async def drain(self) -> None:
        """Refuses new items from now on and returns when the last admitted one is answered."""
        self._draining = True
        await self._idle.wait()

    async def broken(self) -> Exception:
        """Waits until nothing can be computed any more, and returns the reason."""
        # A waiter that is cancelled must not cancel the future for the others.
        return await asyncio.shield(self._broken)

    def statistics(self) -> Statistics:
        """Returns the counts as of now."""
        return Statistics(
            queued_items=self._policy.queued_items,
            running_items=self._policy.running_items,
            admitted_bytes=self._policy.admitted_bytes,
            **asdict(self._counts),
        )

    def queue_age_s(self) -> float:
        """Returns how long the oldest queued item has waited; 0 if none does."""
        # The oldest arrival is infinity while none waits.
        return max(0.0, self.now() - self._oldest_arrival)

    def _require_service(self) -> None:
        if self._broken.done():
            raise self._counted(BrokenError())
        if self._draining:
            raise self._counted(DrainingError())

    def _step(self, event: Event) -> Decisions:
        """Lets the policy decide, then carries out the decisions that any event can lead to."""
        now = self.now()
        try:
            decisions = self._policy.step(event, now)
        except Exception as error:  # noqa: BLE001 - a policy that fails cannot be relied on again
            self._break(error)
            return NOTHING_FOLLOWS
        self._oldest_arrival = decisions.oldest_arrival
        for item in decisions.expired:
            self._count_abandoned(item)
            self._fail(item, DeadlineExceededError())
        # The timer before the launches: a batch that runs inline makes a step of its own, whose
        # later decision about the timer must stay.
        if decisions.wake_at != self._wake_at:
            self._set_timer(decisions.wake_at, now)
        for batch in decisions.launches:
            # Only an arrival runs a batch in its own stack: one that followed another so would be
            # nested in it, ever deeper, and no caller would get a reply meanwhile.
            if not (isinstance(event, Arrive | ArriveTogether) and self._run_inline(batch)):
                task = self._loop.create_task(self._run(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return decisions

    def _set_timer(self, wake_at: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = wake_at
        self._timer = None
        if wake_at < math.inf:
            # A duration: the instants are those of `now`, and the loop has a clock of its own.
            self._timer = self._loop.call_later(wake_at - now, self._tick)

    def _tick(self) -> None:
        self._timer, self._wake_at = None, math.inf
        self._step(Tick())

    async def _run(self, batch: Batch) -> None:
        """Runs a batch and answers its waiters, whatever the runner does."""
        launched, outcomes, cause = self.now(), None, None
        try:
            outcomes = await self._watched(batch)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - all must be answered
            cause = error
        # Before `_end`, which may launch the next batch: that is no part of this one.
        ended = self.now()
        outcomes, more_follows = self._end(batch, outcomes, cause)
        if more_follows:
            await asyncio.sleep(0)  # so that the device does not wait for the answers
        self._answer(batch, outcomes, launched, ended)

    def _run_inline(self, batch: Batch) -> bool:
        """Runs a batch here and answers it; returns whether the runner took it at once."""
        launched, outcomes, cause = self.now(), None, None
        try:
            outcomes = self._runner.run_inline(batch)
        except Exception as error:  # noqa: BLE001 - all must be answered
            cause = error
        if outcomes is None and cause is None:
            return False
        ended = self.now()
        outcomes, _ = self._end(batch, outcomes, cause)
        self._answer(batch, outcomes, launched, ended)
        return True

    def _end(
        self, batch: Batch, outcomes: Sequence[Any] | None, cause: BaseException | None
    ) -> tuple[Sequence[Any], bool]:
        """Frees the lane of a batch, also if the runner failed or broke its contract.

        Returns:
            What becomes of each problem, and whether another batch follows.
        """
        count = len(batch.problems)
        computed = outcomes is not None and len(outcomes) == count
        if outcomes is None or not computed:
            # Before the lane is free, so that a lost device gets no further batch.
            if isinstance(cause, DeviceLostError):
                self._break(cause)
            # One for each, as every waiter raises its own and adds to its traceback.
            outcomes = [BatchFailedError(count) for _ in range(count)]
            for failure in outcomes:
                failure.__cause__ = cause
        return outcomes, bool(self._step(Finish(batch, computed)).launches)

    def _answer(self, batch: Batch, outcomes: Sequence[Any], launched: float, ended: float) -> None:
        """Answers every waiter of a batch, then tells listeners."""
        compute_s, batch_items = ended - launched, len(batch.problems)
        queue_s: list[float] = []
        following = iter(outcomes)
        for item in batch.items:
            waited_s = launched - item.arrived
            if isinstance(item, Bundle):
                queue_s += [waited_s] * len(item.problems)
                some = list(islice(following, len(item.problems)))
                self._answer_bundle(item, some, Finished(None, waited_s, compute_s, batch_items))
                continue
            queue_s.append(waited_s)
            outcome = next(following)
            if isinstance(outcome, BaseException):
                self._counts.failed_items += 1
                self._fail(item, outcome)
                continue
            self._counts.finished_items += 1
            waiter = self._waiters.get(item)
            # Its caller has gone, or was answered when the server broke.
            if waiter is None or waiter.done():
                continue
            try:
                finished = Finished(outcome, waited_s, compute_s, batch_items)
                waiter.set_result(item.reply(finished))
            except Exception as error:  # noqa: BLE001 - what fails for one must not for the others
                waiter.set_exception(error)
        self._counts.batches += 1
        self._counts.largest_batch_items = max(self._counts.largest_batch_items, batch_items)
        self._settle()
        try:
            for tell in self._events.batch_ended:
                tell(batch, queue_s, compute_s)
        except Exception as error:  # noqa: BLE001 - a listener that fails fails no call
            self._loop.call_exception_handler({"message": "listener failed", "exception": error})

    def _answer_bundle(self, bundle: Bundle, outcomes: list[Any], like: Finished) -> None:
        """Answers the waiter of a bundle with the outcome of each of its calls.

        Args:
            bundle: The bundle that has been computed.
            outcomes: A result, or an exception, for each call.
            like: The other facts of each result.
        """
        failed = sum(isinstance(outcome, BaseException) for outcome in outcomes)
        self._counts.failed_items += failed
        self._counts.finished_items += len(outcomes) - failed
        waiter = self._waiters.get(bundle)
        if waiter is not None and not waiter.done():
            said = like[1:]
            waiter.set_result(
                [
                    outcome if isinstance(outcome, BaseException) else Finished(outcome, *said)
                    for outcome in outcomes
                ]
            )

    async def _watched(self, batch: Batch) -> Sequence[Any]:
        """Returns the outcomes of the runner; a batch that stalls means a lost device."""
        if self._stall_s == math.inf:
            return await self._runner.run(batch)
        stalled = DeviceLostError(f"expected a batch within {self._stall_s:g} s, got none")
        # The runner cannot be interrupted: waiters are answered without it.
        watchdog = self._loop.call_later(self._stall_s, self._break, stalled)
        try:
            return await self._runner.run(batch)
        finally:
            watchdog.cancel()

    def _break(self, cause: Exception) -> None:
        """Answers all waiters that may be answered, and refuses all further calls."""
        if self._broken.done():
            return
        # First, so that a step that fails below does not come back here.
        self._broken.set_result(cause)
        for item in list(self._waiters):
            # One that still writes to memory of its caller has no answer before its connection
            # ends, as all do that lend memory to a server whose device is lost.
            if self._abandon(item) or not item.is_placed:
                self._fail(item, BrokenError())

    def _fail(self, item: WorkItem, error: BaseException) -> None:
        """Answers the waiter of an item with an error, if it still waits."""
        waiter = self._waiters.get(item)
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _abandon(self, item: WorkItem) -> bool:
        """Takes an item out of the queue; returns whether it was there."""
        abandoned = self._step(Abandon(item)).abandoned
        if abandoned:
            self._count_abandoned(item)
        return abandoned

    def _count_abandoned(self, item: WorkItem) -> None:
        """Counts the calls of an item that has left the queue without running."""
        self._counts.abandoned_items += len(item.problems)
        for tell in self._events.item_abandoned:
            for _ in range(len(item.problems)):
                tell()

    def _counted(self, error: RefusedError) -> RefusedError:
        """Counts a refusal and returns its error."""
        self._counts.refused_items += 1
        return error

    def _settle(self) -> None:
        """Wakes `drain` once no call waits and no batch runs, or none ever will."""
        if not self._waiters and (self._broken.done() or not self._policy.running_items):
            self._idle.set()


async def _outcomes_of(bundle: Bundle, waiter: asyncio.Future[Any]) -> list[Any]:
    """Waits for the outcome of each call of a bundle; one error may be that of all."""
    try:
        return list(await waiter)
    except Exception as error:  # noqa: BLE001 - told to each caller, in its own status
        return [error] * len(bundle.problems)
