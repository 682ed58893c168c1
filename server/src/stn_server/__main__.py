"""The command `stn-server`.

Standard output gets one line, when the server is ready: its addresses as a JSON object, for
whoever started it on port 0. Everything else goes to standard error.
"""

from __future__ import annotations

import os
import sys

import uvloop

from stn_server.config import ConfigError
from stn_server.log import configure
from stn_server.settings import load


def main() -> None:
    """Reads the configuration and serves; exits with 2 if something is wrong with it."""
    try:
        config = load(sys.argv[1:], os.environ)
        configure(config.log)
        from stn_server.app import serve  # noqa: PLC0415 - torch: not to be waited for by --help

        uvloop.run(serve(config))
    except ConfigError as error:
        print(f"stn-server: {error}", file=sys.stderr)  # noqa: T201 - for whoever typed it
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
