"""A gRPC client of bare frames, which can do what libraries do not: send half of a message."""

from __future__ import annotations

import contextlib
import socket
import struct

DATA, HEADERS, RESET, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
STREAM = 1
FRAME_BYTES = 16_384


def call_block(path, changes):
    """The block of headers that makes a call, but for what is changed of them or added."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
        **changes,
    }
    return b"".join(literal(name, value) for name, value in headers.items())


class RawCall:
    """One call on a connection of its own.

    Args:
        target: "host:port".
        path: Of the method.
        metadata: Pairs of words of up to 126 characters.
    """

    def __init__(self, target, path, metadata=()):
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._received = b""
        self._room = {0: 65_535, STREAM: 0}
        """What may be sent: on the connection; on the stream, beyond its initial window."""
        self._initial = 65_535
        self.trailers = b""
        """The last headers that came, with the status in them, which no code hides."""
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        block = call_block(path, dict(metadata))
        self._socket.sendall(frame(HEADERS, END_HEADERS, STREAM, block))

    def send(self, announced_bytes, sent_bytes, patience_s):
        """Announces a message and sends zeros of it, as far as the server lets it.

        Returns:
            How many bytes were sent before the server took no more for a while.
        """
        left = struct.pack(">BI", 0, announced_bytes) + bytes(min(sent_bytes, FRAME_BYTES))
        sent = 0
        while sent < sent_bytes:
            room = min(self._room[0], self._initial + self._room[STREAM], FRAME_BYTES)
            if room <= 0:
                if not self._listen(patience_s):
                    break
                continue
            part = left[: min(room, sent_bytes - sent)]
            self._socket.sendall(frame(DATA, 0, STREAM, part))
            sent += len(part)
            for scope in self._room:
                self._room[scope] -= len(part)
            left = bytes(FRAME_BYTES)
        return sent

    def ended(self, patience_s):
        """Waits for the status; says whether it came."""
        while not self.trailers:
            if not self._listen(patience_s):
                return False
        return True

    def close(self):
        """Goes away without a word."""
        self._socket.close()

    def _listen(self, patience_s):
        """Reads what comes and heeds it; says whether anything did."""
        self._socket.settimeout(patience_s)
        chunk = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            chunk = self._socket.recv(65_536)
        self._received += chunk
        while len(self._received) >= 9 + (size := int.from_bytes(self._received[:3], "big")):
            kind, flags = self._received[3:5]
            stream = int.from_bytes(self._received[5:9], "big")
            self._heed(kind, flags, stream, self._received[9 : 9 + size])
            self._received = self._received[9 + size :]
        return bool(chunk)

    def _heed(self, kind, flags, stream, payload):
        if kind == WINDOW_UPDATE:
            self._room[stream] += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            self._initial = settings.get(INITIAL_WINDOW_SIZE, self._initial)
            self._socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == HEADERS and flags & END_STREAM:
            self.trailers = payload


def frame(kind, flags, stream, payload=b""):
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A header that goes into no table, without Huffman's code."""
    words = name.encode(), value.encode()
    return b"\0" + b"".join(bytes([len(word)]) + word for word in words)
