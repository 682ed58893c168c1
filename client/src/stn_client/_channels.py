"""The channels of a client: to its target, and to single replicas behind it."""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from typing import Any

import grpc

from stn_client._credentials import Access
from stn_client._replicas import Replicas
from stn_client._words import SERVICE

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""The server's limits decide about sizes; `RetryPolicy` decides about retries, but gRPC sends again
what no server has seen, such as a call that met the end of its connection. A server that is back is
noticed within about a second, and one at another address within about five: gRPC by itself would
try every two minutes in the end, and look names up every thirty seconds. While a call is on its
way, a server that says nothing for 20 s is asked for a sign of life, and given up 10 s later: a
machine that has vanished ends no connections. Every client has connections of its own; gRPC would
share them between clients of one target, also with a client from before a fork."""

BALANCING = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
}
"""gRPC's service config for replicas: calls go in turns to those that say that they are ready."""

MAX_REPLICAS = 64
"""The most channels to single replicas; the least recently used goes when it is one too many."""

REPLICA_IDLE_MS = 60_000
"""After it a channel to a replica disconnects that is not used: else it would look for ever for one
that is gone."""

_RESOLVERS = ("dns:", "ipv4:", "ipv6:")
"""Targets that may stand for several servers begin so."""


class Link:
    """A channel, and its methods."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._methods: dict[str, Any] = {}

    def method(self, path: str) -> Any:
        """Returns the stub of a method, made once."""
        stub = self._methods.get(path)
        if stub is None:
            stub = self._methods[path] = self.channel.unary_unary(path)
        return stub


class Channels:
    """Opens channels when they are needed.

    Args:
        stack: `grpc` or `grpc.aio`.
        target: gRPC target.
        access: How the client reaches it.
        replicas: Those behind it.

    Concurrency: thread-safe.
    """

    def __init__(self, stack: Any, target: str, access: Access, replicas: Replicas) -> None:
        self._stack = stack
        self._target = target
        self._access = access
        self._authority = replicas.authority
        self._lock = threading.Lock()
        self._common: Link | None = None
        self._single: OrderedDict[str, Link] = OrderedDict()
        """Links to replicas by their addresses, least recently used first."""
        self._is_closed = False

    def link(self, address: str = "") -> Link:
        """Returns the link to a replica, or to whichever the target leads to.

        Args:
            address: As of `Replicas.reached`. The caller keeps what it gets until its call is over.
        """
        # Opened at the first call, not before: a process may fork as long as gRPC has no threads.
        with self._lock:
            if address and not self._is_closed:
                return self._single_link(address)
            if self._common is None:
                self._common = Link(open_channel(self._stack, self._target, self._access))
            return self._common

    def close(self) -> list[Any]:
        """Closes all channels; returns what that returned, which `grpc.aio` wants to be awaited."""
        with self._lock:
            self._is_closed = True
            links = [*self._single.values(), *filter(None, [self._common])]
            return [link.channel.close() for link in links]

    def _single_link(self, address: str) -> Link:
        link = self._single.get(address)
        if link is not None:
            self._single.move_to_end(address)
            return link
        target = f"ipv6:{address}" if address.startswith("[") else f"ipv4:{address}"
        options: list[tuple[str, Any]] = [("grpc.client_idle_timeout_ms", REPLICA_IDLE_MS)]
        if self._authority:
            options.append(("grpc.default_authority", self._authority))
        channel = open_channel(self._stack, target, self._access, *options)
        link = self._single[address] = Link(channel)
        if self._stack is grpc:  # grpc.aio does so by itself
            # When it is one too many and no call holds it: closing it would end those under way.
            weakref.finalize(link, channel.close).atexit = False
        if len(self._single) > MAX_REPLICAS:
            self._single.popitem(last=False)
        return link


def open_channel(stack: Any, target: str, access: Access, *more: tuple[str, Any]) -> Any:
    """Opens a channel of `grpc` or of `grpc.aio`, with these options beside the usual ones.

    "host:port" and unix sockets mean one server, which is asked even while it is about to stop.
    """
    options = (*CHANNEL_OPTIONS, *access.options, *more)
    if target.startswith(_RESOLVERS):
        options = (*options, ("grpc.service_config", json.dumps(BALANCING)))
    if access.credentials is None:
        return stack.insecure_channel(target, options=options)
    return stack.secure_channel(target, access.credentials, options=options)
