"""The command `stn-server`.

Standard output gets one line, when the server is ready: its addresses as a JSON object, for
whoever started it on port 0. Everything else goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict

import uvloop

from stn_server.app import Server
from stn_server.config import ConfigError, ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.log import configure, log
from stn_server.settings import load


async def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT."""
    shutdown = Shutdown()
    shutdown.listen()
    server = Server(config)
    addresses = asdict(await server.start())
    log(logging.INFO, "serving", **addresses)
    print(json.dumps(addresses), flush=True)  # noqa: T201 - the contract with the parent process
    await shutdown.asked()
    before = server.batcher.statistics()
    log(logging.INFO, "draining", items=before.queued_items + before.running_items)
    await server.stop(shutdown)
    after = server.batcher.statistics()
    aborted = after.queued_items + after.running_items
    log(logging.INFO, "stopped", finished_items=after.finished_items, aborted_items=aborted)


def main() -> None:
    """Reads the configuration and serves; exits with 2 if something is wrong with it."""
    try:
        config = load(sys.argv[1:], os.environ)
        configure(config.log)
        uvloop.run(serve(config))
    except ConfigError as error:
        print(f"stn-server: {error}", file=sys.stderr)  # noqa: T201 - for whoever typed it
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
