"""Health checking and reflection, as gRPC's own tools expect them."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from stn_client import Client
from stn_client.local import LocalServer
from stn_server.app import build
from stn_server.config import ServerConfig
from stn_server.errors import DeviceLostError
from stn_server.health import LIVENESS
from stn_server.lifecycle import Shutdown
from stn_server.server import Server
from support.bad_requests import warp_request
from support.harness import METHOD_PREFIX, outcome_of, scrape, terminate

SERVICE = "stn.v1.SpatialTransformer"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.target) as connected:
        yield connected


def request(service):
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_ready_server_is_serving(channel, service):
    """As a whole and by the name of its service, to a question and to a watcher."""
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(request(service)).status == SERVING
    watch = stub.Watch(request(service), timeout=30)
    assert next(watch).status == SERVING
    watch.cancel()


def test_the_health_of_strangers_is_unknown(channel):
    """A misspelt name in a probe does not look healthy."""
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        stub.Check(request("stn.v1.Unknown"))


def test_reflection_describes_the_service(channel):
    """Enough for a tool to call it without the .proto files."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol(SERVICE)
    (service,) = [service for service in file.service if service.name == "SpatialTransformer"]
    names = {method.name for method in service.method}
    assert names == {
        "Warp",
        "WarpGradients",
        "GenerateGrid",
        "GenerateGridGradients",
        "Objective",
        "ComputeMany",
        "Upload",
        "Download",
        "Release",
        "GetServerInfo",
    }


@pytest.mark.slow
def test_a_server_that_is_about_to_stop_says_so():
    """Watchers learn it at once, and while it lasts every question gets the same answer."""
    with (
        LocalServer("--lifecycle-lame-duck-s=3600") as server,
        Client(server.target) as stn,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(request(service), timeout=60) for service in ("", SERVICE)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        assert scrape(server.metrics)["stn_ready"] == 1
        assert stn.server_info().ready
        terminate(server)
        assert [next(watch).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
        assert stub.Check(request(SERVICE)).status == NOT_SERVING
        assert stub.Check(request(LIVENESS)).status == SERVING, "a lame duck needs no restart"
        assert scrape(server.metrics)["stn_ready"] == 0
        assert not stn.server_info().ready
        terminate(server)
        assert server.process.wait(timeout=60) == 0


class DyingRunner:
    """Computes until it is told that the device is lost."""

    lost = False

    async def run(self, batch):
        if self.lost:
            raise DeviceLostError("expected a device, got smoke")
        return [None for _ in batch.items]

    def run_inline(self, _batch):
        """Everything is worth a task."""

    def close(self):
        """Nothing is held."""


def test_a_lost_device_turns_readiness_off():
    """And life; watchers learn it, callers are sent elsewhere, and the server can be stopped."""

    async def scenario():
        runner = DyingRunner()
        config = ServerConfig(listen=("127.0.0.1:0",), metrics_listen="")
        server = Server(build(config, runner))
        (target,) = (await server.start()).targets
        async with grpc.aio.insecure_channel(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watches = [stub.Watch(request(service)) for service in (SERVICE, LIVENESS)]
            states = [(await watch.read()).status for watch in watches]
            runner.lost = True
            call = channel.unary_unary(METHOD_PREFIX + "Warp")
            ends = [await outcome_of(call(warp_request().SerializeToString())) for _ in range(2)]
            states += [(await watch.read()).status for watch in watches]
            await server.lost()
            await server.stop(Shutdown())
        return states, ends

    states, ends = asyncio.run(scenario())
    assert states == [SERVING, SERVING, NOT_SERVING, NOT_SERVING]
    for end in ends:
        assert end.code() is grpc.StatusCode.UNAVAILABLE
        assert "expected a working device, got none" in end.details()
        assert "smoke" not in str(end)
