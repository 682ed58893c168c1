"""The door: how many items and bytes may be inside, in all and of one caller."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stn_server.batching.work import Place, WorkItem

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
        beyond = self.beyond_limit(amount)
        if beyond is not None:
            return beyond
        held, share = self._held.get(caller, 0), GREED * (self._limit - self.total)
        if held > share:
            return Full(f"{self._what} of one caller", share, held + amount)
        return None

    def beyond_limit(self, amount: int) -> Full | None:
        """Why so much more is too much, whoever it is for."""
        if self.total + amount > self._limit:
            return Full(self._what, self._limit, self.total + amount)
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

    A call may take its place before its item is known, by what is known of its size. What has a
    place already is only held against the limit, and only if it grows: to send it away costs more.
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
        if item.place is not None:
            return self._bytes.beyond_limit(item.cost.size_bytes - item.place.size_bytes)
        return self._full(item.caller, item.cost.size_bytes)

    def enter(self, item: WorkItem) -> None:
        """An item comes in."""
        if item.place is not None:
            self._resize(item.place, item.cost.size_bytes)
        else:
            self._add(item.caller, item.cost.size_bytes)

    def leave(self, item: WorkItem) -> None:
        """An item is gone, and its reply with it."""
        self._subtract(item.caller, item.cost.size_bytes)

    def reserve(self, caller: str, size_bytes: int) -> Place | Full:
        """A place for a call whose item is not known yet, or why there is none."""
        full = self._full(caller, size_bytes)
        if full is not None:
            return full
        self._add(caller, size_bytes)
        return Place(caller, size_bytes)

    def resize(self, place: Place, size_bytes: int) -> Full | None:
        """Changes what a place without an item counts for; says why it cannot, if it cannot."""
        full = self._bytes.beyond_limit(size_bytes - place.size_bytes)
        if full is None:
            self._resize(place, size_bytes)
        return full

    def release(self, place: Place) -> None:
        """A place whose item has never come in is free again."""
        self._subtract(place.caller, place.size_bytes)

    def _full(self, caller: str, size_bytes: int) -> Full | None:
        return self._items.full(caller, 1) or self._bytes.full(caller, size_bytes)

    def _add(self, caller: str, size_bytes: int) -> None:
        self._items.add(caller, 1)
        self._bytes.add(caller, size_bytes)

    def _subtract(self, caller: str, size_bytes: int) -> None:
        self._items.subtract(caller, 1)
        self._bytes.subtract(caller, size_bytes)

    def _resize(self, place: Place, size_bytes: int) -> None:
        self._bytes.add(place.caller, size_bytes - place.size_bytes)
        place.size_bytes = size_bytes
