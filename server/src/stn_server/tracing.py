"""Spans of every call, in OpenTelemetry's form (extra `otel`).

    Warp                  the call, child of the caller's span if it sends a `traceparent`
    ├─ decode             bytes to a validated request
    ├─ queue              until a device takes it
    ├─ land               operands on their way to the device
    ├─ launch             the engine computes its batch
    └─ encode             the result to bytes

The parts of the server that spans are made of are subclassed here and know nothing of it; without
tracing, none of this is imported. OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ...) say where spans go and how many are kept.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Batch, Finished, Operation
from stn_server.caller import Context, given_request_id
from stn_server.local.arenas import Find
from stn_server.metrics import OTHER_METHOD
from stn_server.servicer import label_of
from stn_server.translate import Request, Translator

STAGES = ("queue", "land", "launch")
"""Between admission and result, in this order; what follows them is "collect"."""

FLUSH_S = 1.0
"""How long the last spans may take to leave."""

_propagator = TraceContextTextMapPropagator()

Handler = Callable[[Any, Context], Awaitable[bytes]]


class Tracing:
    """Where spans come from and go to.

    Args:
        processor: Takes finished spans.

    Concurrency: `watch` may be called in any thread; all else belongs to one event loop.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "stn-server")
        resource = Resource.create({"service.version": version("stn-server")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("stn_server")
        self._began_ns: dict[int, dict[str, int]] = {}
        """By identity of the problem: when its stages began."""

    def watch(self, stage: str, batch: Batch) -> None:
        """The `Watcher` of a runner."""
        now_ns = time.time_ns()
        for item in batch.items:
            began_ns = self._began_ns.get(id(item.problem))
            if began_ns is not None:
                began_ns[stage] = now_ns

    def enqueued(self, problem: Any) -> None:
        """Notes the stages of this problem from now on, until it is `answered`."""
        self._began_ns[id(problem)] = {"queue": time.time_ns()}

    def answered(self, problem: Any) -> None:
        """Makes spans of the stages that were reached; the last one has just ended."""
        began_ns = list(self._began_ns.pop(id(problem)).items())
        ends_ns = [instant_ns for _, instant_ns in began_ns[1:]] + [time.time_ns()]
        for (stage, start_ns), end_ns in zip(began_ns, ends_ns, strict=True):
            if stage in STAGES:
                self.tracer.start_span(stage, start_time=start_ns).end(end_ns)

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Makes the span of every call."""
        return _Interceptor(self.tracer)

    def translator(self, *parts: Any, **options: Any) -> Translator:
        """A `Translator` that makes spans of decoding and encoding."""
        return _TracedTranslator(self.tracer, *parts, **options)

    def batcher(self, *parts: Any, **options: Any) -> Batcher:
        """A `Batcher` that makes spans of the stages of every problem."""
        return _TracedBatcher(self, *parts, **options)

    async def close(self) -> None:
        """Sends what is left, if that is possible soon."""
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
    """Sends spans by OTLP over gRPC."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))


class _Interceptor(grpc.aio.ServerInterceptor):
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        name = label_of(details.method)
        if handler is None or name == OTHER_METHOD:
            return handler
        return grpc.stream_unary_rpc_method_handler(self._traced(name, handler.stream_unary))

    def _traced(self, name: str, inner: Handler) -> Handler:
        async def method(messages: Any, context: Context) -> bytes:
            carrier = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
            with self._tracer.start_as_current_span(
                name,
                _propagator.extract(carrier),
                kind=SpanKind.SERVER,
                attributes={
                    "rpc.system": "grpc",
                    "rpc.method": name,
                    "stn.request_id": given_request_id(context),
                },
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    return await inner(messages, context)
                except BaseException:  # aborted or cancelled: gRPC knows the rest
                    span.set_status(Status(StatusCode.ERROR))
                    span.set_attribute("rpc.grpc.status_code", _code(context))
                    raise

        return method


def _code(context: Context) -> int:
    """The status that a call was aborted with; that of cancellation if it was not."""
    code: Any = context.code()
    known = code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.CANCELLED
    return int(known.value[0])


class _TracedBatcher(Batcher):
    def __init__(self, tracing: Tracing, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._tracing = tracing

    async def submit(self, problem: Any, **details: Any) -> Any:
        self._tracing.enqueued(problem)
        try:
            return await super().submit(problem, **details)
        finally:
            self._tracing.answered(problem)


class _TracedTranslator(Translator):
    def __init__(self, tracer: trace.Tracer, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._tracer = tracer

    def decode(self, operation: Operation, message: bytes, find: Find | None = None) -> Request:
        with self._tracer.start_as_current_span("decode", record_exception=False):
            request = super().decode(operation, message, find)
        return _TracedRequest(request.job, request.template, request.locations, tracer=self._tracer)


@dataclass(slots=True, eq=False)
class _TracedRequest(Request):
    tracer: trace.Tracer = field(kw_only=True)

    def encode(self, finished: Finished) -> bytes:
        # Not `super()`: a dataclass with slots is another class than the one that `super` knows.
        with self.tracer.start_as_current_span("encode") as span:
            span.set_attribute("stn.batch_items", finished.batch_items)
            return Request.encode(self, finished)
