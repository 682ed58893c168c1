"""What a collector receives from a real server."""

import numpy as np
import pytest

from stn_client import Affine, Client
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.collector import Collector

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("local", [True, False])
def test_a_collector_receives_the_spans_of_every_call(monkeypatch, local):
    """All have left when the server has ended, the engine's stages among them; by either transport.

    A client that looks for the local transport asks what it is called, by both.
    """
    u, transform = ramp(1, 3, 4, 5), Affine(theta(1))
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        with LocalServer("--tracing=otlp") as server, Client(server.target, local=local) as stn:
            stn.warp(u, transform)
            stn.warp_gradients(np.ones_like(u), u, transform)
    spans = collector.spans()
    calls = {span.span_id: span.name for span in spans if not span.parent_span_id}
    assert sorted(calls.values()) == ["GetServerInfo"] * 2 * local + ["Warp", "WarpGradients"]
    for call in (one for one, name in calls.items() if name != "GetServerInfo"):
        stages = [span for span in spans if span.parent_span_id == call]
        stages.sort(key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
        names = [span.name for span in stages]
        assert names == ["decode", "queue", "land", "launch", "encode"]
    assert {resource["service.name"] for resource in collector.resources()} == {"stn-server"}


def test_a_collector_that_is_not_there_holds_nothing_up(monkeypatch):
    """Neither calls nor the end of the server."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with LocalServer("--tracing=otlp") as server:
        with Client(server.target) as stn:
            assert stn.warp(ramp(1, 3, 4, 5), Affine(theta(1))).shape == (1, 3, 4, 5)
        assert server.stop(timeout_s=20) == 0
