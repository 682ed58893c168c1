"""Draws deploy/grafana/dashboard.png; with `--check`, fails if the dashboard has changed since.

Two servers under mixed load, scraped by a Prometheus, answer the dashboard's own queries. Panels
have the places, titles, units and legends that dashboard.json gives them; Grafana draws them
differently, but nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stn_client import Affine, AsyncClient, RetryPolicy, StnClientError
from stn_client.local import LocalServer
from support.prometheus import Prometheus

FOLDER = Path(__file__).parents[1] / "deploy/grafana"
DASHBOARD, PICTURE = FOLDER / "dashboard.json", FOLDER / "dashboard.png"
DIGEST = "dashboard"
"""Where the picture says which dashboard it shows."""

METRICS = ("127.0.1.1:9464", "127.0.1.2:9464")
"""One address a server, as pods have."""

FLAGS = ("--batching-max-admitted-items=8", "--threads=1")
SCRAPE_S = 1
RATE_INTERVAL = f"{4 * SCRAPE_S}s"
"""What Grafana makes of `$__rate_interval` at this resolution."""

SIDES_PX = (32, 64, 128, 224)
HASTY_S = 0.02


class Phase(NamedTuple):
    """So many callers, each resting between two calls."""

    seconds: float
    callers: int
    rest_s: float


PHASES = (Phase(40, 4, 0.06), Phase(50, 16, 0.04), Phase(25, 96, 0.0), Phase(35, 6, 0.05))

WIDTH_IN, ROW_IN, DPI = 12.0, 0.285, 120
COLUMNS = 24
PAGE, PANEL, INK, GRID = "#111217", "#181b1f", "#d0d1dc", "#2c2f36"
COLOURS = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff9830",
    "#f2495c",
    "#b877d9",
    "#56c6d6",
    "#c4a484",
    "#8e8ea0",
)

UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "reqps": ((1, " req/s"), (1e3, "K req/s")),
    "pps": ((1, " p/s"), (1e3, " kp/s"), (1e6, " Mp/s")),
    "s": ((1e-3, " ms"), (1, " s")),
    "short": ((1, ""), (1e3, " K")),
    "percentunit": ((1e-2, "%"),),
    "Bps": ((1, " B/s"), (1e3, " kB/s"), (1e6, " MB/s"), (1e9, " GB/s")),
    "bytes": ((1, " B"), (2**10, " KiB"), (2**20, " MiB"), (2**30, " GiB")),
}
"""Grafana's units with their multiples, as Grafana writes them."""

Series: TypeAlias = tuple[str, Sequence[float], Sequence[float]]


def main() -> None:
    """Draws the picture, or compares its digest with `--check`."""
    digest = hashlib.sha256(DASHBOARD.read_bytes()).hexdigest()
    if "--check" not in sys.argv[1:]:
        _draw(json.loads(DASHBOARD.read_text()), digest)
    elif Image.open(PICTURE).info[DIGEST] != digest:
        raise SystemExit(f"{PICTURE.name}: the picture is not fresh. Run `make dashboard`.")


def _draw(dashboard: dict[str, Any], digest: str) -> None:
    mpl.use("Agg")
    with tempfile.TemporaryDirectory() as folder:
        answers = _measure(dashboard["panels"], Path(folder))
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = plt.figure(figsize=(WIDTH_IN, (rows + 2) * ROW_IN), dpi=DPI, facecolor=PAGE)
    figure.text(0.008, 1 - 1 / (rows + 2), dashboard["title"], color=INK, size=13, va="center")
    for panel, series in zip(dashboard["panels"], answers, strict=True):
        _panel(_axes(figure, panel["gridPos"], rows + 2), panel, series)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    text = PngInfo()
    text.add_text(DIGEST, digest)
    picture.quantize(128).save(PICTURE, optimize=True, pnginfo=text)


def _measure(panels: Sequence[dict[str, Any]], folder: Path) -> list[list[Series]]:
    """The series of every panel over a run of all phases."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(LocalServer(*_flags(folder, metrics), log=folder / "log"))
            for metrics in METRICS
        ]
        urls = [server.metrics for server in servers]
        prometheus = stack.enter_context(Prometheus(folder, *urls, interval_ms=SCRAPE_S * 1000))
        prometheus.wait_for("sum(up)", len(servers))
        start = time.time()
        asyncio.run(_load([target for server in servers for target in server.targets]))
        span = (start + 4 * SCRAPE_S, time.time())
        return [list(_series(prometheus, panel, span)) for panel in panels]


def _flags(folder: Path, metrics: str) -> tuple[str, ...]:
    socket = folder / f"{metrics}.sock"
    return (*FLAGS, f"--metrics-listen={metrics}", f"--listen=127.0.0.1:0,unix:{socket}")


def _series(
    prometheus: Prometheus, panel: dict[str, Any], span: tuple[float, float]
) -> Iterator[Series]:
    """Legend, minutes and values of what the queries of a panel find."""
    start, end = span
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for labels, times, values in prometheus.query_range(query, start, end, SCRAPE_S):
            legend = re.sub(r"{{(\w+)}}", r"{\1}", target["legendFormat"]).format(**labels)
            yield legend, [(t - start) / 60 for t in times], values


async def _load(targets: Sequence[str]) -> None:
    """All phases, one after the other, over all addresses."""
    loop = asyncio.get_running_loop()
    begin, ends = loop.time(), np.cumsum([phase.seconds for phase in PHASES])

    async def caller(number: int) -> None:
        rng = random.Random(number)  # noqa: S311 - load, not secrets
        hasty = number % 8 == 7
        target, timeout_s = targets[number % len(targets)], HASTY_S if hasty else 10.0
        async with AsyncClient(target, timeout_s=timeout_s, retry=RetryPolicy(attempts=1)) as stn:
            while (elapsed := loop.time() - begin) < ends[-1]:
                phase = PHASES[int(np.searchsorted(ends, elapsed, side="right"))]
                if number < phase.callers:
                    with suppress(StnClientError):
                        await _call(stn, rng)
                await asyncio.sleep(phase.rest_s if number < phase.callers else 1.0)

    await asyncio.gather(*(caller(number) for number in range(max(p.callers for p in PHASES))))


async def _call(stn: AsyncClient, rng: random.Random) -> None:
    """A warp or its gradients, of some size; now and then one that is too large."""
    side = rng.choice(SIDES_PX)
    feature_map = np.full((1, 3, side, side), 0.5, np.float32)
    turned = Affine(np.array([[[0.9, -0.3, 0.1], [0.3, 0.9, 0.0]]], np.float32))
    if rng.random() < 0.01:
        await stn.warp(feature_map, turned, (40_000, 1))
    elif rng.random() < 0.3:
        await stn.warp_gradients(feature_map, feature_map, turned)
    else:
        await stn.warp(feature_map, turned)


def _axes(figure: Any, place: dict[str, int], rows: int) -> Axes:
    """A panel in its place of Grafana's grid, below the title; room for legend and title in it."""
    gap = 0.12
    left, right = place["x"] + gap, place["x"] + place["w"] - gap
    top, bottom = place["y"] + 2 + gap, place["y"] + 2 + place["h"] - gap
    width, height = (right - left) / COLUMNS, (bottom - top) / rows
    corner = (left / COLUMNS, 1 - bottom / rows)
    figure.patches.append(
        plt.Rectangle(
            corner, width, height, facecolor=PANEL, transform=figure.transFigure, zorder=-1
        )
    )
    inside = (corner[0] + 0.16 * width, corner[1] + 0.29 * height, 0.81 * width, 0.57 * height)
    axes: Axes = figure.add_axes(inside, facecolor=PANEL)
    return axes


def _panel(axes: Axes, panel: dict[str, Any], series: Sequence[Series]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    top = max((np.nan_to_num(values).max() for _, _, values in series), default=0.0)
    scale, unit = _multiple(top, defaults["unit"])
    for (legend, minutes, values), colour in zip(series, itertools.cycle(COLOURS), strict=False):
        scaled = np.divide(values, scale)
        axes.plot(minutes, scaled, color=colour, linewidth=1.1, label=legend)
        axes.fill_between(minutes, scaled, color=colour, alpha=0.06, linewidth=0)
    axes.set_ylim(defaults["min"], 1.08 * top / scale or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} min")
    _style(axes, panel["title"], 3 if all(len(legend) < 16 for legend, _, _ in series) else 2)


def _multiple(top: float, unit: str) -> tuple[float, str]:
    """The largest multiple of a unit that is not above a value, and its name."""
    multiples = UNITS[unit]
    return next((one for one in reversed(multiples) if one[0] <= top), multiples[0])


def _style(axes: Axes, title: str, legend_columns: int) -> None:
    axes.set(frame_on=False)
    axes.margins(x=0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    axes.set_title(title, color=INK, size=9.5, loc="left", x=-0.17)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.19, -0.13),
        ncols=legend_columns,
        fontsize=7,
        frameon=False,
        labelcolor=INK,
        handlelength=1.0,
        columnspacing=1.0,
        borderaxespad=0.0,
        labelspacing=0.2,
    )


if __name__ == "__main__":
    main()
