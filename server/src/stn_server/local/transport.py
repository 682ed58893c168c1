"""The sockets of the local transport: in a folder that server and callers share."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from stn_server.config import LimitsConfig, LocalConfig
from stn_server.handlers import Router
from stn_server.listening import listen_unix
from stn_server.local.arenas import Arenas
from stn_server.local.calls import Responder
from stn_server.local.connection import Connection, LongFrameLimit
from stn_server.local.leases import Leases

CALLS_SOCKET, ARENAS_SOCKET = "ttrpc.sock", "arenas.sock"

BACKLOG = 128


class LocalTransport:
    """Accepts calls of processes on this host: `start`, then `stop`.

    Args:
        config: In which folder.
        limits: The limits of a connection.
        long_frames: How many long frames may come in at a time, on all connections.
        router: Finds the methods of calls.
        of_arenas: Finds those of leases.
        arenas: Keeps the arenas.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        config: LocalConfig,
        limits: LimitsConfig,
        long_frames: int,
        router: Router,
        of_arenas: Router,
        arenas: Arenas,
    ) -> None:
        self._config = config
        self._limits = limits
        self._responder = Responder(router)
        # Arenas have a socket of their own, as a connection there is the lease of one.
        self._leases = Leases(arenas, Responder(of_arenas), limits)
        self._long_frames = LongFrameLimit(long_frames)
        self._connections: set[Connection] = set()
        self._sockets: list[_Listener] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Listens at both sockets from now on.

        Raises:
            ConfigError: A socket cannot be made in the folder.
        """
        calls = self._listener(CALLS_SOCKET)
        connection = partial(
            Connection, self._responder, self._limits, self._long_frames, self._connections
        )
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(connection, sock=calls.socket))
        self._leases.serve(self._listener(ARENAS_SOCKET).socket)

    def stop(self) -> None:
        """Ends all connections and leases, and removes the sockets."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()
        self._leases.stop()
        for listener in self._sockets:
            listener.remove()

    def _listener(self, name: str) -> _Listener:
        listener = _Listener(Path(self._config.dir) / name)
        mode = int(self._config.mode, 8)
        group = self._config.group
        listen_unix("local.dir", f"unix:{listener.path}", mode, listener.bind, group)
        self._sockets.append(listener)
        return listener


class _Listener:
    """A unix socket that accepts connections, and its file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def bind(self) -> None:
        """Binds the path, on which nothing is.

        Raises:
            OSError: It cannot be taken.
        """
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.bind(str(self.path))
            self.socket.listen(BACKLOG)
        except OSError:
            self.socket.close()
            raise
        self._inode = self.path.stat().st_ino

    def remove(self) -> None:
        """Removes the file, unless another server has put its own there."""
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
