"""Objectives by wire: what the engine tells, a step of a registration, and what is refused."""

import asyncio

import numpy as np
import pytest
import torch

import stn_client.torch
import stn_engine
from stn_client import Affine, AsyncClient, Client, Flow, InvalidRequestError, ThinPlateSpline
from support.bad_requests import CONTROL_POINTS, ramp, theta

MOVING = np.sin(ramp(1, 2, 12, 14) / 9).astype(np.float32)
FIXED = np.cos(ramp(1, 2, 6, 7) / 7).astype(np.float32)
WEIGHTS = (ramp(1, 1, 6, 7) % 3).astype(np.float32)
TRANSFORMS = [
    Affine(theta(3)),
    Flow(ramp(1, 6, 7, 2) / 2000),
    ThinPlateSpline(np.array([CONTROL_POINTS], np.float32), control_points=CONTROL_POINTS),
]
PARTS = ("value", "count", "gradient", "gauss_newton")


@pytest.fixture
def stn(server):
    """A client."""
    with Client(server.targets[0]) as connected:
        yield connected


def expected(transform, weights, **how):
    """What the engine says of the same maps."""
    kind, settings = getattr(stn_engine, type(transform).__name__), {}
    if isinstance(transform, ThinPlateSpline):
        settings = {"control_points": transform.control_points}
    return stn_engine.objective(
        torch.from_numpy(MOVING),
        torch.from_numpy(FIXED),
        kind(torch.from_numpy(transform.parameters), **settings),
        weights=None if weights is None else torch.from_numpy(weights),
        **how,
    )


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"loss": "huber", "delta": 0.25, "domain": "all", "padding": "border"},
        {"loss": "ncc", "interpolation": "bicubic"},
        {"needs": ()},
    ],
    ids=str,
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["all alike", "weights"])
def test_a_remote_objective_is_the_local_one(stn, transform, how, weights):
    """Every result, bit for bit; None where the engine has none."""
    found = stn.objective(MOVING, FIXED, transform, weights=weights, **how)
    tensors = expected(transform, weights, **how)
    for name in PARTS:
        array, tensor = getattr(found, name), getattr(tensors, name)
        if tensor is None:
            assert array is None
            continue
        assert (array.dtype, array.shape) == (tensor.numpy().dtype, tuple(tensor.shape))
        assert array.tobytes() == tensor.numpy().tobytes(), name


def test_gauss_newton_by_wire(stn):
    """Many transforms for one pair of maps, each with a matrix."""
    needs = ("gradient", "gauss_newton")
    found = stn.objective(MOVING, FIXED, TRANSFORMS[0], needs=needs)
    tensors = expected(TRANSFORMS[0], None, needs=needs)
    assert found.gauss_newton.tobytes() == tensors.gauss_newton.numpy().tobytes()
    assert found.gauss_newton.shape == (3, 6, 6)


def test_channels_last_by_wire(stn):
    """The layout is that of all maps of the call."""
    maps = (np.ascontiguousarray(np.moveaxis(one, 1, -1)) for one in (MOVING, FIXED, WEIGHTS))
    moving, fixed, weights = maps
    found = stn.objective(moving, fixed, TRANSFORMS[0], weights=weights, layout="NHWC")
    tensors = expected(TRANSFORMS[0], WEIGHTS)
    np.testing.assert_allclose(found.value, tensors.value.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.gradient, tensors.gradient.numpy(), rtol=1e-4, atol=1e-6)


def test_the_asynchronous_client_has_it_too(server):
    """Awaited."""

    async def run():
        async with AsyncClient(server.targets[0]) as connected:
            return await connected.objective(MOVING, FIXED, TRANSFORMS[0], loss="ncc")

    found = asyncio.run(run())
    assert (
        found.value.tobytes() == expected(TRANSFORMS[0], None, loss="ncc").value.numpy().tobytes()
    )


def test_torch_differentiates_by_the_gradient_that_came_along(stn):
    """The backward pass weighs it by item; a shared transform receives the sum over items."""
    fixed = torch.from_numpy(np.concatenate((FIXED, 2 * FIXED)))
    parameters = torch.from_numpy(theta(1)).requires_grad_()
    moving = torch.from_numpy(MOVING)
    value = stn_client.torch.objective(stn, moving, fixed, Affine(parameters), loss="huber")
    value.backward(torch.tensor([2.0, -1.0]).double())
    here = parameters.detach().clone().requires_grad_()
    local = stn_engine.objective(moving, fixed, stn_engine.Affine(here), loss="huber").value
    local.backward(torch.tensor([2.0, -1.0]).double())
    assert torch.equal(value.detach(), local.detach())
    torch.testing.assert_close(parameters.grad, here.grad, rtol=1e-6, atol=1e-7)


def test_torch_has_no_gradients_of_maps_by_wire(stn):
    """They are refused, and not zero."""
    moving = torch.from_numpy(MOVING).requires_grad_()
    transform = Affine(torch.from_numpy(theta(1)))
    value = stn_client.torch.objective(stn, moving, torch.from_numpy(FIXED), transform)
    with pytest.raises(InvalidRequestError, match=r"moving: expected gradients to the transform"):
        value.sum().backward()


def test_torch_has_no_second_derivatives_by_wire(stn):
    """They are refused, and not zero."""
    parameters = torch.from_numpy(theta(1)).requires_grad_()
    value = stn_client.torch.objective(
        stn, torch.from_numpy(MOVING), torch.from_numpy(FIXED), Affine(parameters)
    )
    (slope,) = torch.autograd.grad(value.sum(), parameters, create_graph=True)
    with pytest.raises(InvalidRequestError, match="create_graph: expected no derivatives of grad"):
        slope.sum().backward()


def test_torch_func_takes_its_gradient(stn):
    """Its transforms find what backward does."""
    moving, fixed = torch.from_numpy(MOVING), torch.from_numpy(FIXED)

    def total(parameters):
        return stn_client.torch.objective(stn, moving, fixed, Affine(parameters)).sum()

    gradient = torch.func.grad(total)(torch.from_numpy(theta(3)))
    assert torch.equal(gradient, expected(TRANSFORMS[0], None).gradient)


def test_compilers_see_one_node(stn):
    """With shapes, and without a look inside."""
    moving, fixed = torch.from_numpy(MOVING), torch.from_numpy(FIXED)

    def total(parameters):
        return stn_client.torch.objective(stn, moving, fixed, Affine(parameters)).sum()

    parameters = torch.from_numpy(theta(3))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(parameters), total(parameters))


@pytest.mark.parametrize(
    ("operands", "options", "match"),
    [
        ((MOVING, FIXED[:, :1]), {}, r"fixed: .*\(1, 1, 6, 7\)"),
        ((MOVING, FIXED[0]), {}, r"fixed: "),
        ((MOVING.astype(np.uint8), FIXED.astype(np.uint8)), {}, r"moving: .*float32"),
        ((MOVING, FIXED.astype(np.float64)), {}, r"fixed: .*float32"),
        ((MOVING, FIXED), {"weights": FIXED}, r"weights: .*\(1, 2, 6, 7\)"),
        ((MOVING, FIXED), {"delta": -1.0}, r"delta: expected a finite number > 0"),
        ((MOVING, FIXED), {"delta": "1"}, r"delta: expected a number, got '1'"),
        ((MOVING, FIXED), {"delta": True}, r"delta: expected a number, got True"),
        ((MOVING, FIXED), {"loss": "mse"}, r"loss: expected .*ssd"),
        ((MOVING, FIXED), {"domain": "half"}, r"domain: expected .*overlap"),
        ((MOVING, FIXED), {"needs": "gradient"}, r"needs: expected a list of gradient"),
        ((MOVING, FIXED), {"needs": ["hessian"]}, r"needs: expected .*gauss_newton"),
        ((MOVING, FIXED), {"loss": "ncc", "needs": ["gauss_newton"]}, r"needs: expected"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_its_name(stn, operands, options, match):
    """By client or server, in the words of the caller."""
    with pytest.raises(InvalidRequestError, match=match):
        stn.objective(*operands, TRANSFORMS[0], **options)


def test_torch_refuses_what_is_no_tensor(stn):
    """Before anything is sent."""
    moving, transform = torch.from_numpy(MOVING), Affine(torch.from_numpy(theta(1)))
    with pytest.raises(InvalidRequestError, match=r"fixed: expected a torch.Tensor, got ndarray"):
        stn_client.torch.objective(stn, moving, FIXED, transform)
    with pytest.raises(InvalidRequestError, match=r"weights: expected a torch.Tensor or None"):
        stn_client.torch.objective(stn, moving, torch.from_numpy(FIXED), transform, weights=1.0)
