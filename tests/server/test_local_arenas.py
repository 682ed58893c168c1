"""Arenas: who gets one, what a call may do with it, and that nothing is left of it."""

import asyncio
import fcntl
import gc
import mmap
import os
import socket

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from stn_proto.ttrpc import Response
from stn_proto.v1 import warp_pb2
from stn_proto.v1.arena_pb2 import CreateArenaReply, CreateArenaRequest
from stn_server.config import ConfigError, LimitsConfig, LocalConfig
from stn_server.errors import ArenaNotFoundError
from support.bad_requests import grid_warp_request, ramp, theta, warp_request
from support.fakes import FakeRunner
from support.harness import assert_nothing_left
from support.local import (
    HEADER,
    Plain,
    descriptors,
    frame,
    request,
    serving_locally,
    shared_mappings,
)
from support.many import compute_many, replies
from support.statuses import detail, reason

U = ramp(2, 3, 4, 5)
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
OUTPUT_BYTES = 2 * 3 * 6 * 7 * 4
PLACE = 4096


class Lease:
    """A connection to the arena socket."""

    def __init__(self, folder):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(folder / "arenas.sock"))
        self.memory = None

    def ask(self, size_bytes, **metadata):
        """Asks for an arena."""
        message = CreateArenaRequest(size_bytes=size_bytes).SerializeToString()
        self.send(frame(1, request("Create", message, service="stn.v1.Arenas", **metadata)))

    def send(self, data):
        self._socket.sendall(data)

    async def response(self):
        """The response; maps the arena that comes with it."""
        return await asyncio.to_thread(self._response)

    def _response(self):
        received, found, _, _ = socket.recv_fds(self._socket, 65536, 4)
        if not received:
            return None
        size, stream_id, kind, _ = HEADER.unpack_from(received)
        assert (stream_id, kind, len(received)) == (1, 2, HEADER.size + size)
        response = Response.FromString(received[HEADER.size :])
        if found:
            (self.descriptor,) = found
            reply = CreateArenaReply.FromString(response.payload)
            self.id, self.size_bytes = reply.id, reply.size_bytes
            self.memory = mmap.mmap(self.descriptor, reply.size_bytes)
        return response

    def close(self):
        self._socket.close()
        if self.memory is not None:
            os.close(self.descriptor)
            self.memory.close()
            self.memory = None


def engine():
    """The one that a server has by itself."""


def blank_outputs():
    """A runner without an engine."""
    return FakeRunner(lambda batch: [(bytes(OUTPUT_BYTES),) for _ in batch.items])


async def leased(folder, size_bytes=65536):
    """An arena."""
    lease = Lease(folder)
    lease.ask(size_bytes)
    response = await lease.response()
    assert not response.HasField("status"), response.status.message
    return lease


def placed_request(lease, *, offset=0, place=PLACE, byte_count=None, room=OUTPUT_BYTES):
    """As `warp_request`, with its feature map in an arena and a place there for the output."""
    message = warp_request()
    message.feature_map.arena.id = lease.id
    message.feature_map.arena.offset = offset
    message.feature_map.arena.byte_count = U.nbytes if byte_count is None else byte_count
    if place is not None:
        message.placement.add(id=lease.id, offset=place, byte_count=room)
    return message


def write(lease, array, offset=0):
    """Puts an array into an arena."""
    lease.memory[offset : offset + array.nbytes] = array.tobytes()


def read(lease, offset=PLACE, size_bytes=OUTPUT_BYTES):
    """Bytes of an arena."""
    return lease.memory[offset : offset + size_bytes]


def run(scenario, make_runner, folder, **options):
    """As that of `test_local_calls`; no arena, descriptor or mapping is left over."""

    async def main():
        runner = make_runner()
        async with serving_locally(runner, folder, **options) as (service, transport):
            service.runner = runner
            plain = await Plain.connect(folder)
            leases = []

            async def lease(size_bytes=65536):
                leases.append(await leased(folder, size_bytes))
                return leases[-1]

            try:
                await scenario(service, transport, plain, lease)
            finally:
                for one in leases:
                    one.close()
                await plain.close()
            await asyncio.wait_for(service.idle(), 10)
            assert_nothing_left(service.batcher)
            await transport.arenas.fall_to(0)
            assert transport.arenas.size_bytes == 0

    asyncio.run(main())
    gc.collect()
    before = descriptors(), shared_mappings()
    asyncio.run(main())
    gc.collect()
    assert len(descriptors()) <= len(before[0])
    assert len(shared_mappings()) == len(before[1]) == 0


def test_a_call_reads_and_writes_an_arena(tmp_path):
    """The same numbers as by payloads; the reply says where they are and has none in it."""

    async def scenario(_service, _transport, plain, lease):
        arena = await lease()
        for offset, place in ((0, PLACE), (640, 8192), (PLACE, 0), (64, 64 * 100)):
            write(arena, U, offset)
            message = placed_request(arena, offset=offset, place=place).SerializeToString()
            reply = warp_pb2.WarpReply.FromString((await plain.call("Warp", message)).payload)
            response = await plain.call("Warp", warp_request().SerializeToString())
            by_payload = warp_pb2.WarpReply.FromString(response.payload)
            assert read(arena, place) == by_payload.payloads[0]
            found = reply.output.arena
            assert (found.id, found.offset, found.byte_count) == (arena.id, place, OUTPUT_BYTES)
            assert (len(reply.payloads), reply.timing.batch_items) == (0, 1)
            assert reply.output.shape == by_payload.output.shape

    run(scenario, engine, tmp_path)


def test_calls_of_one_message_read_and_write_an_arena(tmp_path):
    """Each its own regions; a call with a bad one fails alone."""

    async def scenario(_service, _transport, plain, lease):
        arena = await lease()
        write(arena, U)
        write(arena, U[::-1], 640)
        good = [placed_request(arena), placed_request(arena, offset=640, place=8192)]
        outside = placed_request(arena, offset=2**20)
        calls = [("Warp", request) for request in (*good, outside, warp_request())]
        for _ in range(2):  # the second time by templates
            arena.memory[PLACE : PLACE + OUTPUT_BYTES] = bytes(OUTPUT_BYTES)
            message = compute_many(*calls).SerializeToString()
            found = replies((await plain.call("ComputeMany", message)).payload)
            for own, outcome, place in zip(good, found, (PLACE, 8192), strict=False):
                response = await plain.call("Warp", own.SerializeToString())
                alone = warp_pb2.WarpReply.FromString(response.payload)
                assert outcome.output == alone.output
                assert (outcome.output.arena.offset, len(outcome.payloads)) == (place, 0)
            assert read(arena, PLACE) != read(arena, 8192)
            assert read(arena, PLACE) == found[3].payloads[0]
            assert found[2].message.startswith("feature_map.arena: expected a region within")

    run(scenario, engine, tmp_path)


def test_some_results_may_lie_in_an_arena_and_others_not(tmp_path):
    """An empty place is none."""
    grad_output = ramp(2, 3, 6, 7)

    async def scenario(_service, _transport, plain, lease):
        arena = await lease()
        write(arena, U)
        write(arena, grad_output, 1024)
        message = warp_pb2.WarpGradientsRequest()
        plainly = warp_request()
        message.feature_map.CopyFrom(placed_request(arena).feature_map)
        message.grad_output.data_type = message.feature_map.data_type
        message.grad_output.shape[:] = grad_output.shape
        message.grad_output.arena.id = arena.id
        message.grad_output.arena.offset = 1024
        message.grad_output.arena.byte_count = grad_output.nbytes
        message.transform.CopyFrom(plainly.transform)
        message.transform.affine.theta.payload = 0
        message.payloads.append(theta().tobytes())
        message.placement.add()
        message.placement.add(id=arena.id, offset=PLACE, byte_count=theta().nbytes)
        response = await plain.call("WarpGradients", message.SerializeToString())
        assert not response.HasField("status"), response.status.message
        reply = warp_pb2.WarpGradientsReply.FromString(response.payload)
        assert reply.grad_feature_map.payload == 0
        assert len(reply.payloads[0]) == U.nbytes
        assert reply.grad_transform.arena.offset == PLACE
        gradient = np.frombuffer(read(arena, PLACE, theta().nbytes), np.float32)
        del message.placement[:]
        response = await plain.call("WarpGradients", message.SerializeToString())
        reply = warp_pb2.WarpGradientsReply.FromString(response.payload)
        assert reply.payloads[reply.grad_transform.payload] == gradient.tobytes()

    run(scenario, engine, tmp_path)


def test_the_memory_is_sealed(tmp_path):
    """Nobody can take its pages away, or forget that."""

    async def scenario(_service, _transport, _plain, lease):
        arena = await lease(100)
        assert arena.size_bytes == mmap.PAGESIZE
        seals = fcntl.fcntl(arena.descriptor, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        for size in (0, 2 * mmap.PAGESIZE):
            with pytest.raises(PermissionError, match="Operation not permitted"):
                os.ftruncate(arena.descriptor, size)

    run(scenario, engine, tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"offset": 65536}, "feature_map.arena"),
        ({"offset": 65536 - 64}, "feature_map.arena"),
        ({"offset": 2**64 - 64}, "feature_map.arena"),
        ({"offset": 2**63}, "feature_map.arena"),
        ({"offset": 32}, "feature_map.arena.offset"),
        ({"offset": 1}, "feature_map.arena.offset"),
        ({"byte_count": U.nbytes - 4}, "feature_map.arena.byte_count"),
        ({"byte_count": U.nbytes + 4}, "feature_map.arena.byte_count"),
        ({"byte_count": 2**64 - 1}, "feature_map.arena.byte_count"),
        ({"byte_count": 0}, "feature_map.arena.byte_count"),
        ({"place": 0}, "placement[0]"),
        ({"place": 64}, "placement[0]"),
        ({"offset": PLACE + 960, "place": PLACE}, "placement[0]"),
        ({"place": 65536 - 64}, "placement[0]"),
        ({"place": 2**64 - 64}, "placement[0]"),
        ({"place": PLACE + 4}, "placement[0].offset"),
        ({"room": OUTPUT_BYTES - 1}, "placement[0].byte_count"),
    ],
    ids=str,
)
def test_a_region_that_is_none_is_refused(tmp_path, changes, field):
    """By its field; neighbours are answered, and the arena is as it was."""

    async def scenario(_service, _transport, plain, lease):
        arena = await lease()
        write(arena, U)
        before = arena.memory[:]
        response = await plain.call("Warp", placed_request(arena, **changes).SerializeToString())
        assert reason(response.status) == "INVALID_FIELD"
        violation = detail(response.status, error_details_pb2.BadRequest).field_violations[0]
        assert violation.field == field
        assert arena.memory[:] == before
        response = await plain.call("Warp", placed_request(arena).SerializeToString())
        assert not response.HasField("status"), response.status.message

    run(scenario, engine, tmp_path)


def test_a_plan_that_is_kept_checks_every_region_anew(tmp_path):
    """Requests that differ in offsets and ids alone are read by the plan of the first."""

    async def scenario(_service, _transport, plain, lease):
        arena, other = await lease(), await lease(mmap.PAGESIZE)
        message = placed_request(arena, offset=128, place=PLACE)
        assert not (await plain.call("Warp", message.SerializeToString())).HasField("status")
        for bad in (
            placed_request(arena, offset=2**40, place=PLACE),
            placed_request(arena, offset=128, place=2**40),
            placed_request(other, offset=128, place=PLACE),
            placed_request(arena, offset=129, place=PLACE),
            placed_request(arena, offset=128, place=192),
        ):
            response = await plain.call("Warp", bad.SerializeToString())
            assert reason(response.status) == "INVALID_FIELD"
        foreign = placed_request(arena, offset=128)
        foreign.feature_map.arena.id = bytes(16)
        response = await plain.call("Warp", foreign.SerializeToString())
        assert reason(response.status) == "ARENA_NOT_FOUND"

    run(scenario, engine, tmp_path)


@pytest.mark.parametrize("guess", [b"", bytes(15), bytes(17), b"\xff" * 16])
def test_guessed_ids_find_nothing(tmp_path, guess):
    """Whatever their length."""

    async def scenario(_service, _transport, plain, lease):
        arena = await lease()
        for name in ("feature_map", "placement"):
            message = placed_request(arena)
            reference = message.placement[0] if name == "placement" else message.feature_map.arena
            reference.id = guess
            response = await plain.call("Warp", message.SerializeToString())
            expected = "ARENA_NOT_FOUND" if len(guess) == 16 else "INVALID_FIELD"
            assert reason(response.status) == expected

    run(scenario, engine, tmp_path)


def test_the_arena_of_another_caller_is_not_found(tmp_path):
    """As if it did not exist."""

    async def scenario(_service, transport, plain, lease):
        arena = await lease()
        transport.arenas._arenas[arena.id].owner = "somebody else"
        response = await plain.call("Warp", placed_request(arena).SerializeToString())
        assert reason(response.status) == "ARENA_NOT_FOUND"
        expected = "feature_map.arena: expected an arena of this caller, got none."
        assert response.status.message.startswith(expected)
        with pytest.raises(ArenaNotFoundError, match=r"^x: expected an arena of this caller"):
            transport.arenas.find("uid-0", "x", arena.id)

    run(scenario, engine, tmp_path)


def test_limits_of_arenas_hold(tmp_path):
    """Of one caller, of all, in bytes and in number; what is given back counts no more."""

    async def scenario(service, transport, _plain, lease):
        first = await lease(2 * mmap.PAGESIZE)
        for size in (2**62, 2 * mmap.PAGESIZE + 1, 0, -1):
            refused = Lease(tmp_path)
            refused.ask(size)
            response = await refused.response()
            full = "INVALID_FIELD" if size < 1 else "ARENAS_FULL"
            assert reason(response.status) == full
            assert await refused.response() is None  # the connection is over
            refused.close()
        await lease(mmap.PAGESIZE)
        assert transport.arenas.size_bytes == 3 * mmap.PAGESIZE
        refused = Lease(tmp_path)
        refused.ask(1)
        response = await refused.response()
        assert reason(response.status) == "ARENAS_FULL"
        assert response.status.message.startswith("arenas: expected at most 2 arenas, got 3")
        assert detail(response.status, error_details_pb2.RetryInfo).retry_delay.seconds == 5
        refused.close()
        first.close()
        await transport.arenas.fall_to(1)
        await lease(2 * mmap.PAGESIZE)
        assert service.value("stn_refused_total", reason="ARENAS_FULL") == 3

    arena_limits = {"max_arenas": 2, "max_caller_arena_bytes": 4 * mmap.PAGESIZE}
    run(scenario, engine, tmp_path, arena_limits=arena_limits)


def test_one_caller_does_not_take_all_arenas(tmp_path):
    """However small they are; others have theirs."""

    async def scenario(_service, transport, _plain, lease):
        held = [await lease(1) for _ in range(2)]
        refused = Lease(tmp_path)
        refused.ask(1)
        status = (await refused.response()).status
        assert reason(status) == "ARENAS_FULL"
        expected = "arenas: expected at most 2 arenas of one caller, got 3"
        assert status.message.startswith(expected)
        refused.close()
        other = transport.arenas.create("somebody else", 1)
        other.close_descriptor()
        transport.arenas.remove(other)
        held[0].close()
        await transport.arenas.fall_to(1)
        await lease(1)

    run(scenario, engine, tmp_path, arena_limits={"max_caller_arenas": 2})


@pytest.mark.slow
def test_ten_thousand_arenas_are_not_given(tmp_path):
    """Those beyond the limit are refused, and take no descriptor and no memory."""
    counts = iter([10, 10_000])

    async def scenario(_service, transport, _plain, lease):
        for _ in range(8):
            await lease(mmap.PAGESIZE)
        held = len(descriptors())
        for _ in range(next(counts)):
            refused = Lease(tmp_path)
            refused.ask(mmap.PAGESIZE)
            response = await refused.response()
            assert reason(response.status) == "ARENAS_FULL"
            refused.close()
        assert transport.arenas.count == 8
        assert len(descriptors()) <= held + 2

    run(scenario, engine, tmp_path, arena_limits={"max_arenas": 8})


def test_an_arena_that_is_given_up_stays_until_its_batch_is_through(tmp_path):
    """Its memory is mapped until then; no other call finds it."""

    async def scenario(service, transport, plain, lease):
        runner = service.runner
        arena = await lease()
        write(arena, U)
        message = placed_request(arena, place=None)
        runner.hold()
        plain.begin("Warp", message.SerializeToString())
        await runner.begun(1)
        view = runner.batches[-1][0][1][0]
        arena.close()
        await transport.arenas.fall_to(0)
        assert bytes(view) == U.tobytes()
        del view
        runner.batches.clear()
        response = await plain.call("GetServerInfo")
        assert not response.HasField("status")
        assert transport.arenas.size_bytes == 65536
        refused = Lease(tmp_path)
        refused.ask(1)
        assert reason((await refused.response()).status) == "ARENAS_FULL"
        refused.close()
        runner.release_all()
        await plain.response()
        assert transport.arenas.size_bytes == 0
        await lease()

    arena_limits = {"max_caller_arena_bytes": 65536}
    run(scenario, blank_outputs, tmp_path, arena_limits=arena_limits)


@pytest.mark.alone
def test_a_late_call_is_answered_when_its_memory_is_its_own(tmp_path):
    """Its deadline passes while its batch runs; one whose results are sent is answered then."""

    async def scenario(service, _transport, plain, lease):
        runner = service.runner
        arena = await lease()
        write(arena, U)
        runner.hold()
        placed = placed_request(arena).SerializeToString()
        late = plain.begin("Warp", placed, timeout_s=0.05)
        await runner.begun(1)
        sent = plain.begin("Warp", placed_request(arena, place=None).SerializeToString())
        other = plain.begin("Warp", warp_request().SerializeToString(), timeout_s=0.1)
        answered, response = await plain.response()
        assert (answered, response.status.code) == (other, DEADLINE_EXCEEDED)
        runner.release_all()
        ends = dict([await plain.response() for _ in range(2)])
        assert ends[late].status.code == DEADLINE_EXCEEDED
        assert not ends[sent].HasField("status")
        runner.batches.clear()  # which the runner remembers

    run(scenario, blank_outputs, tmp_path)


def test_parameters_are_looked_at_and_used_as_they_were(tmp_path):
    """A caller that changes them later changes nothing; those that are not finite are refused."""

    async def scenario(service, _transport, plain, lease):
        runner = service.runner
        arena = await lease()
        message = placed_request(arena, place=None)
        write(arena, U)
        write(arena, theta(), 1024)
        message.transform.affine.theta.arena.id = arena.id
        message.transform.affine.theta.arena.offset = 1024
        message.transform.affine.theta.arena.byte_count = theta().nbytes
        runner.hold()
        plain.begin("Warp", message.SerializeToString())
        await runner.begun(1)
        write(arena, np.full_like(theta(), np.nan), 1024)
        assert bytes(runner.batches[-1][0][1][1]) == theta().tobytes()
        runner.batches.clear()
        runner.release_all()
        await plain.response()
        response = await plain.call("Warp", message.SerializeToString())
        assert reason(response.status) == "INVALID_FIELD"
        assert "expected finite numbers, got nan" in response.status.message

    run(scenario, blank_outputs, tmp_path)


def test_points_are_used_as_they_were(tmp_path):
    """Kernels make addresses of the numbers of a grid, which a caller may change meanwhile."""
    grid = ramp(2, 6, 7, 2) / 200 - 0.5

    async def scenario(service, _transport, plain, lease):
        runner = service.runner
        arena = await lease()
        message = grid_warp_request()
        write(arena, grid, 1024)
        points = message.transform.sampling_grid.grid
        points.arena.id, points.arena.offset = arena.id, 1024
        points.arena.byte_count = grid.nbytes
        runner.hold()
        plain.begin("Warp", message.SerializeToString())
        await runner.begun(1)
        write(arena, np.full_like(grid, 1e9), 1024)
        assert bytes(runner.batches[-1][0][1][1]) == grid.tobytes()
        runner.batches.clear()
        runner.release_all()
        await plain.response()

    run(scenario, blank_outputs, tmp_path)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff" * 64,
        frame(2, b""),
        frame(1, b"", kind=2),
        b"\0",
        frame(1, request("Create", b"\xff", service="stn.v1.Arenas")),
        frame(1, request("Delete", b"", service="stn.v1.Arenas")),
        frame(1, request("GetServerInfo")),
        frame(1, b"\xff"),
        frame(1, b"", size=2**32 - 1),
    ],
    ids=lambda sent: repr(sent[:16]),
)
def test_what_asks_for_no_arena_gets_none(tmp_path, sent):
    """The connection ends, and the next one is served."""

    async def scenario(_service, transport, _plain, lease):
        odd = Lease(tmp_path)
        odd.send(sent)
        response = await odd.response()
        assert response is None or response.status.code
        assert odd.memory is None
        odd.close()
        assert transport.arenas.count == 0
        await lease()

    limits = LimitsConfig(upload_s=0.1)
    run(scenario, engine, tmp_path, limits=limits)


def test_what_comes_after_the_arena_ends_the_lease(tmp_path):
    """A connection has one arena."""

    async def scenario(_service, transport, _plain, lease):
        arena = await lease()
        arena.send(b"more")
        await transport.arenas.fall_to(0)

    run(scenario, engine, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "max_arenas",
        "max_caller_arenas",
        "max_arena_bytes",
        "max_caller_arena_bytes",
    ],
)
def test_limits_that_make_no_sense_are_refused(name):
    """No arena at all is said by no folder."""
    with pytest.raises(ConfigError, match=rf"^{name}: expected at least 1, got 0\.$"):
        LocalConfig(**{name: 0})
