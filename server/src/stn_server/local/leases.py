"""Leases of arenas: one call on a connection of its own, which is the lease."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

from google.protobuf.message import DecodeError

from stn_proto import WireFormatError
from stn_proto.ttrpc import Frame, FrameError, OversizedFrame, ServerConnection
from stn_proto.v1.arena_pb2 import CreateArenaReply, CreateArenaRequest
from stn_server.call import Call
from stn_server.config import LimitsConfig
from stn_server.context import Context, Handler
from stn_server.handlers import Handlers, ReceivedCall
from stn_server.local.arenas import Arena, Arenas
from stn_server.local.calls import Responder, peer_of
from stn_server.log import log
from stn_server.tuning import ACCEPT_PAUSE_S

CREATE = "/stn.v1.Arenas/Create"

READ_BYTES = 64 * 1024

MAX_CONNECTIONS = 64
"""The most connections without an arena; more wait to be accepted."""


class ArenaContext(Context):
    """A call that may give its caller an arena."""

    arena: Arena | None = None


def arena_handlers(arenas: Arenas, handlers: Handlers) -> dict[str, Handler]:
    """Returns the handler of the method that makes arenas, by its path.

    Args:
        arenas: Keeps the arenas.
        handlers: Counts, logs and refuses calls.
    """

    async def create(call: Call) -> bytes:
        context = cast("ArenaContext", cast("ReceivedCall", call).context)
        try:
            request = CreateArenaRequest.FromString(cast("bytes", context.message))
        except DecodeError as error:
            expected = "a serialized stn.v1.CreateArenaRequest"
            raise WireFormatError("message", expected, "other bytes") from error
        arena = arenas.create(call.caller.name, request.size_bytes)
        context.arena = arena
        return CreateArenaReply(id=arena.id, size_bytes=arena.size_bytes).SerializeToString()

    return {CREATE: handlers.handler(CREATE, create)}


class Leases:
    """Accepts connections, each of which may hold one arena as long as it lasts.

    Args:
        arenas: Keeps the arenas.
        responder: Answers calls.
        limits: The limit of the time in which a call must come in.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, arenas: Arenas, responder: Responder, limits: LimitsConfig) -> None:
        self._arenas = arenas
        self._responder = responder
        self._upload_s = limits.upload_s
        self._loop = asyncio.get_running_loop()
        self._starting = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, listener: socket.socket) -> None:
        """Accepts connections from now on."""
        self._keep(self._accept(listener))

    def stop(self) -> None:
        """Ends all leases, and with them their arenas."""
        for task in self._tasks:
            task.cancel()

    def _keep(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                await self._starting.acquire()
                try:
                    connected, _ = await self._loop.sock_accept(listener)
                except OSError as error:  # no descriptor left: others will be given back
                    self._starting.release()
                    log(logging.WARNING, "connection not accepted", reason=str(error))
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                else:
                    self._keep(self._serve(connected))

    async def _serve(self, connected: socket.socket) -> None:
        """Holds a lease from the begin of its connection to the end."""
        arena = None
        with connected:
            try:
                try:
                    arena = await self._begun(connected)
                finally:
                    # What has an arena from here on is limited by the number of arenas.
                    self._starting.release()
                if arena is not None:
                    await self._loop.sock_recv(connected, 1)  # nothing, until the end
            except (OSError, FrameError) as error:
                log(logging.INFO, "connection ended", reason=str(error))
            finally:
                if arena is not None:
                    self._arenas.remove(arena)

    async def _begun(self, connected: socket.socket) -> Arena | None:
        """Returns the arena that the first call of a connection got; None if it got none."""
        connected.setblocking(False)
        frames, peer = ServerConnection(), peer_of(connected)
        try:
            async with asyncio.timeout(self._upload_s):
                frame = await self._received(connected, frames)
        except TimeoutError:
            return None
        if frame is None:
            return None
        asked = self._responder.read(frame, peer, ArenaContext)
        try:
            response = frames.respond(frame.stream_id, await self._responder.answer(asked))
        finally:
            asked.call.finish()
        arena = cast("ArenaContext", asked.call).arena
        if arena is None:
            # Nothing else was sent on this connection, so that the system has room for it.
            connected.send(response)
            return None
        try:
            socket.send_fds(connected, [response], [arena.descriptor])
        except BaseException:
            self._arenas.remove(arena)
            raise
        finally:
            # The caller has a descriptor of its own by now, or never will; the server has its map.
            arena.close_descriptor()
        return arena

    async def _received(
        self, connected: socket.socket, frames: ServerConnection
    ) -> Frame | OversizedFrame | None:
        """Returns the first frame of a connection; None if it ends without one."""
        while received := await self._loop.sock_recv(connected, READ_BYTES):
            for frame in frames.receive(received):
                return frame
        return None
