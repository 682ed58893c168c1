"""What the device takes for a batch, learned from the batches that ran. Reads no clock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stn_server.batching.work import Operation

MEMORY = 0.97
"""Weight of the past against one new batch: the last thirty or so count."""

TRUSTED_BATCHES = 8
"""From then on a batch that takes several times as long or short as expected is an accident."""

SURPRISE = 4.0
"""How many times as long or short; a lasting change is followed by this factor a batch."""

SHORTEST_S = 1e-6
"""No batch is expected to take less, so that a factor of it is something."""

STIFFNESS = 0.01
"""Pull towards a line through the origin, which decides while batches are all of one size."""


@dataclass(slots=True)
class _Fit:
    """A line through (work, seconds) by weighted least squares, neither part negative."""

    batches: int = 0
    weight: float = 0.0
    x: float = 0.0
    """Weighted mean of work; `y` that of seconds."""
    y: float = 0.0
    xx: float = 0.0
    """Weighted variance of work; `xy` the covariance."""
    xy: float = 0.0
    slope: float = 0.0
    overhead: float = 0.0

    def at(self, work: float) -> float:
        return self.overhead + self.slope * work

    def observe(self, work: int, seconds: float) -> None:
        if self.batches >= TRUSTED_BATCHES:
            expected = max(self.at(work), SHORTEST_S)
            seconds = min(max(seconds, expected / SURPRISE), expected * SURPRISE)
        self.batches += 1
        self.weight = MEMORY * self.weight + 1
        share = 1 / self.weight
        dx, dy = work - self.x, seconds - self.y
        self.x += share * dx
        self.y += share * dy
        self.xx += share * ((1 - share) * dx * dx - self.xx)
        self.xy += share * ((1 - share) * dx * dy - self.xy)
        self._solve()

    def _solve(self) -> None:
        through_origin = self.y / self.x if self.x else 0.0
        pull = STIFFNESS * self.x**2
        slope = (self.xy + pull * through_origin) / ((self.xx + pull) or 1.0)
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
        """What a batch will take."""
        return self._fits[operation].at(work)

    def overhead_s(self, operation: Operation) -> float:
        """What a batch takes however small it is."""
        return self._fits[operation].overhead

    def work_s(self, operation: Operation, work: int) -> float:
        """What so much work adds to a batch."""
        return self._fits[operation].slope * work
