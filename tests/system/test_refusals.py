"""Every refusal is the server's own: with its status, counted by method, and in the log."""

import asyncio
from collections import Counter

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from stn_client import Affine, Client
from stn_client._calls import warp
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.harness import METHOD_PREFIX, log_records, scrape, statistics_when_idle
from support.raw_http2 import RawCall
from support.tokens import entry, replace

pytestmark = pytest.mark.slow

WARP = METHOD_PREFIX + "Warp"
MESSAGE = warp(ramp(1, 3, 4, 5), Affine(theta(1)), None, {}).request
MIB = 1024 * 1024
LIMIT = f"--limits-max-message-bytes={MIB}"


def refused(target, path, message, metadata=()):
    """Status, text and reason that a plain stub gets."""
    with (
        grpc.insecure_channel(target) as channel,
        pytest.raises(grpc.RpcError, match="StatusCode") as error,
    ):
        channel.unary_unary(path)(message, metadata=metadata, timeout=30)
    details = dict(error.value.trailing_metadata()).get("grpc-status-details-bin", b"")
    infos = [
        info for detail in Status.FromString(details).details if detail.Unpack(info := ErrorInfo())
    ]
    assert all(info.domain == "stn.v1.SpatialTransformer" for info in infos)
    return error.value.code().name, error.value.details(), [info.reason for info in infos]


def test_a_burst_on_one_connection_is_answered_or_refused_call_by_call():
    """Far more than the server admits."""

    async def burst(target, count):
        async with grpc.aio.insecure_channel(target) as channel:
            calls = [channel.unary_unary(WARP)(MESSAGE, timeout=60) for _ in range(count)]
            return Counter([(await call.code()).name for call in calls])

    with LocalServer("--batching-window-s=0.5", "--log-level=warning") as server:
        ended = asyncio.run(burst(server.target, 5000))
        counts = scrape(server.metrics)
    assert ended.keys() == {"OK", "RESOURCE_EXHAUSTED"}
    assert sum(ended.values()) == 5000
    for code, count in ended.items():
        assert counts[f'stn_requests_total{{code="{code}",method="Warp"}}'] == count
    assert counts['stn_refused_total{reason="QUEUE_FULL"}'] == ended["RESOURCE_EXHAUSTED"]


def test_what_is_too_large_or_unknown_or_unauthenticated_is_counted_and_logged(tmp_path):
    """By its method if the service has it, else under one label; the log has the whole name."""
    log, tokens = tmp_path / "log", tmp_path / "tokens.toml"
    replace(tokens, entry("alice", "token-of-alice"))
    alice = [("authorization", "Bearer token-of-alice")]
    large = bytes(MIB + 1)
    with LocalServer(LIMIT, f"--auth-tokens={tokens}", log=log) as server:
        seen = [
            refused(server.target, WARP, large, alice),
            refused(server.target, "/stn.v1.SpatialTransformer/Wrap", b"", alice),
            refused(server.target, "/other.v1.Service/Warp", large, alice),
            refused(server.target, WARP, MESSAGE),
            refused(server.target, "/other.v1.Service/Warp", b""),
        ]
        counts = scrape(server.metrics)
    assert [(code, reasons) for code, _, reasons in seen] == [
        ("INVALID_ARGUMENT", ["MESSAGE_TOO_LARGE"]),
        *[("UNIMPLEMENTED", ["UNKNOWN_METHOD"])] * 2,
        *[("UNAUTHENTICATED", ["UNKNOWN_TOKEN"])] * 2,
    ]
    assert seen[0][1] == f"message: expected at most {MIB} bytes, got {MIB + 1}. Ask for less."
    assert seen[2][1] == "method: expected one of this server, got /other.v1.Service/Warp."
    for code, method, count in (
        ("INVALID_ARGUMENT", "Warp", 1),
        ("UNAUTHENTICATED", "Warp", 1),
        ("UNIMPLEMENTED", "other", 2),
        ("UNAUTHENTICATED", "other", 1),
    ):
        assert counts[f'stn_requests_total{{code="{code}",method="{method}"}}'] == count
    assert counts['stn_refused_total{reason="UNKNOWN_METHOD"}'] == 2
    assert counts['stn_refused_total{reason="MESSAGE_TOO_LARGE"}'] == 1
    failures = [record for record in log_records(log) if record["event"] == "request failed"]
    assert [(record["code"], record["method"]) for record in failures] == [
        ("UNIMPLEMENTED", "/stn.v1.SpatialTransformer/Wrap"),
        ("UNIMPLEMENTED", "/other.v1.Service/Warp"),
        ("UNAUTHENTICATED", "Warp"),
        ("UNAUTHENTICATED", "/other.v1.Service/Warp"),
    ]


def test_what_services_of_grpc_cannot_parse_is_refused_as_what_ours_cannot(tmp_path):
    """Invalid, counted and logged without a traceback, as anybody may send it, without a token."""
    log = tmp_path / "log"
    paths = [
        *(f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch")),
        *(f"/grpc.reflection.{v}.ServerReflection/ServerReflectionInfo" for v in ("v1", "v1alpha")),
    ]
    with LocalServer(LIMIT, log=log) as server:
        seen = [refused(server.target, path, b"\xff") for path in paths]
        too_large = refused(server.target, paths[0], bytes(MIB + 1))
        not_there = refused(server.target, "/grpc.health.v1.Health/List", b"")
        counts = scrape(server.metrics)
    for (code, message, reasons), kind in zip(
        seen, ["HealthCheckRequest"] * 2 + ["ServerReflectionRequest"] * 2, strict=True
    ):
        assert (code, reasons) == ("INVALID_ARGUMENT", ["INVALID_FIELD"])
        assert message.startswith("message: expected a serialized grpc.")
        assert message.endswith(f".{kind}, got other bytes.")
    assert (too_large[0], not_there[0]) == ("INVALID_ARGUMENT", "UNIMPLEMENTED")
    for code, count in ("INVALID_ARGUMENT", 5), ("UNIMPLEMENTED", 1):
        assert counts[f'stn_requests_total{{code="{code}",method="other"}}'] == count
    assert {record["level"] for record in log_records(log)} == {"info"}


def test_an_upload_that_stalls_is_ended_logged_and_counted(tmp_path):
    """While it lasts it is counted as inside, and others are served; then its place is free."""
    log = tmp_path / "log"
    with LocalServer(LIMIT, "--limits-upload-s=0.5", log=log) as server:
        call = RawCall(server.target, WARP)
        assert call.send(MIB, MIB - 1, 10) == MIB - 1
        amid = scrape(server.metrics)
        assert amid["stn_admitted_bytes"] >= MIB
        assert amid["stn_receiving_bytes"] == MIB
        with grpc.insecure_channel(server.target) as channel:
            assert channel.unary_unary(WARP)(MESSAGE, timeout=30)
        assert call.ended(30)
        with Client(server.target) as client:
            statistics_when_idle(client)
        counts = scrape(server.metrics)
        call.close()
    assert b"grpc-status\x014" in call.trailers
    assert counts["stn_admitted_bytes"] == counts["stn_receiving_bytes"] == 0
    assert counts['stn_refused_total{reason="UPLOAD_TIMEOUT"}'] == 1
    (record,) = [record for record in log_records(log) if record["event"] == "request failed"]
    assert (record["code"], record["method"]) == ("DEADLINE_EXCEEDED", "Warp")
