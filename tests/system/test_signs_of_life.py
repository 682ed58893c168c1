"""Clients ask silent servers for a sign of life; servers do not take that as abuse."""

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from stn_client import Affine, AsyncClient, RetryPolicy, UnavailableError, _channels
from stn_server import app
from stn_server.config import ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.server import Server
from support.bad_requests import ramp, theta
from support.fakes import FakeRunner, feature_maps

ONCE = RetryPolicy(attempts=1)
GRPC_DEFAULT_MS = 300_000


@contextlib.asynccontextmanager
async def serving(runner):
    """The target of a server."""
    config = ServerConfig(listen=("127.0.0.1:0",), metrics_listen="")
    server = Server(app.build(config, runner))
    yield (await server.start()).targets[0]
    await server.stop(Shutdown())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_long_call_may_ask_again_and_again(monkeypatch):
    """For as long as another server, which is not as patient, takes to end its connection."""
    often = dict(_channels.CHANNEL_OPTIONS) | {"grpc.keepalive_time_ms": 100}
    monkeypatch.setattr(_channels, "CHANNEL_OPTIONS", tuple(often.items()))

    async def scenario():
        patient, strict = FakeRunner(feature_maps), FakeRunner(feature_maps)
        async with contextlib.AsyncExitStack() as running:
            calls = []
            for runner, least_ms in ((patient, 50), (strict, GRPC_DEFAULT_MS)):
                monkeypatch.setattr(app, "SIGN_OF_LIFE_MS", least_ms)
                target = await running.enter_async_context(serving(runner))
                runner.hold()
                warm = len(runner.batches)
                stn = await running.enter_async_context(AsyncClient(target, retry=ONCE))
                calls.append(asyncio.create_task(stn.warp(ramp(1, 3, 4, 5), Affine(theta(1)))))
                await runner.begun(warm + 1)
            endings = asyncio.as_completed(calls)
            with pytest.raises(UnavailableError, match="Too many pings"):
                await next(endings)
            patient.release_all()
            strict.release_all()
            assert (await next(endings)).shape == (1, 3, 4, 5)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_idle_client_may_ask_again_and_again(monkeypatch):
    """For as long as a server that minds takes to end the connection of another."""
    options = {
        **dict(_channels.CHANNEL_OPTIONS),
        "grpc.keepalive_time_ms": 100,
        "grpc.keepalive_permit_without_calls": 1,
    }

    async def ended(target, number):
        """Returns when the connection of an idle client has ended."""
        own = [*options.items(), ("grpc.channel_id", number)]
        async with grpc.aio.insecure_channel(target, own) as channel:
            await channel.channel_ready()
            while (state := channel.get_state()) is grpc.ChannelConnectivity.READY:
                await channel.wait_for_state_change(state)

    async def scenario():
        async with contextlib.AsyncExitStack() as running:
            connections = []
            for number, least_ms in enumerate((50, GRPC_DEFAULT_MS)):
                monkeypatch.setattr(app, "SIGN_OF_LIFE_MS", least_ms)
                runner = FakeRunner(feature_maps)
                target = await running.enter_async_context(serving(runner))
                connections.append(asyncio.create_task(ended(target, number)))
            patient, strict = connections
            await strict
            assert not patient.done()
            patient.cancel()

    asyncio.run(scenario())
