"""How a client trusts a server, and how it says who it is."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

Token: TypeAlias = str | Callable[[], str]
"""What a server knows a caller by, or a function that says what it is at present."""

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A connection that nobody overhears, to a server that proves its name.

    Attributes:
        ca: PEM file of the authorities to trust; None: those that gRPC brings along.
        certificate: PEM file of one's own certificate, for servers that ask for it (mTLS).
        key: PEM file of its private key.
        server_name: The name that the server has to prove; None: that of the target.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            lacking = "key" if self.key is None else "certificate"
            raise ValueError(f"{lacking}: expected a file beside the other one, got none.")

    def credentials(self) -> grpc.ChannelCredentials:
        """What a channel needs, with the contents that the files have now.

        Raises:
            ValueError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            _contents("ca", self.ca),
            _contents("key", self.key),
            _contents("certificate", self.certificate),
        )


class Access:
    """What a client knows about the way to its server.

    Args:
        target: gRPC target.
        tls: None: bytes travel as they are.
        token: Sent with every call.
        allow_plaintext_token: Whether the token may be sent where it can be overheard.

    Raises:
        ValueError: A file cannot be read, or the token cannot be sent, or not safely.
    """

    def __init__(
        self, target: str, tls: Tls | None, token: Token | None, *, allow_plaintext_token: bool
    ) -> None:
        self.credentials = None if tls is None else tls.credentials()
        name = None if tls is None else tls.server_name
        self.options = () if name is None else (("grpc.ssl_target_name_override", name),)
        safe = tls is not None or allow_plaintext_token or _stays_here(target)
        if token is not None and not safe:
            raise ValueError(
                f"token: expected TLS, a unix socket or loopback, got {target}, where it can "
                "be overheard. Pass tls=Tls(...), or allow_plaintext_token=True."
            )
        self.metadata = _metadata_of(token)
        """Asked for what the next attempt says of its caller; raises ValueError as above."""


def _metadata_of(token: Token | None) -> Callable[[], Metadata]:
    """Made once, or for every attempt anew if the token may be another."""
    if callable(token):
        return lambda: _bearer(token())
    known = () if token is None else _bearer(token)
    return lambda: known


def _bearer(token: str) -> Metadata:
    if not _VISIBLE.fullmatch(token):
        raise ValueError("token: expected visible ASCII characters, got others or none.")
    return (("authorization", f"Bearer {token}"),)


def _contents(name: str, path: Path | str | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: expected a readable file, got {error}.") from error


def _stays_here(target: str) -> bool:
    """Whether what is sent to a target never leaves this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    endpoint = target.rpartition("/")[2] if target.startswith("dns:") else target
    addresses = endpoint.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:")
    return all(map(_is_loopback, addresses.split(",")))


def _is_loopback(address: str) -> bool:
    """Whether host, host:port or [host]:port is this machine."""
    host = address.rpartition(":")[0] if address.count(":") == 1 else address
    host = host.partition("]")[0].removeprefix("[")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
