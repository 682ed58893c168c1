"""Forecasts when an item would be computed: after what runs, what goes first, and itself.

Reads no clock. What a batch takes is learned from the batches that ran.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stn_server.batching.work import Batch, Operation, WorkItem
from stn_server.tuning import (
    DUE_SLICE_S,
    MEMORY,
    SAFETY,
    SHORTEST_S,
    STIFFNESS,
    SURPRISE,
    TRUSTED_BATCHES,
)


@dataclass(slots=True)
class _Fit:
    """A line through (work, seconds) by weighted least squares, neither part negative."""

    batches: int = 0
    weight: float = 0.0
    x: float = 0.0
    """The weighted mean of work; `y` is that of seconds."""
    y: float = 0.0
    xx: float = 0.0
    """The weighted variance of work; `xy` is the covariance."""
    xy: float = 0.0
    slope: float = 0.0
    overhead: float = 0.0

    def at(self, work: float) -> float:
        return self.overhead + self.slope * work

    def observe(self, work: int, seconds: float) -> None:
        # Clipped, not dropped: an accident hardly counts, yet a lasting change is followed. An
        # expectation of 0 would clip everything to 0.
        if self.batches >= TRUSTED_BATCHES:
            expected = max(self.at(work), SHORTEST_S)
            seconds = min(max(seconds, expected / SURPRISE), expected * SURPRISE)
        self.batches += 1
        # Exponential forgetting, updated in one pass from deviations (Welford): sums of squares
        # would lose their digits by cancellation.
        self.weight = MEMORY * self.weight + 1
        share = 1 / self.weight
        dx, dy = work - self.x, seconds - self.y
        self.x += share * dx
        self.y += share * dy
        self.xx += share * ((1 - share) * dx * dx - self.xx)
        self.xy += share * ((1 - share) * dx * dy - self.xy)
        through_origin = self.y / self.x if self.x else 0.0
        # A ridge towards the line through the origin: with batches all of one size the variance is
        # 0, and the slope would be undefined.
        pull = STIFFNESS * self.x**2
        slope = (self.xy + pull * through_origin) / ((self.xx + pull) or 1.0)
        # At most `through_origin`, as a steeper line has a negative overhead.
        self.slope = min(max(0.0, slope), through_origin)
        self.overhead = max(0.0, self.y - self.slope * self.x)


class CostModel:
    """Seconds of a batch = slope * work + overhead, for every operation.

    Robust: single batches that were held up hardly move it, and a device that became slower or
    faster is followed within some batches. Knows nothing at first and then expects 0 s.
    """

    def __init__(self) -> None:
        self._fits: defaultdict[Operation, _Fit] = defaultdict(_Fit)

    def observe(self, operation: Operation, work: int, seconds: float) -> None:
        """Learns from a batch that ran."""
        self._fits[operation].observe(work, seconds)

    def batch_s(self, operation: Operation, work: int) -> float:
        """Returns the expected duration of a batch."""
        return self._fits[operation].at(work)

    def overhead_s(self, operation: Operation) -> float:
        """Returns the expected duration of a batch without its work."""
        return self._fits[operation].overhead

    def work_s(self, operation: Operation, work: int) -> float:
        """Returns what an amount of work is expected to add to a batch."""
        return self._fits[operation].slope * work


Backlog = dict[tuple[int, Operation], int]
"""Work that waits, by the slice of time in which it is due and by operation: some dozen sums,
however long the queue, as nothing is due later than some seconds from now."""


class Forecast:
    """Adds up the work that waits, and converts it to seconds.

    Args:
        lanes: Batches that run at the same time.
        running: When each batch that runs was launched.
        ran: The batches that ran since the last look: operation, work and seconds of each.
    """

    def __init__(
        self, lanes: int, running: Mapping[Batch, float], ran: deque[tuple[Operation, int, float]]
    ) -> None:
        self._lanes = lanes
        self._running = running
        self._ran = ran
        self._known = CostModel()
        self._everyone: Backlog = {}
        self._callers: dict[str, Backlog] = {}

    def enter(self, item: WorkItem) -> None:
        """Adds the work of an item that begins to wait."""
        part, work = _part(item)
        own = self._callers.get(item.caller)
        if own is None:
            own = self._callers[item.caller] = {}
        own[part] = own.get(part, 0) + work
        self._everyone[part] = self._everyone.get(part, 0) + work

    def leave(self, items: Iterable[WorkItem]) -> None:
        """Subtracts the work of items that wait no longer."""
        for item in items:
            part, work = _part(item)
            own = self._callers[item.caller]
            for backlog in (own, self._everyone):
                # Of integers, so that a sum comes back to exactly 0 and can be deleted.
                left = backlog[part] - work
                if left:
                    backlog[part] = left
                else:
                    del backlog[part]
            if not own:
                del self._callers[item.caller]

    def batch_s(self, operation: Operation, work: int) -> float:
        """Returns the expected duration of a batch, with a margin of safety."""
        return SAFETY * self._model.batch_s(operation, work)

    def wait_s(self, item: WorkItem, other_keys: int, now: float) -> float:
        """Returns how long an item would wait for its batch to begin, with a margin of safety.

        Running batches go before it, then work that is due earlier, but of other callers no more
        than their share, and one launch for each other key that has its turn.
        """
        launches = other_keys * self._model.overhead_s(item.key.operation)
        waiting = self._before_s(item.caller, _slice(item)) + launches
        return self._until_free(now) + SAFETY * waiting / self._lanes

    def backlog_s(self, caller: str, now: float) -> float:
        """Returns how long an item would wait that a caller sends now and that is due last."""
        return self._until_free(now) + SAFETY * self._before_s(caller, math.inf) / self._lanes

    @property
    def _model(self) -> CostModel:
        """The cost model, brought up to date with all batches that ran."""
        # Only when a forecast is asked for: calls that find the server idle do without the fit.
        while self._ran:
            self._known.observe(*self._ran.popleft())
        return self._known

    def _until_free(self, now: float) -> float:
        """Returns the seconds until the first lane is free, with a margin of safety.

        A batch that is late is expected to be late for as long again.
        """
        if len(self._running) < self._lanes:
            return 0.0
        batch_s = self._model.batch_s
        return SAFETY * min(
            abs(launched + batch_s(batch.key.operation, batch.cost.work) - now)
            for batch, launched in self._running.items()
        )

    def _before_s(self, caller: str, last: float) -> float:
        """Returns the seconds of work that goes before a caller's item of this slice."""
        own = self._callers.get(caller)
        if not own:
            return 0.0
        everyone_s = self._seconds(self._everyone, last)
        if len(self._callers) == 1:
            return everyone_s
        # Callers take turns: before its item, each other one gets no more than this caller itself.
        return min(everyone_s, len(self._callers) * self._seconds(own, last))

    def _seconds(self, backlog: Backlog, last: float) -> float:
        """Adds up the seconds of work that is due in a slice up to the last."""
        work_s, seconds = self._model.work_s, 0.0
        for (due, operation), work in backlog.items():
            if due <= last:
                seconds += work_s(operation, work)
        return seconds


def _part(item: WorkItem) -> tuple[tuple[int, Operation], int]:
    """Returns the sum of a backlog to which an item adds, and its work, of at least 1."""
    return (_slice(item), item.key.operation), item.cost.work or 1


def _slice(item: WorkItem) -> int:
    return int(item.due / DUE_SLICE_S)
