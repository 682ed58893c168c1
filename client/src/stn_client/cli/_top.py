"""The subcommand `top`: what a server does, live, from its Prometheus metrics."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from stn_client._credentials import stays_here
from stn_client.cli._terminal import missing, number

DEFAULT_METRICS = "http://127.0.0.1:9464/metrics"

Key = tuple[str, tuple[tuple[str, str], ...]]
Samples = Mapping[Key, float]
"""The value of every sample, by its name and labels."""


@dataclass(frozen=True)
class Snapshot:
    """All metrics of a server at one instant."""

    instant_s: float
    samples: Samples

    def total(self, name: str, **labels: str) -> float:
        """Sums all samples of a name that have these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (one, theirs), value in self.samples.items()
            if one == name and wanted <= set(theirs)
        )

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Returns the cumulative counts of a histogram by their upper bounds."""
        counts: dict[float, float] = {}
        wanted = set(labels.items())
        for (one, theirs), value in self.samples.items():
            if one == f"{name}_bucket" and wanted <= set(theirs):
                bound = float(dict(theirs)["le"])
                counts[bound] = counts.get(bound, 0.0) + value
        return counts

    def methods(self) -> list[str]:
        """Returns the methods that have been called."""
        named = {dict(labels).get("method", "") for name, labels in self.samples if name == CALLS}
        return sorted(named - {""})


CALLS = "stn_requests_total"
DURATION = "stn_request_duration_seconds"


def add_command(commands: Any) -> None:
    """Adds the parser of the subcommand, which sets `watch`."""
    top = commands.add_parser(
        "top",
        help="show what a server does, live, from its metrics",
        description="Shows calls, durations, batches and the queue of a server, as they are "
        "between two looks at its Prometheus metrics.",
        allow_abbrev=False,
    )
    top.set_defaults(watch=_watch)
    top.add_argument(
        "--metrics", default=DEFAULT_METRICS, metavar="URL", help="(default: %(default)s)"
    )
    top.add_argument(
        "--interval",
        type=number(float, 0.05),
        default=1.0,
        metavar="S",
        help="s between looks (default: %(default)s)",
    )
    top.add_argument(
        "--count", type=number(int, 1), metavar="N", help="looks (default: until interrupted)"
    )


def _watch(options: argparse.Namespace) -> int:
    try:
        from rich.console import Console  # noqa: PLC0415 - optional
        from rich.live import Live  # noqa: PLC0415
    except ImportError as error:
        raise missing("rich") from error
    console = Console()
    looks = looks_of(options.metrics, options.interval, options.count)
    if not console.is_terminal:
        for before, after in looks:
            console.print(_table(before, after))
        return 0
    with Live(console=console, auto_refresh=False) as live:
        for before, after in looks:
            live.update(_table(before, after), refresh=True)
    return 0


def looks_of(
    url: str,
    interval_s: float,
    count: int | None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Snapshot, Snapshot]]:
    """Yields pairs of successive snapshots.

    Raises:
        OSError: Nobody answers there, or something else does.
    """
    before, number_of = read(url), 0
    while count is None or number_of < count:
        sleep(interval_s)
        after = read(url)
        yield before, after
        before, number_of = after, number_of + 1


def read(url: str) -> Snapshot:
    """Reads the present metrics of a server.

    Raises:
        OSError: Nobody answers there, or something else does.
        MissingError: The library for it is not installed.
    """
    try:
        from prometheus_client.parser import (  # noqa: PLC0415 - optional
            text_string_to_metric_families,
        )
    except ImportError as error:
        raise missing("prometheus-client") from error
    if not url.startswith(("http://", "https://")):
        raise OSError(f"metrics: expected a URL as {DEFAULT_METRICS}, got {url}.")
    # As of calls: no proxy stands between programs of one machine.
    proxies: dict[str, str] | None = (
        {} if stays_here(urlsplit(url).netloc, unspecified=True) else None
    )
    try:
        with build_opener(ProxyHandler(proxies)).open(url, timeout=5) as answer:
            text = answer.read().decode(errors="replace")
    except URLError as error:
        advice = "Say the metrics_listen of a server: --metrics http://HOST:PORT/metrics."
        raise OSError(f"{url}: expected metrics, got {error.reason}. {advice}") from error
    try:
        families = list(cast("Any", text_string_to_metric_families)(text))
    except ValueError as error:
        raise OSError(f"{url}: expected Prometheus metrics, got {error}.") from error
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    return Snapshot(time.monotonic(), samples)


def quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float:
    """Returns a quantile of the observations between two snapshots, as Prometheus does.

    Within a bucket it is interpolated; beyond the last bound, it is that bound; NaN of none.
    """
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or not counts[-1]:
        return math.nan
    wanted = share * counts[-1]
    lower, below = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


def summary(before: Snapshot, after: Snapshot) -> list[tuple[str, str]]:
    """Summarizes what a server did between two snapshots, and what it holds at the second."""
    elapsed_s = after.instant_s - before.instant_s

    def rate(name: str, **labels: str) -> float:
        return (after.total(name, **labels) - before.total(name, **labels)) / elapsed_s

    def mean(name: str) -> float:
        count = rate(f"{name}_count")
        return rate(f"{name}_sum") / count if count else math.nan

    busy = rate("stn_lane_busy_seconds_total") / max(after.total("stn_lanes"), 1)
    received, sent = (
        rate("stn_payload_bytes_total", direction=way) / 2**20 for way in ("received", "sent")
    )
    return [
        ("calls/s", f"{rate(CALLS):.1f}"),
        ("refused/s", f"{rate('stn_refused_total'):.1f}"),
        ("items per batch", f"{mean('stn_batch_items'):.1f}"),
        ("batch", f"{1e3 * mean('stn_batch_duration_seconds'):.2f} ms"),
        ("wait in queue", f"{1e3 * mean('stn_queue_wait_seconds'):.2f} ms"),
        ("age of queue", f"{1e3 * after.total('stn_queue_age_seconds'):.1f} ms"),
        (
            "queued, running",
            f"{after.total('stn_queued_items'):.0f}, {after.total('stn_running_items'):.0f}",
        ),
        ("devices busy", f"{100 * busy:.0f} %"),
        ("received, sent", f"{received:.1f}, {sent:.1f} MiB/s"),
    ]


def durations(before: Snapshot, after: Snapshot) -> list[tuple[str, float, list[float]]]:
    """Returns the calls per second of every method, and three quantiles of durations in ms."""
    elapsed_s = after.instant_s - before.instant_s
    found = []
    for method in after.methods():
        calls = after.total(CALLS, method=method) - before.total(CALLS, method=method)
        counts = [look.buckets(DURATION, method=method) for look in (before, after)]
        at = [1e3 * quantile(counts[0], counts[1], share) for share in (0.5, 0.9, 0.99)]
        found.append((method, calls / elapsed_s, at))
    return found


def _table(before: Snapshot, after: Snapshot) -> Any:
    from rich import box  # noqa: PLC0415 - optional
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    facts = Table(box=box.SIMPLE, show_header=False)
    for name, text in summary(before, after):
        facts.add_row(name, text)
    methods = Table(box=box.SIMPLE)
    for title in ("method", "calls/s", "p50 ms", "p90", "p99"):
        methods.add_column(title, justify="left" if title == "method" else "right")
    for method, rate, at in durations(before, after):
        methods.add_row(method, f"{rate:.1f}", *(f"{duration_ms:.2f}" for duration_ms in at))
    return Group(facts, methods)
