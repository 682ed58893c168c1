"""Regenerates the tables in the READMEs from the code; with `--check`, fails if one is stale.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from stn_server import status
from stn_server.metrics import Metrics
from stn_server.settings import all_settings

ROOT = Path(__file__).parents[1]
BENCHMARK = ROOT / "tests/bench/results/service.json"


def configuration() -> str:
    """Every setting of the server, by its three names."""
    rows = [
        (
            f"`{setting.name}`",
            f"`{setting.flag}`",
            f"`{setting.variable}`",
            _default(setting.default),
            setting.doc,
        )
        for setting in all_settings()
    ]
    return _table(("file", "flag", "environment", "default", "meaning"), rows)


def metrics() -> str:
    """Every metric of the server."""
    found = [
        m for m in vars(Metrics(CollectorRegistry())).values() if isinstance(m, MetricWrapperBase)
    ]
    rows = [
        (
            f"`{metric.describe()[0].name}{'_total' if metric._type == 'counter' else ''}`",
            metric._type,
            ", ".join(metric._labelnames) or "–",
            metric._documentation,
        )
        for metric in found
    ]
    return _table(("metric", "type", "labels", "meaning"), sorted(rows))


def statuses() -> str:
    """Which gRPC status each error becomes."""
    rows = [(f"`{cls.__name__}`", row.code.name) for cls, row in status.TABLE.items()]
    return _table(("cause", "status"), [*rows, ("anything else", "INTERNAL, with a request id")])


def benchmark() -> str:
    """The last committed run of `make bench`."""
    report = json.loads(BENCHMARK.read_text())
    rows = [
        (
            "×".join(map(str, cell["shape"])),
            str(cell["concurrency"]),
            *(f"{cell[f'{name}_requests_per_s']:.0f}" for name in ("echo", "null", "service")),
            *(f"{cell[f'{name}_throughput_ratio']:.2f}" for name in ("null", "service")),
            *(f"{cell[f'{name}_latency_ratio']:.2f}" for name in ("null", "service")),
        )
        for cell in report["cells"]
    ]
    head = (
        "float32",
        "at a time",
        "echo /s",
        "wire only /s",
        "service /s",
        "wire : echo",
        "service : echo",
        "latency wire : echo",
        "latency service : echo",
    )
    when = f"{report['date']}, {report['processor']}, grpcio {report['grpcio']}"
    return f"{_table(head, rows)}\n\n{when}; medians of rounds that alternate between the three."


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "configuration": ("server/README.md", configuration),
    "metrics": ("server/README.md", metrics),
    "statuses": ("server/README.md", statuses),
    "benchmark": ("README.md", benchmark),
}


def regenerated(path: str) -> str:
    """A README with all its tables as they should be."""
    text = (ROOT / path).read_text()
    for name, (file, table) in TABLES.items():
        if file == path:
            pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
            text, count = re.subn(pattern, lambda m: m[1] + table() + m[2], text, flags=re.DOTALL)  # noqa: B023
            if count != 1:
                raise SystemExit(f"{path}: expected one table {name}, got {count}.")
    return text


def main() -> None:
    """Writes the tables, or checks them with `--check`."""
    for path in sorted({file for file, _ in TABLES.values()}):
        text = regenerated(path)
        if "--check" not in sys.argv[1:]:
            (ROOT / path).write_text(text)
        elif text != (ROOT / path).read_text():
            raise SystemExit(f"{path}: a table is not fresh. Run `make docs`.")


def _default(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
