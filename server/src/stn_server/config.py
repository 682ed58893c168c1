"""Everything that can be configured: one frozen tree, validated at birth.

`settings.py` fills it from files, environment and flags, whose names follow from the field names.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

KIB = 1024
MIB = 1024 * KIB
MAX_MESSAGE_BYTES = 2**31 - 1
"""The most that gRPC itself accepts."""

MAX_STREAMS = 2**31 - 1
"""The most that HTTP/2 can express."""

MAX_PORT = 65535

MAX_PATH_BYTES = (108 if sys.platform == "linux" else 104) - 1
"""The longest path of a unix socket; the system needs a terminating zero after it."""

MAX_SOCKET_NAME_BYTES = 16
"""The longest name of a socket of the local transport within its folder, with the slash."""

MAX_THREADS = 1024
"""The most threads. More than cores that help; a process without room for all of them is ended."""

MAX_NUMBER = 2**63 - 1
"""The most that protobuf can express."""

UNIX = "unix:"

MIN_PAYLOADS = 3
"""How many payloads the gradients of one warp take."""

MIN_UPLOAD_S = 0.1
"""The least time for a message; with less, honest messages would be given up too."""

Reflection = Literal["listen", "admin_listen", "off"]
Tracing = Literal["off", "otlp"]
Plaintext = Literal["refuse", "allow"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "text"]


_MODE_FORM = re.compile(r"[0-7]{3,4}")
_EXPECTED_MODE = "expected three or four octal digits, as 0660"
_DEVICE_FORM = re.compile(r"auto|cpu|cuda:\d+(,cuda:\d+)*")


class ConfigError(ValueError):
    """A setting is unknown or has a value that it cannot have."""


def setting(default: Any, doc: str) -> Any:
    """Makes a field with a default and the sentence that documentation and `--help` show."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """Settings of how calls are grouped, and how many may be admitted."""

    max_batch_bytes: int = setting(256 * MIB, "Most bytes of operands and results in one batch.")
    max_batch_samples: int = setting(
        16 * MIB,
        "Most source points (one an output pixel) in one batch; fewer where one takes more reads "
        "than in a bilinear colour image.",
    )
    window_s: float = setting(
        0.0, "How long a free device waits for further calls to join a batch."
    )
    max_admitted_items: int = setting(
        1024,
        "Most calls at a time, from their arrival until their reply is sent; more are refused.",
    )
    max_admitted_bytes: int = setting(
        2048 * MIB, "Most bytes of their operands and results; more are refused."
    )
    stall_s: float = setting(120.0, "A batch that runs for longer means that the device is lost.")

    def __post_init__(self) -> None:
        for name in (
            "max_batch_bytes",
            "max_batch_samples",
            "max_admitted_items",
            "max_admitted_bytes",
        ):
            _at_least(self, name, 1)
        _at_least(self, "window_s", 0)
        _at_least(self, "stall_s", 1)


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of a single call."""

    max_message_bytes: int = setting(256 * MIB, "Most bytes of a request.")
    max_payloads: int = setting(16, "Most tensors of a request.")
    max_envelope_bytes: int = setting(
        256 * KIB,
        "Most bytes of a request without its tensors; the longest part is one fill per channel.",
    )
    max_output_bytes: int = setting(
        256 * MIB, "Most bytes of the results of a call and the basis of its spline."
    )
    max_output_samples: int = setting(
        16 * MIB, "Most source points (one an output pixel) of a call."
    )
    max_dimension_px: int = setting(32768, "Largest depth, height or width of an output.")
    max_control_points: int = setting(
        256,
        "Most control points of a thin-plate spline; its basis takes memory by their square.",
    )
    max_calls: int = setting(
        1024,
        "Most calls in one ComputeMany; limits of results are for all of them together. One caller "
        "has room for four fifths of batching.max_admitted_items; further ones are refused.",
    )
    max_concurrent_streams: int = setting(
        16384, "Most calls at a time on one connection; gRPC's clients hold further ones back."
    )
    upload_s: float = setting(
        60.0,
        "How long a message may take to arrive.",
    )

    def __post_init__(self) -> None:
        _at_least(self, "max_message_bytes", 1024)
        _at_most(self, "max_message_bytes", MAX_MESSAGE_BYTES)
        _at_least(self, "max_payloads", MIN_PAYLOADS)
        _at_least(self, "max_envelope_bytes", 1024)
        _at_least(self, "max_output_bytes", 1)
        _at_least(self, "max_output_samples", 1)
        _at_least(self, "max_dimension_px", 1)
        _at_least(self, "max_control_points", 3)
        _at_least(self, "max_calls", 1)
        _at_least(self, "max_concurrent_streams", 1)
        _at_most(self, "max_concurrent_streams", MAX_STREAMS)
        _at_least(self, "upload_s", MIN_UPLOAD_S)


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """Settings of the end of the server and of its connections."""

    lame_duck_s: float = setting(
        0.0, "After SIGTERM: how long to go on serving while health reports NOT_SERVING."
    )
    grace_s: float = setting(
        30.0, "After that: how long calls may take to finish before they are cut off."
    )
    connection_age_s: float = setting(
        0.0,
        "Age at which connections are closed after their last call, so that clients resolve the "
        "name anew and find new replicas; 0: never.",
    )
    hang_s: float = setting(
        60.0,
        "An event loop that is blocked for so long ends the process, with exit code 3; at least 1, "
        "or 0: never.",
    )
    end_with_stdin: bool = setting(
        False,
        "Shut down at the end of standard input, as when the process that holds the pipe ends.",
    )

    def __post_init__(self) -> None:
        _at_least(self, "lame_duck_s", 0)
        _at_least(self, "grace_s", 0)
        _at_least(self, "connection_age_s", 0)
        # Less is what a busy host takes at times, and the server would end by itself.
        _at_least(self, "hang_s", 1 if self.hang_s > 0 else 0)


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Files in PEM form that TCP addresses are secured with; read again when they change."""

    certificate: str = setting("", "The server's certificate with its chain; empty: no TLS.")
    key: str = setting("", "The private key of the certificate.")
    client_ca: str = setting(
        "",
        "Authorities that sign clients' certificates (mutual TLS); empty: none are asked for.",
    )

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            given, lacking = ("certificate", "key") if self.certificate else ("key", "certificate")
            raise ConfigError(f"{lacking}: expected a file beside that of {given}, got none.")
        if self.client_ca and not self.certificate:
            raise ConfigError("client_ca: expected a certificate of the server, too, got none.")


@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    """Settings of which callers the server answers."""

    tokens: str = setting(
        "",
        "File of bearer tokens and quotas, read again when it changes; empty: no authentication.",
    )
    plaintext: Plaintext = setting(
        "refuse", "Whether tokens may cross a network without TLS: refuse or allow."
    )

    def __post_init__(self) -> None:
        _one_of(self, "plaintext", get_args(Plaintext))


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Settings of calls by processes on the same host, without the network."""

    dir: str = setting(
        "",
        "Folder of the local transport's sockets, the same for server and callers; empty: off.",
    )
    mode: str = setting("0600", "Permissions of these sockets.")
    group: str = setting("", "Their group, by name or number; empty: that of the process.")
    max_arenas: int = setting(
        256, "Most arenas (shared memory of callers); two file descriptors each."
    )
    max_caller_arenas: int = setting(64, "Most arenas of one caller.")
    max_arena_bytes: int = setting(4096 * MIB, "Most bytes of all arenas together.")
    max_caller_arena_bytes: int = setting(1024 * MIB, "Most bytes of the arenas of one caller.")

    def __post_init__(self) -> None:
        for name in (
            "max_arenas",
            "max_caller_arenas",
            "max_arena_bytes",
            "max_caller_arena_bytes",
        ):
            _at_least(self, name, 1)
        if not _MODE_FORM.fullmatch(self.mode):
            raise ConfigError(f"mode: {_EXPECTED_MODE}, got {self.mode!r}.")
        if not self.dir:
            return
        if not os.path.isabs(self.dir):  # noqa: PTH117 - of a text that need not exist here
            expected = "expected the absolute path of a folder, as callers are told it"
            raise ConfigError(f"dir: {expected}, got {self.dir!r}.")
        _check_path("dir", "a folder", self.dir, MAX_PATH_BYTES - MAX_SOCKET_NAME_BYTES)


@dataclass(frozen=True, kw_only=True)
class ResidentsConfig:
    """Limits of resident tensors, which are a cache."""

    max_bytes: int = setting(
        1024 * MIB,
        "Most bytes of all resident tensors, which are held for later calls; 0: no such. On each "
        "GPU copies of those that calls have read take as much at most.",
    )
    max_caller_bytes: int = setting(512 * MIB, "Most bytes of the resident tensors of one caller.")
    lease_s: float = setting(
        600.0, "A resident tensor that no call has used for so long is evicted."
    )
    address: str = setting(
        "",
        "IP address of this very replica, with or without a port, told with handles, so that calls "
        "that use them come here; empty: that of listen, or of the way out of this host.",
    )

    def __post_init__(self) -> None:
        _at_least(self, "max_bytes", 0)
        _at_least(self, "max_caller_bytes", 1)
        _at_least(self, "lease_s", 1)
        if self.address:
            split_replica_address(self.address)


@dataclass(frozen=True, kw_only=True)
class OipConfig:
    """Settings of the Open Inference Protocol."""

    shared_memory: bool = setting(
        False,
        "Whether callers may register POSIX shared memory of this host: the server reads and "
        "writes, for any caller, what its user may.",
    )
    max_regions: int = setting(
        256, "Most registered regions of shared memory; a file descriptor each."
    )
    max_streams: int = setting(
        64,
        "Most ModelStreamInfer calls at a time; each may hold a message that is not admitted yet.",
    )

    def __post_init__(self) -> None:
        _at_least(self, "max_regions", 1)
        _at_least(self, "max_streams", 1)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Settings of the log on standard error."""

    level: LogLevel = setting("info", "The least severe level that is written.")
    format: LogFormat = setting("json", "One JSON object a line, or text for people.")
    slow_call_s: float = setting(10.0, "Calls that take longer are logged; 0: none are.")

    def __post_init__(self) -> None:
        _at_least(self, "slow_call_s", 0)
        _one_of(self, "level", get_args(LogLevel))
        _one_of(self, "format", get_args(LogFormat))


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The whole tree of settings of a server."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:50051",), "Addresses to serve on: host:port (port 0: any) or unix:/path."
    )
    listen_mode: str = setting(
        "", "Permissions of unix sockets, as 0660; empty: what the umask of the process leaves."
    )
    listen_group: str = setting(
        "", "Group of unix sockets, by name or number; empty: that of the process."
    )
    metrics_listen: str = setting("127.0.0.1:9464", "Address of /metrics; empty: off.")
    admin_listen: str = setting(
        "", "Address of gRPC health alone, without TLS and tokens, for probes; empty: none."
    )
    reflection: Reflection = setting(
        "listen", "Where gRPC server reflection is served: listen, admin_listen or off."
    )
    tracing: Tracing = setting(
        "off",
        "Spans of every call by OpenTelemetry: off, or otlp (extra otel; OTEL_... say where to).",
    )
    device: str = setting(
        "auto", "Where to compute: auto (GPUs if there are any), cpu, or cuda:0,cuda:1 and so on."
    )
    threads: int = setting(
        0, "Threads that compute on CPUs; 0: one per core, or as many as a CPU quota lets run."
    )
    retained_bytes: int = setting(
        512 * MIB,
        "Most bytes of freed memory kept for later calls (glibc only); 0: returned immediately.",
    )
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    residents: ResidentsConfig = field(default_factory=ResidentsConfig)
    oip: OipConfig = field(default_factory=OipConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        names = self.device.split(",")
        if not _DEVICE_FORM.fullmatch(self.device) or len(set(names)) < len(names):
            expected = "expected auto, cpu, or distinct devices as cuda:0,cuda:1"
            raise ConfigError(f"device: {expected}, got {self.device!r}.")
        _at_least(self, "threads", 0)
        _at_most(self, "threads", MAX_THREADS)
        _at_least(self, "retained_bytes", 0)
        largest_bytes = self.limits.max_message_bytes + self.limits.max_output_bytes
        if self.batching.max_admitted_bytes < largest_bytes:
            raise ConfigError(
                f"batching.max_admitted_bytes: expected at least {largest_bytes}, so that the "
                f"largest call of limits can be admitted, got {self.batching.max_admitted_bytes}."
            )
        streams, items = self.limits.max_concurrent_streams, self.batching.max_admitted_items
        if streams <= items:
            raise ConfigError(
                f"limits.max_concurrent_streams: expected more than the {items} of "
                f"batching.max_admitted_items, so that calls beyond them are refused and do not "
                f"queue in their client, got {streams}."
            )
        self._check_addresses()
        self._check_secrecy()

    def _check_addresses(self) -> None:
        if not self.listen:
            raise ConfigError("listen: expected at least one address, got none.")
        for address in self.listen:
            _check_address("listen", address)
        if self.listen_mode and not _MODE_FORM.fullmatch(self.listen_mode):
            raise ConfigError(f"listen_mode: {_EXPECTED_MODE}, got {self.listen_mode!r}.")
        if self.admin_listen:
            _check_address("admin_listen", self.admin_listen)
        if self.metrics_listen:
            split_address("metrics_listen", self.metrics_listen)
        _one_of(self, "reflection", get_args(Reflection))
        _one_of(self, "tracing", get_args(Tracing))
        if self.reflection == "admin_listen" and not self.admin_listen:
            raise ConfigError("reflection: expected an admin_listen to serve on, got none.")

    def _check_secrecy(self) -> None:
        """Refuses tokens on addresses where they would cross a network unencrypted."""
        if not self.auth.tokens or self.tls.certificate or self.auth.plaintext == "allow":
            return
        for address in self.listen:
            if not is_unix(address) and not _is_loopback(address):
                raise ConfigError(
                    f"auth.tokens: expected TLS, unix sockets or loopback, got {address}, where "
                    'tokens can be overheard. Set tls.certificate, or auth.plaintext = "allow".'
                )


_ELSEWHERE = {
    **dict.fromkeys(("address", "bind", "host", "port"), "listen"),
    **dict.fromkeys(("metrics-port", "metrics_port"), "metrics_listen"),
    "workers": "threads",
}
"""Names of settings of other servers for ours."""


def unknown(kind: str, name: str, known: Sequence[str]) -> ConfigError:
    """Makes the error of an unknown name, which suggests the nearest known one."""
    own = name.removeprefix("--").removeprefix("STN_")
    meant = _ELSEWHERE.get(own.lower(), own)
    wanted = name.replace(own, meant.upper() if own.isupper() else meant)
    nearest = get_close_matches(wanted, known, n=1, cutoff=0.0)[0]
    return ConfigError(f"{name}: expected a known {kind}, got none. Did you mean {nearest}?")


def split_address(name: str, address: str) -> tuple[str, int]:
    """Returns host and port of `host:port`; brackets around an IPv6 host stay."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()):
        raise ConfigError(
            f"{name}: expected host:port, got {address!r}. Port 0 takes any free one."
        )
    if int(port) > MAX_PORT:
        raise ConfigError(f"{name}: expected a port of at most {MAX_PORT}, got {address!r}.")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        expected = "expected brackets around an IPv6 address, as [::1]:50051"
        raise ConfigError(f"{name}: {expected}, got {address!r}.")
    return host, int(port)


def split_replica_address(address: str) -> tuple[str, int]:
    """Returns the IP address and the port of `residents.address`; 0: it has none."""
    name = "address"
    try:
        # Pods know their addresses without a port, and those of IPv6 without brackets.
        return str(ipaddress.ip_address(address)), 0
    except ValueError:
        host, port = split_address(name, address)
    try:
        numeric = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        expected = "expected an IP address, as callers' name for all replicas stands for"
        raise ConfigError(f"{name}: {expected}, got {address!r}.") from None
    return numeric, port


def is_unix(address: str) -> bool:
    """Returns whether an address is the path of a unix socket."""
    return address.startswith(UNIX)


def socket_path(address: str) -> str:
    """Returns the path of `unix:path` or `unix:///path`."""
    return address.removeprefix(UNIX).removeprefix("//")


def _check_address(name: str, address: str) -> None:
    if not is_unix(address):
        split_address(name, address)
        return
    if set(address) & set("%#?"):  # gRPC would take another path, also one that is in use
        expected = "expected a socket path without '%', '#' and '?', which mean something in URIs"
        raise ConfigError(f"{name}: {expected}, got {address!r}.")
    _check_path(name, "a socket path", socket_path(address), MAX_PATH_BYTES)


def _check_path(name: str, what: str, path: str, most_bytes: int) -> None:
    """Checks the path of a unix socket, or of a folder of some."""
    if not path.isprintable():  # bytes that are no UTF-8, too
        raise ConfigError(f"{name}: expected {what} in printable UTF-8, got {path!r}.")
    path_bytes = len(os.fsencode(path))
    if not 1 <= path_bytes <= most_bytes:
        expected = f"expected {what} of 1 to {most_bytes} bytes"
        raise ConfigError(f"{name}: {expected}, got {path_bytes} in {path!r}.")


def _is_loopback(address: str) -> bool:
    """Returns whether data sent to host:port stays on this machine."""
    host = split_address("listen", address)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _at_least(config: object, name: str, least: float) -> None:
    value = getattr(config, name)
    if not value >= least:
        raise ConfigError(f"{name}: expected at least {least}, got {value}.")
    if value == math.inf:
        raise ConfigError(f"{name}: expected a finite number, got {value}.")
    _at_most(config, name, MAX_NUMBER)


def _at_most(config: object, name: str, most: float) -> None:
    value = getattr(config, name)
    if not value <= most:
        raise ConfigError(f"{name}: expected at most {most}, got {value}.")


def _one_of(config: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}.")
