"""The subcommand `bench`: how many calls a server answers, by how many are under way."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stn_client._client import Client
from stn_client._transforms import Affine
from stn_client.cli._terminal import missing, number

_BAR = 30
"""The width of the longest bar, in characters."""


@dataclass(frozen=True)
class Row:
    """What was measured at one concurrency; durations are those of single calls."""

    concurrency: int
    calls: int
    calls_per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    longest_ms: float
    items_per_batch: float
    """Calls that shared a launch, on average; those of others included."""


def add_command(commands: Any) -> None:
    """Adds the parser of the subcommand, which sets `run`."""
    bench = commands.add_parser(
        "bench",
        help="measure a server by calls at growing concurrency",
        description="Sends warps of random maps by random affine transforms, a number of them at a "
        "time, and tells how many were answered in a second and how long each took.",
        allow_abbrev=False,
    )
    bench.set_defaults(run=_bench)
    bench.add_argument(
        "--concurrency",
        type=number(int, 1),
        nargs="+",
        default=[1, 2, 4, 8, 16, 32],
        metavar="N",
        help="calls at a time (default: 1 2 4 8 16 32)",
    )
    bench.add_argument(
        "--calls",
        type=number(int, 1),
        default=1000,
        metavar="N",
        help="at each concurrency (default: %(default)s)",
    )
    bench.add_argument(
        "--size",
        type=number(int, 1),
        nargs=2,
        default=(28, 28),
        metavar=("W", "H"),
        help="of every map, in px (default: 28 28)",
    )
    bench.add_argument(
        "--channels", type=number(int, 1), default=1, metavar="C", help="(default: %(default)s)"
    )
    bench.add_argument("--gradients", action="store_true", help="measure warp_gradients instead")
    bench.add_argument("--json", action="store_true", help="for programs")


def _bench(client: Client, options: argparse.Namespace) -> int:
    width, height = options.size
    call = caller(client, (1, options.channels, height, width), gradients=options.gradients)
    rows = sweep(client, call, options.concurrency, options.calls)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))  # noqa: T201
        return 0
    show(list(rows))
    return 0


def caller(client: Client, shape: Sequence[int], *, gradients: bool) -> Callable[[], object]:
    """Returns a function that makes a call of random operands."""
    random = np.random.default_rng(0)
    maps = random.random(tuple(shape), np.float32)
    theta = np.eye(2, 3)[None] + 0.1 * random.standard_normal((1, 2, 3))
    transform = Affine(theta.astype(np.float32))
    if gradients:
        return lambda: client.warp_gradients(maps, maps, transform)
    return lambda: client.warp(maps, transform)


def sweep(
    client: Client, call: Callable[[], object], concurrency: Sequence[int], calls: int
) -> Iterator[Row]:
    """Measures so many calls at each concurrency, after a warm-up of as many as run at once."""
    for together in concurrency:
        with ThreadPoolExecutor(together) as pool:
            list(pool.map(lambda _: call(), range(together)))
            before = client.server_info().statistics
            began_s = time.perf_counter()
            durations_s = list(pool.map(lambda _: _duration_s(call), range(calls)))
            elapsed_s = time.perf_counter() - began_s
            after = client.server_info().statistics
        batches = after.batches - before.batches
        items = after.finished_items - before.finished_items
        yield row_of(together, durations_s, elapsed_s, items / batches if batches else math.nan)


def row_of(
    concurrency: int, durations_s: Sequence[float], elapsed_s: float, items_per_batch: float
) -> Row:
    """Summarizes the durations of calls that were made within some time."""
    durations_ms = 1e3 * np.array(durations_s)
    p50, p90, p99 = np.percentile(durations_ms, [50, 90, 99]).tolist()
    return Row(
        concurrency,
        len(durations_s),
        len(durations_s) / elapsed_s,
        float(durations_ms.mean()),
        p50,
        p90,
        p99,
        float(durations_ms.max()),
        items_per_batch,
    )


def _duration_s(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def show(rows: Sequence[Row]) -> None:
    """Prints a table with a bar for every throughput.

    On a narrow terminal bars are shorter; numbers are whole, however long calls take.

    Raises:
        MissingError: The library for it is not installed.
    """
    try:
        from rich import box  # noqa: PLC0415 - optional
        from rich.bar import Bar  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
    except ImportError as error:
        raise missing("rich") from error
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    titles = "at a\ntime", "calls/s", "mean\nms", "p50", "p90", "p99", "longest", "items/\nbatch"
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(max_width=_BAR)
    most = max(row.calls_per_s for row in rows)
    for row in rows:
        times = (row.mean_ms, row.p50_ms, row.p90_ms, row.p99_ms, row.longest_ms)
        table.add_row(
            str(row.concurrency),
            f"{row.calls_per_s:.0f}",
            *(f"{duration_ms:.2f}" for duration_ms in times),
            f"{row.items_per_batch:.1f}",
            Bar(most, 0, row.calls_per_s),
        )
    Console().print(table)
