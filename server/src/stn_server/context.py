"""A call as its transport brings it: who calls, with what, and how the call ends."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import grpc

from stn_server.tokens import Token

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Ending:
    """The status with which a method ends its call, instead of a reply."""

    code: grpc.StatusCode
    message: str = ""
    metadata: Metadata = ()


class AbortedError(Exception):
    """Leaves a method whose call was aborted with a status."""


class Context:
    """What methods see of a call, whichever transport brought it.

    Args:
        metadata: The metadata of the call.
        peer: The other end of the connection, as `caller_of` reads it.
        deadline: Instant of `time.monotonic` after which the reply is unwanted.
        certified_name: The name in the certificate of the caller; empty: it has shown none.
        message: The message, if it is there already.
        began: Instant of `time.perf_counter` by which it had come in; None: now.

    Concurrency: belongs to one event loop.
    """

    def __init__(
        self,
        metadata: Metadata,
        peer: str,
        deadline: float = math.inf,
        certified_name: str = "",
        message: bytes | None = None,
        began: float | None = None,
    ) -> None:
        self.metadata = metadata
        self.peer = peer
        self.deadline = deadline
        self.certified_name = certified_name
        self.message = message
        """The message if it is there; None: it is on its way, see `read`."""
        self.began = time.perf_counter() if began is None else began
        self.token: Token | None = None
        """The token that it presented, if tokens are asked for."""
        self.ending: Ending | None = None
        """The status with which it was aborted."""
        self._callbacks: list[Callable[[Context], None]] = []
        self._is_over = False

    def remaining_s(self) -> float:
        """Returns for how many seconds the reply is wanted; infinity: without limit."""
        return max(0.0, self.deadline - time.monotonic())

    def message_bytes(self) -> int:
        """Returns the size of the message as far as it is known; 0: it is not."""
        return 0 if self.message is None else len(self.message)

    @property
    def is_amid_message(self) -> bool:
        """Whether the method waits for a message that is not there."""
        return False

    async def announced_bytes(self) -> int | None:
        """Waits for the size of the next message, as counted while it comes in; None: no more."""
        raise NotImplementedError

    async def read(self) -> bytes | None:
        """Waits for the next message; None: there is none."""
        raise NotImplementedError

    async def write(self, message: bytes) -> None:
        """Sends a message of a stream, and waits until its caller takes more."""
        raise NotImplementedError

    def done(self) -> bool:
        """Returns whether the call is over."""
        return self._is_over

    def add_done_callback(self, callback: Callable[[Context], None]) -> None:
        """Registers a function that is called when the call is over."""
        self._callbacks.append(callback)

    def finish(self) -> None:
        """Ends the call: its reply has left, or its caller has gone."""
        self._is_over = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    async def abort(
        self, code: grpc.StatusCode, message: str = "", metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the method with a status instead of a reply.

        Raises:
            AbortedError: Always.
        """
        self.ending = Ending(code, message, metadata)
        raise AbortedError


Handler = Callable[[Context], Awaitable[bytes | None]]
"""Answers a call; returns the reply, or None if it has written all there is."""
