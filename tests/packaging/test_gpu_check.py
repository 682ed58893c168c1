"""The first contact with a GPU: what can fail before the first kernel does not fail there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu_check import devices
from support.every_kernel import every_kernel

ROOT = Path(__file__).parents[2]


def make_lines(target):
    """What make would run."""
    command = ["make", "--dry-run", "--no-print-directory", target, "PYTHON=python3"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return printed.replace("\\\n", " ").splitlines()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_dry_run_goes_all_the_way_on_the_emulated_device(tmp_path):
    """Every stage, with its findings on disk."""
    path = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-m", "gpu_check", "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OUT": str(tmp_path), "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    summary = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {stage["status"] for stage in summary["stages"].values()} == {0}
    assert list(summary["stages"]) == [
        "versions",
        "smoke",
        "questions",
        "kernels",
        "gpu tests",
        "battery",
        "benchmark",
        "kernels to be sanitized",
    ]
    count = sum(1 for _ in every_kernel())
    assert summary["smoke"] == {"problems": -(-count // 9), "bad": []}
    assert [one["answer"] for one in summary["questions"]] == [True, True, True]
    assert all(one["device_us"] > 0 for one in summary["kernels"])
    rows = json.loads((tmp_path / "engine_cuda_emulation.json").read_text())["rows"]
    assert all(row["value"] >= 0 for row in rows)
    assert len(rows) > 30


@pytest.mark.slow
def test_tests_of_a_gpu_are_all_collected_there():
    """Those of the server's runner, too, for which its sources must be on the path."""
    on_gpu, battery = make_lines("test-gpu")
    path = re.search(r"PYTHONPATH=(\S+)", on_gpu)[1]
    for project in ("proto", "stn_engine", "server"):
        assert str(ROOT / project / "src") in path.split(":")
    assert on_gpu.endswith("tests/gpu")
    assert " -k " not in on_gpu
    assert "-k cuda" in battery
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "tests/gpu"]
    environment = os.environ | {"PYTHONPATH": path.removesuffix(":$PYTHONPATH")}
    collected = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    ).stdout
    counts = dict(re.findall(r"tests/gpu/(\w+)\.py: (\d+)", collected))
    functions = (ROOT / "tests/gpu/test_server_gpu.py").read_text().count("\ndef test_")
    assert int(counts["test_server_gpu"]) == functions
    assert int(counts["test_cuda_device"]) > 200


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    """Least of all another backend under the name of this one."""
    with pytest.raises(
        RuntimeError, match=r"expected a GPU, got none\. STN_GPU_CHECK=emulated runs"
    ):
        devices.device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    on_host = devices.smallest_warp(torch.device("cpu"))
    monkeypatch.setattr(devices, "smallest_warp", lambda _: on_host)
    with pytest.raises(RuntimeError, match="expected the backend cuda on some GPU, got"):
        devices.device()
