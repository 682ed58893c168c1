"""LocalServer and the real `stn-server` command."""

import os
import select
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from stn_client import Affine, Client, InvalidRequestError
from stn_client.local import LocalServer


def test_local_server_serves_a_warp(local_server):
    """What comes back from the process is the input of an identity warp."""
    feature_map = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    with Client(local_server.target) as client:
        warped = client.warp(feature_map, Affine(np.eye(2, 3)[None]), coordinates="pixel")
    np.testing.assert_array_equal(warped, feature_map)


def test_local_server_tells_its_addresses(local_server):
    """Target and metrics are addresses of the loopback interface; the metrics answer."""
    assert local_server.targets == (local_server.target,)
    assert local_server.target.startswith("127.0.0.1:")
    with urllib.request.urlopen(local_server.metrics) as answer:
        assert b"stn_build_info" in answer.read()


@pytest.mark.slow
def test_local_server_stops_when_asked(tmp_path):
    """stop() ends the process with exit code 0, however often; the log is in its file."""
    log = tmp_path / "log"
    server = LocalServer(log=log)
    assert [server.stop(), server.stop()] == [0, 0]
    assert '"event": "serving"' in log.read_text()


@pytest.mark.slow
def test_local_server_with_a_wrong_flag_does_not_start(tmp_path):
    """The error has the exit code, and the log says which flag it was."""
    log = tmp_path / "log"
    match = r"stn-server: expected it to start, got exit code 2\. Its log says why\."
    with pytest.raises(RuntimeError, match=match):
        LocalServer("--no-such-flag", log=log)
    assert "--no-such-flag" in log.read_text()


@pytest.mark.slow
def test_local_server_needs_no_standard_error():
    """Services have none at times; the log goes nowhere then, as all that is written there."""
    script = "import os\nos.close(2)\nfrom stn_client.local import LocalServer\n"
    script += "print(LocalServer().stop())"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "0\n"


def test_local_server_without_the_command_says_how_to_get_it(monkeypatch, tmp_path):
    """Neither beside the interpreter nor on the PATH: the error names the package."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"stn-server: .* pip install .* \./server"):
        LocalServer()


OWNER = """
import os, sys
from stn_client.local import LocalServer

server = LocalServer(log=sys.argv[1])
print(server.process.pid, server.target, flush=True)
if sys.argv[2] == "fork" and os.fork() == 0:
    sys.stdout.close()
    sys.stdin.read()  # a child that outlives its parent
    os._exit(0)
if sys.argv[2] != "exit":
    sys.stdin.read()
"""


class Owner:
    """A process that starts a server and does not stop it."""

    def __init__(self, folder, way):
        command = [sys.executable, "-c", OWNER, str(folder / "log"), way]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        pid, self.target = self.process.stdout.readline().split()
        self.server = os.pidfd_open(int(pid))

    def server_has_ended(self, timeout_s):
        ended, _, _ = select.select([self.server], [], [], timeout_s)
        return bool(ended)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        if not self.server_has_ended(0):
            signal.pidfd_send_signal(self.server, signal.SIGKILL)
        os.close(self.server)
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exit", "kill", "fork"])
def test_local_server_ends_with_its_owner(tmp_path, way):
    """Be it that the process ends, is killed, or is killed while a child of it lives on."""
    with Owner(tmp_path, way) as owner:
        if way != "exit":
            owner.process.kill()
        assert owner.server_has_ended(timeout_s=30)
    assert '"event": "stopped"' in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_local_server_does_not_end_with_an_interrupt(tmp_path):
    """A notebook interrupts the whole group of its kernel; the server is in none of that."""
    with Owner(tmp_path, "interrupt") as owner, Client(owner.target) as client:
        assert client.server_info().ready
        owner.process.send_signal(signal.SIGSTOP)  # it cannot end of the interrupt itself
        os.killpg(owner.process.pid, signal.SIGINT)
        assert client.server_info().ready
        assert not owner.server_has_ended(timeout_s=0)


@pytest.mark.parametrize("log", ["no/such/folder/log", 5, "a\0b"], ids=repr)
def test_local_server_logs_are_files(tmp_path, monkeypatch, log):
    """Said before anything is started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"^log: expected a file to append to, got"):
        LocalServer(log=log)


@pytest.mark.parametrize("argument", [5, None, b"--threads=1"], ids=repr)
def test_local_server_flags_are_text(argument):
    """Others could not be arguments of a command."""
    with pytest.raises(InvalidRequestError, match=r"^arguments: expected flags of stn-server, got"):
        LocalServer(argument)
