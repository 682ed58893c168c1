"""Coroutines that begin immediately, and become tasks only when they have to wait.

Most small calls are computed and answered without waiting for anything; a task, and the turn of the
event loop that it waits for, would take them a tenth of their time. Python 3.12 has eager tasks of
its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any


def begun(
    coroutine: Coroutine[Any, None, None], loop: asyncio.AbstractEventLoop
) -> asyncio.Task[None] | None:
    """Runs a coroutine until it waits, in a context of its own.

    Args:
        coroutine: A coroutine that does not ask for its task before it has waited.
        loop: The loop that runs.

    Returns:
        The task that goes on with it; None if it has ended. An error that it raised before is
        reported to the loop, as those of tasks are.
    """
    context = copy_context()
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration:
        return None
    except Exception as error:  # noqa: BLE001 - who began it is not to blame
        loop.call_exception_handler({"message": "coroutine failed", "exception": error})
        return None
    return loop.create_task(_resumed(_Rest(coroutine, waits_for)), context=context)


class _Rest:
    """An awaitable that continues a coroutine which has already begun to wait.

    Args:
        coroutine: The coroutine, which has already run until it waits.
        waits_for: The future that it has yielded.
    """

    def __init__(self, coroutine: Coroutine[Any, None, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, None, None]:
        waits_for = self._waits_for
        while True:
            thrown: BaseException | None = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - whatever is thrown into the task
                thrown = error
            try:
                if thrown is None:
                    waits_for = self._coroutine.send(None)
                else:
                    waits_for = self._coroutine.throw(thrown)
            except StopIteration:
                return


async def _resumed(rest: _Rest) -> None:
    await rest
