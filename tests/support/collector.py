"""An OpenTelemetry collector that keeps what it is sent (OTLP over gRPC)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services


class Collector(services.TraceServiceServicer):
    """Listens on a free port.

    Attributes:
        endpoint: For OTEL_EXPORTER_OTLP_ENDPOINT.
        requests: What came in so far.
    """

    def __init__(self):
        self.requests = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        services.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Export(self, request, context):  # noqa: N802 - the name of the RPC
        del context
        self.requests.append(request)
        return messages.ExportTraceServiceResponse()

    def spans(self):
        """All spans so far."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resources(self):
        """What the senders say about themselves."""
        return [
            {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for request in self.requests
            for resource in request.resource_spans
        ]

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_exception):
        self._server.stop(None).wait()
