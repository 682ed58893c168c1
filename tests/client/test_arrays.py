"""Arrays of other libraries and layouts of one map: what comes back is like what was given."""

import asyncio
import io
import re
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image

from stn_client import (
    Affine,
    AsyncClient,
    Client,
    Flow,
    Homography,
    InvalidRequestError,
    Rotation,
    SamplingGrid,
    ThinPlateSpline,
    tiling,
)
from stn_client import _calls as calls
from stn_client._arrays import as_array
from stn_client.torch import warp as torch_warp
from stn_proto.v1 import warp_pb2
from support.scripted_service import serialized

RNG = np.random.default_rng(7)
U = RNG.random((1, 3, 5, 6), np.float32)
QUARTER = np.array([[[0, -1, 5], [1, 0, 0]]], np.float32)
"""In pixels a quarter turn, as NumPy's rot90: row i, column j shows row j, column 5 - i."""


@pytest.fixture(scope="module")
def client(local_server):
    with Client(local_server.target) as client:
        yield client


class OnlyDLPack:
    """An array of a library that exchanges memory by DLPack, and nothing else."""

    def __init__(self, array):
        self._array = np.array(array)

    def __dlpack__(self, **keywords):
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class OnlyInterface:
    """An array that tells where its memory is, of a library that makes none of others."""

    def __init__(self, array):
        self._array = np.array(array)

    @property
    def __array_interface__(self):
        return self._array.__array_interface__


@pytest.fixture
def exchanging(monkeypatch):
    """The package of a library, which makes its arrays of what others hand out."""
    package = types.ModuleType("exchanging")
    package.from_dlpack = lambda array: OnlyDLPack(np.from_dlpack(array))
    monkeypatch.setitem(sys.modules, "exchanging", package)
    monkeypatch.setattr(OnlyDLPack, "__module__", "exchanging")


FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


INTEGERS = [np.uint8, np.uint16, np.int16]
LABELS = [np.bool_, np.int8, np.int32, np.uint32, np.int64, np.uint64]


@pytest.mark.parametrize("dtype", LABELS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_labels_come_back_bit_for_bit(client, library, dtype):
    """By both transports, large or small; constants of padding become labels."""
    labels = np.frombuffer(RNG.bytes(30 * np.dtype(dtype).itemsize), dtype).reshape(5, 6)
    if dtype is np.bool_:
        labels = RNG.random((5, 6)) < 0.5
    options = {"coordinates": "pixel", "interpolation": "nearest", "padding": "fill", "fill": 1.0}
    with jax.enable_x64(True):
        makes = {"numpy": np.array, "torch": torch.tensor, "jax": jnp.asarray}
        given = makes[library](labels)
        result = client.warp(given, Affine([[0, 1, 0], [-1, 0, 4]]), (6, 6), layout="HW", **options)
        assert type(result) is type(given)
        assert result.dtype == given.dtype
    expected = np.concatenate([np.rot90(labels, -1), np.ones((6, 1), dtype)], 1)
    np.testing.assert_array_equal(np.asarray(result), expected)
    large = np.tile(labels, (200, 100))
    identity = Affine([[1, 0, 0], [0, 1, 0]])
    again = client.warp(large, identity, layout="HW", **options)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, large)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_tensors_come_back_as_tensors(client, library, dtype):
    """Of the same dtype, with the values that NumPy's arrays get."""
    u = (U * 200).astype(dtype)
    if library == "jax":
        with jax.enable_x64(True):
            given = jnp.asarray(u)
            result = client.warp(given, Affine(QUARTER), (6, 5), coordinates="pixel")
        assert isinstance(result, jax.Array)
        assert result.dtype == dtype
        assert result.device == given.device
        values = np.asarray(result)
    else:
        names = {"bfloat16": torch.bfloat16}
        kind = names.get(dtype.__name__) or getattr(torch, dtype.__name__)
        given = torch.tensor(u.astype(np.float32)).to(kind)
        result = client.warp(given, Affine(QUARTER), (6, 5), coordinates="pixel")
        assert type(result) is torch.Tensor
        assert (result.dtype, result.device) == (kind, given.device)
        result.copy_(result.clone())  # it has memory of its own
        values = result.float().numpy()
    expected = np.rot90(u.astype(np.float32), axes=(2, 3))
    np.testing.assert_array_equal(values.astype(np.float32), expected)


def test_gradients_are_like_their_operands(client):
    """The map of torch, the matrix of JAX; grids and their gradients are like the matrix."""
    grad = RNG.random((1, 3, 5, 6), np.float32)
    theta = jnp.asarray([[[0.91, 0.13, 0.061], [-0.19, 0.83, 0.117]]], jnp.float32)
    gradients = client.warp_gradients(torch.tensor(grad), torch.tensor(U), Affine(theta))
    assert type(gradients.feature_map) is torch.Tensor
    assert isinstance(gradients.transform, jax.Array)
    u, matrix = (
        torch.tensor(U, requires_grad=True),
        torch.tensor(np.asarray(theta)).requires_grad_(),
    )
    grid = torch.nn.functional.affine_grid(matrix, [1, 3, 5, 6], align_corners=False)
    torch.nn.functional.grid_sample(u, grid, align_corners=False).backward(torch.tensor(grad))
    torch.testing.assert_close(gradients.feature_map, u.grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients.transform, matrix.grad, rtol=1e-4, atol=1e-4)
    made = client.generate_grid(Affine(theta), (5, 6))
    assert isinstance(made, jax.Array)
    np.testing.assert_allclose(made, grid.detach(), atol=1e-6)
    assert isinstance(
        client.generate_grid_gradients(np.ones((1, 5, 6, 2), np.float32), Affine(theta)), jax.Array
    )


def test_a_pullback_is_like_its_warp(client):
    """Also of a map so large that it is copied to memory that the server sees."""
    u = torch.rand(1, 1, 100, 100)
    output, pullback = client.vjp(u, Affine(torch.eye(2, 3)[None]))
    torch.testing.assert_close(output, u)
    gradients = pullback(torch.ones_like(u))
    torch.testing.assert_close(gradients.feature_map, torch.ones_like(u))
    assert type(gradients.transform) is torch.Tensor


async def _awaited(target, u, theta):
    async with AsyncClient(target) as client:
        output, pullback = await client.vjp(u, Affine(theta), layout="HWC")
        return output, await pullback(output)


def test_async_results_are_like_their_operands(local_server):
    """`AsyncClient` is `Client`, awaited."""
    u = torch.rand(100, 100, 3)
    output, gradients = asyncio.run(_awaited(local_server.target, u, torch.eye(2, 3)))
    torch.testing.assert_close(output, u)
    torch.testing.assert_close(gradients.feature_map, u)
    assert gradients.transform.shape == (2, 3)


@pytest.mark.usefixtures("exchanging")
def test_arrays_that_only_exchange_memory_come_back_by_their_package(client):
    """By its function `from_dlpack`, in memory of their own."""
    result = client.warp(OnlyDLPack(U), Affine(np.eye(2, 3)[None]))
    assert type(result) is OnlyDLPack
    np.testing.assert_array_equal(np.from_dlpack(result), U)


@pytest.mark.parametrize("kind", [OnlyDLPack, OnlyInterface, list, memoryview])
def test_arrays_without_a_way_back_come_back_as_arrays_of_numpy(client, kind):
    """All that has values is taken."""
    given = U.tolist() if kind is list else kind(U)
    result = client.warp(given, Affine(np.eye(2, 3)[None]))
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, U)


def test_arrays_of_cupy_come_and_go_by_their_own_ways(monkeypatch):
    """As its documentation says: `get`, `asarray`, and its device as a context."""
    entered = []

    class Device:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_exception):
            entered.append("out")

    class OnDevice:
        device = Device()

        def __init__(self, array):
            self.array = array

        def get(self):
            return self.array

        def __array__(self, *_arguments, **_keywords):
            raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    OnDevice.__module__, OnDevice.__name__ = "cupy", "ndarray"
    package = types.ModuleType("cupy")
    package.asarray = OnDevice
    monkeypatch.setitem(sys.modules, "cupy", package)
    call = calls.warp(OnDevice(U), Affine(QUARTER), None, {"coordinates": "pixel"})
    assert call.payloads[0] == memoryview(U).cast("B")
    result = call.parse(serialized(warp_pb2.WarpReply, output=U + 1), ())
    assert type(result) is OnDevice
    np.testing.assert_array_equal(result.array, U + 1)
    assert entered == ["in", "out"]


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (5, 6), np.uint8),
        ("F", (5, 6), np.float32),
        ("I;16", (5, 6), np.dtype("<u2")),
        ("I;16B", (5, 6), np.dtype(">u2")),  # as of TIFF files that begin with MM
        ("I;16N", (5, 6), np.uint16),
        ("LA", (5, 6, 2), np.uint8),
        ("RGB", (5, 6, 3), np.uint8),
        ("RGBA", (5, 6, 4), np.uint8),
        ("CMYK", (5, 6, 4), np.uint8),
        ("HSV", (5, 6, 3), np.uint8),
    ],
)
def test_images_come_back_as_images(client, mode, shape, dtype):
    """A quarter turn is NumPy's, with what the image says besides its pixels."""
    deepest = 65535 if np.dtype(dtype).itemsize == 2 else 255
    pixels = (RNG.random(shape) * deepest).astype(dtype)
    image = Image.frombytes(mode, (6, 5), pixels.tobytes())
    image.info["icc_profile"] = b"colours"
    turn = Affine([[0, 1, 0], [-1, 0, 4]])  # one map needs no batch axis
    result = client.warp(image, turn, (6, 5), coordinates="pixel")
    assert isinstance(result, Image.Image)
    assert (result.mode, result.size) == (mode, (5, 6))
    assert result.info == {"icc_profile": b"colours"}
    expected = np.rot90(np.asarray(image), -1)
    np.testing.assert_array_equal(np.asarray(result), expected)
    tiled = tiling.warp(client, image, turn, (6, 5), coordinates="pixel")
    np.testing.assert_array_equal(np.asarray(tiled), expected)


SHAPES = {
    "HW": ((5, 6), (0, 0)),
    "CHW": ((3, 5, 6), (0,)),
    "HWC": ((5, 6, 3), (0,)),
}


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("alone", [False, True], ids=["(1, 2, 3)", "(2, 3)"])
def test_one_map_comes_back_in_its_own_shape(client, layout, alone):
    """Output and gradients have its axes; those of parameters are as parameters were given."""
    shape, index = SHAPES[layout]
    u, grad = RNG.random(shape, np.float32), RNG.random(shape, np.float32)
    theta = np.array([[[0.8, 0.2, 0.1], [-0.1, 0.9, 0.2]]], np.float32)
    of = {"HW": "NCHW", "CHW": "NCHW", "HWC": "NHWC"}[layout]
    u_batch = u[(None,) * len(index)]
    grad_batch = grad[(None,) * len(index)]
    transform = Affine(theta[0] if alone else theta)
    output = client.warp(u, transform, layout=layout, padding="border")
    expected = client.warp(u_batch, Affine(theta), layout=of, padding="border")
    np.testing.assert_array_equal(output, expected[index])
    gradients = client.warp_gradients(grad, u, transform, layout=layout)
    of_batch = client.warp_gradients(grad_batch, u_batch, Affine(theta), layout=of)
    np.testing.assert_array_equal(gradients.feature_map, of_batch.feature_map[index])
    np.testing.assert_array_equal(
        gradients.transform, of_batch.transform[0] if alone else of_batch.transform
    )
    tiled = tiling.warp(client, u, transform, layout=layout, padding="border")
    np.testing.assert_array_equal(tiled, output)


def test_volumes_have_the_same_layouts(client):
    """(D, H, W), and parameters of one volume."""
    volume = RNG.random((4, 5, 6), np.float32)
    np.testing.assert_array_equal(client.warp(volume, Affine(np.eye(3, 4)), layout="HW"), volume)
    flow = np.zeros((4, 5, 6, 3), np.float32)
    np.testing.assert_allclose(client.warp(volume, Flow(flow), layout="HW"), volume, atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        Homography(np.eye(3)),
        Rotation(np.zeros(1)),
        Flow(np.zeros((5, 6, 2), np.float32)),
        SamplingGrid(np.zeros((5, 6, 2), np.float32)),
        ThinPlateSpline(np.eye(3, 2), control_points=[(1, 0), (0, 1), (0, 0)]),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_parameters_of_one_map_need_no_batch_axis(client, transform):
    """Of every kind; gradients come back in their shape."""
    u = np.ones((5, 6), np.float32)
    gradients = client.warp_gradients(u, u, transform, layout="HW")
    assert gradients.transform.shape == transform.parameters.shape


def test_layouts_of_one_map_are_those_of_torch_modules(client):
    """`stn_client.torch.warp` knows the shape of its output beforehand, too."""
    u = torch.rand(5, 6, 3, requires_grad=True)
    theta = torch.eye(2, 3).requires_grad_()
    output = torch_warp(client, u, Affine(theta), (4, 3), layout="HWC")
    assert output.shape == (4, 3, 3)
    output.sum().backward()
    assert (u.grad.shape, theta.grad.shape) == (u.shape, theta.shape)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert torch_warp(
            client, torch.rand(3, 5, 6), Affine(theta), (4, 3), layout="CHW"
        ).shape == (3, 4, 3)
        assert torch_warp(client, torch.rand(5, 6), Affine(theta), (4, 3), layout="HW").shape == (
            4,
            3,
        )


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, jnp.asarray])
@pytest.mark.parametrize("layout", ["NCHW", "HW"])
def test_objectives_are_like_their_operands(client, library, layout):
    """Values of the type of the moving map, gradients as the parameters; by hand and by torch."""
    u, v = RNG.random((2, 5, 6), np.float32)
    alone = layout == "HW"
    moving, fixed = (library(one if alone else one[None, None]) for one in (u, v))
    theta = np.eye(2, 3, dtype=np.float32)
    transform = Affine(library(theta if alone else theta[None]))
    found = client.objective(
        moving, fixed, transform, domain="all", layout=layout, needs=["gradient", "gauss_newton"]
    )
    kind = type(library(u))
    assert all(type(one) is kind for one in (found.value, found.count, found.gauss_newton))
    np.testing.assert_allclose(np.asarray(found.value), [((u - v) ** 2).mean()], rtol=1e-5)
    assert (type(found.gradient), found.gradient.shape) == (kind, transform.theta.shape)
    assert found.gauss_newton.shape == (1, 6, 6)


def pillow(mode):
    return Image.new(mode, (6, 5))


REFUSED = {
    "masked values": (
        lambda: calls.warp(np.ma.masked_greater(U, 0.5), Affine(QUARTER), None, {}),
        "feature_map: expected values everywhere, got masked ones. Fill them: filled(...).",
    ),
    "recorded gradients": (
        lambda: calls.warp(torch.rand(1, 1, 2, 2, requires_grad=True), Affine(QUARTER), None, {}),
        (
            "feature_map: expected a tensor whose gradients are not recorded, got one with "
            "requires_grad. Use stn_client.torch.warp, which is differentiable, or tensor.detach()."
        ),
    ),
    "recorded gradients of parameters": (
        lambda: calls.warp(U, Affine(torch.eye(2, 3)[None].requires_grad_()), None, {}),
        (
            "theta: expected a tensor whose gradients are not recorded, got one with "
            "requires_grad. Use stn_client.torch.warp, which is differentiable, or tensor.detach()."
        ),
    ),
    "a palette": (
        lambda: calls.warp(pillow("P"), Affine(QUARTER), None, {}),
        (
            "feature_map: expected an image of mode L, F, I;16, I;16B, I;16L, I;16N, I, RGB, RGBA, "
            "CMYK, YCbCr, LAB, HSV, LA, RGBX, RGBa, got P. Convert it: image.convert(...)."
        ),
    ),
    "another layout than that of an image": (
        lambda: calls.warp(pillow("RGB"), Affine(QUARTER), None, {"layout": "NCHW"}),
        "layout: expected 'HWC' or none for an image of this mode, got 'NCHW'.",
    ),
    "too few axes": (
        lambda: calls.warp(U[0, 0, 0], Affine(QUARTER), None, {"layout": "HW"}),
        "feature_map: expected ([D,] H, W) beside layout 'HW', got shape (6,).",
    ),
    "too many axes": (
        lambda: calls.warp(U[None], Affine(QUARTER), None, {"layout": "HWC"}),
        "feature_map: expected ([D,] H, W, C) beside layout 'HWC', got shape (1, 1, 3, 5, 6).",
    ),
    "many transforms of one map": (
        lambda: calls.warp(U[0], Affine(np.repeat(QUARTER, 8, 0)), None, {"layout": "CHW"}),
        (
            "theta: expected those of one map (N = 1) beside layout 'CHW', got shape (8, 2, 3). "
            'Give maps a batch axis: "NCHW" or "NHWC".'
        ),
    ),
}


class Broken:
    """An array of a library whose values cannot be read."""

    def __array__(self, *_arguments, **_keywords):
        raise KeyError("chunk 3")


class Placeless:
    """An array of a library that has the standard's namespace, and not the rest of it."""

    def __array_namespace__(self, **_keywords):
        return np

    def __array__(self, *_arguments, **_keywords):
        return U


def test_results_of_arrays_without_a_device_are_arrays_of_numpy(client):
    """There is nothing to say where they should be."""
    found = client.warp(Placeless(), Affine(np.eye(2, 3)[None]))
    np.testing.assert_array_equal(found, U, strict=True)


def test_an_image_of_half_a_file_is_refused():
    """Pillow finds that its file ends too soon when pixels are asked for."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "JPEG")
    half = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    expected = r"^feature_map: expected an array, got JpegImageFile: .*truncated"
    with pytest.raises(InvalidRequestError, match=expected):
        calls.warp(half, Affine(QUARTER), None, {})


def endless(*shape, dtype=np.float32):
    """A view of one element that no memory could hold a copy of."""
    return np.broadcast_to(dtype(1), shape)


_MOST = "expected at most 2147483647 bytes, as no message holds more"

REFUSED |= {
    "an array that cannot be read": (
        lambda: calls.warp(U, Affine(Broken()), None, {}),
        "theta: expected an array, got Broken: 'chunk 3'",
    ),
    "a map beyond all memory": (
        lambda: calls.warp(endless(1, 1, 2**31, 2**31, dtype=np.uint8), Affine(QUARTER), None, {}),
        (
            f"feature_map: {_MOST}, got {2**62}, shape (1, 1, {2**31}, {2**31}) of uint8. "
            "Send it in parts."
        ),
    ),
    "gradients beyond all memory": (
        lambda: calls.warp_gradients(
            endless(1, 1, 10**6, 10**6), U, Affine(QUARTER), ["transform"], {}
        ),
        (
            f"grad_output: {_MOST}, got {4 * 10**12}, shape (1, 1, 1000000, 1000000) of float32. "
            "Send it in parts."
        ),
    ),
    "points beyond all memory": (
        lambda: calls.warp(U, SamplingGrid(endless(1, 10**6, 10**6, 2)), None, {}),
        (
            f"grid: {_MOST}, got {8 * 10**12}, shape (1, 1000000, 1000000, 2) of float32. "
            "Send it in parts."
        ),
    ),
    "parameters that are cast beyond all memory": (
        lambda: calls.warp(U, Affine(endless(10**12, 2, 3, dtype=np.int32)), None, {}),
        (
            f"theta: {_MOST}, got {24 * 10**12}, shape (1000000000000, 2, 3) of int32. "
            "Send it in parts."
        ),
    ),
    "parameters wider than the wire": (
        lambda: calls.warp(U, Affine(QUARTER.astype(np.longdouble)), None, {}),
        f"theta: expected float32 or float64, got {np.dtype(np.longdouble)}. Cast it.",
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_the_words_of_the_caller(build, message):
    """Before anything is sent."""
    with pytest.raises(InvalidRequestError, match=f"^{re.escape(message)}$"):
        build()


def test_tensors_without_memory_are_refused():
    """In the words of the caller, and then of torch."""
    with pytest.raises(InvalidRequestError, match=r"^feature_map: expected a tensor with values"):
        calls.warp(torch.eye(3).to_sparse(), Affine(QUARTER), None, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("view", [lambda u: u, lambda u: u[..., 1:], lambda u: u.mT])
def test_tensors_whose_storage_was_cut_are_refused(view, left, dtype):
    """NumPy would read beyond its end, whatever lies there; large ones would end the process."""
    tensor = view(torch.rand(1, 1, 1024, 1024).to(dtype))
    storage = tensor.untyped_storage()
    storage.resize_(int(left * storage.nbytes()))
    for field in "feature_map", "theta":
        with pytest.raises(
            InvalidRequestError, match=f"^{field}: .* storage that was freed or cut"
        ):
            as_array(field, tensor)


def test_parts_of_tensors_and_zeros_without_memory_are_read():
    """What lies behind the last value need not be there; autograd makes zeros that lie nowhere."""
    tensor = torch.rand(4, 8)
    part, expected = tensor[:2, :3], tensor[:2, :3].tolist()
    tensor.untyped_storage().resize_((8 + 3) * 4)
    assert as_array("theta", part).tolist() == expected
    zeros = torch._efficientzerotensor((1, 2, 3))
    assert as_array("theta", zeros).tolist() == [[[0.0] * 3] * 2]


def test_arrays_under_a_trace_are_refused():
    """They have no values yet."""
    with pytest.raises(
        InvalidRequestError,
        match=r"^feature_map: expected an array .*JAX traces\. Use stn_client\.jax",
    ):
        jax.jit(lambda u: calls.warp(u, Affine(QUARTER), None, {}))(jnp.asarray(U))
