"""Gradients as derivatives and as adjoints, first and second order."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from stn_engine import (
    Affine,
    GridGradientsProblem,
    GridProblem,
    Homography,
    SamplingGrid,
    WarpGradientsProblem,
    WarpSpec,
    generate_grid,
    generate_grid_gradients,
    objective,
    warp,
    warp_gradients,
)
from stn_engine.backends.torch.sampler import accumulate
from support import backends
from support.oracles import settled_warp
from support.strategies import (
    CONVENTIONS,
    DETERMINISTIC,
    GENERATORS,
    INTERPOLATIONS,
    KINDS,
    PADDINGS,
    VOLUME_KINDS,
    as_function,
    random_gradients,
    random_transform,
    random_values,
    random_warp,
    volume_options,
    warps,
)
from support.tolerances import ADJOINT_IDENTITY

BACKENDS = {backend.name: backend for backend in backends.BACKENDS}

per_convention = pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
per_padding = pytest.mark.parametrize("padding", PADDINGS)
SMALL = {"channels": 2, "size": (3, 4), "output_size": (2, 3)}
SMALL_VOLUME = {"channels": 2, "size": (2, 3, 4), "output_size": (2, 1, 2)}
per_kind = pytest.mark.parametrize(
    ("kind", "sizes"),
    [*itertools.product(KINDS, [SMALL]), *itertools.product(VOLUME_KINDS, [SMALL_VOLUME])],
)
per_generator = pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *itertools.product(GENERATORS, [((5, 7), (3, 4))]),
        *itertools.product(["affine", "flow"], [((5, 7, 6), (2, 3, 2))]),
    ],
)


@pytest.mark.parametrize("kind", ["affine", "grid"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@per_padding
@per_convention
@pytest.mark.parametrize("batch", [(2, 2), (1, 2), (2, 1)])
def test_warp_gradcheck(kind, interpolation, padding, coordinates, align_corners, batch):
    """Both gradients are the derivatives of the value, away from cell edges."""
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        fill=0.5,
        coordinates=coordinates,
        align_corners=align_corners,
    )
    problem = settled_warp(kind=kind, batch=batch, spec=spec, **SMALL)
    function, operands = as_function(problem)
    assert gradcheck(function, operands, fast_mode=True)


@pytest.mark.parametrize("options", volume_options(), ids=str)
def test_warp_gradcheck_on_volumes(options):
    """Nor does a third axis change that, to second order."""
    problem = settled_warp(**SMALL_VOLUME, **(options | {"dtype": torch.float64}))
    function, operands = as_function(problem)
    assert gradcheck(function, operands, fast_mode=True)
    if problem.spec.interpolation != "nearest":
        assert gradgradcheck(function, operands, fast_mode=True)


@per_kind
@per_convention
@pytest.mark.parametrize("batch", [(2, 2), (1, 2), (2, 1)])
def test_warp_gradcheck_of_every_transform(kind, sizes, coordinates, align_corners, batch):
    """Parameters of any kind have exact first and second derivatives."""
    spec = WarpSpec(padding="border", coordinates=coordinates, align_corners=align_corners)
    problem = settled_warp(kind=kind, batch=batch, spec=spec, **sizes)
    function, operands = as_function(problem)
    assert gradcheck(function, operands, fast_mode=True)
    assert gradgradcheck(function, operands, fast_mode=True)


@pytest.mark.parametrize("kind", ["affine", "grid"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@per_padding
@per_convention
@pytest.mark.parametrize("batch", [(2, 2), (1, 2), (2, 1)])
def test_warp_gradgradcheck(kind, interpolation, padding, coordinates, align_corners, batch):
    """The gradients are themselves differentiable, in G, U and the transform."""
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        fill=0.5,
        coordinates=coordinates,
        align_corners=align_corners,
    )
    problem = settled_warp(kind=kind, batch=batch, spec=spec, **SMALL)
    function, operands = as_function(problem)
    assert gradgradcheck(function, operands, fast_mode=True)


def test_warp_gradients_is_differentiable():
    """The public function records a graph through G, U and theta when asked to."""
    problem = settled_warp(channels=2, size=(3, 4), output_size=(2, 3))
    grad_output = random_values(1, problem.output_shape, torch.float64)

    def function(grad_output, feature_map, theta):
        gradients = warp_gradients(grad_output, feature_map, Affine(theta))
        return gradients.feature_map, gradients.transform

    operands = grad_output, problem.feature_map, problem.transform.theta
    assert gradcheck(function, tuple(operand.clone().requires_grad_() for operand in operands))


@per_generator
@per_convention
def test_generate_grid_gradcheck(kind, sizes, coordinates, align_corners):
    """The generator and its adjoint are differentiable in all that they depend on."""
    size, output_size = sizes
    transform = random_transform(2, kind, 2, size, output_size, coordinates)
    parameters = transform.parameters.clone().requires_grad_()
    shape = (2, *output_size, len(output_size))
    grad_grid = random_values(3, shape, torch.float64).requires_grad_()
    options = {"coordinates": coordinates, "align_corners": align_corners}

    def forward(parameters):
        return generate_grid(transform.with_parameters(parameters), output_size, **options)

    def adjoint(grad_grid, parameters):
        return generate_grid_gradients(grad_grid, transform.with_parameters(parameters), **options)

    assert gradcheck(forward, parameters)
    assert gradgradcheck(forward, parameters)
    assert gradcheck(adjoint, (grad_grid, parameters))


def test_horizon_leaves_gradients_of_gradients_finite():
    """Target points with W = 0 in the middle of an image contribute nothing, to any order."""
    theta = torch.tensor([[[1.0, 0.0, 0.25], [0.0, 1.0, 0.25], [1.0, 0.0, -1.0]]]).double()
    feature_map = random_values(4, (1, 2, 5, 7), torch.float64).requires_grad_()
    theta.requires_grad_()
    output = warp(feature_map, Homography(theta), coordinates="pixel", padding="border")
    assert torch.equal(output[:, :, :, 1], torch.zeros(1, 2, 5, dtype=torch.float64))
    first = torch.autograd.grad(output.sum(), (feature_map, theta), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (feature_map, theta))
    assert all(grad.isfinite().all() and grad.any() for grad in (*first, *second))


def assert_adjoint(u, su, v, stv):
    """⟨S u, v⟩ = ⟨u, Sᵀ v⟩, relative to the sizes of the vectors."""
    left, right = (su * v).sum().item(), (u * stv).sum().item()
    scale = (su.norm() * v.norm() + u.norm() * stv.norm()).item()
    assert abs(left - right) <= ADJOINT_IDENTITY * scale


@pytest.mark.parametrize("backend", BACKENDS)
@DETERMINISTIC
@given(problem=warps(dtypes=[torch.float64], fill=0.0), seed=st.integers(0, 2**16))
def test_feature_map_gradient_is_the_adjoint_of_warp(backend, problem, seed):
    """⟨S u, v⟩ = ⟨u, Sᵀ v⟩ for every combination of modes, sizes and broadcasts."""
    v = random_values(seed, problem.output_shape, torch.float64)
    gradients_problem = WarpGradientsProblem(problem, v, ("feature_map",))
    su = BACKENDS[backend].warp([problem])[0]
    gradients = BACKENDS[backend].warp_gradients([gradients_problem])[0]
    assert_adjoint(problem.feature_map, su, v, gradients.feature_map)
    assert gradients.transform is None


@pytest.mark.parametrize("backend", BACKENDS)
@DETERMINISTIC
@given(
    seed=st.integers(0, 2**16),
    batch=st.integers(0, 3),
    output_size=st.lists(st.integers(0, 9), min_size=2, max_size=3),
    convention=st.sampled_from(CONVENTIONS),
)
def test_theta_gradient_is_the_adjoint_of_the_generator(
    backend, seed, batch, output_size, convention
):
    """⟨A θ, v⟩ = ⟨θ, Aᵀ v⟩: the generator is linear in theta."""
    dims = len(output_size)
    theta = random_values(seed, (batch, dims, dims + 1), torch.float64)
    problem = GridProblem(Affine(theta), output_size, *convention)
    v = random_values(seed + 1, problem.output_shape, torch.float64)
    grid = BACKENDS[backend].generate_grid([problem])[0]
    gradients = BACKENDS[backend].generate_grid_gradients([GridGradientsProblem(problem, v)])[0]
    assert_adjoint(theta, grid, v, gradients)


@per_generator
@per_convention
@pytest.mark.parametrize("name", ["cpu", "torch", "cuda"])
def test_fused_gradient_is_the_grid_gradient_through_the_generator(
    name, kind, sizes, coordinates, align_corners
):
    """The fused gradient of the parameters equals generator adjoint after sampler adjoint."""
    spec = WarpSpec(coordinates=coordinates, align_corners=align_corners)
    size, output_size = sizes
    warped = settled_warp(kind=kind, spec=spec, size=size, output_size=output_size)
    fused = random_gradients(5, warped, needs=("transform",))
    transform = fused.warp.transform
    grid_problem = GridProblem(transform, fused.warp.output_size, coordinates, align_corners)
    backend = BACKENDS[name]
    grid = SamplingGrid(backend.generate_grid([grid_problem])[0])
    split = replace(fused, warp=replace(fused.warp, transform=grid))
    grad_grid = backend.warp_gradients([split])[0].transform
    in_two = backend.generate_grid_gradients([GridGradientsProblem(grid_problem, grad_grid)])[0]
    in_one = backend.warp_gradients([fused])[0].transform
    torch.testing.assert_close(in_one, in_two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [("feature_map",), ("transform",)])
def test_needs_leaves_out_what_is_not_asked_for(backend, needs):
    """The gradient that is not needed is None, the other is unchanged."""
    warped = random_warp(6)
    both = BACKENDS[backend].warp_gradients([random_gradients(7, warped)])[0]
    one = BACKENDS[backend].warp_gradients([random_gradients(7, warped, needs=needs)])[0]
    for name in ("feature_map", "transform"):
        if name in needs:
            assert torch.equal(getattr(one, name), getattr(both, name))
        else:
            assert getattr(one, name) is None


def test_warp_records_only_what_requires_grad():
    """No graph without requires_grad, under no_grad, or for an integer result."""
    problem = random_warp(8)
    theta = problem.transform.theta.clone().requires_grad_()
    grey = random_values(8, (2, 3, 5, 7), torch.uint8)
    assert not warp(problem.feature_map, problem.transform).requires_grad
    assert not warp(grey, Affine(theta)).requires_grad
    with torch.no_grad():
        assert not warp(problem.feature_map, Affine(theta)).requires_grad
        assert not generate_grid(Affine(theta), (2, 2)).requires_grad
    output = warp(problem.feature_map, Affine(theta))
    output.sum().backward()
    assert theta.grad is not None
    assert problem.feature_map.grad is None


def test_warp_works_after_inference_mode():
    """Constants made in inference mode serve a recorded call later."""
    spec = WarpSpec(padding="fill", fill=0.123)
    problem = random_warp(9, size=(6, 11), output_size=(3, 13), spec=spec)
    with torch.inference_mode():
        warp(problem.feature_map, problem.transform, (3, 13), padding="fill", fill=0.123)
    function, operands = as_function(problem)
    first = torch.autograd.grad(function(*operands).sum(), operands, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), operands)
    assert all(torch.isfinite(grad).all() for grad in second)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_double_backward_is_that_of_torch(mode):
    """The gradient of a gradient penalty agrees with torch's own decomposition."""
    problem = settled_warp(kind="grid", spec=WarpSpec(padding="border"))
    penalties = []
    for sample in (
        lambda u, g: warp(u, SamplingGrid(g), interpolation=mode, padding="border"),
        lambda u, g: torch.nn.functional.grid_sample(u, g, mode, "border", False),
    ):
        operands = tuple(
            operand.clone().requires_grad_()
            for operand in (problem.feature_map, problem.transform.grid)
        )
        grads = torch.autograd.grad(sample(*operands).square().sum(), operands, create_graph=True)
        penalties.append(torch.autograd.grad(sum(g.square().sum() for g in grads), operands))
    for ours, theirs in zip(*penalties, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_several_gradients_at_once_are_those_of_torch(needs):
    """Batches of gradients (is_grads_batched, vectorize) go by torch's own loop over operators."""
    problem = settled_warp(kind="affine", spec=WarpSpec(), size=(5, 6), output_size=(2, 3))
    jacobians = []
    for sample in (
        lambda u, theta: warp(u, Affine(theta), (2, 3)),
        lambda u, theta: torch.nn.functional.grid_sample(
            u,
            torch.nn.functional.affine_grid(theta, [*u.shape[:2], 2, 3], False),
            align_corners=False,
        ),
    ):
        operands = [
            operand.clone().requires_grad_(need)
            for operand, need in zip(problem.operands, needs, strict=True)
        ]
        output = sample(*operands)
        units = torch.eye(output.numel(), dtype=output.dtype).view(-1, *output.shape)
        wanted = [operand for operand in operands if operand.requires_grad]
        jacobians.append(torch.autograd.grad(output, wanted, units, is_grads_batched=True))
    for ours, theirs in zip(*jacobians, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_several_gradients_at_once_of_grids_and_objectives():
    """What is recorded otherwise: the vectorized Jacobian is that of one gradient at a time."""
    problem = settled_warp(kind="affine", spec=WarpSpec(), size=(5, 6), output_size=(5, 6))
    u, theta = problem.operands

    for function in (
        lambda theta: generate_grid(Affine(theta), (2, 3)),
        lambda theta: objective(u, u.flip(-1), Affine(theta)).value,
        lambda theta: torch.autograd.grad(
            warp(u, Affine(theta)).square().sum(), theta, create_graph=True
        )[0],
    ):
        one_by_one, at_once = (
            torch.autograd.functional.jacobian(function, theta, vectorize=vectorize)
            for vectorize in (False, True)
        )
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-10, atol=1e-10)


def test_ordered_accumulation_equals_the_plain_one():
    """The reproducible form used on devices with atomics sums the same terms."""
    terms = random_values(10, (2, 3, 40), torch.float64).requires_grad_()
    index = torch.randint(0, 7, (2, 40), generator=torch.Generator().manual_seed(1))
    for shared in (index, index[:1]):
        plain, ordered = (accumulate(shared, terms, 9, ordered=o) for o in (False, True))
        torch.testing.assert_close(plain, ordered)
        assert torch.equal(ordered[:, :, 7:], torch.zeros(2, 3, 2, dtype=torch.float64))
    assert gradcheck(lambda terms: accumulate(index, terms, 9, ordered=True), terms)


@pytest.mark.parametrize("name", ["cpu", "torch", "cuda"])
def test_broadcast_gradients_are_sums_over_the_batch(name):
    """A broadcast operand receives what its expanded copies would receive together."""
    for batch in ((1, 3), (3, 1)):
        problem = random_gradients(11, random_warp(12, batch=batch))
        dense = replace(
            problem.warp,
            feature_map=problem.warp.feature_map.expand(3, -1, -1, -1),
            transform=Affine(problem.warp.transform.theta.expand(3, -1, -1)),
        )
        backend = BACKENDS[name]
        one = backend.warp_gradients([problem])[0]
        many = backend.warp_gradients([WarpGradientsProblem(dense, problem.grad_output)])[0]
        for broadcast, full in (
            (one.feature_map, many.feature_map),
            (one.transform, many.transform),
        ):
            total = full.sum(0, keepdim=True) if broadcast.shape[0] == 1 else full
            torch.testing.assert_close(broadcast, total, rtol=1e-12, atol=1e-12)
