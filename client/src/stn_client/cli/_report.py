"""What `stn` tells about errors: one line each, on standard error."""

from __future__ import annotations

import sys


def report(error: object) -> None:
    """Writes one line, whatever the error's text looks like."""
    if sys.stderr is not None:  # None: it was closed by whoever started this
        print(f"stn: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
