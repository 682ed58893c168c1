"""Arguments of `stn` and its subcommands."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from stn_client._client import Client
from stn_client._credentials import Tls
from stn_client._errors import StnClientError
from stn_client._retry import RetryPolicy
from stn_client.cli import _align, _bench, _containers, _info, _playground, _top, _warp
from stn_client.cli._images import ImageError
from stn_client.cli._report import report
from stn_client.cli._terminal import MissingError, missing

DEFAULT_TARGET = "127.0.0.1:50051"


def run(arguments: Sequence[str] | None) -> int:
    """Does what `stn_client.cli.main` does once signals are handled."""
    logging.getLogger("stn_client").addHandler(logging.NullHandler())  # errors tell what it would
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about files of which it is told more here
            code = _run(arguments)
        if sys.stdout is not None:  # None: it was closed by whoever started this
            sys.stdout.flush()
    except KeyboardInterrupt:
        report("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # who read standard output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if "manage" in options:
        return _containers.manage(options)
    try:
        if "watch" in options:
            watched: int = options.watch(options)
            return watched
        with _client(parser, options) as client:
            code: int = options.run(client, options)
    except (StnClientError, ImageError, MissingError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        report(str(error) or type(error).__name__)
        return 1
    return code


def _client(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Client:
    try:
        options.settings = _settings(options)
        return Client(**options.settings)
    except ValueError as error:
        parser.error(str(error))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of a client that the flags give.

    Raises:
        ValueError: A file cannot be read, or the token cannot be sent, or not safely.
    """
    files = {
        "ca": options.tls_ca,
        "certificate": options.tls_certificate,
        "key": options.tls_key,
        "server_name": options.tls_server_name,
    }
    secure = options.tls or any(value is not None for value in files.values())
    return {
        "target": options.target,
        "timeout_s": options.timeout,
        # Somebody waits at a terminal: a server that is not there is said within a second.
        "retry": RetryPolicy(attempts=5),
        "tls": Tls(**files) if secure else None,
        "token": _token(options.token_file),
        "allow_plaintext_token": options.allow_plaintext_token,
    }


def _token(path: Path | None) -> str | None:
    """Reads a token from a file, as arguments can be seen in the list of processes."""
    try:
        # Editors of Windows begin a file with a mark of its encoding, which is no part of it.
        return None if path is None else path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"token-file: expected a readable text file, got {error}.") from error


class _Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.rstrip('.')}. See {self.prog} --help.\n")


_DESCRIPTION = """\
Warps image files, aligns them, and looks after servers, through a spatial transformer service.
Every command but up, down, logs, top and completion needs a server that listens at --target:
stn-server starts one here, stn up starts one in a container."""

_EPILOG = """\
examples:
  stn warp photo.jpg turned.jpg --rotate 30 --scale 0.8 --padding reflection
  stn warp photos/ turned/ --rotate 2
  stn align fixed.png moving.png aligned.png
  stn --target gpu-host:50051 info

stn COMMAND --help tells more. Exit codes: 0 all done, 1 a file or the service refused, 2 wrong
arguments, 130 interrupted."""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stn",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stn {version('stn-client')}")
    parser.add_argument("--target", default=DEFAULT_TARGET, help="server (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="s for one call, retries included (default: %(default)s)",
    )
    parser.add_argument("--tls", action="store_true", help="TLS; implied by the flags below")
    parser.add_argument("--tls-ca", metavar="FILE", help="PEM of the authorities to trust")
    parser.add_argument("--tls-certificate", metavar="FILE", help="PEM of one's own certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM of its private key")
    parser.add_argument("--tls-server-name", metavar="NAME", help="that the server has to prove")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="holds the bearer token")
    parser.add_argument(
        "--allow-plaintext-token", action="store_true", help="even where it can be overheard"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _containers.add_commands(commands)
    _info.add_command(commands)
    _warp.add_command(commands)
    _align.add_command(commands)
    _bench.add_command(commands)
    _top.add_command(commands)
    _playground.add_command(commands)
    completion = commands.add_parser(
        "completion",
        help="print what completes this command in a shell",
        description='For bash: eval "$(stn completion bash)", in ~/.bashrc.',
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(watch=lambda options: _complete(parser, options.shell))
    return parser


def _complete(parser: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab  # noqa: PLC0415 - optional
    except ImportError as error:
        raise missing("shtab") from error
    print(shtab.complete(parser, shell))  # noqa: T201
    return 0
