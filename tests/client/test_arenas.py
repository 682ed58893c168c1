"""The client's side of arenas, without a server."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, InvalidRequestError
from stn_client._arenas import Pool
from stn_client._calls import warp
from stn_client._placing import place
from stn_client._ttrpc import ConnectionLostError
from stn_client._ttrpc_aio import Connection
from support.processes import run_python


def test_who_allocates_what_is_there_does_not_wait_for_a_new_arena(tmp_path):
    """An event loop allocates slots, and must not stand still while a server is asked for more."""
    is_asking, may_ask = threading.Event(), threading.Event()

    def metadata():
        is_asking.set()
        may_ask.wait(20)
        return ()

    pool = Pool(tmp_path, metadata)
    growing = threading.Thread(target=pool.allocate, args=[64])
    growing.start()
    assert is_asking.wait(10)
    taking = threading.Thread(target=pool.allocate, args=[64], kwargs={"may_grow": False})
    taking.start()
    taking.join(5)
    has_waited = taking.is_alive()
    may_ask.set()
    growing.join()
    taking.join()
    assert not has_waited


def test_a_pool_that_is_closed_asks_for_nothing(tmp_path):
    """Neither a thread that comes late, nor one that is asking at that moment."""
    asked = []
    pool = Pool(tmp_path, lambda: asked.append(1) or ())
    pool.close()
    assert pool.allocate(64) is None
    assert asked == []


FORKED_TWICE = """
import os, pathlib, signal, sys

pools = []
# Once the pools were asked, and before the fork, another thread takes the lock.
os.register_at_fork(before=lambda: pools and pools[0]._lock.acquire(blocking=False))

from stn_client._arenas import Pool

pools.append(Pool(pathlib.Path("nowhere"), lambda: ()))
child = os.fork()
if child == 0:
    signal.alarm(10)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_can_fork_whatever_its_parent_was_doing():
    """Locks that threads of the parent held at the fork are held for ever in the child."""
    ended = run_python("-c", FORKED_TWICE)
    assert ended.returncode == 0, ended.stderr


def test_who_abandons_a_lost_connection_closes_no_file_of_others(tmp_path):
    """Its number may be that of another one by then; a child goes on to its other clients."""

    async def scenario():
        async def serve(_reader, writer):
            writer.close()

        async with await asyncio.start_unix_server(serve, tmp_path / "ttrpc.sock"):
            connection = await Connection.open(tmp_path, lambda: ())
            with pytest.raises(ConnectionLostError):
                await connection.call("/service/Method", b"", timeout=10)
            connection.abandon()

    asyncio.run(scenario())


def test_arrays_of_the_client_are_those_of_numpy():
    """Whatever is asked for; no object ever lies in memory that others write to."""
    stn = Client("localhost:1")
    slots = []

    def allocate(size_bytes):
        slots.append(np.full(size_bytes, 255, np.uint8))
        return SimpleNamespace(memory=slots[-1])

    stn._transports().local = SimpleNamespace(pool=SimpleNamespace(allocate=allocate))
    assert stn.empty((2, 3), object).tolist() == [[None] * 3] * 2
    assert slots == []
    for shape in (5, (), (np.uint8(200), np.uint8(200))):
        assert stn.empty(shape).shape == np.empty(shape).shape
    assert [len(slot) for slot in slots] == [20, 4, 160_000]
    with pytest.raises(ValueError, match="negative dimensions"):
        stn.empty((-1, 2))


def test_a_call_that_no_frame_takes_goes_by_grpc():
    """To try would end the connection, and with it the calls of others."""
    feature_map, identity = np.zeros((1, 1, 2, 2), np.float32), Affine(np.eye(2, 3)[None])
    long = {"padding": "fill", "fill": np.zeros(600_000)}
    pool = object()  # not even asked
    assert place(warp(feature_map, identity, None, long), pool, "") is None
    assert place(warp(feature_map, identity, None, {}), pool, "").places == ()


def test_a_feature_map_that_is_no_array_is_refused_by_vjp_as_by_warp():
    """It is looked at to be shared by both calls; the error is the client's all the same."""
    ragged, identity = [[1.0], [1.0, 2.0]], Affine(np.eye(2, 3)[None])
    with pytest.raises(InvalidRequestError, match=r"^feature_map: expected an array, got list"):
        Client("localhost:1").vjp(ragged, identity)

    async def scenario():
        async with AsyncClient("localhost:1") as stn:
            await stn.vjp(ragged, identity)

    with pytest.raises(InvalidRequestError, match=r"^feature_map: expected an array, got list"):
        asyncio.run(scenario())
