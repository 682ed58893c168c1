"""The first of many things, by ranks that change while they wait."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Ranking(Generic[T]):
    """Finds the lowest rank without looking at the rest.

    A heap with lazy repair: entries of things that left, or that have a newer entry, are dropped
    when they come up. A rank that rose is noticed then, too; whoever lowers one calls `add` again.

    Args:
        rank_of: The present rank of a thing. No two things may have the same.
    """

    def __init__(self, rank_of: Callable[[T], Any]) -> None:
        self._rank_of = rank_of
        self._heap: list[tuple[Any, T]] = []
        self._ranks: dict[T, Any] = {}
        """The rank of the one entry of each thing that counts."""

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, thing: T) -> bool:
        return thing in self._ranks

    def add(self, thing: T) -> None:
        """Takes a thing in, or takes note of its new rank."""
        rank = self._rank_of(thing)
        if self._ranks.get(thing) == rank:
            return
        self._ranks[thing] = rank
        heapq.heappush(self._heap, (rank, thing))
        if len(self._heap) > 2 * len(self._ranks) + 8:  # mostly dead: amortized, this is free
            self._heap = [(rank, thing) for thing, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def discard(self, thing: T) -> None:
        """Takes a thing out, if it is in."""
        self._ranks.pop(thing, None)

    def first(self) -> T | None:
        """The thing of the lowest rank; None if there is none."""
        while self._heap:
            rank, thing = self._heap[0]
            if self._ranks.get(thing) != rank:
                heapq.heappop(self._heap)
            elif self._rank_of(thing) != rank:
                self.add(thing)
            else:
                return thing
        return None
