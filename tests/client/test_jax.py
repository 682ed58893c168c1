"""`stn_client.jax`: values and gradients against torch, under the transforms of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stn_client import (
    Affine,
    Client,
    Flow,
    InvalidRequestError,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
)
from stn_client.geometry import rotation_about
from stn_client.jax import warp
from stn_client.testing import StubClient

RNG = np.random.default_rng(11)
U = RNG.random((2, 3, 5, 6), np.float32)
THETA = np.array([[[0.91, 0.13, 0.061], [-0.19, 0.83, 0.117]]], np.float32).repeat(2, 0)
SIZE = (4, 3)
GRAD = RNG.random((2, 3, *SIZE), np.float32)


@pytest.fixture(scope="module")
def client(local_server):
    with Client(local_server.target) as client:
        yield client


def of_torch(u, theta, grad):
    """The warp and its gradients by torch."""
    u, theta = (torch.tensor(np.asarray(one), requires_grad=True) for one in (u, theta))
    grid = torch.nn.functional.affine_grid(theta, [len(theta), 3, *SIZE], align_corners=False)
    output = torch.nn.functional.grid_sample(u, grid, align_corners=False)
    output.backward(torch.tensor(grad))
    return output.detach(), u.grad, theta.grad


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_values_and_gradients_are_those_of_torch(client, compiled):
    """By `jax.vjp`, traced and not."""

    def both(u, theta, grad):
        output, pullback = jax.vjp(lambda u, t: warp(client, u, Affine(t), SIZE), u, theta)
        return output, *pullback(grad)

    function = jax.jit(both) if compiled else both
    ours = function(U, THETA, GRAD)
    for one, theirs in zip(ours, of_torch(U, THETA, GRAD), strict=True):
        assert isinstance(one, jax.Array)
        np.testing.assert_allclose(one, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_loss_are_those_of_torch(client):
    """By `jax.grad` under `jax.jit`, of half the squares."""

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(u, theta):
        return (warp(client, u, Affine(theta), SIZE) ** 2).sum() / 2

    output, _, _ = of_torch(U, THETA, GRAD)
    _, *theirs = of_torch(U, THETA, output.numpy())
    for one, other in zip(gradients(U, THETA), theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_vmap_is_a_call_for_each_element(client):
    """Of maps, of parameters, or of both; with their gradients."""

    def one(u, theta):
        return warp(client, u, Affine(theta), SIZE, layout="CHW")

    batch = warp(client, U, Affine(THETA), SIZE)
    np.testing.assert_array_equal(jax.vmap(one)(U, THETA), batch)
    np.testing.assert_array_equal(jax.vmap(one, (0, None))(U, THETA[0]), batch)
    of_theta = jax.vmap(jax.grad(lambda theta, u: one(u, theta).sum()))(THETA, U)
    _, _, theirs = of_torch(U, THETA, np.ones_like(GRAD))
    np.testing.assert_allclose(of_theta, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (Similarity(np.array([[0.8, 0.3, 0.1, -0.1]], np.float32)), (4, 3)),
        (Flow(RNG.random((2, 4, 3, 2), np.float32) * 0.1), None),
        (SamplingGrid(RNG.random((2, 4, 3, 2), np.float32)), None),
        (ThinPlateSpline(RNG.random((2, 3, 2)), control_points=[(0, 0), (1, 0), (0, 1)]), SIZE),
        (Affine([[[1, 0, 0], [0, 1, 0]]]), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_transform_is_that_of_the_client(client, transform, size):
    """With the options of the call, and in float32, which JAX has."""
    options = {"padding": "border", "interpolation": "bicubic"}
    output = jax.jit(lambda u: warp(client, u, transform, size, **options))(U)
    expected = client.warp(U, transform, size, **options)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_fit_finds_a_shift(client):
    """Fifty steps of gradient descent under `jit` recover how far an image was moved."""
    y, x = jnp.mgrid[-1:1:24j, -1:1:24j]
    image = jnp.exp(-4 * (x**2 + y**2))[None, None]
    moved = warp(client, image, Affine(jnp.array([[[1, 0, 0.2], [0, 1, -0.1]]])))

    @jax.jit
    @jax.value_and_grad
    def loss(shift):
        theta = jnp.concatenate([jnp.eye(2), shift[:, None]], 1)[None]
        return ((warp(client, image, Affine(theta)) - moved) ** 2).mean()

    shift = jnp.zeros(2)
    first, _ = loss(shift)
    for _ in range(50):
        last, gradient = loss(shift)
        shift -= 2.0 * gradient
    np.testing.assert_allclose(shift, [0.2, -0.1], atol=1e-2)
    assert last < first / 1000


def test_an_angle_alone_is_a_rotation_of_a_map_without_a_batch(client):
    """A number, as every element of a vmap over angles is; beside the same with a batch axis."""
    u = jnp.asarray(U[0, 0])
    found, slope = jax.value_and_grad(
        lambda phi: (warp(client, u, Rotation(phi), layout="HW") ** 2).sum()
    )(jnp.float32(0.3))
    same, slopes = jax.value_and_grad(
        lambda phi: (warp(client, u[None, None], Rotation(phi)) ** 2).sum()
    )(jnp.full((1, 1), 0.3, jnp.float32))
    assert found == same
    assert slope == slopes[0, 0] != 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Affine(np.eye(2, 3, dtype=np.float32)[None]), {"padding": "fill", "fill": [1, 2]}),
        lambda: (
            ThinPlateSpline(
                np.zeros((1, 3, 2), np.float32), control_points=np.eye(3)[:, :2], regularization=1
            ),
            {"layout": None, "padding": "fill", "fill": np.array([1.5, 2])},
        ),
    ],
    ids=["affine", "spline"],
)
def test_calls_that_are_equal_are_compiled_once(client, make):
    """Also where nothing is jitted, as in a loop over batches: JAX keeps all that it compiles."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )

    def slope():
        transform, options = make()
        u = jnp.ones((1, 2, 5, 7))
        return jax.grad(lambda u: warp(client, u, transform, (3, 4), **options).sum())(u)

    first, count = slope(), len(compiled)
    assert count > 0
    np.testing.assert_array_equal(slope(), first)
    assert len(compiled) == count


REFUSED = {
    "padding": (lambda stn: warp(stn, U, Affine(THETA), padding="mirror"), "padding: expected one"),
    "layout": (lambda stn: warp(stn, U, Affine(THETA), layout="WHC"), "layout: expected one of"),
    "transform": (lambda stn: warp(stn, U, THETA), "transform: expected one of Affine, .*ndarray"),
    "map": (lambda stn: warp(stn, "map", Affine(THETA)), "feature_map: expected an array, got str"),
    "theta": (lambda stn: warp(stn, U, Affine(None)), "theta: expected an array, got NoneType"),
    "a number as map": (
        lambda stn: warp(stn, 1.5, Affine(THETA)),
        "feature_map: expected an array, got a single number of float32",
    ),
    "a number as theta": (
        lambda stn: warp(stn, U, Affine(10**30)),
        "theta: expected an array, got int: ",
    ),
    "client": (lambda _: warp(Client, U, Affine(THETA)), "client: expected a Client, got"),
    "map first": (
        lambda stn: warp(jnp.asarray(U), Affine(THETA), stn),
        r"client: expected a Client, got one of type ArrayImpl\.",
    ),
    "square theta": (
        lambda stn: jax.jit(lambda theta: warp(stn, U, Affine(theta)))(np.eye(3)[None]),
        r"theta: expected shape \(N, 2, 3\).*, got \(1, 3, 3\)\. Leave out the last row",
    ),
    "bare theta": (
        lambda stn: warp(stn, U, Affine(np.eye(2, 3))),
        r"theta: expected a batch axis, got shape \(2, 3\)",
    ),
    "theta of another kind": (
        lambda stn: warp(stn, U, Affine(jnp.eye(2, 3, dtype=jnp.complex64)[None])),
        r"theta: expected float32 or float64, got complex64\. Cast it\.$",
    ),
    "map without a batch axis": (
        lambda stn: jax.jit(lambda u: warp(stn, u, Affine(np.eye(2, 3)[None])))(U[0]),
        r"feature_map: expected \(N, C, \[D,\] H, W\), got shape .* say the layout",
    ),
    "map of a dtype that the wire has not": (
        lambda stn: warp(stn, U + 1j, Affine(np.eye(2, 3)[None])),
        r"feature_map: expected one of float32, .*, got complex64\. Cast it\.$",
    ),
    "labels that would be interpolated": (
        lambda stn: warp(stn, U > 0, Affine(np.eye(2, 3)[None])),
        r"feature_map: expected one of float32, .* pass interpolation=\"nearest\"\.$",
    ),
    "no rows": (
        lambda stn: warp(stn, U, Affine(np.eye(2, 3)[None]), (-1, 3)),
        r"output_size: expected sizes of at least 1, got \(-1, 3\)\.$",
    ),
    "spline": (
        lambda stn: warp(stn, U, ThinPlateSpline(THETA, control_points=3)),
        "control_points: expected points",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_when_it_is_traced(call, message):
    """In the words of the caller, before anything is asked."""
    with StubClient() as stub:
        with pytest.raises(InvalidRequestError, match=f"^{message}"):
            call(stub)
        assert stub.calls == []


def test_failures_of_calls_are_told_by_jax(client):
    """What the server says is in the error."""
    with pytest.raises(Exception, match=r"transform.*got 5|expected .* got"):
        jax.block_until_ready(
            warp(client, U, Affine(np.eye(2, 3, dtype=np.float32)[None].repeat(5, 0)))
        )


def test_arrays_that_are_traced_are_sent_by_their_own_function(client):
    """The error of the plain client names it."""
    transform = Affine(np.eye(2, 3, dtype=np.float32)[None])
    with pytest.raises(InvalidRequestError, match=r"that JAX traces\. Use stn_client\.jax\.warp,"):
        jax.jit(lambda u: client.warp(u, transform))(U)
    with pytest.raises(InvalidRequestError, match=r"^angle_deg: .* nothing else may be traced\."):
        jax.jit(lambda angle: warp(client, U, **rotation_about((3, 3), angle)))(30.0)
