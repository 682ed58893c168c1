"""What the image is, and how a container of it behaves."""

import asyncio
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, RetryPolicy, Tls, UnavailableError
from stn_client.docker import LOCKED_DOWN
from support.bad_requests import ramp, theta
from support.certificates import Authority
from support.collector import Collector
from support.engine import wait_for_event
from support.harness import scrape
from support.manifests import all_objects, composed
from support.prometheus import free_port

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
U, THETA = ramp(1, 3, 60, 80), Affine(theta(1))
MIB = 1024 * 1024
README = (ROOT / "deploy/README.md").read_text()


def test_the_image_says_what_it_is_and_how_to_stop_it(image):
    """Labels, nobody's user, a signal, a health check, and no shell around the server."""
    config = image.attrs["Config"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    held_back = "--block-signal=SIGTERM,SIGINT,SIGHUP"
    assert config["Entrypoint"] == ["env", held_back, "python", "-m", "stn_server"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "stn_server.probe"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "tested"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_a_change_of_the_server_keeps_all_other_layers(build, image, tmp_path):
    """Third-party packages and the engine are neither built nor sent again; the rest is small."""
    context = tmp_path / "context"
    others = shutil.ignore_patterns(".git", ".venv", ".*_cache", "build")
    shutil.copytree(ROOT, context, copy_function=os.link, ignore=others)
    changed = context / "server/src/stn_server/__init__.py"
    text = changed.read_text()
    changed.unlink()
    changed.write_text(f"{text}\nCHANGED = True\n")
    other = build(context)
    before, after = (one.attrs["RootFS"]["Layers"] for one in (image, other))
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]
    sent = next(step["Size"] for step in other.history() if step["Size"])
    (megabytes,) = re.findall(r"server sends less than (\d+) MB", README)
    assert sent < int(megabytes) * 10**6


def test_a_container_warps_differentiates_and_counts(start):
    """Forward and backward through the SDK, then the metrics."""
    server = start()
    identity = Affine(np.eye(2, 3)[None])
    with Client(server.target) as stn:
        np.testing.assert_array_equal(stn.warp(U, identity, coordinates="pixel"), U)
        gradients = stn.warp_gradients(U, U, identity, coordinates="pixel")
    np.testing.assert_array_equal(gradients.feature_map, U)
    found = scrape(server.metrics)
    assert found['stn_requests_total{code="OK",method="Warp"}'] == 1
    assert found['stn_requests_total{code="OK",method="WarpGradients"}'] == 1


def test_spans_leave_a_container(start):
    """OpenTelemetry is in the image: tracing takes settings and nothing else."""
    with Collector() as collector:
        where = {"STN_TRACING": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        server = start(environment=where)
        with Client(server.target) as stn:
            stn.warp(U, THETA)
        assert server.stop() == 0
    assert "Warp" in {span.name for span in collector.spans()}


def test_the_engine_calls_a_container_healthy(engine, start):
    """The health check of the image runs inside and finds the server ready."""
    wait_for_event(engine, start().container.id, "health_status: healthy")


def test_nothing_can_be_written(start):
    """The root file system is read-only, and the server does not mind."""
    container = start().container
    code, output = container.exec_run(["python", "-c", "open('/tmp/file', 'w')"])
    assert (code, b"Read-only file system" in output) == (1, True)
    assert not container.diff()


def test_stopping_answers_what_was_admitted(start):
    """`docker stop` while calls wait: all are answered within the grace, and it ends with 0."""
    server = start(environment={"STN_BATCHING_WINDOW_S": "3"})

    async def load():
        async with AsyncClient(server.target) as stn:
            calls = [asyncio.create_task(stn.warp(U, THETA)) for _ in range(8)]
            while (await stn.server_info()).statistics.queued_items < len(calls):
                pass
            code = await asyncio.to_thread(server.stop)
            return code, await asyncio.gather(*calls)

    code, results = asyncio.run(asyncio.wait_for(load(), timeout=60))
    assert code == 0
    assert all(np.array_equal(result, results[0]) for result in results)


def test_a_signal_at_once_is_not_lost(engine, image):
    """Number 1 has no default for signals: one that is not handled would be dropped."""
    container = engine.containers.run(image.tags[0], detach=True, network_mode="host")
    try:
        container.kill("SIGTERM")
        assert container.wait(timeout=60)["StatusCode"] == 0
    finally:
        container.remove(force=True)


def test_a_memory_limit_is_respected(start):
    """More than the memory passes through in messages of 1 MiB, and nothing is killed."""
    limit = 768 * MIB
    server = start(mem_limit=limit, memswap_limit=limit)
    feature_map = np.ones((1, 1, 512, 512), np.float32)

    async def load():
        async with AsyncClient(server.target) as stn:
            for _ in range(100):
                await asyncio.gather(*(stn.warp(feature_map, THETA) for _ in range(4)))

    asyncio.run(load())
    server.container.reload()
    assert server.container.attrs["HostConfig"]["Memory"] == limit
    assert server.container.attrs["State"]["OOMKilled"] is False
    assert scrape(server.metrics)["stn_admitted_bytes"] == 0
    assert server.stop() == 0


def test_a_killed_server_is_started_again(engine, start):
    """SIGKILL under a restart policy: a client with retries does not notice."""
    server = start(restart_policy={"Name": "on-failure"})
    container = server.container
    with Client(server.target, retry=RetryPolicy(attempts=100, max_s=0.5)) as stn:
        before = stn.warp(U, THETA)
        container.reload()
        os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)
        wait_for_event(engine, container.id, "die")
        np.testing.assert_array_equal(stn.warp(U, THETA), before)
    container.reload()
    assert container.attrs["RestartCount"] == 1


FAULTS = "/opt/stn/tests"
"""Where the tests' support is mounted in a container of a server that has a fault."""


@pytest.mark.parametrize(
    ("fault", "settings"),
    [("lost device", {}), ("hung loop", {"STN_LIFECYCLE_HANG_S": "1"})],
)
def test_a_server_that_gives_up_is_started_again(engine, start, fault, settings):
    """A lost device and a hung event loop end it with 3, a failure for the policy of Compose."""
    policy = composed("compose.yaml")["services"]["server"]["restart"]
    server = start(
        entrypoint=["python", f"{FAULTS}/support/faulty_server.py", fault],
        environment={
            "PYTHONPATH": f"/opt/stn/server:/opt/stn/engine:{FAULTS}",
            "STN_LIFECYCLE_GRACE_S": "0",
            **settings,
        },
        volumes=[f"{ROOT}/tests:{FAULTS}:ro"],
        restart_policy={"Name": policy},
    )
    container = server.container
    once = RetryPolicy(attempts=1)
    with (
        Client(server.target, retry=once, packing=False) as stn,
        pytest.raises(UnavailableError, match=r"working device|Socket closed"),
    ):
        stn.warp(U, THETA)
    assert wait_for_event(engine, container.id, "die")["exitCode"] == "3"
    with Client(server.target, retry=RetryPolicy(attempts=100, max_s=0.5)) as stn:
        assert stn.server_info().ready
    container.reload()
    assert container.attrs["RestartCount"] == 1


ORPHAN = """
import os, time

def running(number):
    return os.path.exists(f"/proc/{number}")

reader, writer = os.pipe()
told, tell = os.pipe()
if not os.fork():  # who is gone before its child
    if not os.fork():
        os.close(writer)
        os.write(tell, str(os.getpid()).encode())
        os.read(reader, 1)  # until nobody can write any more
        os._exit(0)
    os._exit(0)
os.wait()
orphan = int(os.read(told, 20))
status = dict(line.split(":\t", 1) for line in open(f"/proc/{orphan}/status").read().splitlines())
print(int(status["PPid"]), running(orphan))
os.close(writer)
give_up = time.monotonic() + 30
while running(orphan) and time.monotonic() < give_up:
    pass
print(running(orphan))
"""
"""Makes a process whose parent has gone, ends it, and tells whether anything of it is left."""


def test_process_1_clears_orphans_away(start):
    """The server takes them in, and none stays as a zombie: no `--init` is needed."""
    code, output = start().container.exec_run(["python", "-c", ORPHAN])
    assert (code, output.split()) == (0, [b"1", b"True", b"False"])


@pytest.fixture
def run(engine, image):
    """Runs the image with nothing but variables and a volume, until the engine calls it healthy."""

    def run(folder, **environment):
        container = engine.containers.run(
            image.tags[0],
            detach=True,
            network_mode="host",
            environment=environment,
            volumes=[f"{folder}:/etc/stn:ro"],
            **LOCKED_DOWN,
        )
        containers.append(container)
        wait_for_event(engine, container.id, "health_status: healthy")
        return container

    containers = []
    yield run
    for container in containers:
        container.remove(force=True)


def test_a_file_says_where_the_image_listens_unless_a_variable_does(run, tmp_path):
    """Addresses of the image are defaults: below those of a file, and this below variables.

    The health check finds the server in either case.
    """
    calls, metrics, other = (f"127.0.0.1:{free_port()}" for _ in range(3))
    file = tmp_path / "stn.toml"
    file.write_text(f'listen = ["{calls}"]\nmetrics_listen = "{metrics}"\n')
    tmp_path.chmod(0o755)  # the server is another user
    for variables, expected in ({}, calls), ({"STN_LISTEN": other}, other):
        container = run(tmp_path, STN_CONFIG="/etc/stn/stn.toml", **variables)
        told = json.loads(container.logs(stderr=False))
        assert (told["targets"], told["metrics"]) == ([expected], f"http://{metrics}/metrics")
        with Client(expected) as stn:
            assert stn.server_info().ready
        assert scrape(told["metrics"])["stn_ready"] == 1
        container.stop(timeout=60)


def test_the_engine_calls_a_container_healthy_that_speaks_tls(run, tmp_path):
    """As the README says: the health check speaks none, and asks `admin_listen`."""
    authority = Authority(tmp_path, "authority")
    authority.issue("server")
    tmp_path.chmod(0o755)  # the server is another user
    calls, metrics, admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
    run(
        tmp_path,
        STN_LISTEN=calls,
        STN_METRICS_LISTEN=metrics,
        STN_ADMIN_LISTEN=admin,
        STN_TLS_CERTIFICATE="/etc/stn/server.pem",
        STN_TLS_KEY="/etc/stn/server.key",
    )
    with Client(calls, tls=Tls(ca=authority.ca)) as stn:
        assert stn.server_info().ready


def test_a_start_takes_little_of_what_a_startup_probe_allows(start):
    """Processor time, which neighbours do not change: even on a quarter of a core it is ready."""
    probe = all_objects("cpu").server["startupProbe"]
    used = start().container.stats(stream=False)["cpu_stats"]["cpu_usage"]["total_usage"]
    assert 0 < used / 1e9 < probe["periodSeconds"] * probe["failureThreshold"] / 4
