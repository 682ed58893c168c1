"""Copies of resident tensors in the memory of a device, so that they cross the bus once."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
from torch import Tensor


class ResidentMemory(np.ndarray):
    """The bytes of a resident tensor, (size,) uint8: devices may keep copies as long as they exist.

    They do not change once a call reads them.
    """

    @classmethod
    def over(cls, memory: memoryview) -> memoryview:
        """Returns the same bytes, read-only, as those of a resident tensor."""
        return np.frombuffer(memory, np.uint8).view(cls).data.toreadonly()


class DeviceCopies:
    """Copies of resident tensors on one device, of which the least recently used make room.

    A batch holds the copies that it reads, so that none is freed under it, whatever is forgotten
    meanwhile.

    Concurrency: may be used in any thread.

    Args:
        max_bytes: The most bytes of all copies together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        """The bytes of all copies."""
        self._all: OrderedDict[int, tuple[weakref.ref[ResidentMemory], Tensor]] = OrderedDict()
        """The copies by the identity of their memory in the host, least recently used first."""
        # Reentrant: the end of a resident tensor may come while this thread holds the lock.
        self._lock = threading.RLock()

    def resident_of(self, operand: bytes | memoryview) -> ResidentMemory | None:
        """Returns the resident tensor that an operand is, if there can be room for it."""
        memory: Any = operand.obj if isinstance(operand, memoryview) else None
        can_stay = isinstance(memory, ResidentMemory) and memory.size <= self.max_bytes
        return memory if can_stay else None

    def find(self, memory: ResidentMemory) -> Tensor | None:
        """Returns the copy of a resident tensor, (size,) uint8; None if there is none."""
        with self._lock:
            found = self._all.get(id(memory))
            if found is None:
                return None
            self._all.move_to_end(id(memory))
            return found[1]

    def keep(self, memory: ResidentMemory, copy: Tensor) -> None:
        """Keeps a copy, whose bytes are there, until the resident tensor ends or room is needed."""
        key = id(memory)
        with self._lock:
            if key in self._all:  # by another lane meanwhile
                return
            # It ends before another one can be at this place in memory.
            self._all[key] = weakref.ref(memory, lambda _: self._forget(key)), copy
            self.size_bytes += copy.numel()
            while self.size_bytes > self.max_bytes:
                self._forget(next(iter(self._all)))

    def clear(self) -> None:
        """Frees the memory of every copy that no batch holds."""
        with self._lock:
            self._all.clear()
            self.size_bytes = 0

    def _forget(self, key: int) -> None:
        with self._lock:
            _, copy = self._all.pop(key, (None, None))
            if copy is not None:
                self.size_bytes -= copy.numel()
