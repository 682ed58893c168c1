"""Large calls of `map` that differ in values alone go as one, and each is a call of its own."""

import asyncio

import grpc
import numpy as np
import pytest
import torch

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
    calls,
)
from stn_client._mapping import chunks
from stn_client._stacking import MAX_STACK_BYTES
from stn_client.testing import StubAsyncClient, StubClient
from support.fakes import FakeRunner, feature_maps
from support.harness import serving
from support.scripted_service import ScriptedService, abort

COUNT = 9
RNG = np.random.default_rng(0)
THETAS = np.eye(2, 3) + RNG.uniform(-0.2, 0.2, (COUNT, 1, 2, 3))
IMAGES = RNG.integers(0, 256, (COUNT, 90, 80, 3), np.uint8)
MAPS = RNG.random((COUNT, 1, 2, 70, 80), np.float32)
NAN = Affine(np.full((1, 2, 3), np.nan))


def images():
    """One map each, without a batch axis."""
    return [
        calls.warp(image, Affine(theta[0]), layout="HWC", padding="border")
        for image, theta in zip(IMAGES, THETAS, strict=True)
    ]


def gradients(**options):
    """Calls with two results each."""
    return [
        calls.warp_gradients(u, u, Affine(theta), **options)
        for u, theta in zip(MAPS, THETAS, strict=True)
    ]


def by_map(stn, given, **options):
    return list(stn.map(given, **options))


async def by_map_async(target, given, **settings):
    async with AsyncClient(target, **settings) as stn:
        return [one async for one in stn.map(given)], stn.stats


def numbers(results):
    """All arrays of results."""
    for result in results:
        found = (
            (result,) if isinstance(result, np.ndarray) else (result.feature_map, result.transform)
        )
        yield from (array for array in found if array is not None)


@pytest.mark.parametrize(
    "given",
    [images, gradients, lambda: gradients(needs=["transform"])],
    ids=["images", "gradients", "one gradient"],
)
@pytest.mark.parametrize("local", [True, False])
def test_results_are_those_of_single_calls(local_server, given, local):
    """Bit for bit, by both transports and both clients; statistics count every call."""
    with Client(local_server.target, local=local) as stn:
        alone = [stn._run(call) for call in given()]
        before = stn.stats
        together = by_map(stn, given())
        assert stn.stats.finished - before.finished == COUNT
        assert stn.stats.operands_bytes == 2 * before.operands_bytes
        assert stn.stats.results_bytes == 2 * before.results_bytes
        assert stn.stats.local == (2 * COUNT if local else 0)
    awaited, stats = asyncio.run(by_map_async(local_server.target, given(), local=local))
    assert (stats.finished, stats.failed, stats.pending) == (COUNT, 0, 0)
    expected = list(numbers(alone))
    for results in (together, awaited):
        found = list(numbers(results))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            assert not one.flags.writeable
            np.testing.assert_array_equal(one, other)


def test_results_are_of_the_type_that_was_given(local_server):
    """Also where they are views of the result of all, and would be kept as they are."""
    u = torch.from_numpy(MAPS)
    given = [
        calls.warp(one, Affine(torch.from_numpy(theta)))
        for one, theta in zip(u, THETAS, strict=True)
    ]
    with Client(local_server.target) as stn:
        together = by_map(stn, given)
        alone = [stn.warp(one, Affine(theta)) for one, theta in zip(MAPS, THETAS, strict=True)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


def methods_of(service):
    """Warps that the server has answered."""
    return service.value("stn_requests_total", method="Warp", code="OK")


@pytest.mark.parametrize(("packing", "messages"), [(True, 1), (False, COUNT)])
def test_they_are_one_call_of_the_server(packing, messages):
    """Unless calls are not to go together."""

    async def main():
        async with serving(FakeRunner(feature_maps)) as service:
            results, _ = await by_map_async(service.target, images(), local=False, packing=packing)
            return results, methods_of(service)

    results, answered = asyncio.run(main())
    assert answered == messages
    np.testing.assert_array_equal(np.stack(results), IMAGES)


def test_a_call_that_is_refused_fails_alone(local_server):
    """It has an error of its own in its place, and its neighbours their results."""
    u = MAPS[0]
    good = calls.warp(u, Affine(np.eye(2, 3)[None]))
    given = [good, calls.warp(u, NAN), good]

    async def awaited():
        async with AsyncClient(local_server.target) as stn:
            return [one async for one in stn.map(given, return_exceptions=True)], stn.stats

    with Client(local_server.target) as stn:
        for results, stats in (
            (by_map(stn, given, return_exceptions=True), stn.stats),
            asyncio.run(awaited()),
        ):
            assert [type(one) for one in results] == [np.ndarray, InvalidRequestError, np.ndarray]
            np.testing.assert_array_equal(results[2], u)
            assert (stats.finished, stats.failed, stats.pending) == (2, 1, 0)
        with pytest.raises(InvalidRequestError, match="expected finite numbers"):
            by_map(stn, given)


def test_a_server_that_is_away_is_the_error_of_all():
    """Nothing would be gained by asking for each again."""
    with ScriptedService(abort(grpc.StatusCode.UNAVAILABLE)) as service:
        once = RetryPolicy(attempts=1)
        with Client(service.target, local=False, retry=once) as stn:
            results = by_map(stn, images(), return_exceptions=True)
            assert (stn.stats.finished, stn.stats.failed) == (0, COUNT)
        assert len(service.received) == 1
    assert [type(one) for one in results] == [UnavailableError] * COUNT


def test_what_differs_in_more_than_values_goes_alone():
    """So do maps that many parameters share, and calls of which two would be too large."""
    eye = Affine(np.eye(2, 3)[None])
    large = np.zeros((1, 1, 64, 64), np.float32)
    one = calls.warp(large, eye)
    lengths = [
        len(chunk)
        for chunk in chunks(
            [
                *[one] * 3,
                calls.warp(large[:, :, 1:], eye),
                *[calls.warp(large, eye, padding="border")] * 2,
                calls.warp(large, eye, timeout_s=3),
                calls.warp(large, eye, timeout_s=3),
                *[calls.warp(large, Affine(THETAS[:, 0]))] * 2,
                *[calls.warp(np.zeros((1, 1, 1024, 1024), np.float32), eye)] * 2,
                *[one] * (MAX_STACK_BYTES // large.nbytes + 1),
            ],
            stacks=True,
        )
    ]
    most = MAX_STACK_BYTES // (large.nbytes + 48)
    assert lengths == [3, 1, 2, 1, 1, 1, 1, 1, 1, most, 257 - most]
    assert [len(chunk) for chunk in chunks([one] * 3, stacks=False)] == [1, 1, 1]


def test_tensors_that_stay_on_the_server_are_not_sent_again(local_server):
    """Warps of one go alone, among others that go together."""
    with Client(local_server.target) as stn:
        u = stn.upload(MAPS[0])
        made = [
            calls.warp(MAPS[0] if number % 4 else u, Affine(theta))
            for number, theta in enumerate(THETAS)
        ]
        assert [len(chunk) for chunk in chunks(made, stacks=True)] == [1, 3, 1, 3, 1]
        before = stn.stats.operands_bytes
        results = by_map(stn, made)
        assert stn.stats.operands_bytes - before < 7 * MAPS[0].nbytes
        for result, theta in zip(results, THETAS, strict=True):
            np.testing.assert_array_equal(result, stn.warp(MAPS[0], Affine(theta)))


async def _mapped(stub, given):
    async with stub:
        return [one async for one in stub.map(given, return_exceptions=True)]


def test_stubs_are_asked_for_every_call():
    """Of `map`, too, small ones and large ones."""
    small = calls.warp(np.ones((1, 1, 2, 2), np.float32), Affine(np.eye(2, 3)[None]))
    given = [*images(), small]
    errors = [OverloadedError("full", reason="FULL")]
    for stub in (
        StubClient(lambda call: call.arrays["feature_map"], errors=errors),
        StubAsyncClient(lambda call: call.arrays["feature_map"], errors=errors),
    ):
        if isinstance(stub, StubClient):
            results = by_map(stub, given, return_exceptions=True)
        else:
            results = asyncio.run(_mapped(stub, given))
        assert isinstance(results[0], OverloadedError)
        np.testing.assert_array_equal(np.stack(results[1:COUNT]), IMAGES[1:])
        assert len(stub.calls) == COUNT + 1
