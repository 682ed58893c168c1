"""The timeout of a call is one for all that the local transport tries, and for what follows it."""

import asyncio
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client
from stn_client._ttrpc import ConnectionLostError

MAP, IDENTITY = np.zeros((1, 1, 2, 2), np.float32), Affine(np.eye(2, 3, dtype=np.float32)[None])


class OverError(Exception):
    """Ends a call of the test."""


class Server:
    """Answers nobody: to find that out takes as long as it may, or a time of the test."""

    def __init__(self, monkeypatch, takes_s):
        self.timeouts_s = []
        self._takes_s = takes_s
        self._now_s = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self._now_s)

    def asked(self, path, timeout):
        """One attempt, which fails."""
        self.timeouts_s.append((path.rpartition("/")[2], pytest.approx(timeout)))
        self._now_s += min(timeout, self._takes_s)

    def stub(self, path):
        """Gives a stub as a channel of gRPC does."""

        def call(_request, *, timeout, **_options):
            self.asked(path, timeout)
            raise grpc.RpcError if path.endswith("GetServerInfo") else OverError

        return call

    def local(self, path, _message, *, timeout, **_options):
        """Answers in place of a local connection."""
        self.asked(path, timeout)
        raise ConnectionLostError

    def asynchronous(self, method):
        """Makes a coroutine function of a method."""

        async def call(*arguments, **options):
            return method(*arguments, **options)

        return call


def channels(method):
    """Channels all of which lead to the same methods."""
    return SimpleNamespace(link=lambda _address="": SimpleNamespace(method=method))


def warp(server, is_asynchronous, timeout_s, *, is_connected):
    """A call by a client that has a local connection, or has to look for one."""
    if not is_asynchronous:
        client = Client("localhost:1", timeout_s=timeout_s)
        transports = client._transports()
        transports.channels = channels(server.stub)
        if is_connected:
            transports.local = SimpleNamespace(call=server.local, pool=None, close=lambda: None)
        client.warp(MAP, IDENTITY)

    async def scenario():
        client = AsyncClient("localhost:1", timeout_s=timeout_s)
        transports = client._transports()
        transports.channels = channels(lambda path: server.asynchronous(server.stub(path)))
        if is_connected:
            call = server.asynchronous(server.local)
            transports.local = SimpleNamespace(call=call, pool=None, close=lambda: None)
        await client.warp(MAP, IDENTITY)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_a_connection_that_is_lost_late_leaves_what_is_left(monkeypatch, is_asynchronous):
    """Not all of the time again."""
    server = Server(monkeypatch, 40.0)
    with pytest.raises(OverError):
        warp(server, is_asynchronous, 60.0, is_connected=True)
    assert server.timeouts_s == [("Warp", 60.0), ("Warp", 20.0)]


@pytest.mark.parametrize("is_asynchronous", [False, True])
@pytest.mark.parametrize(("timeout_s", "asked_s"), [(0.5, 0.5), (60.0, 1.0)])
def test_to_look_for_it_takes_no_time_of_its_own(monkeypatch, is_asynchronous, timeout_s, asked_s):
    """Neither more than the call has, nor more than it is worth."""
    server = Server(monkeypatch, 40.0)
    with pytest.raises(OverError):
        warp(server, is_asynchronous, timeout_s, is_connected=False)
    assert server.timeouts_s == [("GetServerInfo", asked_s), ("Warp", timeout_s - asked_s)]
