"""How connections and calls end: contexts, closing, cancellation, event loops."""

import asyncio
import gc
import socket
import threading
import weakref
from contextlib import closing

import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, TransportError
from stn_proto.ttrpc import Response
from stn_proto.v1 import warp_pb2
from stn_proto.v1.server_info_pb2 import GetServerInfoReply
from support.answers import answer_calls
from support.local import HEADER
from support.logs import records_of
from support.scripted_service import PATIENCE_S, Hang, ScriptedService, reply, serialized

MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
WARPED = serialized(warp_pb2.WarpReply, output=MAP + 1)


def test_client_closes_with_its_context():
    """After the with statement the connection is closed."""
    with ScriptedService(reply(WARPED)) as service:
        with Client(service.target) as client:
            client.warp(MAP, IDENTITY)
        with pytest.raises(TransportError, match="expected an open connection, got a closed one"):
            client.warp(MAP, IDENTITY)
    assert len(service.received) == 1


def test_async_client_closes_with_its_context():
    """After the async with statement the connection is closed; unused, there is none."""

    async def scenario(target):
        async with AsyncClient(target):
            pass
        async with AsyncClient(target) as client:
            await client.warp(MAP, IDENTITY)
        with pytest.raises(TransportError, match="expected an open connection, got a closed one"):
            await client.warp(MAP, IDENTITY)

    with ScriptedService(reply(WARPED)) as service:
        asyncio.run(scenario(service.target))
    assert len(service.received) == 1


def test_client_close_fails_the_calls_under_way(caplog):
    """A call of another thread ends with TransportError when the client is closed: no outage."""
    hang = Hang()

    async def scenario(client):
        call = asyncio.create_task(asyncio.to_thread(client.warp, MAP, IDENTITY))
        await asyncio.to_thread(hang.entered.wait, PATIENCE_S)
        client.close()
        with pytest.raises(TransportError, match="expected an open connection, got a closed one"):
            await call

    with ScriptedService(hang) as service:
        asyncio.run(scenario(Client(service.target)))
    assert not records_of(caplog, "stn_client")


def test_async_client_close_fails_the_calls_under_way():
    """They end with TransportError: nobody cancelled the tasks that wait for them."""
    hang = Hang()

    async def scenario(client):
        call = asyncio.create_task(client.warp(MAP, IDENTITY))
        assert await asyncio.to_thread(hang.entered.wait, PATIENCE_S)
        await client.close()
        with pytest.raises(TransportError, match="expected an open connection, got a closed one"):
            await call
        assert not call.cancelled()

    with ScriptedService(hang) as service:
        asyncio.run(scenario(AsyncClient(service.target)))


class Offering:
    """A server whose local transport answers late: what a client asks it is held until `answer`."""

    def __init__(self, folder, monkeypatch):
        self._info = GetServerInfoReply(local_dir=str(folder), instance_id="one")
        answer_calls(monkeypatch, self._info.SerializeToString)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "ttrpc.sock"))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)

    def asked(self):
        """Returns when a client has connected, and asks."""
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(PATIENCE_S)
        assert self._connection.recv(65536)

    def answer(self):
        """Answers, and returns what the client sends next: nothing, if it ends the connection."""
        data = Response(payload=self._info.SerializeToString()).SerializeToString()
        self._connection.sendall(HEADER.pack(len(data), 1, 2, 0) + data)
        return self._connection.recv(65536)

    def close(self):
        self._connection.close()
        self._listener.close()


def test_client_that_is_closed_while_it_connects_leaves_no_connection(tmp_path, monkeypatch):
    """To the local transport, which another thread looks for."""
    with closing(Offering(tmp_path, monkeypatch)) as server:
        client = Client("localhost:1")
        thread = threading.Thread(target=client.is_ready)
        thread.start()
        server.asked()
        client.close()
        assert server.answer() == b""
        thread.join(PATIENCE_S)


def test_async_client_that_is_closed_while_it_connects_leaves_no_connection(tmp_path, monkeypatch):
    """Of which asyncio would warn when the garbage collector finds it, whatever runs by then."""

    async def scenario(server):
        client = AsyncClient("localhost:1")
        call = asyncio.create_task(client.is_ready())
        await asyncio.to_thread(server.asked)
        await client.close()
        assert await asyncio.to_thread(server.answer) == b""
        await call

    with closing(Offering(tmp_path, monkeypatch)) as server:
        asyncio.run(scenario(server))


def test_async_client_cancellation_reaches_the_server():
    """Cancelling the task cancels the call: the server sees that the caller is gone."""
    hang = Hang()

    async def scenario(target):
        async with AsyncClient(target) as client:
            call = asyncio.create_task(client.warp(MAP, IDENTITY))
            assert await asyncio.to_thread(hang.entered.wait, PATIENCE_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError, match=r"^$"):
                await call
            assert await asyncio.to_thread(hang.gone.wait, PATIENCE_S)

    with ScriptedService(hang) as service:
        asyncio.run(scenario(service.target))
    assert len(service.received) == 1


def test_async_client_can_be_made_before_its_loop_runs():
    """A client belongs to the loop it is first used in, not to the place where it is made."""
    with ScriptedService(reply(WARPED)) as service:
        client = AsyncClient(service.target)

        async def scenario():
            async with client:
                return await client.warp(MAP, IDENTITY)

        np.testing.assert_array_equal(asyncio.run(scenario()), MAP + 1)


@pytest.fixture
def no_collector():
    """Without the garbage collector only what nobody refers to is gone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def gone_by_threads(target):
    """Which of a client and the operands of its call are gone when nobody refers to them."""
    feature_map = np.zeros((1, 1, 200, 200), np.float32)
    client = Client(target, local=False)
    client.warp(feature_map, IDENTITY)
    references = [weakref.ref(client), weakref.ref(feature_map)]
    del client, feature_map
    return [reference() is None for reference in references]


async def gone_by_tasks(target):
    """The same of an `AsyncClient`."""
    feature_map = np.zeros((1, 1, 200, 200), np.float32)
    client = AsyncClient(target, local=False)
    await client.warp(feature_map, IDENTITY)
    await client.close()
    references = [weakref.ref(client), weakref.ref(feature_map)]
    del client, feature_map
    return [reference() is None for reference in references]


@pytest.mark.usefixtures("no_collector")
def test_what_nobody_refers_to_is_gone():
    """At once: large operands would fill memory before the garbage collector comes."""
    with ScriptedService(reply(WARPED), reply(WARPED)) as service:
        assert gone_by_threads(service.target) == [True, True]
        assert asyncio.run(gone_by_tasks(service.target)) == [True, True]
