"""Tests the device by calls of the server's own, after a caller's call failed by its fault.

A call that fails may be the fault of its values, on which every replica would fail. A harmless call
of the server to itself that fails is not: other replicas do better.
"""

from __future__ import annotations

import asyncio
import logging

from grpc import StatusCode

from stn_server import warm_up
from stn_server.batching.batcher import Batcher
from stn_server.call import CallFacts
from stn_server.errors import RefusedError
from stn_server.events import End, Listener
from stn_server.health import Health
from stn_server.log import log
from stn_server.tuning import SELF_TEST_CALLS, SELF_TEST_PAUSE_S


class SelfTest(Listener):
    """Turns readiness off while the device fails calls that it should not fail.

    Args:
        batcher: Computes the calls of the test.
        health: The readiness of the server, which follows the device.
        stall_s: A device that fails for longer is lost.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, batcher: Batcher, health: Health, stall_s: float) -> None:
        self._batcher = batcher
        self._health = health
        self._stall_s = stall_s
        self._batches = list(warm_up.batches())
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[Exception] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    def call_failed(self, call: CallFacts, end: End) -> None:
        """Begins a test if the fault is the server's and no other test is under way."""
        del call
        if end.code is StatusCode.INTERNAL and self._health.is_ready and self._task is None:
            self._task = self._loop.create_task(self._run())
            self._task.add_done_callback(self._ended)

    async def lost(self) -> Exception:
        """Waits until the device has failed for too long, and returns the reason."""
        return await asyncio.shield(self._lost)

    def stop(self) -> None:
        """Ends the test that is under way."""
        if self._task is not None:
            self._task.cancel()

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._task = None

    async def _run(self) -> None:
        """Tests until the device passes, then rests for a while."""
        # The instant first: a device that is slow to fail has failed since then.
        began, failure = self._batcher.now(), await self._failure()
        if failure is not None:
            log(logging.ERROR, "device fails", error=failure)
            await self._health.set(ready=False)
            while failure is not None:
                if self._batcher.now() - began > self._stall_s:
                    # Readiness stays off: only a restart helps.
                    self._lost.set_result(failure)
                    return
                await asyncio.sleep(SELF_TEST_PAUSE_S)
                failure = await self._failure()
            log(logging.INFO, "device works again")
            await self._health.set(ready=True)
        # While this task lasts, calls that fail begin no other test.
        await asyncio.sleep(SELF_TEST_PAUSE_S)

    async def _failure(self) -> Exception | None:
        """Returns an error of some harmless calls; None if none failed, or if they were refused."""
        calls = [
            self._batcher.submit(problem, key=item.key, cost=item.cost)
            for _ in range(SELF_TEST_CALLS)
            for batch in self._batches
            for item in batch.items
            for problem in item.problems
        ]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            # A refusal says that the server is full, not that its device fails.
            if isinstance(outcome, Exception) and not isinstance(outcome, RefusedError):
                return outcome
        return None
