"""Stage by stage, all that a GPU can tell in some minutes; what has most to tell comes first.

Every stage is a process with a limit of its own, and its findings are on disk line by line, so that
neither a crash nor the end of the time loses what was learned before. Results go to the folder
``OUT``, or else to ``build/gpu-check``: a log, the findings of each stage, and a summary.

``--dry-run`` goes the same way on the emulated device, in a short form.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from gpu_check.devices import results_folder
from gpu_check.smoke import POISONED

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
PROFILED = ("smoke", "kernels", "questions")
"""Stages that write findings."""

BATTERY = (
    "tests/engine/test_backend_conformance.py",
    "tests/engine/test_gradients.py",
    "tests/engine/test_objective.py",
)
SANITIZED_PROBLEMS = {"memcheck": 560, "racecheck": 64, "synccheck": 64}
"""Of `every_kernel`, spread over all; the tools run kernels a hundred times slower."""


@dataclass(frozen=True)
class Stage:
    """One process.

    Args:
        name: As `--only` and the summary say it.
        limit_s: After so long it is ended.
        command: What runs.
        goes_on_behind_poison: Whether it is started again when it ends with a poisoned context.
    """

    name: str
    limit_s: float
    command: tuple[str, ...]
    goes_on_behind_poison: bool = False


def stages(architecture: str) -> list[Stage]:
    """All of them, on a GPU of this architecture."""
    return [
        Stage("versions", 30, (PYTHON, "-m", "gpu_check.versions")),
        Stage("compile", 120, module("stn_engine.warm", "--arch", architecture)),
        Stage("smoke", 45, module("gpu_check.smoke"), goes_on_behind_poison=True),
        Stage("questions", 40, module("gpu_check.questions")),
        Stage("kernels", 90, module("gpu_check.kernels")),
        Stage("gpu tests", 75, pytest("gpu_tests", 6, "tests/gpu", "-k", "not sanitizer")),
        Stage("battery", 75, pytest("battery", 10, *BATTERY, "-k", "cuda")),
        Stage("benchmark", 60, module("bench.bench_cuda", "--rounds", "3")),
        *(
            Stage(tool, 60, sanitized(tool, problems))
            for tool, problems in SANITIZED_PROBLEMS.items()
        ),
    ]


def dry_stages() -> list[Stage]:
    """The same, as far as they make sense without a device, in a short form."""
    collected = ("--collect-only", "-q")
    return [
        Stage("versions", 60, module("gpu_check.versions")),
        Stage("smoke", 300, module("gpu_check.smoke", "--every", "9", "--limit-s", "inf")),
        Stage("questions", 120, module("gpu_check.questions")),
        Stage("kernels", 300, module("gpu_check.kernels")),
        Stage("gpu tests", 120, pytest("gpu_tests", 0, "tests/gpu", *collected)),
        Stage("battery", 300, pytest("battery", 0, *BATTERY, "-k", "cuda", *collected)),
        Stage("benchmark", 300, module("bench.bench_cuda", "--rounds", "1")),
        Stage("kernels to be sanitized", 120, module("gpu.every_kernel", "1")),
    ]


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module."""
    return PYTHON, "-m", name, *arguments


def pytest(report: str, workers: int, *arguments: str) -> tuple[str, ...]:
    """The command that runs tests side by side where that is possible, and reports them."""
    side_by_side = ("-n", str(workers)) if importlib.util.find_spec("xdist") and workers else ()
    path = results_folder() / f"{report}.xml"
    options = ("-q", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={path}")
    return module("pytest", *options, *side_by_side, *arguments)


def sanitized(tool: str, problems: int) -> tuple[str, ...]:
    """The command that runs some problems under a tool of compute-sanitizer."""
    # cuda.core asks the driver for functions that it may lack: no error of ours.
    options = ("--tool", tool, "--error-exitcode", "9", "--print-limit", "10")
    options += ("--report-api-errors", "no") if tool == "memcheck" else ()
    return "compute-sanitizer", *options, *module("gpu.every_kernel", str(problems))


def main() -> int:
    """Run the stages; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m gpu_check", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the emulated device")
    parser.add_argument("--budget-s", type=float, default=480, help="for all stages together")
    parser.add_argument("--only", default="", help="stages whose name matches")
    options = parser.parse_args()
    folder = results_folder()
    if not os.environ.get("OUT"):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "STN_TEST_GPU": "" if options.dry_run else "1",
            "STN_GPU_CHECK": "emulated" if options.dry_run else "",
            "STN_KERNEL_CACHE": os.environ.get("STN_KERNEL_CACHE", f"{scratch}/kernels"),
            "OUT": str(folder),
        }
        run = Run(folder, environment, options.budget_s)
        chosen = dry_stages() if options.dry_run else stages(architecture())
        for stage in chosen:
            if re.search(options.only, stage.name):
                run.perform(stage)
    run.summarize()
    return 1 if any(status for status in run.statuses.values()) else 0


def architecture() -> str:
    """Of the first GPU, such as "sm_90"."""
    import torch  # noqa: PLC0415 - a second of start-up that a dry run does not need

    return "sm_{}{}".format(*torch.cuda.get_device_capability())


class Run:
    """The stages of one run, and what became of them.

    Args:
        folder: Of the results.
        environment: Of the processes.
        budget_s: For all of them; a stage that begins later is left out.

    Attributes:
        statuses: Exit status of each stage; 124 where its time was over.
    """

    def __init__(self, folder: Path, environment: dict[str, str], budget_s: float) -> None:
        self._folder, self._environment, self._budget_s = folder, environment, budget_s
        self._began = time.monotonic()
        self._times_s: dict[str, float] = {}
        self.statuses: dict[str, int] = {}

    def perform(self, stage: Stage) -> None:
        """One stage; again behind a problem that poisoned its process."""
        while True:
            began = time.monotonic()
            left_s = self._budget_s - (began - self._began)
            if left_s < 10:
                self._say(f"=== {stage.name}: left out, the time is over")
                return
            self._say(f"=== {stage.name}, at {began - self._began:.0f} s")
            status = self._process(stage.command, min(stage.limit_s, left_s))
            self._times_s[stage.name] = round(time.monotonic() - began, 1)
            self.statuses[stage.name] = status
            self._say(f"--- {stage.name}: status {status}, {self._times_s[stage.name]} s")
            if not (stage.goes_on_behind_poison and status == POISONED):
                return

    def summarize(self) -> None:
        """One JSON file with everything but the log."""
        from bench import report  # noqa: PLC0415

        findings = {name: _lines(self._folder / f"{name}.jsonl") for name in PROFILED}
        smoke = findings["smoke"]
        tests = {
            name: _test_counts(self._folder / f"{name}.xml") for name in ("gpu_tests", "battery")
        }
        device = next(iter(_lines(self._folder / "versions.jsonl")), {})
        report.write(
            self._folder / "gpu_check.json",
            "first contact with a GPU",
            ("torch",),
            device=device,
            stages={
                name: {"status": status, "seconds": self._times_s[name]}
                for name, status in self.statuses.items()
            },
            smoke={
                "problems": len(smoke),
                "bad": [one for one in smoke if not one["ok"]],
            },
            tests=tests,
            questions=findings["questions"],
            kernels=findings["kernels"],
        )
        self._say(f"=== all at {time.monotonic() - self._began:.0f} s: {self.statuses}")

    def _process(self, command: tuple[str, ...], limit_s: float) -> int:
        """Runs one process, whose output goes to the log and, its end, to the terminal."""
        with (self._folder / "log.txt").open("ab") as log:
            start = log.tell()
            try:
                status = subprocess.run(
                    command,
                    env=self._environment,
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=limit_s,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
            except FileNotFoundError as error:
                log.write(f"{error}\n".encode())
                status = 127
        with (self._folder / "log.txt").open("rb") as log:
            log.seek(start)
            printed = log.read().decode(errors="replace").splitlines()
        print("\n".join(line[:300] for line in printed[-40:]), flush=True)
        return status

    def _say(self, line: str) -> None:
        print(line, flush=True)
        with (self._folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def _lines(path: Path) -> list[dict]:
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def _test_counts(path: Path) -> dict:
    """How many tests ran and failed, and which failed."""
    if not path.exists():
        return {}
    suite = ET.parse(path).getroot().find("testsuite")
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "skipped")}
    return counts | {"failed": len(failed), "first_failed": failed[:40]}


if __name__ == "__main__":
    sys.exit(main())
