"""The composition root: it makes parts that do nothing until a server runs them."""

import asyncio

import pytest

from stn_server.app import build
from stn_server.config import ConfigError, ServerConfig
from stn_server.events import Listener
from stn_server.lifecycle import Shutdown
from stn_server.server import Server
from support.fakes import FakeRunner, feature_maps


def config_at(folder):
    return ServerConfig(listen=(f"unix:{folder}/stn.sock",), metrics_listen="", device="cpu")


def test_parts_listen_and_compute_nothing_until_a_server_runs_them(tmp_path):
    """Two can be made for one address."""

    async def scenario():
        runner = FakeRunner(feature_maps)
        parts, spare = (build(config_at(tmp_path), runner) for _ in range(2))
        idle = (list(tmp_path.iterdir()), list(runner.batches), parts.health.is_ready)
        server, late = Server(parts), Server(spare)
        addresses = await server.start()
        running = ((tmp_path / "stn.sock").exists(), bool(runner.batches), parts.health.is_ready)
        with pytest.raises(ConfigError, match=r"^listen: expected a free (path|address)"):
            await late.start()
        for one in (server, late):
            await one.stop(Shutdown())
        return idle, addresses.targets, running

    idle, targets, running = asyncio.run(scenario())
    assert idle == ([], [], False)
    assert targets == (f"unix:{tmp_path}/stn.sock",)
    assert running == (True, True, True)


def test_each_device_shows_what_it_keeps_of_resident_tensors(tmp_path):
    """The host keeps no copies: it reads the tensors where they are."""

    async def scenario():
        return build(config_at(tmp_path))

    registry = asyncio.run(scenario()).registry
    assert registry.get_sample_value("stn_device_resident_bytes", {"device": "cpu"}) == 0


def test_a_listener_hears_of_a_server_beside_metrics_and_log(tmp_path):
    """What it is built with; a warm-up is no call."""

    class Lost(Listener):
        def __init__(self):
            self.causes = []
            self.heard = asyncio.Event()

        def device_lost(self, cause):
            self.causes.append(cause)
            self.heard.set()

    class Dying(FakeRunner):
        dead = RuntimeError("policy")

    async def scenario():
        lost = Lost()
        parts = build(config_at(tmp_path), FakeRunner(feature_maps), lost)
        server = Server(parts)
        await server.start()
        parts.batcher._break(Dying.dead)
        await asyncio.wait_for(lost.heard.wait(), 10)
        await server.stop(Shutdown())
        return lost.causes

    assert asyncio.run(scenario()) == [Dying.dead]
