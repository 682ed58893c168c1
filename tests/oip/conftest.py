"""What runs with NVIDIA's own client, which has an environment of its own: `make test-oip`.

The SDK is in the same process, so that results are compared bit for bit and both are seen to live
beside each other. The server is a process of the environment that SERVER_PYTHON names.
"""

import json
import os
import signal
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest

collect_ignore_glob = [] if find_spec("tritonclient") else ["test_*.py"]

if find_spec("tritonclient"):
    from oip.calls import Peer


class Server:
    """A server, on a port of its own and with a log of its own."""

    def __init__(self, folder, *flags):
        self._log = (folder / "server.log").open("a")
        self.log = folder / "server.log"
        listen = ("--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0")
        self.process = subprocess.Popen(
            [os.environ["SERVER_PYTHON"], "-m", "stn_server", *listen, *flags],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        addresses = json.loads(self.process.stdout.readline())
        self.target, self.metrics = addresses["targets"][0], addresses["metrics"]

    def stop(self, signal_number=signal.SIGTERM):
        """Returns its exit code."""
        self.process.send_signal(signal_number)
        code = self.process.wait(60)
        self.process.stdout.close()
        self._log.close()
        return code


@pytest.fixture
def start(tmp_path):
    """Starts servers, which end with the test."""
    running = []

    def started(*flags):
        running.append(Server(tmp_path, *flags))
        return running[-1]

    yield started
    for server in running:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server with shared memory, for the tests that leave it as they found it."""
    running = Server(tmp_path_factory.mktemp("server"), "--oip-shared-memory=true")
    yield running
    assert running.stop() == 0
    faults = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert [one for one in faults if one["level"] == "error"] == []


@pytest.fixture
def peer(server):
    """NVIDIA's client and ours, connected to the same server."""
    with Peer(server.target) as connected:
        yield connected


@pytest.fixture
def rng():
    return np.random.default_rng(0)
