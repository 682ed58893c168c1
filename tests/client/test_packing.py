"""Small calls that wait go together in one message, and each is still a call of its own."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import grpc
import numpy as np
import pytest

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    RetryPolicy,
    TransportError,
    calls,
)
from stn_client._sending import Packet
from stn_client._sending_aio import Sender
from stn_proto.v1 import warp_pb2
from support.fakes import FakeRunner, feature_maps
from support.harness import assert_nothing_left, outcome_of, serving
from support.scripted_service import PATIENCE_S, ScriptedService, reply, serialized
from support.sends import noted

IDENTITY = Affine(np.eye(2, 3, dtype=np.float32)[None])
BROKEN = Affine(np.full((1, 2, 3), np.nan, np.float32))
MAP = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
WARPED = serialized(warp_pb2.WarpReply, output=MAP + 1)
BUSY = 2
"""Calls that go at once, while others wait."""


def numbered(number):
    """A small map that tells its number."""
    return np.full((1, 1, 2, 2), number, np.float32)


async def busy(stn, service):
    """Calls that are under way until the runner is released."""
    tasks = [asyncio.create_task(stn.warp(numbered(-1), IDENTITY)) for _ in range(BUSY)]
    await service.admitted(BUSY)
    return tasks


async def waiting(stn, *given):
    """Tasks of calls that wait for those under way."""
    tasks = [asyncio.create_task(stn.warp(*one)) for one in given]
    await asyncio.sleep(0)
    return tasks


def answered(service, method, code="OK"):
    """How many calls of a method ended like this."""
    return service.value("stn_requests_total", method=method, code=code) or 0


def scenario(test, **settings):
    """Runs a test with a server whose batches it releases, and an asynchronous client."""

    async def main():
        runner = FakeRunner(feature_maps, held=True)
        async with serving(runner, **settings.pop("server", {})) as service:
            options = {"retry": RetryPolicy(attempts=1), "local": False, **settings}
            async with AsyncClient(service.target, **options) as stn:
                await test(stn, service, runner)
            await asyncio.wait_for(service.idle(), PATIENCE_S)
            assert_nothing_left(service.batcher)

    asyncio.run(main())


def test_calls_that_wait_go_in_one_message():
    """Each has its own result, and on the server each is a call beside the message."""

    async def test(stn, service, runner):
        first = await busy(stn, service)
        rest = await waiting(stn, *((numbered(number), IDENTITY) for number in range(30)))
        runner.release_all()
        results = await asyncio.gather(*rest)
        assert [float(result[0, 0, 0, 0]) for result in results] == list(range(30))
        await asyncio.gather(*first)
        assert (answered(service, "ComputeMany"), answered(service, "Warp")) == (1, BUSY + 30)

    scenario(test)


def test_calls_of_any_method_and_size_go_together(local_server):
    """The results are those of single calls, bit for bit, in every part."""
    turned = Affine(np.array([[[0.8, -0.3, 0.1], [0.3, 0.8, -0.2]]], np.float32))

    def made(stn, number):
        u = np.arange(3 * (2 + number) * 5, dtype=np.float32).reshape(1, 3, 2 + number, 5)
        return (
            stn.warp(u, turned, (4, number + 1), padding="border"),
            stn.warp_gradients(u[:, :, :2], u, turned, needs=["transform"]),
            stn.warp_gradients(u[:, :, :2], u, turned),
            stn.generate_grid(turned, (number + 1, 3)),
            stn.generate_grid_gradients(np.ones((1, number + 1, 3, 2), np.float32), turned),
            stn.objective(u, u[:, :, :2], turned, loss="huber", needs=["gauss_newton"]),
        )

    async def together(packing):
        settings = {"packing": packing, "local": False}
        async with AsyncClient(local_server.target, **settings) as stn:
            results = [one for number in range(8) for one in made(stn, number)]
            return await asyncio.gather(*results)

    packed, alone = asyncio.run(together(packing=True)), asyncio.run(together(packing=False))
    for one, other in zip(packed, alone, strict=True):
        parts = [
            [x] if isinstance(x, np.ndarray) else [getattr(x, part.name) for part in fields(x)]
            for x in (one, other)
        ]
        for part, expected in zip(*parts, strict=True):
            assert (part is None) == (expected is None)
            if part is not None:
                assert (part.dtype, part.shape) == (expected.dtype, expected.shape)
                assert part.tobytes() == expected.tobytes()


def test_a_call_that_fails_raises_for_itself_only():
    """With its own status, details and request id: that of the message and its place there."""

    async def test(stn, service, runner):
        first = await busy(stn, service)
        good, bad, after = await waiting(
            stn, (numbered(1), IDENTITY), (numbered(2), BROKEN), (numbered(3), IDENTITY)
        )
        runner.release_all()
        np.testing.assert_array_equal(await good, numbered(1))
        with pytest.raises(InvalidRequestError, match="expected finite numbers, got nan") as why:
            await bad
        np.testing.assert_array_equal(await after, numbered(3))
        await asyncio.gather(*first)
        assert why.value.violations[0][0] == "theta"
        assert (why.value.code, why.value.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
        )
        assert why.value.request_id.endswith(".1")
        assert answered(service, "Warp", "INVALID_ARGUMENT") == 1
        assert answered(service, "ComputeMany") == 1

    scenario(test)


def test_a_call_that_is_cancelled_while_it_waits_leaves_the_message():
    """The others go without it."""

    async def test(stn, service, runner):
        first = await busy(stn, service)
        rest = await waiting(stn, *((numbered(number), IDENTITY) for number in range(4)))
        rest[1].cancel()
        assert isinstance(await outcome_of(rest[1]), asyncio.CancelledError)
        runner.release_all()
        await asyncio.gather(*first, rest[0], rest[2], rest[3])
        assert answered(service, "Warp") == BUSY + 3

    scenario(test)


def test_a_message_that_nobody_waits_for_is_cancelled():
    """Its calls leave the queue of the server; as long as one waits, it goes on."""

    async def test(stn, service, runner):
        first = await busy(stn, service)
        rest = await waiting(stn, *((numbered(number), IDENTITY) for number in range(3)))
        runner.release()
        await service.admitted(3)
        for task in rest:
            assert not task.done()
            task.cancel()
        await asyncio.wait(rest)
        await service.abandoned(3)
        runner.release_all()
        await asyncio.gather(*first)
        assert answered(service, "ComputeMany", "CANCELLED") == 1
        assert answered(service, "Warp", "CANCELLED") == 3

    scenario(test)


def test_a_message_whose_calls_are_cancelled_as_it_starts_holds_up_no_other(monkeypatch):
    """Its task has not begun then, and still the queue learns that it is over."""

    async def test(stn, service, runner):
        rest, start = [], Sender.wake

        def wake(sender, waiter):
            if isinstance(waiter.goes, Packet):
                while rest:
                    rest.pop().cancel()
            start(sender, waiter)

        monkeypatch.setattr(Sender, "wake", wake)
        for _ in range(2):  # there may be two messages under way
            runner.hold()
            first = await asyncio.wait_for(busy(stn, service), PATIENCE_S)
            rest += await waiting(stn, *((numbered(number), IDENTITY) for number in range(3)))
            runner.release_all()
            await asyncio.gather(*first)
        later = [stn.warp(numbered(number), IDENTITY) for number in range(4)]
        results = await asyncio.wait_for(asyncio.gather(*later), PATIENCE_S)
        assert [float(result[0, 0, 0, 0]) for result in results] == list(range(4))

    scenario(test)


def test_a_message_whose_task_is_cancelled_by_others_holds_up_no_other():
    """As whoever cancels all tasks of a loop does, at any step of them, and goes on."""

    async def test(stn, service, runner):
        for steps in 2 * [*range(8)]:  # twice, as two messages may be under way
            first = await busy(stn, service)
            rest = await waiting(stn, *((numbered(number), IDENTITY) for number in range(3)))
            for task in first:
                task.cancel()
            for _ in range(steps):
                await asyncio.sleep(0)
            of_client = [one for one in asyncio.all_tasks() if "stn_client" in repr(one)]
            for task in of_client:
                task.cancel()
            await asyncio.wait([*first, *rest])
        runner.release_all()
        assert (await stn.warp(MAP, IDENTITY, timeout_s=PATIENCE_S)).shape == MAP.shape

    scenario(test)


@pytest.mark.parametrize("is_sent", [False, True], ids=["waiting", "sent"])
def test_a_loop_that_is_closed_amid_calls_leaves_nothing_to_await(local_server, is_sent):
    """What waited is dropped with it, without a warning of a message that was never begun."""

    async def turns():
        await asyncio.sleep(0)
        while is_sent and not any(one._sending for one in stn._senders.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)

    stn = AsyncClient(local_server.target, local=False)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # told of tasks that nobody ended, which is true
    tasks = [loop.create_task(stn.warp(MAP, IDENTITY)) for _ in range(20)]
    loop.run_until_complete(turns())
    loop.close()
    for task in tasks:
        task.get_coro().close()

    async def by_another_loop():
        async with stn:  # a client that is left open would make forks of this process useless
            return await stn.warp(MAP, IDENTITY)

    assert asyncio.run(by_another_loop()).shape == MAP.shape


def test_each_call_keeps_its_own_clock():
    """One is late and raises; the other, in the same message, has more time and its result."""

    async def test(stn, service, runner):
        first = await busy(stn, service)
        (patient,) = await waiting(stn, (numbered(1), IDENTITY))
        stn._timeout_s = 30.0
        progresses, progress = [], stn._progress
        stn._progress = lambda call: progresses.append(progress(call)) or progresses[-1]
        (late,) = await waiting(stn, (numbered(2), IDENTITY))
        runner.release()
        await service.admitted(2)
        progresses[-1].deadline_s = time.monotonic()  # not on its way, however long that took
        stn._timeout_s = 0.05
        (hurried,) = await waiting(stn, (numbered(3), IDENTITY))  # the client looks at all clocks
        with pytest.raises(DeadlineExceededError, match="got no turn"):
            await hurried
        with pytest.raises(DeadlineExceededError, match="Deadline Exceeded"):
            await late
        assert not patient.done()
        runner.release_all()
        np.testing.assert_array_equal(await patient, numbered(1))
        await asyncio.gather(*first)
        assert answered(service, "ComputeMany") == 1

    scenario(test)


def test_calls_that_a_full_server_refuses_are_tried_again_each_for_itself():
    """All are answered in the end, though no more than a few are inside at a time."""

    async def test(stn, service, runner):
        runner.release_all()
        results = await asyncio.gather(
            *(stn.warp(numbered(number), IDENTITY) for number in range(40))
        )
        assert [float(result[0, 0, 0, 0]) for result in results] == list(range(40))
        assert answered(service, "Warp", "RESOURCE_EXHAUSTED") > 0
        assert answered(service, "ComputeMany") > 0

    patient = RetryPolicy(initial_s=0.01, max_s=0.02)
    scenario(test, retry=patient, server={"max_admitted_items": 6})


def test_callers_that_come_back_together_go_together_again_in_two_parts():
    """Not one alone and the others after it: the server computes one part while one is read."""

    async def test(stn, service, runner):
        async def caller(number):
            return [await stn.warp(numbered(number + turn), IDENTITY) for turn in range(2)]

        first = await busy(stn, service)
        tasks = [asyncio.create_task(caller(10 * number)) for number in range(6)]
        await asyncio.sleep(0)
        runner.release()
        await service.admitted(6)
        runner.release()
        await asyncio.gather(*first)
        (late,) = await waiting(stn, (numbered(-1), IDENTITY))
        await service.admitted(1)
        runner.release()
        await service.admitted(4)  # half of these six and the late one
        runner.release_all()
        results = await asyncio.gather(*tasks)
        assert [[float(r[0, 0, 0, 0]) for r in both] for both in results] == [
            [10 * number, 10 * number + 1] for number in range(6)
        ]
        await late
        assert answered(service, "ComputeMany") == 3
        assert answered(service, "Warp") == BUSY + 1 + 2 * 6

    scenario(test)


def test_one_setting_turns_packing_off():
    """Every call is a message, as many at a time as may be."""

    async def test(stn, service, runner):
        tasks = await waiting(stn, *((numbered(number), IDENTITY) for number in range(10)))
        await service.admitted(10)
        runner.release_all()
        await asyncio.gather(*tasks)
        assert (answered(service, "ComputeMany"), answered(service, "Warp")) == (0, 10)

    scenario(test, packing=False)


def test_a_client_that_is_closed_ends_the_calls_that_wait():
    """Those under way, those in a message and those that are not sent yet."""

    async def test(stn, service, runner):
        first = await busy(stn, service)
        packed = await waiting(stn, *((numbered(number), IDENTITY) for number in range(3)))
        runner.release()
        await service.admitted(3)
        rest = await waiting(stn, *((numbered(number), IDENTITY) for number in range(3)))
        await stn.close()
        outcomes = [await outcome_of(task) for task in (*first, *packed, *rest)]
        kinds = [type(outcome) for outcome in outcomes]
        assert sorted(kind.__name__ for kind in kinds[:BUSY]) == ["TransportError", "ndarray"]
        assert kinds[BUSY:] == [TransportError] * 6
        runner.release_all()

    scenario(test)


class Older(grpc.GenericRpcHandler):
    """A server that answers warps, and ends ComputeMany with a status.

    Attributes:
        asked: Methods, in the order in which calls came in.
    """

    def __init__(self, code):
        self.asked = []
        self._code = code
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details):
        method = details.method.rpartition("/")[2]
        if method == "GetServerInfo":
            return None

        def answer(_request, context):
            self.asked.append(method)
            if method == "ComputeMany":
                context.abort(self._code, "as an older server does")
            return WARPED

        return grpc.unary_unary_rpc_method_handler(answer)

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_exception):
        self._server.stop(None).wait()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_server_that_does_not_take_the_message_gets_single_calls(code):
    """One that does not know it, or takes fewer calls; nothing is lost, and no more is packed."""

    async def test(target):
        async with AsyncClient(target, retry=RetryPolicy(attempts=1)) as stn:
            for _ in range(2):
                results = await asyncio.gather(*(stn.warp(MAP, IDENTITY) for _ in range(6)))
                for result in results:
                    np.testing.assert_array_equal(result, MAP + 1)

    with Older(code) as service:
        asyncio.run(test(service.target))
    assert service.asked.count("ComputeMany") == 1
    assert service.asked.count("Warp") == 12
    assert "ComputeMany" not in service.asked[-6:]


def test_a_reply_that_is_none_fails_every_call_of_the_message():
    """And none of those that went alone."""

    async def test(target):
        async with AsyncClient(target, retry=RetryPolicy(attempts=1)) as stn:
            tasks = [outcome_of(stn.warp(MAP, IDENTITY)) for _ in range(4)]
            return await asyncio.gather(*tasks)

    with ScriptedService(*[reply(WARPED)] * 3) as service:
        first, second, *rest = asyncio.run(test(service.target))
    np.testing.assert_array_equal(first, MAP + 1)
    np.testing.assert_array_equal(second, MAP + 1)
    assert [str(error)[:40] for error in rest] == ["ComputeMany: expected its reply, got rep"] * 2


def test_threads_share_messages(local_server):
    """Each has its own results, in order, and a bad call among them fails alone."""
    expected = {}
    with Client(local_server.target, packing=False) as plain:
        for number in range(16):
            expected[number] = plain.warp(numbered(number) + MAP[..., :2], IDENTITY, (3, 3))
    failures = []

    def run(stn, number):
        for turn in range(8):
            if turn == number % 8:
                with pytest.raises(InvalidRequestError, match="expected finite numbers"):
                    stn.warp(MAP, BROKEN)
            result = stn.warp(numbered(number) + MAP[..., :2], IDENTITY, (3, 3))
            if not np.array_equal(result, expected[number]):
                failures.append(number)

    for local in (True, False):
        with Client(local_server.target, local=local) as stn:
            threads = [threading.Thread(target=run, args=[stn, number]) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
    assert failures == []


def test_a_thread_that_is_interrupted_does_not_take_others_with_it(local_server):
    """It was about to send their message; they go alone."""
    ready, lock, interrupted = threading.Event(), threading.Lock(), []

    def token():
        """Interrupts who sends the first message of several calls: the third to ask."""
        with lock:
            tokens.append(1)
            count = len(tokens)
        if count <= BUSY:
            assert ready.wait(PATIENCE_S)
        if count == BUSY + 1:
            raise KeyboardInterrupt
        return "secret"

    tokens, results = [], []
    with Client(local_server.target, token=token, local=False) as stn:

        def run():
            try:
                results.append(stn.warp(MAP, IDENTITY))
            except KeyboardInterrupt:
                interrupted.append(1)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(stn._sender._queue._small) < 8 - BUSY:
            pass
        ready.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert (len(interrupted), len(results)) == (1, 7)


def many_calls(count=300):
    """Small calls, of which some are large."""
    for number in range(count):
        side = 80 if number % 50 == 49 else 2
        yield calls.warp(np.full((1, 1, side, side), number, np.float32), IDENTITY)


def test_map_gives_results_in_order(local_server):
    """Of any sizes, by threads and by tasks."""

    async def by_tasks():
        async with AsyncClient(local_server.target) as stn:
            return [result async for result in stn.map(many_calls())]

    with Client(local_server.target) as stn:
        by_threads = list(stn.map(many_calls()))
    for results in (by_threads, asyncio.run(by_tasks())):
        assert [float(result.flat[0]) for result in results] == list(range(300))


class NotedClient(Client):
    """Notes the methods of its messages."""

    def __init__(self, target):
        super().__init__(target, local=False)
        self.sent = []

    def _new_transports(self, *arguments):
        return noted(super()._new_transports(*arguments), self._note)

    def _note(self, call, _progress):
        self.sent.append(call.method.rpartition("/")[2])


def test_map_takes_objectives(local_server):
    """In few messages; the mean square of maps that differ by n everywhere is n squared."""
    numbers = range(40)
    fixed = np.zeros((1, 1, 2, 3), np.float32)
    with NotedClient(local_server.target) as stn:
        made = (calls.objective(fixed + n, fixed, IDENTITY) for n in numbers)
        found = list(stn.map(made))
    assert [one.value.tolist() for one in found] == [[n * n] for n in numbers]
    assert {"ComputeMany"} <= set(stn.sent) <= {"ComputeMany", "Objective"}
    assert len(stn.sent) < len(numbers) / 2


def test_map_takes_calls_as_results_are_taken(local_server):
    """So that there may be more of them than memory holds."""
    made = []

    def endless():
        while True:
            made.append(1)
            yield calls.warp(MAP, IDENTITY)

    with Client(local_server.target) as stn:
        results = stn.map(endless())
        for _ in range(3):
            next(results)
        assert len(made) < 1000
        results.close()

    async def by_tasks():
        async with AsyncClient(local_server.target) as stn:
            results = stn.map(endless())
            await anext(results)
            await results.aclose()

    made.clear()
    asyncio.run(by_tasks())
    assert len(made) < 1000


def test_map_raises_the_error_of_a_call_in_its_place(local_server):
    """Or gives it as a result, if that is asked for."""
    good, bad = calls.warp(MAP, IDENTITY), calls.warp(MAP, BROKEN)
    with Client(local_server.target) as stn:
        results = stn.map([good, bad, good])
        np.testing.assert_array_equal(next(results), MAP)
        with pytest.raises(InvalidRequestError, match="expected finite numbers") as raised:
            next(results)
        assert raised.value.__notes__ == ["It is the error of calls[1]."]
        kinds = [type(one) for one in stn.map([good, bad, good], return_exceptions=True)]
        assert kinds == [np.ndarray, InvalidRequestError, np.ndarray]

    async def by_tasks():
        async with AsyncClient(local_server.target) as stn:
            results = stn.map([good, bad, good])
            np.testing.assert_array_equal(await anext(results), MAP)
            with pytest.raises(InvalidRequestError, match="expected finite numbers") as raised:
                await anext(results)
            assert raised.value.__notes__ == ["It is the error of calls[1]."]
            mapped = stn.map([good, bad, good], return_exceptions=True)
            return [type(one) async for one in mapped]

    assert asyncio.run(by_tasks()) == kinds


def test_map_wants_calls(local_server):
    """Arrays, or coroutines, would be results already, or nobody's."""
    expected = pytest.raises(InvalidRequestError, match=r"^calls\[0\]: expected a call as of")
    with Client(local_server.target) as stn, expected:
        next(stn.map([MAP]))


def test_map_shows_a_progress_bar(local_server, capsys):
    """On standard error, with as many calls as there are, if that is known."""
    with Client(local_server.target) as stn:
        list(stn.map([calls.warp(MAP, IDENTITY)] * 40, progress=True))
        list(stn.map(iter([calls.warp(MAP, IDENTITY)] * 40)))
    shown = capsys.readouterr().err
    assert "40/40" in shown
    assert shown.count("100%") == 1
