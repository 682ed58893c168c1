"""Requests to end the server: the first signal ends it in order, the second immediately."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any

from stn_server import signals


class Shutdown:
    """The requests to stop, and to stop immediately.

    Concurrency: belongs to the event loop it was made in.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._asked_again = asyncio.Event()

    def listen(self) -> None:
        """Takes over SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in signals.ENDING:
            signals.call(number, self.ask, loop)

    def ask(self) -> None:
        """Requests the stop; a second request makes it immediate."""
        (self._asked_again if self._asked.is_set() else self._asked).set()

    def ask_at_end_of(self, stream: int) -> None:
        """Requests an immediate stop when the other end of a pipe closes: its owner has ended."""
        loop = asyncio.get_running_loop()

        def wait() -> None:
            # Whatever the owner writes has no meaning; only the end has.
            while os.read(stream, 1):
                pass
            with suppress(RuntimeError):  # the loop has ended before
                # Twice, like a second signal: without its owner the server must not linger.
                for _ in range(2):
                    loop.call_soon_threadsafe(self.ask)

        # A thread, because not everything that can be read can be polled.
        threading.Thread(target=wait, name="end of the owner", daemon=True).start()

    async def asked(self) -> None:
        """Returns when the server should stop."""
        await self._asked.wait()

    async def asked_before(self, task: asyncio.Task[Any]) -> bool:
        """Waits for a task or the request to stop; returns whether the stop came first."""
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        # The other task goes on: its owner decides what becomes of it.
        asked.cancel()
        return not task.done()

    async def pause(self, duration_s: float) -> None:
        """Waits for a time, or until an immediate stop is requested."""
        again = asyncio.create_task(self._asked_again.wait())
        await self.wait_for(again, duration_s)
        again.cancel()

    async def wait_for(self, task: asyncio.Task[Any], timeout_s: float) -> None:
        """Waits for a task until a time is over or an immediate stop is requested."""
        again = asyncio.create_task(self._asked_again.wait())
        await asyncio.wait({task, again}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
