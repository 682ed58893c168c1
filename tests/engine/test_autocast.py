"""Calls under torch.autocast, and under a default device that is not that of the operands."""

import pytest
import torch

from stn_engine import (
    Affine,
    DTypeError,
    GridProblem,
    WarpProblem,
    generate_grid,
    generate_grid_gradients,
    generate_grid_ragged,
    warp,
    warp_gradients,
    warp_ragged,
)
from support.strategies import (
    GENERATORS,
    KINDS_AND_SIZES,
    random_gradients,
    random_values,
    random_warp,
)

HALVES = [torch.float16, torch.bfloat16]
per_half = pytest.mark.parametrize("half", HALVES, ids=str)


@per_half
@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_parameters_in_half_precision_are_computed_in_float32(half, kind, sizes):
    """What a layer under autocast makes of theta is read as float32 of the same values."""
    problem = random_warp(1, kind=kind, dtype=torch.float32, **sizes)
    rounded = problem.transform.parameters.to(half)
    wide = problem.transform.with_parameters(rounded.float())
    leaf = rounded.clone().requires_grad_()
    with torch.autocast("cpu", dtype=half):
        transform = problem.transform.with_parameters(leaf)
        assert transform.parameters.dtype == torch.float32
        v = warp(problem.feature_map, transform, sizes["output_size"])
        (ragged,) = warp_ragged([WarpProblem(problem.feature_map, transform, sizes["output_size"])])
    assert v.dtype == torch.float32
    assert torch.equal(v, warp(problem.feature_map, wide, sizes["output_size"]))
    assert torch.equal(ragged, v)
    grad = random_values(2, tuple(v.shape), torch.float32)
    (got,) = torch.autograd.grad(v, leaf, grad)
    expected = warp_gradients(grad, problem.feature_map, wide).transform
    assert torch.equal(got, expected.to(half))


@per_half
def test_gradients_in_half_precision_are_those_of_a_float32_result(half):
    """The vector-Jacobian product takes what a layer behind the warp hands back."""
    problem = random_gradients(2, random_warp(1, dtype=torch.float32))
    grad, theta = problem.grad_output.to(half), problem.warp.transform.theta.to(half)
    with torch.autocast("cpu", dtype=half):
        got = warp_gradients(grad, problem.warp.feature_map, Affine(theta))
    expected = warp_gradients(grad.float(), problem.warp.feature_map, Affine(theta.float()))
    assert torch.equal(got.feature_map, expected.feature_map)
    assert torch.equal(got.transform, expected.transform)


@per_half
@pytest.mark.parametrize("kind", GENERATORS)
def test_grids_of_parameters_in_half_precision_are_float32(half, kind):
    """The generator alone, and its gradient."""
    transform = random_warp(1, kind=kind, dtype=torch.float32).transform
    rounded = transform.parameters.to(half)
    wide = transform.with_parameters(rounded.float())
    grad = random_values(3, (2, 4, 6, 2), half)
    with torch.autocast("cpu", dtype=half):
        narrow = transform.with_parameters(rounded)
        grid, (ragged,) = (
            generate_grid(narrow, (4, 6)),
            generate_grid_ragged([GridProblem(narrow, (4, 6))]),
        )
        gradient = generate_grid_gradients(grad, narrow)
    assert torch.equal(grid, generate_grid(wide, (4, 6)))
    assert torch.equal(ragged, grid)
    assert torch.equal(gradient, generate_grid_gradients(grad.float(), wide))


@per_half
def test_half_precision_without_autocast_stays_an_error(half):
    """A coordinate in half precision misses by pixels; whoever wants that has to say so."""
    theta = torch.eye(2, 3, dtype=half)[None]
    with pytest.raises(DTypeError, match=r"^theta: expected torch.float32 or torch.float64, got"):
        Affine(theta)
    with (
        torch.autocast("cpu", enabled=False),
        pytest.raises(DTypeError, match=r"^theta: expected torch.float32"),
    ):
        Affine(theta)


def test_other_dtypes_are_errors_under_autocast():
    """Autocast makes no integers."""
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(DTypeError, match=r"^theta: expected torch.float32 or .*, got torch.int64"),
    ):
        Affine(torch.zeros(1, 2, 3, dtype=torch.int64))


def test_a_compiled_network_under_autocast_runs():
    """A layer in bfloat16 before the warp, in one graph."""
    layer = torch.nn.Linear(4, 6)
    u, features = torch.rand(2, 3, 5, 6), torch.rand(2, 4)

    def network(u, features):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return warp(u, Affine(layer(features).view(-1, 2, 3)))

    expected = network(u, features)
    got = torch.compile(network, backend="eager", fullgraph=True)(u, features)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_results_are_where_operands_are(kind, sizes):
    """Constants that a call needs do not follow the default device."""
    size = (3, 7, 5)[-len(sizes["size"]) :]  # of its own, so that no constant is there already
    problem = random_gradients(2, random_warp(1, kind=kind, size=sizes["size"], output_size=size))
    u, transform = problem.warp.feature_map, problem.warp.transform
    with torch.device("meta"):
        results = [
            warp(u, transform, size),
            *warp_ragged([problem.warp]),
            warp_gradients(problem.grad_output, u, transform).transform,
        ]
        if kind != "grid":
            grid = generate_grid(transform, size)
            results += [grid, generate_grid_gradients(grid, transform)]
    assert {result.device.type for result in results} == {"cpu"}
