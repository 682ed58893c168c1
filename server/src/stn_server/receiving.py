"""How messages come in: a call has its place at the door before its message is read.

gRPC keeps no more than 64 KiB of what nobody reads, and once it is told to read it takes the whole
message. So methods are registered as streams of one message, which is the same on the wire, and
read when they may:

- A call that declares the size of its message (metadata `stn-message-bytes`) counts for it, and for
  a result of the same size until the real one is known. Declared wrongly, it is refused.
- One that does not counts for the largest message while it is read, and few are read at a time; the
  others wait in the order in which they came.
- A message that is not there in time is given up.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import grpc.aio

from stn_proto.metadata import MESSAGE_BYTES
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Place
from stn_server.caller import Context
from stn_server.config import LimitsConfig
from stn_server.errors import (
    InvalidRequestError,
    MessageTooLargeError,
    UploadTimeoutError,
)

CANCELLATION_S = 0.1
"""By then gRPC has told that a call is over whose message ended early."""

MAX_DIGITS = 19
"""Of a declared size; more would be beyond every limit."""


class LostMessageError(asyncio.CancelledError):
    """The call was over before its message was there.

    Attributes:
        code: How it ended, unless its deadline was the reason. gRPC ends a call whose message is
            too large with RESOURCE_EXHAUSTED, but tells a server no more of it than of one that
            its caller cancels. Calls that declare a size do not end so.
    """

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self.code = code


class Receiver:
    """Reads the message of every call, once there is room for it.

    Args:
        batcher: Whose door it is.
        limits: Of one call.
        max_admitted_bytes: Of all calls; a quarter of it may be messages of unknown size.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, batcher: Batcher, limits: LimitsConfig, max_admitted_bytes: int) -> None:
        self._batcher = batcher
        self._limits = limits
        largest = limits.max_message_bytes
        self._uploads = _Uploads(limits.upload_s)
        self._unknown = asyncio.Semaphore(max(1, max_admitted_bytes // 4 // largest))

    async def receive(
        self, context: Context, caller: str, declared: int | None
    ) -> tuple[bytes, Place]:
        """The message of a call, and its place until the call is over.

        Args:
            context: Of the call.
            caller: Who makes it.
            declared: What `declared_bytes` says.

        Raises:
            MessageTooLargeError: The declared size is above the limit.
            RefusedError: There is no room.
            InvalidRequestError: The message is not there, or not of the declared size.
            UploadTimeoutError: It is not there in time.
            LostMessageError: The call is over.
        """
        if declared is None:
            return await self._receive_unknown(context, caller)
        largest = self._limits.max_message_bytes
        if declared > largest:
            raise MessageTooLargeError("message", largest, declared, "bytes")
        result_bytes = min(declared, self._limits.max_output_bytes)
        place = self._batcher.reserve(declared + result_bytes, caller=caller, call=context)
        message = await self._read(context, declared=True)
        if len(message) != declared:
            expected = f"expected the {declared} bytes that {MESSAGE_BYTES} declares"
            raise InvalidRequestError("message", f"{expected}, got {len(message)}.")
        return message, place

    async def _receive_unknown(self, context: Context, caller: str) -> tuple[bytes, Place]:
        place = self._batcher.reserve(0, caller=caller, call=context)
        async with self._unknown:
            self._batcher.resize(place, self._limits.max_message_bytes)
            return await self._read(context, declared=False), place

    async def _read(self, context: Context, *, declared: bool) -> bytes:
        task: Any = asyncio.current_task()
        self._uploads.begin(task)
        try:
            message: Any = await context.read()
            if message is grpc.aio.EOF:
                await asyncio.sleep(CANCELLATION_S)
        except asyncio.CancelledError:
            if not self._uploads.is_under_way(task) and task.uncancel() == 0:
                raise UploadTimeoutError(self._limits.upload_s) from None
            code = grpc.StatusCode.CANCELLED if declared else grpc.StatusCode.RESOURCE_EXHAUSTED
            raise LostMessageError(code) from None
        finally:
            self._uploads.end(task)
        if message is grpc.aio.EOF:
            raise InvalidRequestError("message", "expected one, got the end of the call. Send one.")
        return cast("bytes", message)


class _Uploads:
    """Cancels tasks that have waited too long for a message.

    One timer for all, which is set for the oldest: one for each would cost small calls a percent.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._began: dict[asyncio.Task[Any], float] = {}
        """In order."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[Any]) -> None:
        """A task begins to wait."""
        self._began[task] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._expire)

    def is_under_way(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task that waits has not waited too long."""
        return task in self._began

    def end(self, task: asyncio.Task[Any]) -> None:
        """A task waits no longer."""
        self._began.pop(task, None)

    def _expire(self) -> None:
        now, self._timer = self._loop.time(), None
        for task, began in list(self._began.items()):
            if now < began + self._timeout_s:
                self._timer = self._loop.call_at(began + self._timeout_s, self._expire)
                return
            del self._began[task]
            task.cancel()


def declared_bytes(context: Context) -> int | None:
    """The size of its message that a call declares; None if it does not.

    Raises:
        InvalidRequestError: It is no number.
    """
    for key, value in context.invocation_metadata() or ():
        if key == MESSAGE_BYTES:
            digits = str(value)
            if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS):
                complaint = f"expected a number of bytes, got {digits[:100]!r}."
                raise InvalidRequestError(MESSAGE_BYTES, complaint)
            return int(digits)
    return None
