"""One server for the tests that leave it as they found it."""

import pytest

from stn_client import Client, RetryPolicy
from stn_client.local import LocalServer

MAX_MESSAGE_BYTES = 1024 * 1024


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server on a TCP port and on a unix socket; shared, so its counts belong to nobody."""
    folder = tmp_path_factory.mktemp("server")
    with LocalServer(
        f"--listen=127.0.0.1:0,unix:{folder}/stn.sock",
        f"--limits-max-message-bytes={MAX_MESSAGE_BYTES}",
        log=folder / "server.log",
    ) as running:
        yield running


@pytest.fixture
def client(server):
    """A client that tries once."""
    with Client(server.target, retry=RetryPolicy(attempts=1)) as connected:
        yield connected
