"""What both clients know about connections."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from typing import Any, cast

import grpc

from stn_client._calls import SERVICE
from stn_client._credentials import Access, Metadata
from stn_client._errors import StnClientError, TransportError, error_from_status
from stn_client._retry import RetryPolicy
from stn_proto.metadata import MESSAGE_BYTES

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
)
"""The server's limits decide about sizes; `RetryPolicy` decides about retries, but gRPC sends again
what no server has seen, such as a call that met the end of its connection. A server that is back is
noticed within about a second, and one at another address within about five: gRPC by itself would
try every two minutes in the end, and look names up every thirty seconds. While a call is on its
way, a server that says nothing for 20 s is asked for a sign of life, and given up 10 s later: a
machine that has vanished ends no connections."""

BALANCING = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
}
"""gRPC's service config for replicas: calls go in turns to those that say that they are ready."""

_RESOLVERS = ("dns:", "ipv4:", "ipv6:")
"""Targets that may stand for several servers begin so."""


def open_channel(stack: Any, target: str, access: Access) -> Any:
    """A channel of `grpc` or of `grpc.aio`.

    "host:port" and unix sockets mean one server, which is asked even while it is about to stop.
    """
    options = (*CHANNEL_OPTIONS, *access.options)
    if target.startswith(_RESOLVERS):
        options = (*options, ("grpc.service_config", json.dumps(BALANCING)))
    if access.credentials is None:
        return stack.insecure_channel(target, options=options)
    return stack.secure_channel(target, access.credentials, options=options)


class Progress:
    """One call and its attempts: what is left of its time, what to do after a failure.

    Args:
        policy: When to try again.
        timeout_s: For all attempts and pauses together; None: any.
        is_open: Whether the client has not been closed yet.
        metadata: Asked for what is sent with an attempt.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float | None,
        is_open: Callable[[], bool],
        metadata: Callable[[], Metadata] = tuple,
    ) -> None:
        self._policy = policy
        self._is_open = is_open
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._attempt = 0
        self._metadata = metadata
        self.request_id = uuid.uuid4().hex[:16]

    def start(self, request: bytes = b"") -> dict[str, Any]:
        """Begins an attempt to send a request; returns the keyword arguments of the gRPC call.

        Raises:
            TransportError: The client is closed.
            ValueError: The token cannot be sent.
        """
        if not self._is_open():
            raise TransportError(
                "client: expected an open connection, got a closed one. Make a new client.",
                request_id=self.request_id,
            )
        self._attempt += 1
        size = (MESSAGE_BYTES, str(len(request)))
        metadata = (("x-request-id", self.request_id), size, *self._metadata())
        return {"timeout": self._remaining_s(), "metadata": metadata}

    def pause_s(self, failure: grpc.RpcError) -> float:
        """How long to wait before the next attempt.

        Raises:
            StnClientError: There is no next attempt.
        """
        error = self._error(cast("grpc.Call", failure))
        pause_s = self._policy.pause_s(error, self._attempt, self._remaining_s(), random.random)
        if pause_s is None:
            raise error from failure
        return pause_s

    def _remaining_s(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _error(self, failure: grpc.Call) -> StnClientError:
        metadata: Any = failure.trailing_metadata() or ()
        return error_from_status(failure.code(), failure.details() or "", metadata, self.request_id)
