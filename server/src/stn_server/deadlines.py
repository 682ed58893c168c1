"""Deadlines of calls: tasks are cancelled once theirs have passed, and not before."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from stn_server.context import Context

MIN_TIMER_S = 0.001
"""The shortest timer: uvloop counts whole milliseconds, and takes less for none."""


def watch_deadline(
    task: asyncio.Task[Any], context: Context, loop: asyncio.AbstractEventLoop
) -> None:
    """Cancels the task that answers a call once the deadline of the call has passed.

    Timers of uvloop may fire up to two milliseconds early, and a call that is cancelled before its
    deadline counts as one whose connection has ended: it would have no answer.
    """
    remaining_s = context.remaining_s()
    if task.done() or remaining_s == math.inf:
        return
    if remaining_s > 0:
        timer = loop.call_later(max(remaining_s, MIN_TIMER_S), watch_deadline, task, context, loop)
        task.add_done_callback(lambda _task: timer.cancel())
    else:
        loop.call_soon(task.cancel)  # a task that never began could not answer
