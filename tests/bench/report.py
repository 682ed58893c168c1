"""What every benchmark says about itself, and the JSON file that it says it in."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def write(path: Path, benchmark: str, packages: tuple[str, ...], **findings) -> None:
    """Findings under a heading: when, on what, with which versions."""
    report = {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **findings,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
