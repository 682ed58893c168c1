"""Counts the requests of every model, as `ModelStatistics` reports them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stn_proto.oip import inference_pb2
from stn_server.batching.work import Batch
from stn_server.events import Listener
from stn_server.oip.models import VERSION


@dataclass(slots=True)
class Duration:
    """The number of times that something was done, and how long that took together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one more duration, in seconds."""
        self.count += 1
        self.seconds += seconds

    def message(self) -> inference_pb2.StatisticDuration:
        """Returns the count and the time as a message of the protocol."""
        return inference_pb2.StatisticDuration(count=self.count, ns=round(self.seconds * 1e9))


@dataclass(slots=True, eq=False)
class Counts:
    """The counts of one model."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    """Times of decoding requests."""
    compute_infer: Duration = field(default_factory=Duration)
    """Times of the launches of its requests, each launch once."""
    compute_output: Duration = field(default_factory=Duration)
    """Times of encoding responses."""
    items: int = 0
    last_ms: int = 0
    launches: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    """Launches by the number of items of this model in them."""

    def succeeded(self, items: int, seconds: float) -> None:
        """Counts a call that has a response."""
        self.success.add(seconds)
        self.items += items
        self.last_ms = time.time_ns() // 1_000_000


class ModelStatistics(Listener):
    """Counts requests by model.

    Concurrency: belongs to one event loop.
    """

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._under_way: dict[Any, tuple[Counts, int]] = {}
        """The counts for calls that are queued or computed, and the items of their batches."""

    def queued(self, call: Any, counts: Counts, items: int) -> None:
        """Notes the counts of the model of a call that is about to be queued."""
        self._under_way[call] = counts, items

    def ended(self, call: Any) -> None:
        """Forgets a call that is neither queued nor computed any more."""
        self._under_way.pop(call, None)

    def of(self, model: str) -> Counts:
        """Returns the counts of a model, to add to."""
        return self._counts[model]

    def batch_ended(self, batch: Batch, queue_s: Sequence[float], compute_s: float) -> None:
        """Counts a launch for every model that had a call in it."""
        if not self._under_way:  # no call of this protocol is under way
            return
        items: dict[Counts, int] = {}
        for call, waited_s in zip(batch.calls, queue_s, strict=True):
            known = self._under_way.get(call)
            if known is not None:
                counts, count = known
                items[counts] = items.get(counts, 0) + count
                counts.queue.add(waited_s)
                counts.compute_infer.add(compute_s)
        for counts, count in items.items():
            counts.launches[count].add(compute_s)

    def messages(self, models: Iterable[str]) -> list[inference_pb2.ModelStatistics]:
        """Returns the statistics of these models as messages of the protocol."""
        return [_message(model, self._counts[model]) for model in models]


def _message(model: str, counts: Counts) -> inference_pb2.ModelStatistics:
    return inference_pb2.ModelStatistics(
        name=model,
        version=VERSION,
        last_inference=counts.last_ms,
        inference_count=counts.items,
        execution_count=sum(launches.count for launches in counts.launches.values()),
        inference_stats=inference_pb2.InferStatistics(
            success=counts.success.message(),
            fail=counts.fail.message(),
            queue=counts.queue.message(),
            compute_input=counts.compute_input.message(),
            compute_infer=counts.compute_infer.message(),
            compute_output=counts.compute_output.message(),
        ),
        batch_stats=[
            inference_pb2.InferBatchStatistics(batch_size=size, compute_infer=launches.message())
            for size, launches in sorted(counts.launches.items())
        ],
    )
