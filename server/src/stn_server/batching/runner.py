"""Computes batches on the engine, in a thread of its own so that the event loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import stn_engine
from stn_server.batching.work import Batch, Operation

_COMPUTE: dict[Operation, Callable[[Sequence[Any]], list[Any]]] = {
    Operation.WARP: stn_engine.warp_ragged,
    Operation.WARP_GRADIENTS: stn_engine.warp_gradients_ragged,
    Operation.GENERATE_GRID: stn_engine.generate_grid_ragged,
    Operation.GENERATE_GRID_GRADIENTS: stn_engine.generate_grid_gradients_ragged,
}


class EngineRunner:
    """Runs every batch as one ragged engine call.

    Concurrency: one batch at a time; nothing can interrupt the one that runs.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stn-runner")

    async def run(self, batch: Batch) -> Sequence[Any]:
        """One result or exception per item, in order."""
        loop = asyncio.get_running_loop()
        problems = [item.problem for item in batch.items]
        return await loop.run_in_executor(
            self._thread, compute, _COMPUTE[batch.key.operation], problems
        )

    def close(self) -> None:
        """Ends the thread, after the batch that runs; does not wait for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def compute(function: Callable[[Sequence[Any]], list[Any]], problems: Sequence[Any]) -> list[Any]:
    """Results of a ragged call; if it fails, each problem alone, so that only the bad ones fail."""
    try:
        return function(problems)
    except Exception as error:  # noqa: BLE001 - becomes the outcome of the item
        if len(problems) == 1:
            return [error]
    return [compute(function, [problem])[0] for problem in problems]
