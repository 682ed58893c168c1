"""Turns away calls without a known token, before their message is read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health

from stn_server.caller import REQUEST_ID, Context, caller_of, presented_token, request_id_of
from stn_server.errors import UnauthenticatedError
from stn_server.log import log
from stn_server.metrics import Metrics
from stn_server.reload import Reloaded
from stn_server.servicer import label_of, logged_as
from stn_server.status import answer_to
from stn_server.tokens import Token, Tokens

HEADER = "authorization"
SCHEME = "Bearer "
OPEN = f"/{health.SERVICE_NAME}/"
"""Probes have no tokens. Every other method needs one, those that nobody thought of included."""

Details = grpc.HandlerCallDetails
Continuation = Callable[[Details], Awaitable[Any]]


class Authenticator(grpc.aio.ServerInterceptor):
    """Lets calls with a token of the file through, and tells `caller_of` whose it is."""

    def __init__(self, tokens: Reloaded[Tokens], metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        """See the class."""
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
        """A method that refuses every call, without reading what it brings."""
        began = time.perf_counter()

        async def refuse(_messages: Any, context: Context) -> None:
            request_id = request_id_of(context)
            answer = answer_to(UnauthenticatedError(got), request_id)
            self._metrics.item_refused(answer.reason)
            duration_s = time.perf_counter() - began
            self._metrics.request_finished(label_of(path), answer.code.name, duration_s)
            log(
                answer.log_level,
                "request failed",
                method=logged_as(path),
                code=answer.code.name,
                caller=caller_of(context).name,
                request_id=request_id,
            )
            metadata = ((REQUEST_ID, request_id), *answer.metadata())
            await context.abort(answer.code, answer.message, metadata)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _bearer(details: Details) -> str | None:
    """The token that a call presents."""
    for key, value in details.invocation_metadata or ():
        if key == HEADER and isinstance(value, str) and value.startswith(SCHEME):
            return value.removeprefix(SCHEME)
    return None
