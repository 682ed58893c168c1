"""Calls of a client take turns: so many at a time, the rest in the order they came in."""

import asyncio
import threading

import numpy as np
import pytest

from stn_client import Affine, AsyncClient, Client, DeadlineExceededError, TransportError
from stn_proto.v1 import warp_pb2
from support.scripted_service import PATIENCE_S, Hang, ScriptedService, reply, serialized

MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
WARPED = serialized(warp_pb2.WarpReply, output=MAP + 1)


def test_threads_have_so_many_calls_in_flight_and_the_rest_wait():
    """Two at a time of five; all are answered in the end."""
    release, inside, most = threading.Event(), [], []

    def answer(_context):
        inside.append(1)
        most.append(len(inside))
        if len(most) == 2:
            release.set()
        assert release.wait(PATIENCE_S)
        inside.pop()
        return WARPED

    with (
        ScriptedService(*[answer] * 5) as service,
        Client(service.target, max_in_flight=2) as client,
    ):
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(client.warp(MAP, IDENTITY)))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(results) == 5
    assert max(most) == 2


def test_tasks_have_so_many_calls_in_flight_and_the_rest_wait_in_order():
    """Calls of one loop arrive at the server in the order they were made."""

    async def scenario(target):
        async with AsyncClient(target, max_in_flight=1) as client:
            maps = [np.full((1, 1, 1, 1), number, np.float32) for number in range(20)]
            await asyncio.gather(*(client.warp(one, IDENTITY) for one in maps))

    with ScriptedService(*[reply(WARPED)] * 20) as service:
        asyncio.run(scenario(service.target))
    requests = [warp_pb2.WarpRequest.FromString(call.request) for call in service.received]
    sent = [np.frombuffer(request.payloads[0], np.float32)[0] for request in requests]
    assert sent == list(range(20))


def ended(client):
    """A call that is cut off in the end."""
    with pytest.raises(TransportError, match="got a closed one"):
        client.warp(MAP, IDENTITY)


MESSAGE = r"^timeout_s: expected a result within 0\.2 s, got no turn: "


def test_a_call_whose_turn_does_not_come_in_time_says_so():
    """Waiting for others is part of what timeout_s bounds."""
    hang = Hang()
    with ScriptedService(hang) as service:
        busy = Client(service.target, max_in_flight=1, timeout_s=0.2)
        busy._timeout_s = None  # for the first call alone
        first = threading.Thread(target=ended, args=[busy])
        first.start()
        assert hang.entered.wait(PATIENCE_S)
        busy._timeout_s = 0.2
        with pytest.raises(DeadlineExceededError, match=MESSAGE):
            busy.warp(MAP, IDENTITY)
        busy.close()
        first.join(PATIENCE_S)
    assert len(service.received) == 1


def test_a_task_whose_turn_does_not_come_in_time_says_so():
    """As of threads; and a task that is cancelled while it waits takes no turn."""
    hang = Hang()

    async def scenario(target):
        async with AsyncClient(target, max_in_flight=1, timeout_s=0.2) as client:
            client._timeout_s = None  # for the first call alone
            first = asyncio.create_task(client.warp(MAP, IDENTITY))
            assert await asyncio.to_thread(hang.entered.wait, PATIENCE_S)
            client._timeout_s = 0.2
            with pytest.raises(DeadlineExceededError, match=MESSAGE):
                await client.warp(MAP, IDENTITY)
            waiting = asyncio.create_task(client.warp(MAP, IDENTITY))
            await asyncio.sleep(0)
            waiting.cancel()
            first.cancel()
            await asyncio.wait([first, waiting])
            client._timeout_s = None
            np.testing.assert_array_equal(await client.warp(MAP, IDENTITY), MAP + 1)

    with ScriptedService(hang, reply(WARPED)) as service:
        asyncio.run(scenario(service.target))


@pytest.mark.slow
def test_thousands_of_calls_at_once_are_all_answered(local_server):
    """More than gRPC lets a server hold back, which ended some without a word to anybody."""

    async def scenario():
        async with AsyncClient(local_server.target) as client:
            calls = (client.warp(MAP, IDENTITY, coordinates="pixel") for _ in range(2500))
            return await asyncio.gather(*calls)

    for result in asyncio.run(scenario()):
        np.testing.assert_array_equal(result, MAP)
