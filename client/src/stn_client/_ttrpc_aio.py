"""A connection by ttrpc for one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stn_client._arenas import Pool
from stn_client._ttrpc import (
    CONNECT_S,
    SOCKET,
    ConnectionLostError,
    Metadata,
    no_answer_in_time,
    reply_of,
    request_of,
)
from stn_proto.ttrpc import ClientConnection, FrameError


class Connection(asyncio.Protocol):
    """Calls of any tasks of one event loop on one socket.

    Attributes:
        pool: Memory that the server sees, too.
    """

    def __init__(self, folder: Path, metadata: Callable[[], Metadata]) -> None:
        self.pool = Pool(folder, metadata)
        self._loop = asyncio.get_running_loop()
        self._frames = ClientConnection()
        self._waiting: dict[int, tuple[asyncio.Future[bytes | None], object]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_closed = asyncio.Event()
        self.is_lost = False

    @classmethod
    async def open(cls, folder: Path, metadata: Callable[[], Metadata]) -> Connection:
        """Connects to the socket in a folder.

        Raises:
            OSError: Nobody listens there.
        """
        async with asyncio.timeout(CONNECT_S):
            loop = asyncio.get_running_loop()
            _, protocol = await loop.create_unix_connection(
                lambda: cls(folder, metadata), str(folder / SOCKET)
            )
        return protocol

    async def call(
        self,
        path: str,
        message: bytes,
        *,
        timeout: float | None,  # noqa: ASYNC109 - as of gRPC's stubs
        metadata: Metadata = (),
        held: object = None,
    ) -> bytes:
        """Returns the serialized reply to a call; see `_ttrpc_threads.Connection.call`."""
        try:
            async with asyncio.timeout(timeout):
                # Within the timeout: a server that does not read must
                # not hold a call beyond its deadline.
                await self._writable.wait()
                return reply_of(await self._begin(path, message, timeout, metadata, held))
        except TimeoutError:
            raise no_answer_in_time() from None

    def close(self) -> None:
        """Ends the connection; calls under way have no answer."""
        self._lose()
        self._transport.abort()

    async def wait_closed(self) -> None:
        """Returns when the socket of a connection that ends is closed."""
        await self._is_closed.wait()

    def abandon(self) -> None:
        """Closes this process's copy of the socket; see `_ttrpc_threads.Connection`."""
        if not self.is_lost:  # else the number may be that of another file by now
            os.close(self._transport.get_extra_info("socket").fileno())

    def connection_made(self, transport: Any) -> None:
        """Begins: asyncio has connected it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Gives complete answers to their calls."""
        try:
            answers = self._frames.receive(data)
        except FrameError:
            self.close()
            return
        for stream_id, answer in answers:
            waiter, _held = self._waiting.pop(stream_id, (None, None))
            # A call that was cancelled, or late, leaves its entry:
            # the slot is held until the answer.
            if waiter is not None and not waiter.done():
                waiter.set_result(answer)

    def pause_writing(self) -> None:
        """Makes callers wait: the server does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Lets callers write again: the server reads."""
        self._writable.set()

    def connection_lost(self, _reason: Exception | None = None) -> None:
        """Ends: asyncio has closed the socket, or does so now."""
        self._lose()
        self._is_closed.set()

    def _lose(self) -> None:
        """Fails all calls under way; see `_ttrpc_threads.Connection._lose`."""
        self.is_lost = True
        self.pool.close()
        # Wakes callers that wait to write, so that they see the loss.
        self._writable.set()
        waiting, self._waiting = self._waiting, {}
        for waiter, _held in waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def _begin(
        self,
        path: str,
        message: bytes,
        timeout_s: float | None,
        metadata: Metadata,
        held: object,
    ) -> asyncio.Future[bytes | None]:
        """Sends a request; returns the future of its answer."""
        if self.is_lost:
            raise ConnectionLostError
        data = request_of(path, message, timeout_s, metadata)
        try:
            stream_id, frame = self._frames.request(data)
        except FrameError as error:  # too long, or the last stream id is gone
            raise ConnectionLostError from error
        waiter: asyncio.Future[bytes | None] = self._loop.create_future()
        self._waiting[stream_id] = waiter, held
        self._transport.write(frame)
        return waiter
