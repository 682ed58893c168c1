"""The subcommands `up`, `down` and `logs`: a server in a container of this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from stn_client import docker
from stn_client.cli._report import report

NAME = "stn"

ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
"""Signals that end a command: from Ctrl-C, a supervisor, a terminal that closes."""


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
    up.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the server, or NAME alone: as it is here; may be given again",
    )
    up.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="FROM:TO[:ro]",
        help="a folder of this machine, or a volume by its name, and where; may be given again",
    )
    up.add_argument("--memory", metavar="4g", help="limit of the container (default: none)")
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
    with _ending_in_order():
        server = docker.ServerContainer(
            options.image,
            gpus=options.gpus,
            name=options.name,
            network=options.network,
            port=options.port,
            metrics_port=options.metrics_port,
            environment=dict(map(_variable, options.env)),
            volumes=list(map(_mount, options.volume)),
            mem_limit=options.memory,
        )
    print(f"target {server.target}\nmetrics {server.metrics}")  # noqa: T201


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Signals that end the process raise instead, once, so that what was begun is taken back."""

    def end(number: int, _frame: FrameType | None) -> None:
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _variable(text: str) -> tuple[str, str]:
    """Returns name and value of a variable; the value of this process if the text has none."""
    name, given, value = text.partition("=")
    if given:
        return name, value
    if name not in os.environ:
        raise docker.ContainerError(
            f"--env {name}: expected a variable of this process, got none. Say --env {name}=VALUE."
        )
    return name, os.environ[name]


def _mount(text: str) -> str:
    """Returns a volume as the engine takes it, with the absolute path of a local folder."""
    source, parted, inside = text.partition(":")
    if not parted or not inside.startswith("/"):
        raise docker.ContainerError(
            f"--volume {text}: expected FROM:TO with TO as the path in the container, as "
            "./settings:/etc/stn:ro."
        )
    is_path = source.startswith((".", "~", "/"))
    return f"{Path(source).expanduser().resolve()}:{inside}" if is_path else text


def _down(options: argparse.Namespace) -> None:
    code = docker.stop(options.name)
    if code:
        raise docker.ContainerError(f"stn-server: expected it to end with 0, got {code}.")


def _logs(options: argparse.Namespace) -> None:
    for piece in docker.logs(options.name, follow=options.follow):
        sys.stdout.write(piece.decode(errors="replace"))
