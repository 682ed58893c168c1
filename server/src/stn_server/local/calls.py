"""One call by ttrpc, as the methods of the service see it, and how its method is found.

Methods, interceptors, errors and metrics are those of gRPC: `Call` has what they want of a context.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, cast

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import RequestInfo

from stn_proto.metadata import MESSAGE_BYTES
from stn_proto.ttrpc import Response, Status
from stn_server.caller import REQUEST_ID
from stn_server.servicer import Handler

DETAILS = "grpc-status-details-bin"

Metadata = Sequence[tuple[str, str | bytes]]


class AbortedError(Exception):
    """Leaves a method whose call was given a status."""


class Details(NamedTuple):
    """What a handler is looked up by: `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Metadata


class Router:
    """Finds the handler of a call as a gRPC server does.

    Args:
        handlers: Asked in turn; the last one has an answer for everything.
        interceptors: Asked before them, the first one first.
    """

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._handlers = handlers
        self._interceptors = interceptors

    async def find(self, details: Details) -> Handler:
        """The method to call, which may be one that refuses."""
        found = await self._find(details, 0)
        return cast("Handler", found.stream_unary or found.stream_stream)

    async def _find(self, details: Any, depth: int) -> Any:
        if depth == len(self._interceptors):
            return next(filter(None, (handler.service(details) for handler in self._handlers)))
        return await self._interceptors[depth].intercept_service(
            lambda further: self._find(further, depth + 1), details
        )


class Call:
    """What of `grpc.aio.ServicerContext` the service uses.

    Args:
        payload: The message of the call.
        metadata: What came along.
        peer: Who is at the other end, as `caller` reads it.
        deadline: Instant of `time.monotonic` after which nobody wants the reply.
    """

    def __init__(
        self, payload: bytes, metadata: Metadata, peer: str, deadline: float = math.inf
    ) -> None:
        self._payload: Any = payload
        # Whatever a caller declares, its message is here and can be measured.
        others = ((key, value) for key, value in metadata if key != MESSAGE_BYTES)
        self._metadata: Metadata = (*others, (MESSAGE_BYTES, str(len(payload))))
        self._peer = peer
        self.deadline = deadline
        self._callbacks: list[Callable[[Any], None]] = []
        self._is_over = False
        self._code: grpc.StatusCode | None = None
        self.status: Status | None = None
        """What it was aborted with."""

    async def read(self) -> Any:
        """The message, and then the end."""
        payload, self._payload = self._payload, grpc.aio.EOF
        return payload

    def invocation_metadata(self) -> Metadata:
        """What came along, and the size of the message."""
        return self._metadata

    def peer(self) -> str:
        """Who is at the other end."""
        return self._peer

    def auth_context(self) -> dict[str, Sequence[bytes]]:
        """No certificates."""
        return {}

    def time_remaining(self) -> float | None:
        """For how many seconds the reply is wanted; None: for ever."""
        left_s = self.deadline - time.monotonic()
        return None if left_s == math.inf else max(0.0, left_s)

    def code(self) -> grpc.StatusCode | None:
        """What it was aborted with."""
        return self._code

    def done(self) -> bool:
        """Whether it is over."""
        return self._is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Lets this be called when it is over."""
        self._callbacks.append(callback)

    def finish(self) -> None:
        """Its reply has left, or nobody is there to take it."""
        self._is_over = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    async def abort(
        self, code: grpc.StatusCode, message: str, trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the method; the status has the details that stand in gRPC's trailing metadata.

        Raises:
            AbortedError: Always.
        """
        given = dict(trailing_metadata)
        self._code = code
        self.status = status_of(code, message)
        if DETAILS in given:
            self.status = Status.FromString(cast("bytes", given[DETAILS]))
        if REQUEST_ID in given:
            self.status.details.add().Pack(RequestInfo(request_id=cast("str", given[REQUEST_ID])))
        raise AbortedError


def status_of(code: grpc.StatusCode, message: str) -> Status:
    """A status without details."""
    return Status(code=code.value[0], message=message)


def response_of(status: Status) -> bytes:
    """A serialized response without a reply."""
    return Response(status=status).SerializeToString()
