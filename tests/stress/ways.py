"""The transports by which the suites call a server, each with one connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from stn_client._placing import by_message, place
from stn_client._ttrpc import INFO, CallError, ConnectionLostError, Offer
from stn_client._ttrpc_aio import Connection

OPTIONS = [("grpc.max_receive_message_length", -1)]
CLIENT = "stress"
"""The client to which resident tensors belong."""
UNANSWERED_S = 70.0
"""No call may take longer, whatever its own timeout is."""


class ByGrpc:
    """Calls by gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, target: str, name: int) -> AsyncIterator[ByGrpc]:
        """A connection that no other caller has."""
        own = [*OPTIONS, ("grpc.channel_id", name)]
        async with grpc.aio.insecure_channel(target, own) as channel:
            yield cls(channel)

    async def answered(
        self,
        path: str,
        message: bytes,
        timeout_s: float | None,
        cancelled_after_s: float | None = None,
        held: object = None,  # noqa: ARG002 - by the other way
    ) -> tuple[str, bytes]:
        """How a call ended, and its reply, which is empty if it has none."""
        call = self.channel.unary_unary(path)(message, timeout=timeout_s)
        if cancelled_after_s is not None:
            asyncio.get_running_loop().call_later(cancelled_after_s, call.cancel)
        code = await asyncio.wait_for(call.code(), timeout=UNANSWERED_S)
        return code.name, await call if code is grpc.StatusCode.OK else b""

    def message_of(self, call) -> tuple[bytes, object]:
        """What is sent for a call of the SDK, and what is held until it has ended."""
        call.choose(CLIENT)
        return by_message(call, CLIENT), None


class ByTtrpc:
    """Calls by the local transport, whose large tensors lie in arenas."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, target: str, _name: int) -> AsyncIterator[ByTtrpc]:
        """A connection that no other caller has."""
        async with grpc.aio.insecure_channel(target) as channel:
            offer = Offer.of(await channel.unary_unary(INFO)(b""))
        connection = await Connection.open(offer.folder, tuple)
        try:
            yield cls(connection)
        finally:
            connection.close()
            await connection.wait_closed()

    async def answered(
        self,
        path: str,
        message: bytes,
        timeout_s: float | None,
        cancelled_after_s: float | None = None,
        held: object = None,
    ) -> tuple[str, bytes]:
        """How a call ended, which ends only here if it is cancelled, and its reply."""
        is_cancelled = cancelled_after_s is not None
        try:
            async with asyncio.timeout(cancelled_after_s if is_cancelled else UNANSWERED_S):
                reply = await self._connection.call(path, message, timeout=timeout_s, held=held)
        except CallError as error:
            return error.code().name, b""
        except ConnectionLostError as lost:
            # An arena that the server does not know: an answer, after which the SDK goes by gRPC.
            if not isinstance(lost.__cause__, CallError):
                raise
            return lost.__cause__.code().name, b""
        except TimeoutError:
            if not is_cancelled:
                raise
            return grpc.StatusCode.CANCELLED.name, b""
        return grpc.StatusCode.OK.name, reply

    def message_of(self, call) -> tuple[bytes, object]:
        """What is sent for a call of the SDK, and what is held until it has ended."""
        call.choose(CLIENT)
        placed = place(call, self._connection.pool, CLIENT)
        return (b"", None) if placed is None else (placed.request, placed.held)  # None: no room


WAYS = (ByGrpc, ByTtrpc)
"""Callers take turns over them."""
