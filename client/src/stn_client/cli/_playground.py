"""The subcommand `playground`: a page of this machine to drag points on."""

from __future__ import annotations

import argparse
import socket
from typing import Any

from stn_client._aio import AsyncClient
from stn_client._client import Client
from stn_client.cli._terminal import missing, number

DEFAULT_PORT = 8090


def add_command(commands: Any) -> None:
    """Adds the parser of the subcommand, which sets `run`."""
    playground = commands.add_parser(
        "playground",
        help="open a page on which points can be dragged",
        description="Serves a page on this machine that shows what a warp, its sampling grid and "
        "its gradient do, as a person drags points; until it is interrupted.",
        allow_abbrev=False,
    )
    playground.set_defaults(run=_serve)
    playground.add_argument(
        "--port",
        type=number(int, 0, 65535),
        default=DEFAULT_PORT,
        metavar="N",
        help="of 127.0.0.1; 0: any (default: %(default)s)",
    )


def _serve(client: Client, options: argparse.Namespace) -> int:
    try:
        import uvicorn  # noqa: PLC0415 - optional

        from stn_client.playground import application  # noqa: PLC0415
    except ImportError as error:
        raise missing("starlette and uvicorn", "playground") from error
    client.server_info()  # a server that is not there is told at once
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201
        config = uvicorn.Config(application(AsyncClient(**options.settings)), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    return 0
