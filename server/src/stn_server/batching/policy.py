"""Decides which items are admitted, which run together, and when.

A pure state machine: an event and the present instant go in, decisions come out. Knows no asyncio,
reads no clock, touches no engine, so that every rule can be tested with a virtual clock.

Rules:
- Admission: an item is refused if the admitted ones reach a limit (`Admission`), or if it would
  have to wait so long that it could not meet its deadline (`forecast`). A call may take its place
  before its item is known.
- Work-conserving: a free lane takes what waits, at once. While all are busy, work gathers. (A
  window above 0 lets work gather on a free lane, too.)
- A batch holds items of one `BatchKey` and of any sizes, up to a budget in bytes, samples and work,
  and only as many as let it end before the first deadline in it. An item above the budget runs
  alone.
- Callers take turns in rounds, keys take turns within a round; within a key and a round the
  earliest deadline goes first (`queue`). An item with a late deadline or none ages: it counts as
  due IMPLICIT_DEADLINE_S after it arrived.
- Expired and abandoned items leave the queue before they cost device time.
- Every admitted item leaves the queue exactly once: launched, expired or abandoned. Its place is
  held until its reply has left.
- Calls of one message arrive together. Each is admitted by itself, all into the place of the
  message; those of one key then wait as one item, a bundle of at most a turn, and what follows is
  decided once for all of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stn_server.batching.forecast import Forecast
from stn_server.batching.queue import Queue
from stn_server.batching.work import Batch, Bundle, Cost, Operation, Place, WorkItem
from stn_server.errors import DeadlineUnreachableError, OverloadedError, QueueFullError
from stn_server.tuning import CALLER_SHARE, LEAST_RETRY_S, TURN, UNLEARNED_BATCHES


@dataclass(frozen=True, kw_only=True)
class PolicyLimits:
    """The numbers that the rules refer to."""

    budget: Cost
    """The most that one batch may cost."""
    max_admitted_items: int
    """Queued, running and being replied to, together."""
    max_admitted_bytes: int
    window_s: float = 0.0
    """How long a free lane waits for more, counted from when a key began to wait."""
    lanes: int = 1
    """Batches that run at the same time."""


@dataclass(slots=True, eq=False)  # frozen ones take five times as long to make, here and below
class Arrive:
    """A validated request asks for admission."""

    item: WorkItem


@dataclass(slots=True, eq=False)
class ArriveTogether:
    """The calls of one message arrive, each of which `Policy.resize` has admitted."""

    bundles: Sequence[Bundle]


@dataclass(slots=True, eq=False)
class Abandon:
    """The caller of an item has gone."""

    item: WorkItem


@dataclass(slots=True, eq=False)
class Finish:
    """A launched batch has ended."""

    batch: Batch
    computed: bool = True
    """Whether its time says something about the device."""


@dataclass(slots=True, eq=False)
class Tick:
    """No event has come, but time has passed."""


Event = Arrive | ArriveTogether | Abandon | Finish | Tick


class Decisions(NamedTuple):
    """The decisions that the caller of `Policy.step` has to carry out."""

    refusal: OverloadedError | None = None
    """The error for the caller of the item that just arrived, if it is not admitted."""
    late: tuple[DeadlineUnreachableError | None, ...] = ()
    """The same for each of the bundles that just arrived together."""
    abandoned: bool = False
    """Whether the item that its caller abandoned was still queued; one that runs is left alone."""
    expired: tuple[WorkItem, ...] = ()
    launches: tuple[Batch, ...] = ()
    wake_at: float = math.inf
    """The instant at which to send a Tick unless another event comes first; infinity: never."""
    oldest_arrival: float = math.inf
    """The arrival of the oldest item that waits now; infinity if none does."""


NOTHING_FOLLOWS = Decisions()


class Full(NamedTuple):
    """The limit that a call would exceed."""

    what: str
    """The unit of the two numbers, and whose they are."""
    limit: int
    actual: int
    """The number with this call."""


@dataclass(slots=True)
class _Held:
    """The part of the limits that one caller holds."""

    items: int = 0
    size_bytes: int = 0


class Admission:
    """Counts what is admitted: from arrival until the reply has left.

    A caller may hold `CALLER_SHARE` times what is free, so that however much the present callers
    ask for, there is room for the next one. A caller that holds nothing is admitted while there is
    room.

    A call may take its place before its item is known, by what is known of its size. What has a
    place already is checked against the limit alone, and only if it grows: to refuse it costs more.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items = 0
        self.size_bytes = 0
        """The bytes of all places that are held."""
        self._callers: dict[str, _Held] = {}

    def enter(self, caller: str, size_bytes: int) -> Place | Full:
        """Returns a place for a call, or the limit that it would exceed."""
        held = self._callers.get(caller)
        if held is None:
            # Kept only once admitted: refused callers must not fill memory with their names.
            held = _Held()
        # Both limits are checked before anything counts, so that a refusal changes nothing.
        for what, limit, admitted, own, amount in (
            ("items", self._max_items, self._items, held.items, 1),
            ("bytes", self._max_bytes, self.size_bytes, held.size_bytes, size_bytes),
        ):
            if admitted + amount > limit:
                return Full(what, limit, admitted + amount)
            # Against what it holds, not what it asks for: a caller that holds nothing is never
            # refused by its share.
            share = CALLER_SHARE * (limit - admitted)
            if own > share:
                return Full(f"{what} of one caller", share, own + amount)
        self._callers[caller] = held
        self._items += 1
        held.items += 1
        self.size_bytes += size_bytes
        held.size_bytes += size_bytes
        return Place(caller, size_bytes)

    def resize(self, place: Place, size_bytes: int, items: int = 1) -> Full | None:
        """Changes what a place counts for, or returns the limit that this would exceed.

        Further calls of a message keep to the share of their caller, as calls that come alone do.
        """
        held = self._callers[place.caller]
        grown_bytes, grown_items = size_bytes - place.size_bytes, items - place.items
        if self.size_bytes + grown_bytes > self._max_bytes:
            return Full("bytes", self._max_bytes, self.size_bytes + grown_bytes)
        if grown_items > 0:
            if self._items + grown_items > self._max_items:
                return Full("items", self._max_items, self._items + grown_items)
            share = CALLER_SHARE * (self._max_items - self._items)
            if held.items > share:
                return Full("items of one caller", share, held.items + grown_items)
        place.size_bytes, place.items = size_bytes, items
        self.size_bytes += grown_bytes
        self._items += grown_items
        held.size_bytes += grown_bytes
        held.items += grown_items
        return None

    def leave(self, place: Place) -> None:
        """Frees what a place counts for."""
        self._items -= place.items
        self.size_bytes -= place.size_bytes
        held = self._callers[place.caller]
        held.items -= place.items
        held.size_bytes -= place.size_bytes
        if held.items == 0:
            del self._callers[place.caller]


class Policy:
    """The state of the queue. See the module for its rules."""

    def __init__(self, limits: PolicyLimits) -> None:
        self._limits = limits
        self._admission = Admission(limits.max_admitted_items, limits.max_admitted_bytes)
        self._queue = Queue(limits.budget, limits.window_s)
        self._running: dict[Batch, float] = {}
        """The instant at which each batch that runs was launched."""
        self._ran: deque[tuple[Operation, int, float]] = deque(maxlen=UNLEARNED_BATCHES)
        """The batches that have run and from which no forecast has learned yet."""
        # Not copies: the forecast reads what runs, and takes out what it has learned from.
        self._forecast = Forecast(limits.lanes, self._running, self._ran)
        self.running_items = 0
        """Calls in launched batches that have not finished."""
        budget = limits.budget
        self.turn = Cost(
            int(TURN * budget.size_bytes), int(TURN * budget.samples), int(TURN * budget.work)
        )
        """The most that a bundle costs, unless it is a single call."""

    @property
    def queued_items(self) -> int:
        """Counts the calls that wait."""
        return self._queue.calls

    @property
    def admitted_bytes(self) -> int:
        """The bytes of all places that are held."""
        return self._admission.size_bytes

    def is_running(self, item: WorkItem) -> bool:
        """Returns whether an item is in a batch that was launched and has not finished."""
        return any(item in batch.items for batch in self._running)

    def reserve(self, caller: str, size_bytes: int, now: float) -> Place | OverloadedError:
        """Returns a place for a call whose item is not known yet, or the error for its caller.

        It has one holder, which is the call.
        """
        place = self._admission.enter(caller, size_bytes)
        return place if isinstance(place, Place) else self._full(place, caller, now)

    def resize(
        self, place: Place, size_bytes: int, now: float, items: int = 1
    ) -> OverloadedError | None:
        """Changes the size and the number of calls for which a place without an item counts.

        Returns:
            The error for its caller if that does not fit; None if it does.
        """
        full = self._admission.resize(place, size_bytes, items)
        return None if full is None else self._full(full, place.caller, now)

    def release(self, place: Place) -> None:
        """Gives up one hold on a place, without any effect on items that wait."""
        place.holders -= 1
        if place.holders == 0:
            self._admission.leave(place)

    def step(self, event: Event, now: float) -> Decisions:
        """Takes an event into the state and returns what follows from it."""
        refusal, abandoned = None, False
        late: tuple[DeadlineUnreachableError | None, ...] = ()
        match event:
            case Arrive(item):
                refusal = self._admit(item, now)
                if refusal is None:
                    # The common case. What follows would come to the same, but by the queue a
                    # whole call takes 1.6 times the Python.
                    if self._is_idle and item.deadline > now and not self._limits.window_s:
                        alone = Batch(item.key, (item,), item.cost, item.problems)
                        return Decisions(launches=(self._begun(alone, now),))
                    self._enqueue(item)
            case ArriveTogether(bundles):
                late = tuple(self._join(bundle, now) for bundle in bundles)
            case Abandon(item):
                abandoned = item.number in self._queue.items
                if abandoned:
                    self._dequeue(item)
            case Finish(batch, computed):
                self._retire(batch, now, computed=computed)
                # Nothing waits that could expire or be launched: the end of most batches under
                # light load.
                if not self._queue.items:
                    return NOTHING_FOLLOWS
            case Tick():
                pass
        expired, launches, wake_at = self._what_follows(now)
        oldest = self._queue.oldest_arrival
        return Decisions(refusal, late, abandoned, expired, launches, wake_at, oldest)

    def _what_follows(self, now: float) -> tuple[tuple[WorkItem, ...], tuple[Batch, ...], float]:
        """Returns expired items, batches for free lanes, and when to look again."""
        queue = self._queue
        # Before the launches: what has expired must not cost device time.
        expired = tuple(self._expire(now)) if queue.next_deadline <= now else ()
        launches = tuple(self._launch(now)) if self._has_free_lane else ()
        # After the launches, which may have taken the item with the earliest deadline.
        wake_at = queue.next_deadline
        # While all lanes are busy the end of a window changes nothing: a Finish comes first.
        if self._limits.window_s and self._has_free_lane:
            wake_at = min(wake_at, queue.next_ready(now))
        return expired, launches, wake_at

    @property
    def _has_free_lane(self) -> bool:
        return len(self._running) < self._limits.lanes

    @property
    def _is_idle(self) -> bool:
        """Whether a lane is free and no item waits for it."""
        return not self._queue.items and len(self._running) < self._limits.lanes

    def _admit(self, item: WorkItem, now: float) -> OverloadedError | None:
        """Admits an item, which has a place then, or returns the error for its caller."""
        if item.place is not None:
            full = self._admission.resize(item.place, item.cost.size_bytes)
            return self._late(item, now) if full is None else self._full(full, item.caller, now)
        entered = self._admission.enter(item.caller, item.cost.size_bytes)
        if isinstance(entered, Full):
            return self._full(entered, item.caller, now)
        item.place = entered
        late = self._late(item, now)
        if late is not None:
            self.release(entered)
            item.place = None
        return late

    def _join(self, bundle: Bundle, now: float) -> DeadlineUnreachableError | None:
        """Queues a bundle of admitted calls; if they would be late, takes them out of the place."""
        place = bundle.place
        assert place is not None  # that of its message
        late = self._late(bundle, now)
        if late is None:
            self._enqueue(bundle)
        else:
            others = max(1, place.items - len(bundle.problems))  # the message itself stays
            self._admission.resize(place, place.size_bytes - bundle.cost.size_bytes, others)
        return late

    def _full(self, full: Full, caller: str, now: float) -> QueueFullError:
        wait_s = self._forecast.backlog_s(caller, now)
        return QueueFullError(*full, retry_after_s=max(wait_s, LEAST_RETRY_S))

    def _late(self, item: WorkItem, now: float) -> DeadlineUnreachableError | None:
        """Returns the error for an item that would miss its deadline; None if it would not.

        An idle device is always given a try: only running can correct a wrong estimate.
        """
        remaining_s = item.deadline - now
        # With a deadline that has passed, the item is queued and expires within the same step.
        if self._is_idle or not 0 < remaining_s < math.inf:
            return None
        wait_s = self._forecast.wait_s(item, self._queue.keys_beside(item.key), now)
        needed_s = wait_s + self._forecast.batch_s(item.key.operation, item.cost.work)
        if needed_s <= remaining_s:
            return None
        return DeadlineUnreachableError(needed_s, remaining_s, max(wait_s, LEAST_RETRY_S))

    def _enqueue(self, item: WorkItem) -> None:
        self._queue.add(item)
        self._forecast.enter(item)

    def _dequeue(self, item: WorkItem) -> None:
        self._queue.remove(item)
        self._forecast.leave((item,))

    def _expire(self, now: float) -> Iterator[WorkItem]:
        for item in self._queue.expired(now):
            self._dequeue(item)
            yield item

    def _launch(self, now: float) -> Iterator[Batch]:
        while self._has_free_lane and self._queue.items:
            batch = self._queue.take(now, self._forecast.batch_s)
            # Items wait, but the windows of all their keys are still open.
            if batch is None:
                return
            self._forecast.leave(batch.items)
            yield self._begun(batch, now)

    def _begun(self, batch: Batch, now: float) -> Batch:
        """Gives a lane to a batch; the device holds the places of its items until it has ended."""
        # The clock of a batch begins before the runner has it, so that forecasts include the
        # hand-over.
        self._running[batch] = now
        self.running_items += len(batch.problems)
        for item in batch.items:
            assert item.place is not None  # admitted
            item.place.holders += 1
        return batch

    def _retire(self, batch: Batch, now: float, *, computed: bool) -> None:
        """Frees the lane of a batch and the places that the device held."""
        self.running_items -= len(batch.problems)
        for item in batch.items:
            assert item.place is not None  # admitted
            self.release(item.place)
        duration_s = now - self._running.pop(batch)
        # How soon a batch fails says nothing about how long one takes.
        if computed:
            self._ran.append((batch.key.operation, batch.cost.work, duration_s))
