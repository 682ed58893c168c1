"""Listeners that let chosen stages fail."""

from __future__ import annotations

import threading

from stn_server.events import Listener


class InjectedError(Exception):
    """A fault of a test; its text must never reach a caller."""

    def __init__(self, stage):
        super().__init__(f"injected secret at {stage}")


class NthStage(Listener):
    """Fails the n-th stage that is reached, and with `forever` all that follow.

    Attributes:
        stages: What was reached so far, in order.
    """

    def __init__(self, number, *, forever):
        self.stages = []
        self._number = number
        self._forever = forever
        self._lock = threading.Lock()

    def reached(self, stage, calls):
        del calls
        with self._lock:
            self.stages.append(stage)
            count = len(self.stages)
        if count == self._number or (self._forever and count > self._number):
            raise InjectedError(stage)

    def heal(self):
        """Lets everything pass from now on."""
        self._number, self._forever = 0, False


class RandomFaults(Listener):
    """Fails stages at random, by a seeded generator."""

    def __init__(self, generator, probability):
        self._generator = generator
        self._probability = probability
        self._lock = threading.Lock()
        self.failed = 0

    def reached(self, stage, calls):
        del calls
        with self._lock:
            fails = self._generator.random() < self._probability
            self.failed += fails
        if fails:
            raise InjectedError(stage)
