"""Addresses to listen on: their resolution, and the reason when one cannot be bound."""

from __future__ import annotations

import asyncio
import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stn_server.config import (
    ConfigError,
    is_unix,
    socket_path,
    split_address,
    split_replica_address,
)

BindTcp = Callable[[socket.AddressFamily, Any], int]
"""Binds an address in numbers, as `socket.bind` takes it, and returns its port; raises OSError if
it cannot."""

NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of addresses that this machine does not have, as ::1 where IPv6 is switched off."""

TCP_REASONS = {
    errno.EADDRINUSE: "expected a free address, got {}, which is taken. Choose another port.",
    errno.EACCES: "expected a port that this user may take, got {}. Choose one above 1023.",
    errno.EADDRNOTAVAIL: "expected an address of this machine, got {}. 0.0.0.0 are all of them.",
    errno.EAFNOSUPPORT: "expected an address of a kind that this machine has, got {}.",
    errno.EINVAL: "expected the interface behind a link-local address, as [fe80::1%eth0]:50051, "
    "got {}.",
}
UNIX_REASONS = {
    errno.ENOENT: "expected a folder for {}, got none. Create it.",
    errno.ENOTDIR: "expected a folder for {}, got a file in its place.",
    errno.EACCES: "expected a folder that this user may write to for {}, got no permission.",
    errno.EPERM: "expected nothing of another user at {}, got a socket. Remove it.",
    errno.EROFS: "expected a folder that can be written to for {}, got a read-only file system.",
}

ELSEWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}
"""The address that no machine has, by the version of IP (RFC 5737, RFC 3849)."""


async def listen_tcp(name: str, address: str, bind: BindTcp) -> int:
    """Binds all addresses that a host name stands for; returns their port.

    Those of a kind that this machine does not have are left out if another one can be taken.

    Args:
        name: The name of the setting.
        address: host:port.
        bind: Takes one address.

    Raises:
        ConfigError: An address cannot be taken.
    """
    host, port = split_address(name, address)
    found = await _resolved(name, address, host.strip("[]"), port)
    missing: dict[str, OSError] = {}
    bound = False
    for family, numeric in found:
        brackets = "[{}]" if family == socket.AF_INET6 else "{}"
        one = f"{brackets.format(numeric)}:{port}"
        try:
            flags = socket.AI_NUMERICHOST
            (*_, to), *_ = socket.getaddrinfo(numeric, port, family, socket.SOCK_STREAM, 0, flags)
            port = bind(family, to)  # with the number of its interface
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise _refused(name, TCP_REASONS, _shown(one, address), error) from error
            missing[one] = error
        else:
            bound = True
    if not bound:
        one, reason = missing.popitem()
        raise _refused(name, TCP_REASONS, _shown(one, address), reason)
    return port


def listen_unix(
    name: str, address: str, mode: int | None, bind: Callable[[], None], group: str = ""
) -> None:
    """Binds the path of a socket; replaces a socket on which no process listens any more.

    Args:
        name: The name of the setting.
        address: unix:/path.
        mode: Permissions of the socket; None: as the process makes files.
        bind: Takes the path, on which nothing is by then; raises OSError if it cannot.
        group: The group of the socket, by name or number; empty: that of the process.

    Raises:
        ConfigError: The path cannot be taken, or not be given to the group.
    """
    path = Path(socket_path(address))
    number = _group_number(name, group)
    try:
        kind = path.stat().st_mode
    except OSError:
        kind = stat.S_IFSOCK  # nothing yet
    if not stat.S_ISSOCK(kind):
        expected = f"expected a socket or nothing at {path}"
        raise ConfigError(f"{name}: {expected}, got another file. Move it, or choose another path.")
    if _answers(path):
        raise ConfigError(f"{name}: expected a free address, got {address}, which answers.")
    with _creating(mode if number is None else 0o600):  # until it is the group's
        try:
            path.unlink(missing_ok=True)
            bind()
        except OSError as error:
            raise _refused(name, UNIX_REASONS, address, error) from error
    if number is not None:
        _give(name, path, group, number, mode)


def replica_address(setting: str, targets: Iterable[str]) -> str:
    """Returns where callers reach this very server among its replicas.

    Args:
        setting: IP address, with or without a port; empty: that on which the server listens.
        targets: Addresses on which it listens, with their ports.

    Returns:
        ADDRESS:PORT or [ADDRESS]:PORT, in numbers; empty if there is none.
    """
    listening = next((one for one in targets if not is_unix(one)), "")
    host, port = split_replica_address(setting) if setting else ("", 0)
    if listening:
        here, of_listen = split_address("listen", listening)
        host, port = host or here.strip("[]"), port or of_listen
    try:
        numeric = ipaddress.ip_address(host)
        if numeric.is_unspecified:
            numeric = ipaddress.ip_address(_way_out(numeric.version))
    except ValueError:  # a name, which may stand for others, too, or a machine without a network
        return ""
    if not port:
        return ""
    return f"[{numeric}]:{port}" if numeric.version == 6 else f"{numeric}:{port}"


def _way_out(version: int) -> str:
    """Returns the address from which this machine calls others; empty if it cannot."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as unused:
            unused.connect((ELSEWHERE[version], 9))  # of datagrams: nothing is sent
            found: str = unused.getsockname()[0]
    except OSError:  # without a route, or without this version of IP
        return ""
    return found


def _group_number(name: str, group: str) -> int | None:
    """Returns the number of a group; None if none is asked for."""
    if not group:
        return None
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        expected = "expected a group of this system, by name or number"
        raise ConfigError(f"{name}: {expected}, got {group!r}.") from None


def _give(name: str, path: Path, group: str, number: int, mode: int | None) -> None:
    """Gives a socket to a group, and only then lets the group connect."""
    try:
        os.chown(path, -1, number)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{name}: expected a group that this user is in, got {group!r}. Add the user to it, or "
            "choose another one."
        ) from error
    path.chmod(0o660 if mode is None else mode)


async def _resolved(
    name: str, address: str, host: str, port: int
) -> list[tuple[socket.AddressFamily, str]]:
    """Returns the addresses that a host name stands for, each once."""
    loop = asyncio.get_running_loop()
    everywhere = "0.0.0.0 are all addresses of this machine."
    expected = f"{name}: expected a host that can be found, got {address}"
    if host == "*":  # the C library takes it for the loopback interface
        raise ConfigError(f"{name}: expected a host, got {address}. {everywhere}")
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: no name at all
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            raise ConfigError(
                f"{expected}, and no answer from the name service. Try again, or give numbers."
            ) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{expected}: {reason}. {everywhere}") from error
    _, percent, interface = host.partition("%")  # of link-local addresses, which are found without
    return list(
        dict.fromkeys((family, f"{to[0]}{percent}{interface}") for family, _, _, _, to in found)
    )


def _answers(path: Path) -> bool:
    """Returns whether a server listens on a socket; binding would silently replace it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(str(path))
    return found in {0, errno.EAGAIN}  # EAGAIN: so many wait there that one more would have to


@contextmanager
def _creating(mode: int | None) -> Iterator[None]:
    """Makes files within the context have these permissions from their creation on."""
    before = os.umask(0o777 & ~mode) if mode is not None else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def _shown(one: str, address: str) -> str:
    return one if one == address else f"{one} of {address}"


def _refused(name: str, reasons: dict[int, str], address: str, error: OSError) -> ConfigError:
    known = reasons.get(error.errno or 0)
    if known is None:
        return ConfigError(f"{name}: expected {address} to be free, got {error.strerror}.")
    return ConfigError(f"{name}: {known.format(address)}")
