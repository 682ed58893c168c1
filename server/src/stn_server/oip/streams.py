"""`ModelStreamInfer`: every message of a stream is a call, answered in the order of arrival.

The length of a message is known only once it is there, so a stream may hold one that is not
admitted yet: there are only so many streams, and each is read only as fast as it is answered. One
that is above `limits.max_message_bytes` ends the stream and is not counted: gRPC refuses it,
and tells a server no more of it than of a caller who goes away, which is how many streams end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, cast

import grpc
import grpc.aio

from stn_proto import WireFormatError, values
from stn_proto.oip.inference_pb2 import ModelStreamInferResponse
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Place
from stn_server.config import OipConfig
from stn_server.errors import QueueFullError
from stn_server.grpc_transport import Context, GrpcCall, GrpcTransport
from stn_server.oip.requests import ID, field_head
from stn_server.oip.service import OIP_SERVICE, STREAM_INFER, InferenceService
from stn_server.status import Answer
from stn_server.tuning import LEAST_RETRY_S, MAX_STREAM_CALLS

ENDS_AT_ERRORS = "triton_grpc_error"
"""The metadata by which errors end the stream with a status, instead of a message in it."""

Reserve = Callable[[int, "StreamedCall"], Place]

INFER_RESPONSE = ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


@dataclass(slots=True, eq=False)
class StreamedCall(GrpcCall):
    """A call that is one message of a stream."""

    message: bytes = b""
    reserve: Reserve | None = None
    """Admits so many bytes for the call."""
    callbacks: list[Callable[[StreamedCall], None]] = field(default_factory=list)
    answer: Answer | None = None
    """The status with which it failed."""

    @property
    def declared_bytes(self) -> int | None:
        """The size of the message, which has arrived; see `Call`."""
        return len(self.message)

    async def receive(self) -> tuple[bytes, Place]:
        """Returns the message once it is admitted; see `Call`."""
        reserve = cast("Reserve", self.reserve)
        return self.message, reserve(len(self.message), self)

    def add_done_callback(self, callback: Callable[[StreamedCall], None], /) -> None:
        """Registers a function for when the response is written or unwanted; see `Call`."""
        self.callbacks.append(callback)

    def done(self) -> None:
        """Calls the functions of `add_done_callback`, once."""
        for callback in self.callbacks:
            callback(self)
        self.callbacks.clear()

    async def abort(self, answer: Answer) -> bytes:
        """Notes the status with which it failed; the stream may go on."""
        self.answer = answer
        return b""

    def failure(self) -> bytes:
        """Returns the message of the stream that reports the failure, with the id of the call."""
        message = ModelStreamInferResponse(error_message=cast("Answer", self.answer).message)
        with suppress(WireFormatError, UnicodeDecodeError):
            ids = values(self.message, ID)
            message.infer_response.id = self.message[ids[-1]].decode() if ids else ""
        return message.SerializeToString()


Begun = tuple[StreamedCall, "asyncio.Task[bytes]"]


class Streams:
    """All streams of a server.

    Args:
        service: Answers each message.
        transport: Reports and answers calls.
        batcher: Admits it.
        config: The limit on streams.
        max_output_bytes: The largest result.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        service: InferenceService,
        transport: GrpcTransport,
        batcher: Batcher,
        config: OipConfig,
        max_output_bytes: int,
    ) -> None:
        self._service = service
        self._transport = transport
        self._batcher = batcher
        self._max_streams = config.max_streams
        self._max_output_bytes = max_output_bytes
        self._open = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of all methods of the service, for registration in a gRPC server."""
        unary = self._transport.unary_handlers(OIP_SERVICE, self._service.methods)
        stream: Any = grpc.stream_stream_rpc_method_handler(self.answer)
        return grpc.method_handlers_generic_handler(OIP_SERVICE, {**unary, STREAM_INFER: stream})

    async def answer(self, _messages: Any, context: Context) -> None:
        """Answers the messages of a stream until its caller or the server ends it."""
        # Once for a stream, which gRPC accepts as one call, whatever messages it brings.
        self._transport.backlog.begun += 1
        if self._open >= self._max_streams:
            call = self._call(b"", context)
            error = QueueFullError("streams", self._max_streams, self._open + 1, LEAST_RETRY_S)
            await self._transport.refuse(call, error)
            # Raises, as gRPC does when a call is aborted: nothing below runs.
            await _end(context, call)
        self._open += 1
        calls: asyncio.Queue[Begun | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_STREAM_CALLS)
        reading = asyncio.create_task(self._read(context, calls, room))
        try:
            await _write(context, calls, room)
        finally:
            self._open -= 1
            # Without waiting, here and in `_give_up`: a task that waits can be cancelled once more,
            # and what calls hold would be held for ever.
            reading.cancel()
            reading.add_done_callback(partial(_give_up_rest, calls))

    async def _read(
        self, context: Context, calls: asyncio.Queue[Begun | None], room: asyncio.Semaphore
    ) -> None:
        """Begins a call with every message, as long as there are not too many."""
        try:
            while True:
                # Before the read, so that the flow control of gRPC slows the client down.
                await room.acquire()
                message: Any = await context.read()
                if message is grpc.aio.EOF:
                    break
                call = self._call(message, context)
                self._transport.enter(call)
                answered = self._transport.answered(call, self._service.infer)
                calls.put_nowait((call, asyncio.create_task(answered)))
        finally:
            # Also when reading failed: `_write` would wait for ever.
            calls.put_nowait(None)

    def _call(self, message: bytes, context: Context) -> StreamedCall:
        call = self._transport.call_of(STREAM_INFER, STREAM_INFER, context)
        return StreamedCall(
            call.method,
            call.path,
            call.caller,
            call.deadline,
            perf_counter(),  # gRPC does not tell when a message of a stream came in
            context,
            call.receiver,
            message=message,
            reserve=self._reserve,
        )

    def _reserve(self, size_bytes: int, call: StreamedCall) -> Place:
        result_bytes = min(size_bytes, self._max_output_bytes)
        return self._batcher.reserve(size_bytes + result_bytes, caller=call.caller.name, call=call)


async def _write(
    context: Context, calls: asyncio.Queue[Begun | None], room: asyncio.Semaphore
) -> None:
    """Writes the outcome of every call, one after the other."""
    ends_at_errors = (ENDS_AT_ERRORS, "true") in (context.invocation_metadata() or ())
    while (begun := await calls.get()) is not None:
        call, task = begun
        try:
            reply = await task
            if call.answer is None:
                # By hand, as protobuf would parse the reply and serialize it anew.
                await context.write(field_head(INFER_RESPONSE, len(reply)) + reply)
                continue
            # When the server stops or its device is lost, so that the client goes elsewhere.
            if ends_at_errors or call.answer.code is grpc.StatusCode.UNAVAILABLE:
                await _end(context, call)
            await context.write(call.failure())
        finally:
            _give_up(call, task)
            room.release()


def _give_up(call: StreamedCall, task: asyncio.Task[bytes]) -> None:
    """Cancels a call that has not ended, and frees what it holds once it has."""
    task.cancel()
    task.add_done_callback(lambda _task: call.done())


def _give_up_rest(calls: asyncio.Queue[Begun | None], _reading: asyncio.Task[None]) -> None:
    """Cancels all calls whose responses will never be written."""
    while not calls.empty():
        begun = calls.get_nowait()
        if begun is not None:
            _give_up(*begun)


async def _end(context: Context, call: StreamedCall) -> None:
    """Ends a stream with the status of one of its calls."""
    answer = cast("Answer", call.answer)
    await context.abort(answer.code, answer.message, answer.metadata())
