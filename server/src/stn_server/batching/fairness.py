"""Turns between callers, so that one who asks for much cannot starve the others."""

from __future__ import annotations

from dataclasses import dataclass

from stn_server.batching.work import Cost, WorkItem

TURN = 1 / 8
"""Part of a batch that a caller may take before the others of its round go first."""

LEAST_PART = 1 / 64
"""What an item counts at least: a launch is not free, however small."""


@dataclass(slots=True)
class _Account:
    waiting: int = 0
    taken: float = 0.0
    """In batches, on a scale that all callers share."""


class Turns:
    """Who has had how much of the device, among the callers who wait.

    Every caller is in a round, and earlier rounds go first. Taking a `TURN` of a batch moves a
    caller to the next round; a newcomer joins the round that is on. Nobody saves turns up, and
    nobody is remembered who does not wait.
    """

    def __init__(self, budget: Cost) -> None:
        self._budget = budget
        self._accounts: dict[str, _Account] = {}
        self._now = 0.0
        """How much those have taken whose turn it is."""

    def __len__(self) -> int:
        return len(self._accounts)

    def round_of(self, caller: str) -> int:
        """The round of a caller who waits."""
        return int(self._accounts[caller].taken / TURN)

    def enter(self, item: WorkItem) -> None:
        """An item begins to wait."""
        account = self._accounts.get(item.caller)
        if account is None:
            account = self._accounts[item.caller] = _Account(taken=self._now)
        account.waiting += 1

    def leave(self, item: WorkItem) -> None:
        """An item waits no longer."""
        account = self._accounts[item.caller]
        account.waiting -= 1
        if account.waiting == 0:
            del self._accounts[item.caller]

    def take(self, item: WorkItem) -> None:
        """An item that waits is chosen to run; call before `leave`."""
        account = self._accounts[item.caller]
        self._now = max(self._now, account.taken)
        account.taken += max(item.cost.part_of(self._budget), LEAST_PART)
