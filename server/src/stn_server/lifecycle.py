"""The wish to end: the first signal ends the server in order, the second one at once."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any

from stn_server import signals


class Shutdown:
    """The wish to stop, and the wish to stop now.

    Concurrency: belongs to the event loop it was made in.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()

    def listen(self) -> None:
        """Takes over SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in signals.ENDING:
            signals.call(number, self.ask, loop)

    def ask(self) -> None:
        """Asks to stop; asked again, to stop now."""
        (self._hurried if self._asked.is_set() else self._asked).set()

    def ask_at_end_of(self, stream: int) -> None:
        """Asks to stop now when a pipe has no other end any more: whoever held it has ended."""
        loop = asyncio.get_running_loop()

        def wait() -> None:
            while os.read(stream, 1):
                pass
            with suppress(RuntimeError):  # the loop has ended before
                for _ in range(2):
                    loop.call_soon_threadsafe(self.ask)

        # A thread, because not everything that can be read can be polled.
        threading.Thread(target=wait, name="end of the owner", daemon=True).start()

    async def asked(self) -> None:
        """Returns when the server should stop."""
        await self._asked.wait()

    async def asked_before(self, task: asyncio.Task[Any]) -> bool:
        """Waits for a task, or until the server should stop; returns whether that came first."""
        asked = asyncio.create_task(self._asked.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        return not task.done()

    async def pause(self, duration_s: float) -> None:
        """Waits, unless there is no time for it."""
        hurried = asyncio.create_task(self._hurried.wait())
        await self.wait_for(hurried, duration_s)
        hurried.cancel()

    async def wait_for(self, task: asyncio.Task[Any], timeout_s: float) -> None:
        """Waits for a task until a time is over or there is no time left."""
        hurried = asyncio.create_task(self._hurried.wait())
        await asyncio.wait({task, hurried}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
