"""Computes batches on devices, in threads of their own so that the event loop stays free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stn_server.batching.devices import Device, Host
from stn_server.batching.roles import Runner
from stn_server.batching.work import Batch
from stn_server.errors import DeviceLostError
from stn_server.faults import Point, Seam, no_fault

Compute = Callable[[Sequence[Any]], Sequence[Any]]

Watcher = Callable[[str, Batch], None]
"""Told that a batch begins to "land", to "launch" or to be "collect"ed; in any thread."""


def nobody(_stage: str, _batch: Batch) -> None:
    """A watcher that does not care."""


class EngineRunner:
    """Runs every batch as one ragged engine call.

    The problem of an item is a `stn_engine.on_bytes.Job`.

    Args:
        device: What computes; nobody else uses it.
        seam: Crossed in the thread that computes.
        watcher: Told how far a batch is.

    Concurrency: one batch at a time; nothing can interrupt the one that runs. Batches that are
        small for the device are computed in the event loop's own thread.
    """

    def __init__(
        self, device: Device | None = None, seam: Seam = no_fault, watcher: Watcher = nobody
    ) -> None:
        self._device = Host() if device is None else device
        self._small = self._device.small
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

    def at_once(self, batch: Batch) -> Sequence[Any] | None:
        """One result or exception per item of a batch that is small for the device; else None."""
        if not batch.cost.fits(self._small):
            return None
        self._watcher("land", batch)
        return self._compute(batch)

    def close(self) -> None:
        """Ends the thread, after the batch that runs; does not wait for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compute(self, batch: Batch) -> Sequence[Any]:
        self._seam(Point.LAND)

        def launch(jobs: Sequence[Any]) -> Sequence[Any]:
            self._seam(Point.ALLOCATE)
            self._seam(Point.LAUNCH)
            return self._device.run(jobs, lambda: self._watcher("launch", batch))

        outcomes = compute(launch, [item.problem for item in batch.items])
        self._watcher("collect", batch)
        return outcomes


class Lanes:
    """Devices that run batches at the same time, from one queue.

    Args:
        runners: One per lane, by the name of its device.
        observe: Told for how many seconds a device was busy.

    Concurrency: belongs to one event loop. Takes as many batches at a time as there are runners.
    """

    def __init__(
        self, runners: Sequence[tuple[str, Runner]], observe: Callable[[str, float], None]
    ) -> None:
        self._runners = runners
        self._free = list(runners)
        self._observe = observe

    def __len__(self) -> int:
        return len(self._runners)

    @property
    def devices(self) -> list[str]:
        """Names of the devices, each once."""
        return list(dict.fromkeys(name for name, _ in self._runners))

    async def run(self, batch: Batch) -> Sequence[Any]:
        """As `Runner.run`, on a runner that is free."""
        name, runner = lane = self._free.pop(0)
        began = time.monotonic()
        try:
            return await runner.run(batch)
        finally:
            self._observe(name, time.monotonic() - began)
            self._free.append(lane)

    def at_once(self, batch: Batch) -> Sequence[Any] | None:
        """As `Runner.at_once`, on a runner that is free."""
        name, runner = self._free[0]
        began = time.monotonic()
        outcomes = runner.at_once(batch)
        if outcomes is not None:
            self._observe(name, time.monotonic() - began)
        return outcomes

    async def warm_up(self, batch: Batch) -> None:
        """Runs a batch on every lane.

        Raises:
            Exception: Of an item that could not be computed.
        """
        for _, runner in self._runners:
            for outcome in await runner.run(batch):
                if isinstance(outcome, Exception):
                    raise outcome

    def close(self) -> None:
        """Closes every runner."""
        for _, runner in self._runners:
            runner.close()


def compute(function: Compute, jobs: Sequence[Any]) -> Sequence[Any]:
    """Results of a ragged call; if it fails, each job alone, so that only the bad ones fail."""
    try:
        return function(jobs)
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001 - becomes the outcome of the item
        if len(jobs) == 1:
            return [error]
    return [compute(function, [job])[0] for job in jobs]
