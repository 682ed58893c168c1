"""The other end of the local transport, written from its description alone."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import replace
from pathlib import Path

from stn_proto.ttrpc import KeyValue, Request, Response
from stn_server.config import LimitsConfig, LocalConfig
from stn_server.handlers import Router
from stn_server.local.arenas import Arenas
from stn_server.local.leases import arena_handlers
from stn_server.local.transport import LocalTransport
from support.harness import serving

SERVICE = "stn.v1.SpatialTransformer"
HEADER = struct.Struct(">IIBB")


def frame(stream_id, data=b"", *, kind=1, flags=0, size=None):
    """A frame, right or wrong."""
    return HEADER.pack(len(data) if size is None else size, stream_id, kind, flags) + data


def request(method, payload=b"", *, service=SERVICE, timeout_s=0.0, **metadata):
    """The data of a request."""
    entries = [KeyValue(key=key.replace("_", "-"), value=text) for key, text in metadata.items()]
    timeout_nano = int(timeout_s * 1e9)
    message = Request(
        service=service,
        method=method,
        payload=payload,
        timeout_nano=timeout_nano,
        metadata=entries,
    )
    return message.SerializeToString()


class Plain:
    """A plain client: one socket, frames by hand."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer
        self._next_id = 1

    @classmethod
    async def connect(cls, folder):
        return cls(*await asyncio.open_unix_connection(Path(folder) / "ttrpc.sock"))

    def send(self, data):
        """Any bytes."""
        self._writer.write(data)

    @property
    def unsent_bytes(self):
        """What the server has not taken yet, nor the system."""
        return self._writer.transport.get_write_buffer_size()

    def begin(self, *arguments, **options):
        """Sends a request; returns its stream id."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self.send(frame(stream_id, request(*arguments, **options)))
        return stream_id

    async def response(self):
        """Stream id and message of the next response."""
        size, stream_id, kind, flags = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        assert (kind, flags) == (2, 0)
        return stream_id, Response.FromString(await self._reader.readexactly(size))

    async def call(self, *arguments, **options):
        """The response to one call."""
        stream_id = self.begin(*arguments, **options)
        answered, response = await self.response()
        assert answered == stream_id
        return response

    async def ended(self):
        """Returns when the server has ended the connection."""
        with contextlib.suppress(ConnectionError):
            assert await self._reader.read() == b""

    def hold(self):
        """Reads no more."""
        self._writer.transport.pause_reading()

    async def close(self):
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class WatchedArenas(Arenas):
    """Arenas of which a test can await the end."""

    def __init__(self, config):
        super().__init__(config)
        self._removed = asyncio.Event()

    def remove(self, arena):
        super().remove(arena)
        self._removed.set()

    async def fall_to(self, count):
        """Returns when there are no more than so many."""
        while self.count > count:
            self._removed.clear()
            await self._removed.wait()


@contextlib.asynccontextmanager
async def serving_locally(
    runner,
    folder,
    *,
    limits=None,
    mode="0600",
    arena_limits=None,
    long_frames=16,
    **options,
):
    """As `harness.serving`, by the local transport as well; yields service and transport."""
    limits = LimitsConfig() if limits is None else limits
    by_grpc = replace(limits, max_concurrent_streams=LimitsConfig().max_concurrent_streams)
    async with serving(runner, limits=by_grpc, **options) as service:
        config = LocalConfig(dir=str(folder), mode=mode, **(arena_limits or {}))
        arenas = WatchedArenas(config)
        translator = service.handlers._service._translator
        translator.memory = translator.memory._replace(arenas=arenas)
        service.transfers._memory = translator.memory
        handlers = service.handlers
        router = Router((handlers.of_service(),), handlers.refusing)
        of_arenas = Router((arena_handlers(arenas, handlers),), handlers.refusing)
        transport = LocalTransport(config, limits, long_frames, router, of_arenas, arenas)
        transport.arenas = arenas
        await transport.start()
        try:
            yield service, transport
        finally:
            transport.stop()


def descriptors():
    """What this process holds open, by what it is."""
    found = {}
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found[one.name] = str(one.readlink())
    return found


def shared_mappings():
    """Memory files that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "/memfd:" in line]
