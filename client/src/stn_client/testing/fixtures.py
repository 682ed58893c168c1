"""Fixtures of pytest: `pytest_plugins = ["stn_client.testing.fixtures"]` in a `conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stn_client._client import Client
from stn_client.local import LocalServer


@pytest.fixture(scope="session")
def stn_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Yields a running `stn-server` on free ports of this machine, for all tests of a session.

    Its log is a file `stn-server.log` below the folder for temporary files of the session.
    """
    with LocalServer(log=tmp_path_factory.mktemp("stn") / "stn-server.log") as server:
        yield server


@pytest.fixture
def stn_client(stn_server: LocalServer) -> Iterator[Client]:
    """Yields a new client of that server for every test, with its own `stats`."""
    with Client(stn_server.target) as client:
        yield client
