"""The door: how many items and bytes may be inside, in all and of one caller."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stn_server.batching.work import WorkItem

GREED = 4
"""How many times what is free one caller may hold: 80 % of the limit if it is alone."""


@dataclass(frozen=True, slots=True)
class Full:
    """Why an item was not admitted: a limit is reached."""

    what: str
    """Unit of the two numbers."""
    limit: int
    actual: int


class _Counter:
    """One quantity of what is inside, and how much of it each caller holds."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self.total = 0
        self._held: defaultdict[str, int] = defaultdict(int)

    def full(self, caller: str, amount: int) -> Full | None:
        """Why so much more cannot be admitted, if it cannot."""
        if self.total + amount > self._limit:
            return Full(self._what, self._limit, self.total + amount)
        held, share = self._held.get(caller, 0), GREED * (self._limit - self.total)
        if held > share:
            return Full(f"{self._what} of one caller", share, held + amount)
        return None

    def add(self, caller: str, amount: int) -> None:
        self.total += amount
        self._held[caller] += amount

    def subtract(self, caller: str, amount: int) -> None:
        self.total -= amount
        self._held[caller] -= amount
        if self._held[caller] == 0:
            del self._held[caller]


class Admission:
    """Counts what is inside: from arrival until the reply has left.

    A caller may hold `GREED` times what is free, so that however much the present callers ask for,
    there is room for the next one. A caller that holds nothing is admitted while there is room.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._items = _Counter("items", max_items)
        self._bytes = _Counter("bytes", max_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all that is inside."""
        return self._bytes.total

    def full(self, item: WorkItem) -> Full | None:
        """Why an item cannot be admitted, if it cannot."""
        return self._items.full(item.caller, 1) or self._bytes.full(
            item.caller, item.cost.size_bytes
        )

    def enter(self, item: WorkItem) -> None:
        """An item comes in."""
        self._items.add(item.caller, 1)
        self._bytes.add(item.caller, item.cost.size_bytes)

    def leave(self, item: WorkItem) -> None:
        """An item is gone, and its reply with it."""
        self._items.subtract(item.caller, 1)
        self._bytes.subtract(item.caller, item.cost.size_bytes)
