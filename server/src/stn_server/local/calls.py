"""Calls by ttrpc: from a frame to the handler of a method, and from its outcome to a response.

Methods, interceptors, errors and metrics are those of gRPC: `LocalContext` has what they want of
a context.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RequestInfo

from stn_proto import WireFormatError
from stn_proto.metadata import MESSAGE_BYTES
from stn_proto.ttrpc import MAX_DATA_BYTES, Frame, OversizedFrame, Request, Response, Status
from stn_server.call import LOCAL, REQUEST_ID
from stn_server.errors import MessageTooLargeError, ResultTooLargeError
from stn_server.grpc_transport import Handler
from stn_server.status import answer_to

DETAILS = "grpc-status-details-bin"

MAX_METADATA = 64
"""The most entries of metadata of a call; its id, its token and its trace are three."""

NANO = 1e-9

_CREDENTIALS = struct.Struct("3i")
"""The layout of the system's `struct ucred`: process, user, group."""

Refuse = Callable[[Exception], Handler]
"""Makes a method that ends every call with this error."""

Metadata = Sequence[tuple[str, str | bytes]]


class AbortedError(Exception):
    """Leaves a method whose call was aborted with a status."""


class Details(NamedTuple):
    """The details by which a handler is found, as `grpc.HandlerCallDetails`."""

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
        """Returns the method to call, which may be one that refuses."""
        found = await self._find(details, 0) if self._interceptors else self._handler(details)
        return cast("Handler", found.stream_unary or found.stream_stream)

    def _handler(self, details: Any) -> Any:
        return next(filter(None, (handler.service(details) for handler in self._handlers)))

    async def _find(self, details: Any, depth: int) -> Any:
        if depth == len(self._interceptors):
            return self._handler(details)
        # As gRPC chains them: each is handed a function that asks those behind it.
        return await self._interceptors[depth].intercept_service(
            lambda further: self._find(further, depth + 1), details
        )


class LocalContext:
    """The part of `grpc.aio.ServicerContext` that the service uses.

    Args:
        payload: The message of the call.
        metadata: The metadata of the call.
        peer: The other end of the connection, as `caller_of` reads it.
        deadline: Instant of `time.monotonic` after which the reply is unwanted.
    """

    def __init__(
        self, payload: bytes, metadata: Metadata, peer: str, deadline: float = math.inf
    ) -> None:
        self.arrived = payload
        """The message, which came as a whole."""
        # Whatever a caller declares, its message is here and can be measured.
        others = ((key, value) for key, value in metadata if key != MESSAGE_BYTES)
        self._metadata: Metadata = (*others, (MESSAGE_BYTES, str(len(payload))))
        self._peer = peer
        self.deadline = deadline
        self._callbacks: list[Callable[[Any], None]] = []
        self._is_over = False
        self._code: grpc.StatusCode | None = None
        self.status: Status | None = None
        """The status with which it was aborted."""

    def invocation_metadata(self) -> Metadata:
        """Returns the metadata of the call, and the size of its message."""
        return self._metadata

    def peer(self) -> str:
        """Returns the other end of the connection, as `caller_of` reads it."""
        return self._peer

    def auth_context(self) -> dict[str, Sequence[bytes]]:
        """Returns nothing: callers of this host show no certificates."""
        return {}

    def time_remaining(self) -> float | None:
        """Returns for how many seconds the reply is wanted; None: without limit."""
        left_s = self.deadline - time.monotonic()
        return None if left_s == math.inf else max(0.0, left_s)

    def code(self) -> grpc.StatusCode | None:
        """Returns the status code with which it was aborted."""
        return self._code

    def done(self) -> bool:
        """Returns whether the call is over."""
        return self._is_over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Registers a function that is called when the call is over."""
        self._callbacks.append(callback)

    def finish(self) -> None:
        """Ends the call: its reply has left, or its caller has gone."""
        self._is_over = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    async def abort(
        self, code: grpc.StatusCode, message: str, trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the method; the status has the details of gRPC's trailing metadata.

        Raises:
            AbortedError: Always.
        """
        given = dict(trailing_metadata)
        self._code = code
        self.status = Status(code=code.value[0], message=message)
        if DETAILS in given:
            self.status = Status.FromString(cast("bytes", given[DETAILS]))
        if REQUEST_ID in given:
            self.status.details.add().Pack(RequestInfo(request_id=cast("str", given[REQUEST_ID])))
        raise AbortedError


class Asked(NamedTuple):
    """The call that a frame asks for."""

    call: LocalContext
    details: Details
    refusing: Handler | None
    """A method that refuses the call, whatever its details; None: `Router` finds the method."""


class Responder:
    """Answers the frames of calls, each as soon as its method returns.

    Args:
        router: Finds methods.
        refuse: Makes methods for calls that name none.
    """

    def __init__(self, router: Router, refuse: Refuse) -> None:
        self._router = router
        self._refuse = refuse

    def read(
        self, frame: Frame | OversizedFrame, peer: str, kind: type[LocalContext] = LocalContext
    ) -> Asked:
        """Returns the call that a frame asks for, which may be an invalid one.

        Args:
            frame: The frame as it came in.
            peer: The other end of the connection.
            kind: The type of the context to make.
        """
        try:
            request = _request_of(frame)
        except (MessageTooLargeError, WireFormatError) as error:
            return Asked(kind(b"", (), peer), Details("/", ()), self._refuse(error))
        metadata = [(entry.key, entry.value) for entry in request.metadata]
        timeout_s = request.timeout_nano * NANO
        deadline = time.monotonic() + timeout_s if timeout_s else math.inf
        call = kind(request.payload, metadata, peer, deadline)
        path = f"/{request.service}/{request.method}"
        return Asked(call, Details(path, call.invocation_metadata()), None)

    async def answer(self, asked: Asked) -> bytes:
        """Returns a serialized response, whatever becomes of the call.

        Concurrency:
            Cancellation: a call whose deadline has passed is answered, others are cancelled.
        """
        call: Any = asked.call
        try:
            method = asked.refusing or await self._router.find(asked.details)
            response = Response(payload=await method(None, call)).SerializeToString()
            if len(response) > MAX_DATA_BYTES:
                await _refuse_reply(call, len(response))
        except AbortedError:
            return Response(status=call.status).SerializeToString()
        except asyncio.CancelledError:
            # The connection cancels a call for its deadline, or because it has ended itself; only
            # then nobody is left to answer.
            if time.monotonic() < call.deadline:
                raise
            return Response(status=_late()).SerializeToString()
        return response


def peer_of(connected: socket.socket) -> str:
    """Returns the user at the other end of a unix socket, as `caller_of` reads it."""
    # By the kernel, which has noted it at the connect: no caller can claim to be another user.
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _process, user, _group = _CREDENTIALS.unpack(found)
    return f"{LOCAL}:uid-{user}"


def _request_of(frame: Frame | OversizedFrame) -> Request:
    """Returns the request that a frame holds.

    Raises:
        MessageTooLargeError: It is longer than a frame may be.
        WireFormatError: It is no request, or one with too much around its message.
    """
    if isinstance(frame, OversizedFrame):
        raise MessageTooLargeError("message", MAX_DATA_BYTES, frame.size_bytes, "bytes")
    try:
        request = Request.FromString(frame.data)
    except DecodeError as error:
        raise WireFormatError("message", "a serialized ttrpc.Request", "other bytes") from error
    if len(request.metadata) > MAX_METADATA:
        entries = str(len(request.metadata))
        raise WireFormatError("metadata", f"at most {MAX_METADATA} entries", entries)
    return request


async def _refuse_reply(call: LocalContext, size_bytes: int) -> None:
    """Aborts a call whose reply no frame can take."""
    error = ResultTooLargeError("message", MAX_DATA_BYTES, size_bytes, "bytes of reply")
    answer = answer_to(error, "")
    await call.abort(answer.code, answer.message, answer.metadata())


def _late() -> Status:
    """Makes the error of a missed deadline in the words of gRPC."""
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    return Status(code=code.value[0], message="Deadline Exceeded")
