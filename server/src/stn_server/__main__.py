"""The command `stn-server`, or `python -m stn_server`; see `command.py`."""

from __future__ import annotations

import os
import sys

from stn_server import signals


def main() -> None:
    """Serves until told to stop, and leaves with the exit code."""
    signals.end_at_once()
    # Read when gRPC is imported, whose core would write to standard error by itself: in a form of
    # its own, and waiting for whoever reads it. What it has to say reaches us as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from stn_server.command import run  # noqa: PLC0415 - signals count before anything else

    code = run(sys.argv[1:], os.environ)
    # Nothing can end what still runs in a thread, a batch say, and nobody waits for it.
    os._exit(code)


if __name__ == "__main__":
    main()
