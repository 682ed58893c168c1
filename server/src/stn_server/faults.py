"""Named points on the way of a request at which tests make things fail or take their time.

A seam is handed to what crosses it, through constructors; no setting and no variable reaches it,
so that a server in production cannot have faults switched on.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Point(StrEnum):
    """Where a request can be made to fail, in the order of its way."""

    DECODE = "decode"
    """Bytes become a validated request."""
    ADMIT = "admit"
    """It knocks at the door."""
    LAND = "land"
    """A batch reaches the thread that computes."""
    ALLOCATE = "allocate"
    """Memory is taken for results: of a launch, and of a reply."""
    LAUNCH = "launch"
    """The engine is called, for a batch or for an item that is tried alone."""
    ENCODE = "encode"
    """Results become bytes."""


Seam = Callable[[Point], None]
"""Called at every crossing; may raise, or take its time. Must be safe to call from any thread."""


def no_fault(_point: Point) -> None:
    """The seam of every real server."""
