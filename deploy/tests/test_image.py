"""What the image is, and how a container of it behaves."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, RetryPolicy
from support.bad_requests import ramp, theta
from support.collector import Collector
from support.engine import wait_for_event
from support.harness import scrape

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
U, THETA = ramp(1, 3, 60, 80), Affine(theta(1))
MIB = 1024 * 1024


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
    """Third-party packages and the engine are neither built nor sent again."""
    context = tmp_path / "context"
    others = shutil.ignore_patterns(".git", ".venv", ".*_cache", "build")
    shutil.copytree(ROOT, context, copy_function=os.link, ignore=others)
    changed = context / "server/src/stn_server/__init__.py"
    text = changed.read_text()
    changed.unlink()
    changed.write_text(f"{text}\nCHANGED = True\n")
    before, after = (one.attrs["RootFS"]["Layers"] for one in (image, build(context)))
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


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
