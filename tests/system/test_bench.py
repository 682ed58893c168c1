"""The benchmark of the server in its smallest form: that it runs, not what it measures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_case_of_the_server_benchmark_runs(tmp_path):
    output = tmp_path / "server.json"
    flags = ["--rounds=1", "--seconds=0.1", f"--output={output}"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run(
        [sys.executable, "-m", "bench.bench_server", *flags],
        env=environment,
        check=True,
        timeout=110,
    )
    cells = json.loads(output.read_text())["cells"]
    rates = [one["requests_per_s"] for cell in cells for one in cell["contenders"]]
    judged = [one["met"] for cell in cells for one in cell["findings"] if one["bar"] is not None]
    assert (len(cells), len(rates), len(judged)) == (6, 16, 14)
    assert all(0 < rate < math.inf for rate in rates)
    assert set(judged) <= {True, False}
