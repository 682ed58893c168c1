"""The subcommand `info`: what a server says about itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from stn_client._client import Client


def add_command(commands: Any) -> None:
    """Adds the parser of the subcommand, which sets `run`."""
    info = commands.add_parser(
        "info", help="what the server is, offers, allows and has done", allow_abbrev=False
    )
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="for programs")


def _info(client: Client, options: argparse.Namespace) -> int:
    told = asdict(client.server_info())
    print(json.dumps(told, indent=2) if options.json else "\n".join(_lines(told)))  # noqa: T201
    return 0


def _lines(told: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yields names and values; what has parts of its own has them below its name, indented."""
    for name, value in told.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, tuple) and value and isinstance(value[0], dict):
            for one in value:
                yield f"{indent}{name}:"
                yield from _lines(one, indent + "  ")
        elif isinstance(value, tuple):
            yield f"{indent}{name}: {', '.join(value)}".rstrip()
        else:
            said = str(value).lower() if isinstance(value, bool) else value  # as in JSON
            yield f"{indent}{name}: {said}".rstrip()
