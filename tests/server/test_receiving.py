"""Messages are admitted before they are read. In virtual time; a message may be long in coming."""

import asyncio
import math

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse
from prometheus_client import CollectorRegistry

from stn_server.config import LimitsConfig
from stn_server.handlers import PROBE_BYTES, Receiver
from stn_server.health import CHECK, Health
from stn_server.log import EventLog
from stn_server.metrics import Metrics
from stn_server.service import SERVICE
from stn_server.tuning import PROBE_S
from support.bad_requests import warp_request
from support.clock import run_in_virtual_time
from support.fakes import FakeContext, FakeRunner, feature_maps
from support.harness import (
    decode,
    in_virtual_time,
    make_batcher,
    make_handlers,
    outcome_of,
)
from support.logs import records_of

LIMITS = LimitsConfig(max_message_bytes=1024, max_output_bytes=4096, upload_s=7.0)
MAX_ADMITTED_BYTES = 4096


def warp_to(height, width):
    """(2, 3, 4, 5) warped to another size."""
    request = warp_request()
    request.output_size[:] = (height, width)
    return request


MESSAGE = warp_to(4, 5).SerializeToString()
COST_BYTES = decode(warp_to(4, 5)).cost.size_bytes
"""Of its operands, and of a result as large as its map."""


class ServiceUnderTest:
    """The service over a runner of the test; calls whose message comes when the test says so."""

    def __init__(self, runner=None, **limits):
        self.runner = FakeRunner(feature_maps) if runner is None else runner
        self._registry = CollectorRegistry()
        metrics = Metrics(self._registry)
        admitted = {"max_admitted_bytes": MAX_ADMITTED_BYTES, **limits}
        self.batcher = make_batcher(self.runner, metrics, **admitted)
        listeners = metrics, EventLog()
        self._handlers = make_handlers(self.batcher, LIMITS, *listeners)
        self._receiver = Receiver(self.batcher, LIMITS)

    async def begin(self, announced=None, *, peer="ipv4:192.0.2.1:1", method="Warp", **facts):
        """A call that has come as far as it can without its message, and what it ends with."""
        context = FakeContext(peer=peer, **facts)
        if announced is not None:
            context.announce(announced)
        return await self._begun(self._handlers.of_service(), f"/{SERVICE}/{method}", context)

    def probe(self):
        """How to begin checks of a server that is healthy."""
        handlers = Health([""]).handlers(self._handlers, self._receiver)
        return lambda: self._begun(handlers, CHECK, FakeContext())

    async def _begun(self, handlers, path, context):
        handler = handlers[path](context)
        task = asyncio.create_task(outcome_of(handler))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return context, task

    @property
    def admitted_bytes(self):
        return self.batcher.statistics().admitted_bytes

    def value(self, name, **labels):
        """A counter."""
        return self._registry.get_sample_value(name, labels)


async def refusal(context, task):
    """Status and text that a call is refused with."""
    assert isinstance(await task, FakeContext.AbortedError)
    code, message, _ = context.aborted
    context.finish()
    return code, message


@in_virtual_time
async def test_a_message_counts_before_it_is_read_and_by_its_cost_after():
    """At first for itself and a result of its size, then for its operands and results."""
    service = ServiceUnderTest(FakeRunner(feature_maps, held=True))
    context, task = await service.begin(len(MESSAGE))
    assert service.admitted_bytes == 2 * len(MESSAGE)
    context.receive(MESSAGE)
    await service.runner.begun(1)
    assert service.admitted_bytes == COST_BYTES
    service.runner.release_all()
    assert isinstance(await task, bytes)
    assert service.admitted_bytes == COST_BYTES
    context.finish()
    assert service.admitted_bytes == 0


@in_virtual_time
async def test_what_has_no_room_is_refused_without_being_read():
    """The message never comes, and need not."""
    service = ServiceUnderTest(max_admitted_bytes=2048)
    await service.begin(600)
    code, message = await refusal(*await service.begin(600, peer="ipv4:192.0.2.2:1"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message.startswith("queue: expected at most 2048 admitted bytes, got 2400 with this")
    assert service.value("stn_refused_total", reason="QUEUE_FULL") == 1
    assert service.admitted_bytes == 1200


@in_virtual_time
async def test_calls_on_their_way_in_are_counted_as_calls():
    """A caller that sends slowly takes a place."""
    service = ServiceUnderTest(max_admitted_items=1)
    await service.begin(100)
    code, message = await refusal(*await service.begin(100))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message.startswith("queue: expected at most 1 admitted items, got 2")


@in_virtual_time
async def test_what_was_read_is_not_sent_away_for_others_that_came_meanwhile():
    """Its place is as large as it needs; to read it was dear."""
    service = ServiceUnderTest(
        FakeRunner(feature_maps, held=True), max_admitted_bytes=4 * len(MESSAGE)
    )
    first, task = await service.begin(len(MESSAGE))
    await service.begin(len(MESSAGE), peer="ipv4:192.0.2.2:1")
    assert service.admitted_bytes == 4 * len(MESSAGE)
    first.receive(MESSAGE)
    await service.runner.begun(1)
    service.runner.release_all()
    assert isinstance(await task, bytes)


@in_virtual_time
async def test_a_result_that_is_larger_than_was_thought_needs_room_of_its_own():
    """Twenty pixels become eighty, while another call takes the rest."""
    service = ServiceUnderTest(max_admitted_bytes=3000)
    message = warp_to(8, 10).SerializeToString()
    context, task = await service.begin(len(message))
    await service.begin(900, peer="ipv4:192.0.2.2:1")
    context.receive(message)
    code, text = await refusal(context, task)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text.startswith("queue: expected at most 3000 admitted bytes")
    assert service.admitted_bytes == 1800


@in_virtual_time
async def test_a_message_above_the_limit_is_refused_by_its_size():
    """It is not waited for."""
    service = ServiceUnderTest()
    code, message = await refusal(*await service.begin(1025))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "message: expected at most 1024 bytes, got 1025. Ask for less."
    assert service.value("stn_refused_total", reason="MESSAGE_TOO_LARGE") == 1
    labels = {"method": "Warp", "code": "INVALID_ARGUMENT"}
    assert service.value("stn_requests_total", **labels) == 1


@pytest.mark.parametrize("announced", [len(MESSAGE), None])
def test_a_message_that_does_not_come_is_given_up(announced):
    """At its instant, with a status, a count and a free place."""

    async def scenario():
        service = ServiceUnderTest()
        context, task = await service.begin(announced)
        ended = await refusal(context, task)
        return service, ended, asyncio.get_running_loop().time()

    service, (code, message), instant = run_in_virtual_time(scenario())
    assert (code, instant) == (grpc.StatusCode.DEADLINE_EXCEEDED, 7.0)
    assert message.startswith("message: expected all of it within 7 s, got less.")
    assert service.value("stn_refused_total", reason="UPLOAD_TIMEOUT") == 1
    labels = {"method": "Warp", "code": "DEADLINE_EXCEEDED"}
    assert service.value("stn_requests_total", **labels) == 1
    assert service.admitted_bytes == 0


@in_virtual_time
async def test_a_call_whose_size_is_not_there_takes_no_room():
    """Nor any of the memory that is admitted; once it is there, it is asked for."""
    service = ServiceUnderTest(max_admitted_items=1)
    waiting, task = await service.begin()
    assert service.admitted_bytes == 0
    await service.begin(100, peer="ipv4:192.0.2.2:1")
    waiting.announce(100)
    code, _ = await refusal(waiting, task)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("announced", [100, None])
@pytest.mark.parametrize(
    ("time_remaining_s", "code", "why"),
    [
        (math.inf, "CANCELLED", "its caller cancelled it, or went away"),
        (2.0, "DEADLINE_EXCEEDED", "its message was not there before its deadline"),
    ],
)
def test_a_call_that_ends_without_its_message_is_counted_and_logged(
    announced, time_remaining_s, code, why, caplog
):
    """Its transport cancels it; the clock tells why."""

    async def scenario():
        service = ServiceUnderTest()
        context, task = await service.begin(announced, time_remaining_s=time_remaining_s)
        await asyncio.sleep(2.0)
        task.cancel()
        assert isinstance(await task, asyncio.CancelledError)
        context.finish()
        return service

    caplog.set_level("INFO", "stn_server")
    service = run_in_virtual_time(scenario())
    assert service.value("stn_requests_total", method="Warp", code=code) == 1
    (record,) = records_of(caplog, "stn_server")
    assert record.fields["reason"].startswith(why)
    assert (record.fields["code"], record.fields["method"]) == (code, "Warp")
    assert service.admitted_bytes == 0


@in_virtual_time
async def test_a_call_without_a_message_is_told_so():
    """Its caller has just sent nothing."""
    context, task = await ServiceUnderTest().begin()
    context.receive(None)
    code, message = await refusal(context, task)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "message: expected one, got the end of the call. Send one."


@in_virtual_time
async def test_probes_are_answered_when_nothing_else_is_and_cannot_be_stalled():
    """They need no room; those that stall hold up no others, and are ended before long."""
    service, now = ServiceUnderTest(max_admitted_items=1), asyncio.get_running_loop().time
    await service.begin(100)
    check = service.probe()
    (late, late_task), (context, task) = [await check() for _ in range(2)]
    context.receive(b"")
    assert HealthCheckResponse.FromString(await task).status == HealthCheckResponse.SERVING
    code, message = await refusal(late, late_task)
    assert (code.name, now()) == ("DEADLINE_EXCEEDED", PROBE_S)
    assert message.startswith(f"message: expected all of it within {PROBE_S:g} s, got less.")
    labels = {"method": "other", "code": "DEADLINE_EXCEEDED"}
    assert service.value("stn_requests_total", **labels) == 1


@pytest.mark.parametrize(
    ("announced", "message", "complaint"),
    [
        (1, b"\xff", "expected a serialized grpc.health.v1.HealthCheckRequest, got other bytes."),
        (PROBE_BYTES + 1, None, f"expected at most {PROBE_BYTES} bytes, got {PROBE_BYTES + 1}."),
    ],
)
def test_probes_of_a_wrong_form_are_refused(announced, message, complaint):
    """What is no request, and what is too long to be one, which is not read."""

    async def scenario():
        context, task = await ServiceUnderTest().probe()()
        context.announce(announced)
        if message is not None:
            context.receive(message)
        return await refusal(context, task)

    code, text = run_in_virtual_time(scenario())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"message: {complaint}")


@in_virtual_time
async def test_server_info_does_not_wait_for_its_message():
    """Nor for room: who looks why a server is full is answered."""
    service = ServiceUnderTest(max_admitted_items=1)
    await service.begin(100)
    _, task = await service.begin(method="GetServerInfo")
    assert await task == b"info"
