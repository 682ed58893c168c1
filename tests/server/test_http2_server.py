"""gRPC over real sockets: calls, their ends in every phase, and strangers; nothing is left behind.

Clients are grpcio's, and bare frames for what those do not do.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from pathlib import Path

import grpc
import pytest
import uvloop

from stn_server.event_loop import Backlog
from stn_server.handlers import Router
from stn_server.http2 import Http2Server
from stn_server.http2.connection import TURN_BYTES
from stn_server.http2.protocol import UNSENT_BYTES
from support.certificates import Authority
from support.raw_http2 import call_block, frame, literal

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WIDE = struct.pack(">HI", 4, 2**31 - 1)
MIB = 2**20
ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def grpc_frame(message, flag=0):
    return struct.pack(">BI", flag, len(message)) + message


def by_header(changes):
    """Headers by the names that keywords stand for."""
    return {
        ":method" if name == "method" else name.replace("_", "-"): value
        for name, value in changes.items()
    }


class Service:
    """Methods that can be held up, and what became of their calls."""

    def __init__(self):
        self.contexts = []
        self.began = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.written = 0

    def router(self):
        methods = {f"/t/{name}": self._kept(getattr(self, name.lower())) for name in METHODS}
        return Router([methods], lambda _error, _path: self._kept(self.unknown))

    def _kept(self, method):
        async def answer(context):
            self.contexts.append(context)
            context.add_done_callback(lambda _context: self.ended.release())
            self.began.release()
            return await method(context)

        return answer

    async def echo(self, context):
        return context.message if context.message is not None else await context.read()

    async def held(self, context):
        await self.gate.wait()
        return await self.echo(context)

    async def unread(self, _context):
        return b"without the message"

    async def long(self, _context):
        return bytes(8 * MIB)

    async def each(self, context):
        while (message := await context.read()) is not None:
            await context.write(message)

    async def endless(self, context):
        while True:
            await context.write(bytes(MIB))
            self.written += 1

    async def unknown(self, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")

    async def all_ended(self):
        """Waits until every call that began is over."""
        for _ in self.contexts:
            await self.ended.acquire()
        assert all(context.done() for context in self.contexts)


METHODS = ("Echo", "Held", "Unread", "Long", "Each", "Endless")


class Raw:
    """A client of bare frames."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, *frames):
        self.writer.write(b"".join(frames))

    def call(self, stream_id, path="/t/Echo", flags=END_HEADERS, **changes):
        self.send(frame(HEADERS, flags, stream_id, call_block(path, by_header(changes))))

    async def next(self, kind, stream_id=None):
        """The flags and the payload of the next frame of a kind; answers pings and settings."""
        while True:
            head = await self.reader.readexactly(9)
            length = int.from_bytes(head[:3], "big")
            found, flags, of = struct.unpack(">BBI", head[3:])
            payload = await self.reader.readexactly(length)
            if found == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, payload))
            if found == kind and stream_id in {None, of} and not (kind == SETTINGS and flags):
                return flags, payload

    async def message(self, stream_id):
        """The next message of a stream, in however many frames."""
        data = b""
        while len(data) < 5 or len(data) < 5 + int.from_bytes(data[1:5], "big"):
            data += (await self.next(DATA, stream_id))[1]
        return data[5:]

    async def settled(self):
        """Waits until the server has taken all that was sent."""
        self.send(frame(PING, 0, 0, bytes(8)))
        while await self.next(PING) != (ACK, bytes(8)):
            pass

    async def ended(self):
        """Waits for the end of the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(MIB):
                pass

    def leave(self):
        self.writer.transport.abort()


class Channel:
    """A channel of grpcio, whose calls are made in threads."""

    def __init__(self, channel):
        self._channel = channel

    async def call(self, path, message, **options):
        method = self._channel.unary_unary(path)
        return await asyncio.to_thread(method, message, **{"timeout": 15, **options})

    async def stream(self, path, messages):
        method = self._channel.stream_stream(path)
        return await asyncio.to_thread(lambda: list(method(iter(messages), timeout=15)))


class Running:
    def __init__(self, server, service, port):
        self.server, self.service, self.port = server, service, port
        self.target = f"127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def channel(self, target="", credentials=None):
        target = target or self.target
        with (
            grpc.secure_channel(target, credentials, ANY_SIZE)
            if credentials
            else grpc.insecure_channel(target, ANY_SIZE)
        ) as channel:
            yield Channel(channel)

    @contextlib.asynccontextmanager
    async def raw(self, settings=WIDE):
        client = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        client.send(PREFACE, frame(SETTINGS, 0, 0, settings))
        try:
            yield client
        finally:
            client.leave()

    @property
    def connections(self):
        return self.server._shared.connections

    async def idle(self):
        """Waits until no connection is left."""
        await until(lambda: not self.connections)


def sockets_at(name):
    """How many sockets of this process have this address as their own."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # of those that are closed meanwhile
            if one.is_socket():
                with socket.socket(fileno=os.dup(int(one.name))) as copy:
                    found += copy.getsockname() == name
    return found


async def until(condition):
    """Waits for what the server does without telling anyone."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(family=socket.AF_INET, address=("127.0.0.1", 0), secure=None, **options):
    """A server; at its end no call, task, connection or descriptor of it is left."""
    service = Service()
    server = Http2Server(service.router(), Backlog(), **options)
    others = asyncio.all_tasks()
    port = server.listen(family, address, secure)
    name = server._listeners[0][0].getsockname()
    server.start()
    running = Running(server, service, port)
    try:
        async with asyncio.timeout(20):
            yield running
            await service.all_ended()
            await running.idle()
    finally:
        await server.stop()
    async with asyncio.timeout(5):
        while left := asyncio.all_tasks() - others:
            await asyncio.wait(left)
        await until(lambda: not sockets_at(name))


def on_the_loop(test):
    """Runs an asynchronous test on the event loop that servers use."""

    def run(*args, **kwargs):
        uvloop.run(test(*args, **kwargs))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__wrapped__ = test
    return run


# Calls


@pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB, 200 * MIB])
@pytest.mark.parametrize("compression", list(grpc.Compression))
@on_the_loop
async def test_messages_of_every_size_go_there_and_back(size, compression):
    async with serving() as running, running.channel() as channel:
        message = os.urandom(1024) * (size // 1024) + bytes(size % 1024)
        reply = await channel.call("/t/Echo", message, compression=compression)
        assert reply == message


@on_the_loop
async def test_many_calls_share_a_connection():
    async with serving() as running, running.channel() as channel:
        messages = [bytes([number % 256]) * number * 100 for number in range(500)]
        calls = (channel.call("/t/Echo", message) for message in messages)
        assert await asyncio.gather(*calls) == messages
        assert len(running.connections) == 1


@on_the_loop
async def test_streams_go_both_ways():
    async with serving() as running, running.channel() as channel:
        messages = [bytes([number]) * number * 5000 for number in range(50)]
        assert await channel.stream("/t/Each", messages) == messages


@on_the_loop
async def test_a_method_that_is_not_there_is_refused():
    async with serving() as running, running.channel() as channel:
        with pytest.raises(grpc.RpcError, match="no such method") as error:
            await channel.call("/t/Other", b"")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@on_the_loop
async def test_a_message_above_the_limit_is_refused():
    """Of any length, those that come in along with their headers among them."""
    async with serving(max_message_bytes=1000) as running, running.channel() as channel:
        assert await channel.call("/t/Echo", bytes(1000)) == bytes(1000)
        for size in (1001, 50_000, 10 * MIB):
            with pytest.raises(grpc.RpcError):
                await channel.call("/t/Echo", bytes(size))


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"method": "GET"}, b"405"), ({"content_type": "text/html"}, b"415")],
)
@on_the_loop
async def test_requests_that_are_no_calls_get_a_status_of_http(changes, status):
    async with serving() as running, running.raw() as client:
        client.call(1, flags=END_HEADERS | END_STREAM, **changes)
        flags, payload = await client.next(HEADERS)
        assert flags & END_STREAM
        assert status in payload
        assert running.service.contexts == []


@pytest.mark.parametrize(
    ("changes", "body", "status"),
    [
        ({"grpc_encoding": "snappy"}, grpc_frame(b"x"), b"12"),
        ({"grpc_encoding": "gzip"}, grpc_frame(b"no gzip", 1), b"13"),
        ({}, grpc_frame(b"x", 1), b"13"),
    ],
    ids=["unknown", "broken", "none"],
)
@on_the_loop
async def test_compression_that_cannot_be_undone_has_a_status(changes, body, status):
    async with serving() as running, running.raw() as client:
        client.call(1, **changes)
        client.send(frame(DATA, END_STREAM, 1, body))
        _, payload = await client.next(HEADERS)
        assert literal("grpc-status", status.decode()) in payload


@on_the_loop
async def test_malformed_headers_end_their_stream_alone():
    async with serving() as running, running.raw() as client:
        client.call(1, grpc_timeout="soon")
        client.call(3)
        client.send(frame(DATA, END_STREAM, 3, grpc_frame(b"other")))
        assert await client.next(RESET, 1) == (0, struct.pack(">I", 1))
        assert await client.message(3) == b"other"


@on_the_loop
async def test_further_messages_and_trailers_of_a_unary_call_are_passed_over():
    async with serving() as running, running.raw() as client:
        client.call(1)
        client.send(frame(DATA, 0, 1, grpc_frame(b"one") + grpc_frame(b"two")))
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, literal("x-end", "1")))
        assert await client.message(1) == b"one"
        flags, _ = await client.next(HEADERS)
        assert flags & END_STREAM


@on_the_loop
async def test_a_reply_without_the_message_stops_the_upload():
    async with serving() as running, running.raw() as client:
        client.call(1, "/t/Unread")
        client.send(frame(DATA, 0, 1, grpc_frame(bytes(10 * MIB))[:10_000]))
        assert await client.message(1) == b"without the message"
        assert await client.next(RESET) == (0, bytes(4))
        client.send(frame(DATA, 0, 1, bytes(10_000)))
        await client.settled()


@on_the_loop
async def test_a_slow_upload_arrives():
    async with serving() as running, running.raw() as client:
        client.call(1)
        for byte in grpc_frame(b"slowly"):
            client.send(frame(DATA, 0, 1, bytes([byte])))
            await client.writer.drain()
            await asyncio.sleep(0)
        client.send(frame(DATA, END_STREAM, 1))
        assert await client.message(1) == b"slowly"


@on_the_loop
async def test_calls_beyond_the_limit_are_refused_and_places_come_back():
    async with serving(max_streams=2) as running, running.raw() as client:
        for stream_id in (1, 3, 5):
            client.call(stream_id, "/t/Held", END_HEADERS | END_STREAM)
        assert await client.next(RESET) == (0, struct.pack(">I", 7))
        client.send(frame(RESET, 0, 1, struct.pack(">I", 8)))
        await client.settled()
        client.call(7, "/t/Echo")
        client.send(frame(DATA, END_STREAM, 7, grpc_frame(b"now")))
        assert await client.message(7) == b"now"
        running.service.gate.set()


# Ends of calls in every phase


PHASES = {
    "before the message": ("/t/Echo", b""),
    "amid the prefix": ("/t/Echo", grpc_frame(b"message")[:3]),
    "amid the message": ("/t/Echo", grpc_frame(bytes(MIB))[:1000]),
    "in the method": ("/t/Held", grpc_frame(b"message")),
    "amid a stream": ("/t/Each", grpc_frame(b"message")),
    "while the reply waits": ("/t/Long", grpc_frame(b"message")),
    "while a stream waits": ("/t/Endless", b""),
}


@pytest.mark.parametrize("way", ["reset", "leave"])
@pytest.mark.parametrize(("path", "body"), PHASES.values(), ids=PHASES)
@on_the_loop
async def test_a_call_is_over_when_its_caller_cancels_or_leaves(path, body, way):
    async with serving() as running, running.raw(b"") as client:
        client.call(1, path)
        client.send(frame(DATA, 0, 1, body))
        await running.service.began.acquire()
        await asyncio.sleep(0.02)  # until the phase is reached; whether it is changes no outcome
        assert not running.service.contexts[0].done()
        client.send(frame(RESET, 0, 1, struct.pack(">I", 8))) if way == "reset" else client.leave()
        await running.service.all_ended()
        running.service.ended.release()
        if way == "reset":
            client.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MIB)))
            client.call(3)
            client.send(frame(DATA, END_STREAM, 3, grpc_frame(b"next")))
            assert await client.message(3) == b"next"


@pytest.mark.parametrize(("path", "body"), PHASES.values(), ids=PHASES)
@on_the_loop
async def test_a_call_is_over_at_its_deadline(path, body):
    """With a status, or reset once its reply has begun to leave."""
    async with serving() as running, running.raw(b"") as client:
        client.call(1, path, grpc_timeout="100m")
        client.send(frame(DATA, 0, 1, body))
        await running.service.began.acquire()
        await running.service.all_ended()
        running.service.ended.release()
        if path == "/t/Long":
            assert await client.next(RESET, 1) == (0, struct.pack(">I", 8))


@on_the_loop
async def test_a_call_that_is_reset_along_with_its_headers_never_begins():
    async with serving() as running, running.raw() as client:
        client.send(
            frame(HEADERS, END_HEADERS, 1, call_block("/t/Echo", {})),
            frame(RESET, 0, 1, struct.pack(">I", 8)),
            frame(PING, 0, 0, bytes(8)),
        )
        assert await client.next(PING) == (ACK, bytes(8))
        assert running.service.contexts == []


@on_the_loop
async def test_a_deadline_has_its_status_for_grpcio():
    async with serving() as running, running.channel() as channel:
        with pytest.raises(grpc.RpcError) as error:
            await channel.call("/t/Held", b"", timeout=0.1)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


# Clients that do not read


@on_the_loop
async def test_replies_that_nobody_reads_stay_in_their_calls():
    """A turn of them at most is handed to the system."""
    async with serving(max_streams=20) as running, running.raw() as client:
        client.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
        client.writer.transport.pause_reading()
        for stream_id in range(1, 41, 2):
            client.call(stream_id, "/t/Long", END_HEADERS | END_STREAM)
        for _ in range(20):
            await running.service.began.acquire()
        await asyncio.sleep(0.1)
        [connection] = running.connections
        waiting = connection._transport.get_write_buffer_size()
        assert UNSENT_BYTES < waiting < TURN_BYTES + UNSENT_BYTES
        assert sum(context.done() for context in running.service.contexts) <= 2
        client.writer.transport.resume_reading()
        got = 0
        while got < 20 * (8 * MIB + 5):
            _, payload = await client.next(DATA)
            got += len(payload)


@on_the_loop
async def test_a_stream_that_nobody_reads_is_not_written_on():
    async with serving() as running, running.raw(b"") as client:
        client.call(1, "/t/Endless")
        await running.service.began.acquire()
        await asyncio.sleep(0.05)
        assert running.service.written == 0
        client.send(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", MIB)))
        client.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MIB)))
        await until(lambda: running.service.written)
        assert running.service.written == 1


@on_the_loop
async def test_pings_whose_answers_nobody_reads_end_the_connection():
    async with serving() as running, running.raw() as client:
        await client.settled()
        client.writer.transport.pause_reading()
        with contextlib.suppress(ConnectionError):
            while running.connections:
                client.send(frame(PING, 0, 0, bytes(8)) * 10_000)
                await client.writer.drain()
        await running.idle()


# Ends of connections


@on_the_loop
async def test_a_connection_ends_at_its_age_after_its_last_call():
    async with serving(connection_age_s=0.1) as running, running.raw() as client:
        client.call(1, "/t/Held")
        client.send(frame(DATA, END_STREAM, 1, grpc_frame(b"late")))
        assert await client.next(GOAWAY) == (0, struct.pack(">II", 2**31 - 1, 0))
        assert await client.next(GOAWAY) == (0, struct.pack(">II", 1, 0))
        running.service.gate.set()
        assert await client.message(1) == b"late"
        await client.ended()


@on_the_loop
async def test_a_connection_ends_at_its_age_whether_its_client_answers_or_not():
    async with serving(connection_age_s=0.05) as running:
        running.server._shared.handshake_s = 0.1
        async with running.raw() as client:
            await client.ended()
            await running.idle()


@on_the_loop
async def test_calls_go_on_while_connections_age():
    async with serving(connection_age_s=0.02) as running, running.channel() as channel:
        for number in range(300):
            message = bytes([number % 256]) * 1000
            assert await channel.call("/t/Echo", message, wait_for_ready=True) == message
            await asyncio.sleep(0.001)


@on_the_loop
async def test_a_server_that_stops_ends_the_calls_under_way():
    async with serving() as running, running.channel() as channel:
        calls = [asyncio.create_task(channel.call("/t/Held", b"x")) for _ in range(4)]
        for _ in calls:
            await running.service.began.acquire()
        await running.server.stop()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {error.code() for error in found} == {grpc.StatusCode.UNAVAILABLE}


STRANGERS = {
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "noise": bytes(range(256)) * 100,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "no settings": PREFACE + frame(PING, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS)
@on_the_loop
async def test_strangers_are_cut_off(data):
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            while await reader.read(MIB):
                pass
        writer.close()


@pytest.mark.parametrize("data", [b"", PREFACE[:10], PREFACE, PREFACE + bytes(5)])
@on_the_loop
async def test_who_does_not_introduce_himself_in_time_is_cut_off(data):
    async with serving() as running:
        running.server._shared.handshake_s = 0.05
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            while await reader.read(MIB):
                pass
        writer.close()


@on_the_loop
async def test_connections_that_are_gone_at_once_leave_nothing():
    async with serving() as running:
        for number in range(200):
            with socket.create_connection(("127.0.0.1", running.port)) as one:
                if number % 2:
                    one.sendall(PREFACE)
                # Closed with a reset, as by probes.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with running.channel() as channel:
            assert await channel.call("/t/Echo", b"still") == b"still"


# Addresses and TLS


@on_the_loop
async def test_ipv6_is_served():
    async with serving(socket.AF_INET6, ("::1", 0)) as running:
        async with running.channel(f"[::1]:{running.port}") as channel:
            assert await channel.call("/t/Echo", b"six") == b"six"
        assert running.service.contexts[0].peer.startswith("ipv6:[::1]:")


@on_the_loop
async def test_unix_sockets_are_served(tmp_path):
    path = str(tmp_path / "socket")
    async with serving(socket.AF_UNIX, path) as running:
        async with running.channel(f"unix:{path}") as channel:
            assert await channel.call("/t/Echo", bytes(3 * MIB)) == bytes(3 * MIB)
        assert running.service.contexts[0].peer == "unix:"


class Tls:
    """Certificates of a server, and what its clients need."""

    def __init__(self, folder):
        self.authority = Authority(folder, "authority")
        self.renew()

    def renew(self, authority=None):
        certificate, key = (authority or self.authority).issue("server")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_alpn_protocols(["h2"])
        self.context.load_cert_chain(certificate, key)
        self.context.load_verify_locations(self.authority.ca)
        self.context.verify_mode = ssl.CERT_OPTIONAL

    def credentials(self, ca=None, name=None):
        chain, key = (None, None) if name is None else self.authority.issue(name)
        return grpc.ssl_channel_credentials(
            (ca or self.authority.ca).read_bytes(),
            key and key.read_bytes(),
            chain and chain.read_bytes(),
        )


@pytest.mark.parametrize("name", [None, "alice"])
@on_the_loop
async def test_calls_by_tls_have_the_name_in_their_certificate(name, tmp_path):
    tls = Tls(tmp_path)
    async with serving(secure=lambda: tls.context) as running:
        target, credentials = f"localhost:{running.port}", tls.credentials(name=name)
        async with running.channel(target, credentials) as channel:
            assert await channel.call("/t/Echo", bytes(5 * MIB)) == bytes(5 * MIB)
        assert running.service.contexts[0].certified_name == (name or "")


@on_the_loop
async def test_new_connections_get_renewed_certificates(tmp_path):
    """Those that are open go on."""
    tls, other = Tls(tmp_path), Authority(tmp_path, "other")
    async with serving(secure=lambda: tls.context) as running:
        target = f"localhost:{running.port}"
        async with running.channel(target, tls.credentials()) as first:
            assert await first.call("/t/Echo", b"1") == b"1"
            tls.renew(other)
            async with running.channel(target, tls.credentials(other.ca)) as second:
                assert await second.call("/t/Echo", b"2") == b"2"
            assert await first.call("/t/Echo", b"3") == b"3"


@pytest.mark.parametrize("data", [PREFACE, b"noise" * 100, b"\x16\x03\x01"])
@on_the_loop
async def test_who_speaks_no_tls_is_cut_off_or_leaves(data, tmp_path):
    tls = Tls(tmp_path)
    async with serving(secure=lambda: tls.context) as running:
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(data)
            await writer.drain()
            writer.close()
        async with running.channel(f"localhost:{running.port}", tls.credentials()) as channel:
            assert await channel.call("/t/Echo", b"next") == b"next"


@on_the_loop
async def test_a_handshake_that_stalls_ends_with_the_server(tmp_path):
    tls = Tls(tmp_path)
    async with serving(secure=lambda: tls.context) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"\x16\x03\x01")
        await until(lambda: len(running.server._tasks) == 2)
        await running.server.stop()
        assert await reader.read() == b""
        writer.close()
