"""Tangents: forward mode and the transforms of torch.func, against the adjoint of the reference."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad, gradcheck

from stn_engine import (
    Affine,
    GridGradientsProblem,
    GridProblem,
    Translation,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    generate_grid,
    generate_grid_gradients,
    warp,
    warp_gradients,
)
from support.oracles import REFERENCE, exact_gradients, settled_warp
from support.strategies import (
    CONVENTIONS,
    GENERATORS,
    INTERPOLATIONS,
    KINDS,
    PADDINGS,
    SUBGRADIENTS,
    VOLUME_KINDS,
    as_function,
    random_gradients,
    random_transform,
    random_values,
    random_warp,
)
from support.tolerances import ADJOINT_IDENTITY

# torch scripts some of its own rules when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

BATCHES = [(2, 2), (1, 2), (2, 1)]
SIZES = {"channels": 2, "size": (3, 4), "output_size": (2, 3)}
VOLUME = {"channels": 2, "size": (2, 3, 4), "output_size": (2, 1, 2)}
COVER = [
    *itertools.product(KINDS, [SIZES], INTERPOLATIONS, PADDINGS),
    *itertools.product(VOLUME_KINDS, [VOLUME], INTERPOLATIONS, PADDINGS),
]


def turned(position, choices):
    """One of ``choices``: they go round with the cases of a covering set."""
    return choices[position % len(choices)]


def tangents_of(operands):
    """Directions, one per operand."""
    return tuple(
        random_values(31 + k, tuple(operand.shape), operand.dtype)
        for k, operand in enumerate(operands)
    )


def dual_tangent(function, operands, tangents):
    """The tangent of ``function`` by dual numbers, without torch.func."""
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, operands, tangents)
        return forward_ad.unpack_dual(function(*duals)).tangent


def assert_same_pairing(lefts, rights):
    """⟨G, J·t⟩ = ⟨Jᵀ·G, t⟩ for two lists of pairs of vectors, relative to their sizes."""
    left, right = (
        sum((one * other).sum().item() for one, other in pairs) for pairs in (lefts, rights)
    )
    scale = sum((one.norm() * other.norm()).item() for one, other in (*lefts, *rights))
    assert abs(left - right) <= ADJOINT_IDENTITY * scale


@pytest.mark.parametrize(("kind", "sizes", "interpolation", "padding"), COVER)
def test_tangent_of_warp_pairs_with_the_exact_gradients(kind, sizes, interpolation, padding):
    """Along both operands at once, for every transform, interpolation and padding."""
    position = COVER.index((kind, sizes, interpolation, padding))
    coordinates, align_corners = turned(position // 2, CONVENTIONS)
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        fill=0.5,
        coordinates=coordinates,
        align_corners=align_corners,
        subgradient=turned(position, SUBGRADIENTS),
    )
    problem = settled_warp(kind=kind, spec=spec, batch=turned(position, BATCHES), **sizes)
    function, _ = as_function(problem)
    tangents = tangents_of(problem.operands)
    output, tangent = torch.func.jvp(function, problem.operands, tangents)
    gradients = random_gradients(1, problem)
    assert_same_pairing(
        [(gradients.grad_output, tangent)],
        list(zip(exact_gradients(gradients), tangents, strict=True)),
    )
    torch.testing.assert_close(output, function(*problem.operands), rtol=1e-12, atol=1e-12)
    assert torch.equal(tangent, dual_tangent(function, problem.operands, tangents))


@pytest.mark.parametrize("subgradient", SUBGRADIENTS)
def test_tangent_at_integer_coordinates_follows_the_subgradient(subgradient):
    """The slope of the cell to the right, or none at all."""
    feature_map = random_values(1, (1, 1, 5, 6), torch.float64)
    shift = torch.tensor([[1.0, 2.0]]).double()
    spec = WarpSpec(coordinates="pixel", subgradient=subgradient)
    problem = WarpProblem(feature_map, Translation(shift), (3, 3), spec)
    function, _ = as_function(problem)
    tangents = torch.zeros_like(feature_map), torch.tensor([[1.0, 0.0]]).double()
    _, tangent = torch.func.jvp(function, problem.operands, tangents)
    slope = feature_map[:, :, 2:5, 2:5] - feature_map[:, :, 2:5, 1:4]
    assert torch.equal(tangent, slope if subgradient == "right" else torch.zeros_like(slope))


@pytest.mark.parametrize("operand", [0, 1])
def test_a_tangent_along_one_operand_is_enough(operand):
    """The other operand stands still."""
    problem = settled_warp(**SIZES)
    function, _ = as_function(problem)
    tangents = tangents_of(problem.operands)
    still = [torch.zeros_like(tangent) for tangent in tangents]
    still[operand] = tangents[operand]

    def of_one(value):
        operands = list(problem.operands)
        operands[operand] = value
        return function(*operands)

    _, alone = torch.func.jvp(of_one, (problem.operands[operand],), (tangents[operand],))
    _, both = torch.func.jvp(function, problem.operands, tuple(still))
    torch.testing.assert_close(alone, both, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_gradcheck(kind):
    """Tangents and gradients of warp are the derivatives that differences show."""
    position = KINDS.index(kind)
    spec = WarpSpec(
        interpolation=turned(position, INTERPOLATIONS),
        padding=turned(position, PADDINGS),
        fill=0.5,
    )
    batch = turned(position, BATCHES)
    function, operands = as_function(settled_warp(kind=kind, spec=spec, batch=batch, **SIZES))
    assert gradcheck(function, operands, check_forward_ad=True)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [*itertools.product(GENERATORS, [SIZES]), ("affine", VOLUME), ("flow", VOLUME)],
)
@pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
def test_tangent_of_the_generator_pairs_with_its_exact_gradient(
    kind, sizes, coordinates, align_corners
):
    """For every transform and unit."""
    size = sizes["output_size"]
    transform = random_transform(2, kind, 2, sizes["size"], size, coordinates)
    parameters = transform.parameters
    problem = GridProblem(transform, size, coordinates, align_corners)
    grad_grid = random_values(3, problem.output_shape, torch.float64)

    def function(parameters):
        moved = transform.with_parameters(parameters)
        return generate_grid(moved, size, coordinates=coordinates, align_corners=align_corners)

    direction = random_values(4, tuple(parameters.shape), torch.float64)
    _, tangent = torch.func.jvp(function, (parameters,), (direction,))
    gradient = REFERENCE.generate_grid_gradients([GridGradientsProblem(problem, grad_grid)])[0]
    assert_same_pairing([(grad_grid, tangent)], [(gradient, direction)])
    assert torch.equal(tangent, dual_tangent(function, (parameters,), (direction,)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_gradients_along_the_cotangent_are_the_exact_gradients_of_it(kind, interpolation):
    """They are linear in grad_output."""
    spec = WarpSpec(interpolation=interpolation, padding="border")
    problem = random_gradients(1, settled_warp(kind=kind, spec=spec, **SIZES))
    direction = random_values(2, problem.warp.output_shape, torch.float64)

    def function(grad_output):
        warped = problem.warp
        gradients = warp_gradients(
            grad_output,
            warped.feature_map,
            warped.transform,
            interpolation=interpolation,
            padding="border",
        )
        return gradients.feature_map, gradients.transform

    _, tangents = torch.func.jvp(function, (problem.grad_output,), (direction,))
    exact = exact_gradients(WarpGradientsProblem(problem.warp, direction))
    for tangent, expected in zip(tangents, exact, strict=True):
        torch.testing.assert_close(tangent, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_forward_mode_gradcheck_of_gradients():
    """Those of warp in all three operands, those of the generator in both."""
    problem = random_gradients(1, settled_warp(**SIZES))

    def of_warp(grad_output, feature_map, theta):
        gradients = warp_gradients(grad_output, feature_map, Affine(theta))
        return gradients.feature_map, gradients.transform

    operands = tuple(operand.clone().requires_grad_() for operand in problem.operands)
    assert gradcheck(of_warp, operands, check_forward_ad=True)
    transform = random_warp(2, kind="homography").transform
    grad_grid = random_values(3, (2, 3, 4, 2), torch.float64).requires_grad_()

    def of_grid(grad_grid, parameters):
        return generate_grid_gradients(grad_grid, transform.with_parameters(parameters))

    parameters = transform.parameters.clone().requires_grad_()
    assert gradcheck(of_grid, (grad_grid, parameters), check_forward_ad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_is_that_of_reverse_over_reverse(kind):
    """torch.func.hessian, forward over reverse, of a loss by the transform's parameters."""
    problem = settled_warp(kind=kind, spec=WarpSpec(padding="border"), **SIZES)
    function, _ = as_function(problem)

    def loss(parameters):
        return function(problem.feature_map, parameters).square().sum()

    parameters = problem.transform.parameters
    expected = torch.autograd.functional.hessian(loss, parameters)
    torch.testing.assert_close(torch.func.hessian(loss)(parameters), expected)
    assert expected.any()


def test_a_tangent_met_in_backward_runs_through_it():
    """A dual gradient of a result that was recorded without any tangent."""
    problem = random_gradients(1, settled_warp(**SIZES))
    function, operands = as_function(problem.warp)
    direction = random_values(2, problem.warp.output_shape, torch.float64)
    output = function(*operands)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(problem.grad_output, direction)
        gradients = torch.autograd.grad(output, operands, grad)
        tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]
    expected = exact_gradients(WarpGradientsProblem(problem.warp, direction))
    for tangent, exact in zip(tangents, expected, strict=True):
        torch.testing.assert_close(tangent, exact, rtol=1e-11, atol=1e-11)


def test_vmap_is_the_batch():
    """Mapping over single items gives what the batch gives, and so do gradients per item."""
    problem = random_warp(1)
    grads = random_values(2, problem.output_shape, torch.float64)

    def one(feature_map, theta):
        return warp(feature_map[None], Affine(theta[None]), problem.output_size)[0]

    def loss(theta, feature_map, grad):
        return (one(feature_map, theta) * grad).sum()

    mapped = torch.func.vmap(one)(*problem.operands)
    torch.testing.assert_close(mapped, warp(*_as_arguments(problem)), rtol=1e-12, atol=1e-12)
    per_item = torch.func.vmap(torch.func.grad(loss))(
        problem.transform.theta, problem.feature_map, grads
    )
    exact = exact_gradients(WarpGradientsProblem(problem, grads))[1]
    torch.testing.assert_close(per_item, exact, rtol=1e-11, atol=1e-11)


def _as_arguments(problem):
    return problem.feature_map, problem.transform, problem.output_size


def test_an_integer_result_has_no_tangent():
    """Grey levels are warped as ever; there is no direction between them."""
    theta = torch.eye(2, 3)[None]
    grey = random_values(1, (1, 1, 4, 4), torch.uint8)
    with forward_ad.dual_level():
        output = warp(grey, Affine(forward_ad.make_dual(theta, torch.ones_like(theta))))
        assert forward_ad.unpack_dual(output).tangent is None
    assert torch.equal(output, grey)
