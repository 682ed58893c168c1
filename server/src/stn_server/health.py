"""Reports whether the server is ready, by gRPC's health service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from stn_server.grpc_transport import Context, GrpcTransport, Receiver
from stn_server.operands import parse_any_version

LIVENESS = "liveness"
"""A service name of the health check that reports SERVING until only a restart helps."""

CHECK, WATCH = f"/{health.SERVICE_NAME}/Check", f"/{health.SERVICE_NAME}/Watch"


class Health:
    """The readiness and the liveness of the server, as it reports them on every address.

    Args:
        services: The names that callers may ask for.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = services
        self._servicer = health.aio.HealthServicer()
        self.is_ready = False

    async def set(self, *, ready: bool) -> None:
        """Reports to all health checks and watches whether the server takes calls."""
        self.is_ready = ready
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self._servicer.set(name, status)

    async def set_alive(self, *, alive: bool) -> None:
        """Reports under the name `LIVENESS` whether the server can go on without a restart."""
        status = HealthCheckResponse.SERVING if alive else HealthCheckResponse.NOT_SERVING
        await self._servicer.set(LIVENESS, status)

    def handlers(self, transport: GrpcTransport, receiver: Receiver) -> grpc.GenericRpcHandler:
        """Returns the handlers of the health service, for registration in a gRPC server.

        Args:
            transport: Reports and answers calls without a proper message.
            receiver: Reads messages.
        """

        async def request(path: str, context: Context) -> HealthCheckRequest:
            transport.backlog.begun += 1
            return await transport.checked(path, context, _request(receiver, context))

        async def check(_messages: Any, context: Context) -> HealthCheckResponse:
            return await self._servicer.Check(await request(CHECK, context), context)

        async def watch(_messages: Any, context: Context) -> None:
            await self._servicer.Watch(await request(WATCH, context), context)

        write = HealthCheckResponse.SerializeToString
        methods: Any = {
            "Check": grpc.stream_unary_rpc_method_handler(check, None, write),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, None, write),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)


async def _request(receiver: Receiver, context: Context) -> HealthCheckRequest:
    return parse_any_version(await receiver.receive_probe(context), HealthCheckRequest)
