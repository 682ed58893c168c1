"""Regenerates what documents and manifests say of code, results and other files.

`--check` fails if something is stale.

A table, or a sentence, stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from stn_engine import (
    Affine,
    Attention,
    Flow,
    GridProblem,
    Homography,
    Interpolation,
    Padding,
    ParametricTransform,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Transform,
    Translation,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    dispatch,
)
from stn_engine.backends.base import Backend
from stn_engine.backends.cuda import CudaBackend
from stn_engine.backends.cuda.device import DeviceLauncher
from stn_engine.checks import FEATURE_MAP_DTYPES, GRADIENT_DTYPES, INTERPOLATED_DTYPES
from stn_engine.problem import Problem
from stn_server import status
from stn_server.metrics import Metrics
from stn_server.oip.models import ModelTensor, models
from stn_server.settings import all_settings

ROOT = Path(__file__).parents[1]
SERVER_BENCHMARK = ROOT / "tests/bench/results/server.json"
MANY_BENCHMARK = ROOT / "tests/bench/results/many.json"
REGISTRATION_BENCHMARK = ROOT / "tests/bench/results/registration.json"
TRITON_BENCHMARK = ROOT / "tests/bench/results/triton.json"
CLIENT_BENCHMARK = ROOT / "tests/bench/results/client.json"
OIP_BENCHMARK = ROOT / "tests/bench/results/oip.json"
LOCAL_BENCHMARK = ROOT / "tests/bench/results/local.json"
REPLICAS_BENCHMARK = ROOT / "tests/bench/results/replicas.json"
ENGINE_BENCHMARKS = "tests/bench/results/engine_cpu*.json"
EXPERIMENT = ROOT / "client/examples/distorted_mnist.json"
GPU_BENCHMARKS = "tests/bench/results/engine_cuda_*.json"
GPU_CHECKS = "tests/bench/results/gpu_check_*.json"
SANITIZERS = ("memcheck", "racecheck", "synccheck")

EXAMPLES: dict[int, tuple[Transform, ...]] = {
    2: (
        Affine(torch.zeros(1, 2, 3)),
        Homography(torch.zeros(1, 3, 3)),
        Attention(torch.zeros(1, 3)),
        Similarity(torch.zeros(1, 4)),
        Translation(torch.zeros(1, 2)),
        Rotation(torch.zeros(1, 1)),
        ThinPlateSpline(torch.zeros(1, 3, 2), control_points=((0, 0), (0, 1), (1, 0))),
        Flow(torch.zeros(1, 1, 1, 2)),
        SamplingGrid(torch.zeros(1, 1, 1, 2)),
    ),
    3: (
        Affine(torch.zeros(1, 3, 4)),
        Flow(torch.zeros(1, 1, 1, 1, 3)),
        SamplingGrid(torch.zeros(1, 1, 1, 1, 3)),
    ),
}
"""A transform of every kind, by the dimensions that it reads along."""

IN_THE_PAPER = {"FCN": 5.2, "ST-FCN": 0.8}
"""Test errors of table 1 of Jaderberg et al. (2015), column RTS, in percent."""

NOTHING = "none"
Row: TypeAlias = tuple[str, ...]


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
            ", ".join(metric._labelnames) or NOTHING,
            metric._documentation,
        )
        for metric in found
    ]
    return _table(("metric", "type", "labels", "meaning"), sorted(rows))


def statuses() -> str:
    """Which gRPC status and reason each error becomes."""
    rows = [
        (f"`{cls.__name__}`", row.code.name, status.name_of(row.reason))
        for cls, row in status.TABLE.items()
    ]
    rows.append(("anything else", "INTERNAL, with a request id", "INTERNAL"))
    return _table(("cause", "status", "reason"), rows)


def oip_models() -> str:
    """Every model of the Open Inference Protocol, by its tensors."""
    rows = [
        (f"`{model.name}`", _tensors(model.inputs), _tensors(model.outputs))
        for model in models().values()
    ]
    return _table(("model", "inputs", "outputs"), rows)


def _tensors(tensors: Mapping[str, ModelTensor]) -> str:
    return ", ".join(
        f"`{one.name}` ({', '.join('?' if size < 0 else str(size) for size in one.shape)})"
        for one in tensors.values()
    )


def server_benchmark() -> str:
    """The last committed run of `make bench-server`."""
    return _server_tables(json.loads(SERVER_BENCHMARK.read_text()))


def oip_benchmark() -> str:
    """The last committed run of `make bench-oip`."""
    return _server_tables(json.loads(OIP_BENCHMARK.read_text()))


def _server_tables(report: dict[str, Any]) -> str:
    loads = [
        (
            cell["case"],
            one["name"],
            f"{one['requests_per_s']:.0f}",
            f"{one['p50_ms']:.2f}",
            f"{one['cpu_ms']:.2f}",
        )
        for cell in report["cells"]
        for one in cell["contenders"]
    ]
    head = ("load", "server", "requests/s", "p50, ms", "processor time of one, ms")
    findings = [
        one | {"what": f"{cell['case']}: {one['what']}"}
        for cell in report["cells"]
        for one in cell["findings"]
        if one["bar"] is not None
    ]
    notes = "".join(f"; {cell['note']}" for cell in report["cells"] if cell["note"])
    when = (
        f"{report['date']}, {report['processor']}, grpcio {report['grpcio']}; medians of "
        f"{report['rounds']} rounds in which the contenders take turns{notes}."
    )
    return f"{_findings(findings)}\n\n{_table(head, loads)}\n\n{when}"


def local_benchmark() -> str:
    """The last committed run of `make bench-local`."""
    report = json.loads(LOCAL_BENCHMARK.read_text())
    loads = [
        (cell["case"], name, f"{one['calls_per_s']:.0f}", f"{one['p50_ms']:.3f}")
        for cell in report["cells"]
        for name, one in cell["contenders"].items()
    ]
    loads += [
        ("1x1x28x28 forward, 33 in flight", name, f"{calls_per_s:.0f}", NOTHING)
        for name, calls_per_s in report["in_flight"].items()
    ]
    findings = [
        one
        | {
            "what": f"{cell['case']}: calls a second, {one['what']}",
            "unit": "x",
            "bar": round(one["bar"], 2),
            "at_most": False,
            "met": one["value"] >= one["bar"],
        }
        for cell in report["cells"]
        for one in cell["findings"]
    ]
    when = (
        f"{report['date']}, {report['processor']}, torch {report['torch']}, grpcio "
        f"{report['grpcio']}; medians of {report['rounds']} rounds in which the contenders take "
        "turns."
    )
    head = ("load", "by", "calls /s", "p50, ms")
    return f"{_findings(findings)}\n\n{_table(head, loads)}\n\n{when}"


def replicas_benchmark() -> str:
    """The last committed run of `make bench-replicas`."""
    report = json.loads(REPLICAS_BENCHMARK.read_text())
    rows = [
        (
            str(cell["replicas"]),
            f"{cell['requests_per_s']:.0f}",
            f"{cell['times_one']:.2f}",
            f"{cell['p99_ms']:.0f}",
        )
        for cell in report["cells"]
    ]
    when = (
        f"{report['date']}, {report['processor']}; {report['callers']} callers of one SDK client, "
        f"devices that take {report['launch_s'] * 1e3:.0f} ms for up to {report['batch_items']} "
        f"calls; medians of {report['rounds']} rounds."
    )
    head = ("replicas", "calls /s", "times one", "p99 ms")
    return f"{_table(head, rows)}\n\n{when}"


def engine_benchmark() -> str:
    """The last committed runs of `make bench-engine`, whole or of some groups."""
    return "\n\n".join(map(_engine_tables, _reports(ENGINE_BENCHMARKS)))


def many_benchmark() -> str:
    """The last committed run of `make bench-many`."""
    report = json.loads(MANY_BENCHMARK.read_text())
    rows = [
        (
            cell["case"],
            f"{cell['packed_per_s']:.0f}",
            f"{cell['alone_per_s']:.0f}",
            f"{cell['times']:.2f}",
            _judged(cell["times"], cell["bar"]),
        )
        for cell in report["cells"]
    ]
    when = (
        f"{report['date']}, {report['processor']}, grpcio {report['grpcio']}; medians of "
        f"{report['rounds']} rounds in which the two take turns."
    )
    head = ("calls", "together, /s", "one a message, /s", "times", "bar")
    return f"{_table(head, rows)}\n\n{when}"


def registration_benchmark() -> str:
    """The last committed run of `make bench-registration`."""
    report = json.loads(REGISTRATION_BENCHMARK.read_text())
    rows = []
    for cell in report["cells"]:
        is_cost = cell["unit"] not in {"times", "times ours"}
        rows.append(
            (
                cell["case"],
                f"{cell['others'] * 1e3:.0f}" if "others" in cell else "",
                f"{cell['error_px']:.4f}" if "error_px" in cell else "",
                f"{cell['value']:.2f} {cell['unit']}",
                _judged(cell["value"], cell["bar"], at_most=is_cost),
            )
        )
    when = (
        f"{report['date']}, {report['processor']}, grpcio {report['grpcio']}, opencv "
        f"{report['opencv-python-headless']}, SimpleITK {report['simpleitk']}; medians of "
        f"{report['rounds']} rounds in which the contenders take turns (3 of volumes)."
    )
    head = ("what", "takes, ms", "off by, px", "measured", "bar")
    return f"{_table(head, rows)}\n\n{when}"


def triton_benchmark() -> str:
    """The last committed run of `make bench-triton`."""
    report = json.loads(TRITON_BENCHMARK.read_text())
    rows = []
    for cell in report["cells"]:
        rates = cell["calls_per_s"]
        for name, times in cell["times"].items():
            verdict = _judged(times, cell["bars"].get(name))
            speeds = f"{rates[name]:.0f}", f"{rates['triton']:.0f}"
            rows.append((cell["case"], name, *speeds, f"{times:.2f}", verdict))
    when = (
        f"{report['date']}, {report['processor']}, grpcio {report['grpcio']}; medians of "
        f"{report['rounds']} rounds in which the contenders take turns."
    )
    head = ("calls", "by", "calls/s", "Triton, calls/s", "times", "bar")
    return f"{_table(head, rows)}\n\n{when}"


def client_benchmark() -> str:
    """The last committed run of `make bench-client`."""
    report = json.loads(CLIENT_BENCHMARK.read_text())
    durations = [
        (cell["case"], one["name"], f"{one['s'] * 1e3:.3f}")
        for cell in report["cells"]
        for one in cell["contenders"]
    ]
    findings = [
        cell["finding"] | {"what": f"{cell['case']}: {cell['finding']['what']}"}
        for cell in report["cells"]
    ]
    when = (
        f"{report['date']}, {report['processor']}, grpcio {report['grpcio']}, opencv "
        f"{report['opencv-python-headless']}; medians of {report['rounds']} rounds in which the "
        "contenders take turns."
    )
    head = ("what", "by", "each, ms")
    return f"{_findings(findings)}\n\n{_table(head, durations)}\n\n{when}"


def _judged(value: float, bar: float | None, *, at_most: bool = False) -> str:
    """Returns a bar and whether a value meets it; "none" if there is no bar."""
    if bar is None:
        return "none"
    met = value <= bar if at_most else value >= bar
    return f"{'≤' if at_most else '≥'} {bar:g}: {'met' if met else 'missed'}"


def _engine_tables(report: dict[str, Any]) -> str:
    rows = [
        (
            one["group"],
            one["rival"],
            str(one["cases"]),
            f"{one['mean']:.2f}",
            f"{one['least']:.2f}",
            _bar(one),
        )
        for one in report["summaries"]
    ]
    names = ("torch", "opencv-python-headless", "kornia")
    versions = ", ".join(f"{name} {report[name]}" for name in names)
    when = (
        f"{report['date']}, {report['processor']}, {report['threads']} threads each, backend "
        f"`{report['backend']}`, {versions}; medians of {report['rounds']} rounds in which the "
        "contenders take turns, geometric means over cases."
    )
    head = ("what", "against", "cases", "times faster", "least", "bar")
    memory = [_memory(report["memory"])] if report["memory"] else []
    return "\n\n".join([_table(head, rows), *memory, when])


def alternatives() -> str:
    """How this compares with what could be used in its place, from the last committed runs."""
    triton, local, client, registration = (
        json.loads(path.read_text())["cells"]
        for path in (TRITON_BENCHMARK, LOCAL_BENCHMARK, CLIENT_BENCHMARK, REGISTRATION_BENCHMARK)
    )
    cpu, gpus = _reports(ENGINE_BENCHMARKS)[0], _reports(GPU_BENCHMARKS)

    def beside_triton(*, by_sdk: bool) -> list[float]:
        of_all = [one for cell in triton for one in cell["times"].items()]
        return [times for name, times in of_all if ("SDK" in name) == by_sdk]

    def by_rpc(name: str) -> list[float]:
        rates = [
            {one: of["calls_per_s"] for one, of in cell["contenders"].items()} for cell in local
        ]
        return [of[name] / of["torch rpc"] for of in rates if {name, "torch rpc"} <= set(of)]

    def on_cpu(rival: str) -> list[float]:
        return [cell["ratio"] for cell in cpu["cells"] if cell["rival"] == rival]

    def registered(case: str) -> list[float]:
        return [cell["value"] for cell in registration if cell["case"].endswith(case)]

    rows: list[tuple[str, str, list[float]]] = [
        (
            "Triton, whose Python backend calls `grid_sample`",
            "messages by gRPC",
            beside_triton(by_sdk=False),
        ),
        (
            "Triton, whose Python backend calls `grid_sample`",
            "33 small calls at a time, by the SDK",
            beside_triton(by_sdk=True),
        ),
        ("torch's RPC around `grid_sample`", "calls on one host, local transport", by_rpc("local")),
        ("torch's RPC around `grid_sample`", "calls on one host, gRPC", by_rpc("grpc")),
        (
            "OpenCV in the caller's process",
            "2,000 images of 128x128 by the local transport",
            [cell["finding"]["value"] for cell in client if "OpenCV" in cell["finding"]["what"]],
        ),
        ("OpenCV's `findTransformECC`", "`align` by gRPC", registered("by_ecc")),
        (
            "SimpleITK's affine registration",
            "`align` of volumes by gRPC",
            registered("by_simpleitk"),
        ),
        ("OpenCV", "the engine alone, on CPUs", on_cpu("OpenCV")),
        ("Kornia", "the engine alone, on CPUs", on_cpu("Kornia")),
        ("PyTorch", "the engine alone, on CPUs", [*on_cpu("torch"), *on_cpu("torch.compile")]),
        *(
            (
                "PyTorch",
                f"the engine alone, on {report['device']}",
                [
                    one["value"]
                    for one in report["rows"]
                    if one["what"].endswith(("against eager", "against compile"))
                ],
            )
            for report in gpus
        ),
    ]
    head = ("beside", "what is compared", "times as fast, least to most")
    return _table(head, [(beside, what, _spread(values)) for beside, what, values in rows])


def _spread(values: Sequence[float]) -> str:
    """The least and the most of some ratios, which are one if there is one."""
    ends = dict.fromkeys(f"{one:.2f}" for one in (min(values), max(values)))
    return " to ".join(ends)


def gpu_benchmark() -> str:
    """The last committed run of `make bench-gpu` on every device that there was."""
    return "\n\n".join(map(_gpu_table, _reports(GPU_BENCHMARKS)))


def _gpu_table(report: dict[str, Any]) -> str:
    when = f"{report['date']}, {report['device']}, CUDA {report['cuda']}, torch {report['torch']}"
    return f"{_findings(report['rows'])}\n\n{when}; medians of {report['rounds']} rounds."


def gpu_check() -> str:
    """The last committed run of `make gpu-check` on every device that there was, stage by stage."""
    return "\n\n".join(map(_gpu_stages, _reports(GPU_CHECKS)))


def _gpu_stages(report: dict[str, Any]) -> str:
    tests, answers, smoke = report["tests"], report["questions"], report["smoke"]
    found = {
        "smoke": f"{smoke['problems'] - len(smoke['bad'])} of {smoke['problems']} problems agree",
        "questions": f"{sum('answer' in one for one in answers)} of {len(answers)} answered",
        "kernels": f"{len(report['kernels'])} cases profiled",
        "gpu tests": _counts(tests["gpu_tests"]),
        "battery": _counts(tests["battery"]),
    }
    rows = [
        (name, found.get(name, NOTHING), _ended(stage["status"]))
        for name, stage in report["stages"].items()
    ]
    raised = [
        f"\n\nNot answered: `{one['question']}`, {one['exception'].strip().splitlines()[-1]}"
        for one in answers
        if "exception" in one
    ]
    device = report["device"]
    when = (
        f"{report['date']}, {device['device']}, driver {device['driver']}, CUDA {device['cuda']}, "
        f"torch {device['torch']}, Python {device['python']}."
    )
    stages = _table(("stage", "found", "ended"), rows)
    return f"{stages}{''.join(raised)}\n\n{when}"


def gpu_evidence() -> str:
    """What `make gpu-check` found on every device that there was."""
    return "\n".join(map(gpu_sentence, _reports(GPU_CHECKS)))


def gpu_sentence(report: dict[str, Any]) -> str:
    """One run in a sentence: what went well, what failed, and what was left out."""
    statuses = {tool: report["stages"].get(tool, {}).get("status") for tool in SANITIZERS}
    clean = [tool for tool, status in statuses.items() if status == 0]
    others = [f"{tool}: {_ended(status)}" for tool, status in statuses.items() if status != 0]
    tools = [f"{_joined_by_and(clean)} clean", *others] if clean else others
    return (
        f"On {report['device']['device']}, {report['date']}: of `tests/gpu` "
        f"{_counts(report['tests']['gpu_tests'])}, of the conformance battery "
        f"{_counts(report['tests']['battery'])}; compute-sanitizer: {', '.join(tools)}."
        f"{' '.join(['', *report.get('remarks', [])])}"
    )


def _reports(pattern: str) -> list[dict[str, Any]]:
    """Committed runs, one a device."""
    found = [json.loads(path.read_text()) for path in sorted(ROOT.glob(pattern))]
    if not found:
        raise SystemExit(f"{pattern}: expected a run on some device, got none.")
    return found


def _counts(tests: dict[str, Any]) -> str:
    """What became of the tests of a stage; those that went well are not listed by name."""
    if not tests:
        return "nothing was reported"
    passed = tests["tests"] - tests["skipped"] - tests["failed"]
    other = [f"{tests[word]:,} {word}" for word in ("failed", "skipped") if tests[word]]
    return ", ".join([f"{passed:,} tests passed", *other])


def _ended(status: int | None) -> str:
    """An exit status of `gpu_check` in words."""
    words = {None: "left out", 0: "well", 124: "out of time", 127: "not installed"}
    return words.get(status, f"status {status}")


def _joined_by_and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def support() -> str:
    """What every backend says that it can run, in as few rows as say exactly that."""
    rows = [
        (f"`{backend.name}`", _devices(backend), f"{dimensions}-D", *row)
        for backend in map(_with_device, dispatch.BACKENDS)
        for dimensions in EXAMPLES
        for row in _supported(backend, dimensions)
    ]
    head = ("backend", "device", "maps", "transforms", "interpolation", "padding")
    return _table((*head, "feature maps", "gradients for", "`generate_grid`"), rows)


def experiment() -> str:
    """The committed run of the example that learns to read distorted digits."""
    report = json.loads(EXPERIMENT.read_text())
    rows = [
        (name, str(report["parameters"][name]), f"{error:.2f} %", f"{IN_THE_PAPER[name]} %")
        for name, error in report["test_error_percent"].items()
    ]
    epochs = f"misread after {report['epochs']} epochs"
    return _table(("network", "parameters", epochs, "in the paper, after 640"), rows)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"alternatives": alternatives, "gpu evidence": gpu_evidence},
    "client/README.md": {"experiment": experiment},
    "server/README.md": {
        "configuration": configuration,
        "metrics": metrics,
        "statuses": statuses,
        "models": oip_models,
    },
    "stn_engine/README.md": {"support": support, "gpu evidence": gpu_evidence},
    "tests/bench/README.md": {
        "server benchmark": server_benchmark,
        "client benchmark": client_benchmark,
        "many benchmark": many_benchmark,
        "oip benchmark": oip_benchmark,
        "registration benchmark": registration_benchmark,
        "triton benchmark": triton_benchmark,
        "local benchmark": local_benchmark,
        "replicas benchmark": replicas_benchmark,
        "engine benchmark": engine_benchmark,
        "gpu benchmark": gpu_benchmark,
        "gpu check": gpu_check,
    },
}
"""What is generated, by the document that it stands in and its name there."""


def alert_rules() -> str:
    """The alerts as the object that the Prometheus operator takes."""
    rules = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
    head = (
        "# `make docs` makes this of deploy/prometheus/alerts.yaml.",
        "apiVersion: monitoring.coreos.com/v1",
        "kind: PrometheusRule",
        "metadata:",
        "  name: stn",
        "spec:",
    )
    return "\n".join(head) + "\n" + textwrap.indent(rules, "  ")


FILES = {"deploy/k8s/components/monitoring/prometheusrule.yaml": alert_rules}
"""What is generated as a whole."""


def regenerated(path: str) -> str:
    """A file as it should be, or a document with all its tables so."""
    if path in FILES:
        return FILES[path]()
    text = (ROOT / path).read_text()
    for name, table in TABLES[path].items():
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, lambda m: m[1] + table() + m[2], text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise SystemExit(f"{path}: expected one table {name}, got {count}.")
    return text


def main() -> None:
    """Writes the tables and files, or checks them with `--check`."""
    for path in (*TABLES, *FILES):
        text = regenerated(path)
        if "--check" not in sys.argv[1:]:
            (ROOT / path).write_text(text)
        elif text != (ROOT / path).read_text():
            raise SystemExit(f"{path}: not fresh. Run `make docs`.")


def _default(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value) or "empty"


def _bar(summary: dict[str, Any]) -> str:
    """What was asked of a group, and whether it was reached."""
    asked = [
        f"{word} ≥ {summary[f'bar_{word}']:g}"
        for word in ("mean", "least")
        if summary[f"bar_{word}"] is not None
    ]
    return f"{', '.join(asked)}: {_verdict(summary)}" if asked else NOTHING


def _memory(findings: Iterable[dict[str, Any]]) -> str:
    """What one call takes beyond its results."""
    rows = [
        (
            one["kind"],
            "×".join(map(str, one["shape"])),
            f"{one['result_bytes'] / 2**20:.0f}",
            *(f"{one[f'{name}_extra_bytes'] / 2**10:.0f}" for name in ("ours", "torch")),
            f"≤ {one['bar_bytes'] / 2**10:.0f}: {_verdict(one)}",
        )
        for one in findings
    ]
    head = ("one call", "feature map", "results, MiB", "memory beyond, KiB", "torch, KiB", "bar")
    return _table(head, rows)


def _findings(findings: Iterable[dict[str, Any]]) -> str:
    """What was measured beside what was asked."""
    rows = [
        (
            one["what"],
            f"{one['value']:.2f} {one['unit']}",
            NOTHING
            if one["bar"] is None
            else f"{'≤' if one['at_most'] else '≥'} {one['bar']:g}: {_verdict(one)}",
        )
        for one in findings
    ]
    return _table(("what", "measured", "bar"), rows)


def _verdict(finding: dict[str, Any]) -> str:
    return "met" if finding["met"] else "missed"


class _AnyDevice(DeviceLauncher):
    """Stands for a GPU, which this script must not need."""

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:  # noqa: ARG002 - protocol
        return ()


def _with_device(backend: Backend) -> Backend:
    """``backend`` as if this machine had the device that it computes on."""
    return CudaBackend(_AnyDevice()) if isinstance(backend, CudaBackend) else backend


def _devices(backend: Backend) -> str:
    """Where a backend runs; meta tensors stand for any device."""
    if isinstance(backend, CudaBackend):
        return "cuda"
    elsewhere = Affine(torch.zeros(1, 2, 3, device="meta"))
    problem = WarpProblem(torch.zeros(1, 1, 1, 1, device="meta"), elsewhere)
    return "any" if _runs(backend, problem) else "cpu"


def _supported(backend: Backend, dimensions: int) -> tuple[Row, ...]:
    """The rows of a backend: transforms, interpolation, padding, dtypes, grid generator."""
    size = (1,) * dimensions

    def dtypes(transform: Transform, interpolation: Interpolation, padding: Padding) -> Row:
        spec = WarpSpec(interpolation=interpolation, padding=padding)
        moves = interpolation is Interpolation.NEAREST
        held = FEATURE_MAP_DTYPES if moves else INTERPOLATED_DTYPES
        maps = {dtype: torch.zeros(1, 1, *size, dtype=dtype) for dtype in held}
        warps = {dtype: WarpProblem(one, transform, size, spec) for dtype, one in maps.items()}
        gradients = {one: WarpGradientsProblem(warps[one], maps[one]) for one in GRADIENT_DTYPES}
        return tuple(
            _joined(dtype for dtype, problem in problems.items() if _runs(backend, problem))
            for problems in (warps, gradients)
        )

    rows = _merged(dtypes, EXAMPLES[dimensions], Interpolation, Padding)
    generators = [one for one in EXAMPLES[dimensions] if isinstance(one, ParametricTransform)]
    grids = [one for one in generators if _runs(backend, GridProblem(one, size))]
    return tuple((*row, "all" if grids == generators else _joined(grids)) for row in rows)


def _runs(backend: Backend, problem: Problem) -> bool:
    return not backend.unsupported_reasons(problem)


def _merged(say: Callable[..., Row], *axes: Iterable[Any], chosen: Row = ()) -> tuple[Row, ...]:
    """All combinations along the axes and what is said of each; what says the same shares rows."""
    if not axes:
        said = say(*chosen)
        return () if set(said) == {NOTHING} else (said,)
    alike: dict[tuple[Row, ...], list[Any]] = {}
    for value in axes[0]:
        alike.setdefault(_merged(say, *axes[1:], chosen=(*chosen, value)), []).append(value)
    return tuple((_joined(values), *row) for rows, values in alike.items() for row in rows)


def _joined(values: Iterable[Any]) -> str:
    """Transforms by kind, dtypes without their module, all others as they are."""
    names = (
        f"`{type(one).__name__}`" if isinstance(one, Transform) else str(one) for one in values
    )
    return ", ".join(name.removeprefix("torch.") for name in names) or NOTHING


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
