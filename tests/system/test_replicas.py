"""Replicas behind one target: what callers notice when they come and go."""

import asyncio
import contextlib
import signal

import pytest

from stn_client import Affine, AsyncClient, RetryPolicy, UnavailableError, _channels
from stn_server.app import build
from stn_server.config import LifecycleConfig, ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.server import Server
from stress.report import percentile
from support.bad_requests import ramp, theta
from support.fakes import FakeRunner, feature_maps
from support.harness import log_records, terminate
from support.names import NameServer
from support.replicas import PATIENCE_S, Load, NotedRetries, Replicas

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COUNT, CALLERS = 3, 8
LAME_DUCK_S = 1.0
U, THETA = ramp(1, 3, 60, 80), Affine(theta(1))

ATTEMPTS = 5
PAUSES_S = sum(
    min(RetryPolicy.max_s, RetryPolicy.initial_s * 2**retry) for retry in range(ATTEMPTS - 1)
)
"""What a call waits at most between so many attempts."""


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Every test leaves all of them serving."""
    folder = tmp_path_factory.mktemp("replicas")
    with Replicas(COUNT, folder, f"--lifecycle-lame-duck-s={LAME_DUCK_S}") as running:
        yield running


def serves(replicas, number):
    """Whether the present process on an address has answered calls."""
    return lambda: replicas.statistics(number).finished_items > 0


@pytest.mark.alone
def test_a_rolling_restart_loses_no_call(replicas):
    """One after the other ends in order and is replaced; no caller waits for that.

    99 of 100 calls take no longer than the pauses of one call that has to be tried again and again:
    the lame duck is longer, and so is a start.
    """
    assert PAUSES_S < LAME_DUCK_S
    with Load(replicas.target, CALLERS) as load:
        for number in range(COUNT):
            load.until(serves(replicas, number))
            assert replicas[number].stop() == 0
            assert log_records(replicas.log(number))[-1]["aborted_items"] == 0
            replicas.start(number)
            load.until(serves(replicas, number))
    assert_nothing_lost(load)
    assert percentile(load.latencies_s, 99) < PAUSES_S


def test_a_killed_replica_loses_no_call(replicas):
    """Those that it had taken are sent to others, and its successor gets its share again."""
    replicas[1].stop()
    replicas.start(1, "--batching-window-s=3600")  # takes calls, and waits for more
    retries = NotedRetries()
    with Load(replicas.target, CALLERS, retries) as load:
        while replicas.statistics(1).queued_items < CALLERS:
            pass
        replicas[1].process.kill()
        replicas[1].stop()
        replicas.start(1)
        load.until(serves(replicas, 1))
    assert_nothing_lost(load)
    assert len(retries.failures) >= CALLERS
    assert all(isinstance(failure, UnavailableError) for failure in retries.failures)


@contextlib.contextmanager
def silenced(process):
    """Does nothing meanwhile, not even end."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_replica_that_falls_silent_loses_no_call(replicas, monkeypatch):
    """As when its machine vanishes: no connection ends, but nobody answers on it either.

    Messages are small: the system of a process that stands still goes on to take bytes until its
    buffers are full, and no question fits behind them. A machine that has vanished takes none.
    """
    options = dict(_channels.CHANNEL_OPTIONS)
    for patience in ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms"):
        options[f"grpc.{patience}"] //= 10
    monkeypatch.setattr(_channels, "CHANNEL_OPTIONS", tuple(options.items()))
    retries = NotedRetries()
    with Load(replicas.target, CALLERS, retries, ramp(1, 1, 4, 5)) as load:
        load.until(serves(replicas, 1))
        with silenced(replicas[1].process):
            load.further(10)
        assert retries.failures
    assert_nothing_lost(load)
    assert all(isinstance(failure, UnavailableError) for failure in retries.failures)


def assert_nothing_lost(load):
    """Every call had the same result, whoever computed it."""
    assert load.failures == []
    assert len(load.results) == 1


def test_callers_leave_a_lame_duck_before_it_stops(replicas):
    """Its health sends them elsewhere while it still serves: no call is even tried again."""
    replicas[0].stop()
    replicas.start(0, "--lifecycle-lame-duck-s=3600")
    retries = NotedRetries()

    def is_left():
        before = replicas.statistics(0).finished_items
        load.further(1 + COUNT)  # the calls under way, and those that took the next turns
        return replicas.statistics(0).finished_items == before

    with Load(replicas.target, CALLERS, retries) as load:
        load.until(serves(replicas, 0))
        terminate(replicas[0])
        load.until(is_left)
        terminate(replicas[0])
        assert replicas[0].process.wait(timeout=60) == 0
        load.further(1)
    assert_nothing_lost(load)
    assert retries.failures == []
    replicas[0].stop()
    replicas.start(0)


def test_a_replacement_at_another_address_takes_over(replicas):
    """As in a cluster, where a new pod has a new address behind the old name."""
    with (
        NameServer(*replicas.hosts[:2]) as names,
        Load(names.target(replicas.port), CALLERS) as load,
    ):
        load.until(serves(replicas, 0))
        before = replicas.statistics(2).finished_items
        names.addresses = replicas.hosts[1:]
        assert replicas[0].stop() == 0
        load.until(lambda: replicas.statistics(2).finished_items > before)
    assert_nothing_lost(load)
    replicas.start(0)


@contextlib.asynccontextmanager
async def short_connections(address, runner):
    """The target of a server whose connections end so often that calls meet their ends."""
    lifecycle = LifecycleConfig(connection_age_s=0.05)
    config = ServerConfig(listen=(address,), metrics_listen="", lifecycle=lifecycle)
    server = Server(build(config, runner))
    yield (await server.start()).targets[0]
    await server.stop(Shutdown())


def test_an_added_replica_is_found():
    """Connections end at their age, and clients look their name up again; no attempt is lost."""
    one, other = FakeRunner(feature_maps), FakeRunner(feature_maps)
    retries = NotedRetries()

    async def scenario(names):
        async with contextlib.AsyncExitStack() as running:
            target = await running.enter_async_context(short_connections("127.0.0.2:0", one))
            port = target.rpartition(":")[2]
            stn = AsyncClient(names.target(port), retry=retries)
            await running.enter_async_context(stn)
            await stn.warp(U, THETA)
            added = short_connections(f"127.0.0.3:{port}", other)
            await running.enter_async_context(added)
            warm = len(other.batches)
            names.addresses = ("127.0.0.2", "127.0.0.3")
            async with asyncio.timeout(PATIENCE_S):
                while len(other.batches) == warm:
                    await stn.warp(U, THETA)

    with NameServer("127.0.0.2") as names:
        asyncio.run(scenario(names))
    assert retries.failures == []
