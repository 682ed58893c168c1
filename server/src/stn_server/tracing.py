"""Spans of every call, in OpenTelemetry's form (extra `otel`).

    Warp                  the call, child of the caller's span if it sends a `traceparent`
    ├─ decode             bytes to a validated request
    ├─ queue              until a device takes it
    ├─ land               operands on their way to the device
    ├─ launch             the engine computes its batch
    └─ encode             the result to bytes

Spans are made of events; without tracing, none of this is imported. OpenTelemetry's own variables
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ...) say where spans go and
how many are kept.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise

from grpc import StatusCode
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status
from opentelemetry.trace import StatusCode as SpanStatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stn_server.call import OTHER_METHOD, CallFacts
from stn_server.events import End, Listener, Stage
from stn_server.handlers import given_request_id
from stn_server.tuning import FLUSH_S

SPANS = (Stage.DECODE, Stage.QUEUE, Stage.LAND, Stage.LAUNCH, Stage.ENCODE)
"""The stages that have spans; each lasts until the next one begins."""

ENDS = (Stage.COLLECT, Stage.SEND)
"""The stages that end the one before them and have no span: there a reply waits for others."""

_propagator = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Trace:
    """A call whose span is not finished yet."""

    span: trace.Span
    instants: list[tuple[Stage, int]] = field(default_factory=list)
    """Instants at which its stages began, in nanoseconds since 1970."""
    batch_items: int = 1


class Tracing(Listener):
    """Makes spans of calls and sends them.

    Args:
        processor: Takes finished spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "stn-server")
        resource = Resource.create({"service.version": version("stn-server")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("stn_server")
        self._traces: dict[int, _Trace] = {}
        """The spans of calls that are not answered yet, by identity of the call."""

    def call_began(self, call: CallFacts) -> None:
        """Begins the span of a call; unknown methods have none, as callers choose their names."""
        if call.method == OTHER_METHOD:
            return
        headers = {key: value for key, value in call.metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            call.method,
            _propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.method": call.method,
                "stn.request_id": given_request_id(call.metadata),
            },
        )
        self._traces[id(call)] = _Trace(span)

    def reached(self, stage: Stage, calls: Sequence[CallFacts | None]) -> None:
        """Notes the instant at which calls reach a stage."""
        if stage not in SPANS + ENDS:
            return
        now_ns = time.time_ns()
        for call in calls:
            found = self._traces.get(id(call))
            if found is not None:
                found.instants.append((stage, now_ns))
                if stage is Stage.LAND:
                    found.batch_items = len(calls)

    def call_ended(self, call: CallFacts, end: End) -> None:
        """Ends the span of a call, with those of the stages that it reached."""
        found = self._traces.pop(id(call), None)
        if found is None:
            return
        now_ns = time.time_ns()
        parent = trace.set_span_in_context(found.span)
        for (stage, began_ns), (_, ended_ns) in pairwise([*found.instants, (Stage.SEND, now_ns)]):
            if stage in SPANS:
                span = self._tracer.start_span(stage, parent, start_time=began_ns)
                if stage is Stage.ENCODE:
                    span.set_attribute("stn.batch_items", found.batch_items)
                span.end(ended_ns)
        if end.code is not StatusCode.OK:
            found.span.set_status(Status(SpanStatusCode.ERROR))
            found.span.set_attribute("rpc.grpc.status_code", int(end.code.value[0]))
        found.span.end(now_ns)

    async def close(self) -> None:
        """Sends the spans that are left, if that is possible soon."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is gone: nobody waits any more
                loop.call_soon_threadsafe(closed.set)

        # A daemon, since a collector that does not answer must not hold up the end.
        threading.Thread(target=close, daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), FLUSH_S)


def otlp_tracing() -> Tracing:
    """Makes a tracing that sends spans by OTLP over gRPC."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))
