"""One call on a stream: its messages come in as its window allows, its replies leave likewise."""

from __future__ import annotations

import asyncio
import math
import zlib
from typing import Protocol

import grpc

from stn_server.context import Context
from stn_server.errors import InvalidRequestError, MessageTooLargeError
from stn_server.http2 import headers
from stn_server.http2.frames import DEFAULT_WINDOW_BYTES
from stn_server.http2.messages import Messages, decompressed


class Channel(Protocol):
    """What a call asks of its connection."""

    def grant(self, stream_id: int, window_bytes: int) -> None:
        """Lets the client send up to so many more bytes on a stream."""

    def write(self, call: StreamContext, message: bytes) -> None:
        """Sends a message on the stream of a call; sets `has_unsent` if it has to wait."""


class StreamContext(Context):
    """A call on a stream of HTTP/2.

    Args:
        channel: Its connection.
        stream_id: Its stream.
        request: What its headers say.
        peer: The other end of the connection.
        deadline: Instant of `time.monotonic` after which the reply is unwanted.
        certified_name: The name in the certificate of the caller.
        max_message_bytes: The limit of a message.
        began: Instant of `time.perf_counter` by which it had come in; None: now.
    """

    def __init__(
        self,
        channel: Channel,
        stream_id: int,
        request: headers.Request,
        peer: str,
        deadline: float = math.inf,
        certified_name: str = "",
        max_message_bytes: int = 2**32,
        began: float | None = None,
    ) -> None:
        super().__init__(request.metadata, peer, deadline, certified_name, began=began)
        self.stream_id = stream_id
        self.path = request.path
        self.has_head = False
        """Whether the headers of the reply were sent."""
        self.encoding = request.encoding
        self.is_answered = False
        """Whether the end of the call is on its way, or waits to be."""
        self.is_gone = False
        """Whether nobody waits for the reply any more."""
        self.has_unsent = False
        """Whether something that was written waits for the client."""
        self._channel = channel
        self._max_bytes = max_message_bytes
        self._messages = Messages()
        self._is_ended = False
        self._is_wanted = False
        """Whether the method waits for the next message."""
        self._is_admitted = False
        """Whether the message under way may come in as a whole."""
        self._waiter: asyncio.Future[None] | None = None
        self._unsent: asyncio.Future[None] | None = None

    def feed(self, data: memoryview) -> None:
        """Takes the next data of the client."""
        messages = self._messages
        messages.feed(data)
        if self._is_admitted and not messages.whole:
            self._grant()
        self._wake()

    def end(self) -> None:
        """Notes that the client sends no more."""
        self._is_ended = True
        self._wake()

    def take_arrived(self) -> None:
        """Makes the first message `message` if it is there as it was sent, and not too long."""
        whole = self._messages.whole
        if whole and not whole[0][1] and len(whole[0][0]) <= self._max_bytes:
            self.message = whole[0][0]

    def message_bytes(self) -> int:
        """Returns the size of the message as far as it is known; see `Context`."""
        return super().message_bytes() or self._messages.announced_bytes or 0

    @property
    def is_amid_message(self) -> bool:
        """Whether the method waits for a message that is not there; see `Context`."""
        return self._is_wanted

    async def announced_bytes(self) -> int | None:
        """Waits for the size of the next message; see `Context`.

        One that is compressed counts as the largest, as its size is not known.
        """
        messages = self._messages
        self._is_wanted = True
        while not messages.whole and messages.announced_bytes is None:
            if self._has_no_more():
                return None
            await self._wait()
        if messages.whole:
            message, is_compressed = messages.whole[0]
            return self._max_bytes if is_compressed else len(message)
        return self._max_bytes if messages.is_compressed else messages.announced_bytes

    async def read(self) -> bytes | None:
        """Waits for the next message; see `Context`.

        Raises:
            MessageTooLargeError: It is above the limit.
            InvalidRequestError: The client has ended the call amid it.
        """
        messages = self._messages
        while not messages.whole:
            self._check_length(messages.announced_bytes or 0)
            if self._has_no_more():
                return None
            self._is_wanted = self._is_admitted = True
            self._grant()
            await self._wait()
        self._is_wanted = self._is_admitted = False
        message, is_compressed = messages.whole.popleft()
        self._check_length(len(message))
        return await self._decompressed(message) if is_compressed else message

    async def write(self, message: bytes) -> None:
        """Sends a message of a stream; see `Context`."""
        self._channel.write(self, message)
        if self.has_unsent:
            await self.sending()

    async def sending(self) -> None:
        """Waits until the client has taken what was written."""
        self._unsent = asyncio.get_running_loop().create_future()
        await self._unsent

    def sent(self) -> None:
        """Notes that the client has taken all that was written."""
        self.has_unsent = False
        if self._unsent is not None and not self._unsent.done():
            self._unsent.set_result(None)

    def _has_no_more(self) -> bool:
        """Returns whether no message follows; raises InvalidRequestError amid one."""
        if self._is_ended and self._messages.is_amid:
            expected = "expected all of it, got the end of the call. Send the rest."
            raise InvalidRequestError("message", expected)
        return self._is_ended

    def _check_length(self, message_bytes: int) -> None:
        if message_bytes > self._max_bytes:
            raise MessageTooLargeError("message", self._max_bytes, message_bytes, "bytes")

    def _grant(self) -> None:
        missing = min(self._messages.missing_bytes, self._max_bytes)
        self._channel.grant(self.stream_id, max(DEFAULT_WINDOW_BYTES, missing))

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _decompressed(self, message: bytes) -> bytes:
        """Returns what a compressed message holds."""
        limit = self._max_bytes
        try:
            # In a thread: a short message may hold a long one.
            found = await asyncio.to_thread(decompressed, message, self.encoding, limit)
        except (zlib.error, KeyError):
            text = f"message: expected it compressed as {self.encoding}, got other bytes."
            await self.abort(grpc.StatusCode.INTERNAL, text)
        if found is None:
            raise MessageTooLargeError("message", limit, limit + 1, "bytes")
        return found
