"""The Open Inference Protocol over a runner of the test: what shares batches, waits, goes first."""

import asyncio
import contextlib

import grpc
import grpc.aio
import numpy as np
import pytest

from stn_proto import split
from stn_proto.oip.inference_pb2 import (
    InferParameter,
    ModelInferResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
    ModelStreamInferResponse,
    SystemSharedMemoryRegisterRequest,
)
from stn_server.config import OipConfig
from stn_server.oip import streams
from support.bad_requests import ramp, theta, warp_request
from support.fakes import FakeRunner, feature_maps
from support.harness import METHOD_PREFIX, HeldEngine, outcome_of, serving
from support.many import compute_many
from support.oip import SERVICE, infer, infer_request, method, stream_infer

WARP = METHOD_PREFIX + "Warp"
MESSAGE = infer_request().SerializeToString()
MANY = {"max_batch_bytes": 10**8, "max_batch_samples": 10**6, "max_admitted_items": 400}


@contextlib.asynccontextmanager
async def held(*listeners, **changes):
    """A service whose runner holds every batch, and a channel to it."""
    runner = FakeRunner(feature_maps, held=True)
    async with (
        serving(runner, *listeners, **changes) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        yield runner, service, channel
        runner.release_all()


def warp_of(number):
    """The same warp in both protocols; all numbers differ."""
    ours, theirs = warp_request(), infer_request()
    feature_map = ramp(2, 3, 4, 5) + np.float32(number)
    ours.payloads[0] = theirs.raw_input_contents[0] = feature_map.tobytes()
    theirs.parameters["output_size"].string_param = "6,7"
    return ours.SerializeToString(), theirs.SerializeToString()


def lie(tensor, region, size_bytes):
    """Says that a tensor lies at the begin of a region."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size_bytes


def output_of(response):
    return ModelInferResponse.FromString(response).raw_output_contents[0]


def test_requests_of_both_services_share_a_launch():
    """And each has the bits that it has alone, by either protocol."""

    async def scenario():
        runner, requests = HeldEngine(), [warp_of(number) for number in range(40)]
        with contextlib.closing(runner):
            async with (
                serving(runner, **MANY) as service,
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                first = asyncio.ensure_future(infer(channel)(requests[0][1]))
                await service.admitted(1)
                calls = [
                    (infer(channel) if number % 2 else channel.unary_unary(WARP))(
                        request[number % 2]
                    )
                    for number, request in enumerate(requests)
                ]
                together = asyncio.gather(*calls)
                await service.admitted(len(calls))
                runner.gate.set()
                replies = await together
                await first
                alone = [await channel.unary_unary(WARP)(ours) for ours, _ in requests]
        return runner.batches, replies, alone

    batches, replies, alone = asyncio.run(scenario())
    assert batches[:2] == [1, 40]
    for number, (reply, expected) in enumerate(zip(replies, alone, strict=True)):
        found = output_of(reply) if number % 2 else split(reply)[1][0]
        assert found == split(expected)[1][0]


def test_statistics_count_launches_that_were_shared():
    """A launch counts once for each model that was in it, and its items are those of the model."""

    async def scenario():
        runner = HeldEngine()
        with contextlib.closing(runner):
            async with (
                serving(runner, **MANY) as service,
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                first = asyncio.ensure_future(channel.unary_unary(WARP)(warp_of(0)[0]))
                await service.admitted(1)
                turned = {"feature_map": ramp(2, 3, 4, 5), "parameters": np.ones((1, 1), "f4")}
                messages = [
                    *(warp_of(number)[1] for number in range(3)),
                    infer_request("stn_warp_rotation", turned).SerializeToString(),
                ]
                calls = asyncio.gather(*map(infer(channel), messages))
                await service.admitted(4)
                runner.gate.set()
                await calls
                await first
                ask = method(channel, "ModelStatistics")
                everything = await ask(ModelStatisticsRequest().SerializeToString())
        found = ModelStatisticsResponse.FromString(everything).model_stats
        return {one.name: one for one in found if one.inference_count}, runner.batches

    found, batches = asyncio.run(scenario())
    launches = len(batches) - 1
    affine, rotation = found.pop("stn_warp_affine"), found.pop("stn_warp_rotation")
    assert found == {}
    assert (affine.inference_count, rotation.inference_count) == (6, 2)
    assert (affine.execution_count, rotation.execution_count) == (1, 1)
    assert [one.batch_size for one in affine.batch_stats] == [6]
    assert 1 <= launches <= 2


def test_statistics_count_launches_that_bundles_share():
    """Calls of one message of ComputeMany are beside requests of a model, and none of its own."""

    async def scenario():
        runner = HeldEngine()
        with contextlib.closing(runner):
            async with (
                serving(runner, **MANY) as service,
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                first = asyncio.ensure_future(channel.unary_unary(WARP)(warp_of(0)[0]))
                await service.admitted(1)
                bundle = compute_many(("Warp", warp_request()), ("Warp", warp_request()))
                many = asyncio.ensure_future(
                    channel.unary_unary(METHOD_PREFIX + "ComputeMany")(bundle.SerializeToString())
                )
                call = asyncio.ensure_future(infer(channel)(warp_of(1)[1]))
                await service.admitted(3)
                runner.gate.set()
                await asyncio.gather(first, many, call)
                ask = method(channel, "ModelStatistics")
                request = ModelStatisticsRequest(name="stn_warp_affine").SerializeToString()
                return ModelStatisticsResponse.FromString(await ask(request)).model_stats[0]

    found = asyncio.run(scenario())
    assert (found.inference_count, found.execution_count) == (2, 1)
    assert found.inference_stats.queue.count == 1


def test_a_timeout_bounds_the_wait_for_a_device():
    """In microseconds, as does the deadline of the call."""
    now_s = 0.0

    async def scenario():
        nonlocal now_s
        async with held(now=lambda: now_s) as (runner, service, channel):
            busy = infer(channel)(MESSAGE)
            await runner.begun(1)
            request = infer_request()
            request.parameters["timeout"].int64_param = 50_000_000
            ends = [
                infer(channel)(request.SerializeToString()),
                infer(channel)(MESSAGE, timeout=50.0),
            ]
            await service.admitted(3)
            now_s = 60.0
            last = infer(channel)(MESSAGE)  # when one comes, those are looked at that wait
            await service.abandoned(2)
            runner.release_all()
            ended = [await outcome_of(one) for one in ends]
            await asyncio.gather(busy, last)
            return ended, len(runner.batches)

    ended, launches = asyncio.run(scenario())
    assert {one.code() for one in ended} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    told = "deadline: expected a result in time, got none while queued."
    assert [one.details() for one in ended] == [told] * 2
    assert launches == 2


def test_a_request_that_runs_already_is_not_timed_out():
    """A timeout counts time in the queue alone."""

    async def scenario():
        async with held() as (runner, _, channel):
            request = infer_request()
            request.parameters["timeout"].uint64_param = 1000
            call = asyncio.ensure_future(infer(channel)(request.SerializeToString()))
            await runner.begun(1)
            await asyncio.sleep(0)
            runner.release_all()
            return await call

    assert output_of(asyncio.run(scenario()))


def test_a_cancelled_request_never_runs():
    async def scenario():
        async with held() as (runner, service, channel):
            busy = infer(channel)(MESSAGE)
            await runner.begun(1)
            call = infer(channel)(MESSAGE)
            await service.admitted(2)
            call.cancel()
            await service.abandoned(1)
            runner.release_all()
            await busy
            return len(runner.batches), service.value(
                "stn_requests_total", method="ModelInfer", code="CANCELLED"
            )

    assert asyncio.run(scenario()) == (1, 1)


def test_priorities_order_what_waits():
    """1 first, 3 last; who says nothing, or 0, has 2. Batches are of one call here."""

    async def scenario():
        async with held(max_batch_samples=1) as (runner, service, channel):
            busy = infer(channel)(MESSAGE)
            await runner.begun(1)
            calls = []
            for number, priority in enumerate((3, None, 1, 2, 9, 0)):
                request = infer_request()
                marked = ramp(2, 3, 4, 5)
                marked[0, 0, 0, 0] = number
                request.raw_input_contents[0] = marked.tobytes()
                if priority is not None:
                    request.parameters["priority"].uint64_param = priority
                calls.append(asyncio.ensure_future(infer(channel)(request.SerializeToString())))
                await service.admitted(1 if number else 2)
            runner.release_all()
            await asyncio.gather(busy, *calls)
            return [
                int(np.frombuffer(job[1][0], np.float32)[0])
                for batch in runner.batches[1:]
                for job in batch
            ]

    assert asyncio.run(scenario()) == [2, 1, 3, 5, 0, 4]


def test_a_stream_is_answered_in_order():
    """Whatever runs first; while its first message is computed the others wait in the queue."""

    async def scenario():
        async with held(**MANY) as (runner, service, channel):
            stream = stream_infer(channel)()
            for number in range(5):
                await stream.write(infer_request(id=str(number)).SerializeToString())
            await service.admitted(5)
            runner.release_all()
            found = [ModelStreamInferResponse.FromString(await stream.read()) for _ in range(5)]
            await stream.done_writing()
            end = await stream.read()
            await service.idle()
            counted = service.value("stn_requests_total", method="ModelStreamInfer", code="OK")
            return [one.infer_response.id for one in found], end, counted

    ids, end, counted = asyncio.run(scenario())
    assert (ids, end, counted) == (list("01234"), grpc.aio.EOF, 5)


def test_a_stream_that_is_cancelled_leaves_nothing():
    async def scenario():
        async with held(**MANY) as (runner, service, channel):
            stream = stream_infer(channel)()
            for _ in range(5):
                await stream.write(MESSAGE)
            await service.admitted(5)
            stream.cancel()
            await service.abandoned(4)  # the first one runs
            runner.release_all()
            await service.idle()
            await service.batcher.drain()
            return service.batcher.statistics(), len(runner.batches)

    left, launches = asyncio.run(scenario())
    assert (left.queued_items, left.running_items, left.admitted_bytes) == (0, 0, 0)
    assert launches == 1


def test_a_stream_is_read_as_fast_as_it_is_answered():
    """What comes faster waits at its sender, and is not refused."""

    async def send(stream):
        for _ in range(200):
            await stream.write(MESSAGE)

    async def scenario():
        async with held(**MANY) as (runner, service, channel):
            stream = stream_infer(channel)()
            sending = asyncio.create_task(send(stream))
            await service.admitted(64)
            inside = service.batcher.statistics()
            runner.release_all()
            await sending
            replies = [await stream.read() for _ in range(200)]
            return inside.queued_items + inside.running_items, replies

    inside, replies = asyncio.run(scenario())
    assert inside == 64
    assert all(ModelStreamInferResponse.FromString(one).error_message == "" for one in replies)


def test_there_are_only_so_many_streams():
    """One more is refused, and may come again when another has ended."""

    async def scenario():
        async with held() as (runner, service, channel):
            runner.release_all()
            streams = [stream_infer(channel)() for _ in range(64)]
            for stream in streams:
                await stream.write(MESSAGE)
                assert await stream.read()
            refused = stream_infer(channel)()  # before it has sent anything
            code = await refused.code()
            details = await refused.details()
            await streams[0].done_writing()
            assert await streams[0].read() is grpc.aio.EOF
            again = stream_infer(channel)()
            await again.write(MESSAGE)
            reply = await again.read()
            for stream in [*streams, again]:
                stream.cancel()
            refusals = service.value("stn_refused_total", reason="QUEUE_FULL")
            return code, details, reply, refusals

    code, details, reply, refusals = asyncio.run(scenario())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.startswith("queue: expected at most 64 admitted streams, got 65")
    assert (ModelStreamInferResponse.FromString(reply).error_message, refusals) == ("", 1)


def test_draining_ends_streams_after_what_was_admitted():
    """A message that comes too late ends its stream with the status that says to go elsewhere."""

    async def scenario():
        async with held() as (runner, service, channel):
            stream = stream_infer(channel)()
            await stream.write(MESSAGE)
            await runner.begun(1)
            draining = asyncio.create_task(service.batcher.drain())
            await asyncio.sleep(0)
            await stream.write(MESSAGE)
            runner.release_all()
            first = ModelStreamInferResponse.FromString(await stream.read())
            code = await stream.code()
            await draining
            await service.idle()
            return first.error_message, code

    assert asyncio.run(scenario()) == ("", grpc.StatusCode.UNAVAILABLE)


def test_what_fails_is_counted_and_told_alone():
    """A message of a stream that cannot be computed is an error of its own."""

    def answer(batch):
        return [ValueError("poison") if n == 0 else r for n, r in enumerate(feature_maps(batch))]

    async def scenario():
        runner = FakeRunner(answer)
        async with (
            serving(runner, max_batch_samples=1) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            stream = stream_infer(channel)()
            await stream.write(infer_request(id="bad").SerializeToString())
            failed = ModelStreamInferResponse.FromString(await stream.read())
            await stream.write(infer_request("nobody", id="worse").SerializeToString())
            unknown = ModelStreamInferResponse.FromString(await stream.read())
            stream.cancel()
            counts = [
                service.value("stn_requests_total", method="ModelStreamInfer", code=code)
                for code in ("INTERNAL", "NOT_FOUND")
            ]
            return failed, unknown, counts

    failed, unknown, counts = asyncio.run(scenario())
    assert failed.error_message.startswith("server: expected a result, got an internal error.")
    assert (failed.infer_response.id, unknown.infer_response.id) == ("bad", "worse")
    assert "poison" not in failed.error_message
    assert counts == [1, 1]


@pytest.mark.parametrize("name", ["TraceSetting", "RepositoryModelLoad", "Nothing"])
def test_methods_that_are_not_offered_are_unimplemented(name):
    """And counted under one name, as callers choose theirs."""

    async def scenario():
        async with held() as (_, service, channel):
            failure = await outcome_of(method(channel, name)(b""))
            counted = service.value("stn_requests_total", method="other", code="UNIMPLEMENTED")
            return failure.code(), failure.details(), counted

    code, details, counted = asyncio.run(scenario())
    assert (code, counted) == (grpc.StatusCode.UNIMPLEMENTED, 1)
    assert details == f"method: expected one of this server, got /{SERVICE}/{name}."


def test_regions_that_are_unregistered_under_way_serve_the_request(tmp_path, monkeypatch):
    """It has its input already, and its output goes where it was asked for."""
    monkeypatch.setattr("stn_server.oip.regions.FOLDER", str(tmp_path))
    feature_map = ramp(2, 3, 4, 5)
    size = feature_map.nbytes
    file = tmp_path / "memory"
    file.write_bytes(feature_map.tobytes() + bytes(size))

    async def scenario():
        async with held(oip=OipConfig(shared_memory=True)) as (runner, _, channel):
            for name, offset in (("in", 0), ("out", size)):
                request = SystemSharedMemoryRegisterRequest(
                    name=name, key="memory", offset=offset, byte_size=size
                )
                await method(channel, "SystemSharedMemoryRegister")(request.SerializeToString())
            request = infer_request()
            del request.raw_input_contents[0]
            lie(request.inputs[0], "in", size)
            lie(request.outputs.add(name="output"), "out", size)
            call = infer(channel)(request.SerializeToString())
            await runner.begun(1)
            await method(channel, "SystemSharedMemoryUnregister")(b"")
            runner.release_all()
            response = ModelInferResponse.FromString(await call)
            with pytest.raises(grpc.RpcError) as missing:
                await infer(channel)(request.SerializeToString())
            return response, missing.value.code()

    response, after = asyncio.run(scenario())
    assert response.raw_output_contents == [b""]
    assert after is grpc.StatusCode.NOT_FOUND
    assert file.read_bytes() == 2 * feature_map.tobytes()  # the runner returns the feature map


def test_final_responses_are_marked_when_asked():
    async def scenario():
        async with held() as (runner, _, channel):
            runner.release_all()
            request = infer_request()
            request.parameters["triton_enable_empty_final_response"].bool_param = True
            return await infer(channel)(request.SerializeToString())

    response = ModelInferResponse.FromString(asyncio.run(scenario()))
    assert dict(response.parameters) == {"triton_final_response": InferParameter(bool_param=True)}


def test_theta_of_no_item_is_named():
    """Errors of the engine are in the words of the protocol, too."""

    async def scenario():
        async with held() as (_, _, channel):
            arrays = {"feature_map": ramp(2, 3, 4, 5), "theta": theta(3)}
            request = infer_request("stn_warp_affine", arrays).SerializeToString()
            return (await outcome_of(infer(channel)(request))).details()

    assert asyncio.run(scenario()).startswith("theta: expected shape")


class ReadForEver:
    """The context of a stream whose caller sends nothing more."""

    metadata = ()

    async def write(self, _message):
        """Takes whatever comes."""


class NotedCall:
    """A call of a stream that notes whether it was let go of."""

    answer = None

    def __init__(self):
        self.ended = asyncio.Event()

    def done(self):
        """It holds nothing any more."""
        self.ended.set()


def test_a_stream_that_is_cancelled_twice_holds_nothing():
    """Whoever ends a stream may be interrupted at any step of that."""

    async def main(steps):
        calls, room = asyncio.Queue(), asyncio.Semaphore(1)
        call, task = NotedCall(), asyncio.create_task(asyncio.Event().wait())
        calls.put_nowait((call, task))
        writing = asyncio.create_task(streams._write(ReadForEver(), calls, room))
        await asyncio.sleep(0)  # it waits for the reply to the call
        for _ in range(steps):
            writing.cancel()
            await asyncio.sleep(0)
        await asyncio.wait_for(call.ended.wait(), 10)
        assert task.cancelled()
        assert (await outcome_of(writing)).__class__ is asyncio.CancelledError

    for steps in (1, 2, 3):
        asyncio.run(main(steps))
