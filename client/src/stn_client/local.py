"""A server on this machine, for demos, tests, notebooks and laptops without a cluster.

Starts the command `stn-server` as its own process; the server itself is never imported.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Self


class LocalServer:
    """A server process on free ports of the loopback interface.

    Args:
        arguments: Flags of `stn-server`; later ones win over those given here.
        log: File to append its log to; None: this process's standard error.

    Attributes:
        target: What to give to `Client`.
        targets: All addresses, if the flags ask for several.
        metrics: URL of its Prometheus metrics.

    Raises:
        RuntimeError: The command is not installed, or the server did not start.

    Example:
        >>> with LocalServer() as server, Client(server.target) as stn:
        ...     stn.warp(u, Affine(theta))
    """

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        flags = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", *arguments]
        with _sink(log) as stderr:
            self.process = subprocess.Popen(
                [_command(), *flags], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        try:
            addresses = self._addresses()
        except BaseException:
            self.process.kill()
            self._wait()
            raise
        self.targets: tuple[str, ...] = tuple(addresses["targets"])
        self.target = self.targets[0]
        self.metrics: str = addresses["metrics"]

    def stop(self, timeout_s: float = 30.0) -> int:
        """Asks the server to finish and returns its exit code; kills it after the timeout."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _wait(self, timeout_s: float | None = None) -> int:
        """Reaps the process, and lets go of its pipe."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()

    def _addresses(self) -> dict[str, Any]:
        """Reads the one line that a server prints when it is ready."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            code = self.process.wait()
            raise RuntimeError(
                f"stn-server: expected it to start, got exit code {code}. Its log says why."
            )
        addresses: dict[str, Any] = json.loads(line)
        return addresses


def _command() -> str:
    """The installed command, looked for beside this interpreter first."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("stn-server", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError(
            "stn-server: expected it on the PATH, got nothing. "
            "In the checkout: pip install ./proto ./stn_engine ./server"
        )
    return found


def _sink(log: Path | None) -> IO[bytes]:
    """Where the log goes: a file, or a duplicate of standard error."""
    return os.fdopen(os.dup(2), "wb") if log is None else log.open("ab")
