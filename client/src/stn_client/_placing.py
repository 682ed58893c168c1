"""Calls whose large tensors lie in arenas instead of in their messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stn_client._arenas import Bytes, Pool
from stn_client._calls import Call, tensors_of
from stn_proto import join
from stn_proto.v1.tensor_pb2 import ArenaRef

MIN_PLACED_BYTES = 16 * 1024
"""Smaller tensors are as fast in the message."""

MAX_FRAMED_BYTES = 128 * 1024
"""The most of tensors in a message, and of all the rest: what a unix socket takes at once.

Beyond it gRPC is faster, and what no frame can take would end the connection for all calls.
"""


@dataclass(frozen=True, slots=True)
class Placed:
    """A call as it goes by the local transport."""

    request: bytes
    """Serialized."""
    places: Sequence[Bytes | None] = ()
    """Where the tensors of the reply will lie."""
    held: list[Any] = field(default_factory=list)
    """What must not be used for anything else until the server has answered."""


def place(call: Call[Any], pool: Pool, *, may_grow: bool = True) -> Placed | None:
    """The call with its large tensors in arenas; copied, unless they are there already.

    Args:
        call: Any.
        pool: Lends slots.
        may_grow: Whether the pool may ask the server for more memory.

    Returns:
        None if it has too many bytes for a frame, and there is no room for them in arenas.
    """
    if call.message.ByteSize() > MAX_FRAMED_BYTES:  # hardly a valid one has
        return None
    operands_bytes = [len(payload) for payload in call.payloads]
    if max((*operands_bytes, *call.results_bytes), default=0) < MIN_PLACED_BYTES:
        return Placed(call.request)
    message: Any = type(call.message)()
    message.CopyFrom(call.message)
    inline: list[memoryview] = []
    held: list[Any] = []
    for tensor in tensors_of(message):
        payload = call.payloads[tensor.payload]
        shared = _shared(payload, pool, may_grow=may_grow)
        if shared is None:
            tensor.payload = len(inline)
            inline.append(payload)
        else:
            reference, holder = shared
            tensor.arena.CopyFrom(reference)
            held.append(holder)
    places: list[Bytes | None] = []
    inline_results_bytes = 0
    for size_bytes in call.results_bytes:
        room = _room(size_bytes, pool, may_grow=may_grow)
        if room is None:
            places.append(None)
            message.placement.add()
            inline_results_bytes += size_bytes
        else:
            reference, slot = room
            places.append(slot)
            message.placement.append(reference)
    if max(sum(map(len, inline)), inline_results_bytes) > MAX_FRAMED_BYTES:
        return None
    held += places
    return Placed(join(message.SerializeToString(), inline), places, held)


def _shared(payload: memoryview, pool: Pool, *, may_grow: bool) -> tuple[ArenaRef, object] | None:
    """Where the bytes of an operand are in an arena, and what holds them there.

    None if they are better sent, or there is no room.
    """
    if len(payload) < MIN_PLACED_BYTES:
        return None
    reference = pool.reference_to(payload)
    if reference is not None:
        return reference, payload
    room = _room(len(payload), pool, may_grow=may_grow)
    if room is not None:
        room[1][:] = np.frombuffer(payload, np.uint8)
    return room


def _room(size_bytes: int, pool: Pool, *, may_grow: bool) -> tuple[ArenaRef, Bytes] | None:
    """A slot for so many bytes; None if they are better sent, or there is no room."""
    slot = pool.take(size_bytes, may_grow=may_grow) if size_bytes >= MIN_PLACED_BYTES else None
    reference = None if slot is None else pool.reference_to(slot.data)
    return None if slot is None or reference is None else (reference, slot)
