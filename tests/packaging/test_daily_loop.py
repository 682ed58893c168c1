"""What a quick run of the tests leaves out, and what it does not."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BATTERY = "tests/engine/test_coords.py"


def collected(*options):
    """The names of the cases that a run would have."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, BATTERY]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(BATTERY)]


@pytest.mark.slow
def test_a_quick_run_has_some_cases_of_every_test():
    """As many as are asked for where there are more, all where there are not, always the same."""
    most = 8
    everything, quick = collected(), collected(f"--most-cases={most}")
    cases, chosen = (
        Counter(re.sub(r"\[.*", "", name) for name in names) for names in (everything, quick)
    )
    assert max(cases.values()) > most > min(cases.values())
    assert chosen == {test: min(count, most) for test, count in cases.items()}
    assert quick == [name for name in everything if name in set(quick)], "in their order"
    assert quick == collected(f"--most-cases={most}")
