"""Every alert is brought about: a real server in trouble, a real Prometheus, a minute a second."""

import os
import signal
from pathlib import Path

import pytest
import yaml

from stn_client import Client, StnClientError
from stn_client.local import LocalServer
from support.alerts import FIRING, ONCE, RULES, THETA, fast_rules, load, wait_for
from support.bad_requests import ramp
from support.faulty_server import FaultyServer
from support.prometheus import Prometheus, free_port

pytestmark = [pytest.mark.slow, pytest.mark.alone]

U, LARGE = ramp(1, 3, 4, 5), ramp(1, 3, 400, 400)
SCRAPES = 300
"""So many take 30 s, in the first of which Prometheus has not found the server yet."""


@pytest.fixture
def prometheus(tmp_path):
    with Prometheus(tmp_path, rules=fast_rules(tmp_path)) as running:
        yield running


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def test_nothing_fires_while_all_is_well(tmp_path):
    """Under light load, for longer than any alert waits."""
    with (
        LocalServer() as server,
        Client(server.target, **ONCE) as stn,
        Prometheus(tmp_path, server.metrics, rules=fast_rules(tmp_path)) as prometheus,
    ):
        prometheus.wait_for("stn_ready", 1)
        while (prometheus.query("count_over_time(stn_ready[1m])") or 0) < SCRAPES:
            stn.warp(U, THETA)
        found = prometheus.series('max_over_time(ALERTS{alertstate="firing"}[15s])')
    assert {labels["alertname"] for labels in found} == set()


def test_a_killed_replica_is_down_and_a_vanished_one_lost(prometheus):
    """Kubernetes forgets the address of a pod that is gone; nothing can be scraped at all."""
    with LocalServer() as server:
        prometheus.scrape(server.metrics)
        prometheus.wait_for("stn_ready", 1)
        server.process.kill()
        wait_for(prometheus, "StnDown", "StnAbsent")
    with LocalServer() as server:
        prometheus.scrape(server.metrics)
        prometheus.wait_for("max(up)", 1)
        prometheus.wait_for("stn_ready", 1)
        server.process.kill()
        prometheus.scrape()
        wait_for(prometheus, "StnLost", "StnAbsent")


def test_a_server_that_is_restarted_again_and_again(prometheus, log):
    """As an orchestrator does whenever the device is lost, at the same address."""
    port = free_port()
    prometheus.scrape(f"http://127.0.0.1:{port}/metrics")
    for start in range(3):
        with FaultyServer("lost device", f"--metrics-listen=127.0.0.1:{port}", log=log) as server:
            prometheus.wait_for("changes(process_start_time_seconds[1m])", start)
            with Client(server.target, **ONCE) as stn, pytest.raises(StnClientError):
                stn.warp(U, THETA)
            assert server.process.wait(60) == 3
    wait_for(prometheus, "StnRestarting")


def test_a_lame_duck_that_never_leaves_is_not_ready(prometheus):
    """Whatever the reason, nobody should call it, and it does not go."""
    with LocalServer("--lifecycle-lame-duck-s=3600") as server:
        server.process.send_signal(signal.SIGTERM)
        prometheus.scrape(server.metrics)
        wait_for(prometheus, "StnNotReady")
        server.process.send_signal(signal.SIGTERM)


def test_a_device_that_fails_for_long_is_not_ready_until_it_works(prometheus, log):
    """The server tries it every second, if `batching.stall_s` is more than the alert waits."""
    with FaultyServer("failing device", log=log) as server:
        prometheus.scrape(server.metrics)
        prometheus.wait_for("stn_ready", 1)
        with Client(server.target, **ONCE) as stn, pytest.raises(StnClientError, match="internal"):
            stn.warp(U, THETA)
        wait_for(prometheus, "StnNotReady")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGUSR1)
        prometheus.wait_for("stn_ready", 1)
        prometheus.wait_for(f"absent({FIRING.format('StnNotReady')})", 1)


def test_an_event_loop_that_hangs(prometheus, log):
    """Metrics are told by threads of their own, so the incident can be seen."""
    with FaultyServer("hung loop", "--lifecycle-hang-s=0", log=log) as server:
        prometheus.scrape(server.metrics)
        with Client(server.target, **ONCE, timeout_s=1) as stn, pytest.raises(StnClientError):
            stn.warp(U, THETA)
        wait_for(prometheus, "StnHung")


def test_a_device_that_fails_every_second_launch(prometheus, log):
    """By the server's own fault."""
    with FaultyServer("failing device", log=log) as server:
        prometheus.scrape(server.metrics)
        prometheus.wait_for("stn_ready", 1)
        with load(server.target, U, 1):
            wait_for(prometheus, "StnInternalErrors")


def test_a_replica_that_turns_calls_away_is_not_averaged(prometheus):
    """Beside one that is well and has many more calls."""
    with LocalServer("--batching-max-admitted-items=1") as full, LocalServer() as well:
        prometheus.scrape(full.metrics, well.metrics)
        with load(full.target, U, 8), load(well.target, U, 8):
            wait_for(prometheus, "StnRefusing")
            firing = prometheus.series(FIRING.format("StnRefusing"))
    assert [labels["instance"] in full.metrics for labels in firing] == [True]


def test_calls_that_wait_for_the_event_loop_are_old_and_slow(prometheus, log):
    """200 at a time, of which each takes it 10 ms: they wait where no queue of the server is."""
    with FaultyServer("slow loop", log=log) as server:
        prometheus.scrape(server.metrics)
        with load(server.target, U, 200):
            wait_for(prometheus, "StnQueueOld", "StnSlow")
            assert prometheus.query("max_over_time(stn_pending_calls[10s])") > 100
            assert prometheus.query("stn_queue_age_seconds") < 0.5


def test_a_replica_whose_lanes_are_busy_is_saturated(prometheus, log):
    """As it is when it computes all the time."""
    with FaultyServer("slow device", log=log) as server:
        prometheus.scrape(server.metrics)
        with load(server.target, LARGE, 4):
            wait_for(prometheus, "StnSaturated")


def test_a_replica_whose_cores_are_busy_is_saturated(prometheus, log):
    """On one core, all of which the event loop takes; the lanes are idle."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        server = FaultyServer("busy loop", log=log)  # inherits it
    finally:
        os.sched_setaffinity(0, before)
    with server:
        prometheus.scrape(server.metrics)
        prometheus.wait_for("stn_cpu_cores", 1)
        with load(server.target, U, 16):
            wait_for(prometheus, "StnSaturated")
            lanes = prometheus.query("rate(stn_lane_busy_seconds_total[5s])")
    assert lanes < 0.9


def test_every_alert_is_brought_about_here():
    """A new one needs an incident."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    names = {rule["alert"] for rule in group["rules"]}
    own = Path(__file__).read_text()
    assert {name for name in names if f'"{name}"' not in own} == set()
