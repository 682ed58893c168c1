"""Whom a batcher deals with, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stn_server.batching.work import Batch


class Runner(Protocol):
    """Computes batches on one device."""

    async def run(self, batch: Batch) -> Sequence[Any]:
        """One outcome per item, in order: a result, or the exception of that item alone.

        Raises:
            DeviceLostError: Nothing can be computed any more.
            Exception: This batch could not be computed.
        """
        ...

    def at_once(self, batch: Batch) -> Sequence[Any] | None:
        """As `run`, for a batch that takes less time than to wait for it; None if it takes more."""
        ...

    def close(self) -> None:
        """Lets go of the device, after the batch that runs; does not wait for it."""


class Call(Protocol):
    """What an item is computed for."""

    def add_done_callback(self, callback: Any, /) -> None:
        """Calls back when the reply has left, or the caller has gone."""
        ...


class Observer(Protocol):
    """Told what happens, so that metrics need not be known here."""

    def item_abandoned(self) -> None:
        """An item left the queue without having run."""

    def batch_finished(self, batch: Batch, queue_s: Sequence[float], compute_s: float) -> None:
        """A batch is through, with the time that each item waited."""


@dataclass(slots=True)
class Counts:
    """Counts since the start."""

    finished_items: int = 0
    failed_items: int = 0
    refused_items: int = 0
    abandoned_items: int = 0
    batches: int = 0
    largest_batch_items: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the start, and what is on its way now."""

    queued_items: int
    running_items: int
    admitted_bytes: int
    finished_items: int
    failed_items: int
    refused_items: int
    abandoned_items: int
    batches: int
    largest_batch_items: int
