"""One call, by whatever transport it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stn_server.tokens import UNLIMITED, Quota

if TYPE_CHECKING:
    from stn_server.batching.work import Place

REQUEST_ID = "x-request-id"

OTHER_METHOD = "other"
"""Stands for every method that is not of the service, known or not: callers choose their names."""

OTHER_ACCOUNT = "other"
"""Stands for all callers without a token: who names itself could choose any number of names."""

LOCAL = "local"
"""The transport between processes of one host; peers of its calls begin so."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    name: str
    """That of the token; without one, of the certificate; else the host, whatever its port, or the
    user of this host, as "uid-1000"."""
    transport: str
    """How its bytes travel: "tcp", "unix" or "local"."""
    quota: Quota = UNLIMITED
    account: str = OTHER_ACCOUNT
    """What its use is counted under: the name of its token, or one name for all who have none."""


class CallFacts(Protocol):
    """What listeners see of a call."""

    method: str
    """Its name, or one name for all that are not of the service: callers choose those."""
    received_bytes: int
    """The size of its message, once that is known to be a request."""
    sent_bytes: int
    """The size of its reply, once there is one."""
    queue_s: float
    """How long it waited for a device, once it is computed; of many calls, the longest."""
    compute_s: float
    """How long its batch took; of many calls, the longest."""

    @property
    def began(self) -> float:
        """Instant of `time.perf_counter` at which its transport accepted it.

        If it has waited there, a quarter of a second more or less.
        """

    @property
    def path(self) -> str:
        """What the operator is told: the method, or what a caller asked for instead."""

    @property
    def caller(self) -> Caller:
        """The caller who makes it."""

    @property
    def deadline(self) -> float:
        """Instant of the batcher's clock after which nobody wants the reply; infinity: none."""

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What came beside its message."""

    @property
    def request_id(self) -> str:
        """The caller's id for this call, or one of ours."""


class Call(CallFacts, Protocol):
    """What methods see of a call besides. A transport makes it and ends it."""

    @property
    def declared_bytes(self) -> int | None:
        """The size of its message that it declares; None if it does not.

        Raises:
            InvalidRequestError: It is no number.
        """

    async def receive(self) -> tuple[bytes, Place]:
        """Its message, once there is room for it, and its place until it is over.

        Raises:
            ServerError: There is no room, or the message does not come as it should.
            CancelledError: The call is over.
        """

    def add_done_callback(self, callback: Callable[..., None], /) -> None:
        """Calls back, with something, when the reply has left or the caller has gone."""
