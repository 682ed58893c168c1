"""Problems and specs as data: normalised, hashable, and cheap at any size."""

import gc
import re
import weakref
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from stn_engine import (
    Affine,
    Flow,
    GridGradientsProblem,
    GridProblem,
    Padding,
    SamplingGrid,
    ThinPlateSpline,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    generate_grid,
    generate_grid_gradients,
    generate_grid_gradients_ragged,
    generate_grid_ragged,
    warp,
    warp_gradients_ragged,
    warp_ragged,
)
from stn_engine.backends.cpu import CpuBackend
from support.strategies import (
    GENERATORS,
    KINDS_AND_SIZES,
    random_gradients,
    random_transform,
    random_values,
    random_warp,
)

THETA = Affine(torch.zeros(4, 2, 3, dtype=torch.float64))


def test_spec_is_normalised_and_hashable():
    """Strings become enum members, fill a tuple of floats, and equal specs one dictionary key."""
    spec = WarpSpec(padding="fill", fill=[1, 2])
    assert spec.padding is Padding.FILL
    assert spec.fill == (1.0, 2.0)
    assert {spec: 1}[WarpSpec(padding=Padding.FILL, fill=(1.0, 2.0))] == 1
    assert replace(spec, padding="zeros") == WarpSpec(fill=(1.0, 2.0))


def test_spec_of_negative_zero_is_that_of_zero():
    """Equal specs give equal bits, or a result would depend on what it was batched with."""
    assert str(WarpSpec(fill=-0.0).fill[0]) == "0.0"


def test_spec_keeps_labels_that_no_float_is():
    """Numbers are floats, whatever they were, but for integers of 64 bits that would lose some."""
    fill = WarpSpec(fill=[2**53, 2**53 + 1, -(2**63) + 1, 2**64 - 1, 2**70 + 1, 0.5]).fill
    assert fill == (2.0**53, 2**53 + 1, -(2**63) + 1, 2**64 - 1, 2.0**70, 0.5)
    assert list(map(type, fill)) == [float, int, int, int, float, float]
    assert WarpSpec(fill=2**53 + 1) != WarpSpec(fill=2**53)
    assert WarpSpec(fill=torch.tensor([2**53 + 1])).fill == (2**53 + 1,)


def test_spec_is_frozen():
    """A valid spec stays valid."""
    with pytest.raises(FrozenInstanceError, match="padding"):
        WarpSpec().padding = "wrap"


def test_warp_problem_sizes():
    """Sizes and bytes of a broadcast warp of another size than its map."""
    problem = WarpProblem(torch.zeros(1, 3, 5, 7, dtype=torch.uint8), THETA, [2, 6])
    assert problem.output_size == (2, 6)
    assert problem.output_shape == (4, 3, 2, 6)
    assert (problem.batch_size, problem.output_samples) == (4, 48)
    assert problem.output_dtype == torch.uint8
    assert problem.input_bytes == 105 + 4 * 6 * 8
    assert problem.output_bytes == 144


def test_warp_problem_default_sizes():
    """The output is as large as the grid, or else as the feature map."""
    feature_map = torch.zeros(4, 3, 5, 7)
    assert WarpProblem(feature_map, THETA).output_shape == (4, 3, 5, 7)
    grid = SamplingGrid(torch.zeros(1, 2, 6, 2))
    assert WarpProblem(feature_map, grid).output_shape == (4, 3, 2, 6)
    assert WarpProblem(feature_map, grid, (2, 6)).output_shape == (4, 3, 2, 6)


def test_warp_gradients_problem_sizes():
    """Output bytes count only the gradients that are needed."""
    warp = WarpProblem(torch.zeros(4, 3, 5, 7), THETA, (2, 6))
    map_bytes, theta_bytes = 4 * 3 * 5 * 7 * 4, 4 * 6 * 8
    problem = WarpGradientsProblem(warp, torch.zeros(4, 3, 2, 6), ["transform", "feature_map"])
    assert problem.needs == ("feature_map", "transform")
    assert (problem.batch_size, problem.output_samples) == (4, 48)
    assert problem.input_bytes == map_bytes + theta_bytes + 4 * 3 * 2 * 6 * 4
    assert problem.output_bytes == map_bytes + theta_bytes
    assert replace(problem, needs=("transform",)).output_bytes == theta_bytes


def test_grid_problem_sizes():
    """Sizes and bytes of the generator and its adjoint."""
    problem = GridProblem(THETA, (2, 6))
    assert problem.output_shape == (4, 2, 6, 2)
    assert (problem.batch_size, problem.output_samples) == (4, 48)
    assert (problem.input_bytes, problem.output_bytes) == (4 * 6 * 8, 4 * 2 * 6 * 2 * 8)
    assert problem.output_dtype == torch.float64
    adjoint = GridGradientsProblem(problem, torch.zeros(4, 2, 6, 2, dtype=torch.float64))
    assert (adjoint.batch_size, adjoint.output_samples) == (4, 48)
    assert (adjoint.input_bytes, adjoint.output_bytes) == (4 * 6 * 8 + 768, 4 * 6 * 8)


def test_volume_problem_sizes():
    """A third axis counts as the others do."""
    deep = Affine(torch.zeros(4, 3, 4))
    problem = WarpProblem(torch.zeros(1, 2, 3, 5, 7), deep, [2, 6, 1])
    assert problem.output_size == (2, 6, 1)
    assert problem.output_shape == (4, 2, 2, 6, 1)
    assert (problem.output_samples, problem.output_bytes) == (48, 4 * 2 * 12 * 4)
    assert WarpProblem(problem.feature_map, deep).output_shape == (4, 2, 3, 5, 7)
    grid = GridProblem(deep, (2, 6, 1))
    assert (grid.output_shape, grid.output_samples) == ((4, 2, 6, 1, 3), 48)
    flow = Flow(torch.zeros(1, 2, 6, 1, 3))
    assert WarpProblem(problem.feature_map, flow).output_size == flow.own_size == (2, 6, 1)


@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_parameters_say_how_many_coordinates_points_have(kind, sizes):
    """Two in images, three in volumes."""
    assert random_warp(1, kind=kind, **sizes).transform.dims == len(sizes["size"])


def test_monstrous_sizes_are_counted_and_not_allocated():
    """A problem of 2^80 samples is made in no time and knows its exact size."""
    size = (2**40, 2**40)
    warp = WarpProblem(torch.zeros(4, 3, 5, 7), THETA, size)
    assert warp.output_samples == 4 * 2**80
    assert warp.output_bytes == 4 * 3 * 2**80 * 4
    assert GridProblem(THETA, size).output_bytes == 4 * 2**80 * 2 * 8


@pytest.mark.parametrize(
    "size", [(2**31, 1), (1, 2**31), (2**62, 1), (2**40, 2**40), (2**70, 4)], ids=str
)
@pytest.mark.parametrize("batch", [0, 1])
def test_maps_beyond_the_integers_of_the_native_module_are_left_to_others(size, batch):
    """They have no plan, for a reason."""
    theta = Affine(torch.zeros(batch, 2, 3))
    call = WarpProblem(torch.zeros(batch, 3, 5, 7), theta, size).call
    (reason,) = CpuBackend().plan(call)
    assert re.match(r"maps (are|take) at most \d+ (pixels|bytes)", reason)


def test_maps_of_many_bytes_are_left_to_others():
    """Though no axis is long."""
    size = (2**31 - 1, 2**31 - 1)
    (reason,) = CpuBackend().plan(WarpProblem(torch.zeros(4, 3, 5, 7), THETA, size).call)
    assert reason == f"maps take at most {2**63 - 1} bytes"


def test_splines_of_a_large_basis_are_left_to_others():
    """It has a double for every control point and target pixel, where a map may have a byte."""
    transform = ThinPlateSpline(torch.zeros(1, 3, 2), control_points=[(0, 0), (1, 0), (0, 1)])
    maps = torch.zeros(1, 1, 5, 7, dtype=torch.uint8)
    (reason,) = CpuBackend().plan(WarpProblem(maps, transform, (2**31 - 1, 2**31 - 1)).call)
    assert reason == f"the basis of a spline takes at most {2**63 - 1} bytes"


def test_sizes_that_can_be_read_once_are_read_once():
    """The first time and later, when the call is known."""
    image, theta = torch.rand(1, 1, 5, 7), Affine(torch.eye(2, 3)[None])
    for _ in range(2):
        assert WarpProblem(image, theta, iter((3, 11))).output_size == (3, 11)


def test_problems_that_lie_alike_share_a_call_and_hold_none_of_its_tensors():
    """Of transforms that are more than their kind, nothing is kept."""

    class Own(Affine):
        pass

    theta = Own(torch.eye(2, 3)[None].requires_grad_())
    vars(theta)["more"] = torch.zeros(3)
    held = weakref.ref(theta.more)
    warp(torch.rand(1, 1, 13, 11), theta).sum().backward()
    del theta
    gc.collect()
    assert held() is None
    first, second = (
        WarpProblem(torch.rand(1, 1, 13, 11), Affine(torch.eye(2, 3)[None])) for _ in "ab"
    )
    assert first.call is second.call


def test_own_size_is_that_of_parameters_per_pixel():
    """A flow says how large the output is, a theta does not."""
    assert Flow(torch.zeros(1, 2, 6, 2)).own_size == (2, 6)
    assert SamplingGrid(torch.zeros(1, 2, 6, 2)).own_size == (2, 6)
    assert THETA.own_size is None
    assert WarpProblem(torch.zeros(4, 3, 5, 7), Flow(torch.zeros(1, 2, 6, 2))).output_size == (2, 6)


def test_transforms_are_rebuilt_with_other_parameters():
    """with_parameters keeps the kind and validates anew."""
    other = torch.ones(1, 2, 3)
    assert THETA.with_parameters(other).parameters is other
    grid = SamplingGrid(torch.zeros(1, 2, 6, 2)).with_parameters(torch.ones(1, 1, 1, 2))
    assert isinstance(grid, SamplingGrid)
    with pytest.raises(ValueError, match="theta: expected shape"):
        THETA.with_parameters(torch.ones(2, 3))


def test_splines_keep_their_settings():
    """Control points are numbers, comparable, and survive with_parameters."""
    control = torch.tensor([[0, 0], [1, 0], [0, 1]])
    spline = ThinPlateSpline(torch.zeros(1, 3, 2), control_points=control, regularization=2.0)
    assert spline.control_points == ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    other = spline.with_parameters(torch.ones(2, 3, 2))
    assert other.settings == spline.settings == (spline.control_points, 2.0)
    assert THETA.settings is None


def test_a_problem_on_meta_tensors_binds_to_real_ones():
    """A description that was validated without memory runs on operands that come later."""
    planned = WarpProblem(
        torch.empty(1, 1, 2, 3, device="meta"), Affine(torch.empty(1, 2, 3, device="meta")), (2, 2)
    )
    feature_map, theta = torch.rand(1, 1, 2, 3), torch.eye(2, 3)[None]
    bound = planned.bound(feature_map, theta)
    assert bound.feature_map is feature_map
    assert bound.transform.theta is theta
    assert (bound.spec, bound.output_shape) == (planned.spec, planned.output_shape)
    expected = warp(feature_map, Affine(theta), (2, 2))
    assert torch.equal(warp_ragged([bound])[0], expected)
    assert planned.feature_map.is_meta


@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_every_problem_binds_its_operands(kind, sizes):
    """Operands come in the constructor's order; results are those of a problem built so."""
    warped = random_gradients(1, random_warp(2, kind=kind, dtype=torch.float32, **sizes))
    operands = warped.grad_output, warped.warp.feature_map, warped.warp.transform.parameters
    planned = on_meta(warped)
    bound = planned.bound(*operands)
    assert type(bound.warp.transform) is type(warped.warp.transform)
    (found,), (expected,) = (warp_gradients_ragged([one]) for one in (bound, warped))
    assert torch.equal(found.feature_map, expected.feature_map)
    assert torch.equal(found.transform, expected.transform)
    assert torch.equal(*(warp_ragged([one.warp])[0] for one in (bound, warped)))
    assert planned.warp.transform.parameters.is_meta


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_grid_problem_binds_its_operands(kind):
    """As warps do."""
    transform = random_transform(3, kind, 2, (5, 7), (2, 3), "normalized")
    blank = transform.with_parameters(transform.parameters.to("meta"))
    grad_grid = random_values(4, (2, 2, 3, 2), torch.float64)
    planned = GridGradientsProblem(GridProblem(blank, (2, 3)), grad_grid.to("meta"))
    bound = planned.bound(grad_grid, transform.parameters)
    grid, gradient = generate_grid(transform, (2, 3)), generate_grid_gradients(grad_grid, transform)
    assert torch.equal(generate_grid_ragged([bound.grid])[0], grid)
    assert torch.equal(generate_grid_gradients_ragged([bound])[0], gradient)


def on_meta(problem):
    """The same gradients problem without memory."""
    warped = problem.warp
    transform = warped.transform.with_parameters(warped.transform.parameters.to("meta"))
    warped = WarpProblem(warped.feature_map.to("meta"), transform, warped.output_size, warped.spec)
    return WarpGradientsProblem(warped, problem.grad_output.to("meta"))
