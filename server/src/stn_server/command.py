"""Runs the command `stn-server` once signals are taken care of.

Standard output gets one line, when the server is ready: its addresses as a JSON object, for the
process that started it on port 0. Everything else goes to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

import uvloop

from stn_server import environment
from stn_server.config import ConfigError
from stn_server.log import configure, log, tell_dropped
from stn_server.memory import memory_limit_bytes
from stn_server.output import BackgroundWriter
from stn_server.settings import load
from stn_server.tuning import LAST_LINES_S

if TYPE_CHECKING:
    from stn_server.events import Listener


def run(arguments: Sequence[str], variables: MutableMapping[str, str], *listeners: Listener) -> int:
    """Serves until told to stop.

    Args:
        arguments: The arguments of the command line.
        variables: The environment; what does not apply to the server is taken out.
        listeners: Further listeners, beside metrics, spans and the log.

    Returns:
        The exit code: 2 if something is wrong with what was given, 3 if the device was lost, 1 if
        something else failed.

    Raises:
        SystemExit: `--help` or `--version` was asked for.
    """
    _open_standard_streams()
    stdout, stderr = BackgroundWriter(1), BackgroundWriter(2, tell_dropped)
    sys.stderr = stderr  # also for what writes there without logging
    code = 0
    try:
        config = load(arguments, variables, memory_limit_bytes())
        configure(config.log)
        environment.prepare(variables)
        with environment.loading("environment", variables):
            from stn_server.server import LOST, serve  # noqa: PLC0415 - torch: seconds
        code = 0 if uvloop.run(serve(config, stdout, stderr, *listeners)) else LOST
    except ConfigError as error:
        stderr.write(f"stn-server: {' '.join(str(error).splitlines())}\n")
        code = 2
    except Exception as error:  # noqa: BLE001 - told, in the form that was asked for
        log(logging.ERROR, "failed", error=error)
        code = 1
    stdout.drain(LAST_LINES_S)
    stderr.drain(LAST_LINES_S)
    return code


def _open_standard_streams() -> None:
    """Opens streams that the parent closed, so that no socket gets their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
