"""What subcommands share: numbers in arguments, and libraries that may be missing."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

_INSTALL = {
    "terminal": "In the checkout: pip install './client[terminal]'",
    "playground": "In the checkout: pip install './client[playground]'",
}
"""Remedies, by the extra that has the library."""


class MissingError(Exception):
    """A library that a subcommand needs is not installed."""


def missing(library: str, extra: str = "terminal") -> MissingError:
    """Returns the error of a library that is not installed."""
    return MissingError(f"{library}: expected it, got none. {_INSTALL[extra]}")


def number(kind: type[float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """Returns a function that reads a number from `low` to `high`, for argparse."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or value == math.inf:
            most = f" and at most {high}" if high < math.inf else ""
            what = "a whole number of at least" if kind is int else "at least"
            raise argparse.ArgumentTypeError(f"expected {what} {low}{most}, got {text}")
        return value

    return parse
