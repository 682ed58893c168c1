"""Orders everything that waits by when it should run.

Callers take turns in rounds: one that has taken a `TURN` of a batch is in the next round, and
earlier rounds go first. Keys take turns within a round. Within a key and a round the earliest due
item goes first.

The order changes with every turn that is taken, and is therefore found when a batch is formed, and
only as far as the batch goes: a look at the callers who wait, then at keys until one has its turn,
then at its callers and at the items that it takes.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stn_server.batching.work import NOTHING, Batch, BatchKey, Cost, Operation, WorkItem
from stn_server.tuning import LEAST_PART, TURN

Line = list[tuple[float, int, WorkItem]]
"""The items of one key and caller, ordered by the instant at which they are due, then by number."""


@dataclass(slots=True)
class _Group:
    """The items of one key."""

    since: float
    """The instant at which the key began to wait: the arrival of an item when there was none."""
    cost: Cost
    deadline: float = math.inf
    """No item has an earlier deadline."""
    lines: dict[str, Line] = field(default_factory=dict)
    """The items of each caller; no line is empty."""


@dataclass(slots=True)
class _Account:
    """The use of the device by a caller who has items in the queue."""

    taken: float
    """The sum of what it took, in batches, on a scale that all callers share."""
    waiting: int = 0

    @property
    def round(self) -> int:
        return int(self.taken / TURN)


class Queue:
    """The items between admission and launch.

    A new caller joins the present round: turns cannot be saved up, and nothing is remembered
    of callers without items.

    Args:
        budget: The most that a batch may cost.
        window_s: How long a key lets more items join before a free lane may take them.
    """

    def __init__(self, budget: Cost, window_s: float = 0.0) -> None:
        self._budget = budget
        self._window_s = window_s
        self.items: OrderedDict[int, WorkItem] = OrderedDict()
        """The items by number, in order of arrival; `add`, `remove` and `take` change them."""
        self.calls = 0
        """Counts the calls of these items."""
        self._deadlines: list[tuple[float, int]] = []
        """The deadlines of the items that have one, in order."""
        self._groups: dict[BatchKey, _Group] = {}
        """The keys in the order of their turns; none is without items."""
        self._accounts: dict[str, _Account] = {}
        self._taken = 0.0
        """The most that any caller had taken when it was last charged."""

    @property
    def oldest_arrival(self) -> float:
        """The instant at which the oldest item arrived; infinity if none waits."""
        return next(iter(self.items.values())).arrived if self.items else math.inf

    @property
    def next_deadline(self) -> float:
        """The earliest deadline; infinity if there is none."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def keys_beside(self, key: BatchKey) -> int:
        """Counts the other keys that wait."""
        return len(self._groups) - (key in self._groups)

    def add(self, item: WorkItem) -> None:
        """Adds an item to the queue."""
        self.items[item.number] = item
        self.calls += len(item.problems)
        if item.deadline < math.inf:
            insort(self._deadlines, (item.deadline, item.number))
        group = self._groups.get(item.key)
        if group is None:
            group = self._groups[item.key] = _Group(item.arrived, NOTHING)
        group.cost += item.cost
        group.deadline = min(group.deadline, item.deadline)
        # Numbers are unique, so that ties never come down to comparing items.
        insort(group.lines.setdefault(item.caller, []), (item.due, item.number, item))
        account = self._accounts.get(item.caller)
        if account is None:
            # Level with those whose turn it is: neither ahead for having been away, nor behind.
            account = self._accounts[item.caller] = _Account(self._taken)
        account.waiting += 1

    def remove(self, item: WorkItem) -> None:
        """Removes an item from the queue."""
        del self.items[item.number]
        self.calls -= len(item.problems)
        if item.deadline < math.inf:
            del self._deadlines[bisect_left(self._deadlines, (item.deadline, item.number))]
        group = self._groups[item.key]
        group.cost -= item.cost
        line = group.lines[item.caller]
        # A pair sorts directly before the triple that begins with it.
        del line[bisect_left(line, (item.due, item.number))]
        if not line:
            del group.lines[item.caller]
            if not group.lines:
                del self._groups[item.key]
        account = self._accounts[item.caller]
        account.waiting -= 1
        if account.waiting == 0:
            del self._accounts[item.caller]

    def expired(self, now: float) -> Iterator[WorkItem]:
        """Yields queued items whose deadline has passed, each to be removed before the next."""
        while self._deadlines and self._deadlines[0][0] <= now:
            yield self.items[self._deadlines[0][1]]

    def next_ready(self, now: float) -> float:
        """Returns when a window next ends; infinity if there is none."""
        instants = map(self._ready_at, self._groups.values())
        return min((instant for instant in instants if instant > now), default=math.inf)

    def take(self, now: float, batch_s: Callable[[Operation, int], float]) -> Batch | None:
        """Takes the next batch out of the queue; None if no key is ready.

        It gets items in order while it stays within the budget and ends before the first deadline
        in it. An item above the budget is alone.

        Args:
            now: The present instant.
            batch_s: Returns the expected duration of a batch of so much work.
        """
        key = self._next_key(now)
        if key is None:
            return None
        group = self._groups[key]
        # The deadline may be that of an item that has left, which only leads to the slower way.
        if group.cost.fits(self._budget):
            ends = now + batch_s(key.operation, group.cost.work)
            if ends <= group.deadline:
                return self._take_all(key)
        lines = group.lines
        # One head for each caller, ordered by round, due instant and number.
        heads = [(self._accounts[caller].round, *line[0]) for caller, line in lines.items()]
        heapq.heapify(heads)
        items: list[WorkItem] = []
        cost, ends_by = NOTHING, math.inf
        while heads:
            item = heads[0][-1]
            grown = cost + item.cost
            ends = now + batch_s(key.operation, grown.work)
            # The first item goes whatever it costs. Later ones are not searched for one that fits:
            # it would overtake, and large items would starve.
            if items and (ends > ends_by or not grown.fits(self._budget)):
                break
            if ends <= item.deadline:  # else it is late in any case, and need not cost the others
                ends_by = min(ends_by, item.deadline)
            items.append(item)
            cost = grown
            account = self._accounts[item.caller]
            self._charge(account, item)
            self.remove(item)
            # `remove` deletes a line with its last item. The charge may have moved the caller to
            # its next round, behind the other heads.
            line = lines.get(item.caller)
            if line:
                heapq.heapreplace(heads, (account.round, *line[0]))
            else:
                heapq.heappop(heads)
        if lines:
            self._groups[key] = self._groups.pop(key)  # behind the others
        return Batch.of(items, cost)

    def _take_all(self, key: BatchKey) -> Batch:
        """Takes all items of a key: what `take` does where they fit, in a third of the time."""
        group = self._groups.pop(key)
        items: list[WorkItem] = []
        for caller, line in group.lines.items():
            account = self._accounts[caller]
            for _, number, item in line:
                self._charge(account, item)
                items.append(item)
                del self.items[number]
                self.calls -= len(item.problems)
                if item.deadline < math.inf:
                    del self._deadlines[bisect_left(self._deadlines, (item.deadline, number))]
            account.waiting -= len(line)
            if account.waiting == 0:
                del self._accounts[caller]
        return Batch.of(items, group.cost)

    def _next_key(self, now: float) -> BatchKey | None:
        """Returns the ready key whose turn it is, by the earliest round of its callers."""
        earliest = min((account.round for account in self._accounts.values()), default=0)
        best, best_round = None, math.inf
        # Keys of one round take turns: `take` puts one that has more to give behind the others.
        for key, group in self._groups.items():
            if self._window_s and self._ready_at(group) > now:
                continue
            first_round = min(self._accounts[caller].round for caller in group.lines)
            if first_round < best_round:
                best, best_round = key, first_round
                if first_round == earliest:  # of no caller is there an earlier one
                    break
        return best

    def _charge(self, account: _Account, item: WorkItem) -> None:
        """Charges a caller for the part of a batch that an item takes."""
        # Before the charge: newcomers join the round that goes on, not the one after it.
        self._taken = max(self._taken, account.taken)
        account.taken += max(item.cost.part_of(self._budget), LEAST_PART)

    def _ready_at(self, group: _Group) -> float:
        """Returns when a free lane may take a batch of a key."""
        # What fills a batch gains nothing by waiting for more.
        full = not group.cost.fits(self._budget)
        return -math.inf if full else group.since + self._window_s
