"""Connections by ttrpc, without a server of ours."""

import asyncio
import fcntl
import os
import socket
import threading

import pytest

from stn_client._ttrpc import ConnectionLostError
from stn_client._ttrpc_aio import Connection as AsyncConnection
from stn_client._ttrpc_threads import Connection
from support.local import descriptors


def test_a_connection_that_is_closed_under_a_call_is_lost_to_it(tmp_path):
    """Also where another file gets its descriptor before the call waits for the answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ttrpc.sock"))
        listener.listen()
        connection = Connection(tmp_path, lambda: ())
        number = connection._socket.fileno()
        silent, other_end = os.pipe()
        opened = [silent, other_end]
        wait_for = connection._wait_for

        def wait_late(poll, deadline_s):
            if len(opened) == 2:
                connection.close()
                opened.append(fcntl.fcntl(silent, fcntl.F_DUPFD_CLOEXEC, number))
            wait_for(poll, deadline_s)

        connection._wait_for = wait_late
        with pytest.raises(ConnectionLostError):
            connection.call("/service/Method", b"", timeout=2)
        assert len(opened) == 3
        assert connection.is_lost
        for one in opened:
            os.close(one)


def threads(folder, metadata):
    connection = Connection(folder, metadata)
    with pytest.raises(ConnectionLostError):
        connection.call("/service/Method", b"", timeout=10)
    return connection


def tasks(folder, metadata):
    async def scenario():
        connection = await AsyncConnection.open(folder, metadata)
        with pytest.raises(ConnectionLostError):
            await connection.call("/service/Method", b"", timeout=10)
        return connection

    return asyncio.run(scenario())


@pytest.mark.parametrize("lost", [threads, tasks])
def test_memory_of_a_lost_connection_is_allocated_no_more(tmp_path, lost):
    """The server may still write to it; nor is another server asked for more in its name."""
    asked = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ttrpc.sock"))
        listener.listen()

        def end():
            listener.accept()[0].close()

        ending = threading.Thread(target=end)
        ending.start()
        connection = lost(tmp_path, lambda: asked.append(1) or ())
        ending.join()
    assert connection.pool.allocate(64) is None
    assert asked == []


def test_a_closed_connection_has_no_descriptor_once_nobody_uses_it(tmp_path):
    """At once, not when the collector runs."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ttrpc.sock"))
        listener.listen()
        connection = Connection(tmp_path, lambda: ())
        name = descriptors()[str(connection._socket.fileno())]  # numbers are given again
        connection.close()
        assert name in descriptors().values()
        del connection
        assert name not in descriptors().values()
