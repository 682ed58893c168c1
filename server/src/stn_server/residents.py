"""Resident tensors: a cache on the server, whose entries later calls name by a handle.

A cache, not state: a tensor is evicted when it was not used for as long as its lease, or was least
recently used when others need the room, and its caller sends it again. A call holds the tensors
that it names until it is computed: those stay, and their memory counts until no call reads it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import takewhile

import numpy as np

from stn_proto.v1 import tensor_pb2
from stn_proto.v1.tensor_pb2 import ResidentRef
from stn_server.batching.device_copies import ResidentMemory
from stn_server.config import ResidentsConfig
from stn_server.errors import (
    HandleNotFoundError,
    InvalidRequestError,
    QuotaTooSmallError,
    ResidentsFullError,
)
from stn_server.events import NO_LISTENERS, Events

HANDLE_BYTES = 16

LEAST_BYTES = 1024
"""The least that a tensor counts for: the memory that it takes beside its bytes."""


class Eviction(StrEnum):
    """The reason why a tensor was evicted that its caller had not released."""

    LEASE = "lease"
    ROOM = "room"


class Resident:
    """A tensor that stays for its caller.

    Args:
        owner: Name of the caller.
        data_type: The type of its elements.
        memory: The bytes of the tensor, which do not change once they have been received.
        received_bytes: The number of bytes that have been received.
    """

    def __init__(
        self,
        owner: str,
        data_type: tensor_pb2.DataType,
        memory: memoryview,
        received_bytes: int,
    ) -> None:
        self.handle = secrets.token_bytes(HANDLE_BYTES)
        self.owner = owner
        self.data_type = data_type
        self.size_bytes = len(memory)
        self.counted_bytes = max(self.size_bytes, LEAST_BYTES)
        """How much of the limits it takes."""
        self.received_bytes = received_bytes
        self.used_at = 0.0
        """Instant of the clock of `Residents`."""
        self._memory = memory
        self._read = ResidentMemory.over(memory)
        self._last: tuple[int, int] = 0, received_bytes
        """Begin and end of the last piece."""
        self._view: Callable[[], memoryview | None] = lambda: None

    @property
    def missing_bytes(self) -> int:
        """The number of bytes that are still to come."""
        return self.size_bytes - self.received_bytes

    @property
    def is_used(self) -> bool:
        """Whether a call holds it."""
        return self._view() is not None

    def view(self) -> memoryview:
        """Returns all of its bytes; it counts as used while the caller keeps this very object."""
        view = self._view()
        if view is None:
            # Only calls hold the slice: when the last one lets go of it the tensor is unused,
            # whether or not that call ended in order.
            view = self._read[:]
            self._view = weakref.ref(view)
        return view

    def write(self, offset: int, piece: memoryview) -> None:
        """Writes the next piece.

        Args:
            offset: The position of the first byte.
            piece: The bytes. The last piece may come again, and changes nothing then.

        Raises:
            InvalidRequestError: It begins elsewhere, or goes beyond the end.
        """
        end = offset + len(piece)
        if (offset, end) == self._last:
            return
        if offset != self.received_bytes:
            expected = f"expected {self.received_bytes}, where the piece before ended, got {offset}"
            raise InvalidRequestError("offset", f"{expected}. Send pieces one behind the other.")
        if not len(piece) or end > self.size_bytes:
            expected = f"expected 1 to {self.missing_bytes} bytes, got {len(piece)}"
            raise InvalidRequestError("piece", f"{expected}. Send what is missing.")
        self._memory[offset:end] = piece
        self.received_bytes = end
        self._last = offset, end


class Residents:
    """All resident tensors of a server, within the limits of its configuration.

    Args:
        config: The limits.
        events: Listeners of evictions.
        now: A clock in seconds.

    Concurrency: belongs to one event loop; `count` and `size_bytes` may be read in any thread.
    """

    def __init__(
        self,
        config: ResidentsConfig,
        events: Events = NO_LISTENERS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = config.address
        """The address that is told with handles: calls that use them have to go there."""
        self._config = config
        self._events = events
        self._now = now
        self._all: OrderedDict[bytes, Resident] = OrderedDict()
        """All tensors, least recently used first."""
        self._by_owner: dict[str, OrderedDict[bytes, Resident]] = {}
        """The same by their owners."""
        self._bytes: Counter[str] = Counter()
        """The counted bytes of each owner."""
        self._removed: list[Resident] = []
        """Tensors that were removed while calls still used them, and whose memory still counts."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """The number of resident tensors."""
        return len(self._all)

    @property
    def size_bytes(self) -> int:
        """The counted bytes of all resident tensors, and of removed ones that calls still use."""
        # Copies here and below, as metrics ask in another thread.
        removed = [one for one in self._removed if one.is_used]
        return sum(list(self._bytes.values())) + _counted(removed)

    def begin(
        self, owner: str, data_type: tensor_pb2.DataType, size_bytes: int, piece: memoryview
    ) -> Resident:
        """Makes room for a tensor and stores its first piece.

        Args:
            owner: Name of the caller.
            data_type: The type of its elements.
            size_bytes: The size of the whole tensor.
            piece: The first bytes of the tensor.

        Raises:
            InvalidRequestError: The piece is empty, or larger than the tensor.
            QuotaTooSmallError: One caller may not have so much.
            ResidentsFullError: There is no room at the moment.
        """
        if not 1 <= len(piece) <= size_bytes:
            expected = f"expected 1 to {size_bytes} bytes, got {len(piece)}. Say how many there are"
            raise InvalidRequestError("piece", f"{expected} in `byte_count`.")
        self._make_room(owner, size_bytes)
        if len(piece) == size_bytes:
            return self._add(Resident(owner, data_type, _own(piece), size_bytes))
        # Not zeroed: no call reads a tensor before all of it has been received.
        memory: memoryview = np.empty(size_bytes, np.uint8).data
        memory[: len(piece)] = piece
        return self._add(Resident(owner, data_type, memory, len(piece)))

    def keep(
        self, owner: str, operands: Iterable[tuple[tensor_pb2.DataType, memoryview, bytes]]
    ) -> list[ResidentRef]:
        """Stores operands of a call as resident tensors.

        Args:
            owner: Name of the caller.
            operands: Their data types, bytes, and handles: empty of those that have none yet.

        Returns:
            One of each, or none at all if there is no room for them.
        """
        kept: list[ResidentRef] = []
        try:
            for data_type, memory, handle in operands:
                if handle:
                    kept.append(ResidentRef(handle=handle, address=self.address))
                    continue
                resident = self.begin(owner, data_type, len(memory), memory)
                kept.append(ResidentRef(handle=resident.handle, address=self.address))
        except (QuotaTooSmallError, ResidentsFullError):
            # Those begun so far are unknown to the caller, and go when their lease is over.
            return []
        return kept

    def find(self, owner: str, field: str, handle: bytes) -> Resident:
        """Returns a tensor of a caller, and renews its lease.

        Raises:
            HandleNotFoundError: The caller has none of this handle, even if another one has.
        """
        # A lease that is over ends here, even if the timer has not run yet.
        self._expire()
        resident = self._all.get(handle)
        # One error for both: whether another caller has the handle is not disclosed.
        if resident is None or resident.owner != owner:
            raise HandleNotFoundError(field)
        # A use moves it to the end of both orders, which therefore are those of the last uses.
        resident.used_at = self._now()
        self._all.move_to_end(handle)
        self._by_owner[owner].move_to_end(handle)
        return resident

    def release(self, owner: str, handles: Iterable[bytes]) -> int:
        """Forgets tensors of a caller; returns how many were there."""
        found = 0
        for handle in handles:
            resident = self._all.get(handle)
            if resident is not None and resident.owner == owner:
                self._remove(resident)
                found += 1
        return found

    def close(self) -> None:
        """Forgets all tensors, at the end of the server."""
        for resident in list(self._all.values()):
            self._remove(resident)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _add(self, resident: Resident) -> Resident:
        resident.used_at = self._now()
        self._all[resident.handle] = resident
        self._by_owner.setdefault(resident.owner, OrderedDict())[resident.handle] = resident
        self._bytes[resident.owner] += resident.counted_bytes
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._config.lease_s, self._on_timer)
        return resident

    def _remove(self, resident: Resident) -> None:
        del self._all[resident.handle]
        own = self._by_owner[resident.owner]
        del own[resident.handle]
        self._bytes[resident.owner] -= resident.counted_bytes
        if not own:
            del self._by_owner[resident.owner], self._bytes[resident.owner]
        if resident.is_used:
            # Its memory counts until the last call that uses it has ended.
            self._removed.append(resident)

    def _evict(self, residents: Iterable[Resident], why: Eviction) -> None:
        for resident in residents:
            self._remove(resident)
            for tell in self._events.tensor_evicted:
                tell(why)

    def _expire(self) -> None:
        """Evicts tensors whose lease is over, unless a call uses them."""
        ended = self._now() - self._config.lease_s
        # They are in order of use, so that the first one within its lease ends the look.
        over = takewhile(lambda one: one.used_at <= ended, self._all.values())
        self._evict([one for one in over if not one.is_used], Eviction.LEASE)
        self._removed = [one for one in self._removed if one.is_used]

    def _on_timer(self) -> None:
        """Evicts what has expired, also while no call comes, and sets the next timer."""
        self._timer = None
        self._expire()
        if self._all:
            oldest = next(iter(self._all.values()))
            left_s = oldest.used_at + self._config.lease_s - self._now()
            pause_s = left_s if left_s > 0 else self._config.lease_s  # a call uses it
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._on_timer)

    def _make_room(self, owner: str, size_bytes: int) -> None:
        """Evicts least recently used tensors, those of the caller first.

        Raises:
            QuotaTooSmallError: One caller may not have so much.
            ResidentsFullError: Calls use what would have to go; then nothing is evicted.
        """
        config, needed_bytes = self._config, max(size_bytes, LEAST_BYTES)
        most_bytes = min(config.max_caller_bytes, config.max_bytes)
        unit = "bytes of resident tensors of one caller"
        if needed_bytes > most_bytes:
            raise QuotaTooSmallError("byte_count", most_bytes, needed_bytes, unit)
        self._expire()
        going: dict[bytes, Resident] = {}
        # The limit of the caller first: what goes for its sake makes room for the other limit, too.
        removed = [one for one in self._removed if one.owner == owner]
        _choose(
            self._by_owner.get(owner, OrderedDict()),
            self._bytes[owner] + _counted(removed) + needed_bytes,
            config.max_caller_bytes,
            unit,
            going,
        )
        wanted_bytes = self.size_bytes - _counted(going.values()) + needed_bytes
        _choose(self._all, wanted_bytes, config.max_bytes, "bytes of resident tensors", going)
        # Only when both limits can be kept: a refusal evicts nothing.
        self._evict(list(going.values()), Eviction.ROOM)


def _choose(
    residents: OrderedDict[bytes, Resident],
    wanted_bytes: int,
    most_bytes: int,
    what: str,
    going: dict[bytes, Resident],
) -> None:
    """Chooses least recently used tensors to evict until the others fit a limit.

    Raises:
        ResidentsFullError: Calls use what would have to go.
    """
    left_bytes = wanted_bytes
    for handle, resident in residents.items():
        if left_bytes <= most_bytes:
            return
        if handle not in going and not resident.is_used:
            left_bytes -= resident.counted_bytes
            going[handle] = resident
    if left_bytes > most_bytes:
        raise ResidentsFullError(what, most_bytes, left_bytes)


def _counted(residents: Iterable[Resident]) -> int:
    return sum(resident.counted_bytes for resident in residents)


def _own(memory: memoryview) -> memoryview:
    """Returns the same bytes in memory that does not change and holds little else.

    Bytes of a message are not copied if they are most of it.
    """
    whole = memory.obj
    is_most = memory.readonly and isinstance(whole, bytes) and 2 * len(memory) >= len(whole)
    return memory if is_most else memoryview(bytes(memory))
