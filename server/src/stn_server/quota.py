"""Holds the calls that callers have in flight against their quotas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from stn_server.call import Caller
from stn_server.errors import QuotaExceededError, QuotaTooSmallError
from stn_server.tokens import UNLIMITED, Quota
from stn_server.tuning import LEAST_RETRY_S

Resize = Callable[[int], None]
"""Changes the size that a held call counts for; raises what `Quotas.admit` does."""


@dataclass(slots=True)
class _Account:
    """The calls that one caller has in flight, and how many it may still begin."""

    credit: float
    """Calls that may begin now: grows with time up to one second's worth; each call takes 1."""
    since: float
    calls: int = 0
    size_bytes: int = 0


class Quotas:
    """The accounts of all callers that have a quota.

    Args:
        now: A clock in seconds.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._accounts: dict[str, _Account] = {}

    def admit(self, caller: Caller, size_bytes: int) -> AbstractContextManager[Resize]:
        """Holds a call of this size against the caller's quota while the context lasts.

        The function that it yields changes the size, once more is known of the call.

        Raises:
            QuotaExceededError: The caller has to wait.
            QuotaTooSmallError: The call alone exceeds the quota.
        """
        if caller.quota is UNLIMITED:
            return nullcontext(lambda _size_bytes: None)
        return self._held(caller, size_bytes)

    @contextmanager
    def _held(self, caller: Caller, size_bytes: int) -> Iterator[Resize]:
        account = self._account(caller)
        held_bytes = 0

        def resize(size_bytes: int) -> None:
            nonlocal held_bytes
            _check_bytes(caller.quota, account.size_bytes - held_bytes, size_bytes)
            account.size_bytes += size_bytes - held_bytes
            held_bytes = size_bytes

        # Both may refuse, and do before anything of the call counts.
        _check_calls(caller.quota, account)
        resize(size_bytes)
        account.credit -= 1
        account.calls += 1
        try:
            yield resize
        finally:
            account.calls -= 1
            account.size_bytes -= held_bytes

    def _account(self, caller: Caller) -> _Account:
        """Returns the caller's account with its credit as of now."""
        now, most = self._now(), max(1.0, caller.quota.calls_per_s)
        account = self._accounts.setdefault(caller.name, _Account(most, now))
        earned = (now - account.since) * caller.quota.calls_per_s if now > account.since else 0.0
        account.credit = min(most, account.credit + earned)
        account.since = now
        return account


def _check_calls(quota: Quota, account: _Account) -> None:
    """Refuses a call when its caller has too many in flight, or begins too many a second."""
    if account.calls + 1 > quota.max_calls:
        calls = account.calls + 1
        raise QuotaExceededError("calls in flight", quota.max_calls, calls, LEAST_RETRY_S)
    if account.credit < 1:
        missing_s = (1 - account.credit) / quota.calls_per_s
        raise QuotaExceededError("calls a second", quota.calls_per_s, "more", missing_s)


def _check_bytes(quota: Quota, others_bytes: int, size_bytes: int) -> None:
    """Refuses a call that is too large for its caller's quota, or for what is left of it."""
    if size_bytes > quota.max_bytes:
        unit = "bytes of operands and results for this token"
        raise QuotaTooSmallError("message", int(quota.max_bytes), size_bytes, unit)
    total_bytes = others_bytes + size_bytes
    if total_bytes > quota.max_bytes:
        raise QuotaExceededError("bytes in flight", quota.max_bytes, total_bytes, LEAST_RETRY_S)
