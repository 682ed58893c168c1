"""Calls whose large tensors are in arenas instead of in their messages."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, cast

import numpy as np

from stn_client._arenas import Bytes, Pool, Slot
from stn_client._envelopes import Envelope, Payloads, tensors_of
from stn_client._prepared_call import Call
from stn_proto import join
from stn_proto.v1.tensor_pb2 import ArenaRef, ResidentRef

MIN_PLACED_BYTES = 16 * 1024
"""Smaller tensors are as fast in the message."""

MAX_FRAMED_BYTES = 128 * 1024
"""The most of tensors in a message, and of all the rest: what a unix socket takes at once.

Beyond it gRPC is faster, and what no frame can take would end the connection for all calls.
"""

_ID_BYTES = 16

_OFFSET = Struct("<Q")

_SOMEWHERE = 64
"""An offset other than 0, which protobuf would leave out."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A request for the local transport, with the places of its large tensors."""

    request: bytes
    """The serialized request."""
    places: Sequence[Bytes | None] = ()
    """Memory in which the tensors of the reply will be; None: in the message."""
    held: list[Any] = field(default_factory=list)
    """Slots that must not be used otherwise until the server has answered."""


def place(
    call: Call[Any], pool: Pool | None, client: str, *, may_grow: bool = True
) -> Placed | None:
    """Returns a call with its large tensors in arenas; copied, unless they are there already.

    Tensors that stay on the server are named.

    Args:
        call: The call, of any method.
        pool: Lends slots; None: there are no arenas.
        client: Name of the client that makes the call.
        may_grow: Whether the pool may ask the server for more memory.

    Returns:
        None if it has too many bytes for a frame, and there is no room for them in arenas.
    """
    envelope = call.envelope
    if pool is not None and envelope.own_bytes > MAX_FRAMED_BYTES:  # hardly a valid one has
        return None
    named = call.references(client) if call.residents else []
    if not any(named):
        if pool is None:
            return Placed(call.request)
        if max((*envelope.operands_bytes, *envelope.results_bytes), default=0) < MIN_PLACED_BYTES:
            return Placed(call.request)
        named = [None] * len(call.payloads)
    # Slots that are allocated here are freed by themselves if the call cannot be placed after all.
    operands: list[Slot | ResidentRef | None] = [
        reference or _shared(payload, pool, may_grow=may_grow)
        for reference, payload in zip(named, call.payloads, strict=True)
    ]
    results = [
        None
        if pool is None or size_bytes < MIN_PLACED_BYTES
        else pool.allocate(size_bytes, may_grow=may_grow)
        for size_bytes in envelope.results_bytes
    ]
    sent_bytes, received_bytes = (
        sum(size for size, slot in zip(sizes, some, strict=True) if slot is None)
        for sizes, some in (
            (envelope.operands_bytes, operands),
            (envelope.results_bytes, results),
        )
    )
    # Also of the reply: a server cannot answer in a frame what no frame can hold.
    if pool is not None and max(sent_bytes, received_bytes) > MAX_FRAMED_BYTES:
        return None
    # Repeated calls have the same pattern of places, so that only ids and offsets change.
    which = tuple(type(slot) for slot in (*operands, *results))
    form = envelope.placed.get(which)
    if form is None:
        form = envelope.placed[which] = _Form(envelope, which)
    used = [slot for slot in (*operands, *results) if slot is not None]
    # The server may write to a slot until it has answered, even after the caller has given up.
    held = [slot for slot in used if isinstance(slot, Slot)]
    sent = [payload for payload, slot in zip(call.payloads, operands, strict=True) if slot is None]
    places = [None if slot is None else slot.memory for slot in results]
    return Placed(form.request(used, sent), places, held)


def by_message(call: Call[Any], client: str) -> bytes:
    """Returns the request of a call with its tensors in it, except those on the server."""
    return cast("Placed", place(call, None, client)).request


class _Form:
    """The request of similar calls, certain of whose tensors are outside of the message.

    Args:
        envelope: What the calls have in common.
        which: Of the operands, and behind them of the results, what names their places.
    """

    def __init__(self, envelope: Envelope[Any], which: Sequence[type]) -> None:
        message: Any = type(envelope.message)()
        message.CopyFrom(envelope.message)
        operands = len(envelope.operands_bytes)
        ids = []

        def anywhere(size_bytes: int) -> ArenaRef:
            # Random ids are found in the serialized message
            # without parsing it: they occur only once.
            ids.append(secrets.token_bytes(_ID_BYTES))
            return ArenaRef(id=ids[-1], offset=_SOMEWHERE, byte_count=size_bytes)

        inline = 0
        for tensor in tensors_of(message):
            payload = tensor.payload
            if which[payload] is Slot:
                tensor.arena.CopyFrom(anywhere(envelope.operands_bytes[payload]))
            elif which[payload] is ResidentRef:
                ids.append(secrets.token_bytes(_ID_BYTES))
                tensor.resident.handle = ids[-1]
            else:
                # Payloads are numbered anew, as those in arenas no longer stand in the message.
                tensor.payload = inline
                inline += 1
        for size_bytes, kind in zip(envelope.results_bytes, which[operands:], strict=True):
            # Without placements the server sends all results;
            # with some, each result needs an entry.
            if Slot in which[operands:]:
                message.placement.append(anywhere(size_bytes) if kind is Slot else ArenaRef())
        self._serialized = message.SerializeToString()
        # Behind the id of an arena stand the tag of the offset, one byte, and the offset.
        self._spots = [self._serialized.index(arena_id) for arena_id in ids]

    def request(self, used: Sequence[Slot | ResidentRef], sent: Payloads) -> bytes:
        """Returns the serialized request of one call.

        Args:
            used: Slots and references of its tensors, in the order of the form.
            sent: Payloads of the tensors that have no place.
        """
        message = bytearray(self._serialized)
        for spot, one in zip(self._spots, used, strict=True):
            end = spot + _ID_BYTES
            if isinstance(one, ResidentRef):
                message[spot:end] = one.handle
                continue
            message[spot:end] = one.arena_id
            _OFFSET.pack_into(message, end + 1, one.offset)
        return join(bytes(message), sent)


def _shared(payload: memoryview | bytes, pool: Pool | None, *, may_grow: bool) -> Slot | None:
    """Returns the place of an operand in an arena; None if it is small, or there is no room."""
    if pool is None or len(payload) < MIN_PLACED_BYTES:
        return None
    # An array that `empty` made, or a result, is in an arena already: nothing is copied.
    there = pool.find(payload)
    if there is not None:
        return there
    slot = pool.allocate(len(payload), may_grow=may_grow)
    if slot is not None:
        slot.memory[:] = np.frombuffer(payload, np.uint8)
    return slot
