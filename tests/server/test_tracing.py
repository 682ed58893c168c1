"""Spans of calls that go through the real service on a real socket, kept in memory."""

import asyncio
import contextlib
import importlib
import subprocess
import sys

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from stn_proto.v1 import warp_pb2
from stn_server.app import build
from stn_server.config import ConfigError, ServerConfig
from stn_server.events import Stage
from stn_server.tracing import Tracing
from support.bad_requests import warp_request
from support.fakes import FakeRunner, feature_maps
from support.harness import METHOD_PREFIX, outcome_of, serving
from support.many import compute_many

STAGES = ["decode", "queue", "land", "launch", "encode"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WARP = METHOD_PREFIX + "Warp"
MESSAGE = warp_request().SerializeToString()


class WatchedRunner(FakeRunner):
    """A fake runner that says how far it is, as the engine's does."""

    def __init__(self, listener, **how):
        super().__init__(feature_maps, **how)
        self._listener = listener

    async def run(self, batch):
        calls = batch.calls
        self._listener.reached(Stage.LAND, calls)
        self._listener.reached(Stage.LAUNCH, calls)
        outcomes = await super().run(batch)
        self._listener.reached(Stage.COLLECT, calls)
        return outcomes


class Traced:
    """A traced service, and the spans that its calls left."""

    def __init__(self):
        self.kept = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self.kept))

    @contextlib.asynccontextmanager
    async def serving(self, runner, **changes):
        async with (
            serving(runner, self.tracing, **changes) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            yield service, channel

    def spans(self):
        """By name, each once."""
        finished = self.kept.get_finished_spans()
        assert len({span.name for span in finished}) == len(finished)
        return {span.name: span for span in finished}


@pytest.fixture
def traced():
    return Traced()


def test_a_call_is_a_span_with_its_stages_in_order(traced):
    """Children of the call's span, which is a child of the caller's; none overlaps the next."""

    async def scenario():
        runner = WatchedRunner(traced.tracing)
        async with traced.serving(runner) as (_, channel):
            metadata = [("traceparent", PARENT), ("x-request-id", "order-7")]
            await channel.unary_unary(WARP)(MESSAGE, metadata=metadata)

    asyncio.run(scenario())
    spans = traced.spans()
    call = spans.pop("Warp")
    assert (call.kind, call.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert call.context.trace_id == int(PARENT.split("-")[1], 16)
    assert call.parent.span_id == int(PARENT.split("-")[2], 16)
    assert call.attributes["stn.request_id"] == "order-7"
    assert call.attributes["rpc.method"] == "Warp"
    in_order = sorted(spans.values(), key=lambda span: (span.start_time, span.end_time))
    assert [span.name for span in in_order] == STAGES
    assert all(span.parent.span_id == call.context.span_id for span in in_order)
    instants = [call.start_time, *(t for s in in_order for t in (s.start_time, s.end_time))]
    assert instants == sorted(instants)
    assert in_order[-1].end_time <= call.end_time
    assert spans["encode"].attributes["stn.batch_items"] == 1


def test_a_call_that_is_refused_ends_its_span_with_the_status(traced):
    """And has no stages that it did not reach."""

    async def scenario():
        runner = WatchedRunner(traced.tracing)
        async with traced.serving(runner) as (_, channel):
            await outcome_of(channel.unary_unary(WARP)(b"\xff"))

    asyncio.run(scenario())
    spans = traced.spans()
    assert set(spans) == {"Warp", "decode"}
    assert spans["Warp"].status.status_code is StatusCode.ERROR
    code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert spans["Warp"].attributes["rpc.grpc.status_code"] == code
    assert spans["Warp"].parent is None


def test_a_call_that_leaves_the_queue_has_only_queued(traced):
    """Its caller has gone; nothing of it stays behind."""

    async def scenario():
        runner = WatchedRunner(traced.tracing, held=True)
        async with traced.serving(runner) as (service, channel):
            first = channel.unary_unary(WARP)(MESSAGE)
            await runner.begun(1)
            second = channel.unary_unary(WARP)(MESSAGE)
            await service.admitted(2)
            second.cancel()
            await service.abandoned(1)
            runner.release_all()
            await first

    asyncio.run(scenario())
    names = [span.name for span in traced.kept.get_finished_spans()]
    assert sorted(names) == sorted([*STAGES, "Warp", "decode", "queue", "Warp"])
    assert traced.tracing._traces == {}


def test_health_and_strangers_make_no_spans(traced):
    """Probes come every second and say nothing."""

    async def scenario():
        async with traced.serving(WatchedRunner(traced.tracing)) as (_, channel):
            for path in ("/grpc.health.v1.Health/Check", METHOD_PREFIX + "Unknown"):
                await outcome_of(channel.unary_unary(path)(b""))

    asyncio.run(scenario())
    assert traced.spans() == {}


def test_without_the_extra_tracing_cannot_be_switched_on(monkeypatch):
    """The server says how to get it instead of starting without."""

    async def scenario():
        build(ServerConfig(tracing="otlp"), FakeRunner())

    monkeypatch.delitem(sys.modules, "stn_server.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(
        ConfigError, match=r"^tracing: .* got none\. .*pip install '\./server\[otel\]'"
    ):
        asyncio.run(scenario())
    monkeypatch.undo()
    assert importlib.import_module("stn_server.tracing").Tracing


@pytest.mark.slow
def test_without_tracing_nothing_of_it_is_imported():
    """It costs nothing that is not asked for."""
    program = (
        "import sys, stn_server.server; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = set(ran.stdout.split())
    assert {"stn_server", "grpc"} <= imported
    assert "opentelemetry" not in imported


def test_calls_of_one_message_are_spans_of_their_own(traced):
    """With their stages and ids; a bad one has its code, and all are children of the caller's."""

    async def scenario():
        runner = WatchedRunner(traced.tracing)
        async with traced.serving(runner) as (_service, channel):
            bad = warp_pb2.WarpGradientsRequest()
            message = compute_many(("Warp", warp_request()), ("WarpGradients", bad))
            metadata = [("traceparent", PARENT), ("x-request-id", "order-7")]
            ask = channel.unary_unary(METHOD_PREFIX + "ComputeMany")
            await ask(message.SerializeToString(), metadata=metadata)

    asyncio.run(scenario())
    by_name = {span.name: span for span in traced.kept.get_finished_spans()}
    whole, good, bad = by_name["ComputeMany"], by_name["Warp"], by_name["WarpGradients"]
    assert {span.parent.span_id for span in (whole, good, bad)} == {0xB7AD6B7169203331}
    assert [span.attributes.get("rpc.grpc.status_code") for span in (good, bad)] == [None, 3]
    of_good = [
        span.name
        for span in traced.kept.get_finished_spans()
        if span.parent.span_id == good.context.span_id
    ]
    assert of_good == STAGES[1:]
    assert traced.tracing._traces == {}
