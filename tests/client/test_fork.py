"""What becomes of clients in forked processes."""

import pytest

from stn_client import Client
from stn_client._connection import _base_clients, register
from support.processes import run_python

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, multiprocessing, sys, threading, time
import numpy as np
from stn_client import Affine, AsyncClient, Client, TransportError

target, scene = sys.argv[1:]
MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
forked = multiprocessing.get_context("fork")
stn = Client(target)


def warp(client):
    assert np.array_equal(client.warp(MAP, IDENTITY, coordinates="pixel"), MAP)


def outcome(use):
    started = time.monotonic()
    try:
        use()
        result = "warped"
    except TransportError as error:
        result = str(error)
    assert time.monotonic() - started < 5, "as good as hanging"
    return result


def use_inherited():
    warp(stn)


def use_new():
    with Client(target) as client:
        warp(client)


def use_async():
    async def scenario():
        async with AsyncClient(target) as client:
            return await client.warp(MAP, IDENTITY, coordinates="pixel")

    assert np.array_equal(asyncio.run(scenario()), MAP)


def children(count):
    for _ in range(count):
        for use in (use_inherited, use_new, use_async):
            with forked.Pool(1) as pool:
                yield pool.apply_async(outcome, [use]).get(timeout=20)


if scene == "unused":
    print(*set(children(1)))
if scene == "idle":
    warp(stn)
    use_async()
    outcomes = []
    for one in children(3):
        outcomes.append(one)
        warp(stn)  # the parent goes on
    print(*set(outcomes))
if scene == "busy":
    over = threading.Event()

    def call_on():
        while not over.is_set():
            warp(stn)

    threads = [threading.Thread(target=call_on, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    outcomes = set(children(3))
    over.set()
    for thread in threads:
        thread.join()
    warp(stn)
    print(*outcomes)
if scene == "open":
    async def scenario():
        async with AsyncClient(target) as client:
            await client.warp(MAP, IDENTITY)
            return set(children(1))

    print(*asyncio.run(scenario()))
"""


def outcomes(server, scene):
    """What all children of a process ended with."""
    ended = run_python("-c", PROGRAM, server.target, scene)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("scene", ["unused", "idle"])
def test_a_child_of_a_quiet_process_connects_anew(local_server, scene):
    """With the inherited client and with new ones, and the parent keeps its connection."""
    assert outcomes(local_server, scene) == "warped"


@pytest.mark.parametrize("scene", ["busy", "open"])
def test_a_child_of_a_calling_process_says_at_once_that_it_cannot(local_server, scene):
    """Locks of gRPC that other threads held at the fork are held for ever in the child."""
    said = outcomes(local_server, scene)
    assert "client: expected a process that was forked while no call was under way" in said
    assert 'start method "spawn"' in said


IMPORTED_BY_CALLS = """
import asyncio, sys
import numpy as np
from stn_client import Affine, AsyncClient, Client, InvalidRequestError

target = sys.argv[1]
MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
IDENTITY = Affine(np.eye(2, 3)[None])
before = set(sys.modules)


async def scenario(**settings):
    async with AsyncClient(target, **settings) as client:
        await asyncio.gather(*(client.warp(MAP.tolist(), IDENTITY) for _ in range(5)))


for settings in ({}, {"local": False}):
    with Client(target, **settings) as client:
        client.vjp(MAP, IDENTITY, fill=[0.5], padding="fill")[1](MAP)
        client.objective(MAP, MAP, IDENTITY)
        client.release(client.upload(MAP))
        client.server_info()
        try:
            client.warp(MAP, Affine(np.full((1, 2, 3), np.nan)))
        except InvalidRequestError:
            pass
    asyncio.run(scenario(**settings))
print(*sorted(set(sys.modules) - before))
"""


def test_calls_import_nothing(local_server):
    """The lock of a module that a thread imports at the fork is held for ever in the child.

    gRPC loads parts of its own when the first channel is opened. Until then a call has found out
    whether it may go on in this process.
    """
    ended = run_python("-c", IMPORTED_BY_CALLS, local_server.target)
    assert ended.returncode == 0, ended.stderr
    assert [name for name in ended.stdout.split() if not name.startswith("grpc.")] == []


BEGUN_BY_A_HANDLER = """
import os, signal, socket, sys, threading


def begin():
    if clients:
        threading.Thread(target=warp, daemon=True).start()
        while not clients[0]._is_busy():
            pass


clients = []
os.register_at_fork(before=begin)  # before that of the SDK, and so called after it

import numpy as np
from stn_client import Affine, Client, TransportError

silent = socket.create_server(("127.0.0.1", 0))  # takes connections, never answers
target = f"127.0.0.1:{silent.getsockname()[1]}"


def warp():
    clients[0].warp(np.ones((1, 1, 2, 2), np.float32), Affine(np.eye(2, 3)[None]))


clients.append(Client(target, local=False, timeout_s=None))
child = os.fork()
if child == 0:
    signal.alarm(30)
    try:
        warp()
    except TransportError as error:
        print(error, flush=True)
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_call_that_begins_while_handlers_of_a_fork_run_is_noticed():
    """Nobody was calling when the SDK was asked; those who come next let threads run."""
    ended = run_python("-c", BEGUN_BY_A_HANDLER)
    assert ended.returncode == 0, ended.stderr
    assert "client: expected a process that was forked while no call was under way" in ended.stdout


def test_a_fork_finds_all_clients_though_another_one_is_made_meanwhile():
    """As by another thread; an exception in a handler of forks would only be printed."""
    made = []

    class Registering:
        """Makes a client when it is looked at."""

        @property
        def __class__(self):
            made.append(Client("localhost:1"))
            return Registering

    first, looked_at = Client("localhost:1"), Registering()
    register(looked_at)
    last = Client("localhost:1")
    assert {first, last} <= set(_base_clients())
    assert made


AFTER_OPENMP = """
import os, signal, sys
import torch
import stn_engine
from stn_client import Affine, Client
from stn_client.torch import warp

torch.set_num_threads(4)
large, theta = torch.ones(4, 4, 256, 256), torch.eye(2, 3)[None]
large.sigmoid().sum()
child = os.fork()
if child == 0:
    signal.alarm(30)
    torch.set_num_threads(1)
    local = large.clone().requires_grad_()
    stn_engine.warp(local, stn_engine.Affine(theta)).sum().backward()
    with Client(sys.argv[1]) as client:
        remote = warp(client, large, Affine(theta))
    os._exit(0 if local.grad.sum() == remote.sum() == large.numel() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_of_a_process_that_used_openmp_works_with_one_thread(local_server):
    """As the README says: without that, torch's own operators hang, engine and SDK or not."""
    ended = run_python("-c", AFTER_OPENMP, local_server.target)
    assert ended.returncode == 0, ended.stderr
