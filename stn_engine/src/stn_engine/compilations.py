"""Tells whoever wants to count them of kernels that are compiled. Knows no compiler."""

from collections.abc import Callable
from enum import StrEnum


class Outcome(StrEnum):
    """Where the machine code of a program came from."""

    COMPILED = "compiled"
    """From the compiler."""
    CACHED = "cached"
    """From disk."""
    FAILED = "failed"
    """From nowhere: an exception is on its way."""


Observer = Callable[[Outcome, float], None]
"""Told the seconds that it took, in the thread that needs the kernels."""

_OBSERVERS: list[Observer] = []


def watch(observer: Observer) -> None:
    """``observer`` is told of every program from now on."""
    _OBSERVERS.append(observer)


def unwatch(observer: Observer) -> None:
    """``observer``, which watched, is told no more."""
    _OBSERVERS.remove(observer)


def tell(outcome: Outcome, duration_s: float) -> None:
    """Every observer, of one program."""
    for observer in tuple(_OBSERVERS):
        observer(outcome, duration_s)
