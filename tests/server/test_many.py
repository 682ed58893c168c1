"""ComputeMany: many calls in one message, each with its own reply or status."""

import asyncio
import contextlib
import time

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from stn_proto import join_many
from stn_proto.v1 import many_pb2, warp_pb2
from stn_server.batching.devices import EngineRunner
from stn_server.config import LimitsConfig
from stn_server.events import Listener
from stn_server.service import COMPUTE_MANY
from stn_server.translate import REQUESTS
from support.bad_requests import BAD_REQUESTS, BASES, put, ramp, theta, warp_request
from support.fakes import FakeRunner, feature_maps
from support.harness import METHOD_PREFIX, assert_nothing_left, outcome_of, serving
from support.local import Plain, serving_locally
from support.many import add, compute_many, replies
from support.statuses import detail, reason

KINDS = {operation.value: kind for operation, kind in REQUESTS.items()}
ID = (("x-request-id", "order-7"),)


def run(test, runner=None, **settings):
    """Runs a scenario with a server, by the engine unless a runner is given, and a channel."""

    async def main():
        engine = EngineRunner() if runner is None else None
        closing = contextlib.closing(engine) if engine else contextlib.nullcontext()
        with closing:
            async with (
                serving(engine or runner, **settings) as service,
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                await test(service, channel)
                await asyncio.wait_for(service.idle(), 10)
                assert_nothing_left(service.batcher)

    asyncio.run(main())


async def ask(channel, message, method=COMPUTE_MANY, **options):
    """The serialized reply to a message."""
    return await channel.unary_unary(METHOD_PREFIX + method)(message, **options)


async def refusal(channel, message):
    """The status that ends the RPC itself."""
    with pytest.raises(grpc.RpcError, match="details = ") as why:
        await ask(channel, message)
    packed = dict(why.value.trailing_metadata())["grpc-status-details-bin"]
    return Status.FromString(packed)


def warp_of(number, height=2):
    """A warp by the identity of a map that tells its number."""
    request = warp_pb2.WarpRequest()
    put(request, request.feature_map, ramp(1, 1, height, 3) * 0 + number)
    put(request, request.transform.affine.theta, theta(1) * 0 + [[1, 0, 0], [0, 1, 0]])
    return request


def test_calls_of_every_method_have_the_replies_that_they_have_alone():
    """In their order, to the bit, whatever stands beside them."""

    async def test(service, channel):
        calls = [(method, make()) for _ in range(3) for method, make in BASES.items()]
        for _ in range(2):  # the second time by templates
            found = replies(await ask(channel, compute_many(*calls).SerializeToString()))
            for (method, request), outcome in zip(calls, found, strict=True):
                single = await ask(channel, request.SerializeToString(), method)
                expected = type(outcome).FromString(single)
                assert outcome.timing.batch_items >= 1
                for one in (outcome, expected):
                    one.ClearField("timing")
                    one.ClearField("alignment")
                assert outcome == expected
        counted = service.value("stn_requests_total", method="Warp", code="OK")
        assert counted == 2 * 3 * 2
        assert service.value("stn_requests_total", method=COMPUTE_MANY, code="OK") == 2

    run(test)


def test_a_bad_call_has_the_status_that_it_has_alone():
    """Every kind of bad request in one message, among good ones, which are answered."""

    async def test(_service, channel):
        message, expected = many_pb2.ComputeManyRequest(), []
        for bad in BAD_REQUESTS:
            try:
                request = KINDS[bad.method].FromString(bad.message)
            except Exception:  # noqa: BLE001 - a message that is none cannot stand in another one
                continue
            if len(request.payloads) > 16 or len(bad.message) > 200_000:
                continue  # what limits of the message are about
            add(message, bad.method, request)
            expected.append(bad)
            add(message, "Warp", warp_request())
        assert len(expected) > 80
        found = replies(await ask(channel, message.SerializeToString(), metadata=ID))
        for index, bad in enumerate(expected):
            status = found[2 * index]
            assert (status.code, bad.name) == (bad.code.value[0], bad.name)
            assert status.message.startswith(f"{bad.field}: {bad.text}"), bad.name
            info = detail(status, error_details_pb2.RequestInfo)
            assert info.request_id == f"order-7.{2 * index}"
            assert isinstance(found[2 * index + 1], warp_pb2.WarpReply)

    run(test, max_admitted_items=1000)


SPOILT = {
    "empty": (
        lambda message: message.ClearField("calls"),
        "calls: expected at least one, got none",
    ),
    "a payload too few": (
        lambda message: message.payloads.pop(),
        "payloads: expected as many as the calls have, 4, got 3",
    ),
    "a payload too many": (
        lambda message: message.payloads.append(b"x"),
        "payloads: expected as many as the calls have, 4, got 5",
    ),
    "an unknown field": (
        lambda message: message.MergeFromString(b"\x98\x06\x01"),
        "99: expected a field that this server knows",
    ),
}


@pytest.mark.parametrize(("spoil", "text"), SPOILT.values(), ids=SPOILT)
def test_a_message_that_is_wrong_itself_ends_with_a_status(spoil, text):
    """Nobody can tell then whose its parts are."""

    async def test(service, channel):
        message = compute_many(("Warp", warp_request()), ("Warp", warp_request()))
        spoil(message)
        status = await refusal(channel, message.SerializeToString())
        assert status.message[: len(text)] == text
        assert reason(status) == ("UNSUPPORTED" if text.startswith("99") else "INVALID_FIELD")
        ended = {"method": COMPUTE_MANY, "code": grpc.StatusCode(status_code(status)).name}
        assert service.value("stn_requests_total", **ended) == 1

    run(test)


def status_code(status):
    """The value of the enumeration that has this number."""
    return next(code.value for code in grpc.StatusCode if code.value[0] == status.code)


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x02\x12\xff", b"\x0a\x05\x00"])
def test_bytes_that_are_no_message_end_with_a_status(message):
    """At any depth that tells whose payloads are whose."""

    async def test(_service, channel):
        status = await refusal(channel, message)
        assert (status.code, reason(status)) == (3, "INVALID_FIELD")

    run(test)


def test_a_hundred_thousand_calls_in_one_message_are_refused_at_once():
    """By their number, before any of them is read."""

    async def test(service, channel):
        call = compute_many(("Warp", warp_request())).calls[0].SerializeToString()
        message = join_many([call] * 100_000, [b""] * 200_000)
        began_s = time.process_time()  # of both sides, and of nobody else
        status = await refusal(channel, message)
        assert time.process_time() - began_s < 5
        assert reason(status) == "MESSAGE_TOO_LARGE"
        assert (
            status.message
            == "calls: expected at most 1024 calls, got more. Send fewer calls at once."
        )
        assert dict(detail(status, error_details_pb2.ErrorInfo).metadata)["limit"] == "1024"
        assert service.batcher.statistics().finished_items == 0

    run(test)


def test_limits_of_a_message_are_configuration():
    """As many calls as allowed, and the payloads of so many."""

    async def test(_service, channel):
        two = compute_many(("Warp", warp_of(1)), ("Warp", warp_of(2)))
        assert len(replies(await ask(channel, two.SerializeToString()))) == 2
        three = compute_many(*[("Warp", warp_of(1))] * 3)
        assert reason(await refusal(channel, three.SerializeToString())) == "MESSAGE_TOO_LARGE"
        two.payloads.extend([b""] * 32)
        status = await refusal(channel, two.SerializeToString())
        assert status.message.startswith("payloads: expected at most 32 payloads, got more")

    run(test, limits=LimitsConfig(max_calls=2))


def test_a_call_within_another_and_one_that_is_none_have_their_own_statuses():
    """ComputeMany is not among the calls that it takes; nor is what nobody knows."""

    async def test(service, channel):
        inner = compute_many(("Warp", warp_of(1)))
        field_7 = many_pb2.ComputeManyReply(alignment=inner.SerializeToString())
        nested = many_pb2.NestedCall.FromString(
            field_7.SerializeToString().replace(b"\x72", b"\x3a", 1)  # of number 14 one of 7
        )
        message = compute_many(("Warp", warp_of(2)))
        message.calls.append(nested)
        message.calls.add()
        own = warp_of(3)
        message.calls.add(warp=own)  # with its payloads where they are when it is alone
        found = replies(await ask(channel, message.SerializeToString()))
        assert isinstance(found[0], warp_pb2.WarpReply)
        assert [reason(status) for status in found[1:]] == [
            "UNSUPPORTED",
            "INVALID_FIELD",
            "INVALID_FIELD",
        ]
        assert found[1].message.startswith("7: expected a field that this server knows")
        assert found[2].message.startswith("request: expected one of warp, warp_gradients")
        assert found[3].message.startswith("payloads: expected none, as the bytes of all calls")
        assert service.value("stn_requests_total", method="other", code="UNIMPLEMENTED") == 1
        assert service.value("stn_requests_total", method="other", code="INVALID_ARGUMENT") == 1

    run(test)


def test_results_of_a_message_together_have_the_limit_of_one_call():
    """So that a small message has no huge reply; those beyond it are told so."""

    async def test(_service, channel):
        message = compute_many(*(("Warp", warp_of(number)) for number in range(5)))
        found = replies(await ask(channel, message.SerializeToString()))
        assert [type(one).__name__ for one in found] == ["WarpReply"] * 2 + ["Status"] * 3
        assert reason(found[2]) == "RESULT_TOO_LARGE"
        assert found[2].message == (
            "calls: expected at most 60 bytes of output of one message, got 72. Ask for less."
        )

    run(test, limits=LimitsConfig(max_output_bytes=60))


def test_calls_of_one_key_run_together_whatever_their_sizes():
    """In one batch, with the calls of others; a call of another key in its own."""

    async def test(service, channel):
        busy = asyncio.create_task(ask(channel, warp_of(9).SerializeToString(), "Warp"))
        await runner.begun(1)
        nearest = warp_of(5)
        nearest.spec.interpolation = warp_pb2.INTERPOLATION_NEAREST
        calls = [("Warp", warp_of(number, height=2 + number)) for number in range(4)]
        message = compute_many(*calls, ("Warp", nearest))
        many = asyncio.create_task(ask(channel, message.SerializeToString()))
        await service.admitted(6)
        runner.release_all()
        found = replies(await many)
        await busy
        assert [len(batch) for batch in runner.batches] == [1, 4, 1]
        assert [reply.timing.batch_items for reply in found] == [4, 4, 4, 4, 1]
        assert service.value("stn_batch_items_sum") == 6

    runner = FakeRunner(feature_maps, held=True)
    run(test, runner)


def test_calls_that_find_no_room_are_refused_and_the_others_computed():
    """Each call counts from admission on, and all of them until the reply."""

    async def test(service, channel):
        message = compute_many(*(("Warp", warp_of(number)) for number in range(9)))
        found = replies(await ask(channel, message.SerializeToString()))
        kinds = [type(one).__name__ for one in found]
        assert kinds == ["WarpReply"] * 5 + ["Status"] * 4  # 4 * (6 - 5) < 5 is what one may hold
        assert {reason(status) for status in found[5:]} == {"QUEUE_FULL"}
        assert detail(found[8], error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0
        assert service.value("stn_refused_total", reason="QUEUE_FULL") == 4

    run(test, max_admitted_items=6)


def test_the_deadline_of_a_message_is_that_of_its_calls():
    """Those that wait leave the queue when it has passed."""

    async def test(service, channel):
        busy = asyncio.create_task(ask(channel, warp_of(9).SerializeToString(), "Warp"))
        await runner.begun(1)
        message = compute_many(*(("Warp", warp_of(number)) for number in range(3)))
        outcome = await outcome_of(ask(channel, message.SerializeToString(), timeout=0.3))
        if isinstance(outcome, bytes):  # the server was before the client to notice
            assert {reason(status) for status in replies(outcome)} == {"DEADLINE_EXCEEDED"}
        else:
            assert outcome.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.abandoned(3)
        runner.release_all()
        await busy
        assert [len(batch) for batch in runner.batches] == [1]
        assert service.value("stn_abandoned_items_total") == 3

    runner = FakeRunner(feature_maps, held=True)
    run(test, runner)


def test_a_message_that_is_cancelled_takes_its_calls_with_it():
    """Those that wait are not computed, and each is counted as cancelled."""

    async def test(service, channel):
        busy = asyncio.create_task(ask(channel, warp_of(9).SerializeToString(), "Warp"))
        await runner.begun(1)
        message = compute_many(*(("Warp", warp_of(number)) for number in range(3)))
        many = asyncio.create_task(ask(channel, message.SerializeToString()))
        await service.admitted(4)
        many.cancel()
        await service.abandoned(3)
        runner.release_all()
        await busy
        assert isinstance(await outcome_of(many), asyncio.CancelledError)
        assert service.value("stn_requests_total", method="Warp", code="CANCELLED") == 3
        assert [len(batch) for batch in runner.batches] == [1]

    runner = FakeRunner(feature_maps, held=True)
    run(test, runner)


def test_a_server_that_drains_refuses_the_message():
    """And answers those that are inside."""

    async def test(service, channel):
        message = compute_many(("Warp", warp_of(1))).SerializeToString()
        many = asyncio.create_task(ask(channel, message))
        await runner.begun(1)
        draining = asyncio.create_task(service.batcher.drain())
        await asyncio.sleep(0)
        assert reason(await refusal(channel, message)) == "DRAINING"
        runner.release_all()
        assert isinstance(replies(await many)[0], warp_pb2.WarpReply)
        await draining

    runner = FakeRunner(feature_maps, held=True)
    run(test, runner)


class Failures(Listener):
    """What the log is told of calls that failed."""

    def __init__(self):
        self.told = []

    def call_failed(self, call, end):
        self.told.append((call.method, end.answer.reason, end.answer.request_id, end.alike))


def test_calls_of_a_message_that_fail_alike_are_told_once():
    """With how many there are, so that a message cannot flood the log."""

    async def main():
        failures = Failures()
        with contextlib.closing(EngineRunner()) as engine:
            async with (
                serving(engine, failures, max_admitted_items=6) as service,
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                message = compute_many(*(("Warp", warp_of(number)) for number in range(20)))
                message.calls.add()
                await ask(channel, message.SerializeToString(), metadata=ID)
        assert sorted(failures.told) == [
            ("Warp", "QUEUE_FULL", "order-7.5", 15),
            ("other", "INVALID_FIELD", "order-7.20", 1),
        ]

    asyncio.run(main())


def test_a_message_by_the_local_transport_has_the_reply_that_it_has_by_grpc(tmp_path):
    """The same calls, statuses and request ids, by ttrpc."""

    async def main():
        with contextlib.closing(EngineRunner()) as engine:
            async with (
                serving_locally(engine, tmp_path) as (service, _transport),
                grpc.aio.insecure_channel(service.target) as channel,
            ):
                calls = [(method, make()) for method, make in BASES.items()]
                message = compute_many(*calls)
                message.calls.add()
                plain = await Plain.connect(tmp_path)
                response = await plain.call(
                    COMPUTE_MANY, message.SerializeToString(), x_request_id="order-7"
                )
                await plain.close()
                by_grpc = replies(await ask(channel, message.SerializeToString(), metadata=ID))
                locally = replies(response.payload)
                for outcome in (*by_grpc[:-1], *locally[:-1]):
                    outcome.ClearField("timing")
                assert locally == by_grpc

    asyncio.run(main())
