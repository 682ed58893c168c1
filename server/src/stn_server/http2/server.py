"""The gRPC server: it listens, accepts connections, and ends them."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import ssl
from collections.abc import Callable

from stn_server.event_loop import Backlog
from stn_server.handlers import Router
from stn_server.http2.calls import StreamContext
from stn_server.http2.protocol import Http2Protocol, Shared, peer_of
from stn_server.log import log
from stn_server.tuning import ACCEPT_PAUSE_S, HANDSHAKE_S, UNREAD_S

Secure = Callable[[], ssl.SSLContext]
"""Returns the TLS of the next connection, whose certificates may have been renewed."""

BACKLOG = 1024
"""The most connections that wait to be accepted."""

JITTER = 0.1
"""The part by which the ages of connections differ, so that not all of them end at once."""


class Http2Server:
    """Serves methods by gRPC: bind addresses, then `start`, then `stop`.

    Args:
        router: Finds methods.
        backlog: Begins calls.
        max_streams: The most calls of a connection at a time.
        max_message_bytes: The limit of a message.
        connection_age_s: After how many seconds a client is asked to connect anew; 0: never.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        router: Router,
        backlog: Backlog[StreamContext],
        max_streams: int = 1024,
        max_message_bytes: int = 2**31 - 1,
        connection_age_s: float = 0.0,
    ) -> None:
        def age_s() -> float:
            factor = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
            return connection_age_s * factor if connection_age_s else math.inf

        self._shared = Shared(router, max_streams, max_message_bytes, HANDSHAKE_S, backlog, age_s)
        self._listeners: list[tuple[socket.socket, Secure | None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, family: socket.AddressFamily, address: object, secure: Secure | None) -> int:
        """Binds an address, at which connections wait from now on; returns its port.

        Args:
            family: The kind of the address.
            address: As `socket.bind` takes it.
            secure: Makes the TLS of connections; None: they have none.

        Raises:
            OSError: It cannot be taken.
        """
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family != socket.AF_UNIX:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)  # type: ignore[arg-type]  # as the family says
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._listeners.append((listener, secure))
        return 0 if family == socket.AF_UNIX else int(listener.getsockname()[1])

    def start(self) -> None:
        """Accepts connections from now on."""
        for listener, secure in self._listeners:
            self._keep(self._accept(listener, secure))

    async def stop(self) -> None:
        """Ends all connections and their calls, and frees the addresses.

        Returns when what callers are told has left; one that does not read can hold that up.
        """
        for task in self._tasks:
            task.cancel()
        for listener, _ in self._listeners:
            listener.close()
        for connection in list(self._shared.connections):
            connection.abort()
        await self._shared.has_none.wait()

    def _keep(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, secure: Secure | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor left: others will be given back
                log(logging.WARNING, "connection not accepted", reason=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            peer = peer_of(connected.family, address)
            self._keep(self._connect(connected, peer, secure))

    async def _connect(self, connected: socket.socket, peer: str, secure: Secure | None) -> None:
        """Begins a connection, by TLS if it is to have one."""
        tls = None if secure is None else secure()
        try:
            if connected.family != socket.AF_UNIX:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A client without a network is found out some day, and soon if it is to read.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                unread_ms = int(UNREAD_S * 1000)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Http2Protocol(self._shared, peer),
                connected,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
            )
        except OSError as error:  # of TLS, too, as of strangers
            log(logging.DEBUG, "connection ended", reason=str(error))
            connected.close()
