"""Tensors that stay on a server, as the SDK has them: what is sent, and what is sent again."""

import asyncio
import gc
import threading
from concurrent.futures import Future

import grpc
import numpy as np
import pytest
import torch

import stn_client.torch
import stn_engine
from stn_client import (
    Affine,
    AsyncClient,
    Client,
    DeadlineExceededError,
    Flow,
    InvalidRequestError,
    RetryPolicy,
    _calls,
    _transfers,
    calls,
)
from stn_client._placing import by_message
from stn_client._prepared_call import CallSettings
from stn_client._transfers import MAX_RELEASED
from stn_client.local import LocalServer
from stn_proto.v1 import warp_pb2
from support.scripted_service import PATIENCE_S, ScriptedService, abort, reply, serialized
from support.sends import noted

RNG = np.random.default_rng(3)
U = RNG.random((1, 3, 160, 200), np.float32)
LARGE = RNG.random((1, 3, 400, 500), np.float32)
THETA = np.array([[[0.6, 0.1, 0.05], [-0.1, 0.7, 0.1]]], np.float32)
SIZE = (48, 40)
SMALL_BYTES = 1024


class Watched(Client):
    """A client that notes its messages by gRPC."""

    def __init__(self, target, **settings):
        self.sent = []
        super().__init__(target, **{"local": False, **settings})

    def _new_transports(self, *arguments):
        return noted(super()._new_transports(*arguments), self._note)

    def _note(self, call, _progress):
        request = by_message(call, self._name)
        self.sent.append((call.method.rpartition("/")[2], len(request)))

    def taken(self):
        """What has been sent since this was asked before: methods, and bytes of all."""
        sent, self.sent = self.sent, []
        return [method for method, _ in sent], sum(size for _, size in sent)


@pytest.fixture
def stn(server):
    with Watched(server.target, retry=RetryPolicy(attempts=1)) as client:
        yield client


def warped(u=U, theta=THETA):
    """What the engine makes of it, without a server."""
    transform = stn_engine.Affine(torch.tensor(theta))
    return stn_engine.warp(torch.tensor(u), transform, SIZE).numpy()


def lose(stn, *tensors):
    """The server forgets tensors, and nobody tells the client."""
    assert stn._run(release(*tensors)) == len(tensors)
    stn.taken()


def release(*tensors):
    """The call that releases tensors, of which the client goes on to think that they are there."""
    references = [one for tensor in tensors for one in tensor.held.references.values()]
    return _transfers.release(references, "", CallSettings())


def test_a_resident_image_is_sent_once(stn):
    """In pieces, as it is larger than a message; results are as if it were sent each time."""
    image = stn.upload(LARGE)
    assert (image.shape, image.dtype, image.nbytes) == (LARGE.shape, LARGE.dtype, LARGE.nbytes)
    assert repr(image) == "<ResidentTensor (1, 3, 400, 500) float32>"
    assert stn.taken()[0] == ["Upload"] * 3
    for scale in (1, 0.9):
        v = stn.warp(image, Affine(THETA * np.float32(scale)), SIZE)
        np.testing.assert_array_equal(v, warped(LARGE, THETA * np.float32(scale)))
    methods, sent_bytes = stn.taken()
    assert methods == ["Warp", "Warp"]
    assert sent_bytes < SMALL_BYTES
    np.testing.assert_array_equal(stn.download(image), LARGE)


def test_what_the_caller_changes_is_not_what_was_uploaded(stn):
    """A copy is."""
    array = U.copy()
    image = stn.upload(array)
    array[:] = 0
    np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
    lose(stn, image)
    np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())


def test_a_step_of_a_registration_is_small(stn):
    """Two resident maps and weights: less than a kilobyte, whatever their size."""
    fixed = RNG.random((1, 1, 256, 256), np.float32)
    moving = RNG.random((1, 1, 256, 256), np.float32)
    weights = RNG.random((1, 1, 256, 256), np.float32)
    needs = ["gradient", "gauss_newton"]
    expected = stn.objective(moving, fixed, Affine(THETA), weights=weights, needs=needs)
    held = [stn.upload(one) for one in (moving, fixed, weights)]
    stn.taken()
    found = stn.objective(held[0], held[1], Affine(THETA), weights=held[2], needs=needs)
    assert stn.taken()[1] < SMALL_BYTES
    for one in ("value", "count", "gradient", "gauss_newton"):
        np.testing.assert_array_equal(getattr(found, one), getattr(expected, one))


def test_resident_parameters_and_gradients_are_named(stn):
    """A flow is as large as an image."""
    flow = (RNG.random((1, 48, 40, 2), np.float32) - 0.5) / 10
    grad = RNG.random((1, 3, 48, 40), np.float32)
    expected = stn.warp_gradients(grad, U, Flow(flow))
    held = [stn.upload(one) for one in (grad, U, flow)]
    stn.taken()
    found = stn.warp_gradients(held[0], held[1], Flow(held[2]))
    assert stn.taken()[1] < SMALL_BYTES
    np.testing.assert_array_equal(found.feature_map, expected.feature_map)
    np.testing.assert_array_equal(found.transform, expected.transform)


def test_resident_integers_are_converted_to_parameters(stn):
    """As those that are not resident are; an image of integers is named as it is."""
    shift = stn.upload(np.array([[[1, 0, 0], [0, 1, 1]]]))
    image = stn.upload((U * 255).astype(np.uint8))
    found = stn.warp(image, Affine(shift), SIZE)
    stn.taken()
    expected = stn.warp(image.array, Affine(shift.array), SIZE)
    np.testing.assert_array_equal(found, expected)
    assert stn.warp(image, Affine(THETA), SIZE).dtype == np.uint8
    assert stn.sent[-1][1] < SMALL_BYTES


def test_a_lost_tensor_is_sent_again(stn):
    """Without a word, and named from then on."""
    image = stn.upload(U)
    lose(stn, image)
    np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
    assert stn.taken()[0] == ["Warp", "Upload", "Warp"]
    stn.warp(image, Affine(THETA), SIZE)
    assert stn.taken()[0] == ["Warp"]
    assert stn.stats.failed == 0


class Unlucky(Watched):
    """A client whose tensors are evicted as soon as they are there."""

    def _run(self, call):
        result = super()._run(call)
        if call.method.endswith("/Upload") and not result[1]:
            super()._run(_transfers.release([result[0]], "", CallSettings()))
        return result


def test_a_tensor_that_is_lost_again_and_again_goes_with_its_call(server):
    """A server without room for long serves it all the same."""
    with Unlucky(server.target) as stn:
        image = stn.upload(U)
        stn.taken()
        before_bytes = stn.stats.operands_bytes
        np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
        methods, _ = stn.taken()
        assert methods.count("Upload") == 2
        assert methods.count("Warp") == 4
        # What the warp was answered for: its last attempt.
        assert stn.stats.operands_bytes - before_bytes == 3 * U.nbytes + THETA.nbytes


def test_only_resident_tensors_are_released(stn):
    """An array is none, though calls take both."""
    with pytest.raises(
        InvalidRequestError, match=r"^tensor: expected a tensor as upload .*, got ndarray"
    ):
        stn.release(np.zeros(3))


def test_released_tensors_stand_for_their_arrays(stn):
    """Only once there is something to release."""
    image = stn.upload(U)
    assert stn.release(image) == 1
    assert stn.release(image) == 0
    stn.taken()
    np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
    methods, sent_bytes = stn.taken()
    assert methods == ["Warp"]
    assert sent_bytes > U.nbytes
    with pytest.raises(InvalidRequestError, match=r"^tensor: expected a tensor on the server of"):
        stn.download(image)


def test_tensors_of_another_client_are_sent(stn, server):
    """Its server may be another one."""
    with Client(server.target, local=False) as other:
        image = other.upload(U)
        np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
        assert stn.taken()[1] > U.nbytes
        assert other.release(image) == 1


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((2, 2), np.complex64), "array: expected one of float32.*got complex64"),
        (np.zeros((0, 2), np.float32), r"array: expected at least one element, got shape \(0, 2\)"),
        (
            np.broadcast_to(np.float32(1), (10**8, 10**8)),
            "array: expected an array of which the client can keep a copy: Unable to allocate",
        ),
    ],
    ids=["dtype", "empty", "endless"],
)
def test_what_cannot_stay_is_refused(stn, array, text):
    """By the name of the argument."""
    with pytest.raises(InvalidRequestError, match=text):
        stn.upload(array)


def test_a_pullback_sends_the_gradient_alone(stn):
    """What the warp has sent stays for it, however often it is called."""
    grad = RNG.random((1, 3, *SIZE), np.float32)
    expected = stn.warp_gradients(grad, U, Affine(THETA))
    plain_bytes = stn.taken()[1] + len(_calls.warp(U, Affine(THETA), SIZE, {}).request)
    before_bytes = stn.stats.operands_bytes
    v, pullback = stn.vjp(U, Affine(THETA), SIZE)
    np.testing.assert_array_equal(v, warped())
    found = pullback(grad)
    assert stn.stats.operands_bytes - before_bytes == U.nbytes + grad.nbytes + 2 * THETA.nbytes
    methods, sent_bytes = stn.taken()
    assert methods == ["Warp", "WarpGradients"]
    assert sent_bytes <= 0.55 * plain_bytes
    np.testing.assert_array_equal(found.feature_map, expected.feature_map)
    np.testing.assert_array_equal(found.transform, expected.transform)
    np.testing.assert_array_equal(pullback(grad).transform, expected.transform)


def test_autograd_sends_the_gradient_alone(stn):
    """`backward` names what `forward` has sent."""
    u = torch.tensor(U, requires_grad=True)
    theta = torch.tensor(THETA, requires_grad=True)
    stn_client.torch.warp(stn, u, Affine(theta), SIZE).square().sum().backward()
    methods, sent_bytes = stn.taken()
    assert methods == ["Warp", "WarpGradients"]
    assert sent_bytes < 1.3 * U.nbytes
    local, points = torch.tensor(U, requires_grad=True), torch.tensor(THETA, requires_grad=True)
    stn_engine.warp(local, stn_engine.Affine(points), SIZE).square().sum().backward()
    torch.testing.assert_close(u.grad, local.grad)
    torch.testing.assert_close(theta.grad, points.grad)


def test_the_asynchronous_client_has_them_too(server):
    """Uploads, names, sends again, keeps, downloads and releases."""

    async def main():
        async with AsyncClient(server.target, local=False) as stn:
            image = await stn.upload(LARGE)
            expected = warped(LARGE)
            many = [stn.warp(image, Affine(THETA), SIZE) for _ in range(5)]
            for v in await asyncio.gather(*many):
                np.testing.assert_array_equal(v, expected)
            await stn._run(release(image))
            np.testing.assert_array_equal(await stn.warp(image, Affine(THETA), SIZE), expected)
            np.testing.assert_array_equal(await stn.download(image), LARGE)
            v, pullback = await stn.vjp(U, Affine(THETA), SIZE)
            found = await pullback(np.ones_like(v))
            assert found.feature_map.shape == U.shape
            assert await stn.release(image) == 1

    asyncio.run(main())


def test_many_calls_name_one_tensor(stn):
    """By `map`, which uploads what is missing first."""
    image = stn.upload(U)
    lose(stn, image)
    thetas = [THETA * np.float32(1 - n / 50) for n in range(20)]
    found = list(stn.map(calls.warp(image, Affine(theta), SIZE) for theta in thetas))
    for v, theta in zip(found, thetas, strict=True):
        np.testing.assert_array_equal(v, warped(U, theta))


def test_any_number_is_released(stn):
    """In as many messages as it takes; the same one counts once."""
    few = [stn.upload(np.ones(1, np.float32)) for _ in range(MAX_RELEASED + 1)]
    stn.taken()
    assert stn.release(*few, *few) == MAX_RELEASED + 1
    assert stn.taken()[0] == ["Release", "Release"]
    assert stn.release() == 0


def test_what_was_never_uploaded_is_refused_by_name(stn, server):
    """As an argument of either client, before anything is released."""
    image = stn.upload(U)
    for call in (lambda: stn.download(U), lambda: stn.release(image, U)):
        with pytest.raises(InvalidRequestError, match=r"^tensor: expected a tensor as upload"):
            call()
    assert stn.release(image) == 1

    async def main():
        async with AsyncClient(server.target) as other:
            with pytest.raises(InvalidRequestError, match=r"^tensor: expected a tensor as upload"):
                await other.release(U)

    asyncio.run(main())


def test_tensors_that_do_not_fit_together_come_with_their_calls():
    """More than one caller may leave there: calls succeed, and cost what they bring along."""
    flags = f"--residents-max-caller-bytes={3 * U.nbytes // 2}"
    with LocalServer(flags) as server, Watched(server.target) as stn:
        moving, fixed = stn.upload(U), stn.upload(U[:, :, ::-1].copy())
        expected = stn.objective(moving.array, fixed.array, Affine(THETA))
        found = stn.objective(moving, fixed, Affine(THETA))
        np.testing.assert_array_equal(found.value, expected.value)
        np.testing.assert_array_equal(found.gradient, expected.gradient)
        assert stn.stats.failed == 0


@pytest.mark.parametrize("is_local", [False, True], ids=["grpc", "local"])
def test_evictions_under_load_are_no_matter_of_callers(tmp_path, is_local):
    """Eight tensors in the room of four, all used at once: every result is right."""
    flags = f"--local-dir={tmp_path}", f"--residents-max-caller-bytes={4 * U.nbytes}"

    async def main(target):
        async with AsyncClient(target, local=is_local) as stn:
            images = [await stn.upload(U * np.float32(n / 8)) for n in range(8)]
            calls = [stn.warp(one, Affine(THETA), SIZE) for _ in range(5) for one in images]
            for v, one in zip(await asyncio.gather(*calls), images * 5, strict=True):
                np.testing.assert_array_equal(v, warped(one.array))
            assert stn.stats.failed == 0

    with LocalServer(*flags) as server:
        asyncio.run(main(server.target))


def test_a_server_that_takes_no_tensors_any_more_is_sent_them_with_calls(tmp_path):
    """As after a restart with another configuration."""
    address = f"unix:{tmp_path}/stn.sock"
    with LocalServer(f"--listen={address}") as first, Watched(first.target) as stn:
        image = stn.upload(U)
        first.stop()
        with LocalServer(f"--listen={address}", "--residents-max-bytes=0"):
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())


class Noticed(AsyncClient):
    """A client that says when it uploads."""

    def __init__(self, target):
        super().__init__(target, local=False)
        self.uploads = asyncio.Event()

    async def _run(self, call):
        if call.method.endswith("/Upload"):
            self.uploads.set()
        return await super()._run(call)


def test_a_call_that_is_cancelled_while_it_uploads_leaves_the_others(server):
    """They waited for its upload, and one of them makes its own."""

    async def main():
        async with Noticed(server.target) as stn:
            image = await stn.upload(LARGE)
            await stn._run(release(image))
            image.held.references.clear()
            stn.uploads.clear()
            first, *others = (
                asyncio.ensure_future(stn.warp(image, Affine(THETA), SIZE)) for _ in range(4)
            )
            await stn.uploads.wait()
            first.cancel()
            for v in await asyncio.gather(*others):
                np.testing.assert_array_equal(v, warped(LARGE))
            assert first.cancelled()
            assert not image.held.uploads

    asyncio.run(main())


def test_an_upload_for_a_call_takes_no_more_time_than_the_call_has():
    """Its own, or that of another call for which it waits; nothing else is sent then."""
    left_s = []

    def late(context):
        left_s.append(context.time_remaining())
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    settings = {"local": False, "timeout_s": None}
    with ScriptedService(late) as service, Client(service.target, **settings) as stn:
        image = _transfers.resident_of(U, stn._name)
        with pytest.raises(DeadlineExceededError, match="Deadline Exceeded"):
            stn.warp(image, Affine(THETA), SIZE, timeout_s=60)
        image.held.uploads[""] = Future()
        with pytest.raises(DeadlineExceededError, match="another call's upload of its tensor took"):
            stn.warp(image, Affine(THETA), SIZE, timeout_s=0.01)
        assert [call.method.rpartition("/")[2] for call in service.received] == ["Upload"]
    assert 0 < left_s[0] < 61  # gRPC rounds up


def test_an_upload_that_is_late_is_the_error_of_its_call_alone():
    """By `map` as well: in its place among the results, or raised with its number."""
    late = abort(grpc.StatusCode.DEADLINE_EXCEEDED)
    with ScriptedService(late, late) as service, Client(service.target, local=False) as stn:
        image = _transfers.resident_of(U, stn._name)
        call = calls.warp(image, Affine(THETA), SIZE)
        (error,) = stn.map([call], return_exceptions=True)
        assert isinstance(error, DeadlineExceededError)
        with pytest.raises(DeadlineExceededError, match="as scripted") as raised:
            list(stn.map([call]))
        assert raised.value.__notes__ == ["It is the error of calls[0]."]


class Waiting(AsyncClient):
    """A client that says when a call waits for the upload of another."""

    def __init__(self, target):
        super().__init__(target, local=False)
        self.waits = threading.Event()

    async def _wait_for(self, end, timeout_s):
        self.waits.set()
        await super()._wait_for(end, timeout_s)


def test_what_one_call_is_refused_is_tried_by_no_other():
    """Calls that waited for it bring the tensor along, and asyncio has no error to report."""
    output = serialized(warp_pb2.WarpReply, output=warped())
    reported = []

    async def main(target, waits):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context))
        async with Waiting(target) as stn:
            waits.append(stn.waits)
            image = _transfers.resident_of(U, stn._name)
            many = [stn.warp(image, Affine(THETA), SIZE) for _ in range(2)]
            for v in await asyncio.gather(*many):
                np.testing.assert_array_equal(v, warped())
        gc.collect()

    waits = []

    def refuse(context):
        assert waits[0].wait(PATIENCE_S)
        abort(grpc.StatusCode.INVALID_ARGUMENT)(context)

    with ScriptedService(refuse, reply(output), reply(output)) as service:
        asyncio.run(main(service.target, waits))
        methods = [call.method.rpartition("/")[2] for call in service.received]
    assert methods == ["Upload", "Warp", "Warp"]
    assert reported == []


def test_they_outlive_a_restart_of_the_server(tmp_path):
    """Another process at the same address knows no handle, and is sent the tensor."""
    address = f"unix:{tmp_path}/stn.sock"
    with LocalServer(f"--listen={address}") as first, Watched(first.target) as stn:
        image = stn.upload(U)
        first.stop()
        with LocalServer(f"--listen={address}"):
            np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), warped())
            assert stn.taken()[0].count("Upload") == 2


def test_a_server_without_room_is_sent_tensors_with_their_calls():
    """What cannot stay fails when it is uploaded; what would be kept for gradients does not."""
    with LocalServer("--residents-max-bytes=0") as server, Watched(server.target) as stn:
        with pytest.raises(InvalidRequestError, match="byte_count: expected at most 0 bytes"):
            stn.upload(U)
        v, pullback = stn.vjp(U, Affine(THETA), SIZE)
        assert pullback(np.ones_like(v)).feature_map.shape == U.shape


def test_they_go_by_the_local_transport(tmp_path):
    """Pieces through shared memory; a lost tensor does not end the connection."""
    with LocalServer(f"--local-dir={tmp_path}") as server, Client(server.target) as stn:
        image = stn.upload(LARGE)
        expected = warped(LARGE)
        np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), expected)
        assert stn._run(release(image)) == 1
        np.testing.assert_array_equal(stn.warp(image, Affine(THETA), SIZE), expected)
        np.testing.assert_array_equal(stn.download(image), LARGE)
        stats = stn.stats
        assert stats.local == stats.finished
