"""Arguments of clients and policies, checked when they are given."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from numbers import Integral, Real
from urllib.parse import unquote

from stn_client._errors import invalid

_SCHEMES = ("dns", "unix", "unix-abstract", "ipv4", "ipv6", "vsock", "xds", "google-c2p")
"""Schemes of targets that gRPC resolves."""

_ENDPOINT = re.compile(
    r"(\[[0-9A-Fa-f:.]+(%[^\s\]]+)?\]|[^\s:/@\[\]]+)(:(?P<port>[0-9]{1,5}))?|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,}"
)
"""host, host:port, [address]:port or a bare IPv6 address."""


_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE = re.compile(r"[ -~]*")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Request ids that the server takes for its log."""

_TAKEN = {
    "authorization": "Give the client a token.",
    "x-request-id": "Use request_id.",
    **dict.fromkeys(
        (
            *("connection", "content-length", "content-type", "host", "keep-alive"),
            *("proxy-connection", "te", "transfer-encoding", "upgrade", "user-agent"),
        ),
        "It is one of HTTP, which gRPC sends itself or does not allow.",
    ),
}
"""Metadata that have a way of their own, and which."""

_MAX_METADATA_BYTES = 6 * 1024
"""Servers of gRPC take 8 KiB by default; the rest is for the token and what gRPC sends itself."""

_ENTRY_BYTES = 32
"""What HTTP/2 counts for an entry, beside its name and its value."""


FOREVER_S = 1e9
"""A timeout of so long is treated as none; clocks of gRPC end somewhere beyond."""


def check_target(target: object) -> str:
    """Checks that a target is one that gRPC accepts.

    Raises:
        InvalidRequestError: It is none.
    """
    if not isinstance(target, str) or not _is_target(target):
        raise invalid(
            "target",
            'expected "host:port", "unix:/path" or "dns:///name:port" with a port from 1 to 65535, '
            f"got {target!r}.",
        )
    return target


def _is_target(target: str) -> bool:
    scheme, colon, rest = target.partition(":")
    if not colon or scheme not in _SCHEMES or rest.isdigit():
        return _is_endpoint(target)
    if scheme == "dns":
        return _is_endpoint(unquote(rest.rpartition("/")[2]))
    if scheme in {"ipv4", "ipv6"}:
        return all(_is_address(scheme, unquote(one)) for one in rest.lstrip("/").split(","))
    return bool(rest.strip("/")) and rest.isprintable()


def _is_endpoint(text: str) -> bool:
    found = _ENDPOINT.fullmatch(text)
    return found is not None and 0 < int(found["port"] or 1) < 2**16


def _is_address(scheme: str, text: str) -> bool:
    """Returns whether a target is address:port or [address]:port, in numbers."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        known = ipaddress.ip_address(bare)
    except ValueError:
        return False
    bracketed = (scheme == "ipv6") == (bare != host)
    return bracketed and scheme == f"ipv{known.version}" and port.isdigit() and _is_endpoint(text)


def check_seconds(name: str, value: object) -> None:
    """Checks a duration: a number of at least 0, infinity included.

    Raises:
        InvalidRequestError: It is none.
    """
    if not as_float(name, value, "a number of seconds") >= 0:
        raise invalid(name, f"expected at least 0, got {value}.")


def as_float(name: str, value: object, what: str = "a number") -> float:
    """Returns a number of any type as a float.

    Raises:
        InvalidRequestError: It is none, or larger than floats are.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise invalid(name, f"expected {what}, got {value!r}.")
    try:
        return float(value)
    except OverflowError:
        raise invalid(name, "expected a number that fits a float, got a larger one.") from None


def check_count(name: str, value: object) -> None:
    """Checks a count: a whole number of at least 1.

    Raises:
        InvalidRequestError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise invalid(name, f"expected a whole number, got {value!r}.")
    if value < 1:
        raise invalid(name, f"expected at least 1, got {value}.")


def checked_timeout_s(value: object) -> float | None:
    """Returns a timeout above 0; None for no limit, and for more than clocks can hold.

    Raises:
        InvalidRequestError: It is none.
    """
    if value is None:
        return None
    check_seconds("timeout_s", value)
    duration_s = float(value)  # type: ignore[arg-type]  # it is a number
    if duration_s == 0:
        raise invalid("timeout_s", "expected more than 0, or None for no limit, got 0.")
    return None if duration_s >= FOREVER_S else duration_s


def checked_metadata(value: object) -> tuple[tuple[str, str], ...]:
    """Returns a caller's metadata as pairs.

    Raises:
        InvalidRequestError: It cannot be sent, or has an option of its own.
    """
    if not isinstance(value, Mapping):
        raise invalid("metadata", f"expected a dict of texts, got {value!r}.")
    for name, text in value.items():
        if not isinstance(name, str) or not _METADATA_NAME.fullmatch(name):
            expected = 'expected names of lower-case letters, digits, "_", "." and "-"'
            raise invalid("metadata", f"{expected}, got {name!r}.")
        if name.startswith("grpc-") or name.endswith("-bin"):
            expected = 'expected no names that begin with "grpc-" or end with "-bin"'
            raise invalid("metadata", f"{expected}, got {name!r}.")
        if name in _TAKEN:
            raise invalid("metadata", f"expected other names, got {name!r}. {_TAKEN[name]}")
        if not isinstance(text, str) or not _METADATA_VALUE.fullmatch(text):
            expected = f"expected printable ASCII text for {name!r}"
            raise invalid("metadata", f"{expected}, got {text!r}.")
    size_bytes = sum(len(name) + len(text) + _ENTRY_BYTES for name, text in value.items())
    if size_bytes > _MAX_METADATA_BYTES:
        counted = f"{_MAX_METADATA_BYTES} bytes, {_ENTRY_BYTES} for each entry among them"
        raise invalid("metadata", f"expected at most {counted}, got {size_bytes}.")
    return tuple(value.items())


def checked_request_id(value: object) -> str | None:
    """Returns a request id; None if the client is to choose one.

    Raises:
        InvalidRequestError: The server would not take it.
    """
    if value is not None and not (isinstance(value, str) and _REQUEST_ID.fullmatch(value)):
        expected = 'expected up to 64 letters, digits, "_", "." and "-"'
        raise invalid("request_id", f"{expected}, got {value!r}.")
    return value
