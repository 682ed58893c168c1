"""How many calls of a client are in flight, and whose turn it is next."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A bound on calls in flight for threads, which get their turns in the order they came in.

    `threading.Semaphore` keeps no order: a thread that comes later may take what was just freed.

    Args:
        limit: How many threads have a turn at the same time.

    Concurrency: thread-safe.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = self._free = limit
        self._waiting: deque[threading.Lock] = deque()
        """A locked lock for every thread that waits; unlocking it gives the thread its turn."""

    @property
    def taken(self) -> int:
        """How many threads have a turn."""
        return self._limit - self._free

    def take(self, timeout_s: float | None) -> bool:
        """Waits for a turn, and says whether it came in time."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        wait_s = -1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        taken = False
        try:
            taken = turn.acquire(timeout=wait_s)
        finally:
            if not taken:  # too late, or interrupted by a signal
                self._leave(turn)
        return taken

    def give_back(self) -> None:
        """Ends a turn: the thread that has waited longest gets it."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1

    def _leave(self, turn: threading.Lock) -> None:
        """Stops waiting. A turn that was given at the last moment goes to the next one."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self.give_back()
