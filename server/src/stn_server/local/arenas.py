"""Arenas: memory that a caller on this host shares, so that tensors are read where it wrote them.

An arena is a memory file without a name, whose size is sealed: it cannot be opened by guessing, and
its pages cannot be taken away while they are read. A descriptor or a view keeps it, so a removed
arena stays mapped until the last batch that uses it has ended.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import weakref
from collections import Counter, deque

from stn_server.config import LocalConfig
from stn_server.errors import ArenaNotFoundError, ArenasFullError, InvalidRequestError

ID_BYTES = 16

ALIGNMENT_BYTES = 64
"""The alignment of tensors in an arena."""

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Nobody changes the size any more: a read beyond a new end would end the server by SIGBUS."""


class Arena:
    """Memory that is shared with one caller.

    Args:
        owner: Name of the caller.
        size_bytes: The size, which is a multiple of the page size.

    Raises:
        OSError: The system has no more of it.
    """

    def __init__(self, owner: str, size_bytes: int) -> None:
        self.id = secrets.token_bytes(ID_BYTES)
        self.owner = owner
        self.size_bytes = size_bytes
        self.descriptor = os.memfd_create("stn-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size_bytes)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS)
            self.mapping = mmap.mmap(self.descriptor, size_bytes)
        except OSError:
            self.close_descriptor()
            raise
        self._memory = memoryview(self.mapping)

    def close_descriptor(self) -> None:
        """Closes the file; the memory stays as long as views of it exist."""
        os.close(self.descriptor)

    def view(self, field: str, offset: int, size_bytes: int) -> memoryview:
        """Returns the bytes of a tensor.

        Args:
            field: Path of its reference, for errors.
            offset: The position of its first byte.
            size_bytes: The number of its bytes.

        Raises:
            InvalidRequestError: It does not lie within the arena, or begins between two places
                where tensors may begin.
        """
        if offset % ALIGNMENT_BYTES:
            expected = f"expected a multiple of {ALIGNMENT_BYTES}, got {offset}. Move the tensor."
            raise InvalidRequestError(f"{field}.offset", expected)
        if size_bytes > self.size_bytes or offset > self.size_bytes - size_bytes:
            end = f"{size_bytes} bytes at {offset}"
            expected = f"expected a region within {self.size_bytes} bytes, got {end}."
            raise InvalidRequestError(field, f"{expected} Ask for a larger arena.")
        return self._memory[offset : offset + size_bytes]


class Arenas:
    """The arenas of all callers, within the limits of the configuration.

    Memory counts until it is freed, when the last batch that uses it has ended: else a caller who
    gives arenas up and asks for new ones would get as many as there are batches.

    Concurrency: belongs to one event loop; `count` and `size_bytes` may be read in any thread.
    """

    def __init__(self, config: LocalConfig) -> None:
        self._config = config
        self._arenas: dict[bytes, Arena] = {}
        self._callers: Counter[str] = Counter()
        """The number of arenas of each caller."""
        self._callers_bytes: Counter[str] = Counter()
        self._gone: deque[tuple[str, int]] = deque()
        """Owners and sizes of memory that still counts; it may be freed in any thread, at any
        moment."""

    @property
    def count(self) -> int:
        """The number of arenas."""
        return len(self._arenas)

    @property
    def size_bytes(self) -> int:
        """The bytes of memory that arenas hold, with removed ones that calls still use."""
        # Sums of copies, as other threads may change both meanwhile.
        gone_bytes = sum(size_bytes for _, size_bytes in self._gone.copy())
        return sum(list(self._callers_bytes.values())) - gone_bytes

    def create(self, owner: str, size_bytes: int) -> Arena:
        """Makes an arena of at least this size for a caller.

        Raises:
            InvalidRequestError: The size is not positive.
            ArenasFullError: A limit is reached, or the system has no more memory of this kind.
        """
        if size_bytes < 1:
            raise InvalidRequestError("size_bytes", f"expected at least 1, got {size_bytes}.")
        size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._settle()
        config = self._config
        for what, limit, actual in (
            ("arenas", config.max_arenas, self.count + 1),
            ("arenas of one caller", config.max_caller_arenas, self._callers[owner] + 1),
            ("bytes of arenas", config.max_arena_bytes, self.size_bytes + size_bytes),
            (
                "bytes of arenas of one caller",
                config.max_caller_arena_bytes,
                self._callers_bytes[owner] + size_bytes,
            ),
        ):
            if actual > limit:
                raise ArenasFullError(what, limit, actual)
        try:
            arena = Arena(owner, size_bytes)
        except OSError as error:
            what = "bytes of arenas that the system has"
            raise ArenasFullError(what, self.size_bytes, self.size_bytes + size_bytes) from error
        self._arenas[arena.id] = arena
        self._callers[owner] += 1
        self._callers_bytes[owner] += size_bytes
        # For the mapping, not for the arena: what a batch still reads keeps the mapping alone.
        weakref.finalize(arena.mapping, self._gone.append, (owner, size_bytes)).atexit = False
        return arena

    def remove(self, arena: Arena) -> None:
        """Forgets an arena, whose memory stays until no call uses it any more."""
        if self._arenas.pop(arena.id, None) is None:
            return
        self._callers[arena.owner] -= 1
        self._callers += Counter()  # forgets those who have none

    def _settle(self) -> None:
        """Stops counting memory that has been freed."""
        while self._gone:
            owner, size_bytes = self._gone.popleft()
            self._callers_bytes[owner] -= size_bytes
            if not self._callers_bytes[owner]:
                del self._callers_bytes[owner]

    def find(self, owner: str, field: str, arena_id: bytes) -> Arena:
        """Returns the arena of a caller.

        Raises:
            ArenaNotFoundError: The caller has none with this id, even if another one has.
        """
        arena = self._arenas.get(arena_id)
        if arena is None or arena.owner != owner:
            raise ArenaNotFoundError(field)
        return arena
