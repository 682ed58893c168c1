"""Which calls of a client go next, and which of them in one message. Knows no connection.

- So many calls have a turn at a time; the others wait in the order they came in. A call keeps its
  turn through all its attempts.
- A small call goes at once while fewer than `MAX_MESSAGES` messages of small calls are under way.
  Those that come meanwhile wait; when one of the messages is answered, what waits goes together, as
  one `ComputeMany`, as far as turns and limits go. Where callers come back together, as tasks of an
  event loop do, a message may take its part of them only: one that took all would leave the server
  nothing to compute while its replies are read.
- Large calls, and all of a client that does not pack, go alone, as soon as they have a turn.
- Each call has a clock, a request id and an outcome of its own. One that is cancelled or late while
  it waits leaves the queue; later only its outcome is dropped.
- A message that is refused as a whole, as by a server that does not know ComputeMany, or takes
  fewer calls in one, says nothing about its calls: they go alone, and for a while so do others.
"""

from __future__ import annotations

import copy
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, cast

import grpc

from stn_client._connection import Progress
from stn_client._envelopes import NESTED, Places
from stn_client._errors import (
    AccessDeniedError,
    DeadlineExceededError,
    OverloadedError,
    UnavailableError,
    error_from_status,
)
from stn_client._packing import compute_many
from stn_client._placing import MIN_PLACED_BYTES
from stn_client._prepared_call import Call
from stn_client._ttrpc import CallError

MAX_MESSAGES = 2
"""Messages of small calls under way: one is computed while the other is written or read. More would
leave fewer calls for each."""

MAX_CALLS = 128
"""The most calls of one message: by then the message costs next to nothing beside its calls, and a
full one is half of what a client has under way."""

ALONE_S = 60.0
"""Time for which calls go alone after a message was refused as a whole."""

_ENVELOPE_BYTES = 128
"""Approximate bytes of a small call beside its tensors."""

_numbers = count()


@dataclass(eq=False, slots=True)
class Waiter:
    """A call that waits for its turn or its outcome.

    Attributes:
        call: What it is.
        progress: Its attempts and its time.
        woken: Called when it goes, or has its outcome.
        goes: What its owner has to send now: this call, or a message that it leads; None: nothing.
        outcome: Its serialized reply with the places of its tensors, or how it failed.
        is_in_queue: Whether it waits for its turn, or has it.
        has_turn: Whether it is under way.
        goes_alone: Whether it must not be packed, whatever its size.
        size_bytes: What a small one adds to a message or to its reply, whichever is more.
    """

    call: Call[Any]
    progress: Progress
    woken: Callable[[Waiter], None]
    goes: Waiter | Packet | None = None
    outcome: tuple[bytes, Places] | Exception | None = None
    is_in_queue: bool = False
    has_turn: bool = False
    goes_alone: bool = False
    size_bytes: int = 0
    number: int = field(default_factory=_numbers.__next__)


class SendQueue:
    """The calls of one connection that wait to be sent.

    Args:
        max_in_flight: Calls that have a turn at the same time.
        packs: Whether small calls may go together.

    Concurrency: none of its own; who uses it in threads has a lock.
    """

    def __init__(self, max_in_flight: int, *, packs: bool) -> None:
        self._max_in_flight = self._free = max_in_flight
        self._packs_from_s = 0.0 if packs else math.inf
        self._small: OrderedDict[Waiter, None] = OrderedDict()
        self._others: OrderedDict[Waiter, None] = OrderedDict()
        self._messages = 0
        """Messages of small calls that are under way."""
        self._sent = 0
        """Calls in these messages."""

    @property
    def in_flight(self) -> int:
        """Number of calls that have a turn."""
        return self._max_in_flight - self._free

    @property
    def is_packing(self) -> bool:
        """Whether a message of several calls is under way."""
        return self._sent > self._messages

    def waits_for(self, packet: Packet) -> bool:
        """Returns whether the next message waits for what the callers of an answered one ask next.

        It does while the server has another one, until as many wait as came back, and no fewer than
        a message takes of those that are there.
        """
        few = len(self._small) < max(self._part, len(packet.waiters))
        return self._messages > 0 and few

    def add(self, waiter: Waiter) -> None:
        """Adds a call; one that already has a turn comes before all that have none."""
        if not waiter.goes_alone:
            waiter.size_bytes = packed_bytes(waiter.call)
            # Decided when a call enters, and kept: a call that once
            # goes alone does so in all attempts.
            packs = self._packs_from_s <= time.monotonic()
            waiter.goes_alone = not (packs and waiter.size_bytes)
        waiter.is_in_queue = True
        line = self._others if waiter.goes_alone else self._small
        line[waiter] = None
        if waiter.has_turn:
            line.move_to_end(waiter, last=False)

    def start(self, most_bytes: int, *, splits: bool = False) -> None:
        """Wakes the calls whose turn it is.

        Args:
            most_bytes: The most bytes of a message of several calls, and of its reply.
            splits: Whether a message takes no more than its part of the small calls that are there.
        """
        # Small calls wait while enough messages are under way: that is when they gather to packets.
        while self._others or (self._small and self._messages < MAX_MESSAGES):
            message = self._next(most_bytes, self._part if splits else MAX_CALLS)
            if not message:
                break
            sender, *others = message
            if others:
                # The call with the most time leads: among threads its own sends the packet.
                packet = Packet(message, self)
                sender = packet.lead
                sender.goes = packet
            else:
                sender.goes = sender
            sender.woken(sender)

    def answered(self, sent: Waiter | Packet) -> None:
        """Notes that a call or a packet is no longer under way.

        Calls that have no reply keep their turns; those of others are free for the next message, as
        a whole, and not one by one when their owners notice.
        """
        waiters = sent.waiters if isinstance(sent, Packet) else (sent,)
        # Only messages of small calls are counted, and a packet's calls may have been told to go
        # alone meanwhile.
        if len(waiters) > 1 or not waiters[0].goes_alone:
            self._messages -= 1
            self._sent -= len(waiters)
        for waiter in waiters:
            if isinstance(waiter.outcome, tuple):
                self.leave(waiter)

    def leave(self, waiter: Waiter) -> bool:
        """Removes a call that is over; returns whether it was still waiting for its turn."""
        if not waiter.is_in_queue:
            return False
        waiter.is_in_queue = False
        # It may be in either line, where its value is None, or, under way, in neither.
        waited = self._small.pop(waiter, self) is None or self._others.pop(waiter, self) is None
        if waiter.has_turn:
            waiter.has_turn = False
            self._free += 1
        return waited

    def pack_later(self) -> None:
        """Sends calls alone for the next `ALONE_S` seconds."""
        # max keeps infinity: a client that does not pack never begins to.
        self._packs_from_s = max(self._packs_from_s, time.monotonic() + ALONE_S)

    def _next(self, most_bytes: int, most_calls: int) -> list[Waiter]:
        """Returns the calls of the next message; empty if none may be sent."""
        small = next(iter(self._small), None) if self._messages < MAX_MESSAGES else None
        other = next(iter(self._others), None)
        # The order is that of arrival over both lines, so that neither kind of call starves.
        if other is not None and (small is None or _goes_first(other, small)):
            if not self._may_go(other):
                return []
            self._give_turn(self._others, other)
            return [other]
        message: list[Waiter] = []
        size_bytes = 0
        for waiter in list(islice(self._small, most_calls)) if small is not None else ():
            size_bytes += waiter.size_bytes
            # The first call always fits: one that is too large
            # for a packet goes as its own message.
            if not self._may_go(waiter) or (message and size_bytes > most_bytes):
                break
            self._give_turn(self._small, waiter)
            message.append(waiter)
        self._messages += bool(message)
        self._sent += len(message)
        return message

    @property
    def _part(self) -> int:
        """A message's part of the small calls that wait or are under way."""
        return min(MAX_CALLS, math.ceil((len(self._small) + self._sent) / MAX_MESSAGES))

    def _may_go(self, waiter: Waiter) -> bool:
        return waiter.has_turn or self._free > 0

    def _give_turn(self, line: OrderedDict[Waiter, None], waiter: Waiter) -> None:
        """Takes a call out of its line; it has a turn then, if it had none from another attempt."""
        del line[waiter]
        if not waiter.has_turn:
            waiter.has_turn = True
            self._free -= 1


class Packet:
    """Calls that go in one message.

    Args:
        waiters: At least two small ones.
        queue: Where they waited.

    Attributes:
        waiters: As given.
        lead: The call with the latest deadline, which is that of the message.
        call: The message.
    """

    def __init__(self, waiters: Sequence[Waiter], queue: SendQueue) -> None:
        self.waiters = waiters
        self._queue = queue
        # A message that ended at the earliest deadline would fail calls that have time left.
        self.lead = max(waiters, key=lambda waiter: waiter.progress.deadline_s)
        self.call = compute_many([waiter.call for waiter in waiters])

    def start(self) -> dict[str, Any]:
        """Begins an attempt of all calls; returns what `Progress.start` does.

        Raises:
            TransportError: As `Progress.start`, as well as other errors of it.
        """
        lead = self.lead.progress
        # The lead first: it raises if the client is closed, before any other call has begun.
        attempt = lead.start()
        for index, waiter in enumerate(self.waiters):
            waiter.progress.join(lead, index)
        return attempt

    def succeed(self, reply: bytes) -> None:
        """Gives every call its own reply or failure.

        Raises:
            ProtocolMismatchError: It is no such reply.
        """
        outcomes = self.call.parse(reply, ())
        for waiter, outcome in zip(self.waiters, outcomes, strict=True):
            waiter.progress.is_local = self.lead.progress.is_local
            waiter.outcome = (
                (outcome, ()) if isinstance(outcome, bytes) else CallError(cast("Any", outcome))
            )

    def fail(self, error: BaseException, *, is_lost: bool) -> None:
        """Gives every call the failure of the message, or lets it go alone.

        Args:
            error: What became of it.
            is_lost: Whether the error says only that there will be no answer.
        """
        is_refused = isinstance(error, grpc.RpcError) and _is_about_message(error)
        if is_refused:
            self._queue.pack_later()
        for waiter in self.waiters:
            if is_refused or is_lost or not isinstance(error, Exception):
                # Nothing is known about the calls themselves, so
                # each is sent once more, on its own.
                waiter.goes_alone = True
                waiter.outcome = GoAlone()
            else:
                # A copy each: an exception that several threads raise would mix their tracebacks.
                waiter.outcome = copy.copy(error)

    def wake(self) -> None:
        """Resumes every call, once it has its outcome."""
        for waiter in self.waiters:
            waiter.woken(waiter)


class GoAlone(Exception):  # noqa: N818 - a signal between calls, never raised to users
    """A packet failed as a whole, so its calls have to be sent alone."""


def packed_bytes(call: Call[Any]) -> int:
    """Returns what a call adds to a message or its reply; 0 if it has to be sent alone.

    So is one with metadata or a request id of its own, which a message has for all its calls.
    """
    envelope, settings = call.envelope, call.settings
    if envelope.packed_bytes is None:
        sizes_bytes = *envelope.operands_bytes, *envelope.results_bytes
        is_small = envelope.method in NESTED and max(sizes_bytes) < MIN_PLACED_BYTES
        most_bytes = max(envelope.all_operands_bytes, envelope.all_results_bytes)
        envelope.packed_bytes = _ENVELOPE_BYTES + most_bytes if is_small else 0
    # Resident tensors may be lost, which has to be told, and repeated, for each call by itself.
    if call.residents or settings.metadata or settings.request_id is not None:
        return 0
    return envelope.packed_bytes


def _goes_first(one: Waiter, other: Waiter) -> bool:
    """Returns whether the head of one line comes before the head of the other."""
    # Those with a turn first, as False sorts before True; then in the order of arrival.
    return (not one.has_turn, one.number) < (not other.has_turn, other.number)


def _is_about_message(failure: grpc.RpcError) -> bool:
    """Returns whether a failure concerns the message, not the moment or the caller."""
    call = cast("grpc.Call", failure)
    # These four say: not now, or not you. All else may be the fault of the packet as a whole.
    error = error_from_status(call.code(), "", call.trailing_metadata() or (), "")
    return not isinstance(
        error, AccessDeniedError | DeadlineExceededError | OverloadedError | UnavailableError
    )
