"""The subcommands `up`, `down` and `logs`: a server in a container of this machine."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from stn_client import docker
from stn_client.cli._report import report

NAME = "stn"


def manage(options: argparse.Namespace) -> int:
    """Runs a subcommand; returns the exit code: 1 if the engine refused."""
    try:
        options.manage(options)
    except docker.ContainerError as error:
        report(error)
        return 1
    return 0


def add_commands(commands: Any) -> None:
    """Adds the parsers of the subcommands, which set `manage`."""
    up = commands.add_parser("up", help="start a server in a container", allow_abbrev=False)
    up.set_defaults(manage=_up)
    up.add_argument("--image", default=docker.IMAGE, help="(default: %(default)s)")
    up.add_argument("--gpus", metavar="all|0,1", help="GPUs that the server may use")
    up.add_argument("--network", default="bridge", help="or host (default: %(default)s)")
    up.add_argument("--port", type=int, default=docker.PORT, help="0: any (default: %(default)s)")
    up.add_argument(
        "--metrics-port", type=int, default=docker.METRICS_PORT, help="(default: %(default)s)"
    )
    down = commands.add_parser("down", help="stop that server in order", allow_abbrev=False)
    down.set_defaults(manage=_down)
    logs = commands.add_parser("logs", help="print what it wrote", allow_abbrev=False)
    logs.set_defaults(manage=_logs)
    logs.add_argument("--follow", action="store_true", help="go on until it ends")
    for command in (up, down, logs):
        command.add_argument("--name", default=NAME, help="of the container (default: %(default)s)")


def _up(options: argparse.Namespace) -> None:
    server = docker.ServerContainer(
        options.image,
        gpus=options.gpus,
        name=options.name,
        network=options.network,
        port=options.port,
        metrics_port=options.metrics_port,
    )
    print(f"target {server.target}\nmetrics {server.metrics}")  # noqa: T201


def _down(options: argparse.Namespace) -> None:
    code = docker.stop(options.name)
    if code:
        raise docker.ContainerError(f"stn-server: expected it to end with 0, got {code}.")


def _logs(options: argparse.Namespace) -> None:
    for piece in docker.logs(options.name, follow=options.follow):
        sys.stdout.write(piece.decode(errors="replace"))
