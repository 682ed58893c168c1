"""What a client counts of its own calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """Statistics of a client since it was made, in this process.

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

    def begin(self, calls: int = 1) -> None:
        """Counts calls that are under way from now on, in one message."""
        with self._lock:
            self._begun += calls

    def retract(self, calls: int) -> None:
        """Takes back the counts of calls that failed together and begin anew."""
        with self._lock:
            self._begun -= calls
            self._failed -= calls

    def repeat(self) -> None:
        """Counts an attempt that is not the first of its call."""
        with self._lock:
            self._repeated += 1

    def fail(self, calls: int = 1) -> None:
        """Counts calls that have no result."""
        with self._lock:
            self._failed += calls

    def finish(
        self,
        duration_s: float,
        operands_bytes: int,
        results_bytes: int,
        *,
        local: bool,
        calls: int = 1,
    ) -> None:
        """Counts calls that have their results, and the duration of each."""
        with self._lock:
            self._finished += calls
            self._local += local * calls
            self._operands_bytes += operands_bytes
            self._results_bytes += results_bytes
            self._total_s += duration_s * calls
            self._longest_s = max(self._longest_s, duration_s)

    def snapshot(self) -> ClientStatistics:
        """Returns all numbers at one instant."""
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
