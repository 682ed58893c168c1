"""Helps tests of programs that call the service: a client without a server, and fixtures.

`StubClient` answers in the process. The fixtures `stn_server` and `stn_client`, of a real server
on free ports, come with one line in a `conftest.py`:

    pytest_plugins = ["stn_client.testing.fixtures"]
"""

from stn_client.testing._stub import StubAsyncClient, StubCall, StubClient

__all__ = ["StubAsyncClient", "StubCall", "StubClient"]
