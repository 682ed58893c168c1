"""The transports to a server, and one attempt of a call by the best of them, for both clients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stn_client._channels import Channels
from stn_client._connection import Progress
from stn_client._credentials import Metadata
from stn_client._envelopes import Places
from stn_client._placing import MAX_FRAMED_BYTES, by_message, place
from stn_client._prepared_call import Call
from stn_client._replicas import Replicas
from stn_client._steps import Steps
from stn_client._ttrpc import (
    FAILURES,
    INFO,
    ConnectionLostError,
    Discovery,
    Offer,
    inquiry,
    who_asks,
)

MAX_MESSAGE_BYTES = 1 << 20
"""The most bytes of operands, or of results, of one message of several calls by gRPC; by the local
transport it is what a socket takes at once."""


class Transports:
    """The transports to a server: the local one, where there is one, and gRPC.

    Generators of steps make it one for both clients; see `_steps`.

    Args:
        channels: To the target and its replicas; their stubs return replies, or what is awaited.
        replicas: Those behind the target.
        discovery: Says when to look for the local transport.
        metadata: Returns what says who asks.
        client: Name of the client.
        connect: Connects to the sockets in a folder, and is given what returns the metadata.
        to_thread: `asyncio.to_thread`, for functions that block; None: steps may block.

    Attributes:
        local: The connection by the local transport; None: there is none now.
        channels: As given.
        is_open: Whether they have not been closed yet.
    """

    def __init__(
        self,
        channels: Channels,
        replicas: Replicas,
        discovery: Discovery,
        metadata: Callable[[], Metadata],
        client: str,
        connect: Callable[[Path, Callable[[], Metadata]], Any],
        to_thread: Callable[..., Any] | None = None,
    ) -> None:
        self.local: Any = None
        self.channels = channels
        self.is_open = True
        self._replicas = replicas
        self._discovery = discovery
        self._metadata = metadata
        self._client = client
        self._connect = connect
        self._to_thread = to_thread

    @property
    def most_bytes(self) -> int:
        """The most bytes of a message of several calls, and of its reply."""
        return MAX_MESSAGE_BYTES if self.local is None else MAX_FRAMED_BYTES

    def send(
        self, call: Call[Any], attempt: dict[str, Any], progress: Progress
    ) -> Steps[tuple[bytes, Places]]:
        """Makes one attempt by the best transport, within the call's remaining time.

        Args:
            call: What is sent.
            attempt: The arguments that `Progress.start` has returned.
            progress: That of the call, or of the one that leads a message.

        Returns:
            The serialized reply, and the memory in which its tensors may be.
        """
        local = self.local
        if local is None:
            local = yield from self.find_local(attempt)
        if local is not None:
            # Where no step may block, only slots that are there are taken at first.
            placed = place(call, local.pool, self._client, may_grow=self._to_thread is None)
            if placed is None and self._to_thread is not None:  # to ask for more takes a while
                placed = yield self._to_thread(place, call, local.pool, self._client)
            # No place: the tensors are too large for a frame, and there is no memory for them.
            if placed is not None:
                attempt["timeout"] = progress.remaining_s()
                try:
                    request = placed.request
                    reply = yield local.call(call.method, request, held=placed.held, **attempt)
                except ConnectionLostError:
                    self._lose(local)
                else:
                    progress.is_local = True
                    return reply, placed.places
        progress.address = (
            (yield from self._reached(call.address, progress)) if call.address else ""
        )
        request = by_message(call, self._client)
        # Last, as all of the above may have used some of the call's time.
        attempt["timeout"] = progress.remaining_s()
        # Kept until the reply is there, see `Channels`.
        link = self.channels.link(progress.address)
        return (yield link.method(call.method)(request, **attempt)), ()

    def _lose(self, local: Any) -> None:
        """Leaves a connection by the local transport that is lost."""
        # Another thread or task may have seen the loss first, and have connected anew.
        if self.local is local:
            self.local = None
        local.close()
        self._discovery.lost()

    def _reached(self, address: str, progress: Progress) -> Steps[str]:
        """Returns where a call goes whose tensors are at an address; see `Replicas.reached`."""
        if self._replicas.is_due(address):
            remaining_s = progress.remaining_s()
            if self._to_thread is None:
                self._replicas.look_up(remaining_s)
            else:
                yield self._to_thread(self._replicas.look_up, remaining_s)
        return self._replicas.reached(address)

    def find_local(self, attempt: dict[str, Any] | None = None) -> Steps[Any]:
        """Looks for the local transport, if there is none yet and it is time to.

        Args:
            attempt: Metadata and timeout of the call for which it is looked for; None: of none.

        Returns:
            The connection; None if there is none.
        """
        # `is_due` last: whoever is told so has to look, as nobody else is told for a while.
        if self.local is None and self.is_open and self._discovery.is_due():
            try:
                metadata = self._metadata() if attempt is None else attempt["metadata"]
                timeout_s = None if attempt is None else attempt["timeout"]
                self.local = yield from self._connected(inquiry(metadata, timeout_s))
            except FAILURES as error:
                self._discovery.failed(error)
            # Closed while it was looked for; after it is there, so that `close` or this sees it.
            if self._was_closed() and self.local is not None:
                self.local.close()
                self.local = None
        return self.local

    def _connected(self, about: dict[str, Any]) -> Steps[Any]:
        """Connects to the local transport that the server offers, if it is the same server.

        Args:
            about: Arguments of both questions; see `inquiry`.

        Returns:
            The connection; None if there is none.
        """
        # By gRPC first, as only the target says which server is meant; the socket must be of the
        # same, as a folder may be of a server that was replaced.
        ask = self.channels.link().method(INFO)
        offer = Offer.of((yield ask(b"", **about)))
        if offer is None:
            self._discovery.failed("the server has none")
            return None
        connection = yield self._connect(offer.folder, lambda: who_asks(self._metadata()))
        try:
            if offer.is_from((yield connection.call(INFO, b"", **about))):
                self._discovery.found(offer)
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        self._discovery.failed("another server is there")
        return None

    def _was_closed(self) -> bool:
        return not self.is_open  # as a function, as mypy takes what it once was for settled

    def close(self) -> list[Any]:
        """Closes every connection; returns what `Channels.close` does."""
        # First, so that whoever meets a closed channel knows why.
        self.is_open = False
        local, self.local = self.local, None
        if local is not None:
            local.close()
        return self.channels.close()

    def abandon(self) -> None:
        """Closes this process's copies of local sockets after a fork; the parent keeps its own."""
        if self.local is not None:
            self.local.abandon()
