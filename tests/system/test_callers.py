"""Who uses a server, and for whom it was slow."""

import asyncio
import statistics
import time

import grpc
import pytest

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    RetryPolicy,
    StnClientError,
)
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta, warp_request
from support.faulty_server import FaultyServer
from support.harness import METHOD_PREFIX, log_records, outcome_of, scrape, wait_for_record
from support.many import compute_many
from support.tokens import entry, replace

pytestmark = pytest.mark.slow

U, THETA = ramp(1, 3, 4, 5), Affine(theta(1))
ONCE = {"retry": RetryPolicy(attempts=1), "local": False, "packing": False}
ALICE, BOB = "token-of-alice", "token-of-bob"


def used(server, caller):
    """Calls, bytes in and out, and seconds of devices of a caller."""
    found = scrape(server.metrics)
    return (
        found.get(f'stn_caller_calls_total{{caller="{caller}"}}', 0),
        found.get(f'stn_caller_bytes_total{{caller="{caller}",direction="received"}}', 0),
        found.get(f'stn_caller_bytes_total{{caller="{caller}",direction="sent"}}', 0),
        found.get(f'stn_caller_device_seconds_total{{caller="{caller}"}}', 0),
    )


def test_use_is_counted_by_token(tmp_path):
    """Calls, the bytes of their messages, and device time by work; failures are calls, too."""
    replace(tmp_path / "tokens", entry("alice", ALICE), entry("bob", BOB))
    with LocalServer(f"--auth-tokens={tmp_path}/tokens") as server:
        with Client(server.target, token=ALICE, **ONCE) as alice:
            for _ in range(3):
                alice.warp(U, THETA)
            with pytest.raises(InvalidRequestError, match="output_size"):
                alice.warp(U, THETA, (1, 40_000))
        with Client(server.target, token=BOB, **ONCE) as bob:
            bob.warp(ramp(1, 3, 400, 500), THETA)
        of_alice, of_bob = used(server, "alice"), used(server, "bob")
        found = scrape(server.metrics)
    assert of_alice[0] == 4
    assert of_bob[0] == 1
    assert 3 * U.nbytes < of_alice[1] < 3 * U.nbytes + 3000
    assert 400 * 500 * 12 < of_bob[2] < 400 * 500 * 12 + 1000
    assert 0 < of_alice[3] < of_bob[3]
    computed = found['stn_batch_duration_seconds_sum{backend="cpu",operation="Warp"}']
    assert of_alice[3] + of_bob[3] == pytest.approx(computed)


def test_callers_without_a_token_are_others():
    """However many names they could have."""
    with LocalServer() as server, Client(server.target, **ONCE) as stn:
        stn.warp(U, THETA)
        names = {
            name for name in scrape(server.metrics) if name.startswith("stn_caller_calls_total")
        }
    assert names == {'stn_caller_calls_total{caller="other"}'}


@pytest.mark.parametrize("method", ["Warp", "ComputeMany"])
def test_a_slow_call_is_logged_with_where_its_time_has_gone(tmp_path, method):
    """A launch takes 50 ms; a call beyond 40 ms is slow."""
    log = tmp_path / "log"
    request = warp_request()
    message = request if method == "Warp" else compute_many(*[("Warp", request)] * 3)
    with (
        FaultyServer("slow device", "--log-slow-call-s=0.04", log=log) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        channel.unary_unary(METHOD_PREFIX + method)(message.SerializeToString())
        record = wait_for_record(log, "slow call")
    assert (record["method"], record["code"], record["level"]) == (method, "OK", "warning")
    assert record["caller"] == "ipv4:127.0.0.1"
    assert 0.05 <= record["compute_s"] <= record["duration_s"]
    assert 0 <= record["queue_s"] < record["duration_s"]
    assert record["received_bytes"] == len(message.SerializeToString())
    assert record["sent_bytes"] > 0


def test_a_call_that_is_not_slow_is_not_logged(tmp_path):
    """Nor any if nobody wants to know."""
    log = tmp_path / "log"
    with (
        FaultyServer("slow device", "--log-slow-call-s=0", log=log) as server,
        Client(server.target, **ONCE) as stn,
    ):
        stn.warp(U, THETA)
    assert "slow call" not in {record["event"] for record in log_records(log)}


FAILING_CALLS = 2000
LINE_BYTES = 150
"""Less than any failure that is told by itself, with its time, caller, code and id."""


@pytest.mark.parametrize(("token", "code"), [(ALICE, "INTERNAL"), (BOB, "UNAUTHENTICATED")])
def test_failures_without_end_do_not_fill_the_log(tmp_path, token, code):
    """By the fault of the server or of the caller: not a line for each, and none is forgotten."""
    log, tokens = tmp_path / "log", tmp_path / "tokens"
    replace(tokens, entry("alice", ALICE))

    async def failures(target):
        async with AsyncClient(target, token=token, **ONCE) as stn:
            calls = (outcome_of(stn.warp(U, THETA)) for _ in range(FAILING_CALLS))
            outcomes = await asyncio.gather(*calls)
        return sum(isinstance(one, StnClientError) for one in outcomes)

    with FaultyServer("failing device", f"--auth-tokens={tokens}", log=log) as server:
        failed = asyncio.run(failures(server.target))
        server.process.terminate()
        assert server.process.wait(60) == 0
    assert failed > FAILING_CALLS / 4
    assert log.stat().st_size < failed * LINE_BYTES / 10
    told = [record for record in log_records(log) if record.get("code") == code]
    assert sum(record.get("calls", 1) for record in told) == failed


CALLERS, CALLS_EACH = 100, 5


@pytest.mark.alone
def test_a_call_lasts_as_long_as_its_caller_waits(tmp_path):
    """100 calls at a time, of which each takes the event loop 10 ms: they wait for it.

    The mean of the server is that of its callers, who see a fifth more at most: what their own
    event loop takes.
    """
    waits_s = []

    async def call_on(stn):
        for _ in range(CALLS_EACH):
            began = time.perf_counter()
            await stn.warp(U, THETA)
            waits_s.append(time.perf_counter() - began)

    async def all_calls(target):
        async with AsyncClient(target, **ONCE, max_in_flight=CALLERS) as stn:
            await asyncio.gather(*(call_on(stn) for _ in range(CALLERS)))

    with FaultyServer("slow loop", log=tmp_path / "log") as server:
        asyncio.run(all_calls(server.target))
        found = scrape(server.metrics)
    name = 'stn_request_duration_seconds_{}{{method="Warp"}}'
    mean_s = found[name.format("sum")] / found[name.format("count")]
    felt_s = statistics.fmean(waits_s)
    assert felt_s > 0.5
    assert 0.8 * felt_s < mean_s < 1.1 * felt_s
    assert found["stn_pending_calls"] == 0
    assert found["stn_event_loop_lag_seconds_count"] > 10
