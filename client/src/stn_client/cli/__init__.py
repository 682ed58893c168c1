"""The command `stn`: what the SDK does, from a shell."""

from stn_client.cli._main import main

__all__ = ["main"]
