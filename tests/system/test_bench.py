"""The benchmarks in their smallest form: that they run, not how fast; what calls hold, in full."""

import json
import math

import pytest

from bench import engine_memory
from support.processes import run_python


@pytest.mark.slow
def test_both_protocols_are_measured(tmp_path):
    output = tmp_path / "oip.json"
    flags = ["--rounds=1", "--seconds=0.1", "--only=28x28", f"--output={output}"]
    ended = run_python("-m", "bench.bench_oip", *flags)
    assert ended.returncode == 0, ended.stderr
    cells = json.loads(output.read_text())["cells"]
    rates = {(cell["case"], one["name"]) for cell in cells for one in cell["contenders"]}
    assert len(rates) == 2 * 2
    assert all(one["requests_per_s"] > 0 for cell in cells for one in cell["contenders"])


@pytest.mark.slow
def test_every_case_of_the_server_benchmark_runs(tmp_path):
    output = tmp_path / "server.json"
    flags = ["--rounds=1", "--seconds=0.1", f"--output={output}"]
    ended = run_python("-m", "bench.bench_server", *flags)
    assert ended.returncode == 0, ended.stderr
    cells = json.loads(output.read_text())["cells"]
    rates = [one["requests_per_s"] for cell in cells for one in cell["contenders"]]
    judged = [one["met"] for cell in cells for one in cell["findings"] if one["bar"] is not None]
    assert (len(cells), len(rates), len(judged)) == (6, 16, 14)
    assert all(0 < rate < math.inf for rate in rates)
    assert set(judged) <= {True, False}


@pytest.mark.slow
def test_every_case_of_the_benchmark_of_many_calls_runs(tmp_path):
    output = tmp_path / "many.json"
    flags = ["--rounds=1", "--seconds=0.1", f"--output={output}"]
    ended = run_python("-m", "bench.bench_many", *flags)
    assert ended.returncode == 0, ended.stderr
    cells = json.loads(output.read_text())["cells"]
    assert len(cells) == 8
    assert all(0 < cell["packed_per_s"] < math.inf for cell in cells)
    assert [cell["bar"] for cell in cells] == [8.0] + [None] * 7


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_memory_of_a_call_does_not_grow_with_its_maps(kind):
    """Beyond its results: nothing is kept for each of 2048 chunks, as no bit of a sum needs it."""
    found = json.loads(engine_memory.child("ours", kind, "32x3x512x512", "2"))
    assert found["result_bytes"] >= 32 * 3 * 512 * 512 * 4
    assert found["extra_bytes"] <= 2 * engine_memory.BAR_BYTES_PER_THREAD
