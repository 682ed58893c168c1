"""When to try again, and after how long: exponential backoff with full jitter.

Every method of the service is a pure function of its request, so that repeating a call is always
safe. The request is built once and sent again as it is; gRPC's own retries are switched off,
because they silently give up on requests above 256 KiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stn_client._errors import OverloadedError, StnClientError, UnavailableError

_MAX_DOUBLINGS = 64
"""Of the first pause; more would leave the range of floats in patient policies."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How stubbornly calls are repeated.

    Attributes:
        attempts: Calls in all, the first included; 1: never again.
        initial_s: Upper bound of the first pause; each further one doubles.
        max_s: Upper bound of every pause.
    """

    attempts: int = 5
    initial_s: float = 0.05
    max_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts: expected at least 1, got {self.attempts}.")
        for name in ("initial_s", "max_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}.")

    def pause_s(
        self,
        error: StnClientError,
        attempt: int,
        remaining_s: float | None,
        uniform: Callable[[], float],
    ) -> float | None:
        """How long to wait before the next attempt; None: give up.

        Args:
            error: How the attempt ended.
            attempt: Its number, from 1.
            remaining_s: Time that is left for the call as a whole; None: any.
            uniform: Draws from [0, 1).
        """
        if attempt >= self.attempts or not isinstance(error, OverloadedError | UnavailableError):
            return None
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        pause_s = uniform() * min(self.max_s, self.initial_s * 2.0**doublings)
        if isinstance(error, OverloadedError) and error.retry_after_s is not None:
            pause_s += error.retry_after_s
        if remaining_s is not None and pause_s >= remaining_s:
            return None
        return pause_s
