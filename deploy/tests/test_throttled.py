"""A server under a quota of CPU time that is too small for its callers."""

import pytest

from support.alerts import fast_rules, load, wait_for
from support.bad_requests import ramp
from support.prometheus import Prometheus

pytestmark = pytest.mark.timeout(600)


def test_a_throttled_server_is_saturated(start, tmp_path):
    """The kernel stops it; calls wait before they are begun, and its lanes are idle."""
    server = start(cpu_period=100_000, cpu_quota=30_000)
    with Prometheus(tmp_path, server.metrics, rules=fast_rules(tmp_path)) as prometheus:
        prometheus.wait_for("stn_ready", 1)
        with load(server.target, ramp(1, 3, 4, 5), 30):
            wait_for(prometheus, "StnSaturated")
            throttled = (
                "rate(stn_cpu_throttled_periods_total[5s]) / rate(stn_cpu_periods_total[5s])"
            )
            assert prometheus.query(throttled) > 0.25
            assert prometheus.query("rate(stn_lane_busy_seconds_total[5s])") < 0.9
            assert prometheus.query("max_over_time(stn_pending_calls[5s])") > 15
