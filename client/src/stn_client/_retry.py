"""Says when to try again, and after how long: exponential backoff with full jitter.

Every method of the service is a pure function of its request, so that repeating a call is always
safe. The request is built once and sent again as it is. gRPC repeats by itself only what no server
has seen; it would repeat more if told to, but gives up on requests above 256 KiB without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from stn_client._checks import check_count, check_seconds
from stn_client._errors import OverloadedError, StnClientError, UnavailableError, invalid

_MAX_DOUBLINGS = 64
"""The most doublings of the first pause; more would leave the range of floats in patient
policies."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and after what pauses, calls are repeated; `timeout_s` limits the whole.

    Attributes:
        attempts: Calls in all, the first included; 1: never again; None: until the time is up.
        initial_s: Upper bound of the first pause, in seconds; each further one doubles.
        max_s: Upper bound of every pause, in seconds; infinity: none.

    Raises:
        InvalidRequestError: A number makes no sense.
    """

    attempts: int | None = None
    initial_s: float = 0.05
    max_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts is not None:
            check_count("attempts", self.attempts)
        check_seconds("initial_s", self.initial_s)
        check_seconds("max_s", self.max_s)
        if math.isinf(self.initial_s):
            raise invalid("initial_s", "expected a finite number of seconds, got inf.")

    def pause_s(
        self,
        error: StnClientError,
        attempt: int,
        remaining_s: float | None,
        uniform: Callable[[], float],
    ) -> float | None:
        """Returns the pause before the next attempt; None: give up.

        A pause that would use up the time that is left is shortened, so that there is a last
        attempt `initial_s` before its end; but none is made sooner than the server asked for.

        Args:
            error: How the attempt ended.
            attempt: Its number, from 1.
            remaining_s: Time that is left for the call as a whole; None: any.
            uniform: Draws from [0, 1).
        """
        if self.attempts is not None and attempt >= self.attempts:
            return None
        if not isinstance(error, OverloadedError | UnavailableError):
            return None
        asked_s = error.retry_after_s if isinstance(error, OverloadedError) else None
        least_s = asked_s or 0.0
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        pause_s = least_s + uniform() * min(self.max_s, self.initial_s * 2.0**doublings)
        if remaining_s is not None and pause_s >= remaining_s:
            pause_s = max(least_s, remaining_s - self.initial_s)
            if not remaining_s > max(pause_s, self.initial_s):
                return None
        return pause_s
