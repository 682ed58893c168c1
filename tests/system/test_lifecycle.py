"""How a server process begins and ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_client import (
    AccessDeniedError,
    Affine,
    AsyncClient,
    Client,
    RetryPolicy,
    UnavailableError,
)
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.certificates import Authority
from support.harness import (
    log_records,
    outcome_of,
    run_server_command,
    scrape,
    terminate,
    wait_for_record,
)
from support.oip import infer, infer_request, stream_infer
from support.tokens import entry

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
            outcomes = await asyncio.gather(*everything)
            # Until it has seen the signal, it answers.
            while isinstance(after := await outcome_of(stn.warp(U, THETA)), np.ndarray):
                pass
            return outcomes, after

    with LocalServer(log=log) as server:
        outcomes, after = asyncio.run(asyncio.wait_for(load(server), timeout=90))
        assert server.process.wait(timeout=60) == 0
    answered = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, np.ndarray)]
    assert answered
    assert all(isinstance(outcome, UnavailableError) for outcome in [*refused, after])
    records = log_records(log)
    assert [r["event"] for r in records if "failed" not in r["event"]] == [
        "serving",
        "draining",
        "stopped",
    ]
    stopped = records[-1]
    assert (stopped["finished_items"], stopped["aborted_items"]) == (len(answered), 0)
    assert {r["code"] for r in records if r["event"] == "request failed"} <= {"UNAVAILABLE"}


def test_a_signal_under_load_loses_no_call_of_other_clients(tmp_path):
    """Those of the Open Inference Protocol, one by one and in streams, end as those of the SDK."""
    message = infer_request().SerializeToString()

    async def opened(channel):
        """A stream with 20 requests written: gRPC forgets the status that a write meets."""
        stream = stream_infer(channel)()
        for _ in range(20):
            await stream.write(message)
        return stream

    async def streamed(stream):
        """How many answers a stream gave, and its code, until it was told to go elsewhere."""
        answered = 0
        while (reply := await outcome_of(stream.read())) is not grpc.aio.EOF:
            if isinstance(reply, Exception):
                return answered, reply.code()
            answered += 1
            if answered == 20:
                await outcome_of(stream.done_writing())
        return answered, await stream.code()

    async def load(server):
        async with grpc.aio.insecure_channel(server.target) as channel:
            written = [await opened(channel) for _ in range(5)]
            calls = [asyncio.create_task(outcome_of(infer(channel)(message))) for _ in range(50)]
            streams = [asyncio.create_task(streamed(stream)) for stream in written]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            terminate(server)
            return await asyncio.gather(*calls), await asyncio.gather(*streams)

    with LocalServer(log=tmp_path / "server.log") as server:
        outcomes, streams = asyncio.run(asyncio.wait_for(load(server), timeout=90))
        assert server.process.wait(timeout=60) == 0
    answered = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
    codes = {outcome.code() for outcome in outcomes if not isinstance(outcome, bytes)}
    assert answered
    assert codes <= {grpc.StatusCode.UNAVAILABLE}
    assert {code for _, code in streams} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    stopped = log_records(tmp_path / "server.log")[-1]
    finished = len(answered) + sum(count for count, _ in streams)
    assert (stopped["finished_items"], stopped["aborted_items"]) == (finished, 0)


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

with Client(sys.argv[1], retry=RetryPolicy(attempts=1), local=False) as stn:
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
            long = stn.warp(U.repeat(3, 0), THETA, (2300, 2300), interpolation="bicubic")
            call = asyncio.create_task(outcome_of(long))
            while (await stn.server_info()).statistics.running_items == 0:
                assert not call.done(), "the batch was over before it was seen"
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


@contextlib.contextmanager
def held_back(*numbers):
    """Signals to processes started inside wait until these are ready to take them.

    As `env --block-signal` does in the image. What is sent at once so arrives with the very first
    instruction that could take it, however long the interpreter takes to start.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


COMMAND = [sys.executable, "-m", "stn_server", "--listen=127.0.0.1:0", "--metrics-listen="]


class Started(subprocess.Popen):
    """A process that does not outlive the failure of its test, which would wait for it for ever."""

    def __exit__(self, kind, *failure):
        if kind is not None:
            self.kill()
        super().__exit__(kind, *failure)


def started(*arguments, **options):
    """A server process with pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return Started([*COMMAND, *arguments], **{**pipes, **options})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_counts_from_the_first_instruction(number):
    """It ends in order, without a word, and before torch is loaded."""
    with held_back(number), started() as process:
        process.send_signal(number)
        output = process.communicate(timeout=60)
    assert (process.returncode, *output) == (0, b"", b"")


IMPORTING = """
import os, sys
from importlib.abc import MetaPathFinder
from stn_server.__main__ import main

class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "{name}":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Finder())
main()
"""
"""A server that gets a signal when it begins to import a module."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["stn_server.command", "torch", "numpy", "grpc", "stn_server.app"])
def test_a_signal_amid_the_imports_ends_it_in_order(name, number):
    """Libraries could swallow an exception, or show it."""
    script = IMPORTING.format(name=name, number=int(number))
    arguments = ["--listen=127.0.0.1:0", "--metrics-listen="]
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


STARTING = """
import os, signal, sys
from stn_server.__main__ import main

def hook(event, arguments):
    if event == "socket.bind":
        os.kill(os.getpid(), signal.SIGTERM)

sys.addaudithook(hook)
main()
"""
"""A server that gets a signal when it begins to listen."""


def test_a_signal_amid_the_start_ends_it_in_order():
    """It is never ready; there is no lame-duck time, as nobody was told to call."""
    arguments = [*COMMAND[3:], "--lifecycle-lame-duck-s=3600"]
    command = [sys.executable, "-c", STARTING, *arguments]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"")
    events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
    assert events == ["draining", "stopped"]


def test_sighup_before_anything_was_read_changes_nothing():
    """By default it would kill the server."""
    with held_back(signal.SIGHUP), started() as process:
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().startswith(b'{"targets"')
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_sighup_reads_files_again(tmp_path):
    """Also those that seem not to have changed; calls go on, and the process stays."""
    log, tokens = tmp_path / "log", tmp_path / "tokens.toml"
    tokens.write_text(entry("alice", "secret"))
    with LocalServer(f"--auth-tokens={tokens}", log=log) as server:
        server.process.send_signal(signal.SIGHUP)
        assert wait_for_record(log, "change accepted")["file"] == "tokens"
        with Client(server.target, token="secret") as stn:
            assert stn.server_info().ready
        assert scrape(server.metrics)['stn_reloads_total{file="tokens",outcome="accepted"}'] == 1
    events = [record["event"] for record in log_records(log)]
    assert events == ["serving", "reading files again", "change accepted", "draining", "stopped"]


def test_a_log_that_nobody_reads_holds_up_nothing(tmp_path):
    """Strangers are refused, friends are served, SIGTERM ends it; lines are dropped and counted.

    Who reads later finds how many, after those that were kept.
    """
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(entry("alice", "secret"))
    addresses = ["--metrics-listen=127.0.0.1:0", f"--auth-tokens={tokens}"]
    # At this level every refusal has a line, those that are alike too.
    addresses.append("--log-level=debug")

    async def refuse(target, count):
        async with AsyncClient(target, token="wrong", retry=ONCE) as stn:
            calls = [outcome_of(stn.server_info()) for _ in range(count)]
            assert all(isinstance(one, AccessDeniedError) for one in await asyncio.gather(*calls))

    def refuse_until(target, enough):
        while not enough():
            asyncio.run(refuse(target, 200))

    reader, writer = os.pipe()
    with started(*addresses, stderr=writer) as process, os.fdopen(reader, "rb") as errors:
        os.close(writer)
        running = json.loads(process.stdout.readline())
        target = running["targets"][0]

        def dropped():
            return scrape(running["metrics"])["stn_log_lines_dropped_total"]

        assert dropped() == 0
        refuse_until(target, dropped)
        with Client(target, token="secret", retry=ONCE) as stn:
            assert stn.warp(U, THETA).shape == U.shape
            lost = int(dropped())
            for line in errors:  # from now on somebody reads
                record = json.loads(line)
                if record["event"] == "log lines dropped":
                    break
            assert (record["level"], record["lines"]) == ("warning", lost)
            refuse_until(target, lambda: dropped() > lost)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


def test_signals_end_a_server_that_cannot_say_so(tmp_path):
    """Both outputs are pipes that are full from the start, and nobody reads them."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b" " * 4096)
    os.set_blocking(writer, True)
    address = f"unix:{tmp_path}/stn.sock"  # nobody else takes it
    with started(f"--listen={address}", stdout=writer, stderr=writer) as process:
        with Client(address) as stn:
            stn.wait_until_ready()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    os.close(reader)
    os.close(writer)


def test_strangers_write_nothing(tmp_path):
    """Who speaks no TLS could fill a pipe that nobody reads."""
    certificate, key = Authority(tmp_path, "authority").issue("server")
    tls = f"--tls-certificate={certificate}", f"--tls-key={key}"
    verbose = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    with started(*tls, env=verbose) as process:
        host, _, port = json.loads(process.stdout.readline())["targets"][0].rpartition(":")
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=60) as caller:
                caller.sendall(b"GET / HTTP/1.1\r\n\r\n" * 9)
                with contextlib.suppress(ConnectionError):
                    while caller.recv(4096):
                        pass
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events[-3:] == ["serving", "draining", "stopped"]
    with started(f"--listen=unix:{tmp_path}/none/socket", env=verbose) as process:
        _, errors = process.communicate(timeout=60)
    *records, line = errors.decode().splitlines()
    assert all(json.loads(record)["level"] == "info" for record in records)
    assert line.startswith("stn-server: listen: expected a folder for unix:")


def test_outputs_that_are_closed_are_no_sockets(tmp_path):
    """Else what is printed would go to whoever gets their numbers."""
    address = f"unix:{tmp_path}/stn.sock"  # nobody else takes it
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, f"--listen={address}"]
    with subprocess.Popen(closing) as process:
        with Client(address) as stn:
            stn.wait_until_ready()
        folder = Path(f"/proc/{process.pid}/fd")
        opened = [(folder / str(number)).readlink() for number in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert opened == [Path(os.devnull)] * 3


def test_a_wrong_configuration_ends_with_2_and_a_reason():
    """One line for people that suggests the nearest name, no traceback."""
    ended = run_server_command("--lisen=127.0.0.1:0")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line == ("stn-server: --lisen: expected a known flag, got none. Did you mean --listen?")


@pytest.mark.parametrize(
    "variables",
    [
        {"TORCH_LOGS": "garbage"},
        {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "garbage"},
        {"GRPC_POLL_STRATEGY": "garbage"},
        {"STN_TRACING": "otlp", "OTEL_BSP_SCHEDULE_DELAY": "-1"},
    ],
    ids=str,
)
def test_a_variable_that_a_library_does_not_take_ends_with_2_and_a_reason(variables):
    """Whether it raises an exception while it is imported, or would abort the process."""
    ended = subprocess.run(
        COMMAND, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("stn-server: ")
    assert list(variables)[-1] in line


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_metrics_of_one_process_need_no_folder(name, monkeypatch):
    """What is meant for servers of many processes stands in many environments."""
    monkeypatch.setenv(name, "/none")
    with LocalServer() as server, Client(server.target) as stn:
        assert stn.warp(U, THETA).shape == U.shape
        assert scrape(server.metrics)["stn_samples_total"] == 60 * 80


def test_an_address_of_a_name_that_is_taken_is_not_left_out():
    """Clients would reach one server or the other."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_server_command(f"--listen=localhost:{port}", "--metrics-listen=")
    assert (ended.returncode, ended.stdout) == (2, "")
    expected = (
        f"listen: expected a free address, got 127.0.0.1:{port} of localhost:{port}, which is"
    )
    assert ended.stderr.startswith(f"stn-server: {expected} taken.")


def test_a_socket_has_the_mode_that_is_asked_for(tmp_path):
    """Whatever the umask; both kinds of address."""
    addresses = [f"--listen=unix:{tmp_path}/stn.sock", f"--admin-listen=unix:{tmp_path}/admin.sock"]
    with LocalServer(*addresses, "--listen-mode=0606") as server:
        for name in ("stn.sock", "admin.sock"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o606
        with Client(server.target) as stn:
            assert stn.server_info().ready


def test_the_version_is_told():
    """That of the package, at once."""
    ended = run_server_command("--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"stn-server {version('stn-server')}\n"


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
