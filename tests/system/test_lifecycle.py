"""How a server process begins and ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    RetryPolicy,
    UnavailableError,
)
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.harness import log_records, outcome_of, run_server_command, terminate

pytestmark = pytest.mark.slow

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ONCE = RetryPolicy(attempts=1)
U, THETA = ramp(1, 3, 60, 80), Affine(theta(1))


def test_a_signal_under_load_loses_no_call(tmp_path):
    """Each is answered, or told to go elsewhere; the server ends well and counts them."""
    log = tmp_path / "server.log"

    async def load(server):
        async with AsyncClient(server.target, retry=ONCE) as stn:
            pending = {asyncio.create_task(outcome_of(stn.warp(U, THETA))) for _ in range(100)}
            everything = set(pending)
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            terminate(server)
            return await asyncio.gather(*everything), await outcome_of(stn.warp(U, THETA))

    with LocalServer(log=log) as server:
        outcomes, after = asyncio.run(asyncio.wait_for(load(server), timeout=90))
        assert server.process.wait(timeout=60) == 0
    answered = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, np.ndarray)]
    assert answered
    assert all(isinstance(outcome, UnavailableError) for outcome in [*refused, after])
    records = log_records(log)
    assert [r["event"] for r in records if r["event"] != "request failed"] == [
        "serving",
        "draining",
        "stopped",
    ]
    stopped = records[-1]
    assert (stopped["finished_items"], stopped["aborted_items"]) == (len(answered), 0)
    assert {r["code"] for r in records if r["event"] == "request failed"} <= {"UNAVAILABLE"}


def test_a_lame_duck_serves_on_and_a_second_signal_ends_it(tmp_path):
    """Balancers get time to notice; an operator need not wait for them."""
    log = tmp_path / "server.log"
    with (
        LocalServer("--lifecycle-lame-duck-s=3600", log=log) as server,
        Client(server.target, retry=ONCE) as stn,
        grpc.insecure_channel(server.target) as raw,
    ):
        before = stn.warp(U, THETA)
        watch = health_pb2_grpc.HealthStub(raw).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        terminate(server)
        assert next(watch).status == NOT_SERVING
        assert np.array_equal(stn.warp(U, THETA), before)
        terminate(server)
        assert server.process.wait(timeout=60) == 0
        with pytest.raises(grpc.RpcError, match=r"UNAVAILABLE|CANCELLED"):
            next(watch)
    assert log_records(log)[-1]["finished_items"] == 2


STALLING_CLIENT = """
import sys
import numpy as np
from stn_client import Affine, Client, RetryPolicy, UnavailableError

with Client(sys.argv[1], retry=RetryPolicy(attempts=1)) as stn:
    stn.server_info()
    print("connected", flush=True)
    try:
        image, identity = np.ones((1, 4, 8, 8), "f4"), Affine(np.eye(2, 3)[None])
        shape = stn.warp(image, identity, (2000, 2000)).shape
    except UnavailableError:
        shape = "cut off"
    print(shape, flush=True)
"""


class Client64MB:
    """A process that asks for a reply of 64 MB and can be made to stop reading."""

    def __init__(self, target):
        command = [sys.executable, "-c", STALLING_CLIENT, target]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "connected\n"

    def stall(self, target):
        """Stops it as soon as its call is inside the server."""
        with Client(target) as stn:
            while (info := stn.server_info().statistics).running_items + info.finished_items == 0:
                pass
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        """Lets it read; returns what it says in the end."""
        self.process.send_signal(signal.SIGCONT)
        with self.process:
            return self.process.stdout.read()


def test_a_reply_that_takes_its_time_is_not_cut_off(tmp_path):
    """The server waits until it has left, not only until it has been computed."""
    log = tmp_path / "server.log"
    with LocalServer(log=log) as server:
        client = Client64MB(server.target)
        client.stall(server.target)
        terminate(server)
        with pytest.raises(subprocess.TimeoutExpired, match="timed out after 3"):
            server.process.wait(timeout=3)
        assert client.go_on() == "(1, 4, 2000, 2000)\n"
        assert server.process.wait(timeout=60) == 0


def test_a_caller_who_does_not_read_cannot_hold_the_server(tmp_path):
    """After the grace it ends, and the caller may try elsewhere."""
    log = tmp_path / "server.log"
    with LocalServer("--lifecycle-grace-s=1", log=log) as server:
        client = Client64MB(server.target)
        client.stall(server.target)
        terminate(server)
        assert server.process.wait(timeout=10) == 0
        assert client.go_on() == "cut off\n"


def test_a_second_signal_does_not_wait_for_a_batch(tmp_path):
    """Nothing can interrupt a running batch, so the process leaves without it."""
    log = tmp_path / "server.log"

    async def load(server):
        async with AsyncClient(server.target, retry=ONCE) as stn:
            call = asyncio.create_task(outcome_of(stn.warp(U, THETA, (2300, 2300))))
            while (await stn.server_info()).statistics.running_items == 0:
                pass
            terminate(server)
            server.process.send_signal(signal.SIGINT)  # a second SIGTERM might merge with the first
            return await call

    with LocalServer(log=log) as server:
        outcome = asyncio.run(asyncio.wait_for(load(server), timeout=60))
        assert server.process.wait(timeout=60) == 0
    assert isinstance(outcome, UnavailableError)
    assert log_records(log)[-1]["aborted_items"] == 1


def test_a_socket_that_answers_is_not_taken(tmp_path):
    """A second server would silently cut the first one off."""
    address = f"unix:{tmp_path / 'stn.sock'}"
    with LocalServer(f"--listen={address}") as server, Client(server.target) as stn:
        result = run_server_command(f"--listen={address}", "--metrics-listen=")
        assert result.returncode == 2
        assert "expected a free address" in result.stderr
        assert stn.server_info().ready


def test_without_grace_calls_are_cut_off():
    """None hangs, and each that was cut off may be tried elsewhere."""

    async def load(server):
        async with AsyncClient(server.target, retry=ONCE) as stn:
            calls = [asyncio.create_task(outcome_of(stn.warp(U, THETA))) for _ in range(100)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            terminate(server)
            terminate(server)
            return await asyncio.gather(*calls)

    with LocalServer("--lifecycle-grace-s=0") as server:
        outcomes = asyncio.run(asyncio.wait_for(load(server), timeout=90))
        assert server.process.wait(timeout=60) == 0
    assert all(isinstance(outcome, np.ndarray | UnavailableError) for outcome in outcomes)


def test_standard_output_is_one_line_for_the_parent():
    """Addresses with the ports that were taken, when it is ready; SIGINT ends it as well."""
    command = [sys.executable, "-m", "stn_server", "--listen=127.0.0.1:0,[::1]:0"]
    with subprocess.Popen(
        [*command, "--metrics-listen=127.0.0.1:0", "--log-format=text"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        addresses = json.loads(process.stdout.readline())
        for target in addresses["targets"]:
            with Client(target) as stn:
                assert stn.server_info().ready
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(addresses) == ["targets", "metrics", "admin"]
    assert addresses["metrics"].startswith("http://127.0.0.1:")
    assert output == ""
    assert errors.splitlines()[-1].endswith("stopped finished_items=0 aborted_items=0")


def test_a_wrong_configuration_ends_with_2_and_a_reason():
    """One line for people that suggests the nearest name, no traceback."""
    ended = run_server_command("--lisen=127.0.0.1:0")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line == ("stn-server: --lisen: expected a known flag, got none. Did you mean --listen?")


@pytest.mark.parametrize("name", ["listen", "admin-listen", "metrics-listen"])
def test_a_taken_address_ends_with_2_and_a_reason(name):
    """The port belongs to somebody else."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = {"listen": "127.0.0.1:0", "metrics-listen": ""}
        flags[name] = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run_server_command(*(f"--{flag}={value}" for flag, value in flags.items()))
    assert (ended.returncode, ended.stdout) == (2, "")
    reason = ended.stderr.splitlines()[-1]
    assert reason.startswith(f"stn-server: {name.replace('-', '_')}: expected a free address, got")
