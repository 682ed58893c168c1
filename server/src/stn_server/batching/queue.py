"""The items of one `BatchKey` that wait, in the order in which they should run."""

from __future__ import annotations

from collections import OrderedDict

from stn_server.batching.fairness import Turns
from stn_server.batching.ranking import Ranking
from stn_server.batching.work import NOTHING, WorkItem

Rank = tuple[int, float, int]
"""Round of the caller, instant at which the item is due, number of the item."""


class KeyQueue:
    """Callers of an earlier round first; within a round and a caller, what is due first.

    Args:
        turns: Of the callers, over all keys.
        turn: When this key had its turn, or came: the lowest number is next.
    """

    def __init__(self, turns: Turns, turn: int) -> None:
        self.turn = turn
        self._turns = turns
        self._items: OrderedDict[int, WorkItem] = OrderedDict()
        """By number, in order of arrival."""
        self._lines: dict[str, Ranking[int]] = {}
        """Numbers of the items of each caller."""
        self._callers: Ranking[str] = Ranking(self._rank_of)
        self.cost = NOTHING

    def __len__(self) -> int:
        return len(self._items)

    @property
    def oldest_arrival(self) -> float:
        """When the oldest item came."""
        return next(iter(self._items.values())).arrived

    @property
    def round(self) -> int:
        """Of the first item."""
        caller = self._callers.first()
        return 0 if caller is None else self._turns.round_of(caller)

    def add(self, item: WorkItem) -> None:
        """Takes an item in."""
        self._items[item.number] = item
        self.cost += item.cost
        line = self._lines.get(item.caller)
        if line is None:
            line = self._lines[item.caller] = Ranking(self._due)
        line.add(item.number)
        self._callers.add(item.caller)

    def remove(self, item: WorkItem) -> None:
        """Takes an item out."""
        del self._items[item.number]
        self.cost -= item.cost
        line = self._lines[item.caller]
        line.discard(item.number)
        if not line:
            del self._lines[item.caller]
            self._callers.discard(item.caller)

    def first(self) -> WorkItem | None:
        """The item that should run next."""
        caller = self._callers.first()
        return None if caller is None else self._items[self._first_of(caller)]

    def _first_of(self, caller: str) -> int:
        number = self._lines[caller].first()
        assert number is not None  # lines without items are removed
        return number

    def _rank_of(self, caller: str) -> Rank:
        number = self._first_of(caller)
        return self._turns.round_of(caller), self._items[number].due, number

    def _due(self, number: int) -> tuple[float, int]:
        return self._items[number].due, number
