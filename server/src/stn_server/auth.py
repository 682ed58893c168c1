"""Refuses calls without a known token, before their message is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health

from stn_server.call import LOCAL
from stn_server.errors import UnauthenticatedError
from stn_server.grpc_transport import (
    Context,
    GrpcTransport,
    label_of,
    logged_as,
    presented_token,
)
from stn_server.reload import Reloaded
from stn_server.tokens import Token, Tokens

HEADER = "authorization"
SCHEME = "Bearer "
OPEN = f"/{health.SERVICE_NAME}/"
"""Health checks need no token. Every other method needs one, also those of services yet to come."""

Details = grpc.HandlerCallDetails
Continuation = Callable[[Details], Awaitable[Any]]


class Authenticator(grpc.aio.ServerInterceptor):
    """Admits calls with a token of the file, and notes the token for `caller_of`."""

    def __init__(self, tokens: Reloaded[Tokens], transport: GrpcTransport) -> None:
        self._tokens = tokens
        self._transport = transport

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        """Checks the token of a call, then lets the method answer it."""
        if details.method.startswith(OPEN):
            return await continuation(details)
        presented = _bearer(details)
        if presented is None:
            return self._refusing("none", details.method)
        token: Token | None = self._tokens.current().find(presented)
        if token is None:
            return self._refusing("an unknown one", details.method)
        presented_token.set(token)
        return await continuation(details)

    def _refusing(self, got: str, path: str) -> Any:
        """Returns a method that refuses every call, without reading its message."""

        async def refuse(_messages: Any, context: Context) -> None:
            call = self._transport.call_of(label_of(path), logged_as(path), context)
            self._transport.backlog.begun += call.caller.transport != LOCAL
            await self._transport.refuse(call, UnauthenticatedError(got))

        return grpc.stream_stream_rpc_method_handler(refuse)


def _bearer(details: Details) -> str | None:
    """Returns the token that a call presents; None if it presents none."""
    for key, value in details.invocation_metadata or ():
        if key == HEADER and isinstance(value, str) and value.startswith(SCHEME):
            return value.removeprefix(SCHEME)
    return None
