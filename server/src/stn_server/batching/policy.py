"""Decides which items are admitted, which run together, and when.

A pure state machine: an event and the present instant go in, decisions come out. Knows no asyncio,
reads no clock, touches no engine, so that every rule can be tested with a virtual clock.

Rules:
- Work-conserving: a free lane takes what waits, at once. While all are busy, work gathers. (A
  window above 0 lets work gather on a free lane, too.)
- A batch holds items of one `BatchKey` and of any sizes, up to a budget in bytes and samples.
  An item above the budget runs alone.
- Keys take turns; within a key the earliest deadline goes first, then the earliest arrival. An item
  with a late deadline or none ages: it counts as due PATIENCE_S after it arrived.
- Expired and abandoned items leave the queue before they cost device time.
- Every admitted item leaves exactly once: launched, expired or abandoned.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass, field

from stn_server.batching.work import NOTHING, Batch, BatchKey, Cost, WorkItem

PATIENCE_S = 1.0
"""Long enough for deadlines to mean something, short enough that nobody is passed over for long."""


@dataclass(frozen=True, kw_only=True)
class PolicyLimits:
    """The numbers that the rules refer to."""

    budget: Cost
    """Of one batch."""
    max_admitted_items: int
    """Queued and running together."""
    max_admitted_bytes: int
    window_s: float = 0.0
    """How long a free lane waits for more, counted from the oldest item of a key."""
    lanes: int = 1
    """Batches that run at the same time."""


@dataclass(frozen=True, slots=True)
class Arrive:
    """A validated request knocks."""

    item: WorkItem


@dataclass(frozen=True, slots=True)
class Abandon:
    """The caller of an item has gone."""

    item: WorkItem


@dataclass(frozen=True, slots=True)
class Finish:
    """A launched batch is through, whatever its outcome."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Arrive | Abandon | Finish | Tick


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an item was not admitted."""

    what: str
    """Unit of the two numbers: "items" or "bytes"."""
    limit: int
    actual: int


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the caller of `Policy.step` has to carry out."""

    refusal: Refusal | None
    """Of the item that just arrived."""
    abandoned: bool
    """Whether the item whose caller has gone still waited; one that runs is left alone."""
    expired: tuple[WorkItem, ...]
    launches: tuple[Batch, ...]
    wake_at: float
    """When to send a Tick unless another event comes first; infinity: no need."""


@dataclass(slots=True)
class _Queue:
    """The waiting items of one key."""

    heap: list[tuple[float, int, WorkItem]] = field(default_factory=list)
    """By urgency."""
    waiting: dict[int, WorkItem] = field(default_factory=dict)
    """By number, in order of arrival; an item missing here is dead in the heap."""
    cost: Cost = NOTHING

    def push(self, item: WorkItem) -> None:
        urgency = min(item.deadline, item.arrived + PATIENCE_S)
        heapq.heappush(self.heap, (urgency, item.number, item))
        self.waiting[item.number] = item
        self.cost += item.cost

    def discard(self, item: WorkItem) -> bool:
        """Takes an item out of the order; says whether it was waiting."""
        if self.waiting.pop(item.number, None) is None:
            return False
        self.cost -= item.cost
        return True

    def first(self) -> WorkItem | None:
        """The most urgent item."""
        while self.heap and self.heap[0][1] not in self.waiting:
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None

    def oldest_arrival(self) -> float:
        return next(iter(self.waiting.values())).arrived


class Policy:
    """The state of the queue. See the module for its rules."""

    def __init__(self, limits: PolicyLimits) -> None:
        self._limits = limits
        self._queues: OrderedDict[BatchKey, _Queue] = OrderedDict()
        self._deadlines: list[tuple[float, int, WorkItem]] = []
        """Heap of all that can expire; may hold items that have left since."""
        self._running: set[Batch] = set()
        self._admitted = NOTHING
        self._queued_items = 0
        self._running_items = 0

    @property
    def queued_items(self) -> int:
        """Items that wait."""
        return self._queued_items

    @property
    def running_items(self) -> int:
        """Items in launched batches that have not finished."""
        return self._running_items

    @property
    def admitted_bytes(self) -> int:
        """Bytes of all items that wait or run."""
        return self._admitted.size_bytes

    def oldest_arrival(self) -> float:
        """When the oldest waiting item came; infinity if none waits."""
        return min((queue.oldest_arrival() for queue in self._queues.values()), default=math.inf)

    def step(self, event: Event, now: float) -> Decisions:
        """Takes an event into the state and returns what follows from it."""
        refusal, abandoned = None, False
        match event:
            case Arrive(item):
                refusal = self._admit(item)
            case Abandon(item):
                abandoned = self._remove(item)
            case Finish(batch):
                self._retire(batch)
            case Tick():
                pass
        expired = tuple(self._expire(now))
        launches = tuple(self._launch(now))
        return Decisions(refusal, abandoned, expired, launches, self._wake_at(now))

    def _admit(self, item: WorkItem) -> Refusal | None:
        items = self._queued_items + self._running_items + 1
        if items > self._limits.max_admitted_items:
            return Refusal("items", self._limits.max_admitted_items, items)
        admitted = self._admitted + item.cost
        if admitted.size_bytes > self._limits.max_admitted_bytes:
            return Refusal("bytes", self._limits.max_admitted_bytes, admitted.size_bytes)
        self._admitted = admitted
        self._queued_items += 1
        self._queues.setdefault(item.key, _Queue()).push(item)
        if item.deadline < math.inf:
            heapq.heappush(self._deadlines, (item.deadline, item.number, item))
        return None

    def _remove(self, item: WorkItem) -> bool:
        """Removes an item that still waits; says whether it did."""
        queue = self._queues.get(item.key)
        if queue is None or not queue.discard(item):
            return False
        self._leave_queue(item.key, queue, 1)
        self._admitted -= item.cost
        return True

    def _retire(self, batch: Batch) -> None:
        self._running.remove(batch)
        self._running_items -= len(batch.items)
        for item in batch.items:
            self._admitted -= item.cost

    def _expire(self, now: float) -> list[WorkItem]:
        expired = []
        while self._next_deadline() <= now:
            item = self._deadlines[0][2]
            self._remove(item)
            expired.append(item)
        return expired

    def _next_deadline(self) -> float:
        """The earliest deadline of an item that waits; infinity if none has one."""
        while self._deadlines and not self._waits(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def _waits(self, item: WorkItem) -> bool:
        queue = self._queues.get(item.key)
        return queue is not None and item.number in queue.waiting

    def _launch(self, now: float) -> list[Batch]:
        launches = []
        while len(self._running) < self._limits.lanes:
            key = next((key for key in self._queues if self._ripe_at(key) <= now), None)
            if key is None:
                break
            batch = self._form(key)
            self._running.add(batch)
            self._running_items += len(batch.items)
            launches.append(batch)
        return launches

    def _ripe_at(self, key: BatchKey) -> float:
        """When a free lane may take a batch of this key."""
        queue = self._queues[key]
        if not queue.cost.fits(self._limits.budget):
            return -math.inf
        return queue.oldest_arrival() + self._limits.window_s

    def _form(self, key: BatchKey) -> Batch:
        """Takes items in order until the next would exceed the budget; sends the key to the end."""
        queue = self._queues[key]
        self._queues.move_to_end(key)
        items: list[WorkItem] = []
        cost = NOTHING
        while (item := queue.first()) is not None:
            if items and not (cost + item.cost).fits(self._limits.budget):
                break
            queue.discard(item)
            items.append(item)
            cost += item.cost
        self._leave_queue(key, queue, len(items))
        return Batch(key, tuple(items))

    def _leave_queue(self, key: BatchKey, queue: _Queue, count: int) -> None:
        self._queued_items -= count
        if not queue.waiting:
            del self._queues[key]

    def _wake_at(self, now: float) -> float:
        """The next instant at which time alone changes something."""
        ripe = math.inf
        if len(self._running) < self._limits.lanes:
            ripe = min(map(self._ripe_at, self._queues), default=math.inf)
        return min(self._next_deadline(), ripe if ripe > now else math.inf)
