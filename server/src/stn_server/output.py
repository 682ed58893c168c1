"""Standard output and standard error that never wait for their reader.

A pipe that nobody reads takes 64 KiB and then holds up its writer, which must not be the
event loop: one line too many would stop every call, and the signal that ends the server.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from stn_server.tuning import LOG_CAPACITY_BYTES


class BackgroundWriter(io.TextIOBase):
    """A text stream that hands what is written to a file descriptor in a thread of its own.

    What does not fit between the two is dropped and counted. Once the descriptor has taken all
    that waited, the number of dropped writes is told.

    Args:
        descriptor: The file descriptor that text goes to, as UTF-8.
        recovered: Called in the writing thread with the number of dropped writes.
        capacity_bytes: How many bytes may wait.

    Concurrency: any thread.
    """

    def __init__(
        self,
        descriptor: int,
        recovered: Callable[[int], None] = lambda _: None,
        capacity_bytes: int = LOG_CAPACITY_BYTES,
    ) -> None:
        self._descriptor = descriptor
        self._recovered = recovered
        self._capacity_bytes = capacity_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._observe: Callable[[int], None] = lambda _: None
        self._changed = threading.Condition()
        # A daemon, since a descriptor that takes nothing must not hold up the end of the process.
        threading.Thread(target=self._write_all, daemon=True, name="stn-output").start()

    def writable(self) -> bool:
        """Returns that it can be written to, as files do."""
        return True

    def write(self, text: str) -> int:
        """Queues text or drops it, and returns immediately; a line in one piece stays whole."""
        piece = text.encode(errors="backslashreplace")
        with self._changed:
            fits = self._waiting_bytes + len(piece) <= self._capacity_bytes
            if fits:
                self._waiting.append(piece)
                self._waiting_bytes += len(piece)
                self._changed.notify_all()
        if not fits:
            self._drop()
        return len(text)

    def watch(self, observe: Callable[[int], None]) -> None:
        """Registers a function that is told how many writes were dropped, whenever that happens."""
        with self._changed:  # both at one instant, so that no drop is told twice
            self._observe = observe
            before = self._dropped
        observe(before)

    def drain(self, timeout_s: float) -> bool:
        """Waits until all has been written, or for so long; returns whether all has been."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                piece = self._waiting[0]
            written = _written(self._descriptor, piece)
            if not written:
                self._drop()
            dropped = 0
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(piece)
                if written and not self._waiting:
                    dropped, self._dropped = self._dropped, 0
                self._changed.notify_all()
            if dropped:
                self._recovered(dropped)

    def _drop(self) -> None:
        with self._changed:
            self._dropped += 1
            observe = self._observe
        observe(1)


def _written(descriptor: int, piece: bytes) -> bool:
    """Writes all of a piece, however long that takes; returns whether there was a reader for it."""
    left = memoryview(piece)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # who opened it wants it so
            select.select([], [descriptor], [])
        except OSError:  # closed, or its reader has gone
            return False
    return True
