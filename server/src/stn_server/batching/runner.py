"""Computes batches on the engine, in a thread of its own so that the event loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import stn_engine
from stn_server.batching.work import Batch, Operation
from stn_server.errors import DeviceLostError
from stn_server.faults import Point, Seam, no_fault

Compute = Callable[[Sequence[Any]], list[Any]]

_COMPUTE: dict[Operation, Compute] = {
    Operation.WARP: stn_engine.warp_ragged,
    Operation.WARP_GRADIENTS: stn_engine.warp_gradients_ragged,
    Operation.GENERATE_GRID: stn_engine.generate_grid_ragged,
    Operation.GENERATE_GRID_GRADIENTS: stn_engine.generate_grid_gradients_ragged,
}


Watcher = Callable[[str, Batch], None]
"""Told that a batch begins to "land", to "launch" or to be "collect"ed; in any thread."""


def nobody(_stage: str, _batch: Batch) -> None:
    """A watcher that does not care."""


class EngineRunner:
    """Runs every batch as one ragged engine call.

    Args:
        seam: Crossed in the thread that computes.
        watcher: Told how far a batch is.

    Concurrency: one batch at a time; nothing can interrupt the one that runs.
    """

    def __init__(self, seam: Seam = no_fault, watcher: Watcher = nobody) -> None:
        self._seam = seam
        self._watcher = watcher
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stn-runner")

    async def run(self, batch: Batch) -> Sequence[Any]:
        """One result or exception per item, in order.

        Raises:
            DeviceLostError: The thread is gone.
        """
        self._watcher("land", batch)  # in the engine's thread; the bytes stay where they are
        try:
            running = self._thread.submit(self._compute, batch)
        except RuntimeError as error:
            raise DeviceLostError("expected a thread to compute in, got none") from error
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Ends the thread, after the batch that runs; does not wait for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compute(self, batch: Batch) -> list[Any]:
        self._seam(Point.LAND)
        self._watcher("launch", batch)
        launch = self._launch(_COMPUTE[batch.key.operation])
        outcomes = compute(launch, [item.problem for item in batch.items])
        self._watcher("collect", batch)
        return outcomes

    def _launch(self, function: Compute) -> Compute:
        def launch(problems: Sequence[Any]) -> list[Any]:
            self._seam(Point.ALLOCATE)
            self._seam(Point.LAUNCH)
            return function(problems)

        return launch


def compute(function: Compute, problems: Sequence[Any]) -> list[Any]:
    """Results of a ragged call; if it fails, each problem alone, so that only the bad ones fail."""
    try:
        return function(problems)
    except Exception as error:  # noqa: BLE001 - becomes the outcome of the item
        if len(problems) == 1:
            return [error]
    return [compute(function, [problem])[0] for problem in problems]
