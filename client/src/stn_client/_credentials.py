"""How a client trusts a server, and how it says who it is."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from stn_client._errors import invalid

Token: TypeAlias = str | Callable[[], str]
"""What a server knows a caller by, or a function that says what it is at present."""

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_VISIBLE = re.compile(r"[!-~]+")

_NOT_CONNECTED = ("failed to connect to all addresses", "connections to all backends failing")
"""Beginning of gRPC's message about a connection that was never made."""

_UNKNOWN_CALLER = "authorization: expected a bearer token of this server, got none"
"""Beginning of a server's message about a call of somebody whom it does not know."""

_ADVICE_PLAIN = {
    "Connection refused": "Nobody listens there: start stn-server, or say host and port of one.",
    ":443: ": "443 is the port of targets without one: say host:port, as localhost:50051.",
    "Socket closed": "The server may want TLS: pass tls=Tls(...), or stn --tls.",
    "Connection reset": "The server may want TLS: pass tls=Tls(...), or stn --tls.",
}
_ADVICE_TLS = {
    "Connection refused": _ADVICE_PLAIN["Connection refused"],
    "WRONG_VERSION_NUMBER": "The server may speak no TLS: leave out tls, or stn --tls.",
    "CERTIFICATE_VERIFY_FAILED": "Pass Tls(ca=...), or stn --tls-ca: the authority that signed the "
    "server's certificate.",
    "Hostname Verification": "Pass Tls(server_name=...), or stn --tls-server-name: a name in the "
    "server's certificate.",
    "Socket closed": "The server may want another certificate of its callers: pass "
    "Tls(certificate=..., key=...), or stn --tls-certificate and --tls-key.",
}
"""What to do, by what is said of the connection: all that can be known from this end."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Settings of an encrypted connection to a server that proves its name.

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
            given, lacking = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise invalid(lacking, f"expected a file beside that of {given}, got none.")
        name = self.server_name
        if name is not None and not (isinstance(name, str) and _VISIBLE.fullmatch(name)):
            raise invalid("server_name", f"expected a host name, got {name!r}.")

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns the channel credentials, from the present contents of the files.

        Raises:
            InvalidRequestError: A file cannot be read, or is not what it should be.
        """
        ca, key = _contents("ca", self.ca), _contents("key", self.key)
        certificate = _contents("certificate", self.certificate)
        if self.ca is not None:
            _check_authorities(self.ca)
        if self.certificate is not None and self.key is not None:
            _check_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(ca, key, certificate)


class Access:
    """Target, credentials and metadata by which a client reaches its server.

    Args:
        target: gRPC target.
        tls: None: bytes travel as they are.
        token: Sent with every call.
        allow_plaintext_token: Whether the token may be sent where it can be overheard.
        proxy: Whether to go through the HTTP proxy that the environment names, if it names one
            for the target; None: unless the target is on this machine.

    Raises:
        InvalidRequestError: A file cannot be read or holds something else, or the token cannot be
            sent, or not safely.
    """

    def __init__(
        self,
        target: str,
        tls: Tls | None,
        token: Token | None,
        *,
        allow_plaintext_token: bool = False,
        proxy: bool | None = None,
    ) -> None:
        if not isinstance(tls, Tls | None):
            raise invalid("tls", f"expected a Tls, got {tls!r}.")
        for flag, value in (("allow_plaintext_token", allow_plaintext_token), ("proxy", proxy)):
            if not isinstance(value, bool | None):
                raise invalid(flag, f"expected True or False, got {value!r}.")
        here = stays_here(target)
        self.credentials = None if tls is None else tls.credentials()
        self.options: tuple[tuple[str, Any], ...] = ()
        if tls is not None and tls.server_name is not None:
            self.options += (("grpc.ssl_target_name_override", tls.server_name),)
        if not (not stays_here(target, unspecified=True) if proxy is None else proxy):
            self.options += (("grpc.enable_http_proxy", 0),)
        if token is not None and not (tls is not None or allow_plaintext_token or here):
            raise invalid(
                "token",
                f"expected TLS, a unix socket or loopback, got {target}, where it can be "
                "overheard. Pass tls=Tls(...), or allow_plaintext_token=True.",
            )
        self.metadata = _metadata_of(token)
        """Asked for what the next attempt says of its caller; raises InvalidRequestError."""

    def explained(self, details: str) -> str:
        """Returns the words on a failure, with a remedy if TLS or a token may be the cause."""
        if details.startswith(_UNKNOWN_CALLER):
            return (
                f"{details} Pass token=..., or stn --token-file: what the server's owner gave you."
            )
        if not details.startswith(_NOT_CONNECTED):
            return details
        advice = _ADVICE_PLAIN if self.credentials is None else _ADVICE_TLS
        found = [hint for sign, hint in advice.items() if sign in details]
        return " ".join([f"{details.rstrip('.')}.", *found])


def _metadata_of(token: Token | None) -> Callable[[], Metadata]:
    """Returns a function that makes metadata, for every attempt anew if the token may change."""
    if callable(token):
        return lambda: _bearer(token())
    known = () if token is None else _bearer(token)
    return lambda: known


def _bearer(token: object) -> Metadata:
    if not isinstance(token, str):
        got = type(token).__name__  # never the secret itself
        raise invalid("token", f"expected text or a function that returns it, got {got}.")
    if not _VISIBLE.fullmatch(token):
        raise invalid("token", "expected visible ASCII characters, got others or none.")
    return (("authorization", f"Bearer {token}"),)


def _contents(name: str, path: Path | str | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise invalid(name, f"expected a readable file, got {error}.") from error


def _check_authorities(ca: Path | str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except ssl.SSLError as error:
        raise invalid("ca", f"expected certificates in PEM, got {error}.") from error


def _check_pair(certificate: Path | str, key: Path | str) -> None:
    def password() -> str:
        raise ValueError("a key with a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password)
    except (ssl.SSLError, ValueError) as error:
        expected = "expected the certificate and its key in PEM, without a password"
        raise invalid("certificate, key", f"{expected}, got {error}.") from error


def stays_here(target: str, *, unspecified: bool = False) -> bool:
    """Returns whether the traffic to a target stays on this machine.

    Args:
        target: gRPC target.
        unspecified: Whether 0.0.0.0 and [::] do, where a server that listens on every address says
            that it is: systems differ.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    endpoint = target.rpartition("/")[2] if target.startswith("dns:") else target
    addresses = endpoint.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:")
    return all(_is_here(address, unspecified=unspecified) for address in addresses.split(","))


def _is_here(address: str, *, unspecified: bool) -> bool:
    """Returns whether host, host:port or [host]:port is this machine."""
    host = address.rpartition(":")[0] if address.count(":") == 1 else address
    host = host.partition("]")[0].removeprefix("[")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or (unspecified and found.is_unspecified)
