"""The handlers: what of a call's context matters, and how every end is told. In virtual time."""

import asyncio
import gc

import grpc
import pytest
from google.rpc.status_pb2 import Status
from prometheus_client import CollectorRegistry

from stn_server.config import LimitsConfig
from stn_server.errors import DrainingError
from stn_server.metrics import Metrics
from stn_server.service import SERVICE
from support.bad_requests import warp_request
from support.clock import run_in_virtual_time
from support.fakes import FakeContext, FakeRunner
from support.harness import in_virtual_time, make_batcher, make_handlers, outcome_of

LIMITS = LimitsConfig(max_message_bytes=4096, max_output_bytes=4096)
MAX_ADMITTED_BYTES = 16_384
MESSAGE = warp_request().SerializeToString()


class Service:
    """The registered handlers over a runner of the test, and the metrics they move."""

    def __init__(self, runner, **limits):
        self._registry = CollectorRegistry()
        metrics = Metrics(self._registry)
        admitted = {"max_admitted_bytes": MAX_ADMITTED_BYTES}
        self.batcher = make_batcher(runner, metrics, **admitted | limits)
        self.handlers = make_handlers(self.batcher, LIMITS, metrics)
        self._by_path = self.handlers.of_service()

    def call(self, name, message, context):
        """A call, not yet awaited."""
        if message is not None:
            context.receive(message)
        return self._by_path[f"/{SERVICE}/{name}"](context)

    def count(self, method, code):
        """Calls that ended like this."""
        labels = {"method": method, "code": code}
        return self._registry.get_sample_value("stn_requests_total", labels)

    def refused(self, reason):
        """Calls that were turned away for this reason."""
        return self._registry.get_sample_value("stn_refused_total", {"reason": reason})


async def abort_of(call, context):
    """Status, message and metadata that a call is aborted with."""
    with pytest.raises(FakeContext.AbortedError, match=r"^$"):
        await call
    return context.aborted


@in_virtual_time
async def test_the_deadline_of_a_call_is_that_of_its_item():
    """The time that its transport says is left, counted from now."""
    runner = FakeRunner(held=True)
    service = Service(runner)
    loop = asyncio.get_running_loop()
    busy = asyncio.create_task(outcome_of(service.call("Warp", MESSAGE, FakeContext())))
    await runner.begun(1)
    context = FakeContext(time_remaining_s=3.5)
    code, message, _ = await abort_of(service.call("Warp", MESSAGE, context), context)
    assert (code, loop.time()) == (grpc.StatusCode.DEADLINE_EXCEEDED, 3.5)
    assert message.startswith("deadline: ")
    assert service.count("Warp", "DEADLINE_EXCEEDED") == 1
    runner.release_all()
    await busy


@in_virtual_time
async def test_a_cancelled_call_is_counted_and_stays_cancelled():
    """Its transport learns it from the same exception."""
    runner = FakeRunner(held=True)
    service = Service(runner)
    call = asyncio.create_task(service.call("Warp", MESSAGE, FakeContext()))
    await runner.begun(1)
    call.cancel()
    assert isinstance(await outcome_of(call), asyncio.CancelledError)
    assert service.count("Warp", "CANCELLED") == 1
    runner.release_all()
    await service.batcher.drain()


@in_virtual_time
async def test_an_error_ends_a_call_with_status_and_metadata():
    """The request id in clear, the details packed as gRPC's richer error model wants them."""
    context = FakeContext([("x-request-id", "order-7")])
    service = Service(FakeRunner())
    code, message, metadata = await abort_of(service.call("Warp", b"\xff", context), context)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(metadata)["x-request-id"] == "order-7"
    status = Status.FromString(dict(metadata)["grpc-status-details-bin"])
    assert (status.code, status.message) == (code.value[0], message)
    assert service.count("Warp", "INVALID_ARGUMENT") == 1


def test_every_method_of_the_service_has_a_handler():
    """GetServerInfo included, which no queue holds up."""

    async def scenario():
        service = Service(FakeRunner())
        reply = await service.call("GetServerInfo", b"", FakeContext())
        return reply, service.count("GetServerInfo", "OK")

    assert run_in_virtual_time(scenario()) == (b"info", 1)


@in_virtual_time
async def test_refusals_are_counted_by_reason():
    """Too large, too many, too late: each is another thing to do for an operator."""
    runner = FakeRunner(held=True)
    service = Service(runner, max_admitted_items=1)
    request = warp_request()
    request.output_size[:] = (10**5, 10**5)
    large = FakeContext()
    call = service.call("Warp", request.SerializeToString(), large)
    assert (await abort_of(call, large))[0] is grpc.StatusCode.INVALID_ARGUMENT
    large.finish()
    busy = asyncio.create_task(outcome_of(service.call("Warp", MESSAGE, FakeContext())))
    await runner.begun(1)
    full = FakeContext()
    assert (await abort_of(service.call("Warp", MESSAGE, full), full))[0].name == (
        "RESOURCE_EXHAUSTED"
    )
    draining = asyncio.create_task(service.batcher.drain())
    await asyncio.sleep(0)
    late = FakeContext()
    code, _, _ = await abort_of(service.call("Warp", MESSAGE, late), late)
    assert code is grpc.StatusCode.UNAVAILABLE
    reasons = ("QUEUE_FULL", "RESULT_TOO_LARGE", "DRAINING")
    assert [service.refused(reason) for reason in reasons] == [1, 1, 1]
    runner.release_all()
    await asyncio.gather(busy, draining)


@in_virtual_time
async def test_idle_is_when_every_reply_has_left():
    """A handler that returned is not enough: its transport may still be sending."""
    service = Service(FakeRunner())
    context = FakeContext()
    await service.call("GetServerInfo", b"", context)
    idle = asyncio.create_task(service.handlers.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    context.finish()
    await idle


@in_virtual_time
async def test_a_caller_who_has_gone_is_told_nothing():
    """Aborting a finished call is an error of its own."""
    context = FakeContext()
    context.finish()
    assert await Service(FakeRunner()).call("Warp", b"\xff", context) == b""
    assert context.aborted is None


@in_virtual_time
async def test_a_call_cut_off_by_its_deadline_is_counted_as_that():
    """Its transport cancels it at the deadline, perhaps before the timer of the batcher."""
    runner = FakeRunner(held=True)
    service = Service(runner)
    call = asyncio.create_task(service.call("Warp", MESSAGE, FakeContext(time_remaining_s=2.0)))
    await runner.begun(1)
    await asyncio.sleep(2.0)
    call.cancel()
    assert isinstance(await outcome_of(call), asyncio.CancelledError)
    assert service.count("Warp", "DEADLINE_EXCEEDED") == 1
    runner.release_all()
    await service.batcher.drain()


class Mortal(bytes):
    """A message of which is known how many are alive."""

    alive = 0

    def __new__(cls, *content):
        cls.alive += 1
        return super().__new__(cls, *content)

    def __del__(self):
        type(self).alive -= 1


def fail_the_batch(_batch):
    raise RuntimeError("on purpose")


def fail_the_item(batch):
    """As the engine does: the error has been raised, and its traceback holds the batch."""

    def refuse():
        raise DrainingError

    try:
        refuse()
    except DrainingError as error:
        return [error for _ in batch.items]


@pytest.fixture
def no_collector():
    """What hangs in a ring stays."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("answer", [fail_the_batch, fail_the_item])
@pytest.mark.usefixtures("no_collector")
def test_a_call_that_failed_does_not_hold_its_message(answer):
    """Though its transport keeps the traceback of the refusal, as this test does."""

    async def scenario():
        runner, context = FakeRunner(answer), FakeContext()
        service = Service(runner)
        with pytest.raises(FakeContext.AbortedError, match=r"^$") as refusal:
            await service.call("Warp", Mortal(MESSAGE), context)
        context.finish()
        runner.batches.clear()
        await asyncio.sleep(0)
        return refusal, Mortal.alive

    assert run_in_virtual_time(scenario())[1] == 0


@pytest.mark.usefixtures("no_collector")
def test_a_call_that_is_late_does_not_hold_its_message():
    """It waited in the queue, for a device that is busy with another."""

    async def scenario():
        runner, context = FakeRunner(held=True), FakeContext(time_remaining_s=1)
        service = Service(runner)
        busy = asyncio.create_task(outcome_of(service.call("Warp", MESSAGE, FakeContext())))
        await runner.begun(1)
        with pytest.raises(FakeContext.AbortedError, match=r"^$") as refusal:
            await service.call("Warp", Mortal(MESSAGE), context)
        context.finish()
        alive = Mortal.alive
        runner.release_all()
        await busy
        return refusal, alive

    assert run_in_virtual_time(scenario())[1] == 0
