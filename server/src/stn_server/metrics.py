"""Every metric of the server. Base units, closed label sets, an injected registry.

What happens with every call is noted and counted later, many notes in a row: to count takes longer
than to compute a small warp when the caches hold other things.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Repeated
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from stn_engine.compilations import Outcome
from stn_server.batching.batcher import Statistics
from stn_server.batching.work import Batch
from stn_server.call import OTHER_ACCOUNT, CallFacts
from stn_server.cores import Throttling
from stn_server.errors import RefusedError
from stn_server.events import End, Listener
from stn_server.local.arenas import Arenas
from stn_server.residents import Eviction, Residents
from stn_server.status import REFUSALS
from stn_server.tuning import BEAT_S, MAX_NOTES

SECONDS = (*(m * 10.0**e for e in range(-4, 1) for m in (1, 2, 5)), 10.0, 30.0)
"""Buckets from 100 microseconds: a small warp on an idle server takes less than a millisecond."""

ITEMS = tuple(2.0**k for k in range(11))
"""Buckets from one call alone to 1024 in one launch."""

BYTES = tuple(2.0**k for k in range(10, 32, 2))
"""Buckets from 1 KiB, a small warp alone, to 1 GiB."""


class Distribution(Histogram):
    """A histogram that observes many equal numbers in one step, as of the calls of a message."""

    def observe_alike(self, amount: float, count: int) -> None:
        """Observes a number `count` times, in the time of one observation."""
        if count == 1:
            self.observe(amount)
            return
        bucket = bisect_left(self._upper_bounds, amount)
        self._sum.inc(amount * count)
        self._buckets[bucket].inc(count)


class _Notes(Collector):
    """Numbers that wait to be counted; registered first, so that a scrape counts them first.

    Concurrency: noted in one thread, counted in any.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._notes: deque[tuple[Any, float, int]] = deque()
        registry.register(self)

    def __len__(self) -> int:
        return len(self._notes)

    def add(self, *notes: tuple[Any, float, int]) -> None:
        """Notes numbers that counters will count and histograms observe, each so many times."""
        self._notes.extend(notes)
        if len(self._notes) >= MAX_NOTES:
            self.settle()

    def settle(self) -> None:
        """Counts and observes all that was noted."""
        sums: dict[Any, float] = {}
        while self._notes:
            try:
                metric, number, count = self._notes.popleft()
            except IndexError:  # taken by another thread
                break
            if type(metric) is Distribution:  # to ask for instances takes longer than to count
                metric.observe_alike(number, count)
            else:
                sums[metric] = sums.get(metric, 0.0) + number * count
        for counter, number in sums.items():
            counter.inc(number)

    def describe(self) -> Iterator[Metric]:
        """Yields nothing: notes are no metric themselves."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yields nothing, but completes the metrics that are collected after it."""
        self.settle()
        return iter(())


class _CpuQuota(Collector):
    """Reads the counters of a control group's CPU quota at every scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.throttling: Callable[[], Throttling] = Throttling
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yields three counters; all are zero without a quota."""
        told = self.throttling()
        for name, text, value in (
            ("stn_cpu_periods", "Elapsed periods of the cgroup's CPU quota", told.periods),
            (
                "stn_cpu_throttled_periods",
                "Periods in which the cgroup used up its quota and was throttled",
                told.throttled_periods,
            ),
            (
                "stn_cpu_throttled_seconds",
                "Time for which the cgroup was throttled",
                told.throttled_s,
            ),
        ):
            yield CounterMetricFamily(name, text, value=value)


class Metrics(Listener):
    """The metrics of one server.

    Args:
        registry: Collects them.
        backend: The name of the backend that computes batches.
    """

    def __init__(self, registry: CollectorRegistry, backend: str = "cpu") -> None:
        self._backend = backend
        self._notes = _Notes(registry)
        # A child is looked up by the strings of its labels, which costs more than to count.
        self._child: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        self._describe_calls(registry)
        self._describe_batches(registry)
        self._describe_process(registry)
        self._show_zeros()

    def _describe_calls(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Distribution, buckets=SECONDS, registry=registry)
        self.requests = counter(
            "stn_requests", "Calls that have ended, by status code", ["method", "code"]
        )
        self.request_duration = seconds(
            "stn_request_duration_seconds",
            "Time from the arrival of a call to its reply or status",
            ["method"],
        )
        self.payload_bytes = counter(
            "stn_payload_bytes",
            "Size of valid requests and of replies",
            ["direction", "transport"],
        )
        self.caller_calls = counter(
            "stn_caller_calls",
            "Calls that have ended, by the name of their token; other: without one",
            ["caller"],
        )
        self.caller_bytes = counter(
            "stn_caller_bytes",
            "Size of valid requests and of replies, by the name of their token",
            ["caller", "direction"],
        )
        self.caller_device = counter(
            "stn_caller_device_seconds",
            "Time of batches on devices, of which each call has its part by work",
            ["caller"],
        )
        self.refused = counter("stn_refused", "Calls refused without being computed", ["reason"])
        self.abandoned_items = counter(
            "stn_abandoned_items",
            "Calls that were cancelled, or whose deadline passed, in the queue",
        )
        self.queued_items = gauge("stn_queued_items", "Calls in the queue, which wait for a device")
        self.running_items = gauge("stn_running_items", "Calls in batches that run")
        self.admitted_bytes = gauge(
            "stn_admitted_bytes",
            "Memory reserved for operands and results of admitted calls, from before a message is "
            "read until its reply has been sent",
        )
        self.arenas = gauge("stn_arenas", "Arenas: shared memory of callers on this host")
        self.arena_bytes = gauge("stn_arena_bytes", "Size of all arenas")
        self.resident_tensors = gauge(
            "stn_resident_tensors", "Tensors that the server holds for later calls of their callers"
        )
        self.resident_bytes = gauge("stn_resident_bytes", "Size of all resident tensors")
        self.resident_evictions = counter(
            "stn_resident_evictions",
            "Resident tensors evicted at the end of their lease, or to make room",
            ["reason"],
        )
        self.queue_wait = seconds(
            "stn_queue_wait_seconds", "Time from the admission of a call to the start of its batch"
        )
        self.ready = gauge("stn_ready", "1 while health reports SERVING, else 0")
        self.queue_age = gauge("stn_queue_age_seconds", "Age of the oldest call in the queue")

    def _describe_batches(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Distribution, registry=registry)
        self.batch_items = histogram("stn_batch_items", "Calls in a batch", buckets=ITEMS)
        self.batch_bytes = histogram(
            "stn_batch_bytes", "Size of operands and results of a batch", buckets=BYTES
        )
        self.batch_duration = histogram(
            "stn_batch_duration_seconds",
            "Time from handing a batch to its device until the results are there",
            ["operation", "backend"],
            buckets=SECONDS,
        )
        self.samples = counter(
            "stn_samples", "Source points computed, one for each pixel or voxel of a result"
        )
        self.device_memory = gauge(
            "stn_device_memory_bytes", "Memory that this process holds on a device", ["device"]
        )
        self.device_resident_bytes = gauge(
            "stn_device_resident_bytes",
            "Size of the copies of resident tensors on a device; 0 for the host, which needs none",
            ["device"],
        )
        self.lanes = gauge(
            "stn_lanes", "Lanes of a device: how many batches it runs at a time", ["device"]
        )
        self.lane_busy = counter(
            "stn_lane_busy_seconds",
            "Time for which lanes ran a batch; its rate divided by stn_lanes is the utilisation",
            ["device"],
        )

    def _describe_process(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.kernel_compilations = counter(
            "stn_kernel_compilations",
            "Kernel programs compiled, read from the cache on disk, or failed",
            ["outcome"],
        )
        self.kernel_compilation_duration = Distribution(
            "stn_kernel_compilation_duration_seconds",
            "Time to compile a kernel program that was not in the cache on disk",
            buckets=SECONDS,
            registry=registry,
        )
        self.reloads = counter(
            "stn_reloads",
            "Changed files of tokens or certificates, accepted or rejected",
            ["file", "outcome"],
        )
        self.log_lines_dropped = counter(
            "stn_log_lines_dropped", "Log lines dropped, as standard error was not read fast enough"
        )
        self.loop_lag = Distribution(
            "stn_event_loop_lag_seconds",
            "How late timers of the event loop run, four a second; calls wait as long",
            buckets=SECONDS,
            registry=registry,
        )
        gauge = partial(Gauge, registry=registry)
        self.loop_still = gauge(
            "stn_event_loop_still_seconds",
            "How long the event loop has been blocked; 0 while it runs",
        )
        self.pending_calls = gauge(
            "stn_pending_calls", "Calls that have come in and the event loop has not begun"
        )
        self.pending_age = gauge(
            "stn_pending_age_seconds", "Age of the oldest call that the event loop has not begun"
        )
        self.receiving_bytes = gauge(
            "stn_receiving_bytes",
            "Size of the messages that are being received",
        )
        self.cpu_cores = gauge(
            "stn_cpu_cores", "CPU cores that the process may use, by CPU quota and affinity"
        )
        self._cpu = _CpuQuota(registry)
        self.build_info = Gauge(
            "stn_build_info",
            "The version of the server, as a label; always 1",
            ["version"],
            registry=registry,
        )
        self.build_info.labels(version=version("stn-server")).set(1)

    def _show_zeros(self) -> None:
        """Creates all series at zero, so that a first event shows as an increase."""
        for reason in REFUSALS:
            self.refused.labels(reason)
        for why in Eviction:
            self.resident_evictions.labels(why)
        for source in Outcome:
            self.kernel_compilations.labels(source)
        for file, outcome in product(("tokens", "certificates"), ("accepted", "rejected")):
            self.reloads.labels(file, outcome)

    def watch(self, statistics: Callable[[], Statistics], queue_age_s: Callable[[], float]) -> None:
        """Reads the state of the queue at every scrape."""
        self.queued_items.set_function(lambda: statistics().queued_items)
        self.running_items.set_function(lambda: statistics().running_items)
        self.admitted_bytes.set_function(lambda: statistics().admitted_bytes)
        self.queue_age.set_function(queue_age_s)

    def watch_readiness(self, is_ready: Callable[[], bool]) -> None:
        """Reads at every scrape whether health reports SERVING."""
        self.ready.set_function(is_ready)

    def watch_arenas(self, arenas: Arenas) -> None:
        """Counts arenas at every scrape."""
        self.arenas.set_function(lambda: arenas.count)
        self.arena_bytes.set_function(lambda: arenas.size_bytes)

    def watch_loop(
        self,
        still_s: Callable[[], float],
        pending: Callable[[], int],
        pending_age_s: Callable[[], float],
    ) -> None:
        """Reads the lag of the event loop and its backlog at every scrape."""
        self.loop_still.set_function(still_s)
        self.pending_calls.set_function(pending)
        self.pending_age.set_function(pending_age_s)

    def watch_receiving(self, receiving_bytes: Callable[[], float]) -> None:
        """Reads at every scrape how many bytes are being received."""
        self.receiving_bytes.set_function(receiving_bytes)

    def watch_cpu(self, cores: float, throttling: Callable[[], Throttling]) -> None:
        """Sets the number of cores, and reads at every scrape how the quota throttles them."""
        self.cpu_cores.set(cores)
        self._cpu.throttling = throttling

    def watch_residents(self, residents: Residents) -> None:
        """Counts resident tensors at every scrape."""
        self.resident_tensors.set_function(lambda: residents.count)
        self.resident_bytes.set_function(lambda: residents.size_bytes)

    def watch_memory(self, devices: Mapping[str, Callable[[], float]]) -> None:
        """Reads the memory of every device at every scrape."""
        for name, held_bytes in devices.items():
            self.device_memory.labels(name).set_function(held_bytes)

    def watch_copies(self, devices: Mapping[str, Callable[[], float]]) -> None:
        """Reads at every scrape how much of resident tensors each device keeps."""
        for name, copied_bytes in devices.items():
            self.device_resident_bytes.labels(name).set_function(copied_bytes)

    def watch_lanes(self, lanes: Mapping[str, int]) -> None:
        """Sets how many batches each device takes at a time."""
        for name, count in lanes.items():
            self.lanes.labels(name).set(count)
            self.lane_busy.labels(name)

    def call_ended(self, call: CallFacts, end: End) -> None:
        """Counts a call by method and code, its bytes, and the reason of a refusal."""
        self._count(call, end, 1)
        transport = call.caller.transport
        if call.received_bytes:
            received = self._child(self.payload_bytes, "received", transport)
            own = self._child(self.caller_bytes, call.caller.account, "received")
            self._notes.add((received, call.received_bytes, 1), (own, call.received_bytes, 1))
        if call.sent_bytes:
            sent = self._child(self.payload_bytes, "sent", transport)
            own = self._child(self.caller_bytes, call.caller.account, "sent")
            self._notes.add((sent, call.sent_bytes, 1), (own, call.sent_bytes, 1))

    def calls_ended(self, calls: Sequence[CallFacts], end: End) -> None:
        """Counts calls that ended alike as `call_ended` does; the message has the bytes."""
        self._count(calls[0], end, len(calls))

    def _count(self, call: CallFacts, end: End, count: int) -> None:
        self._notes.add(
            (self._child(self.requests, call.method, end.code.name), 1, count),
            (self._child(self.request_duration, call.method), end.duration_s, count),
            (self._child(self.caller_calls, call.caller.account), 1, count),
        )
        if end.answer is not None and isinstance(end.error, RefusedError):
            self.refused.labels(end.answer.reason).inc(count)

    def item_abandoned(self) -> None:
        """Counts an item that left the queue without having run."""
        self.abandoned_items.inc()

    def batch_ended(self, batch: Batch, queue_s: Sequence[float], compute_s: float) -> None:
        """Observes a batch as a whole, and the queue time of each item."""
        duration = self._child(self.batch_duration, batch.key.operation, self._backend)
        notes = [
            (self.batch_items, len(queue_s), 1),
            (duration, compute_s, 1),
            (self.batch_bytes, batch.cost.size_bytes, 1),
            (self.samples, batch.cost.samples, 1),
        ]
        for waited_s, count in Repeated(queue_s).items():
            notes.append((self.queue_wait, waited_s, count))
        work = batch.cost.work or 1
        for item in batch.items:
            account = OTHER_ACCOUNT if item.calls[0] is None else item.calls[0].caller.account
            part_s = compute_s * item.cost.work / work
            notes.append((self._child(self.caller_device, account), part_s, 1))
        self._notes.add(*notes)

    def tensor_evicted(self, why: Eviction) -> None:
        """Counts a resident tensor that was evicted."""
        self.resident_evictions.labels(why).inc()

    def lane_freed(self, device: str, busy_s: float) -> None:
        """Adds up the time that a device was busy."""
        self._notes.add((self._child(self.lane_busy, device), busy_s, 1))

    def loop_lagged(self, late_s: float) -> None:
        """Observes a lag once for each beat that it delayed, so that a long one weighs more."""
        for turn in range(int(late_s / BEAT_S) + 1):
            self.loop_lag.observe(late_s - turn * BEAT_S)

    def kernels_compiled(self, outcome: Outcome, duration_s: float) -> None:
        """Counts compilations by outcome, and observes durations but of programs from disk."""
        self.kernel_compilations.labels(outcome).inc()
        if outcome != Outcome.CACHED:
            self.kernel_compilation_duration.observe(duration_s)

    def file_changed(self, name: str, outcome: str, reason: str) -> None:
        """Counts changes of files by outcome; the reason is for the log."""
        del reason
        self.reloads.labels(name, outcome).inc()

    def lines_dropped(self, count: int) -> None:
        """Counts lines of the log that were dropped."""
        self.log_lines_dropped.inc(count)
