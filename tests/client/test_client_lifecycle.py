"""How connections and calls end: contexts, closing, cancellation, event loops."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, TransportError
from stn_proto.v1 import warp_pb2
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
