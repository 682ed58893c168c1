"""A real server for the tests of the command line and of LocalServer."""

import pytest

from stn_client.local import LocalServer


@pytest.fixture(scope="session")
def local_server(tmp_path_factory):
    """A running `stn-server`, shared by all tests."""
    with LocalServer(log=tmp_path_factory.mktemp("server") / "log") as server:
        yield server
