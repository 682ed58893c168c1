"""Decides which items are admitted, which run together, and when.

A pure state machine: an event and the present instant go in, decisions come out. Knows no asyncio,
reads no clock, touches no engine, so that every rule can be tested with a virtual clock.

Rules:
- At the door: an item is refused if what is inside reaches a limit (`admission`), or if it would
  have to wait so long that it could not meet its deadline (`forecast`). A call may take its place
  before its item is known.
- Work-conserving: a free lane takes what waits, at once. While all are busy, work gathers. (A
  window above 0 lets work gather on a free lane, too.)
- A batch holds items of one `BatchKey` and of any sizes, up to a budget in bytes, samples and work,
  and only as many as let it end before the first deadline in it. An item above the budget runs
  alone.
- While the next batches have room for all that waits, nobody ranks it (`lobby`). Else:
- Callers take turns in rounds (`fairness`), keys take turns within a round; within a key and a
  round the earliest deadline goes first (`queue`). An item with a late deadline or none ages: it
  counts as due PATIENCE_S after it arrived.
- Expired and abandoned items leave the queue before they cost device time.
- Every admitted item leaves the queue exactly once: launched, expired or abandoned. It counts as
  inside until its reply has left.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from stn_server.batching.admission import Admission, Full
from stn_server.batching.fairness import Turns
from stn_server.batching.forecast import Forecast
from stn_server.batching.lobby import Lobby
from stn_server.batching.queue import KeyQueue
from stn_server.batching.ranking import Ranking
from stn_server.batching.work import NOTHING, Batch, BatchKey, Cost, Place, WorkItem


@dataclass(frozen=True, kw_only=True)
class PolicyLimits:
    """The numbers that the rules refer to."""

    budget: Cost
    """Of one batch."""
    max_admitted_items: int
    """Queued, running and being replied to, together."""
    max_admitted_bytes: int
    window_s: float = 0.0
    """How long a free lane waits for more, counted from the oldest item of a key."""
    lanes: int = 1
    """Batches that run at the same time."""


@dataclass(slots=True, eq=False)  # frozen ones take five times as long to make, here and below
class Arrive:
    """A validated request knocks."""

    item: WorkItem


@dataclass(slots=True, eq=False)
class Abandon:
    """The caller of an item has gone."""

    item: WorkItem


@dataclass(slots=True, eq=False)
class Finish:
    """A launched batch is through."""

    batch: Batch
    computed: bool = True
    """Whether the time it took says something about the device."""


@dataclass(slots=True, eq=False)
class Tick:
    """Time has passed."""


Event = Arrive | Abandon | Finish | Tick


@dataclass(frozen=True, slots=True)
class Late:
    """Why an item was not admitted: it could not meet its deadline."""

    needed_s: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Of an item that was not admitted."""

    why: Full | Late
    wait_s: float
    """How long it would have waited."""


class Decisions(NamedTuple):
    """What the caller of `Policy.step` has to carry out."""

    refusal: Refusal | None
    """Of the item that just arrived."""
    abandoned: bool
    """Whether the item whose caller has gone still waited; one that runs is left alone."""
    expired: tuple[WorkItem, ...]
    launches: tuple[Batch, ...]
    wake_at: float
    """When to send a Tick unless another event comes first; infinity: no need."""


NO_DECISIONS = Decisions(None, False, (), (), math.inf)
"""Of a policy that failed."""

NOTHING_WAITS = Decisions(None, False, (), (), math.inf)
"""And nothing follows."""


class Policy:
    """The state of the queue. See the module for its rules."""

    def __init__(self, limits: PolicyLimits) -> None:
        self._limits = limits
        self._admission = Admission(limits.max_admitted_items, limits.max_admitted_bytes)
        self._forecast = Forecast(limits.lanes)
        self._lobby = Lobby(limits.budget, self._forecast.batch_s)
        """Empty while anything is ranked."""
        self._turns = Turns(limits.budget)
        self._items: OrderedDict[int, WorkItem] = OrderedDict()
        """All that are ranked, by number, in order of arrival."""
        self._deadlines: Ranking[int] = Ranking(lambda n: (self._items[n].deadline, n))
        self._queues: dict[BatchKey, KeyQueue] = {}
        """The same items by key; none is empty."""
        self._key_turns = count()
        self._ripe: Ranking[BatchKey] = Ranking(self._place_of)
        """Keys of which a free lane may take a batch."""
        self._ripening: Ranking[BatchKey] = Ranking(self._ripens)
        """Keys whose window is open."""
        self._running: set[Batch] = set()
        self._on_device: set[int] = set()
        """Numbers of the items that run."""
        self._departed: set[int] = set()
        """Those among them whose caller has gone; the device still holds their bytes."""

    @property
    def queued_items(self) -> int:
        """Items that wait."""
        return len(self._items) + len(self._lobby)

    @property
    def running_items(self) -> int:
        """Items in launched batches that have not finished."""
        return len(self._on_device)

    @property
    def admitted_bytes(self) -> int:
        """Bytes of all items whose reply has not left."""
        return self._admission.size_bytes

    def reserve(self, caller: str, size_bytes: int, now: float) -> Place | Refusal:
        """A place for a call whose item is not known yet; an item may come in at it."""
        place = self._admission.reserve(caller, size_bytes)
        return self._turned_away(place, caller, now) if isinstance(place, Full) else place

    def resize(self, place: Place, size_bytes: int, now: float) -> Refusal | None:
        """Lets a place without an item count for another size, or says why it cannot."""
        full = self._admission.resize(place, size_bytes)
        return None if full is None else self._turned_away(full, place.caller, now)

    def release(self, place: Place) -> None:
        """Gives a place back at which no item has come in."""
        self._admission.release(place)

    def oldest_arrival(self) -> float:
        """When the oldest waiting item came; infinity if none waits."""
        if self._items:
            return next(iter(self._items.values())).arrived
        return self._lobby.oldest_arrival

    def step(self, event: Event, now: float) -> Decisions:
        """Takes an event into the state and returns what follows from it."""
        refusal, abandoned = None, False
        match event:
            case Arrive(item):
                if self._may_pass(item, now):
                    return self._pass(item, now)
                refusal = self._admit(item, now)
            case Abandon(item):
                abandoned = self._abandon(item)
            case Finish(batch, computed):
                self._retire(batch)
                self._forecast.finished(batch, now, computed=computed)
                if self._nothing_waits:
                    return NOTHING_WAITS
            case Tick():
                pass
        expired = tuple(self._expire(now))
        launches = tuple(self._launch(now))
        return Decisions(refusal, abandoned, expired, launches, self._wake_at())

    def depart(self, item: WorkItem) -> None:
        """The reply of an admitted item has left, or nobody is there to read it.

        Gives its place back, after its batch if it runs. Changes nothing for those who wait.
        """
        if item.number in self._on_device:
            self._departed.add(item.number)
        else:
            self._admission.leave(item)

    def _turned_away(self, why: Full, caller: str, now: float) -> Refusal:
        self._rank_lobby(now)  # what is ranked is forecast
        return Refusal(why, self._forecast.backlog_s(caller, now))

    @property
    def _nothing_waits(self) -> bool:
        return not (self._items or self._lobby)

    def _may_pass(self, item: WorkItem, now: float) -> bool:
        """Whether an item need not wait for anybody or anything."""
        free = self._has_free_lane and self._nothing_waits and not self._limits.window_s
        return free and item.deadline > now and self._admission.full(item) is None

    def _pass(self, item: WorkItem, now: float) -> Decisions:
        """Launches an item that comes to a free lane while nothing waits: the common case."""
        self._admission.enter(item)
        batch = Batch(item.key, (item,), item.cost)
        self._begin(batch, now)
        return Decisions(None, False, (), (batch,), math.inf)

    def _admit(self, item: WorkItem, now: float) -> Refusal | None:
        why: Full | Late | None = self._admission.full(item)
        if why is None and self._has_room_in_lobby(item, now):
            self._admission.enter(item)
            self._lobby.add(item)
            return None
        self._rank_lobby(now)
        why = why or self._late(item, now)
        if why is not None:
            return Refusal(why, self._wait_s(item, now))
        self._admission.enter(item)
        self._enqueue(item, now)
        return None

    def _has_room_in_lobby(self, item: WorkItem, now: float) -> bool:
        if self._items or self._limits.window_s:
            return False
        return self._lobby.has_room(item, now + self._forecast.until_free(now))

    def _rank_lobby(self, now: float) -> None:
        """From now on it matters who goes first."""
        for item in self._lobby.clear():
            self._enqueue(item, now)

    def _late(self, item: WorkItem, now: float) -> Late | None:
        """Why an item would not be through in time, if it would not.

        An idle device is always given a try: only running can correct a wrong estimate.
        """
        remaining_s = item.deadline - now
        idle = self._has_free_lane and not self._items
        if idle or not 0 < remaining_s < math.inf:
            return None
        needed_s = self._wait_s(item, now)
        needed_s += self._forecast.batch_s(item.key.operation, item.cost.work)
        return Late(needed_s, remaining_s) if needed_s > remaining_s else None

    def _wait_s(self, item: WorkItem, now: float) -> float:
        other_keys = len(self._queues) - (item.key in self._queues)
        return self._forecast.wait_s(item, other_keys, now)

    def _enqueue(self, item: WorkItem, now: float) -> None:
        self._items[item.number] = item
        if item.deadline < math.inf:
            self._deadlines.add(item.number)
        self._turns.enter(item)
        self._forecast.enter(item)
        queue = self._queues.get(item.key)
        if queue is None:
            queue = self._queues[item.key] = KeyQueue(self._turns, next(self._key_turns))
        queue.add(item)
        self._line_up(item.key, now)

    def _dequeue(self, item: WorkItem) -> None:
        del self._items[item.number]
        self._deadlines.discard(item.number)
        self._turns.leave(item)
        self._forecast.leave(item)
        queue = self._queues[item.key]
        queue.remove(item)
        if not queue:
            del self._queues[item.key]
            self._ripe.discard(item.key)
            self._ripening.discard(item.key)

    def _abandon(self, item: WorkItem) -> bool:
        """Removes an item that still waits; says whether it did."""
        if self._lobby.discard(item):
            return True
        waits = item.number in self._items
        if waits:
            self._dequeue(item)
        return waits

    def _retire(self, batch: Batch) -> None:
        self._running.remove(batch)
        for item in batch.items:
            self._on_device.remove(item.number)
            if item.number in self._departed:
                self._departed.remove(item.number)
                self._admission.leave(item)

    def _expire(self, now: float) -> Iterator[WorkItem]:
        if self._lobby.deadline <= now:
            self._rank_lobby(now)
        while (item := self._most_pressing()) is not None and item.deadline <= now:
            self._dequeue(item)
            yield item

    def _most_pressing(self) -> WorkItem | None:
        """The waiting item of the earliest deadline; None if none has one."""
        number = self._deadlines.first()
        return None if number is None else self._items[number]

    def _line_up(self, key: BatchKey, now: float) -> None:
        """Puts a key where its batches are taken from, or where its window is waited for."""
        if key in self._ripe or self._ripe_at(key) <= now:
            self._ripening.discard(key)
            self._ripe.add(key)
        else:
            self._ripening.add(key)

    def _place_of(self, key: BatchKey) -> tuple[int, int]:
        queue = self._queues[key]
        return queue.round, queue.turn

    def _ripens(self, key: BatchKey) -> tuple[float, int]:
        return self._ripe_at(key), self._queues[key].turn

    def _ripe_at(self, key: BatchKey) -> float:
        """When a free lane may take a batch of this key."""
        queue = self._queues[key]
        if not queue.cost.fits(self._limits.budget):
            return -math.inf
        return queue.oldest_arrival + self._limits.window_s

    def _launch(self, now: float) -> Iterator[Batch]:
        while (key := self._ripening.first()) is not None and self._ripe_at(key) <= now:
            self._line_up(key, now)
        while self._has_free_lane and (batch := self._next_batch(now)) is not None:
            self._begin(batch, now)
            yield batch

    def _begin(self, batch: Batch, now: float) -> None:
        self._running.add(batch)
        self._on_device.update(item.number for item in batch.items)
        self._forecast.launched(batch, now)

    def _next_batch(self, now: float) -> Batch | None:
        if self._lobby:
            batch = self._lobby.next_batch(now)
            if batch is not None:
                return batch
            self._rank_lobby(now)
        key = self._ripe.first()
        return None if key is None else self._form(key, now)

    @property
    def _has_free_lane(self) -> bool:
        return len(self._running) < self._limits.lanes

    def _form(self, key: BatchKey, now: float) -> Batch:
        """Takes items in order while the batch stays within its budget and its deadlines."""
        queue = self._queues[key]
        items: list[WorkItem] = []
        cost, ends_by = NOTHING, math.inf
        while (item := queue.first()) is not None:
            grown = cost + item.cost
            ends = now + self._forecast.batch_s(key.operation, grown.work)
            if items and (ends > ends_by or not grown.fits(self._limits.budget)):
                break
            if ends <= item.deadline:  # else it is late in any case, and need not cost the others
                ends_by = min(ends_by, item.deadline)
            self._turns.take(item)
            self._dequeue(item)
            items.append(item)
            cost = grown
        if queue:
            queue.turn = next(self._key_turns)
            self._ripe.discard(key)
            self._line_up(key, now)
        return Batch(key, tuple(items), cost)

    def _wake_at(self) -> float:
        """The next instant at which time alone changes something."""
        item = self._most_pressing()
        key = self._ripening.first() if self._has_free_lane else None
        return min(
            self._lobby.deadline if item is None else item.deadline,
            math.inf if key is None else self._ripe_at(key),
        )
