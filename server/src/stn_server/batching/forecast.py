"""When an item would be through: what runs, what goes before it, and what it takes itself."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from stn_server.batching.cost_model import CostModel
from stn_server.batching.work import PATIENCE_S, Batch, Operation, WorkItem

SAFETY = 1.5
"""How wide of the estimate a promise is kept: machines stutter, and results take sending."""

_SLICE_S = PATIENCE_S / 16
"""Items that are due in the same slice of time count as due together."""


class _Backlog:
    """Work that waits, by slice of time and operation: some dozen sums, however long the queue.

    Nothing is due later than `PATIENCE_S` from now.
    """

    def __init__(self) -> None:
        self._work: Counter[tuple[int, Operation]] = Counter()

    def __bool__(self) -> bool:
        return bool(self._work)

    def add(self, item: WorkItem, work: int) -> None:
        part = _slice(item), item.key.operation
        self._work[part] += work
        if self._work[part] == 0:
            del self._work[part]

    def seconds(self, last: float, model: CostModel) -> float:
        """Of what is due in a slice up to the last."""
        return sum(
            model.work_s(operation, work)
            for (due, operation), work in self._work.items()
            if due <= last
        )


class Forecast:
    """Keeps account of the work inside, and says what it means in seconds.

    Args:
        lanes: Batches that run at the same time.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._model = CostModel()
        self._everyone = _Backlog()
        self._callers: defaultdict[str, _Backlog] = defaultdict(_Backlog)
        self._launched: dict[Batch, float] = {}

    def enter(self, item: WorkItem) -> None:
        """An item begins to wait."""
        for backlog in (self._everyone, self._callers[item.caller]):
            backlog.add(item, item.cost.work)

    def leave(self, item: WorkItem) -> None:
        """An item waits no longer."""
        own = self._callers[item.caller]
        for backlog in (self._everyone, own):
            backlog.add(item, -item.cost.work)
        if not own:
            del self._callers[item.caller]

    def launched(self, batch: Batch, now: float) -> None:
        """A batch begins to run."""
        self._launched[batch] = now

    def finished(self, batch: Batch, now: float, *, computed: bool) -> None:
        """A batch is through; the model learns from it if it was computed."""
        launched = self._launched.pop(batch)
        if computed:
            self._model.observe(batch.key.operation, batch.cost.work, now - launched)

    def batch_s(self, operation: Operation, work: int) -> float:
        """What a batch will take, on the safe side."""
        return SAFETY * self._model.batch_s(operation, work)

    def until_free(self, now: float) -> float:
        """Seconds until the first lane is free, on the safe side.

        A batch that is late will be late as long again.
        """
        if len(self._launched) < self._lanes:
            return 0.0
        return SAFETY * min(
            abs(launched + self._model.batch_s(batch.key.operation, batch.cost.work) - now)
            for batch, launched in self._launched.items()
        )

    def wait_s(self, item: WorkItem, other_keys: int, now: float) -> float:
        """How long an item would wait for its batch to begin, on the safe side.

        Before it goes what runs, then what is due before it, but no more of the others than their
        share, and one launch for each other key that has its turn.
        """
        launches = other_keys * self._model.overhead_s(item.key.operation)
        waiting = self._before_s(item.caller, _slice(item)) + launches
        return self.until_free(now) + SAFETY * waiting / self._lanes

    def backlog_s(self, caller: str, now: float) -> float:
        """How long an item of a caller would wait that is due after all others."""
        return self.until_free(now) + SAFETY * self._before_s(caller, math.inf) / self._lanes

    def _before_s(self, caller: str, last: float) -> float:
        """Seconds of work that goes before a caller's item in a slice."""
        own = self._callers.get(caller)
        callers = len(self._callers) + (own is None)
        in_turns = callers * own.seconds(last, self._model) if own else 0.0
        return min(self._everyone.seconds(last, self._model), in_turns)


def _slice(item: WorkItem) -> int:
    return int(item.due / _SLICE_S)
