"""What a client counts of its own calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """What a client has done since it was made, in this process.

    Attributes:
        finished: Calls with a result.
        failed: Calls that ended with an error, or were cancelled, after their arguments were
            accepted.
        pending: Calls under way now, those that wait for their turn among them.
        repeated: Attempts that were made because the one before was refused or lost.
        local: Finished calls that went by the local transport.
        operands_bytes: Tensors that finished calls gave to the server.
        results_bytes: Tensors that they got back.
        total_s: Durations of finished calls, waits and retries included, all together, in seconds.
        longest_s: The longest of them.
    """

    finished: int = 0
    failed: int = 0
    pending: int = 0
    repeated: int = 0
    local: int = 0
    operands_bytes: int = 0
    results_bytes: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0

    @property
    def mean_s(self) -> float:
        """The mean duration of finished calls, in seconds; 0 before the first."""
        return self.total_s / self.finished if self.finished else 0.0


class Counts:
    """The numbers of `ClientStatistics` as they grow.

    Concurrency: thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = self._finished = self._failed = self._repeated = self._local = 0
        self._operands_bytes = self._results_bytes = 0
        self._total_s = self._longest_s = 0.0

    def begin(self) -> None:
        """Counts a call that is under way from now on."""
        with self._lock:
            self._begun += 1

    def repeat(self) -> None:
        """Counts an attempt that is not the first of its call."""
        with self._lock:
            self._repeated += 1

    def fail(self) -> None:
        """Counts a call that has no result."""
        with self._lock:
            self._failed += 1

    def finish(
        self, duration_s: float, operands_bytes: int, results_bytes: int, *, local: bool
    ) -> None:
        """Counts a call that has its result."""
        with self._lock:
            self._finished += 1
            self._local += local
            self._operands_bytes += operands_bytes
            self._results_bytes += results_bytes
            self._total_s += duration_s
            self._longest_s = max(self._longest_s, duration_s)

    def snapshot(self) -> ClientStatistics:
        """All numbers of one instant."""
        with self._lock:
            return ClientStatistics(
                finished=self._finished,
                failed=self._failed,
                pending=self._begun - self._finished - self._failed,
                repeated=self._repeated,
                local=self._local,
                operands_bytes=self._operands_bytes,
                results_bytes=self._results_bytes,
                total_s=self._total_s,
                longest_s=self._longest_s,
            )
