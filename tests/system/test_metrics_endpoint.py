"""What Prometheus reads from a running server."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
)
from stn_client.local import LocalServer
from stn_server.metrics import Metrics
from support.bad_requests import ramp, theta
from support.harness import scrape, statistics_when_idle

pytestmark = pytest.mark.slow


WINDOW_S = 5.0


async def three_at_once_and_one_too_many(target):
    """Two warps and a gradient fill the queue for one window; a fourth call is refused."""
    u, transform = ramp(1, 3, 4, 5), Affine(theta(1))
    async with AsyncClient(target, retry=RetryPolicy(attempts=1), packing=False) as stn:
        calls = [
            asyncio.create_task(stn.warp(u, transform)),
            asyncio.create_task(stn.warp(u, transform, (2, 3))),
            asyncio.create_task(stn.warp_gradients(u, u, transform)),
        ]
        while (now := (await stn.server_info()).statistics).queued_items < len(calls):
            assert now.finished_items == 0, "the window was over before all calls had come"
        with pytest.raises(OverloadedError, match="expected at most 3 admitted items, got 4"):
            await stn.warp(u, transform)
        await asyncio.gather(*calls)
        await the_queue_to_be_empty(stn)  # a full server refuses before it reads, mistakes as well
        with pytest.raises(InvalidRequestError, match="output_size"):
            await stn.warp(u, transform, (1, 40_000))


async def the_queue_to_be_empty(stn):
    """A call gives its place back when its reply has left, which its caller may see before."""
    while (await stn.server_info()).statistics.admitted_bytes:
        pass


def test_every_metric_tells_what_happened():
    """Two warps, one gradient, one call that is refused, one mistake."""
    flags = ("--batching-max-admitted-items=3", f"--batching-window-s={WINDOW_S}")
    with LocalServer(*flags) as server:
        before = scrape(server.metrics)
        asyncio.run(three_at_once_and_one_too_many(server.target))
        with Client(server.target) as stn:
            statistics_when_idle(stn)
        after = scrape(server.metrics)
    moved = {name: value - before.get(name, 0.0) for name, value in after.items()}
    calls = {
        ("Warp", "OK"): 2,
        ("WarpGradients", "OK"): 1,
        ("Warp", "RESOURCE_EXHAUSTED"): 1,
        ("Warp", "INVALID_ARGUMENT"): 1,
    }
    for (method, code), count in calls.items():
        assert moved[f'stn_requests_total{{code="{code}",method="{method}"}}'] == count
    assert moved['stn_request_duration_seconds_count{method="Warp"}'] == 4
    assert moved['stn_request_duration_seconds_count{method="WarpGradients"}'] == 1
    assert moved["stn_queue_wait_seconds_count"] == 3
    assert moved["stn_queue_wait_seconds_sum"] > 3 * 0.9 * WINDOW_S
    assert (moved["stn_batch_items_count"], moved["stn_batch_items_sum"]) == (2, 3)
    assert moved['stn_batch_duration_seconds_count{backend="cpu",operation="Warp"}'] == 1
    assert moved['stn_batch_duration_seconds_count{backend="cpu",operation="WarpGradients"}'] == 1
    assert moved['stn_batch_duration_seconds_sum{backend="cpu",operation="Warp"}'] > 0
    assert moved["stn_samples_total"] == 20 + 6 + 20
    assert moved['stn_refused_total{reason="QUEUE_FULL"}'] == 1
    assert moved["stn_abandoned_items_total"] == 0
    assert moved['stn_payload_bytes_total{direction="received",transport="tcp"}'] > 4 * 240
    assert moved['stn_payload_bytes_total{direction="sent",transport="tcp"}'] > 2 * 240
    for gauge in ("queued_items", "running_items", "admitted_bytes", "queue_age_seconds"):
        assert after[f"stn_{gauge}"] == 0
    assert 'stn_build_info{version="0.1.0"}' in after
    assert_all_shown(after)


def assert_all_shown(scraped):
    """Every metric that the server has appears, with a value or not."""
    registry = CollectorRegistry()
    Metrics(registry)
    families = {family.name for family in registry.collect()}
    missing = {
        family for family in families if not any(name.startswith(family) for name in scraped)
    }
    assert missing == set()
