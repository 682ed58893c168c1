"""A call as the service sees it, whichever transport it came by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stn_server.tokens import UNLIMITED, Quota

if TYPE_CHECKING:
    from stn_server.batching.work import Place

REQUEST_ID = "x-request-id"

OTHER_METHOD = "other"
"""Stands for every method that is not of the service: callers choose their names."""

OTHER_ACCOUNT = "other"
"""Stands for all callers without a token: their names are unbounded, labels of metrics are not."""

LOCAL = "local"
"""The transport between processes of one host, and the prefix of its peers."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity for which a call is made."""

    name: str
    """The name of the token; without one, of the certificate; else the host, whatever its port, or
    the user of this host, as "uid-1000"."""
    transport: str
    """The connection that it uses: "tcp", "unix" or "local"."""
    quota: Quota = UNLIMITED
    account: str = OTHER_ACCOUNT
    """The label under which its use is counted: the name of its token, or one for all without a
    token."""


class CallFacts(Protocol):
    """The facts of a call that listeners see."""

    method: str
    """The name of its method, or one name for all that are not of the service: callers choose
    those."""
    received_bytes: int
    """The size of its message in bytes, once that is known to be a request."""
    sent_bytes: int
    """The size of its reply in bytes, once there is one."""
    queue_s: float
    """How long it waited for a device, once it is computed; of nested calls, the longest wait."""
    compute_s: float
    """How long its batch took; of nested calls, the longest time."""

    @property
    def began(self) -> float:
        """Instant of `time.perf_counter` at which its transport accepted it."""

    @property
    def path(self) -> str:
        """The method as the log names it, also where it is not of the service."""

    @property
    def caller(self) -> Caller:
        """The caller of the call."""

    @property
    def deadline(self) -> float:
        """Instant of the batcher's clock after which the reply is unwanted; infinity: none."""

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The metadata that came beside the message."""

    @property
    def request_id(self) -> str:
        """The caller's id for this call, or one of ours."""


class Call(CallFacts, Protocol):
    """A call as methods see it. A transport makes it and ends it."""

    @property
    def message_bytes(self) -> int:
        """The size of its message as far as it is known before it is received; 0: it is not."""

    async def receive(self) -> tuple[bytes, Place]:
        """Returns the message once it is admitted, and the place of the call until it is over.

        Raises:
            ServerError: There is no room, or the message does not come as it should.
            CancelledError: The call is over.
        """

    def add_done_callback(self, callback: Callable[..., None], /) -> None:
        """Registers a function that is called when the reply has left or the caller has gone."""
