"""Calls by ttrpc: from a frame to the handler of a method, and from its outcome to a response."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from typing import NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RequestInfo

from stn_proto import WireFormatError
from stn_proto.ttrpc import MAX_DATA_BYTES, Frame, OversizedFrame, Request, Response, Status
from stn_server.call import LOCAL, REQUEST_ID
from stn_server.context import AbortedError, Context, Ending, Handler
from stn_server.errors import MessageTooLargeError, ResultTooLargeError
from stn_server.handlers import Router
from stn_server.status import answer_to

DETAILS = "grpc-status-details-bin"

MAX_METADATA = 64
"""The most entries of metadata of a call; its id, its token and its trace are three."""

NANO = 1e-9

_CREDENTIALS = struct.Struct("3i")
"""The layout of the system's `struct ucred`: process, user, group."""


class Asked(NamedTuple):
    """The call that a frame asks for."""

    call: Context
    path: str
    refusing: Handler | None
    """A method that refuses the call, whatever its path; None: `Router` finds the method."""


class Responder:
    """Answers the frames of calls, each as soon as its method returns.

    Args:
        router: Finds methods.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    def read(
        self, frame: Frame | OversizedFrame, peer: str, kind: type[Context] = Context
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
            return Asked(kind((), peer, message=b""), "/", self._router.refusing(error))
        metadata = [(entry.key, entry.value) for entry in request.metadata]
        timeout_s = request.timeout_nano * NANO
        deadline = time.monotonic() + timeout_s if timeout_s else math.inf
        call = kind(metadata, peer, deadline, message=request.payload)
        return Asked(call, f"/{request.service}/{request.method}", None)

    async def answer(self, asked: Asked) -> bytes:
        """Returns a serialized response, whatever becomes of the call.

        Concurrency:
            Cancellation: a call whose deadline has passed is answered, others are cancelled.
        """
        call = asked.call
        try:
            handler = asked.refusing or self._router.find(asked.path, call)
            response = Response(payload=await handler(call)).SerializeToString()
            if len(response) > MAX_DATA_BYTES:
                await _refuse_reply(call, len(response))
        except AbortedError:
            return Response(status=_status(cast("Ending", call.ending))).SerializeToString()
        except asyncio.CancelledError:
            # The connection cancels a call for its deadline, or because it has ended itself; only
            # then nobody is left to answer.
            if time.monotonic() < call.deadline:
                raise
            return Response(status=_late()).SerializeToString()
        return response


def _status(ending: Ending) -> Status:
    """Returns the status of an ending, whose details are those of gRPC's trailing metadata."""
    given = dict(ending.metadata)
    status = Status(code=ending.code.value[0], message=ending.message)
    if DETAILS in given:
        status = Status.FromString(cast("bytes", given[DETAILS]))
    if REQUEST_ID in given:
        status.details.add().Pack(RequestInfo(request_id=cast("str", given[REQUEST_ID])))
    return status


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


async def _refuse_reply(call: Context, size_bytes: int) -> None:
    """Aborts a call whose reply no frame can take."""
    error = ResultTooLargeError("message", MAX_DATA_BYTES, size_bytes, "bytes of reply")
    answer = answer_to(error, "")
    await call.abort(answer.code, answer.message, answer.metadata())


def _late() -> Status:
    """Makes the error of a missed deadline in the words of gRPC."""
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    return Status(code=code.value[0], message="Deadline Exceeded")
