"""Reports whether the server is ready, by gRPC's health service."""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from stn_server.context import Context, Handler
from stn_server.handlers import Handlers, Receiver
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

    def handlers(self, handlers: Handlers, receiver: Receiver) -> dict[str, Handler]:
        """Returns the handlers of the health service, by their paths.

        Args:
            handlers: Reports and answers calls without a proper message.
            receiver: Reads messages.
        """

        async def check(context: Context) -> bytes:
            request = await handlers.checked(CHECK, context, _request(receiver, context))
            response: HealthCheckResponse = await self._servicer.Check(request, context)
            return bytes(response.SerializeToString())

        async def watch(context: Context) -> None:
            request = await handlers.checked(WATCH, context, _request(receiver, context))
            await self._servicer.Watch(request, _Watching(context))

        return {CHECK: check, WATCH: watch}


class _Watching:
    """The part of a context of gRPC that the library writes states to."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, response: HealthCheckResponse) -> None:
        """Sends a state to the caller."""
        await self._context.write(response.SerializeToString())


async def _request(receiver: Receiver, context: Context) -> HealthCheckRequest:
    return parse_any_version(await receiver.receive_probe(context), HealthCheckRequest)
