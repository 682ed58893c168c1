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
import tempfile
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from stn_client._errors import invalid

MAX_FOLDER_BYTES = 64
"""The longest path of the folder for temporary files, so that a path of a unix socket below it is
short enough."""

ANY_PORTS = ("--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0")


class LocalServer:
    """A server process on free ports of the loopback interface, with a local transport.

    It ends when it is stopped, or when this process ends in whatever way, and not before: it is in
    a session of its own, where the interrupts of a terminal or a notebook do not reach it.

    Args:
        arguments: Flags of `stn-server`; later ones win over those given here.
        log: File to append its log to; None: this process's standard error.

    Attributes:
        target: What to give to `Client`.
        targets: All addresses, if the flags ask for several.
        metrics: URL of its Prometheus metrics.

    Raises:
        InvalidRequestError: `log` cannot be written to, or an argument is no text.
        RuntimeError: The command is not installed, or the server did not start.

    Example:
        >>> with LocalServer() as server, Client(server.target) as stn:
        ...     stn.warp(u, Affine(theta))
    """

    def __init__(self, *arguments: str, log: Path | str | None = None) -> None:
        for argument in arguments:
            if not isinstance(argument, str):
                raise invalid("arguments", f"expected flags of stn-server, got {argument!r}.")
        command, flags = _command(), ["--lifecycle-end-with-stdin=true", *ANY_PORTS]
        with _sink(log) as stderr:
            self._folder = _folder()
            self._owner_pipe = _OwnerPipe()
            try:
                self.process = subprocess.Popen(
                    [command, *flags, f"--local-dir={self._folder}", *arguments],
                    stdin=self._owner_pipe.server_end,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    # Else Ctrl-C in a terminal would reach the server, too, before its owner has
                    # stopped it.
                    start_new_session=True,
                )
            finally:
                os.close(self._owner_pipe.server_end)
        try:
            addresses = self._addresses()
        except BaseException:
            # It may be interrupted, as by Ctrl-C, while the server starts.
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
        """Reaps the process, and closes its pipe."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._owner_pipe.close()
            shutil.rmtree(self._folder, ignore_errors=True)
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


class _OwnerPipe:
    """A pipe that closes when this process ends, however that comes about.

    Children forked from this process hold no end of it.
    """

    _held: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        self.server_end, self._end = os.pipe()
        self._held.add(self._end)

    def close(self) -> None:
        if self._end in self._held:
            self._held.remove(self._end)
            os.close(self._end)

    @classmethod
    def close_all(cls) -> None:
        while cls._held:
            os.close(cls._held.pop())


os.register_at_fork(after_in_child=_OwnerPipe.close_all)


def _command() -> str:
    """Returns the installed command, looked for beside this interpreter first."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("stn-server", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError(
            "stn-server: expected it on the PATH, got nothing. "
            "In the checkout: pip install ./proto ./stn_engine ./server"
        )
    return found


def _folder() -> str:
    """Makes a new folder for unix sockets, whose paths must be short."""
    usual = tempfile.gettempdir()
    is_short = len(os.fsencode(usual)) <= MAX_FOLDER_BYTES
    return tempfile.mkdtemp(prefix="stn-", dir=usual if is_short else "/tmp")  # noqa: S108


def _sink(log: Path | str | None) -> IO[bytes]:
    """Returns where the log is written: a file, or a duplicate of standard error."""
    if log is None:
        try:
            return os.fdopen(os.dup(2), "wb")
        except OSError:
            log = os.devnull
    try:
        return Path(log).open("ab")
    except (OSError, TypeError, ValueError) as error:
        raise invalid("log", f"expected a file to append to, got {error}.") from error
