"""`stn_client.testing`: what the tests of a user's program get."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest

from stn_client import (
    Affine,
    Client,
    Homography,
    InvalidRequestError,
    OverloadedError,
    SamplingGrid,
    TransportError,
    tiling,
)
from stn_client.testing import StubAsyncClient, StubCall, StubClient
from stn_client.torch import warp as torch_warp

U = np.arange(24, dtype=np.float16).reshape(1, 2, 3, 4)
THETA = np.eye(2, 3)[None].repeat(5, 0)
G = np.ones((5, 2, 3, 4), np.float16)

USERS_TESTS = """
from stn_client import Affine
import numpy as np

U = np.arange(6.0).reshape(1, 1, 2, 3)


def test_program(stn_client):
    assert (stn_client.warp(U, Affine(np.eye(2, 3)[None])) == U).all()
    assert stn_client.stats.finished == 1


def test_program_again(stn_client, stn_server):
    assert stn_client.stats.finished == 0
    assert stn_client.target == stn_server.target
    assert stn_server.process.poll() is None
"""


@pytest.mark.slow
def test_fixtures_are_a_server_and_a_client_of_their_own(tmp_path):
    """One line in a conftest.py is enough, in a folder that knows nothing else of this project."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["stn_client.testing.fixtures"]\n')
    (tmp_path / "test_program.py").write_text(USERS_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in ran.stdout, ran.stdout


SHAPES = {
    "warp": (lambda stn: stn.warp(U, Affine(THETA), (7, 8)), (5, 2, 7, 8), np.float16),
    "warp of one image": (
        lambda stn: stn.warp(U[0, 0], Affine(THETA[0]), (7, 8), layout="HW"),
        (7, 8),
        np.float16,
    ),
    "warp with channels last": (
        lambda stn: stn.warp(U, Affine(THETA), (7, 8), layout="NHWC"),
        (5, 7, 8, 4),
        np.float16,
    ),
    "warp by a grid": (
        lambda stn: stn.warp(U, SamplingGrid(np.zeros((3, 7, 8, 2)))),
        (3, 2, 7, 8),
        np.float16,
    ),
    "gradient by the map": (
        lambda stn: stn.warp_gradients(G, U, Affine(THETA), needs=["feature_map"]).feature_map,
        U.shape,
        np.float16,
    ),
    "gradient by the transform": (
        lambda stn: stn.vjp(U, Affine(THETA))[1](G).transform,
        THETA.shape,
        np.float64,
    ),
    "grid": (
        lambda stn: stn.generate_grid(Homography(np.eye(3, dtype=np.float32)[None]), (7, 8)),
        (1, 7, 8, 2),
        np.float32,
    ),
    "gradient of a grid": (
        lambda stn: stn.generate_grid_gradients(np.zeros((5, 7, 8, 2)), Affine(THETA)),
        THETA.shape,
        np.float64,
    ),
}


@pytest.mark.parametrize(("call", "shape", "dtype"), SHAPES.values(), ids=SHAPES)
def test_stub_results_have_the_shape_and_dtype_of_a_servers(local_server, call, shape, dtype):
    """As written here, and as a server says."""
    with StubClient() as stub:
        result = call(stub)
        assert (result.shape, result.dtype) == (shape, dtype)
        assert not result.any()
    with Client(local_server.target) as client:
        served = call(client)
    assert (served.shape, served.dtype) == (shape, dtype)


def test_stub_answers_as_it_is_told():
    """By a function of the call, whose values are broadcast."""
    with StubClient(lambda call: call.arrays["feature_map"] + 1) as stub:
        np.testing.assert_array_equal(stub.warp(U, Affine(THETA)), (U + 1).repeat(5, 0))
    with StubClient(lambda _call: (2, [0, 0, 3])) as stub:
        gradients = stub.warp_gradients(U, U, Affine(THETA))
        np.testing.assert_array_equal(gradients.feature_map, np.full_like(U, 2))
        np.testing.assert_array_equal(gradients.transform, np.tile([0.0, 0, 3], (5, 2, 1)))


def test_stub_notes_what_it_was_asked():
    """Arrays by their names, and what travels beside them."""
    with StubClient() as stub:
        stub.warp(U, Affine(THETA), (7, 8), request_id="one", metadata={"tenant": "blue"})
        stub.warp_gradients(U, U, Affine(THETA), needs=["transform"])
        assert stub.is_ready()
        warp, gradients = stub.calls
        assert stub.stats.finished == 3
    assert isinstance(warp, StubCall)
    assert (warp.method, warp.transform, warp.results) == ("Warp", "affine", ((5, 2, 7, 8),))
    assert (warp.request_id, warp.metadata) == ("one", {"tenant": "blue"})
    np.testing.assert_array_equal(warp.arrays["feature_map"], U)
    np.testing.assert_array_equal(warp.arrays["theta"], THETA)
    assert (gradients.method, gradients.results) == ("WarpGradients", (THETA.shape,))
    assert set(gradients.arrays) == {"grad_output", "feature_map", "theta"}


def test_stub_raises_as_it_is_told():
    """First those of the list, then what the function returns; each is counted as a failure."""
    full, lost = OverloadedError("full", retry_after_s=0.5), TransportError("lost")
    with StubClient(lambda _call: lost, errors=[full]) as stub:
        with pytest.raises(OverloadedError, match=r"^full$") as caught:
            stub.warp(U, Affine(THETA))
        assert caught.value is full
        with pytest.raises(TransportError, match=r"^lost$"):
            stub.warp(U, Affine(THETA))
        assert (stub.stats.failed, len(stub.calls)) == (2, 2)


def test_stub_knows_objectives():
    """In the shapes that a server gives them."""
    with StubClient() as stub:
        found = stub.objective(U, U, Affine(THETA), needs=["gradient", "gauss_newton"])
        assert (found.value.shape, found.count.shape) == ((5,), (5,))
        assert (found.gradient.shape, found.gradient.dtype) == (THETA.shape, np.float64)
        assert found.gauss_newton.shape == (5, 6, 6)
        assert stub.objective(U, U, Affine(THETA), needs=[]).gradient is None
        assert set(stub.calls[0].arrays) == {"moving", "fixed", "theta"}


def test_stub_refuses_what_a_client_refuses():
    """Wrong arguments, values that do not fit, and calls after its end."""
    stub = StubClient(lambda _call: [1, 2, 3])
    with pytest.raises(InvalidRequestError, match="padding: expected one of"):
        stub.warp(U, Affine(THETA), padding="mirror")
    assert stub.calls == []
    broadcast = r"answer: expected values that can be broadcast to \(5, 2, 3, 4\), got shape \(3,\)"
    with pytest.raises(InvalidRequestError, match=broadcast):
        stub.warp(U, Affine(THETA))
    stub.close()
    with pytest.raises(TransportError, match="expected an open connection"):
        stub.warp(U, Affine(THETA))


def test_stub_stands_in_for_a_client_elsewhere():
    """In `stn_client.torch` and `stn_client.tiling`."""
    import torch  # noqa: PLC0415

    with StubClient(lambda call: call.arrays["feature_map"]) as stub:
        u = torch.rand(1, 1, 2, 3)
        torch.testing.assert_close(torch_warp(stub, u, Affine(torch.eye(2, 3)[None])), u)
        np.testing.assert_array_equal(tiling.warp(stub, U, Affine(THETA[:1])), U)


async def _asked():
    async with StubAsyncClient(lambda call: call.arrays["feature_map"]) as stub:
        return await stub.warp(U, Affine(THETA)), await stub.is_ready(), stub.calls


def test_async_stub_is_the_same():
    """Awaited."""
    result, ready, calls = asyncio.run(_asked())
    np.testing.assert_array_equal(result, U.repeat(5, 0))
    assert ready
    assert [call.method for call in calls] == ["Warp"]
