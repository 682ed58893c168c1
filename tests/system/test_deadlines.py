"""Calls that end early while they wait cost no device time. In process, over a real socket."""

import asyncio

import grpc
import grpc.aio
import pytest

from support.bad_requests import warp_request
from support.fakes import FakeRunner, feature_maps
from support.harness import METHOD_PREFIX, outcome_of, serving

MESSAGE = warp_request().SerializeToString()


async def play(end):
    """Lets `end` end a call that waits behind another; returns its outcome and the service."""
    runner = FakeRunner(feature_maps, held=True)
    async with (
        serving(runner) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        warp = channel.unary_unary(METHOD_PREFIX + "Warp")
        busy = warp(MESSAGE)
        await runner.begun(1)
        outcome = await end(warp, service)
        await asyncio.wait_for(service.abandoned(1), timeout=60)
        assert service.batcher.statistics().queued_items == 0
        runner.release_all()
        assert await busy
        assert len(runner.batches) == 1
        await service.batcher.drain()
        return outcome, service


def test_a_deadline_ends_a_call_that_waits():
    """The client and the server both see it; the item never runs."""

    async def expire(warp, _service):
        return await outcome_of(warp(MESSAGE, timeout=0.2))

    failure, service = asyncio.run(play(expire))
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.batcher.statistics().abandoned_items == 1
    assert service.value("stn_abandoned_items_total") == 1


def test_a_cancellation_ends_a_call_that_waits():
    """The server drops what nobody waits for."""

    async def cancel(warp, service):
        call = warp(MESSAGE)
        await service.admitted(2)
        call.cancel()
        return await outcome_of(call)

    outcome, service = asyncio.run(play(cancel))
    assert isinstance(outcome, asyncio.CancelledError)
    assert service.batcher.statistics().abandoned_items == 1


def test_a_cancellation_leaves_a_running_call_to_finish():
    """The device cannot be called back; the result is dropped and the next call works."""

    async def scenario():
        runner = FakeRunner(feature_maps, held=True)
        async with (
            serving(runner) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            warp = channel.unary_unary(METHOD_PREFIX + "Warp")
            gone = warp(MESSAGE)
            await runner.begun(1)
            gone.cancel()
            assert isinstance(await outcome_of(gone), asyncio.CancelledError)
            runner.release_all()
            assert await warp(MESSAGE)
            return service.batcher.statistics()

    left = asyncio.run(scenario())
    assert (left.finished_items, left.abandoned_items, left.running_items) == (2, 0, 0)


def test_a_full_server_refuses_with_a_time_to_come_again():
    """RESOURCE_EXHAUSTED, at once, while those inside are not disturbed."""

    async def scenario():
        runner = FakeRunner(feature_maps, held=True)
        async with (
            serving(runner, max_admitted_items=1) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            warp = channel.unary_unary(METHOD_PREFIX + "Warp")
            busy = warp(MESSAGE)
            await runner.begun(1)
            failure = await outcome_of(warp(MESSAGE))
            runner.release_all()
            assert await busy
            return failure

    failure = asyncio.run(scenario())
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "expected at most 1 admitted items, got 2" in failure.details()
    assert b"RetryInfo" in dict(failure.trailing_metadata())["grpc-status-details-bin"]


@pytest.mark.parametrize("request_id", ["order-7", "two words"])
def test_a_failure_names_the_call(request_id):
    """By the caller's id if it is harmless, else by one of ours."""

    async def scenario():
        def answer(_batch):
            raise RuntimeError("secret")

        async with (
            serving(FakeRunner(answer)) as service,
            grpc.aio.insecure_channel(service.target) as channel,
        ):
            warp = channel.unary_unary(METHOD_PREFIX + "Warp")
            return await outcome_of(warp(MESSAGE, metadata=[("x-request-id", request_id)]))

    failure = asyncio.run(scenario())
    named = dict(failure.trailing_metadata())["x-request-id"]
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert (named == request_id) == (request_id == "order-7")
    assert failure.details().endswith(f"Quote request id {named}.")
    assert "secret" not in str(failure)
