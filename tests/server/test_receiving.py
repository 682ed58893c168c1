"""Messages are admitted before they are read. In virtual time; a message may be long in coming."""

import asyncio
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from stn_proto.metadata import MESSAGE_BYTES
from stn_server.config import LimitsConfig
from stn_server.grpc_transport import Receiver
from stn_server.health import CHECK, Health
from stn_server.log import EventLog
from stn_server.metrics import Metrics
from stn_server.service import SERVICE
from stn_server.tuning import CANCELLATION_S, PROBE_S
from support.bad_requests import warp_request
from support.clock import run_in_virtual_time
from support.fakes import FakeContext, FakeRunner, feature_maps
from support.harness import (
    decode,
    in_virtual_time,
    make_batcher,
    make_transport,
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
        most = admitted["max_admitted_bytes"]
        self._transport = make_transport(self.batcher, LIMITS, most, *listeners)
        self._receiver = Receiver(self.batcher, LIMITS, most)

    async def begin(self, declared=None, *, peer="ipv4:192.0.2.1:1", method="Warp", **facts):
        """A call that has come as far as it can without its message, and what it ends with."""
        metadata = [] if declared is None else [(MESSAGE_BYTES, str(declared))]
        context = FakeContext(metadata, peer=peer, **facts)
        return await self._begun(self._transport.handlers(), f"/{SERVICE}/{method}", context)

    def probe(self):
        """How to begin checks of a server that is healthy."""
        handlers = Health([""]).handlers(self._transport, self._receiver)
        return lambda: self._begun(handlers, CHECK, FakeContext())

    async def _begun(self, handlers, path, context):
        details = SimpleNamespace(method=path, invocation_metadata=())
        handler = handlers.service(details).stream_unary(None, context)
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
async def test_a_declared_message_counts_before_it_is_read_and_by_its_cost_after():
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
async def test_a_message_above_the_limit_is_refused_by_what_it_declares():
    """It is not waited for."""
    service = ServiceUnderTest()
    code, message = await refusal(*await service.begin(1025))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "message: expected at most 1024 bytes, got 1025. Ask for less."
    assert service.value("stn_refused_total", reason="MESSAGE_TOO_LARGE") == 1
    labels = {"method": "Warp", "code": "INVALID_ARGUMENT"}
    assert service.value("stn_requests_total", **labels) == 1


@pytest.mark.parametrize("declared", [len(MESSAGE) - 1, len(MESSAGE) + 1, 0])
def test_a_wrong_declaration_is_refused(declared):
    """Whichever way it is wrong; it was admitted as something else."""

    async def scenario():
        context, task = await ServiceUnderTest().begin(declared)
        context.receive(MESSAGE)
        return await refusal(context, task)

    code, message = run_in_virtual_time(scenario())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    expected = f"expected the {declared} bytes that stn-message-bytes declares"
    assert message == f"message: {expected}, got {len(MESSAGE)}."


@pytest.mark.parametrize("declared", ["", "-1", "1e3", "٣", "9" * 20, "x"])
def test_a_declaration_that_is_no_number_is_refused(declared):
    """Digits, and not too many of them."""

    async def scenario():
        return await refusal(*await ServiceUnderTest().begin(declared))

    code, message = run_in_virtual_time(scenario())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == f"stn-message-bytes: expected a number of bytes, got {declared!r}."


@pytest.mark.parametrize("declared", [len(MESSAGE), None])
def test_a_message_that_does_not_come_is_given_up(declared):
    """At its instant, with a status, a count and a free place."""

    async def scenario():
        service = ServiceUnderTest()
        context, task = await service.begin(declared)
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
async def test_messages_of_unknown_size_count_as_the_largest_and_few_at_a_time():
    """Two fill a quarter of what may be inside; the third comes after the first, not later."""
    service = ServiceUnderTest(max_admitted_bytes=8192)
    calls = [await service.begin(peer=f"ipv4:192.0.2.{n}:1") for n in range(3)]
    assert service.admitted_bytes == 2 * 1024
    for context, _ in calls:
        context.receive(MESSAGE)
    outcomes = [await task for _, task in calls]
    assert [type(outcome) for outcome in outcomes] == [bytes] * 3
    assert service.admitted_bytes == 3 * COST_BYTES
    for context, _ in calls:
        context.finish()
    assert service.admitted_bytes == 0


@in_virtual_time
async def test_nobody_waits_for_the_uploads_of_others_longer_than_an_upload_may_take():
    """One at a time, and all stall: whoever has no turn by then is refused, however many wait."""
    service, now = ServiceUnderTest(), asyncio.get_running_loop().time
    calls = [await service.begin()]
    await asyncio.sleep(1.0)
    calls += [await service.begin() for _ in range(8)]

    async def end(context, task):
        code, message = await refusal(context, task)
        return code.name, message.split(": ")[1].split(". ")[0], now()

    late = "DEADLINE_EXCEEDED", "expected all of it within 7 s, got less"
    full = "expected at most 1 admitted messages of undeclared size, got {} with this request"
    assert await asyncio.gather(*(end(*call) for call in calls)) == [
        (*late, 7.0),
        (*late, 14.0),  # has had its turn at 7
        *(("RESOURCE_EXHAUSTED", full.format(actual), 8.0) for actual in range(3, 10)),
    ]
    assert service.value("stn_refused_total", reason="QUEUE_FULL") == 7
    assert service.admitted_bytes == 0
    context, task = await service.begin()
    context.receive(MESSAGE)
    assert isinstance(await task, bytes)


@in_virtual_time
async def test_a_message_of_unknown_size_needs_room_for_the_largest():
    """What declares its size fits where it does not."""
    service = ServiceUnderTest(FakeRunner(feature_maps, held=True), max_admitted_bytes=2048)
    await service.begin(600)
    code, message = await refusal(*await service.begin(peer="ipv4:192.0.2.2:1"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message.startswith("queue: expected at most 2048 admitted bytes, got 2224")
    _, task = await service.begin(400, peer="ipv4:192.0.2.3:1")
    assert not task.done()


@pytest.mark.parametrize(
    ("declared", "time_remaining_s", "code", "why"),
    [
        (100, None, "CANCELLED", "its caller cancelled it, or went away"),
        (None, None, "RESOURCE_EXHAUSTED", "its message is above limits.max_message_bytes, or"),
        (100, 2.0, "DEADLINE_EXCEEDED", "its message was not there before its deadline"),
    ],
)
def test_a_call_that_ends_without_its_message_is_counted_and_logged(
    declared, time_remaining_s, code, why, caplog
):
    """GRPC cancels it; of what is too large and declares nothing it says no more."""

    async def scenario():
        service = ServiceUnderTest()
        context, task = await service.begin(declared, time_remaining_s=time_remaining_s)
        await asyncio.sleep(2.0)
        context.receive(grpc.aio.EOF)
        await asyncio.sleep(CANCELLATION_S / 2)
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
    """GRPC does not cancel it: its caller has just sent nothing."""
    context, task = await ServiceUnderTest().begin()
    context.receive(grpc.aio.EOF)
    code, message = await refusal(context, task)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "message: expected one, got the end of the call. Send one."


@in_virtual_time
async def test_probes_are_answered_when_nothing_else_is_and_cannot_be_stalled():
    """They need no room; those that stall are ended, and those behind them, before long."""
    service, now = ServiceUnderTest(max_admitted_items=1), asyncio.get_running_loop().time
    await service.begin(100)
    check = service.probe()
    (context, task), late, *behind = [await check() for _ in range(4)]
    context.receive(b"")
    assert (await task).status == health_pb2.HealthCheckResponse.SERVING

    async def end(context, task):
        code, message = await refusal(context, task)
        return code.name, message.split(": ")[1].split(". ")[0], now()

    full = "expected at most 1 admitted probes, got {} with this request"
    assert await asyncio.gather(*(end(*call) for call in (late, *behind))) == [
        ("DEADLINE_EXCEEDED", f"expected all of it within {PROBE_S:g} s, got less", PROBE_S),
        *(("RESOURCE_EXHAUSTED", full.format(actual), PROBE_S) for actual in (3, 4)),
    ]
    labels = {"method": "other", "code": "RESOURCE_EXHAUSTED"}
    assert service.value("stn_requests_total", **labels) == 2
    context, task = await check()
    context.receive(b"\xff")
    code, message = await refusal(context, task)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    expected = "expected a serialized grpc.health.v1.HealthCheckRequest, got other bytes"
    assert message == f"message: {expected}."


@in_virtual_time
async def test_server_info_does_not_wait_for_its_message():
    """Nor for room: who looks why a server is full is answered."""
    service = ServiceUnderTest(max_admitted_items=1)
    await service.begin(100)
    _, task = await service.begin(method="GetServerInfo")
    assert await task == b"info"
