"""What a real Prometheus has learnt from a real server, metric by metric."""

import asyncio
import urllib.request
from importlib.metadata import version

import pytest
from prometheus_client import CollectorRegistry

from stn_client import (
    AccessDeniedError,
    Affine,
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
)
from stn_client.local import LocalServer
from stn_server.metrics import Metrics
from support.bad_requests import ramp, theta
from support.harness import outcome_of, wait_for_record
from support.prometheus import Prometheus, complaints
from support.tokens import entry, replace

pytestmark = pytest.mark.slow

ONCE = {"retry": RetryPolicy(attempts=1), "local": False, "packing": False}
U, THETA = ramp(1, 3, 4, 5), Affine(theta(1))
WINDOW_S = 3.0
ALICE, BOB = "token-of-alice", "token-of-bob"

COUNTED = {
    'stn_requests_total{method="Warp",code="OK"}': 2,
    'stn_requests_total{method="WarpGradients",code="OK"}': 1,
    'stn_requests_total{method="Warp",code="RESOURCE_EXHAUSTED"}': 2,
    'stn_requests_total{method="Warp",code="INVALID_ARGUMENT"}': 2,
    'sum(stn_requests_total{method="Warp",code=~"DEADLINE_EXCEEDED|CANCELLED"})': 1,
    'stn_requests_total{method="Warp",code="UNAUTHENTICATED"}': 1,
    'sum(stn_request_duration_seconds_count{method="Warp"})': 8,
    'stn_request_duration_seconds_bucket{method="WarpGradients",le="0.0001"}': 0,
    'stn_request_duration_seconds_bucket{method="WarpGradients",le="+Inf"}': 1,
    "stn_queue_wait_seconds_count": 3,
    "stn_queue_wait_seconds_bucket{le='1.0'}": 0,
    "stn_abandoned_items_total": 1,
    "stn_batch_items_count": 2,
    "stn_batch_items_sum": 3,
    'stn_batch_items_bucket{le="1.0"}': 1,
    "stn_batch_bytes_count": 2,
    'stn_batch_bytes_bucket{le="4096.0"}': 2,
    'stn_batch_duration_seconds_count{operation="Warp",backend="cpu"}': 1,
    'stn_batch_duration_seconds_count{operation="WarpGradients"}': 1,
    "stn_samples_total": 20 + 6 + 20,
    'stn_refused_total{reason="QUEUE_FULL"}': 1,
    'stn_refused_total{reason="QUOTA_EXCEEDED"}': 1,
    'stn_refused_total{reason="UNKNOWN_TOKEN"}': 1,
    'stn_refused_total{reason="RESULT_TOO_LARGE"}': 2,
    'stn_refused_total{reason="DRAINING"}': 0,
    'stn_refused_total{reason="UPLOAD_TIMEOUT"}': 0,
    'stn_refused_total{reason="UNKNOWN_METHOD"}': 0,
    'stn_reloads_total{file="tokens",outcome="accepted"}': 1,
    'stn_reloads_total{file="tokens",outcome="rejected"}': 1,
    'stn_reloads_total{file="certificates",outcome="rejected"}': 0,
    'stn_kernel_compilations_total{outcome="compiled"}': 0,
    "stn_kernel_compilation_duration_seconds_count": 0,
    "stn_log_lines_dropped_total": 0,
    'stn_device_resident_bytes{device="cpu"}': 0,
    "stn_ready": 1,
    'stn_caller_calls_total{caller="bob"}': 2,
    'stn_caller_bytes_total{caller="bob",direction="sent"} < bool 200': 1,
    "count(stn_caller_calls_total)": 3,
    'stn_caller_device_seconds_total{caller="alice"} > bool 0': 1,
    "stn_pending_calls": 0,
    "stn_pending_age_seconds": 0,
    "stn_receiving_bytes": 0,
    "stn_event_loop_still_seconds < bool 1": 1,
    "stn_cpu_cores >= bool 1": 1,
    "stn_cpu_throttled_seconds_total >= bool 0": 1,
    "stn_queued_items": 0,
    "stn_running_items": 0,
    "stn_admitted_bytes": 0,
    "stn_queue_age_seconds": 0,
    f'stn_build_info{{version="{version("stn-server")}"}}': 1,
}
"""What `exercise` leaves behind."""

HELD = [
    'stn_batch_duration_seconds_sum{operation="Warp"} > 0',
    "stn_queue_wait_seconds_sum > 0",
    "stn_batch_bytes_sum > 5 * 240",
    'stn_payload_bytes_total{direction="received",transport="tcp"} > 3 * 240',
    'stn_payload_bytes_total{direction="received",transport="unix"} > 240',
    'stn_payload_bytes_total{direction="sent",transport="tcp"} > 240',
    'stn_payload_bytes_total{direction="sent",transport="unix"} > 72',
    'stn_device_memory_bytes{device="cpu"} > 1e7',
    'stn_lanes{device="cpu"} == 1',
    'stn_lane_busy_seconds_total{device="cpu"} > 0',
    "abs(stn_device_memory_bytes - on() process_resident_memory_bytes) < 1e8",
    "process_open_fds > 0",
    "max_over_time(stn_queued_items[10m]) == 4",
    "max_over_time(stn_queue_age_seconds[10m]) > 0",
    "max_over_time(stn_admitted_bytes[10m]) > 4 * 480",
    "increase(stn_samples_total[10m]) > 0",
    "stn_event_loop_lag_seconds_count > 10",
    "histogram_quantile(0.99, sum by (le) (rate(stn_request_duration_seconds_bucket[10m]))) > 0",
]
"""Expressions that are then true."""


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.toml"
    replace(path, entry("alice", ALICE), entry("bob", BOB, max_calls=1))
    return path


async def exercise(server, prometheus):
    """Two warps and a gradient are answered, one call expires; others are turned away."""
    tcp, unix = server.targets
    async with (
        AsyncClient(tcp, token=ALICE, **ONCE) as alice,
        AsyncClient(unix, token=BOB, **ONCE) as bob,
        AsyncClient(tcp, token=ALICE, **ONCE, timeout_s=WINDOW_S / 2) as hasty,
        AsyncClient(tcp, token="token-of-nobody", **ONCE) as nobody,
    ):
        refusals = [
            await outcome_of(alice.warp(U, THETA, (1, 40_000))),
            await outcome_of(alice.warp(U, THETA, (40_000, 1))),
        ]
        calls = [
            asyncio.create_task(alice.warp(U, THETA)),
            asyncio.create_task(bob.warp(U, THETA, (2, 3))),
            asyncio.create_task(alice.warp_gradients(U, U, THETA)),
        ]
        late = asyncio.create_task(outcome_of(hasty.warp(U, THETA)))
        while (await alice.server_info()).statistics.queued_items < len(calls) + 1:
            assert not late.done(), "the window was over before all calls had come"
        await asyncio.to_thread(prometheus.wait_for, "max_over_time(stn_queued_items[10m])", 4)
        refusals += [
            await outcome_of(bob.warp(U, THETA)),
            await outcome_of(alice.warp(U, THETA)),
            await outcome_of(nobody.warp(U, THETA)),
        ]
        await asyncio.gather(*calls)
        return [type(outcome) for outcome in (*refusals, await late)]


@pytest.mark.alone
def test_every_metric_reaches_prometheus(tokens, tmp_path):
    """One server, one Prometheus, and every series of the README with the value it must have."""
    flags = [f"--listen=127.0.0.1:0,unix:{tmp_path}/stn.sock", f"--auth-tokens={tokens}"]
    flags += ["--batching-max-admitted-items=4", f"--batching-window-s={WINDOW_S}"]
    with (
        LocalServer(*flags, log=tmp_path / "log") as server,
        Prometheus(tmp_path, server.metrics) as prometheus,
        Client(server.target, token=ALICE, local=False) as alice,
    ):
        prometheus.wait_for('up{job="stn"}', 1)
        assert asyncio.run(exercise(server, prometheus)) == [
            InvalidRequestError,
            InvalidRequestError,
            OverloadedError,
            OverloadedError,
            AccessDeniedError,
            DeadlineExceededError,
        ]
        tokens.write_text("broken")
        wait_for_record(tmp_path / "log", "change rejected")
        assert alice.server_info().ready
        replace(tokens, entry("alice", ALICE))
        wait_for_record(tmp_path / "log", "change accepted")
        statistics = alice.server_info().statistics
        for expression, value in COUNTED.items():
            prometheus.wait_for(expression, value)
        for expression in HELD:
            assert prometheus.query(expression) is not None, expression
        assert_told_alike(statistics, prometheus)
        assert_all_known(prometheus)
        with urllib.request.urlopen(server.metrics, timeout=10) as reply:
            assert complaints(reply.read().decode()) == ""


def assert_told_alike(statistics, prometheus):
    """GetServerInfo and the metrics count the same."""
    for field, expression in {
        "finished_items": "stn_batch_items_sum",
        "refused_items": "stn_refused_total{reason='QUEUE_FULL'}",
        "abandoned_items": "stn_abandoned_items_total",
        "batches": "stn_batch_items_count",
    }.items():
        assert prometheus.query(expression) == getattr(statistics, field), field


def assert_all_known(prometheus):
    """Prometheus holds a series of every metric that the server has."""
    registry = CollectorRegistry()
    Metrics(registry)
    for family in registry.collect():
        name = family.name.replace(".", "_")
        series = f'count({{__name__=~"{name}(_total|_count)?"}})'
        assert prometheus.query(series), family.name
