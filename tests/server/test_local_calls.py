"""Calls by the local transport: as by gRPC, and what its connections bear."""

import asyncio
import gc
import os
import socket
import stat

import grpc
import pytest
import uvloop
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from stn_proto.ttrpc import MAX_DATA_BYTES
from stn_proto.v1 import warp_pb2
from stn_server.config import ConfigError, LimitsConfig, LocalConfig
from support.bad_requests import put, ramp, theta, warp_request
from support.fakes import FakeRunner, feature_maps
from support.harness import assert_nothing_left
from support.local import (
    Plain,
    descriptors,
    frame,
    request,
    serving_locally,
)
from support.statuses import detail, reason

MESSAGE = warp_request().SerializeToString()
USER = f"uid-{os.getuid()}"


def number(name):
    """Of a gRPC status."""
    return grpc.StatusCode[name].value[0]


async def by_grpc(target, message, metadata=()):
    """The reply to Warp by gRPC, or the status with its details and the request id."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = channel.unary_unary("/stn.v1.SpatialTransformer/Warp")
        try:
            return await stub(message, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            trailing = dict(error.trailing_metadata())
            status = Status.FromString(trailing["grpc-status-details-bin"])
            return status, trailing["x-request-id"]


def run(scenario, runner, folder, *, run_loop=asyncio.run, **options):
    """Runs a scenario with a service by both transports and a plain client; nothing is left over.

    What it opened, its client included, is closed; nobody waits, and no bytes are held.
    """

    async def main():
        async with serving_locally(runner, folder, **options) as (service, transport):
            plain = await Plain.connect(folder)
            try:
                await scenario(service, transport, plain)
            finally:
                await plain.close()
            await asyncio.wait_for(service.idle(), 10)
            assert_nothing_left(service.batcher)

    run_loop(main())  # once, so that what lives as long as the process is there
    gc.collect()
    before = descriptors()
    run_loop(main())
    gc.collect()
    assert len(descriptors()) <= len(before)
    assert list(folder.iterdir()) == []


def test_a_reply_is_that_by_grpc(tmp_path):
    """Its tensor to the bit; its bytes are counted as this transport's."""

    async def scenario(service, _transport, plain):
        response = await plain.call("Warp", MESSAGE)
        ours = warp_pb2.WarpReply.FromString(response.payload)
        theirs = warp_pb2.WarpReply.FromString(await by_grpc(service.target, MESSAGE))
        assert not response.HasField("status")
        assert (ours.output, ours.payloads) == (theirs.output, theirs.payloads)
        moved = {"direction": "received", "transport": "local"}
        assert service.value("stn_payload_bytes_total", **moved) == len(MESSAGE)
        assert service.value("stn_requests_total", method="Warp", code="OK") == 2

    run(scenario, None, tmp_path)


def test_an_error_is_that_by_grpc(tmp_path):
    """Code, message, details; and the request id, which gRPC has in its metadata."""
    bad = warp_request()
    bad.output_size[:] = (0, 1)
    message = bad.SerializeToString()

    async def scenario(service, _transport, plain):
        response = await plain.call("Warp", message, x_request_id="order-7")
        theirs, request_id = await by_grpc(service.target, message, [("x-request-id", "order-7")])
        ours = Status.FromString(response.status.SerializeToString())
        assert (ours.code, ours.message) == (theirs.code, theirs.message)
        assert list(ours.details[:-1]) == list(theirs.details)
        told = detail(response.status, error_details_pb2.RequestInfo).request_id
        assert told == request_id == "order-7"
        assert response.payload == b""

    run(scenario, None, tmp_path)


@pytest.mark.parametrize(
    ("data", "code", "why"),
    [
        (request("Warp", b"\xff"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (request("Warp", b""), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (request("Wrap", b""), "UNIMPLEMENTED", "UNKNOWN_METHOD"),
        (request("Warp", MESSAGE, service="s.T"), "UNIMPLEMENTED", "UNKNOWN_METHOD"),
        (b"\xff\xff", "INVALID_ARGUMENT", "INVALID_FIELD"),
        (b"", "UNIMPLEMENTED", "UNKNOWN_METHOD"),
        (b"\x0a\x01\xff", "INVALID_ARGUMENT", "INVALID_FIELD"),  # no UTF-8
        (
            request("Warp", MESSAGE, **{f"k{n}": "v" for n in range(65)}),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
        ),
        (bytes(MAX_DATA_BYTES + 1), "INVALID_ARGUMENT", "MESSAGE_TOO_LARGE"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_what_is_no_call_of_ours_is_refused_alone(tmp_path, data, code, why):
    """With its status; the next call on the connection is answered."""

    async def scenario(_service, _transport, plain):
        plain.send(frame(1, data))
        stream_id, response = await plain.response()
        assert (stream_id, response.status.code) == (1, number(code))
        assert reason(response.status) == why
        plain.send(frame(3, request("Warp", MESSAGE)))
        stream_id, response = await plain.response()
        assert (stream_id, response.HasField("status")) == (3, False)

    run(scenario, FakeRunner(feature_maps), tmp_path)


@pytest.mark.parametrize(
    "sent",
    [
        frame(2, request("Warp", MESSAGE)),
        frame(1, request("GetServerInfo")) + frame(1, request("GetServerInfo")),
        frame(1, request("Warp", MESSAGE), kind=2),
        frame(1, request("Warp", MESSAGE), kind=3),
        frame(1, request("Warp", MESSAGE), flags=1),
        b"\xff" * 1000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    ],
    ids=lambda sent: repr(sent[:12]),
)
def test_what_are_no_frames_ends_the_connection(tmp_path, sent):
    """That one alone: neighbours are answered."""

    async def scenario(_service, _transport, plain):
        neighbour = await Plain.connect(tmp_path)
        plain.send(sent)
        await plain.ended()
        response = await neighbour.call("Warp", MESSAGE)
        assert not response.HasField("status")
        await neighbour.close()

    run(scenario, FakeRunner(feature_maps), tmp_path)


@pytest.mark.parametrize("sent", [frame(1, b"", size=2**32 - 1), frame(1, MESSAGE)[:-1], b"\0"])
def test_half_a_frame_and_silence_end_the_connection(tmp_path, sent):
    """After the time that a message may take; a connection without any frame may be silent."""

    async def scenario(_service, _transport, plain):
        idle = await Plain.connect(tmp_path)
        plain.send(sent)
        if sent[:4] == b"\xff" * 4:
            assert reason((await plain.response())[1].status) == "MESSAGE_TOO_LARGE"
        await plain.ended()
        assert not (await idle.call("Warp", MESSAGE)).HasField("status")
        await idle.close()

    limits = LimitsConfig(upload_s=0.1)
    run(scenario, FakeRunner(feature_maps), tmp_path, limits=limits)


MIB = 2**20


def long_frame(stream_id):
    """A warp of a map of 3 MB."""
    message = warp_pb2.WarpRequest(output_size=(6, 7))
    put(message, message.feature_map, ramp(1, 1, 750, 1000))
    put(message, message.transform.affine.theta, theta(1))
    return frame(stream_id, request("Warp", message.SerializeToString()))


def test_long_frames_come_in_few_at_a_time(tmp_path):
    """Nothing of them is admitted before they are whole: who waits is not even read."""

    async def scenario(_service, _transport, plain):
        other, small = await Plain.connect(tmp_path), await Plain.connect(tmp_path)
        plain.send(long_frame(1)[:-MIB])
        assert not (await small.call("Warp", MESSAGE)).HasField("status")
        other.send(long_frame(1))
        assert not (await small.call("Warp", MESSAGE)).HasField("status")
        assert other.unsent_bytes > MIB
        plain.send(long_frame(1)[-MIB:] + long_frame(3))
        for connection in plain, other, plain:
            assert not (await connection.response())[1].HasField("status")
        for connection in other, small:
            await connection.close()

    run(scenario, FakeRunner(feature_maps), tmp_path, long_frames=1)


def test_nobody_waits_for_ever_behind_half_a_frame(tmp_path):
    """Those who stall are ended, who is next has the turn, and who waits too long is ended, too."""

    async def scenario(_service, _transport, plain):
        second, third = await Plain.connect(tmp_path), await Plain.connect(tmp_path)
        gone = await Plain.connect(tmp_path)
        for connection in plain, gone, second, third:
            connection.send(long_frame(1)[:-MIB])
        await gone.close()
        for connection in plain, third, second:
            await connection.ended()
        after = await Plain.connect(tmp_path)
        after.send(long_frame(1))
        assert not (await after.response())[1].HasField("status")
        for connection in second, third, after:
            await connection.close()

    limits = LimitsConfig(upload_s=0.1)
    run(scenario, FakeRunner(feature_maps), tmp_path, limits=limits, long_frames=1)


def test_the_end_of_a_connection_cancels_its_calls(tmp_path):
    """Those that wait leave the queue, and those of others stay."""

    async def scenario(service, _transport, plain):
        runner.hold()
        neighbour = await Plain.connect(tmp_path)
        neighbour.begin("Warp", MESSAGE)
        await service.admitted(1)
        for _ in range(3):
            plain.begin("Warp", MESSAGE)
        await service.admitted(3)
        await plain.close()
        await service.abandoned(3)
        runner.release_all()
        assert not (await neighbour.response())[1].HasField("status")
        assert service.value("stn_requests_total", method="Warp", code="CANCELLED") == 3
        await neighbour.close()

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path)


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_calls_behind_a_reply_that_nobody_takes_leave_nothing(tmp_path, run_loop):
    """The first one is refused at once, and so finds out that the client has gone."""

    async def scenario(service, _transport, plain):
        runner.hold()
        neighbour = await Plain.connect(tmp_path)
        neighbour.begin("Warp", MESSAGE)
        await service.admitted(1)
        plain.begin("Warp", b"\xff")
        for _ in range(3):
            plain.begin("Warp", MESSAGE)
        await plain.close()
        for _ in range(2):  # what came before them has been read by then
            assert (await neighbour.call("Warp", b"\xff")).HasField("status")
        runner.release_all()
        assert not (await neighbour.response())[1].HasField("status")
        await neighbour.close()

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path, run_loop=run_loop)


def test_a_timeout_ends_a_call_that_waits_and_one_that_runs(tmp_path):
    """With the status that gRPC gives; the batch is left to finish."""

    async def scenario(service, _transport, plain):
        runner.hold()
        running = plain.begin("Warp", MESSAGE, timeout_s=0.2)
        await service.admitted(1)
        waiting = plain.begin("Warp", MESSAGE, timeout_s=0.1)
        codes = dict([await plain.response(), await plain.response()])
        assert {codes[one].status.code for one in (running, waiting)} == {
            number("DEADLINE_EXCEEDED")
        }
        runner.release_all()

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path)


def test_a_timer_that_rings_early_ends_no_call_without_an_answer(tmp_path):
    """Those of uvloop do, in a third of all cases."""

    async def scenario(_service, _transport, plain):
        runner.hold()
        timeouts_s = [0.02 + n * 0.00013 for n in range(60)]
        ids = {plain.begin("Warp", MESSAGE, timeout_s=timeout_s) for timeout_s in timeouts_s}
        async with asyncio.timeout(10):
            answered = dict([await plain.response() for _ in ids])
        assert answered.keys() == ids
        codes = {one.status.code for one in answered.values()}
        # What would be late anyway is not admitted.
        assert codes <= {number("DEADLINE_EXCEEDED"), number("RESOURCE_EXHAUSTED")}
        runner.release_all()

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path, run_loop=uvloop.run)


def test_a_timeout_that_is_over_at_once_ends_a_call(tmp_path):
    """As a deadline that has passed."""

    async def scenario(_service, _transport, plain):
        response = await plain.call("Warp", MESSAGE, timeout_s=-1.0)
        assert response.status.code == number("DEADLINE_EXCEEDED")

    run(scenario, FakeRunner(feature_maps), tmp_path)


def test_answers_come_as_they_are_ready(tmp_path):
    """Not in the order of the requests."""

    async def scenario(service, _transport, plain):
        runner.hold()
        first = plain.begin("Warp", MESSAGE)
        await service.admitted(1)
        second = plain.begin("GetServerInfo")
        assert (await plain.response())[0] == second
        runner.release_all()
        assert (await plain.response())[0] == first

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path)


def test_a_connection_has_so_many_calls_in_flight(tmp_path):
    """Beyond them it is not read; the rest is answered as soon as there is room."""

    async def scenario(service, transport, plain):
        runner.hold()
        ids = [plain.begin("Warp", MESSAGE) for _ in range(5)]
        await service.admitted(2)
        (connection,) = transport._connections
        assert (connection._in_flight, connection._is_reading) == (2, False)
        runner.release_all()
        answered = [await plain.response() for _ in range(5)]
        assert sorted(stream_id for stream_id, _ in answered) == ids
        assert not any(response.HasField("status") for _, response in answered)
        assert connection._is_reading

    runner = FakeRunner(feature_maps)
    limits = LimitsConfig(max_concurrent_streams=2)
    run(scenario, runner, tmp_path, limits=limits)


def test_a_call_is_over_when_its_reply_has_left(tmp_path):
    """Who does not read keeps the places of its calls; when it goes they are free."""
    large = b"r" * (MAX_DATA_BYTES - 100)

    async def scenario(service, _transport, plain):
        plain.hold()
        plain.begin("Warp", MESSAGE)
        plain.begin("Warp", MESSAGE)
        await service.answered(2)
        assert service.batcher.statistics().admitted_bytes > 0

    runner = FakeRunner(lambda batch: [(large,) for _ in batch.items])
    run(scenario, runner, tmp_path)


def test_a_reply_that_no_frame_can_take_is_refused(tmp_path):
    """Its caller is told the limit."""

    async def scenario(_service, _transport, plain):
        response = await plain.call("Warp", MESSAGE)
        assert reason(response.status) == "RESULT_TOO_LARGE"
        assert response.status.message.startswith("message: expected at most 4194304 bytes")

    runner = FakeRunner(lambda batch: [(bytes(MAX_DATA_BYTES),) for _ in batch.items])
    run(scenario, runner, tmp_path)


def test_the_caller_is_the_user_of_the_process(tmp_path):
    """Told by the system, not by the process; fairness and logs go by it."""

    async def scenario(service, _transport, plain):
        runner.hold()
        plain.begin("Warp", MESSAGE, x_request_id="a")
        await service.admitted(1)
        (item,) = service.batcher._waiters
        assert item.caller == USER
        runner.release_all()
        await plain.response()

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path)


def test_while_it_drains_calls_are_refused_by_status(tmp_path):
    """As by gRPC, so that callers go elsewhere."""

    async def scenario(service, _transport, plain):
        await service.batcher.drain()
        response = await plain.call("Warp", MESSAGE)
        assert response.status.code == number("UNAVAILABLE")
        assert reason(response.status) == "DRAINING"

    run(scenario, FakeRunner(feature_maps), tmp_path)


def test_the_end_of_the_transport_ends_connections_and_removes_its_files(tmp_path):
    """Calls that are under way are cancelled; `stop` twice does no harm."""

    async def scenario(service, transport, plain):
        runner.hold()
        plain.begin("Warp", MESSAGE)
        await service.admitted(1)
        transport.stop()
        transport.stop()
        await plain.ended()
        assert list(tmp_path.iterdir()) == []
        runner.release_all()

    runner = FakeRunner(feature_maps)
    run(scenario, runner, tmp_path)


def test_the_socket_of_a_dead_server_is_replaced(tmp_path):
    """Nobody listens on it any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "ttrpc.sock"))

    async def scenario(_service, _transport, plain):
        assert not (await plain.call("Warp", MESSAGE)).HasField("status")

    run(scenario, FakeRunner(feature_maps), tmp_path)


def test_the_folder_of_a_live_server_is_refused(tmp_path):
    """It keeps its sockets, and its callers."""

    async def scenario(_service, _transport, plain):
        with pytest.raises(ConfigError, match=r"^local.dir: expected a free address, got unix:"):
            async with serving_locally(FakeRunner(), tmp_path):
                pass
        assert not (await plain.call("Warp", MESSAGE)).HasField("status")

    run(scenario, FakeRunner(feature_maps), tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """With what to do."""

    async def main():
        async with serving_locally(FakeRunner(), tmp_path / "none"):
            pass

    with pytest.raises(ConfigError, match=r"^local.dir: expected a folder for .*Create it\.$"):
        asyncio.run(main())


@pytest.mark.parametrize("mode", ["0600", "0660"])
def test_sockets_have_the_mode_of_the_setting(tmp_path, mode):
    """From their first moment on, whatever the umask."""

    async def scenario(_service, _transport, _plain):
        found = (tmp_path / "ttrpc.sock").stat().st_mode
        assert stat.S_IMODE(found) == int(mode, 8)

    run(scenario, FakeRunner(), tmp_path, mode=mode)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dir": "run"}, r"^dir: expected the absolute path of a folder, .* got 'run'\.$"),
        ({"dir": "/a\n"}, r"^dir: expected a folder in printable UTF-8, got '/a\\n'\.$"),
        ({"dir": "/" + 91 * "a"}, r"^dir: expected a folder of 1 to 91 bytes, got 92 in '/aaa"),
        ({"mode": "rw"}, r"^mode: expected three or four octal digits, as 0660, got 'rw'\.$"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    """When they are read, not when somebody calls."""
    with pytest.raises(ConfigError, match=complaint):
        LocalConfig(**settings)
