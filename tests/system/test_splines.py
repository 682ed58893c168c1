"""Thin-plate splines from every end: both clients, torch, and a server's batches."""

import asyncio
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import stn_engine
from stn_client import Affine, AsyncClient, Client, InvalidRequestError, ThinPlateSpline
from stn_client.torch import SpatialTransformer, warp
from support.bad_requests import CONTROL_POINTS, ramp

SIZE = (6, 7)
REGULARIZATION = 0.05


@pytest.fixture(scope="module")
def stn(server):
    with Client(server.targets[0]) as client:
        yield client


def points(seed=0, count=2, dtype=torch.float64):
    """Source points near their control points, (count, 5, 2)."""
    generator = torch.Generator().manual_seed(seed)
    offsets = 0.2 * torch.randn(count, 5, 2, generator=generator, dtype=torch.float64)
    return (torch.tensor(CONTROL_POINTS) + offsets).to(dtype)


def images(dtype=torch.float64):
    """(2, 3, 5, 4)."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 5, 4, generator=generator, dtype=torch.float64).to(dtype)


spline = partial(ThinPlateSpline, control_points=CONTROL_POINTS, regularization=REGULARIZATION)
engine_spline = partial(
    stn_engine.ThinPlateSpline, control_points=CONTROL_POINTS, regularization=REGULARIZATION
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_torch_warps_by_splines_are_those_of_the_engine(stn, dtype):
    """Outputs and gradients of both operands, bit for bit, as autograd sees them."""
    results = []
    parameters_dtype = torch.promote_types(dtype, torch.float32)
    for run, make in ((partial(warp, stn), spline), (stn_engine.warp, engine_spline)):
        feature_map = images(dtype).requires_grad_()
        parameters = points(dtype=parameters_dtype).requires_grad_()
        output = run(feature_map, make(parameters), SIZE, padding="border")
        output.square().sum().backward()
        results.append((output, feature_map.grad, parameters.grad))
    for remote, local in zip(*results, strict=True):
        assert torch.equal(remote, local)
        assert remote.abs().max() > 0


def test_torch_warps_by_splines_pass_gradcheck(stn):
    """Every gradient by the wire is the limit of differences of outputs by the wire."""
    operands = images().requires_grad_(), points(3).requires_grad_()
    function = lambda feature_map, p: warp(stn, feature_map, spline(p), SIZE)  # noqa: E731
    assert torch.autograd.gradcheck(function, operands)


def test_torch_compiles_warps_by_splines(stn):
    """As one node, with the numbers that are no tensor."""

    def loss(feature_map, p):
        return warp(stn, feature_map, spline(p), SIZE).square().sum()

    grads = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        parameters = points().requires_grad_()
        function(images(), parameters).backward()
        grads.append(parameters.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("shape", [(10,), (5, 2)])
def test_a_transformer_of_splines_learns(stn, shape):
    """Ten steps move a picture towards its place; the network gives points, flat or not."""
    bias = nn.Parameter(torch.tensor(CONTROL_POINTS, dtype=torch.float32).reshape(shape))

    class Localization(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = bias

        def forward(self, feature_map):
            return self.bias.expand(len(feature_map), *shape)

    ramps = torch.linspace(-1, 1, 16)
    blob = torch.exp(-4 * (ramps[:, None] ** 2 + ramps**2)).expand(2, 1, 16, 16)
    with torch.no_grad():
        target = warp(stn, blob, spline(points(5, 1, torch.float32)), padding="border")
    transformer = SpatialTransformer(Localization(), stn, transform=spline, padding="border")
    optimizer = torch.optim.Adam(transformer.parameters(), lr=0.02)
    losses = []
    for _ in range(10):
        loss = (transformer(blob) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("transform", "match"),
    [
        (ThinPlateSpline, r"^transform: expected all but the parameters of .*partial\.$"),
        (partial(ThinPlateSpline, control=3), r"^transform: expected all but the parameters of"),
        (partial(ThinPlateSpline, control_points=3), r"^control_points: expected points \(x, y\)"),
        (partial(print), r"^transform: expected one of Affine, "),
    ],
)
def test_transformers_of_splines_are_checked_when_they_are_made(stn, transform, match):
    """Their control points must be there."""
    with pytest.raises(InvalidRequestError, match=match):
        SpatialTransformer(nn.Identity(), stn, transform=transform)


def test_a_localization_of_other_points_is_named(stn):
    """Four points are not five."""
    model = SpatialTransformer(nn.Flatten(), stn, transform=spline)
    match = r"return \(N, 10\) or \(N, 5, 2\) for ThinPlateSpline, got \(2, 8\)\.$"
    with pytest.raises(InvalidRequestError, match=match):
        model(torch.rand(2, 2, 2, 2))


def test_splines_in_one_batch_are_each_their_own(server):
    """A hundred calls at once, of three sets of control points, other transforms among them."""
    sets = [np.array(CONTROL_POINTS), np.array(CONTROL_POINTS)[:4], 0.5 * np.array(CONTROL_POINTS)]
    feature_map = ramp(1, 2, 9, 8)
    calls = []
    for n in range(100):
        control = sets[n % 3]
        size = (4 + n % 5, 6)
        given = (control[None] * 0.9 + n / 500).astype(np.float32)
        calls.append((ThinPlateSpline(given, control_points=control), size))
        calls.append((Affine(np.eye(2, 3, dtype=np.float32)[None] * (1 + n / 100)), size))

    async def run():
        async with AsyncClient(server.targets[1]) as stn:
            return await asyncio.gather(*(stn.warp(feature_map, *call) for call in calls))

    for (transform, size), output in zip(calls, asyncio.run(run()), strict=True):
        parameters = torch.from_numpy(transform.parameters)
        if isinstance(transform, Affine):
            local = stn_engine.Affine(parameters)
        else:
            control = transform.control_points
            local = stn_engine.ThinPlateSpline(parameters, control_points=control)
        expected = stn_engine.warp(torch.from_numpy(feature_map), local, size)
        assert output.tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"control_points": [*CONTROL_POINTS[:4], CONTROL_POINTS[1]]},
            r"control_points: .*\(0.8, -0.7\) at 1 and \(0.8, -0.7\) at 4, nearer to each other",
        ),
        (
            {"control_points": [(x, 2 * x) for x in range(5)]},
            r"control_points: .*got \(0.0, 0.0\) at 0 and \(4.0, 8.0\) at 4, the ends of a line",
        ),
        ({"control_points": CONTROL_POINTS[:3]}, r"points: expected shape \(N, 3, 2\), got \(1, 5"),
        ({"regularization": -1}, r"regularization: expected a finite number >= 0, got -1.0\."),
        ({"points": np.full((1, 5, 2), np.nan)}, r"points: expected finite numbers, got nan at"),
        (
            {"control_points": np.random.default_rng(0).random((257, 2))},
            r"control_points: expected at most 256 points, got 257\. Ask for less",
        ),
    ],
)
def test_bad_splines_are_refused_in_words_of_the_caller(stn, changes, match):
    """The argument, and which of its points; before anything is computed."""
    good = {
        "points": np.array([CONTROL_POINTS]),
        "control_points": CONTROL_POINTS,
        "regularization": 0.0,
    }
    given = good | changes
    with pytest.raises(InvalidRequestError, match=f"^{match}"):
        stn.warp(ramp(1, 1, 4, 4), ThinPlateSpline(given.pop("points"), **given))


def test_servers_offer_splines_of_images(stn):
    """And say how many control points they take."""
    info = stn.server_info()
    offered = {
        each.dimensions: "thin_plate_spline" in each.transforms for each in info.capabilities
    }
    assert offered == {2: True, 3: False}
    assert info.limits.max_control_points == 256
