"""Python processes that find the tests' support, wherever they are started and however safely."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Variables under which Python finds the tests' support, also with `PYTHONSAFEPATH`."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def run_python(*arguments: str | Path, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    """Runs `python arguments` to its end; what it prints and how it ends is the caller's to judge.

    Its environment is `environment()`.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment() | {"GRPC_VERBOSITY": "NONE"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
