"""A name server on the loopback interface, for targets `dns://SERVER/NAME:PORT`."""

from __future__ import annotations

import socket
import struct
import threading

ADDRESS_RECORD = 1
AUTHORITATIVE_ANSWER = 0x8580


class NameServer:
    """Answers every question for IPv4 addresses with `addresses`. A context manager."""

    def __init__(self, *addresses):
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def target(self, port):
        """A gRPC target that resolves to the addresses."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/stn.test:{port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self._socket.sendto(b"", self._socket.getsockname())  # an empty question ends it
        self._thread.join()
        self._socket.close()

    def _serve(self):
        while (received := self._socket.recvfrom(512))[0]:
            message, asker = received
            self._socket.sendto(self._answer(message), asker)

    def _answer(self, message):
        """A header, the question again, and a record for every address."""
        end = message.index(b"\0", 12) + 5  # the name, a zero, its type and class
        (kind,) = struct.unpack("!H", message[end - 4 : end - 2])
        addresses = self.addresses if kind == ADDRESS_RECORD else ()
        counts = struct.pack("!HHHHH", AUTHORITATIVE_ANSWER, 1, len(addresses), 0, 0)
        records = (
            struct.pack("!HHHIH", 0xC00C, ADDRESS_RECORD, 1, 0, 4) + socket.inet_aton(address)
            for address in addresses
        )
        return message[:2] + counts + message[12:end] + b"".join(records)
