"""Arguments of `stn` and its subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from google.protobuf.text_format import MessageToString

from stn_client._client import Client
from stn_client._credentials import Tls
from stn_client._errors import StnClientError
from stn_client.cli import _containers, _images, _pictures

DEFAULT_TARGET = "127.0.0.1:50051"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 1 if the service or a file refused."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if "manage" in options:
        return _containers.manage(options)
    try:
        client = _connect(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        with client:
            options.run(client, options)
    except (StnClientError, _images.ImageError) as error:
        print(f"stn: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _connect(options: argparse.Namespace) -> Client:
    """The client that the flags describe.

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
    return Client(
        options.target,
        timeout_s=options.timeout,
        tls=Tls(**files) if secure else None,
        token=_token(options.token_file),
        allow_plaintext_token=options.allow_plaintext_token,
    )


def _token(path: Path | None) -> str | None:
    """What a file holds: a token as an argument would show in the list of processes."""
    try:
        return None if path is None else path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"token-file: expected a readable file, got {error}.") from error


def _info(client: Client, _options: argparse.Namespace) -> None:
    print(MessageToString(client.server_info()), end="")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    description = "Warps and aligns image files on a spatial transformer server."
    parser = argparse.ArgumentParser(prog="stn", description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"stn {version('stn-client')}")
    parser.add_argument("--target", default=DEFAULT_TARGET, help="server (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="for one call")
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
    info = commands.add_parser(
        "info", help="what the server is, offers, allows and has done", allow_abbrev=False
    )
    info.set_defaults(run=_info)

    _pictures.add_commands(commands)
    return parser
