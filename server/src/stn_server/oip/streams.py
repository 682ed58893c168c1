"""`ModelStreamInfer`: every message of a stream is a call, answered in the order of arrival.

A stream may hold a message that is not admitted yet: there are only so many streams, and each is
read only as fast as it is answered. A message above `limits.max_message_bytes` ends its stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import cast

import grpc

from stn_proto import WireFormatError, values
from stn_proto.oip.inference_pb2 import ModelStreamInferResponse
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Place
from stn_server.config import OipConfig
from stn_server.context import Context, Handler
from stn_server.errors import MessageTooLargeError, QueueFullError
from stn_server.handlers import Handlers, ReceivedCall
from stn_server.oip.requests import ID, field_head
from stn_server.oip.service import OIP_SERVICE, STREAM_INFER, InferenceService
from stn_server.status import Answer
from stn_server.tuning import LEAST_RETRY_S, MAX_STREAM_CALLS

ENDS_AT_ERRORS = "triton_grpc_error"
"""The metadata by which errors end the stream with a status, instead of a message in it."""

Reserve = Callable[[int, "StreamedCall"], Place]

INFER_RESPONSE = ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


@dataclass(slots=True, eq=False)
class StreamedCall(ReceivedCall):
    """A call that is one message of a stream."""

    message: bytes = b""
    reserve: Reserve | None = None
    """Admits so many bytes for the call."""
    callbacks: list[Callable[[StreamedCall], None]] = field(default_factory=list)
    answer: Answer | None = None
    """The status with which it failed."""
    is_last: bool = False
    """Whether the stream ends with its failure."""

    @property
    def message_bytes(self) -> int:
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


Begun = tuple[StreamedCall, "asyncio.Future[bytes]"]


class Streams:
    """All streams of a server.

    Args:
        service: Answers each message.
        handlers: Reports and answers calls.
        batcher: Admits it.
        config: The limit on streams.
        max_output_bytes: The largest result.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        service: InferenceService,
        handlers: Handlers,
        batcher: Batcher,
        config: OipConfig,
        max_output_bytes: int,
    ) -> None:
        self._service = service
        self._handlers = handlers
        self._batcher = batcher
        self._max_streams = config.max_streams
        self._max_output_bytes = max_output_bytes
        self._open = 0

    def handlers(self) -> dict[str, Handler]:
        """Returns the handlers of all methods of the service, by their paths."""
        unary = self._handlers.of(OIP_SERVICE, self._service.methods)
        return {**unary, f"/{OIP_SERVICE}/{STREAM_INFER}": self.answer}

    async def answer(self, context: Context) -> None:
        """Answers the messages of a stream until its caller or the server ends it."""
        if self._open >= self._max_streams:
            call = self._call(b"", context)
            error = QueueFullError("streams", self._max_streams, self._open + 1, LEAST_RETRY_S)
            await self._handlers.refuse(call, error)
            await _end(context, call)  # which raises: nothing below runs
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
                # Before the read, so that flow control slows the client down.
                await room.acquire()
                message = await context.read()
                if message is None:
                    break
                call = self._call(message, context)
                self._handlers.enter(call)
                answered = self._handlers.answered(call, self._service.infer)
                calls.put_nowait((call, asyncio.create_task(answered)))
        except MessageTooLargeError as error:
            call = self._call(b"", context, is_last=True)
            refused = asyncio.ensure_future(self._handlers.refuse(call, error))
            calls.put_nowait((call, refused))
        finally:
            # Also when reading failed: `_write` would wait for ever.
            calls.put_nowait(None)

    def _call(self, message: bytes, context: Context, *, is_last: bool = False) -> StreamedCall:
        call = self._handlers.call_of(STREAM_INFER, STREAM_INFER, context)
        return StreamedCall(
            call.method,
            call.path,
            call.caller,
            call.deadline,
            perf_counter(),
            context,
            call.receiver,
            message=message,
            reserve=self._reserve,
            is_last=is_last,
        )

    def _reserve(self, size_bytes: int, call: StreamedCall) -> Place:
        result_bytes = min(size_bytes, self._max_output_bytes)
        return self._batcher.reserve(size_bytes + result_bytes, caller=call.caller.name, call=call)


async def _write(
    context: Context, calls: asyncio.Queue[Begun | None], room: asyncio.Semaphore
) -> None:
    """Writes the outcome of every call, one after the other."""
    ends_at_errors = (ENDS_AT_ERRORS, "true") in context.metadata
    while (begun := await calls.get()) is not None:
        call, task = begun
        try:
            reply = await task
            if call.answer is None:
                # By hand, as protobuf would parse the reply and serialize it anew.
                await context.write(field_head(INFER_RESPONSE, len(reply)) + reply)
                continue
            # When the server stops or its device is lost, so that the client goes elsewhere.
            is_unavailable = call.answer.code is grpc.StatusCode.UNAVAILABLE
            if ends_at_errors or is_unavailable or call.is_last:
                await _end(context, call)
            await context.write(call.failure())
        finally:
            _give_up(call, task)
            room.release()


def _give_up(call: StreamedCall, task: asyncio.Future[bytes]) -> None:
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
