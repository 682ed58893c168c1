"""The operations as torch operators: what tracers, compilers and autograd see of them."""

import gc
import itertools
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import stn_engine
from stn_engine import (
    Affine,
    GridGradientsProblem,
    GridProblem,
    ParameterError,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
    WarpSpec,
    generate_grid,
    operators,
    warp,
    warp_gradients,
)
from support.strategies import (
    DTYPES,
    INTERPOLATIONS,
    KINDS,
    KINDS_AND_SIZES,
    PADDINGS,
    as_function,
    random_gradients,
    random_values,
    random_warp,
)

per_kind = pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
per_recording = pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])

SPECS = [
    WarpSpec(interpolation=interpolation, padding=padding, fill=(0.5, -1.0, 2.0))
    for interpolation, padding in itertools.product(INTERPOLATIONS, PADDINGS)
]
BATCHES = [(2, 2), (1, 2), (2, 1)]


def case(kind, sizes, dtypes=DTYPES):
    """A warp of this kind; dtype, spec and broadcast go round with the kinds."""
    turn = KINDS.index(kind) + len(sizes["size"])
    dtype, spec = dtypes[turn % len(dtypes)], SPECS[turn % len(SPECS)]
    return random_warp(turn, kind=kind, dtype=dtype, spec=spec, batch=BATCHES[turn % 3], **sizes)


def checked(operator, problem, recorded):
    """What opcheck says of an operator with the arguments that stand for ``problem``."""
    arguments = operator.arguments(problem)
    if recorded:
        tensors = [operand.clone() for operand in problem.operands]
        for tensor in tensors:
            tensor.requires_grad_(tensor.is_floating_point())
        arguments = (*tensors, *arguments[len(tensors) :])
    return set(opcheck(operator.torch_operator, arguments).values())


@per_kind
@per_recording
def test_warp_is_a_well_behaved_operator(kind, sizes, recorded):
    """Schema, shapes, derivatives and captured graphs agree with what it does."""
    assert checked(operators.warp, case(kind, sizes), recorded) == {"SUCCESS"}


@per_kind
@per_recording
def test_warp_gradients_is_a_well_behaved_operator(kind, sizes, recorded):
    """As warp, for all three operands."""
    problem = random_gradients(1, case(kind, sizes, DTYPES[:-1]))
    assert checked(operators.warp_gradients, problem, recorded) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("kind", "sizes"), [param for param in KINDS_AND_SIZES if "grid" not in param.values]
)
@per_recording
def test_generate_grid_is_a_well_behaved_operator(kind, sizes, recorded):
    """As warp, and so is its gradient."""
    grid = GridProblem(case(kind, sizes).transform, sizes["output_size"], align_corners=True)
    grad_grid = random_values(1, grid.output_shape, grid.output_dtype)
    gradients = GridGradientsProblem(grid, grad_grid)
    assert checked(operators.generate_grid, grid, recorded) == {"SUCCESS"}
    assert checked(operators.generate_grid_gradients, gradients, recorded) == {"SUCCESS"}


def test_operators_return_dense_tensors_whatever_the_layout_of_operands():
    """Captured graphs rely on the strides they were promised."""
    warped = random_warp(1)
    channels_last = warped.feature_map.contiguous(memory_format=torch.channels_last)
    transposed = warped.transform.theta.transpose(1, 2).contiguous().transpose(1, 2)
    problem = random_gradients(2, warped.bound(channels_last, transposed), needs=("transform",))
    expanded = torch.ones((), dtype=torch.float64).expand(warped.output_shape)
    problem = problem.bound(expanded, *problem.warp.operands)
    assert checked(operators.warp, problem.warp, recorded=False) == {"SUCCESS"}
    assert checked(operators.warp_gradients, problem, recorded=False) == {"SUCCESS"}


def test_operators_check_their_arguments():
    """Whoever calls them past the public functions meets the same checks."""
    problem = random_warp(1)
    *operands, size, _, settings = operators.warp.arguments(problem)[:5]
    spec = operators.warp.arguments(problem)[5:]
    with pytest.raises(ParameterError, match=r"^transform: expected Affine \| .*, got 'Shear'"):
        torch.ops.stn_engine.warp(*operands, size, "Shear", settings, *spec)
    with pytest.raises(ParameterError, match=r"^output_size: expected two integers"):
        torch.ops.stn_engine.warp(*operands, [3], "Affine", settings, *spec)
    for fill, remainder in (([0.0], [1, 2]), ([float("inf")], [1])):
        given = *spec[:2], fill, remainder, *spec[4:]
        with pytest.raises(ParameterError, match=r"^fill_remainder: expected none"):
            torch.ops.stn_engine.warp(*operands, size, "Affine", settings, *given)


class Witness(TorchDispatchMode):
    """Notes the name of every operator that runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((func.name(), args))
        return func(*args, **(kwargs or {}))

    def names(self):
        return [name for name, _ in self.seen]


def test_who_watches_sees_one_operator_each_way():
    """Not the dozens of operators of a composition, and only the gradient that is needed."""
    problem = random_warp(3)
    theta = problem.transform.theta.clone().requires_grad_()
    with Witness() as forward:
        output = warp(problem.feature_map, Affine(theta))
    with Witness() as backward:
        output.backward(torch.ones_like(output))
    assert forward.names() == ["stn_engine::warp"]
    assert [name for name in backward.names() if "stn" in name] == ["stn_engine::warp_gradients"]
    needs = [args[3:5] for name, args in backward.seen if "stn" in name]
    assert needs == [(False, True)]  # of the feature map, of the transform


def test_a_recorded_warp_keeps_nothing_but_its_saved_tensors():
    """What hooks on saved tensors take away is gone: checkpoints and offloading save memory."""
    theta = torch.eye(2, 3)[None].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        feature_map = torch.rand(1, 1, 4, 4)
        output = warp(feature_map, Affine(theta))
    kept = weakref.ref(feature_map)
    del feature_map
    gc.collect()
    assert kept() is None
    output.sum().backward()
    assert theta.grad.shape == (1, 2, 3)


def test_constants_made_while_traced_are_not_kept():
    """A fake tensor in a cache would spoil every later call of the same sizes."""
    problem = random_warp(4, size=(13, 17), output_size=(11, 19))
    spline = random_warp(5, kind="thin_plate_spline", size=(13, 17), output_size=(11, 19))
    for one in (problem, spline):
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(operand) for operand in one.operands]
            fake = operators.COMPOSITION.warp([one.bound(*fakes)])[0]
        real = operators.COMPOSITION.warp([one])[0]
        assert fake.shape == real.shape
        assert type(real) is torch.Tensor


def compiled(function, *, dynamic):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)


def results_of(functions, operands):
    """Value and gradients of each function."""
    results = []
    for function in functions:
        output = function(*operands)
        grad = random_values(7, tuple(output.shape), output.dtype)
        results.append((output.detach(), *torch.autograd.grad(output, operands, grad)))
    return results


def assert_same_with_gradients(ours, theirs, operands):
    """Values and gradients of two functions are the same bits."""
    for one, other in zip(*results_of((ours, theirs), operands), strict=True):
        assert torch.equal(one, other)


def as_maker(kind):
    """From parameters to a transform, by the constructor itself, as users write it."""
    transform = random_warp(0, kind=kind).transform
    if kind != "thin_plate_spline":
        return type(transform)
    control_points, regularization = transform.settings
    return lambda points: ThinPlateSpline(
        points, control_points=control_points, regularization=regularization
    )


@per_kind
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_warp_compiles_without_a_break(kind, sizes, dynamic):
    """Transforms are made inside; with dynamic sizes one graph serves every size."""
    make, spec = as_maker(kind), case(kind, sizes).spec

    def function(feature_map, parameters):
        size = [extent + 1 for extent in feature_map.shape[2:]]
        size = None if kind in {"grid", "flow"} else size
        return warp(
            feature_map,
            make(parameters),
            size,
            interpolation=spec.interpolation,
            padding=spec.padding,
            fill=spec.fill,
        )

    graph = compiled(function, dynamic=dynamic)
    first, second = (
        # Extents that are equal at first, to the number of control points say, stay one symbol.
        {name: tuple(extent + more for extent in size) for name, size in sizes.items()}
        for more in (5, 10)
    )
    _, operands = as_function(random_warp(1, kind=kind, **first))
    assert_same_with_gradients(graph, function, operands)
    _, operands = as_function(random_warp(2, kind=kind, **second))
    with torch.compiler.set_stance("fail_on_recompile" if dynamic else "default"):
        assert_same_with_gradients(graph, function, operands)


def test_a_network_around_a_warp_compiles_without_a_break():
    """The README's use: localisation, generator and sampler in one graph, and the drop-ins."""
    head = torch.nn.Linear(3, 4).double()

    def function(feature_map, bias):
        located = Similarity(head(feature_map.mean((2, 3))) + bias)
        grid = generate_grid(located, (4, 5))
        moved = warp(feature_map, SamplingGrid(grid), padding="border") + warp(
            feature_map, located, (4, 5), coordinates="pixel", subgradient="zero"
        )
        theta = torch.eye(2, 3).double()[None].expand(2, -1, -1) * bias[0]
        size = (2, 3, 4, 5)
        again = stn_engine.affine_grid(theta, size, align_corners=True)
        return moved + stn_engine.grid_sample(feature_map, again, align_corners=True)

    feature_map = random_values(1, (2, 3, 6, 7), torch.float64).requires_grad_()
    bias = random_values(2, (4,), torch.float64).requires_grad_()
    graph = compiled(function, dynamic=False)
    # Not bit for bit: torch's own sums around the warps may run in another order in a graph.
    for one, other in zip(*results_of((graph, function), (feature_map, bias)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_compile_without_a_break():
    """The vector-Jacobian product on its own, recorded or not, is part of a graph too."""

    def function(grad_output, feature_map, theta):
        gradients = warp_gradients(grad_output, feature_map, Affine(theta))
        return gradients.feature_map.sum((2, 3)) + gradients.transform.sum()

    problem = random_gradients(1, random_warp(2))
    operands = tuple(operand.clone() for operand in problem.operands)
    graph = compiled(function, dynamic=False)
    assert torch.equal(graph(*operands), function(*operands))
    recorded = tuple(operand.requires_grad_() for operand in operands)
    assert_same_with_gradients(graph, function, recorded)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # used by inductor
def test_warp_compiles_with_the_default_backend(tmp_path, monkeypatch):
    """Whose graphs check the strides and sizes they were promised."""
    # What another version of the engine left in the cache of the machine would be run in its place.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def function(feature_map, parameters):
        return warp(feature_map, Translation(parameters))

    torch._dynamo.reset()
    graph = torch.compile(function, fullgraph=True)
    _, operands = as_function(random_warp(1, kind="translation"))
    assert_same_with_gradients(graph, function, operands)
