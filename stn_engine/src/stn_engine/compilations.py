"""Tells listeners, such as metrics, of compiled kernels. Knows no compiler."""

from collections.abc import Callable
from enum import StrEnum


class Outcome(StrEnum):
    """How the machine code of a program was obtained."""

    COMPILED = "compiled"
    """The compiler made it."""
    CACHED = "cached"
    """It was read from the cache on disk."""
    FAILED = "failed"
    """There is none: an exception follows."""


Listener = Callable[[Outcome, float], None]
"""A function that is told an outcome and the seconds that it took, in the thread that needs the
kernels."""

_LISTENERS: list[Listener] = []


def watch(listener: Listener) -> None:
    """Calls ``listener`` for every program from now on."""
    _LISTENERS.append(listener)


def unwatch(listener: Listener) -> None:
    """Calls ``listener``, which watched, no more."""
    _LISTENERS.remove(listener)


def tell(outcome: Outcome, duration_s: float) -> None:
    """Calls every listener with the outcome of one program."""
    for listener in tuple(_LISTENERS):
        listener(outcome, duration_s)
