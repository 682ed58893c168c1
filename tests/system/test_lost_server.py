"""A server that only a restart helps ends by itself, with an exit code of its own, or says so."""

import asyncio
import os
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stn_client import Affine, AsyncClient, Client, RetryPolicy, StnClientError
from support.bad_requests import ramp, theta
from support.faulty_server import FaultyServer
from support.harness import log_records, outcome_of

pytestmark = pytest.mark.slow

LOST = 3
U, THETA = ramp(1, 3, 4, 5), Affine(theta(1))
SERVING = health_pb2.HealthCheckResponse.SERVING
ONCE = {"retry": RetryPolicy(attempts=1), "packing": False}


def events_of(log):
    return [record["event"] for record in log_records(log)]


def test_a_lost_device_ends_the_server_when_everybody_is_answered(tmp_path):
    """All calls are told to go elsewhere; an orchestrator that restarts failures does the rest."""

    async def calls(target):
        async with AsyncClient(target, **ONCE) as stn:
            return await asyncio.gather(*(outcome_of(stn.warp(U, THETA)) for _ in range(8)))

    with FaultyServer("lost device", log=tmp_path / "log") as server:
        ends = asyncio.run(calls(server.target))
        assert server.process.wait(60) == LOST
    assert [type(end) for end in ends if not isinstance(end, StnClientError)] == []
    assert {end.code for end in ends} == {grpc.StatusCode.UNAVAILABLE}
    events = events_of(tmp_path / "log")
    assert events.index("device lost") < events.index("draining") < events.index("stopped")


def test_a_batch_that_never_ends_ends_the_server(tmp_path):
    """The device is given up after `batching.stall_s`, and then the process that waits for it."""
    with FaultyServer("stuck device", "--batching-stall-s=1", log=tmp_path / "log") as server:
        with (
            Client(server.target, **ONCE, timeout_s=60) as stn,
            pytest.raises(StnClientError, match="expected a working device, got none"),
        ):
            stn.warp(ramp(1, 3, 600, 600), THETA)
        assert server.process.wait(60) == LOST


def test_a_hung_event_loop_ends_the_process(tmp_path):
    """Nobody can be answered any more; the log says where it hangs."""
    flags = ("--lifecycle-hang-s=1", "--lifecycle-grace-s=0")
    with FaultyServer("hung loop", *flags, log=tmp_path / "log") as server:
        with (
            Client(server.target, **ONCE, timeout_s=60) as stn,
            pytest.raises(StnClientError, match="Socket closed"),
        ):
            stn.warp(U, THETA)
        assert server.process.wait(60) == LOST
    (record,) = [one for one in log_records(tmp_path / "log") if one["event"] == "event loop hung"]
    assert record["still_s"] >= 1
    assert "faulty_server.py" in record["stack"]
    assert "reached" in record["stack"]


def test_a_hung_event_loop_answers_no_question_for_its_life(tmp_path):
    """What the liveness probe of Kubernetes asks has its answer before, and none after."""
    with (
        FaultyServer("hung loop", "--lifecycle-hang-s=0", log=tmp_path / "log") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        liveness = health_pb2.HealthCheckRequest(service="liveness")
        assert stub.Check(liveness, timeout=30).status == SERVING
        with Client(server.target, **ONCE, timeout_s=1) as stn, pytest.raises(StnClientError):
            stn.warp(U, THETA)
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            stub.Check(liveness, timeout=1)


def test_a_process_that_was_frozen_does_not_hang(tmp_path):
    """As a container that is paused: the time for which nobody ran is not the event loop's."""
    with FaultyServer("lost device", "--lifecycle-hang-s=1", log=tmp_path / "log") as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        with Client(server.target, **ONCE, timeout_s=3) as stn, pytest.raises(StnClientError):
            stn.server_info()
        os.kill(server.process.pid, signal.SIGCONT)
        with Client(server.target, timeout_s=30) as stn:
            assert stn.server_info().ready
        assert server.process.poll() is None


def test_health_follows_a_device_that_fails_every_second_launch(tmp_path):
    """Calls of the server to itself fail, too; it is ready again once they do not."""
    with (
        FaultyServer("failing device", log=tmp_path / "log") as server,
        Client(server.target, **ONCE) as stn,
        grpc.insecure_channel(server.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=60
        )
        assert next(watch).status == SERVING
        with pytest.raises(StnClientError, match="internal"):
            stn.warp(U, THETA)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.process.send_signal(signal.SIGUSR1)
        assert next(watch).status == SERVING
        assert stn.warp(U, THETA).shape == U.shape
    events = events_of(tmp_path / "log")
    assert events.index("device fails") < events.index("device works again")


def test_a_device_that_fails_for_long_is_lost(tmp_path):
    """As one that does not answer is."""
    with FaultyServer("failing device", "--batching-stall-s=1", log=tmp_path / "log") as server:
        with Client(server.target, **ONCE) as stn, pytest.raises(StnClientError, match="internal"):
            stn.warp(U, THETA)
        assert server.process.wait(60) == LOST
    assert "device lost" in events_of(tmp_path / "log")


def test_health_does_not_follow_a_call_that_no_replica_could_compute(tmp_path):
    """One caller whose calls fail whatever the device does takes it from nobody."""
    with (
        FaultyServer("poisonous gradients", log=tmp_path / "log") as server,
        Client(server.target, **ONCE) as stn,
    ):
        for _ in range(3):
            with pytest.raises(StnClientError, match="internal"):
                stn.warp_gradients(U, U, THETA)
            assert stn.server_info().ready
            assert stn.warp(U, THETA).shape == U.shape
    assert "device fails" not in events_of(tmp_path / "log")
