"""Clients ask silent servers for a sign of life; servers do not take that as abuse."""

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from stn_client import Affine, AsyncClient, RetryPolicy, _channels
from stn_server import app
from stn_server.config import ServerConfig
from stn_server.http2.connection import ServerConnection
from stn_server.lifecycle import Shutdown
from stn_server.server import Server
from support.bad_requests import ramp, theta
from support.fakes import FakeRunner, feature_maps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

ONCE = RetryPolicy(attempts=1)
PINGS = 20
"""Other servers end the connection after the third that comes too early."""

OFTEN = {**dict(_channels.CHANNEL_OPTIONS), "grpc.keepalive_time_ms": 100}


@contextlib.asynccontextmanager
async def serving(runner):
    """The target of a server."""
    config = ServerConfig(listen=("127.0.0.1:0",), metrics_listen="")
    server = Server(app.build(config, runner))
    yield (await server.start()).targets[0]
    await server.stop(Shutdown())


@pytest.fixture
def pings(monkeypatch):
    """One more with each ping that a server of this process has read."""
    counted, read = asyncio.Semaphore(0), ServerConnection._read_ping

    def count(connection, *arguments):
        counted.release()
        read(connection, *arguments)

    monkeypatch.setattr(ServerConnection, "_read_ping", count)
    return counted


def test_a_long_call_may_ask_again_and_again(monkeypatch, pings):
    """And is answered in the end."""
    monkeypatch.setattr(_channels, "CHANNEL_OPTIONS", tuple(OFTEN.items()))

    async def scenario():
        runner = FakeRunner(feature_maps)
        async with serving(runner) as target:
            runner.hold()
            warm = len(runner.batches)
            async with AsyncClient(target, retry=ONCE) as stn:
                call = asyncio.create_task(stn.warp(ramp(1, 3, 4, 5), Affine(theta(1))))
                await runner.begun(warm + 1)
                for _ in range(PINGS):
                    await pings.acquire()
                runner.release_all()
                return (await call).shape

    assert asyncio.run(scenario()) == (1, 3, 4, 5)


def test_an_idle_client_may_ask_again_and_again(pings):
    """Its connection stays."""
    options = {**OFTEN, "grpc.keepalive_permit_without_calls": 1}

    async def scenario():
        async with (
            serving(FakeRunner(feature_maps)) as target,
            grpc.aio.insecure_channel(target, list(options.items())) as channel,
        ):
            await channel.channel_ready()
            for _ in range(PINGS):
                await pings.acquire()
            return channel.get_state()

    assert asyncio.run(scenario()) is grpc.ChannelConnectivity.READY
