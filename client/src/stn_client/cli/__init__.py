"""The command `stn`: what the SDK does, from a shell.

Imports next to nothing, so that an interrupt is answered while `main` imports the rest.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import NoReturn

from stn_client.cli._report import report

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 1 if the service or a file refused.

    Whatever goes wrong is one line on standard error.

    Args:
        arguments: None: those of this process, which is then the command's own: what an interrupt
            does is decided here until its end.
    """
    if arguments is None:
        return _command()
    from stn_client.cli._main import run  # noqa: PLC0415 - takes a quarter of a second

    return run(arguments)


def _command() -> int:
    _on_interrupt(_leave)
    # Read when gRPC is imported, whose core would add lines of its own to the one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from stn_client.cli._main import run  # noqa: PLC0415

    _on_interrupt(_stop)
    try:
        return run(None)
    finally:
        if signal.getsignal(signal.SIGINT) is _stop:  # there has been none
            _on_interrupt(_leave)


def _on_interrupt(handler: Callable[..., None]) -> None:
    """Calls a function on interrupts, unless the parent process has them ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _stop(*_signal: object) -> None:
    """Ends what is under way in order; a second interrupt ends it at once."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    raise KeyboardInterrupt


def _leave(*_signal: object) -> NoReturn:
    # Not an exception: a library that is being imported could swallow it, or show a traceback.
    report("interrupted")
    os._exit(_INTERRUPTED)
