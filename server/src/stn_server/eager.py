"""Coroutines that begin immediately, and become tasks only when they have to wait.

Most small calls are computed and answered without waiting for anything; a task, and the turn of the
event loop that it waits for, would take them a tenth of their time. Python 3.12 has eager tasks of
its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, cast


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
    rest = cast("Coroutine[Any, Any, None]", _Rest(coroutine, waits_for))
    return loop.create_task(rest, context=context)


class _Rest:
    """The rest of a coroutine that has begun, as a coroutine for a task.

    Not an `async def` around it: a task that is cancelled before its first step throws into what
    has not begun, and an `async def` would end there, and never close the coroutine within.

    Args:
        coroutine: The coroutine, which has already run until it waits.
        waits_for: The future that it has yielded, for the task to wait for; None: its next turn.
    """

    def __init__(self, coroutine: Coroutine[Any, None, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for
        self._is_resumed = False

    def send(self, value: Any) -> Any:
        """Goes on; the first time with what the coroutine waits for already."""
        if self._is_resumed:
            return self._coroutine.send(value)
        self._is_resumed = True
        return self._waits_for

    def throw(self, *error: Any) -> Any:
        """Throws into the coroutine, where it waits."""
        # A task cancels the future that it waits for, and before its first step knows of none.
        if not self._is_resumed and self._waits_for is not None:
            self._waits_for.cancel()
        self._is_resumed = True
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Ends the coroutine where it waits."""
        self._coroutine.close()


Coroutine.register(_Rest)  # tasks take nothing else
