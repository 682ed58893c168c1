"""Memory that a client shares with its server, so that large tensors need not be sent.

A `Pool` asks the server for arenas and allocates slots in them, as arrays of bytes. A slot is free
again when there is no reference to its array any more, nor to any view of it: no result that is
still held ever changes. Tensors that are in an arena already are named to the server as they are.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
import weakref
from bisect import bisect
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from stn_client._ttrpc import CONNECT_S, ConnectionLostError, Metadata, reply_of, request_of
from stn_proto import WireFormatError
from stn_proto.ttrpc import ClientConnection
from stn_proto.v1.arena_pb2 import CreateArenaReply, CreateArenaRequest

SOCKET = "arenas.sock"
"""Within the folder that a server names."""

CREATE = "/stn.v1.Arenas/Create"

ALIGNMENT_BYTES = 64

MIN_ARENA_BYTES = 64 * 1024 * 1024
"""Pages take memory only once they are written to."""

REFUSED_PAUSE_S = 5.0
"""A server that had no more arenas is asked again after this pause."""

PLENTIFUL_BYTES = 256 * 1024 * 1024
"""Up to so many allocated bytes, tensors of torch keep their slots; beyond it they are copies, so
that calls have slots left."""

READ_BYTES = 64 * 1024

MAX_DESCRIPTORS = 4
"""The most file descriptors that are received; all but one are closed."""

Bytes = NDArray[np.uint8]

REFUSALS = (grpc.RpcError, OSError, ConnectionLostError, WireFormatError, DecodeError, ValueError)
"""Exceptions of a failed request for an arena; ValueError: a file smaller than the server says."""


class Arena:
    """Memory that both sides see, and its free regions.

    Args:
        folder: Where the sockets of the server are.
        size_bytes: The least that is needed.
        metadata: Sent along.

    Raises:
        OSError: There is no server, or no memory.
        grpc.RpcError: The server refuses.
        ConnectionLostError: It ended the connection.
    """

    def __init__(self, folder: Path, size_bytes: int, metadata: Metadata) -> None:
        self._lease = socket.socket(socket.AF_UNIX)
        try:
            self._lease.settimeout(CONNECT_S)
            self._lease.connect(str(folder / SOCKET))
            reply, descriptor = _create(self._lease, size_bytes, metadata)
            try:
                # Raises if the file is smaller than the server says: a read beyond its end would be
                # a SIGBUS.
                mapped = mmap.mmap(descriptor, reply.size_bytes)
            finally:
                os.close(descriptor)
        except BaseException:
            self._lease.close()
            raise
        self.id = reply.id
        # The map lives as long as arrays over it: there is no unmapping under an array in use.
        self.memory: Bytes = np.frombuffer(mapped, np.uint8)
        self.address = address_of(self.memory)
        self._free = [(0, reply.size_bytes)]
        """Offset and size, in order, no two beside each other."""
        _ARENAS.add(self)

    @property
    def is_free(self) -> bool:
        """True if no slot is allocated."""
        return self._free == [(0, len(self.memory))]

    def allocate(self, size_bytes: int) -> int | None:
        """Allocates a slot of this size; returns its offset, or None if none is free."""
        # First fit: calls of one shape free and allocate the same slots, so that little is lost
        # between them.
        for place, (offset, free_bytes) in enumerate(self._free):
            if free_bytes >= size_bytes:
                rest = (offset + size_bytes, free_bytes - size_bytes)
                self._free[place : place + 1] = [rest] if rest[1] else []
                return offset
        return None

    def free(self, offset: int, size_bytes: int) -> None:
        """Frees a slot, and joins it with free regions beside it."""
        place = bisect(self._free, (offset, 0))
        first, last = place, place
        end = offset + size_bytes
        if place and sum(self._free[place - 1]) == offset:
            first, offset = place - 1, self._free[place - 1][0]
        if place < len(self._free) and self._free[place][0] == end:
            last, end = place + 1, sum(self._free[place])
        self._free[first:last] = [(offset, end - offset)]

    def offset_of(self, address: int, size_bytes: int) -> int | None:
        """Returns the offset of a tensor in this arena; None if it is not in it, or not aligned."""
        offset = address - self.address
        inside = 0 <= offset <= len(self.memory) - size_bytes
        # A view into a slot may begin anywhere; the contract names aligned tensors only.
        return offset if inside and offset % ALIGNMENT_BYTES == 0 else None

    def end_lease(self) -> None:
        """Ends the lease: the server forgets the arena, and arrays in it stay valid."""
        self._lease.close()

    def __del__(self) -> None:
        self._lease.close()


class Slot(NamedTuple):
    """Memory for one tensor, which stays allocated as long as there are references to it."""

    memory: Bytes
    arena_id: bytes
    offset: int
    """Offset in the arena, in bytes."""


class Pool:
    """Slots in the arenas of one server.

    Args:
        folder: Where its sockets are.
        metadata: Says who asks; called whenever an arena is asked for.

    Concurrency: thread-safe, and safe to be used while the garbage collector runs.
    """

    def __init__(self, folder: Path, metadata: Callable[[], Metadata]) -> None:
        self._folder = folder
        self._metadata = metadata
        self._lock, self._growing = threading.Lock(), threading.Lock()
        self._arenas: list[Arena] = []
        self._returned: deque[tuple[Arena, int, int]] = deque()
        """Slots to free, from finalizers, which may run at any moment and must not wait for a
        lock."""
        self._allocated_bytes = 0
        self._refused_until_s = 0.0
        self._is_closed = False
        _POOLS[id(self)] = self

    def allocate(self, size_bytes: int, *, may_grow: bool = True) -> Slot | None:
        """Returns a slot of so many bytes; None if there is no room and no further arena.

        Args:
            size_bytes: The size of the slot.
            may_grow: Whether to ask the server for another arena, which may take a while.
        """
        # Rounded up, so that the next slot is aligned, and at least one: offsets must differ.
        slot_bytes = max(1, -(-size_bytes // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
        slot = self._free_slot(slot_bytes, size_bytes)
        if slot is not None or not may_grow:
            return slot
        with self._growing:  # not the other lock: whoever gets what is there must not wait for it
            # Once more: another thread may have grown the pool while this one waited.
            slot = self._free_slot(slot_bytes, size_bytes)
            return self._grown(slot_bytes, size_bytes) if slot is None else slot

    def find(self, payload: memoryview | bytes) -> Slot | None:
        """Returns the slot of a tensor that is in an arena of this pool; else None."""
        memory = np.frombuffer(payload, np.uint8)
        address = address_of(memory)
        # Without the lock: the list is only appended to or replaced, and this runs for every
        # tensor.
        for arena in self._arenas:
            offset = arena.offset_of(address, len(payload))
            if offset is not None:
                return Slot(memory, arena.id, offset)
        return None

    def forget_used_arenas(self) -> None:
        """Before a fork, gives up arenas with allocated slots, which a child may hold, too."""
        with self._growing, self._lock:
            # First, so that arenas all of whose slots are to be freed are kept.
            self._free_returned()
            self._arenas = [arena for arena in self._arenas if arena.is_free]

    def close(self) -> None:
        """Ends the leases of all arenas, and asks for no more; allocated memory stays valid."""
        with self._lock:
            self._is_closed = True
            # Closed outside of the lock, as no other thread need wait for that.
            arenas, self._arenas = self._arenas, []
        for arena in arenas:
            arena.end_lease()

    def _free_returned(self) -> None:
        while self._returned:
            arena, offset, returned_bytes = self._returned.popleft()
            self._allocated_bytes -= returned_bytes
            arena.free(offset, returned_bytes)

    def _free_slot(self, slot_bytes: int, size_bytes: int) -> Slot | None:
        """Returns a slot in an existing arena; None if none has room."""
        with self._lock:
            self._free_returned()
            for arena in self._arenas:
                offset = arena.allocate(slot_bytes)
                if offset is not None:
                    return self._slot_at(arena, offset, slot_bytes, size_bytes)
        return None

    def _may_ask(self) -> bool:
        return not self._is_closed and time.monotonic() >= self._refused_until_s

    def _grown(self, slot_bytes: int, size_bytes: int) -> Slot | None:
        """Returns a slot in a new arena; None if the server gives none."""
        if not self._may_ask():
            return None
        try:
            # Larger than asked for: an arena for each tensor would be one file and socket each.
            arena_bytes = max(MIN_ARENA_BYTES, slot_bytes)
            arena = Arena(self._folder, arena_bytes, self._metadata())
        except REFUSALS:
            # Calls go by message meanwhile; to ask before each of them would slow all of them down.
            self._refused_until_s = time.monotonic() + REFUSED_PAUSE_S
            return None
        with self._lock:
            if self._is_closed:  # meanwhile
                arena.end_lease()
                return None
            self._arenas.append(arena)
            return self._slot_at(arena, arena.allocate(slot_bytes) or 0, slot_bytes, size_bytes)

    def _slot_at(self, arena: Arena, offset: int, slot_bytes: int, size_bytes: int) -> Slot:
        self._allocated_bytes += slot_bytes
        memory = arena.memory[offset : offset + size_bytes]
        # Views of a view refer to what has the memory; over a memoryview the slot is what has it.
        array = np.frombuffer(memory.data, np.uint8)
        reference = _SlotReference(array, _return)
        # The slot keeps its arena alive, and so the memory, after the pool is gone.
        reference.slot = arena, offset, slot_bytes
        reference.returned = self._returned
        reference.is_plentiful = self._allocated_bytes <= PLENTIFUL_BYTES
        reference.key = id(array)
        # A weak reference that dies before its object never calls back.
        _REFERENCES[reference.key] = reference
        return Slot(array, arena.id, offset)


class _SlotReference(weakref.ref[Bytes]):
    """A weak reference to the array of a slot, which is freed when the array is deleted."""

    slot: tuple[Arena, int, int]
    returned: deque[tuple[Arena, int, int]]
    """Queue of slots to free, to which this one is added."""
    is_plentiful: bool
    key: int


_REFERENCES: dict[int, _SlotReference] = {}
"""All slots that are allocated, by the identity of their arrays."""


def _return(reference: Any, references: dict[int, _SlotReference] = _REFERENCES) -> None:
    """Returns a slot to its pool; called at any moment, also at the end of the interpreter."""
    references.pop(reference.key, None)
    reference.returned.append(reference.slot)


def may_be_kept(array: object) -> bool:
    """Returns whether an array is a slot's, and enough is free to keep it for long."""
    reference = _REFERENCES.get(id(array))
    # An id may be that of a new object by now, so the array itself is compared.
    return reference is not None and reference() is array and reference.is_plentiful


def address_of(array: NDArray[np.uint8]) -> int:
    """Returns the address of an array in memory."""
    address: int = array.__array_interface__["data"][0]
    return address


def _create(
    lease: socket.socket, size_bytes: int, metadata: Metadata
) -> tuple[CreateArenaReply, int]:
    """Asks for an arena; returns the server's reply and the descriptor of the arena's file."""
    frames = ClientConnection()
    message = CreateArenaRequest(size_bytes=size_bytes).SerializeToString()
    lease.sendall(frames.request(request_of(CREATE, message, CONNECT_S, metadata))[1])
    descriptors: list[int] = []
    try:
        while True:
            received, found, _, _ = socket.recv_fds(
                lease, READ_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            # It may come with any part of the reply, and a peer may send more than one: all are
            # closed.
            descriptors += found
            for _, response in frames.receive(received):
                reply = CreateArenaReply.FromString(reply_of(response))
                if descriptors:
                    return reply, descriptors.pop()
            if not received:
                raise ConnectionLostError
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


_ARENAS: weakref.WeakSet[Arena] = weakref.WeakSet()
_POOLS: weakref.WeakValueDictionary[int, Pool] = weakref.WeakValueDictionary()


def _before_fork() -> None:
    for reference in _POOLS.valuerefs():  # of a copy: another thread may make a pool meanwhile
        pool = reference()
        if pool is not None:
            pool.forget_used_arenas()


def _after_fork_in_child() -> None:
    for arena in list(_ARENAS):
        arena.end_lease()  # that of the child, so that it ends with that of the parent
    _POOLS.clear()  # of no use here, and threads that are not here may hold their locks


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
