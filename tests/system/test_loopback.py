"""The service gives what the engine gives, over every road."""

import asyncio

import grpc
import numpy as np
import pytest
import torch

import stn_engine
from stn_client import (
    Affine,
    AsyncClient,
    Attention,
    Client,
    Flow,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
)
from stn_client.local import LocalServer
from stn_proto.v1 import server_info_pb2, service_pb2_grpc
from support.bad_requests import CONTROL_POINTS, ramp, theta, warp_request

OPTIONS = [
    {},
    {"padding": "border", "align_corners": True},
    {"padding": "fill", "fill": [1.0, 2.0, 3.0], "coordinates": "pixel"},
    {"interpolation": "nearest", "padding": "reflection"},
    {"subgradient": "zero"},
    {"interpolation": "bicubic", "padding": "border"},
]
SIZE = (6, 7)


@pytest.fixture(params=["tcp", "unix"])
def stn(request, server):
    """A client over each road."""
    by_road = {"tcp": server.targets[0], "unix": server.targets[1]}
    assert by_road["unix"].startswith("unix:")
    with Client(by_road[request.param]) as connected:
        yield connected


def local(transform):
    """The engine's transform for a client's."""
    kind = getattr(stn_engine, type(transform).__name__)
    settings = {}
    if isinstance(transform, ThinPlateSpline):
        settings["control_points"] = transform.control_points
        settings["regularization"] = transform.regularization
    return kind(torch.from_numpy(transform.parameters), **settings)


def assert_same(result, tensor):
    """Bit for bit, in type and shape as well."""
    expected = tensor.numpy()
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert result.tobytes() == expected.tobytes()


POINTS = ramp(2, *SIZE, 2) / 200 - 0.5
PARAMETRIC = [
    Affine(theta()),
    Homography(np.array([[[0.9, 0.1, 0.2], [-0.2, 1.1, 0.1], [0.05, -0.1, 1.2]]], np.float32)),
    Flow(0.2 * POINTS),
    Attention(np.array([[0.8, 0.1, -0.2], [1.2, 0.0, 0.3]], np.float32)),
    Similarity(np.array([[0.8, 0.4, 0.1, -0.2]], np.float32)),
    Translation(np.array([[0.25, -0.5]], np.float32)),
    Rotation(np.array([[0.3]], np.float32)),
    ThinPlateSpline(
        np.array(CONTROL_POINTS, np.float32) * 0.9 + ramp(2, 5, 2) / 60,
        control_points=CONTROL_POINTS,
    ),
    ThinPlateSpline(
        np.array([CONTROL_POINTS], np.float32)[..., ::-1].copy(),
        control_points=np.array(CONTROL_POINTS),
        regularization=0.1,
    ),
]


DEEP = (2, 6, 7)
OFFSETS = ramp(2, *DEEP, 3) / 400 - 0.3
OF_VOLUMES = [
    Affine(
        np.array([[[0.9, 0.1, 0.1, 0.2], [-0.2, 1.1, 0.0, 0.1], [0.1, 0.2, 0.8, 0.0]]], np.float32)
    ),
    Flow(OFFSETS),
    SamplingGrid(OFFSETS),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "transform", [*PARAMETRIC, SamplingGrid(POINTS)], ids=lambda transform: type(transform).__name__
)
def test_a_remote_warp_is_the_local_one(stn, transform, options):
    """Output and both gradients, for each transform and every kind of option."""
    feature_map, grad_output = ramp(2, 3, 4, 5), ramp(2, 3, *SIZE)
    spec = stn_engine.WarpSpec(**options)
    warp = stn_engine.WarpProblem(torch.from_numpy(feature_map), local(transform), SIZE, spec)
    (output,) = stn_engine.warp_ragged([warp])
    assert_same(stn.warp(feature_map, transform, SIZE, **options), output)
    problem = stn_engine.WarpGradientsProblem(warp, torch.from_numpy(grad_output))
    (expected,) = stn_engine.warp_gradients_ragged([problem])
    gradients = stn.warp_gradients(grad_output, feature_map, transform, **options)
    assert_same(gradients.feature_map, expected.feature_map)
    assert_same(gradients.transform, expected.transform)


@pytest.mark.parametrize("options", [*OPTIONS, {"layout": "NHWC"}], ids=str)
@pytest.mark.parametrize("transform", OF_VOLUMES, ids=lambda transform: type(transform).__name__)
def test_a_remote_warp_of_volumes_is_the_local_one(stn, transform, options):
    """Output and both gradients, in either layout."""
    last = "layout" in options
    feature_map, grad_output = ramp(2, 3, 3, 4, 5), ramp(2, 3, *DEEP)
    spec = stn_engine.WarpSpec(**({} if last else options))
    warp = stn_engine.WarpProblem(torch.from_numpy(feature_map), local(transform), DEEP, spec)
    (output,) = stn_engine.warp_ragged([warp])
    problem = stn_engine.WarpGradientsProblem(warp, torch.from_numpy(grad_output))
    (expected,) = stn_engine.warp_gradients_ragged([problem])

    def sent(array):
        return np.moveaxis(array, 1, -1) if last else array

    received = stn.warp(sent(feature_map), transform, DEEP, **options)
    assert_same(np.moveaxis(received, -1, 1) if last else received, output)
    gradients = stn.warp_gradients(sent(grad_output), sent(feature_map), transform, **options)
    by_map = gradients.feature_map
    assert_same(np.moveaxis(by_map, -1, 1) if last else by_map, expected.feature_map)
    assert_same(gradients.transform, expected.transform)


@pytest.mark.parametrize(
    "transform", OF_VOLUMES[:2], ids=lambda transform: type(transform).__name__
)
def test_a_remote_grid_of_volumes_is_the_local_one(stn, transform):
    """The grid and the gradient to its parameters."""
    grad_grid = ramp(len(transform.parameters), *DEEP, 3)
    grid = stn_engine.GridProblem(local(transform), DEEP)
    (expected,) = stn_engine.generate_grid_ragged([grid])
    assert_same(stn.generate_grid(transform, DEEP), expected)
    problem = stn_engine.GridGradientsProblem(grid, torch.from_numpy(grad_grid))
    (gradient,) = stn_engine.generate_grid_gradients_ragged([problem])
    assert_same(stn.generate_grid_gradients(grad_grid, transform), gradient)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("transform", PARAMETRIC, ids=lambda transform: type(transform).__name__)
def test_a_remote_grid_is_the_local_one(stn, transform, align_corners):
    """The grid and the gradient to its parameters."""
    grad_grid = ramp(len(transform.parameters), *SIZE, 2)
    grid = stn_engine.GridProblem(local(transform), SIZE, align_corners=align_corners)
    (expected,) = stn_engine.generate_grid_ragged([grid])
    assert_same(stn.generate_grid(transform, SIZE, align_corners=align_corners), expected)
    problem = stn_engine.GridGradientsProblem(grid, torch.from_numpy(grad_grid))
    (gradient,) = stn_engine.generate_grid_gradients_ragged([problem])
    result = stn.generate_grid_gradients(grad_grid, transform, align_corners=align_corners)
    assert_same(result, gradient)


def test_results_are_those_of_torch(stn):
    """Not only of our own engine: grid_sample of affine_grid, forward and backward."""
    u = torch.from_numpy(ramp(2, 3, 4, 5) / 251).requires_grad_()
    t = torch.from_numpy(theta()).requires_grad_()
    grad_output = torch.from_numpy(ramp(2, 3, *SIZE) / 251)
    grid = torch.nn.functional.affine_grid(t, (2, 3, *SIZE), align_corners=False)
    expected = torch.nn.functional.grid_sample(u, grid, align_corners=False)
    expected.backward(grad_output)
    operands = u.detach().numpy(), Affine(t.detach().numpy())
    output, pullback = stn.vjp(*operands, SIZE)
    gradients = pullback(grad_output.numpy())
    for result, tensor in (
        (output, expected.detach()),
        (gradients.feature_map, u.grad),
        (gradients.transform, t.grad),
    ):
        torch.testing.assert_close(torch.from_numpy(result.copy()), tensor, rtol=1e-4, atol=1e-5)


def test_a_generated_stub_works_as_well(server, client):
    """The service is ordinary gRPC; the SDK is a convenience."""
    with grpc.insecure_channel(server.target) as channel:
        stub = service_pb2_grpc.SpatialTransformerStub(channel)
        reply = stub.Warp(warp_request())
        info = stub.GetServerInfo(server_info_pb2.GetServerInfoRequest())
    output = np.frombuffer(reply.payloads[reply.output.payload], np.float32)
    expected = client.warp(ramp(2, 3, 4, 5), Affine(theta()), SIZE)
    assert np.array_equal(output.reshape(tuple(reply.output.shape)), expected)
    assert reply.timing.batch_items == 1
    assert 0 < reply.timing.compute_s < 60
    assert info.ready


@pytest.mark.slow
def test_a_result_does_not_depend_on_what_shares_its_batch():
    """Concurrent calls of mixed sizes run together and get the bits of single calls."""
    sizes = [(n % 5 + 2, n % 7 + 3) for n in range(24)]
    maps = [ramp(1, 3, *size) / 7 for size in sizes]
    transforms = [Affine(theta(24)[n : n + 1]) for n in range(24)]

    async def scenario(target):
        async with AsyncClient(target) as stn:
            calls = map(stn.warp, maps, transforms, reversed(sizes))
            together = await asyncio.gather(*calls)
            largest = (await stn.server_info()).statistics.largest_batch_items
            zipped = zip(maps, transforms, reversed(sizes), strict=True)
            return together, largest, [await stn.warp(*one) for one in zipped]

    with LocalServer("--batching-window-s=0.1") as running:
        together, largest, alone = asyncio.run(scenario(running.target))
    assert largest > 1
    for result, single in zip(together, alone, strict=True):
        assert result.tobytes() == single.tobytes()
    problems = [
        stn_engine.WarpProblem(torch.from_numpy(u), local(transform), size)
        for u, transform, size in zip(maps, transforms, reversed(sizes), strict=True)
    ]
    for single, problem in zip(alone, problems, strict=True):
        assert_same(single, stn_engine.warp_ragged([problem])[0])
