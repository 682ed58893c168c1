"""The stress suites in a form that fits CI: overload, chaos, soak, memory and fuzz, each a process.

`make overload`, `make chaos`, `make soak`, `make memory` and `make fuzz-server` run the long forms.
"""

import json

import pytest

from support.processes import TESTS, run_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command):
    """Runs a suite; fails with the promises that were broken, returns its numbers."""
    ended = run_python(*command, timeout_s=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.alone
def test_overload_is_refused_at_once_and_costs_no_throughput():
    """Three times the capacity: what is accepted is in time, a quiet caller notices nothing."""
    seen = run("-m", "stress.overload", "--seconds=10", "--percent=50")
    assert seen["calls"]["RESOURCE_EXHAUSTED"] > seen["calls"]["OK"]


def test_chaos_leaves_nothing_behind():
    """Random deadlines, cancellations, killed callers and faults: every call ends once."""
    seen = run("-m", "stress.chaos", "--requests=3000")
    assert sum(seen["ended"].values()) == 3000


def test_the_limits_of_admission_bound_memory():
    """Sixteen times as much is sent, with and without its size, and by callers that stall."""
    sizes = ["--message-mib=24", "--admitted-mib=128", "--retained-mib=64"]
    seen = run("-m", "stress.memory", "--callers=32", *sizes)
    assert seen["stalled"]["late"] > 0


def test_memory_does_not_rise_under_steady_load():
    """The short form shows that it is flat from the start."""
    assert run("-m", "stress.soak", "--seconds=15")["calls"] > 0


def test_nothing_that_is_sent_breaks_the_server(tmp_path):
    """Twenty thousand raw, changed and odd messages: never INTERNAL, never late."""
    script = str(TESTS / "fuzz" / "fuzz_server.py")
    seen = run(script, "--inputs=20000", f"--folder={tmp_path}")
    assert seen["inputs"] == 20000
