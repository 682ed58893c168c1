"""Resident tensors: what callers leave on a server, and what becomes of it."""

import asyncio
import contextlib

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
from google.rpc.status_pb2 import Status

from stn_proto.v1 import objective_pb2, resident_pb2, tensor_pb2, warp_pb2
from stn_server.batching.devices import Accelerator, DeviceMemory, EngineRunner, Host
from stn_server.config import ConfigError, ResidentsConfig
from stn_server.errors import (
    HandleNotFoundError,
    InvalidRequestError,
    QuotaTooSmallError,
    ResidentsFullError,
)
from stn_server.events import Events, Listener
from stn_server.residents import LEAST_BYTES, Eviction, Residents
from support.bad_requests import objective_request, put, ramp, theta, warp_gradients_request
from support.bad_requests import warp_request as sent_warp
from support.clock import run_in_virtual_time
from support.harness import METHOD_PREFIX, assert_nothing_left, serving
from support.local import Plain, serving_locally
from support.many import compute_many, replies
from support.statuses import reason

F32 = tensor_pb2.DATA_TYPE_FLOAT32
U = ramp(2, 3, 4, 5)
KIB = 1024


def run(test, runner=None, **settings):
    """Runs a scenario with a server, by the engine unless a runner is given, and a channel."""

    async def main():
        engine = EngineRunner() if runner is None else None
        with contextlib.closing(engine) if engine else contextlib.nullcontext():
            async with (
                serving(engine or runner, **settings) as service,
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                await test(service, channel)
                await asyncio.wait_for(service.idle(), 10)
                assert_nothing_left(service.batcher)

    asyncio.run(main())


async def ask(channel, method, message):
    """The serialized reply to a message."""
    return await channel.unary_unary(METHOD_PREFIX + method)(message.SerializeToString())


async def refusal(channel, method, message):
    """Reason and text of the status that ends a call."""
    with pytest.raises(grpc.RpcError, match="details = ") as why:
        await ask(channel, method, message)
    status = Status.FromString(dict(why.value.trailing_metadata())["grpc-status-details-bin"])
    return reason(status), status.message


def piece_of(data, **fields):
    """A message of Upload."""
    message = resident_pb2.UploadRequest(**fields)
    put(message, message.piece, np.frombuffer(data, np.uint8))
    return message


async def uploaded(channel, array):
    """The reference to an array that was sent in one piece."""
    data = array.tobytes()
    message = piece_of(data, data_type=F32, byte_count=len(data))
    reply = resident_pb2.UploadReply.FromString(await ask(channel, "Upload", message))
    assert reply.missing_bytes == 0
    assert len(reply.resident.handle) == 16
    return reply.resident


def name(request, tensor, reference):
    """Lets a tensor, the first payload of a request, be a resident one."""
    assert tensor.payload == 0
    tensor.resident.CopyFrom(reference)
    request.payloads.pop(0)
    for other in tensors(request):
        other.payload -= 1
    return request


def tensors(message):
    """All tensors of a request that are payloads."""
    for _, value in message.ListFields():
        if isinstance(value, tensor_pb2.Tensor):
            if value.HasField("payload"):
                yield value
        elif hasattr(value, "ListFields"):
            yield from tensors(value)


def resident_warp(reference):
    """`sent_warp`, whose feature map is resident."""
    request = sent_warp()
    return name(request, request.feature_map, reference)


def output_of(serialized):
    """The bytes of the first tensor of a reply of Warp."""
    return warp_pb2.WarpReply.FromString(serialized).payloads[0]


def elsewhere(most_bytes=KIB):
    """A device that keeps copies of resident tensors, as a GPU does, in host memory."""
    return Accelerator(torch.device("cpu"), DeviceMemory(resident_bytes=most_bytes))


@pytest.mark.parametrize(
    "device", [Host(), elsewhere(), elsewhere(100)], ids=["host", "all", "few"]
)
def test_a_resident_tensor_stands_wherever_a_tensor_may(device):
    """Feature maps, parameters, gradients and maps that are compared: results are the same."""

    async def test(service, channel):
        image, points = await uploaded(channel, U), await uploaded(channel, theta())
        expected = output_of(await ask(channel, "Warp", sent_warp()))
        for _ in range(3):  # from the second time on by the template of the first
            assert output_of(await ask(channel, "Warp", resident_warp(image))) == expected
        both = resident_warp(image)
        both.payloads.pop()
        both.transform.affine.theta.resident.CopyFrom(points)
        assert output_of(await ask(channel, "Warp", both)) == expected

        gradients = warp_gradients_request()
        sent = await ask(channel, "WarpGradients", gradients)
        grad = await uploaded(channel, ramp(2, 3, 6, 7))
        named = name(gradients, gradients.grad_output, grad)
        found = await ask(channel, "WarpGradients", named)
        kind = warp_pb2.WarpGradientsReply
        assert kind.FromString(found).payloads == kind.FromString(sent).payloads

        objective = objective_request()
        sent = await ask(channel, "Objective", objective)
        moving = await uploaded(channel, ramp(1, 3, 4, 5))
        found = await ask(channel, "Objective", name(objective, objective.moving, moving))
        kind = objective_pb2.ObjectiveReply
        assert kind.FromString(found).payloads == kind.FromString(sent).payloads
        assert service.value("stn_resident_tensors") == 4
        assert service.value("stn_resident_bytes") == 4 * LEAST_BYTES

    with contextlib.closing(EngineRunner(device)) as runner:
        run(test, runner)


def test_calls_within_compute_many_name_them_and_keep_them():
    """Each by itself: one that names nothing that is there fails alone."""

    async def test(_service, channel):
        image = await uploaded(channel, U)
        keeping = sent_warp()
        keeping.keep_for_gradients.append(warp_pb2.OPERAND_FEATURE_MAP)
        lost = resident_warp(tensor_pb2.ResidentRef(handle=bytes(16)))
        message = compute_many(("Warp", resident_warp(image)), ("Warp", lost), ("Warp", keeping))
        found = replies(await ask(channel, "ComputeMany", message))
        expected = output_of(await ask(channel, "Warp", sent_warp()))
        assert found[0].payloads == found[2].payloads == [expected]
        assert reason(found[1]) == "HANDLE_NOT_FOUND"
        (kept,) = found[2].kept
        assert output_of(await ask(channel, "Warp", resident_warp(kept))) == expected

    run(test)


def test_kept_operands_serve_gradients():
    """The reply tells where they are, in the order asked for; what was resident is itself."""

    async def test(service, channel):
        request = sent_warp()
        request.keep_for_gradients.extend(
            [warp_pb2.OPERAND_TRANSFORM, warp_pb2.OPERAND_FEATURE_MAP]
        )
        points, image = warp_pb2.WarpReply.FromString(await ask(channel, "Warp", request)).kept
        gradients = warp_gradients_request()
        sent = await ask(channel, "WarpGradients", gradients)
        del gradients.payloads[1:]
        gradients.feature_map.resident.CopyFrom(image)
        gradients.transform.affine.theta.resident.CopyFrom(points)
        found = await ask(channel, "WarpGradients", gradients)
        kind = warp_pb2.WarpGradientsReply
        assert kind.FromString(found).payloads == kind.FromString(sent).payloads

        again = resident_warp(image)
        again.keep_for_gradients.append(warp_pb2.OPERAND_FEATURE_MAP)
        reply = warp_pb2.WarpReply.FromString(await ask(channel, "Warp", again))
        assert list(reply.kept) == [image]
        assert service.residents.count == 2

    run(test)


def test_what_cannot_be_kept_is_not_and_the_call_succeeds():
    """A cache that is too small, or off."""

    async def test(service, channel):
        request = sent_warp()
        request.keep_for_gradients.append(warp_pb2.OPERAND_FEATURE_MAP)
        reply = warp_pb2.WarpReply.FromString(await ask(channel, "Warp", request))
        assert not reply.kept
        assert reply.payloads == [output_of(await ask(channel, "Warp", sent_warp()))]
        assert service.residents.count == 0

    run(test, residents=ResidentsConfig(max_bytes=0))


def test_pieces_make_a_tensor_that_comes_back():
    """In their order, the last one sent twice; it can be used when all of it is there."""

    async def test(_service, channel):
        data = U.tobytes()
        first = piece_of(data[:100], data_type=F32, byte_count=len(data))
        reply = resident_pb2.UploadReply.FromString(await ask(channel, "Upload", first))
        assert reply.missing_bytes == len(data) - 100
        reference = reply.resident
        why, text = await refusal(channel, "Warp", resident_warp(reference))
        assert why == "INVALID_FIELD"
        assert text.startswith(
            "feature_map.resident: expected all 480 bytes of the tensor, got 100"
        )
        download = resident_pb2.DownloadRequest(resident=reference, byte_count=480)
        why, text = await refusal(channel, "Download", download)
        assert text.startswith("resident: expected all 480 bytes of the tensor, got 100 so far")

        second = piece_of(data[100:], resident=reference, offset=100)
        for _ in range(2):
            reply = resident_pb2.UploadReply.FromString(await ask(channel, "Upload", second))
            assert reply == resident_pb2.UploadReply(resident=reference)
        download.offset = 96
        found = resident_pb2.DownloadReply.FromString(await ask(channel, "Download", download))
        assert found.payloads == [data[96:]]
        assert (found.data_type, found.byte_count) == (F32, 480)
        expected = output_of(await ask(channel, "Warp", sent_warp()))
        assert output_of(await ask(channel, "Warp", resident_warp(reference))) == expected

    run(test)


BAD_PIECES = [
    ({"data": b"", "byte_count": 8}, "piece.shape: expected sizes of at least 1"),
    ({"data_type": 0}, "data_type: expected one of DATA_TYPE_FLOAT32"),
    ({"data_type": 99}, "data_type: expected one of DATA_TYPE_FLOAT32"),
    ({"byte_count": 0}, "byte_count: expected a multiple of 4 above 0, got 0"),
    ({"byte_count": -4}, "byte_count: expected a multiple of 4 above 0, got -4"),
    ({"byte_count": 10}, "byte_count: expected a multiple of 4 above 0, got 10"),
    ({"byte_count": 4}, "piece: expected 1 to 4 bytes, got 8"),
    ({"byte_count": 2**62}, "byte_count: expected at most"),
    ({"offset": 4}, "offset: expected 0 for the first piece, got 4"),
]


@pytest.mark.parametrize(("fields", "text"), BAD_PIECES, ids=lambda value: str(value)[:40])
def test_a_first_piece_that_makes_no_sense_is_refused(fields, text):
    """Nothing is left of it."""

    async def test(service, channel):
        given = {"data_type": F32, "byte_count": 16, "data": bytes(8), **fields}
        _, message = await refusal(channel, "Upload", piece_of(given.pop("data"), **given))
        assert message.startswith(text)
        assert service.residents.count == 0

    run(test)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"offset": 4}, "offset: expected 8, where the piece before ended, got 4"),
        ({"offset": 12}, "offset: expected 8, where the piece before ended, got 12"),
        (
            {"offset": 0, "data": bytes(4)},
            "offset: expected 8, where the piece before ended, got 0",
        ),
        ({"data": bytes(9)}, "piece: expected 1 to 8 bytes, got 9"),
        ({"byte_count": 12}, "byte_count: expected 16, as of the first piece"),
        ({"data_type": 2}, "data_type: expected 1, as of the first piece"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_piece_that_overlaps_or_leaves_a_gap_is_refused(fields, text):
    """The tensor stays as it was, and goes on."""

    async def test(_service, channel):
        first = piece_of(bytes(8), data_type=F32, byte_count=16)
        reply = resident_pb2.UploadReply.FromString(await ask(channel, "Upload", first))
        given = {"offset": 8, "data": bytes(8), "resident": reply.resident}
        spoilt = {**given, **fields}
        _, message = await refusal(channel, "Upload", piece_of(spoilt.pop("data"), **spoilt))
        assert message.startswith(text)
        reply = await ask(channel, "Upload", piece_of(given.pop("data"), **given))
        assert resident_pb2.UploadReply.FromString(reply).missing_bytes == 0

    run(test)


def test_pieces_are_bytes_in_one_axis():
    """Nothing else is a piece."""

    async def test(_service, channel):
        message = resident_pb2.UploadRequest(data_type=F32, byte_count=16)
        put(message, message.piece, np.zeros(4, np.float32))
        _, text = await refusal(channel, "Upload", message)
        assert text.startswith("piece.data_type: expected DATA_TYPE_UINT8, got float32")
        message.ClearField("payloads")
        put(message, message.piece, np.zeros((4, 4), np.uint8))
        _, text = await refusal(channel, "Upload", message)
        assert text.startswith("piece: expected shape (bytes), got (4, 4)")

    run(test)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"offset": -1}, "offset: expected 0 to 479, got -1"),
        ({"offset": 480}, "offset: expected 0 to 479, got 480"),
        ({"byte_count": 0}, "byte_count: expected at least 1, got 0"),
    ],
    ids=str,
)
def test_a_piece_that_is_none_does_not_come_back(fields, text):
    """Its bounds are told."""

    async def test(_service, channel):
        given = {"resident": await uploaded(channel, U), "byte_count": 480, **fields}
        _, message = await refusal(channel, "Download", resident_pb2.DownloadRequest(**given))
        assert message.startswith(text)

    run(test)


HANDLES = [b"", bytes(15), bytes(17), bytes(16), b"\xff" * 16]


@pytest.mark.parametrize("handle", HANDLES, ids=repr)
def test_guessed_handles_find_nothing(handle):
    """By any method."""

    async def test(_service, channel):
        await uploaded(channel, U)
        guessed = tensor_pb2.ResidentRef(handle=handle)
        why, text = await refusal(channel, "Warp", resident_warp(guessed))
        if len(handle) == 16:
            assert why == "HANDLE_NOT_FOUND"
            assert text.startswith("feature_map.resident: expected the handle of a resident tensor")
        else:
            assert why == "INVALID_FIELD"
            assert text.startswith("feature_map.resident.handle: expected 16 bytes")
        download = resident_pb2.DownloadRequest(resident=guessed, byte_count=1)
        assert (await refusal(channel, "Download", download))[0] == "HANDLE_NOT_FOUND"
        more = piece_of(bytes(4), resident=guessed, offset=4)
        assert (await refusal(channel, "Upload", more))[0] == "HANDLE_NOT_FOUND"
        release = resident_pb2.ReleaseRequest(residents=[guessed])
        assert await ask(channel, "Release", release) == b""

    run(test)


def test_handles_of_others_and_of_released_tensors_find_nothing():
    """As if they had never been."""

    async def test(service, channel):
        mine, other = await uploaded(channel, U), await uploaded(channel, U)
        service.residents._all[other.handle].owner = "somebody else"
        service.residents._by_owner["somebody else"] = {other.handle: None}
        assert (await refusal(channel, "Warp", resident_warp(other)))[0] == "HANDLE_NOT_FOUND"
        release = resident_pb2.ReleaseRequest(residents=[other, mine, mine])
        reply = resident_pb2.ReleaseReply.FromString(await ask(channel, "Release", release))
        assert reply.released == 1
        assert (await refusal(channel, "Warp", resident_warp(mine)))[0] == "HANDLE_NOT_FOUND"
        service.residents._all[other.handle].owner = next(iter(service.residents._by_owner))
        service.residents._by_owner.pop("somebody else")

    run(test)


def test_a_tensor_of_another_type_or_size_is_refused():
    """Never read as something else."""

    async def test(_service, channel):
        small, wrong = await uploaded(channel, ramp(4)), await uploaded(channel, U)
        _, text = await refusal(channel, "Warp", resident_warp(small))
        expected = "feature_map.resident: expected 480 bytes of DATA_TYPE_FLOAT32, got 16 of"
        assert text.startswith(expected)
        request = resident_warp(wrong)
        request.feature_map.data_type = tensor_pb2.DATA_TYPE_FLOAT16
        request.feature_map.shape[:] = (2, 6, 4, 5)
        _, text = await refusal(channel, "Warp", request)
        assert text.startswith("feature_map.resident: expected 480 bytes of DATA_TYPE_FLOAT16")

    run(test)


def test_parameters_that_are_not_finite_are_refused():
    """As if they had been sent."""

    async def test(_service, channel):
        points = theta()
        points[1, 0, 2] = np.nan
        reference = await uploaded(channel, points)
        request = sent_warp()
        request.payloads.pop()
        request.transform.affine.theta.resident.CopyFrom(reference)
        _, text = await refusal(channel, "Warp", request)
        assert text.startswith("transform.affine.theta: expected finite numbers, got nan")

    run(test)


def test_a_tensor_under_a_running_batch_is_not_evicted():
    """Room is made of others, and when there are none the upload is told to come again."""

    async def test(service, channel):
        used = await uploaded(channel, ramp(2, 3, 4, 5))
        running = asyncio.ensure_future(ask(channel, "Warp", resident_warp(used)))
        await service.runner.started(1)
        idle = await uploaded(channel, ramp(256))
        newer = await uploaded(channel, ramp(256))
        handles = service.residents._all
        assert used.handle in handles
        assert newer.handle in handles
        assert idle.handle not in handles
        assert service.value("stn_resident_evictions_total", reason="room") == 1
        large = bytes(2 * KIB)
        message = piece_of(large, data_type=F32, byte_count=len(large))
        why, text = await refusal(channel, "Upload", message)
        assert why == "RESIDENTS_FULL"
        assert text.startswith("residents: expected at most 2048 bytes of resident tensors of one")
        assert set(handles) == {used.handle, newer.handle}  # nobody went in vain

        release = resident_pb2.ReleaseRequest(residents=[used])
        await ask(channel, "Release", release)
        assert service.residents.size_bytes == 2 * KIB  # its memory is still read
        service.runner.finish()
        await running
        await service.idle()
        assert service.residents.size_bytes == KIB

    runner = SlowRunner()

    async def scenario(service, channel):
        service.runner = runner
        await test(service, channel)

    run(scenario, runner, residents=ResidentsConfig(max_bytes=8 * KIB, max_caller_bytes=2 * KIB))


class SlowRunner:
    """Computes when it is told to."""

    def __init__(self):
        self._started = asyncio.Semaphore(0)
        self._finished = asyncio.Event()

    async def started(self, count):
        for _ in range(count):
            await self._started.acquire()

    def finish(self):
        self._finished.set()

    async def run(self, batch):
        self._started.release()
        await self._finished.wait()
        return [(bytes(2 * 3 * 6 * 7 * 4),) for _ in batch.items]

    def run_inline(self, _batch):
        return None

    def close(self):
        """Has nothing to close."""


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


class Told(Listener):
    """Notes why tensors went."""

    def __init__(self):
        self.evictions = []

    def tensor_evicted(self, why):
        self.evictions.append(why)


def store(**limits):
    """An empty store, its clock, and what it tells."""
    clock, told = Clock(), Told()
    return Residents(ResidentsConfig(**limits), Events(told), clock), clock, told.evictions


def in_loop(test):
    """Runs a test of the store within an event loop, where its timer is."""

    def run_test():
        async def main():
            test()

        asyncio.run(main())

    run_test.__doc__ = test.__doc__
    run_test.__name__ = test.__name__
    return run_test


@in_loop
def test_a_lease_begins_anew_with_every_use():
    """And its end is that of the tensor, unless a call holds it."""
    residents, clock, evictions = store(lease_s=10)
    used, idle, held = (residents.begin("a", F32, 4, memoryview(bytes(4))) for _ in range(3))
    view = held.view()
    clock.now = 9.0
    residents.find("a", "x", used.handle)
    clock.now = 11.0
    assert residents.find("a", "x", used.handle) is used
    assert evictions == [Eviction.LEASE]
    with pytest.raises(HandleNotFoundError, match=r"^x: expected the handle of a resident tensor"):
        residents.find("a", "x", idle.handle)
    assert residents.find("a", "x", held.handle) is held
    assert view == bytes(4)
    residents.close()
    assert residents.count == 0


def test_memory_goes_back_when_nobody_calls_any_more():
    """The lease is watched by a timer, which ends with the last tensor."""

    async def test():
        loop = asyncio.get_running_loop()
        residents = Residents(ResidentsConfig(lease_s=10), now=loop.time)
        residents.begin("a", F32, 4, memoryview(bytes(4)))
        await asyncio.sleep(6)
        kept = residents.begin("a", F32, 4, memoryview(bytes(4)))
        await asyncio.sleep(5)
        assert (residents.count, residents.size_bytes) == (1, LEAST_BYTES)
        view = kept.view()
        await asyncio.sleep(20)
        assert residents.count == 1
        del view
        await asyncio.sleep(11)
        assert (residents.count, residents.size_bytes) == (0, 0)

    run_in_virtual_time(test())


@in_loop
def test_room_is_made_of_what_was_used_longest_ago():
    """Of the caller's own first; of all if that does not do."""
    residents, clock, evictions = store(max_bytes=4 * KIB, max_caller_bytes=3 * KIB)
    data = memoryview(bytes(KIB))
    mine = [residents.begin("a", F32, KIB, data).handle for _ in range(3)]
    other = residents.begin("b", F32, KIB, data).handle
    residents.find("a", "x", mine[0])
    residents.begin("a", F32, KIB, data)
    assert mine[1] not in residents._all
    assert mine[0] in residents._all
    residents.begin("b", F32, KIB, data)  # full: the oldest of all goes
    assert mine[2] not in residents._all
    assert other in residents._all
    assert evictions == [Eviction.ROOM] * 2
    assert residents.size_bytes == 4 * KIB
    assert clock.now == 0.0
    residents.close()


@in_loop
def test_limits_are_told():
    """One caller's share is refused for good; what calls use, for now."""
    residents, _, _ = store(max_bytes=2 * KIB, max_caller_bytes=2 * KIB)
    with pytest.raises(QuotaTooSmallError, match=r"^byte_count: expected at most 2048 bytes"):
        residents.begin("a", F32, 4 * KIB, memoryview(bytes(4)))
    data = memoryview(bytes(2 * KIB))
    view = residents.begin("a", F32, 2 * KIB, data).view()
    with pytest.raises(ResidentsFullError, match=r"expected at most 2048 bytes of resident tens"):
        residents.begin("b", F32, KIB, data[:KIB])
    del view
    residents.begin("b", F32, KIB, data[:KIB])
    with pytest.raises(InvalidRequestError, match=r"^piece: expected 1 to 4 bytes, got 8"):
        residents.begin("a", F32, 4, data[:8])
    residents.close()


@in_loop
def test_what_stays_is_a_copy_unless_it_is_most_of_its_message():
    """Little bytes do not keep a large message in memory, nor memory that its owner changes."""
    residents, _, _ = store()
    message = bytes(range(200))
    most, little = memoryview(message)[20:], memoryview(message)[:20]
    whole = np.frombuffer(message, np.uint8)
    kept = [residents.begin("a", F32, len(one), one).view() for one in (most, little)]
    assert [np.shares_memory(np.asarray(view), whole) for view in kept] == [True, False]
    arena = bytearray(4)
    resident = residents.begin("a", F32, 4, memoryview(arena))
    arena[0] = 7
    assert resident.view() == bytes(4)
    assert resident.view().readonly
    residents.close()


def test_numbers_of_the_configuration_make_sense():
    """What cannot be is refused at the start."""
    for wrong, text in (
        ({"max_bytes": -1}, "max_bytes: expected at least 0"),
        ({"max_caller_bytes": 0}, "max_caller_bytes: expected at least 1"),
        ({"lease_s": 0}, "lease_s: expected at least 1"),
        ({"address": "stn:50051"}, "^address: expected an IP address, as callers'"),
        ({"address": "10.0.0.7:"}, "^address: expected host:port, got '10.0.0.7:'"),
        ({"address": "unix:/stn.sock"}, "^address: expected host:port"),
        ({"address": "fd00::1:99999"}, "^address: expected a port of at most 65535"),
    ):
        with pytest.raises(ConfigError, match=text):
            ResidentsConfig(**wrong)


def test_a_handle_says_where_its_replica_is():
    """As configured, whoever asks."""

    async def test(_service, channel):
        assert (await uploaded(channel, U)).address == "10.0.0.7:50051"
        request = sent_warp()
        request.keep_for_gradients.append(warp_pb2.OPERAND_FEATURE_MAP)
        (kept,) = warp_pb2.WarpReply.FromString(await ask(channel, "Warp", request)).kept
        assert kept.address == "10.0.0.7:50051"

    run(test, residents=ResidentsConfig(address="10.0.0.7:50051"))


def test_they_come_by_the_local_transport_as_well(tmp_path):
    """And serve calls that come by either."""

    async def main():
        with contextlib.closing(EngineRunner()) as runner:
            async with (
                serving_locally(runner, tmp_path) as (_service, _transport),
            ):
                plain = await Plain.connect(tmp_path)
                data = U.tobytes()
                message = piece_of(data, data_type=F32, byte_count=len(data))
                response = await plain.call("Upload", message.SerializeToString())
                reference = resident_pb2.UploadReply.FromString(response.payload).resident
                sent = await plain.call("Warp", sent_warp().SerializeToString())
                named = await plain.call("Warp", resident_warp(reference).SerializeToString())
                assert output_of(named.payload) == output_of(sent.payload)
                await plain.close()

    asyncio.run(main())
