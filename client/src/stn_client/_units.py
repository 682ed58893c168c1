"""Units of coordinates: pixels, and the two conventions of normalized ones."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from stn_client._options import GridOptions

Unit = Literal["pixel", "edges", "centres"]
"""Pixels, or -1 and 1 at the edges of the outermost pixels, or at their centres."""
Scaling = tuple[Sequence[Fraction | int], Sequence[Fraction | int]]
"""Scale and offset of every axis, in the order x, y[, z], as exact fractions."""


def unit_of(options: GridOptions) -> Unit:
    """Returns the unit that the options of a call name."""
    if options.get("coordinates") == "pixel":
        return "pixel"
    return "centres" if options.get("align_corners", False) else "edges"


def _lengths(size: Sequence[int]) -> list[int]:
    """Returns a size in the order x, y[, z], in Python's integers: those of NumPy wrap around."""
    return [int(length) for length in reversed(size)]


def to_pixels(size: Sequence[int], unit: Unit) -> Scaling:
    """Converts coordinates in some unit to pixels of a map of this size, ([D,] H, W)."""
    lengths = _lengths(size)
    if unit == "pixel":
        return [Fraction(1)] * len(lengths), [Fraction(0)] * len(lengths)
    scale = [Fraction(n if unit == "edges" else n - 1, 2) for n in lengths]
    return scale, [Fraction(n - 1, 2) for n in lengths]


def from_pixels(size: Sequence[int], unit: Unit) -> Scaling:
    """Converts pixels of a map of this size to coordinates in some unit.

    Where -1 and 1 are the centre of the same pixel, every pixel is 0.
    """
    lengths = _lengths(size)
    if unit == "pixel":
        return [Fraction(1)] * len(lengths), [Fraction(0)] * len(lengths)
    spans = [n if unit == "edges" else n - 1 for n in lengths]
    scale = [Fraction(2, span) if span else Fraction(0) for span in spans]
    offset = [
        Fraction(1 - n, span) if span else Fraction(0)
        for n, span in zip(lengths, spans, strict=True)
    ]
    return scale, offset
