"""What `stn` tells about errors: one line each, on standard error."""

from __future__ import annotations

import sys


def report(error: object) -> None:
    """Writes one line, whatever the error's text looks like."""
    print(f"stn: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
