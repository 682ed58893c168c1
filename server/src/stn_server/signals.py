"""Handles signals, from the first instruction of the process to its last.

Imports next to nothing: what loads torch and gRPC comes after `end_at_once`. The kernel drops
signals that number 1 of a container does not handle.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import asyncio

ENDING = (signal.SIGTERM, signal.SIGINT)
INIT_PID = 1


def end_at_once() -> None:
    """Makes SIGTERM and SIGINT end the process with exit code 0, until `call` replaces that.

    This holds while nothing has been admitted yet, and again when all has been answered. SIGHUP
    does nothing: no file was read that could be read again. Signals that were held back before
    the start (`env --block-signal`) count now.
    """
    for number in ENDING:
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.getpid() == INIT_PID:
        # Processes whose parents have gone become children of number 1, and are cleared away so.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*ENDING, signal.SIGHUP))


def call(number: int, callback: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
    """Makes a signal call a function in an event loop.

    Unlike the loop's own `add_signal_handler` this leaves no moment without a handler, neither
    before it nor when the loop is closed, as long as `end_at_once` comes before that.
    """
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback) and None)


def _end(*_signal: object) -> NoReturn:
    # Not an exception: a library that is being imported could swallow it, or show a traceback.
    os._exit(0)
