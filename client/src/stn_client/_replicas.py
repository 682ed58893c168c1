"""Which replicas behind a target a client calls directly.

Where a tensor stays is told in a reply, and a reply is no reason to send a token or a tensor to a
host: a server that names a wrong address, its own of another network or one that is somebody
else's by now, would have them sent there. So only addresses count that the target itself stands
for: those that it lists, or those that the system has for its name. Calls go to them anyway, in
turns. TLS comes on top: a replica has to prove the name of the target.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

LOOK_UP_S = 1.0
"""The longest that a call waits for the addresses of a name; what comes later counts for others."""

LOOK_UP_PAUSE_S = 5.0
"""The pause between two questions for the addresses of a name, as gRPC's own."""

DEFAULT_PORT = 443
"""That of gRPC for names without one."""


class Replicas:
    """The addresses that a target stands for.

    Args:
        target: gRPC target.
        resolve: As `socket.getaddrinfo`.

    Attributes:
        authority: What a replica has to be called as, and with TLS has to prove; empty: as it is.

    Concurrency: thread-safe.
    """

    def __init__(self, target: str, resolve: Callable[..., Any] = socket.getaddrinfo) -> None:
        self.authority = ""
        self._resolve = resolve
        self._known: frozenset[str] = frozenset()
        self._host, self._port = "", DEFAULT_PORT
        self._next_s = 0.0
        self._looking: threading.Thread | None = None
        self._lock = threading.Lock()
        scheme, _, rest = target.partition(":")
        if scheme in {"ipv4", "ipv6"}:
            listed = (unquote(one).rpartition(":") for one in rest.lstrip("/").split(","))
            self._known = _addresses((host.strip("[]"), int(port)) for host, _, port in listed)
        elif scheme == "dns" and (path := _path_of(rest)):
            self.authority = unquote(path)
            self._host, self._port = _split(self.authority)

    def reached(self, address: str) -> str:
        """Returns an address that a reply told if calls may go there; else nothing: to the target.

        A reply could name any host, and calls bring the caller's token along: so they go only where
        the target itself leads.

        Args:
            address: ADDRESS:PORT or [ADDRESS]:PORT, in numbers.
        """
        return address if address in self._known else ""

    def is_due(self, address: str) -> bool:
        """Returns whether `look_up` may find an address that is not known yet."""
        return bool(self._host) and address not in self._known and self._next_s <= time.monotonic()

    def look_up(self, timeout_s: float | None) -> None:
        """Asks for the addresses of the name; blocks until they are there, or for the timeout."""
        with self._lock:
            if self._looking is None or not self._looking.is_alive():
                self._looking = threading.Thread(target=self._look_up, daemon=True)
                self._looking.start()
            looking = self._looking
        # In a thread, as the system may take longer than the call has time, and cannot be told.
        looking.join(LOOK_UP_S if timeout_s is None else min(timeout_s, LOOK_UP_S))

    def _look_up(self) -> None:
        try:
            found = self._resolve(self._host, self._port, type=socket.SOCK_STREAM)
            self._known = _addresses(one[4][:2] for one in found)
        except (OSError, UnicodeError):
            pass  # what was known still is
        finally:
            self._next_s = time.monotonic() + LOOK_UP_PAUSE_S


def _addresses(endpoints: Iterable[tuple[str, int]]) -> frozenset[str]:
    """Returns endpoints as servers write them."""
    known = set()
    for host, port in endpoints:
        numeric = ipaddress.ip_address(host.partition("%")[0])
        known.add(f"[{numeric}]:{port}" if numeric.version == 6 else f"{numeric}:{port}")
    return frozenset(known)


def _path_of(rest: str) -> str:
    """Returns the path of a target of DNS; empty if it names a name server of its own.

    The system cannot be made to ask that one, and others may know another host by the name.
    """
    if not rest.startswith("//"):
        return rest
    server, _, path = rest[2:].partition("/")
    return "" if server else path


def _split(endpoint: str) -> tuple[str, int]:
    """Returns host and port of host, host:port, [address]:port or a bare address of IPv6."""
    host, colon, port = endpoint.rpartition(":")
    is_bare = not colon or (":" in host and not host.endswith("]")) or endpoint.endswith("]")
    return (endpoint.strip("[]"), DEFAULT_PORT) if is_bare else (host.strip("[]"), int(port))
