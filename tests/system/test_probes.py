"""What Kubernetes asks of a server that has the largest calls to do."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_client.local import LocalServer
from support.harness import scrape

pytestmark = [pytest.mark.slow, pytest.mark.alone]

DEPLOYMENT = Path(__file__).parents[2] / "deploy/k8s/base/deployment.yaml"
(SERVER,) = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]["containers"]
CALLERS = """
import contextlib, sys, threading
import numpy as np
from stn_client import Affine, Client, OverloadedError, RetryPolicy

u = np.zeros((1, 3, 4096, 4096), np.float32)  # 201 MB
theta = Affine(np.eye(2, 3, dtype=np.float32)[None])

def call():
    with Client(sys.argv[1], local=False, retry=RetryPolicy(attempts=1), timeout_s=60) as stn:
        while True:
            with contextlib.suppress(OverloadedError):
                stn.warp(u, theta)

for _ in range(6):
    threading.Thread(target=call, daemon=True).start()
threading.Event().wait()
"""
UNTIL_CALLS = 12


@pytest.mark.parametrize("name", ["readinessProbe", "livenessProbe"])
def test_probes_hold_under_the_largest_calls(name):
    """Six callers of 201 MB: fewer checks in a row fail than end a pod, or its readiness."""
    probe = SERVER[name]
    question = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
    failed = [0]
    with LocalServer() as server, grpc.insecure_channel(server.target) as channel:
        callers = subprocess.Popen([sys.executable, "-c", CALLERS, server.target])
        try:
            check = health_pb2_grpc.HealthStub(channel).Check
            give_up = time.monotonic() + 90
            while answered(server) < UNTIL_CALLS and time.monotonic() < give_up:
                try:
                    check(question, timeout=probe["timeoutSeconds"])
                    failed.append(0)
                except grpc.RpcError:
                    failed.append(failed[-1] + 1)
                threading.Event().wait(0.2)
            assert answered(server) >= UNTIL_CALLS
        finally:
            callers.kill()
            callers.wait()
    assert max(failed) < probe["failureThreshold"]
    assert len(failed) > 3


def answered(server):
    """How many of the calls have had their reply."""
    return scrape(server.metrics).get('stn_requests_total{code="OK",method="Warp"}', 0)
