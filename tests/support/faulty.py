"""Seams that let chosen crossings fail."""

from __future__ import annotations

import threading


class InjectedError(Exception):
    """A fault of a test; its text must never reach a caller."""

    def __init__(self, point):
        super().__init__(f"injected secret at {point}")


class NthCrossing:
    """Fails the n-th crossing of any point, and with `forever` all that follow.

    Attributes:
        crossings: Points crossed so far, in order.
    """

    def __init__(self, number, *, forever):
        self.crossings = []
        self._number = number
        self._forever = forever
        self._lock = threading.Lock()

    def __call__(self, point):
        with self._lock:
            self.crossings.append(point)
            count = len(self.crossings)
        if count == self._number or (self._forever and count > self._number):
            raise InjectedError(point)

    def heal(self):
        """Lets everything pass from now on."""
        self._number, self._forever = 0, False


class RandomFaults:
    """Fails crossings at random, by a seeded generator."""

    def __init__(self, generator, probability):
        self._generator = generator
        self._probability = probability
        self._lock = threading.Lock()
        self.failed = 0

    def __call__(self, point):
        with self._lock:
            fails = self._generator.random() < self._probability
            self.failed += fails
        if fails:
            raise InjectedError(point)
