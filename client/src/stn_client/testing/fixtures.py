"""Fixtures of pytest: `pytest_plugins = ["stn_client.testing.fixtures"]` in a `conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stn_client._client import Client
from stn_client.local import LocalServer


@pytest.fixture(scope="session")
def stn_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A running `stn-server` on free ports of this machine, shared by all tests of a session.

    Its log is a file `stn-server.log` below the folder for temporary files of the session.
    """
    with LocalServer(log=tmp_path_factory.mktemp("stn") / "stn-server.log") as server:
        yield server


@pytest.fixture
def stn_client(stn_server: LocalServer) -> Iterator[Client]:
    """A client of that server, made anew for every test, so that `stats` are those of the test."""
    with Client(stn_server.target) as client:
        yield client
