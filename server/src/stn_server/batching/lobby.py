"""Where items wait as long as the next batches can take them all, so that nobody ranks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stn_server.batching.work import NOTHING, Batch, BatchKey, Cost, Operation, WorkItem

MAX_GROUPS = 8
"""Keys that wait; with more, who goes first matters."""


@dataclass(slots=True)
class _Group:
    """Items of one key that fit into one batch."""

    key: BatchKey
    items: dict[int, WorkItem] = field(default_factory=dict)
    """By number, in order of arrival."""
    cost: Cost = NOTHING
    deadline: float = math.inf
    """The earliest of those that came; who had it may have gone."""


class Lobby:
    """Items of few keys, each key no more than a batch. Keys go first that came first.

    Args:
        budget: Of one batch.
        batch_s: What a batch will take, in seconds.
    """

    def __init__(self, budget: Cost, batch_s: Callable[[Operation, int], float]) -> None:
        self._budget = budget
        self._batch_s = batch_s
        self._groups: dict[BatchKey, _Group] = {}
        self.deadline = math.inf
        """No item has an earlier one."""

    def __len__(self) -> int:
        return sum(len(group.items) for group in self._groups.values())

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def oldest_arrival(self) -> float:
        """When the oldest item came; infinity if none waits."""
        if not self._groups:
            return math.inf
        firsts = (next(iter(group.items.values())) for group in self._groups.values())
        return min(item.arrived for item in firsts)

    def has_room(self, item: WorkItem, starts: float) -> bool:
        """Whether an item fits, and nobody misses a deadline by it.

        Args:
            item: Newcomer.
            starts: When the next batch can begin.
        """
        group, cost = self._groups.get(item.key), item.cost
        if group is not None:
            cost += group.cost
        elif len(self._groups) == MAX_GROUPS:
            return False
        if not cost.fits(self._budget):
            return False
        deadline = min(item.deadline, self.deadline)
        return deadline == math.inf or starts + self._work_s(item) <= deadline

    def add(self, item: WorkItem) -> None:
        """Takes an item in."""
        group = self._groups.get(item.key)
        if group is None:
            group = self._groups[item.key] = _Group(item.key)
        group.items[item.number] = item
        group.cost += item.cost
        group.deadline = min(group.deadline, item.deadline)
        self.deadline = min(self.deadline, item.deadline)

    def discard(self, item: WorkItem) -> bool:
        """Takes an item out, if it is in; says whether it was."""
        group = self._groups.get(item.key)
        if group is None or group.items.pop(item.number, None) is None:
            return False
        group.cost -= item.cost
        if not group.items:
            self._remove(group)
        return True

    def next_batch(self, now: float) -> Batch | None:
        """The group whose turn it is; None if there is none, or if it might miss a deadline."""
        for group in self._groups.values():
            if now + self._batch_s(group.key.operation, group.cost.work) > group.deadline:
                return None
            self._remove(group)
            return Batch(group.key, tuple(group.items.values()), group.cost)
        return None

    def clear(self) -> Iterator[WorkItem]:
        """Takes all items out, in order of arrival within a key."""
        groups, self._groups, self.deadline = self._groups, {}, math.inf
        for group in groups.values():
            yield from group.items.values()

    def _remove(self, group: _Group) -> None:
        del self._groups[group.key]
        self.deadline = min((other.deadline for other in self._groups.values()), default=math.inf)

    def _work_s(self, item: WorkItem) -> float:
        """All that waits, an item included, one batch after the other."""
        work_s = self._batch_s(item.key.operation, item.cost.work)
        for group in self._groups.values():
            work_s += self._batch_s(group.key.operation, group.cost.work)
        return work_s
