"""Large tensors of clients on the host of their server lie in memory that both see."""

import asyncio
import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_client import Affine, AsyncClient, Client, Flow, _arenas
from stn_client import torch as stn_torch
from stn_client._calls import warp, warp_gradients
from stn_client._placing import place
from stn_client.local import LocalServer
from stn_proto import split
from stn_proto.v1 import warp_pb2
from support.bad_requests import theta
from support.harness import scrape, statistics_when_idle
from support.in_workers import warp_and_look
from support.local import descriptors, shared_mappings

SHAPE = (2, 3, 64, 80)
U = np.random.default_rng(0).random(SHAPE, np.float32)
G = np.random.default_rng(1).random(SHAPE, np.float32)
TRANSFORM_T = Affine(torch.from_numpy(theta()))
TRANSFORM, TRANSFORM_4 = Affine(theta()), Affine(theta(4))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own, so that its arenas can be counted."""
    log = tmp_path_factory.mktemp("arenas") / "server.log"
    with LocalServer(log=log) as running:
        yield running


@pytest.fixture
def by_grpc(server):
    with Client(server.target, local=False) as stn:
        yield stn


@pytest.fixture
def stn(server):
    with Client(server.target) as connected:
        connected.server_info()
        assert connected._transports().local is not None
        yield connected


def arenas(server, expected, timeout_s=10.0):
    """Whether there are so many arenas, once the server has seen which connections have ended."""
    give_up = time.monotonic() + timeout_s
    while (found := scrape(server.metrics)["stn_arenas"]) != expected:
        if time.monotonic() > give_up:
            return False
    return found == expected


def moved(server, direction="received"):
    """Bytes of messages by the local transport."""
    name = f'stn_payload_bytes_total{{direction="{direction}",transport="local"}}'
    return scrape(server.metrics).get(name, 0.0)


CALLS = {
    "warp": lambda stn: [stn.warp(U, TRANSFORM)],
    "warp of another size": lambda stn: [stn.warp(U, TRANSFORM, (33, 90), padding="border")],
    "warp of channels last": lambda stn: [
        stn.warp(np.moveaxis(U, 1, -1), TRANSFORM, layout="NHWC")
    ],
    "warp of half precision": lambda stn: [stn.warp(U.astype(np.float16), TRANSFORM)],
    "warp of bytes": lambda stn: [stn.warp((255 * U).astype(np.uint8), TRANSFORM)],
    "one map, many transforms": lambda stn: [stn.warp(U[:1], TRANSFORM)],
    "flow": lambda stn: [stn.warp(U, Flow(np.moveaxis(G[:, :2], 1, -1) / 9))],
    "volumes": lambda stn: [
        stn.warp(U.reshape(1, 2, 3, 64, 80), Affine(np.eye(3, 4, dtype=np.float32)[None]))
    ],
    "gradients": lambda stn: list(vars_of(stn.warp_gradients(G, U, TRANSFORM))),
    "gradient of the transform": lambda stn: list(
        vars_of(stn.warp_gradients(G, U, TRANSFORM, needs=["transform"]))
    ),
    "gradients of a flow": lambda stn: list(
        vars_of(stn.warp_gradients(G, U, Flow(np.moveaxis(G[:, :2], 1, -1) / 9)))
    ),
    "grid": lambda stn: [stn.generate_grid(TRANSFORM, (100, 90))],
    "grid gradients": lambda stn: [
        stn.generate_grid_gradients(np.moveaxis(G[:, :2], 1, -1), TRANSFORM)
    ],
}


def vars_of(gradients):
    return (one for one in (gradients.feature_map, gradients.transform) if one is not None)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_results_are_those_by_grpc(server, stn, by_grpc, call):
    """Bit for bit; messages are small."""
    before = moved(server)
    for _ in range(2):  # the second time by a plan that is kept
        for ours, theirs in zip(call(stn), call(by_grpc), strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.tobytes() == theirs.tobytes()
            assert not ours.flags.writeable
    assert 0 < moved(server) - before < 4096


def test_operands_that_lie_there_are_not_copied(stn):
    """Neither those of `empty`, nor results, nor whole images of either; others are, once."""
    u = stn.empty(SHAPE)
    u[...] = U
    pool = stn._transports().local.pool
    output = stn.warp(u, TRANSFORM)
    image = u[1:2]
    for call, operands in (
        (warp(u, TRANSFORM, None, {}), [u]),
        (warp(image, TRANSFORM, None, {}), [image]),
        (warp_gradients(output, u, TRANSFORM, ["transform"], {}), [output, u]),
    ):
        placed = place(call, pool, "")
        request = _request(call, placed)
        named = (
            [request.feature_map]
            if len(operands) == 1
            else [
                request.grad_output,
                request.feature_map,
            ]
        )
        for tensor, operand in zip(named, operands, strict=True):
            (arena,) = (one for one in pool._arenas if one.id == tensor.arena.id)
            address = operand.__array_interface__["data"][0]
            assert arena.address + tensor.arena.offset == address
        assert len(placed.request) < 1024
    odd = u[:, :, :, 1:]
    placed = place(warp(odd, TRANSFORM, None, {}), pool, "")
    tensor = _request(warp(odd, TRANSFORM, None, {}), placed).feature_map
    assert tensor.arena.byte_count == odd.nbytes
    (arena,) = (one for one in pool._arenas if one.id == tensor.arena.id)
    start = tensor.arena.offset
    assert arena.memory[start : start + odd.nbytes].tobytes() == odd.tobytes()


def _request(call, placed):
    envelope, _ = split(placed.request)
    kind = {"Warp": warp_pb2.WarpRequest, "WarpGradients": warp_pb2.WarpGradientsRequest}
    return kind[call.method.rpartition("/")[2]].FromString(envelope)


def test_the_pullback_reads_what_the_warp_has_read(stn, by_grpc):
    """The feature map is copied once for both; changing it afterwards changes nothing."""
    u = U.copy()
    pool = stn._transports().local.pool
    output, pullback = stn.vjp(u, TRANSFORM)
    u[...] = 0
    taken = _free(pool)
    gradients = pullback(G)
    assert taken - _free(pool) == gradients.feature_map.nbytes
    expected = by_grpc.warp_gradients(G, U, TRANSFORM)
    assert np.array_equal(gradients.feature_map, expected.feature_map)
    assert np.array_equal(output, by_grpc.warp(U, TRANSFORM))


def _free(pool):
    pool._free_returned()
    return sum(size for arena in pool._arenas for _, size in arena._free)


def test_a_result_that_is_held_never_changes(stn, by_grpc):
    """Nor does a view of one whose array is gone; what nobody holds is used again."""
    expected = by_grpc.warp(U, TRANSFORM)
    pool = stn._transports().local.pool
    held = [stn.warp(U, TRANSFORM) for _ in range(4)]
    views = [stn.warp(U, TRANSFORM)[1, :, ::2], torch.from_numpy(stn.warp(U, TRANSFORM).copy())]
    before = _free(pool)
    for _ in range(50):
        stn.warp(G, TRANSFORM)
    assert _free(pool) == before
    assert len(pool._arenas) == 1
    for one in held:
        assert np.array_equal(one, expected)
    assert np.array_equal(views[0], expected[1, :, ::2])
    del held, views, one
    gc.collect()
    assert _free(pool) == len(pool._arenas[0].memory)
    assert pool._arenas[0].is_free


def test_results_outlive_their_client_and_its_server(tmp_path):
    """They are the client's own mapping."""
    with LocalServer(log=tmp_path / "log") as short:
        with Client(short.target) as stn:
            output = stn.warp(U, TRANSFORM)
        assert arenas(short, 0)
    with LocalServer(log=tmp_path / "log2") as other, Client(other.target, local=False) as stn:
        assert np.array_equal(output, stn.warp(U, TRANSFORM))


def test_torch_takes_it_by_itself(server, stn):
    """Forward and backward, as with torch alone."""
    u = torch.from_numpy(U).requires_grad_()
    t = torch.from_numpy(theta()).requires_grad_()
    before = moved(server)
    output = stn_torch.warp(stn, u, Affine(t))
    output.backward(torch.from_numpy(G))
    assert moved(server) - before < 4096
    u2, t2 = u.detach().clone().requires_grad_(), t.detach().clone().requires_grad_()
    grid = torch.nn.functional.affine_grid(t2, SHAPE, align_corners=False)
    expected = torch.nn.functional.grid_sample(u2, grid, align_corners=False)
    expected.backward(torch.from_numpy(G))
    for ours, theirs in ((output, expected), (u.grad, u2.grad)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(t.grad, t2.grad, rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_lies_where_its_result_was_written(stn, by_grpc, dtype):
    """It can be written to, keeps its slot, and gives it back."""
    u = torch.from_numpy(U).to(dtype)
    transform = Affine(torch.from_numpy(theta()))
    expected = stn_torch.warp(by_grpc, u, transform)
    pool = stn._transports().local.pool
    stn.warp(U, TRANSFORM)
    before = _free(pool)
    output = stn_torch.warp(stn, u, transform)
    (arena,) = pool._arenas
    assert 0 <= output.data_ptr() - arena.address < len(arena.memory)
    assert torch.equal(output, expected)
    view = output[1]
    output.mul_(2)
    for _ in range(5):
        stn_torch.warp(stn, u, transform)
    assert torch.equal(output, 2 * expected)
    del output
    assert torch.equal(view, 2 * expected[1])
    assert before - _free(pool) == u.nbytes
    del view
    assert _free(pool) == before


def test_autograd_copies_a_map_once(stn, by_grpc):
    """A change behind its back changes no gradient; one that torch sees is an error, as always."""
    u = torch.from_numpy(U.copy()).requires_grad_()
    transform = Affine(torch.from_numpy(theta()).requires_grad_())
    expected = by_grpc.warp_gradients(G, U, TRANSFORM).transform
    pool = stn._transports().local.pool
    stn.warp(U, TRANSFORM)
    before = _free(pool)
    output = stn_torch.warp(stn, u, transform)
    assert before - _free(pool) == 2 * u.nbytes
    u.detach().numpy()[...] = 0
    (gradient,) = torch.autograd.grad(output, transform.theta, torch.from_numpy(G))
    assert np.array_equal(gradient, expected)
    del output
    gc.collect()
    assert _free(pool) == before
    output = stn_torch.warp(stn, u, transform)
    with torch.no_grad():
        u.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_tensors_beyond_what_is_plentiful_are_copies(stn, monkeypatch):
    """Calls have slots left, however many results are kept."""
    monkeypatch.setattr(_arenas, "PLENTIFUL_BYTES", 3 * U.nbytes)
    pool = stn._transports().local.pool
    stn.warp(U, TRANSFORM)
    before = _free(pool)
    held = [stn_torch.warp(stn, torch.from_numpy(U), TRANSFORM_T) for _ in range(5)]
    assert before - _free(pool) <= 3 * U.nbytes
    assert all(torch.equal(one, held[0]) for one in held)


def test_an_asynchronous_client_takes_it_too(server, by_grpc):
    """Many large calls at once."""

    async def scenario():
        async with AsyncClient(server.target) as stn:
            u = await stn.empty(SHAPE)
            u[...] = U
            outputs = await asyncio.gather(*(stn.warp(u, TRANSFORM) for _ in range(16)))
            output, pullback = await stn.vjp(U, TRANSFORM)
            return [*outputs, output], await pullback(G)

    before = moved(server)
    outputs, gradients = asyncio.run(scenario())
    assert 0 < moved(server) - before < 18 * 1024
    expected = by_grpc.warp(U, TRANSFORM)
    assert all(np.array_equal(one, expected) for one in outputs)
    expected = by_grpc.warp_gradients(G, U, TRANSFORM).feature_map
    assert np.array_equal(gradients.feature_map, expected)


def test_threads_share_the_memory(stn):
    """No call gets the memory of another one."""
    maps = [np.full(SHAPE, n, np.float32) for n in range(8)]
    identity = Affine(np.eye(2, 3, dtype=np.float32)[None])
    wrong = []

    def call(n):
        for _ in range(20):
            output = stn.warp(maps[n], identity, padding="border")
            if not (output == n).all():
                wrong.append(n)

    threads = [threading.Thread(target=call, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arenas_have_64_mib_or_what_a_tensor_needs(tmp_path):
    """What a container's limit of memory has to hold."""
    with LocalServer(log=tmp_path / "log") as server, Client(server.target) as stn:
        stn.warp(U, TRANSFORM)
        found = scrape(server.metrics)
        assert found["stn_arena_bytes"] == found["stn_arenas"] * 64 * 2**20 > 0
        large = stn.empty((1, 1, 5000, 4000))
        added = scrape(server.metrics)["stn_arena_bytes"] - found["stn_arena_bytes"]
        assert large.nbytes <= added < large.nbytes + 2**16


def test_without_room_calls_go_by_grpc(tmp_path, by_grpc):
    """Silently; small ones still do not."""
    flags = ["--local-max-caller-arena-bytes=4096"]
    with LocalServer(*flags, log=tmp_path / "log") as small, Client(small.target) as stn:
        large = np.concatenate([U, G])
        assert np.array_equal(stn.warp(large, TRANSFORM_4), by_grpc.warp(large, TRANSFORM_4))
        assert stn.empty(SHAPE).shape == SHAPE
        assert arenas(small, 0)
        assert moved(small) == 0
        stn.warp(U[:, :, :4, :5], TRANSFORM)
        assert moved(small) > 0


def forgotten(server, local):
    """Ends the leases of a connection's arenas, which the server then no longer knows."""
    held = local.pool._arenas
    assert held
    for arena in held:
        arena.end_lease()
    assert arenas(server, 0)


def test_a_call_whose_arena_is_forgotten_goes_by_grpc(server, stn, by_grpc):
    """Once; the connection is of no more use, and the next search finds a new one."""
    expected = by_grpc.warp(U, TRANSFORM)
    np.testing.assert_array_equal(stn.warp(U, TRANSFORM), expected)
    forgotten(server, stn._transports().local)
    np.testing.assert_array_equal(stn.warp(U, TRANSFORM), expected)
    assert stn._transports().local is None
    assert (stn.stats.failed, stn.stats.repeated) == (0, 0)


def test_an_asynchronous_call_whose_arena_is_forgotten_goes_by_grpc(server, by_grpc):
    """As that of the other client."""
    large = np.tile(U, (1, 1, 2, 2))  # beyond what a frame takes

    async def scenario():
        async with AsyncClient(server.target) as stn:
            await stn.server_info()
            transports = stn._transports()
            results = [await stn.warp(large, TRANSFORM)]
            forgotten(server, transports.local)
            results.append(await stn.warp(large, TRANSFORM))
            return results, transports.local

    results, local = asyncio.run(scenario())
    assert local is None
    for result in results:
        np.testing.assert_array_equal(result, by_grpc.warp(large, TRANSFORM))


def test_a_server_that_comes_back_gets_new_arenas(tmp_path, by_grpc):
    """Arrays in memory of the old one are operands as all others."""
    flags = [f"--listen=unix:{tmp_path}/grpc.sock", f"--local-dir={tmp_path}"]
    expected = by_grpc.warp(U, TRANSFORM)
    with LocalServer(*flags, log=tmp_path / "1") as first:
        stn = Client(first.target)
        u = stn.empty(SHAPE)
        u[...] = U
        assert np.array_equal(stn.warp(u, TRANSFORM), expected)
        assert arenas(first, 1)
    with LocalServer(*flags, log=tmp_path / "2") as second, stn:
        for _ in range(3):
            stn._transports()._discovery._next_s = 0.0  # as if a second had passed
            assert np.array_equal(stn.warp(u, TRANSFORM), expected)
        assert arenas(second, 1)


PROGRAM = """
import os, sys
import numpy as np
from stn_client import Affine, Client
stn = Client(sys.argv[1])
u = np.ones((4, 3, 512, 512), np.float32)
print("ready", flush=True)
while True:
    stn.warp(u, Affine(np.eye(2, 3, dtype=np.float32)[None]))
    print("called", flush=True)
"""


def test_a_client_that_is_killed_leaves_nothing_behind(server, by_grpc):
    """Whatever its call was doing; neighbours are answered."""
    for calls in (1, 2, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.target], stdout=subprocess.PIPE, text=True
        )
        for _ in range(calls + 1):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert by_grpc.warp(U, TRANSFORM).shape == SHAPE
    statistics_when_idle(by_grpc)
    with Client(server.target) as stn:
        stn.warp(U, TRANSFORM)
        assert arenas(server, 1)  # its own


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_memory_of_their_own(server, by_grpc, method):
    """Forked and spawned; a result that both hold never changes, whatever the parent does."""
    context = multiprocessing.get_context(method)
    with Client(server.target) as stn:
        held = stn.warp(U, TRANSFORM)
        ours, theirs = context.Pipe()
        worker = context.Process(target=warp_and_look, args=(stn, U, TRANSFORM, held, theirs))
        worker.start()
        assert ours.recv() == (True, True)
        expected = held.copy()
        del held
        gc.collect()
        for _ in range(10):
            stn.warp(G, TRANSFORM)
        ours.send("go on")
        assert ours.recv()
        worker.join()
        assert worker.exitcode == 0
        assert np.array_equal(expected, by_grpc.warp(U, TRANSFORM))


def connected(target):
    """Whether a socket of this process is connected to a port, by gRPC, which closes it later."""
    port, held = f":{int(target.rpartition(':')[2]):04X}", set(descriptors().values())
    tables = (Path(f"/proc/self/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return any(row[2].endswith(port) and f"socket:[{row[9]}]" in held for row in rows)


def test_nothing_is_left_over(server):
    """Of clients that come and go: no descriptor and no mapping, here or there."""

    def use():
        with Client(server.target) as stn:
            stn.warp(U, TRANSFORM)
            assert connected(server.target)
        give_up_s = time.monotonic() + 10
        while connected(server.target):
            assert time.monotonic() < give_up_s

    use()
    gc.collect()
    here = len(descriptors()), len(shared_mappings())
    there = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    for _ in range(10):
        use()
    gc.collect()
    assert (len(descriptors()), len(shared_mappings())) == here
    with Client(server.target, local=False) as stn:
        statistics_when_idle(stn)
    assert arenas(server, 0)
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) <= there + 2
