"""Objectives: warp, compare and differentiate in one pass; section 7."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from stn_engine import (
    Affine,
    Comparison,
    DTypeError,
    Flow,
    InvalidInputError,
    ObjectiveProblem,
    ParameterError,
    SamplingGrid,
    ShapeError,
    ThinPlateSpline,
    Translation,
    WarpProblem,
    WarpSpec,
    _cpu,
    dispatch,
    objective,
    objective_ragged,
    operators,
    reference,
)
from stn_engine.backends.cpu import CpuBackend
from stn_engine.backends.reference import ReferenceBackend
from support.backends import BACKENDS, FAST
from support.objectives import (
    DOMAINS,
    IMAGE,
    LOSSES,
    VOLUME,
    exact_objective,
    item_of,
    parts_of,
    random_objective,
    spec_for,
    torch_objective,
)
from support.strategies import CONVENTIONS, INTERPOLATIONS, KINDS, PADDINGS, VOLUME_KINDS
from support.tolerances import GRADIENT, assert_close_in_norm, compute_dtype

# Of torch itself, in forward mode and under torch.compile.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BATCHES = ((1, 1, 1, 1), (1, 3, 1, 1), (2, 2, 2, 2), (1, 1, 2, 1), (2, 1, 1, 2), (1, 1, 1, 2))
KINDS_AND_SIZES = [
    *(pytest.param(kind, IMAGE, id=kind) for kind in KINDS),
    *(pytest.param(kind, VOLUME, id=f"{kind} of volumes") for kind in VOLUME_KINDS),
]

LONG_ROWS = [
    *(
        pytest.param(kind, {"size": (6, 90), "output_size": (3, 100)}, id=kind)
        for kind in ("affine", "homography", "thin_plate_spline", "flow")
    ),
    pytest.param(
        "affine", {"size": (4, 5, 90), "output_size": (2, 3, 100)}, id="affine of volumes"
    ),
]

per_loss = pytest.mark.parametrize("loss", LOSSES)
per_domain = pytest.mark.parametrize("domain", DOMAINS)
per_kind = pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
per_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: one.name)
per_fast_backend = pytest.mark.parametrize("backend", FAST, ids=lambda one: one.name)


def assert_conforms(backend, problem):
    """All results are those of the reference, within the tolerance of gradients."""
    found, exact = backend.objective([problem])[0], exact_objective(problem)
    assert parts_of(found).keys() == parts_of(exact).keys()
    dtypes = compute_dtype(problem.warp.output_dtype), problem.warp.transform.parameters.dtype
    tolerance = max(GRADIENT[dtype] for dtype in dtypes)
    for name, part in parts_of(found).items():
        assert_close_in_norm(part, parts_of(exact)[name], tolerance)
    assert found.value.dtype == found.count.dtype == torch.float64


def assert_same(found, expected):
    """All results have the same bits."""
    for name, part in parts_of(expected).items():
        assert torch.equal(parts_of(found)[name], part), name


def scaled(problem, scale):
    """The same comparison of maps in another unit of brightness."""
    warp = replace(problem.warp, feature_map=problem.warp.feature_map * scale)
    comparison = replace(problem.comparison, delta=problem.comparison.delta * scale)
    return replace(problem, warp=warp, fixed=problem.fixed * scale, comparison=comparison)


# The oracle.


@per_loss
@per_domain
@pytest.mark.parametrize("align_corners", [False, True])
@per_kind
def test_reference_equals_torch(loss, domain, align_corners, kind, sizes):
    """Values, gradients and curvatures are those that torch's autograd finds of grid_sample."""
    spec = spec_for(domain, align_corners=align_corners)
    problem = random_objective(4, loss=loss, domain=domain, kind=kind, spec=spec, **sizes)
    found, expected = exact_objective(problem), torch_objective(problem)
    for name, part in parts_of(expected).items():
        assert_close_in_norm(parts_of(found)[name], part, 1e-11)


def test_reference_by_hand():
    """V = (1, 2, 5, 4) against F = (0, 4, 5, 0) with weights (1, 2, 1, 0): M = 4."""
    V, F = np.array([[[1.0, 2.0, 5.0, 4.0]]]), np.array([[[0.0, 4.0, 5.0, 0.0]]])
    w = np.array([[1.0, 2.0, 1.0, 0.0]])
    ssd = reference.compare(V, F, w, reference.Comparing(loss="ssd"))
    assert (ssd.value, ssd.count) == ((1 + 2 * 4 + 0) / 4, 4)
    assert ssd.G.ravel().tolist() == [2 / 4, -2 * 2 * 2 / 4, 0, 0]
    assert ssd.curvature.ravel().tolist() == [2 / 4, 4 / 4, 2 / 4, 0]
    huber = reference.compare(V, F, w, reference.Comparing(loss="huber", delta=1.0))
    assert huber.value == (0.5 + 2 * (2 - 0.5)) / 4
    assert huber.G.ravel().tolist() == [1 / 4, -2 / 4, 0, 0]
    assert huber.curvature.ravel().tolist() == [1 / 4, 0, 1 / 4, 0]
    # Means 2.5 and 3.25; A = 2.25 + 0.5 + 6.25 = 9, B = 10.5625 + 1.125 + 3.0625 = 14.75,
    # S = 4.875 - 0.75 + 4.375 = 8.5.
    ncc = reference.compare(V, F, w, reference.Comparing(loss="ncc"))
    assert ncc.value == pytest.approx(1 - 8.5 / (9 * 14.75) ** 0.5, abs=1e-15)


# Every backend.


@per_fast_backend
@per_loss
@per_domain
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@per_kind
def test_backend_conforms(backend, loss, domain, interpolation, kind, sizes):
    """Every kind of transform by every loss, on either domain, in every interpolation."""
    spec = spec_for(domain, interpolation=interpolation)
    problem = random_objective(5, loss=loss, domain=domain, kind=kind, spec=spec, **sizes)
    assert_conforms(backend, problem)


@per_fast_backend
@per_loss
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["affine", "homography", "flow"])
def test_backend_conforms_in_batches(backend, loss, batch, dtype, kind):
    """Every operand may be shared; every item has a gradient of its own."""
    problem = random_objective(6, loss=loss, batch=batch, dtype=dtype, kind=kind)
    assert problem.batch_size == max(batch)
    assert_conforms(backend, problem)


@per_fast_backend
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
@pytest.mark.parametrize("subgradient", ["right", "zero"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_backend_conforms_in_options(
    backend, padding, coordinates, align_corners, subgradient, interpolation
):
    """What is read outside counts under domain "all"."""
    spec = WarpSpec(
        padding=padding,
        fill=(0.5, -1.0),
        coordinates=coordinates,
        align_corners=align_corners,
        subgradient=subgradient,
        interpolation=interpolation,
    )
    assert_conforms(backend, random_objective(7, loss="huber", domain="all", spec=spec))


@per_fast_backend
@per_loss
@pytest.mark.parametrize("kind", ["affine", "homography", "thin_plate_spline", "flow", "grid"])
def test_large_maps_conform(backend, loss, kind):
    """Rows longer than a block, and more pixels than a chunk."""
    sizes = {"size": (75, 90), "output_size": (70, 100)}
    problem = random_objective(8, loss=loss, kind=kind, dtype=torch.float64, **sizes)
    assert_conforms(backend, replace(problem, needs=("gradient",)))


@per_fast_backend
@per_loss
@per_domain
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("kind", "sizes"), LONG_ROWS)
def test_long_rows_conform(backend, loss, domain, weighted, kind, sizes):
    """Blocks within a row, whole ones and the rest of it, with all results."""
    spec = spec_for(domain)
    problem = random_objective(
        32, loss=loss, domain=domain, weighted=weighted, kind=kind, spec=spec, **sizes
    )
    assert_conforms(backend, problem)


@per_fast_backend
@per_loss
@pytest.mark.parametrize("kind", ["affine", "homography", "thin_plate_spline", "flow"])
def test_all_points_conform_without_weights(backend, loss, kind):
    """Blocks across rows of which every point counts once."""
    spec = spec_for("all")
    problem = random_objective(
        33, loss=loss, domain="all", weighted=False, kind=kind, spec=spec, **IMAGE
    )
    assert_conforms(backend, problem)


@per_backend
@per_loss
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, 90), (torch.float32, -90), (torch.float64, 300), (torch.float64, -300)],
)
@pytest.mark.parametrize("kind", ["affine", "homography", "thin_plate_spline", "flow"])
def test_the_unit_of_maps_does_not_matter(backend, loss, dtype, exponent, kind):
    """Products of numbers of the maps, and products of such sums, may be far beyond their dtype."""
    problem = random_objective(34, loss=loss, kind=kind, dtype=dtype, parameter_dtype=torch.float64)
    found = backend.objective([scaled(problem, 2.0**exponent)])[0]
    exact = exact_objective(problem)
    for name, part in parts_of(found).items():
        unit = 1.0 if name == "count" or loss == "ncc" else 2.0 ** (2 * exponent)
        assert_close_in_norm(part / unit, getattr(exact, name), GRADIENT[dtype])


@per_fast_backend
@pytest.mark.parametrize("loss", ["ssd", "huber"])
@pytest.mark.parametrize("kind", ["flow", "grid"])
def test_a_float32_field_has_room_for_every_gradient_that_fits(backend, loss, kind):
    """The sums that a gradient is divided by are large; nothing overflows before that."""
    problem = random_objective(35, loss=loss, kind=kind, dtype=torch.float32, size=(20, 22))
    extreme = scaled(problem, 2.0**63)
    exact = exact_objective(extreme)
    size = extreme.fixed.shape[1] * exact.count.item()
    limit = torch.finfo(torch.float32).max
    assert exact.gradient.abs().max() < limit < exact.gradient.abs().max() * size / 2
    assert_conforms(backend, extreme)


@per_fast_backend
@pytest.mark.parametrize("kind", ["translation", "flow", "thin_plate_spline"])
def test_ncc_near_a_match_at_a_large_offset(backend, kind):
    """Where G is small against the means, these are not rounded to the dtype of the maps.

    Points lie on quarters of pixels, so that float32 has every V exactly.
    """
    size, offset = (12, 14), torch.tensor([0.25, -0.5])
    control = torch.tensor([[1.0, 1.0], [11.0, 2.0], [2.0, 9.0], [12.0, 10.0], [6.0, 5.0]])
    transform = {
        "translation": Translation(offset[None]),
        "flow": Flow(offset.expand(1, *size, 2).contiguous()),
        "thin_plate_spline": ThinPlateSpline((control + offset)[None], control_points=control),
    }[kind]
    generator = torch.Generator().manual_seed(36)
    steps = torch.randint(-64, 65, (1, 1, *size), generator=generator)
    moving = 1000 + steps.float() / 64
    spec = WarpSpec(coordinates="pixel", padding="border")
    warp = WarpProblem(moving, transform, size, spec)
    noise = torch.randint(-32, 33, (1, 1, *size), generator=generator).float() / 1024
    fixed = ReferenceBackend().warp([warp])[0] + noise
    assert_conforms(backend, ObjectiveProblem(warp, fixed, None, Comparison(loss="ncc")))


@per_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["affine", "flow", "thin_plate_spline"])
@per_loss
def test_the_value_does_not_depend_on_what_else_is_needed(backend, loss, dtype, kind):
    """Its bits are the same alone and beside a gradient."""
    problem = random_objective(37, loss=loss, kind=kind, dtype=dtype)
    alone = backend.objective([replace(problem, needs=())])[0]
    beside = backend.objective([problem])[0]
    assert torch.equal(alone.value, beside.value)
    assert torch.equal(alone.count, beside.count)


@per_fast_backend
def test_weights_may_be_left_out(backend):
    """Without weights all points of the overlap count once."""
    problem = random_objective(9, weighted=False)
    assert_conforms(backend, problem)
    ones = replace(problem, weights=torch.ones(1, 1, *IMAGE["output_size"]).double())
    assert_same(backend.objective([ones])[0], backend.objective([problem])[0])


@per_fast_backend
@per_loss
def test_operands_are_read_where_they_lie(backend, loss):
    """Strides make no difference, to the last bit."""
    problem = random_objective(10, loss=loss, dtype=torch.float32)
    moving, parameters, fixed, weights = problem.operands
    last = torch.channels_last
    strided = problem.bound(
        moving.contiguous(memory_format=last),
        parameters.repeat(1, 1, 2)[..., :3],
        fixed.transpose(2, 3).contiguous().transpose(2, 3),
        weights.repeat_interleave(2, 3)[..., ::2],
    )
    assert_same(backend.objective([strided])[0], backend.objective([problem])[0])


@per_fast_backend
@per_loss
@pytest.mark.parametrize("kind", ["affine", "flow", "thin_plate_spline"])
def test_items_are_computed_as_if_alone(backend, loss, kind):
    """A batch is the concatenation of its items, and so is a ragged call, bit for bit."""
    sizes = {"size": (40, 50), "output_size": (70, 90)}
    batches = [(2, 2, 2, 2), (1, 3, 1, 1)]
    problems = [
        random_objective(
            11, loss=loss, kind=kind, batch=batch, dtype=torch.float32, **(sizes if large else {})
        )
        for batch, large in itertools.product(batches, (False, True))
    ]
    together = backend.objective(problems)
    for problem, found in zip(problems, together, strict=True):
        assert_same(backend.objective([problem])[0], found)
        for n in range(problem.batch_size):
            alone = backend.objective([item_of(problem, n)])[0]
            for name, part in parts_of(alone).items():
                assert torch.equal(parts_of(found)[name][[n]], part), name


@per_backend
def test_a_fixed_pixel_that_is_nan_has_no_weight_in_the_curvature_of_huber(backend):
    """It is as far as one beyond delta, on every backend; that of the reference."""
    problem = random_objective(21, loss="huber", weighted=False, dtype=torch.float64)
    problem.fixed[0, 0, 2, 3] = torch.nan
    (found,), expected = backend.objective([problem]), exact_objective(problem)
    assert expected.gauss_newton.isfinite().all()
    torch.testing.assert_close(found.gauss_newton, expected.gauss_newton)


@per_loss
@pytest.mark.parametrize("kind", ["affine", "homography", "flow"])
def test_threads_make_no_difference(loss, kind, any_threads):
    """Sums have one order, whoever computes their parts."""
    sizes = {"size": (130, 150), "output_size": (140, 170)}
    problem = random_objective(12, loss=loss, kind=kind, dtype=torch.float32, **sizes)
    results = []
    for threads in (1, 2, 5):
        any_threads(threads)
        results.append(CpuBackend().objective([problem])[0])
    for result in results[1:]:
        assert_same(result, results[0])


@per_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("kind", "sizes"), [("affine", IMAGE), ("homography", IMAGE), *LONG_ROWS])
def test_instruction_sets_make_no_difference(loss, dtype, interpolation, kind, sizes):
    """All levels of the machine give the same bits."""
    options = {"loss": loss, "kind": kind, "dtype": dtype, **sizes}
    spec = WarpSpec(interpolation=interpolation)
    problems = [
        random_objective(13, weighted=weighted, spec=spec, **options) for weighted in (True, False)
    ]
    best, results = _cpu.instruction_set(), []
    try:
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            results.append(CpuBackend().objective(problems))
    finally:
        _cpu.use_instruction_set(best)
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            assert_same(found, expected)


def test_many_thetas_need_no_more_memory_each():
    """Items that do not fit beside each other are computed one wave after the other."""
    problem = random_objective(14, batch=(1, 700, 1, 1), dtype=torch.float32)
    found = CpuBackend().objective([problem])[0]
    for n in (0, 350, 699):
        assert_same(
            CpuBackend().objective([item_of(problem, n)])[0],
            replace(found, **{name: part[[n]] for name, part in parts_of(found).items()}),
        )


# Derivatives.


def as_function(problem):
    """The value by moving, parameters, fixed and weights."""
    spec, how = problem.warp.spec, problem.comparison
    options = {name: getattr(spec, name) for name in WarpSpec.__dataclass_fields__}
    del options["deterministic"]

    def function(moving, parameters, fixed, weights):
        transform = problem.warp.transform.with_parameters(parameters)
        return objective(
            moving,
            fixed,
            transform,
            weights=weights,
            loss=how.loss,
            delta=how.delta,
            domain=how.domain,
            **options,
        ).value

    return function


@per_loss
@pytest.mark.parametrize(
    "kind", ["affine", "homography", "similarity", "thin_plate_spline", "flow"]
)
def test_value_is_differentiable_in_the_parameters(loss, kind):
    """By the gradient that is computed with it, and once more by composition."""
    problem = random_objective(15, loss=loss, kind=kind, size=(5, 6), output_size=(3, 4))
    moving, parameters, fixed, weights = problem.operands
    function = as_function(problem)
    parameters = parameters.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: function(moving, p, fixed, weights), (parameters,))
    assert torch.autograd.gradgradcheck(
        lambda p: function(moving, p, fixed, weights), (parameters,)
    )


@per_loss
def test_value_is_differentiable_in_all_operands(loss):
    """Networks make maps and weights, too."""
    problem = random_objective(16, loss=loss, size=(4, 5), output_size=(3, 3))
    operands = tuple(one.clone().requires_grad_() for one in problem.operands)
    assert torch.autograd.gradcheck(as_function(problem), operands)


def test_a_shared_transform_receives_the_sum_over_items():
    """One theta for two fixed maps: each value has a weight of its own in the backward pass."""
    problem = random_objective(17, batch=(1, 1, 2, 1))
    moving, parameters, fixed, weights = problem.operands
    parameters = parameters.clone().requires_grad_()
    value = as_function(problem)(moving, parameters, fixed, weights)
    value.backward(torch.tensor([2.0, -3.0]).double())
    first, second = CpuBackend().objective([problem])[0].gradient
    assert_close_in_norm(parameters.grad, (2 * first - 3 * second)[None], 1e-14)


def test_only_the_value_has_a_graph():
    """The gradient is a constant, whether or not it was asked for."""
    problem = random_objective(18)
    moving, parameters, fixed, weights = problem.operands
    theta = Affine(parameters.clone().requires_grad_())
    found = objective(moving, fixed, theta, weights=weights, needs=("gauss_newton",))
    assert found.value.requires_grad
    assert found.gradient is None
    assert not found.count.requires_grad
    assert not found.gauss_newton.requires_grad


def test_it_is_one_node_to_compilers():
    """torch.compile sees an operator, with shapes, and its gradient."""
    problem = random_objective(19)
    moving, parameters, fixed, weights = problem.operands

    def total(parameters):
        return objective(moving, fixed, Affine(parameters), weights=weights).value.sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    plain, traced = parameters.clone().requires_grad_(), parameters.clone().requires_grad_()
    total(plain).backward()
    compiled(traced).backward()
    assert torch.equal(plain.grad, traced.grad)


def test_the_torch_operator_is_sound():
    """Schema, shapes and autograd registration, by torch's own checks."""
    problem = random_objective(20)
    operator = operators.objective
    operands = [one.clone().requires_grad_() for one in problem.operands]
    arguments = operator.arguments(problem.bound(*operands))
    torch.library.opcheck(operator.torch_operator, arguments)


def test_transforms_of_torch_func_see_through_it():
    """Forward mode meets the composition."""
    problem = random_objective(21, kind="similarity")
    moving, parameters, fixed, weights = problem.operands
    function = as_function(problem)
    direction = torch.ones_like(parameters)
    _, slope = torch.func.jvp(
        lambda p: function(moving, p, fixed, weights), (parameters,), (direction,)
    )
    exact = (exact_objective(problem).gradient * direction).sum(1)
    assert_close_in_norm(slope, exact, 1e-12)


def test_gauss_newton_is_the_hessian_where_maps_agree():
    """At a perfect match the second derivatives of V have no weight."""
    problem = random_objective(22, size=(12, 13), output_size=(9, 8))
    warped = dispatch.warp([problem.warp], (ReferenceBackend(),))[0]
    matched = replace(problem, fixed=warped)
    moving, parameters, fixed, weights = matched.operands
    function = as_function(matched)
    hessian = torch.func.hessian(lambda p: function(moving, p, fixed, weights)[0])(parameters)
    found = CpuBackend().objective([matched])[0]
    assert found.value.item() == pytest.approx(0, abs=1e-28)
    assert_close_in_norm(found.gauss_newton[0], hessian.reshape(6, 6), 1e-11)


# Invariance.


@per_fast_backend
def test_ncc_is_blind_to_brightness_and_contrast(backend):
    """A correlation does not change where a map is scaled by a positive number and shifted."""
    problem = random_objective(23, loss="ncc")
    changed = replace(problem, fixed=3.5 * problem.fixed + 20)
    found, expected = (backend.objective([one])[0] for one in (changed, problem))
    assert_close_in_norm(found.value, expected.value, 1e-12)
    assert_close_in_norm(found.gradient, expected.gradient, 1e-11)
    turned = backend.objective([replace(problem, fixed=-problem.fixed)])[0]
    assert_close_in_norm(turned.value, 2 - expected.value, 1e-12)


@per_fast_backend
@per_loss
def test_weights_count_by_their_ratios(backend, loss):
    """All weights doubled change the count and nothing else."""
    problem = random_objective(24, loss=loss)
    doubled = replace(problem, weights=2 * problem.weights)
    found, expected = (backend.objective([one])[0] for one in (doubled, problem))
    assert torch.equal(found.count, 2 * expected.count)
    assert_close_in_norm(found.value, expected.value, 1e-14)
    assert_close_in_norm(found.gradient, expected.gradient, 1e-13)


@per_fast_backend
def test_huber_of_a_large_delta_is_half_of_ssd(backend):
    """Nothing is beyond it."""
    problem = random_objective(25)
    huber = replace(problem, comparison=Comparison(loss="huber", delta=1e6))
    found, squares = (backend.objective([one])[0] for one in (huber, problem))
    for name in ("value", "gradient", "gauss_newton"):
        assert_close_in_norm(2 * getattr(found, name), getattr(squares, name), 1e-14)


@per_backend
def test_steps_along_the_gradient_lead_to_the_match(backend):
    """Five Gauss-Newton steps find a shift that is known."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(26.0), indexing="ij")
    blob = torch.exp(-((rows - 11) ** 2 + (columns - 12) ** 2) / 30)[None, None].double()
    truth, shift = torch.tensor([[1.75, -0.5]]).double(), torch.zeros(1, 2).double()
    spec = WarpSpec(coordinates="pixel")
    fixed = backend.warp([WarpProblem(blob, Translation(truth), None, spec)])[0]
    needs = ("gradient", "gauss_newton")
    for _ in range(6):
        warp = WarpProblem(blob, Translation(shift), None, spec)
        found = backend.objective([ObjectiveProblem(warp, fixed, needs=needs)])[0]
        shift = shift - torch.linalg.solve(found.gauss_newton, found.gradient)
    assert_close_in_norm(shift, truth, 1e-6)


# Faults.


def values_of(backend, problem):
    """Value, count and the largest number of the gradient."""
    found = backend.objective([problem])[0]
    return found.value.tolist(), found.count.tolist(), found.gradient.abs().max().item()


@per_backend
@per_loss
@pytest.mark.parametrize("kind", ["affine", "homography", "flow"])
def test_nothing_counted_is_no_loss(backend, loss, kind):
    """No overlap at all, and weights of zero: value 0, of ncc 1, and no gradient; never NaN."""
    nothing = ([1.0 if loss == "ncc" else 0.0], [0.0], 0.0)
    problem = random_objective(26, loss=loss, kind=kind)
    unweighted = replace(problem, weights=torch.zeros_like(problem.weights))
    assert values_of(backend, unweighted) == nothing
    far = problem.operands[1] + 50.0
    apart = problem.bound(problem.operands[0], far, *problem.operands[2:])
    if kind != "homography":  # its W would grow, too
        assert values_of(backend, apart) == nothing
    lost = problem.bound(problem.operands[0], far * torch.nan, *problem.operands[2:])
    assert values_of(backend, lost) == nothing


@per_backend
@pytest.mark.parametrize("which", ["moving", "fixed"])
@pytest.mark.parametrize("channels", [1, 3])
def test_constant_maps_do_not_correlate(backend, which, channels):
    """Rounding in the warp of a constant is no contrast: ncc is 1 and has no gradient."""
    problem = random_objective(27, loss="ncc", dtype=torch.float32, channels=channels)
    moving, parameters, fixed, weights = problem.operands
    flat = torch.full_like(moving if which == "moving" else fixed, 0.3)
    operands = (
        (flat, parameters, fixed, weights)
        if which == "moving"
        else (moving, parameters, flat, weights)
    )
    value, count, gradient = values_of(backend, problem.bound(*operands))
    assert (value, gradient) == ([1.0], 0.0)
    assert count[0] > 0


@per_backend
@pytest.mark.parametrize("kind", ["affine", "flow", "thin_plate_spline"])
def test_large_constant_maps_have_no_gradient(backend, kind):
    """What overflows on its way to a gradient that is 0 does not become NaN."""
    problem = random_objective(38, loss="ncc", kind=kind, dtype=torch.float32)
    moving, parameters, fixed, weights = problem.operands
    constant = problem.bound(1e20 * moving, parameters, torch.full_like(fixed, 1e20), weights)
    value, _, gradient = values_of(backend, constant)
    assert (value, gradient) == ([1.0], 0.0)


@per_backend
@pytest.mark.parametrize("exponent", [-300, 0, 300])
def test_equal_maps_correlate_wholly(backend, exponent):
    """Their ncc is 0, not something like it."""
    spec = WarpSpec(coordinates="pixel")
    problem = random_objective(39, loss="ncc", kind="translation", spec=spec)
    moving, parameters, _, weights = problem.operands
    same = problem.bound(moving, torch.zeros_like(parameters), moving[..., :8, :10], weights)
    value, _, gradient = values_of(backend, scaled(same, 2.0**exponent))
    assert value == [0.0]
    assert gradient <= 1e-12


@per_backend
@per_loss
@pytest.mark.parametrize("kind", ["affine", "flow"])
def test_nan_without_weight_is_not_there(backend, loss, kind):
    """A mask hides whatever the maps hold; what is counted shows in the value."""
    problem = random_objective(28, loss=loss, kind=kind)
    _, _, fixed, weights = problem.operands
    weights = weights.clone()
    weights[..., :4, :] = 0
    masked = replace(problem, weights=weights)
    spoiled = fixed.clone()
    spoiled[..., :4, :] = torch.nan
    assert_same(
        backend.objective([replace(masked, fixed=spoiled)])[0], backend.objective([masked])[0]
    )
    seen = backend.objective([replace(problem, fixed=spoiled)])[0]
    assert seen.value.isnan().all()
    assert torch.equal(seen.count, backend.objective([problem])[0].count)


@per_backend
@per_loss
def test_nan_of_the_moving_map_outside_of_the_mask(backend, loss):
    """It has taps where nothing is counted."""
    problem = random_objective(29, loss=loss, kind="translation")
    moving, _, fixed, weights = problem.operands
    still = problem.bound(moving, torch.zeros(1, 2).double(), fixed, weights)
    weights = weights.clone()
    weights[..., :3, :] = 0
    spoiled = moving.clone()
    spoiled[..., :2, :] = torch.nan
    masked = still.bound(moving, torch.zeros(1, 2).double(), fixed, weights)
    hidden = still.bound(spoiled, torch.zeros(1, 2).double(), fixed, weights)
    assert_same(backend.objective([hidden])[0], backend.objective([masked])[0])


@per_backend
def test_points_that_are_not_finite_read_fill_where_all_count(backend):
    """They have a value and no gradient; in an overlap they are never."""
    grid = torch.tensor([[[[torch.nan, 0.0], [0.0, torch.inf]]]]).double()
    moving, fixed = torch.ones(1, 1, 3, 3).double(), torch.zeros(1, 1, 1, 2).double()
    spec = WarpSpec(coordinates="pixel", fill=2.0)
    warp = WarpProblem(moving, SamplingGrid(grid), None, spec)
    everywhere = ObjectiveProblem(warp, fixed, None, Comparison(domain="all"))
    assert values_of(backend, everywhere) == ([4.0], [2.0], 0.0)
    assert values_of(backend, ObjectiveProblem(warp, fixed)) == ([0.0], [0.0], 0.0)


@per_backend
@pytest.mark.parametrize("needs", [(), ("gradient",)])
@pytest.mark.parametrize("kind", ["homography", "similarity", "thin_plate_spline", "flow", "grid"])
def test_points_count_without_channels(backend, kind, needs):
    """As they do with channels, whatever the transform; there is nothing to compare at them."""
    problem = random_objective(40, kind=kind)
    warp = replace(problem.warp, feature_map=problem.warp.feature_map[:, :0])
    empty = replace(problem, warp=warp, fixed=problem.fixed[:, :0], needs=needs)
    found = backend.objective([empty])[0]
    assert_close_in_norm(found.count, exact_objective(problem).count, GRADIENT[torch.float64])
    assert found.count.item() > 0
    assert found.value.tolist() == [0.0]
    assert found.gradient is None or not found.gradient.any()


@per_backend
@per_loss
@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (1, 0, 4, 5), (1, 2, 0, 5)])
def test_empty_maps(backend, loss, shape):
    """No items, no channels, no target points: no error; points count without channels, too."""
    n, channels, *_ = shape
    moving = torch.ones(n, channels, 3, 3).double()
    warp = WarpProblem(moving, Affine(torch.eye(2, 3).double()[None]), shape[2:])
    problem = ObjectiveProblem(warp, torch.ones(shape).double(), None, Comparison(loss=loss))
    found = backend.objective([problem])[0]
    assert found.value.tolist() == n * [1.0 if loss == "ncc" else 0.0]
    # Of 4 rows and 5 columns 2 and 3 lie between the outermost pixel centres.
    assert found.count.tolist() == n * [6.0 if 0 not in shape[2:] else 0.0]
    assert found.gradient.shape == (n, 2, 3)
    assert not found.gradient.any()


MAP, THETA = torch.zeros(2, 3, 5, 6), Affine(torch.eye(2, 3).expand(2, 2, 3))
FIXED = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (
            (MAP, FIXED[:, :2], THETA),
            {},
            ShapeError,
            r"fixed: expected shape \(2, 3, 4, 4\) or \(1, 3, 4, 4\), got \(2, 2,",
        ),
        (
            (MAP, torch.zeros(3, 3, 4, 4), THETA),
            {},
            ShapeError,
            r"fixed: .* got \(3, 3, 4, 4\)\. Match the warp of moving, or use N = 1\.",
        ),
        (
            (MAP, FIXED[0], THETA),
            {},
            ShapeError,
            r"fixed: expected shape \(N, C, Ho, Wo\), got \(3, 4, 4\)\. Add or remove axes\.",
        ),
        (
            (MAP[0], FIXED, THETA),
            {},
            ShapeError,
            r"moving: expected shape \(N, C, H, W\), got \(3, 5, 6\)",
        ),
        (
            (MAP[..., :0], FIXED, THETA),
            {},
            ShapeError,
            r"moving: expected shape \(N, C, H > 0, W > 0\), got \(2, 3, 5, 0\)",
        ),
        (
            (MAP, FIXED, Flow(torch.zeros(2, 7, 4, 2))),
            {},
            ShapeError,
            r"fixed: expected shape \(N, 3, 7, 4\), got .* Pass the transform's own size\.",
        ),
        (
            (MAP, FIXED, THETA),
            {"weights": FIXED},
            ShapeError,
            r"weights: expected shape \(2, 1, 4, 4\) or \(1, 1, 4, 4\), got \(2, 3,",
        ),
        (
            (MAP.byte(), FIXED.byte(), THETA),
            {},
            DTypeError,
            r"moving: expected torch.float32 .* got torch.uint8",
        ),
        (
            (MAP.int(), FIXED.int(), THETA),
            {},
            DTypeError,
            r"moving: expected torch.float32 .* got torch.int32",
        ),
        (
            (MAP, FIXED.double(), THETA),
            {},
            DTypeError,
            r"fixed: expected torch.float32, got torch.float64",
        ),
        (
            (MAP, FIXED, THETA),
            {"weights": torch.ones(1, 1, 4, 4).bool()},
            DTypeError,
            r"weights: expected torch.float32, got torch.bool",
        ),
        (
            (MAP, None, THETA),
            {},
            InvalidInputError,
            r"fixed: expected a torch.Tensor, got NoneType",
        ),
        (
            (MAP, FIXED, THETA),
            {"weights": 1.0},
            InvalidInputError,
            r"weights: expected a torch.Tensor, got float",
        ),
        (
            (MAP, FIXED, torch.eye(2, 3)),
            {},
            InvalidInputError,
            r"transform: expected Affine or .* got Tensor",
        ),
        (
            (MAP, FIXED.to("meta"), THETA),
            {},
            InvalidInputError,
            r"fixed: expected one device, got moving on cpu and fixed on meta",
        ),
        (
            (MAP.to("meta"), FIXED, THETA),
            {},
            InvalidInputError,
            r"theta: expected one device, got moving on meta and theta on cpu",
        ),
        (
            (MAP, FIXED, THETA),
            {"loss": "mse"},
            ParameterError,
            r"loss: expected ssd \| huber \| ncc, got 'mse'",
        ),
        (
            (MAP, FIXED, THETA),
            {"domain": "half"},
            ParameterError,
            r"domain: expected overlap \| all, got 'half'",
        ),
        (
            (MAP, FIXED, THETA),
            {"delta": 0},
            ParameterError,
            r"delta: expected a finite number > 0, got 0",
        ),
        (
            (MAP, FIXED, THETA),
            {"delta": float("nan")},
            ParameterError,
            r"delta: expected a finite number > 0, got nan",
        ),
        (
            (MAP, FIXED, THETA),
            {"delta": "small"},
            ParameterError,
            r"delta: expected a finite number > 0, got 'small'",
        ),
        (
            (MAP, FIXED, THETA),
            {"delta": "0.5"},
            ParameterError,
            r"delta: expected a finite number > 0, got '0.5'",
        ),
        (
            (MAP, FIXED, THETA),
            {"delta": 10**400},
            ParameterError,
            r"delta: expected a finite number > 0, got 1000",
        ),
        ((MAP, FIXED, THETA), {"needs": "gradient"}, ParameterError, r"needs: .* got 'gradient'"),
        (
            (MAP, FIXED, THETA),
            {"needs": ["hessian"]},
            ParameterError,
            r"needs: .* got \['hessian'\]",
        ),
        (
            (MAP, FIXED, THETA),
            {"needs": ["gauss_newton"], "loss": "ncc"},
            ParameterError,
            r"needs: expected \(\) \| \('gradient',\), got",
        ),
        (
            (MAP, FIXED, Flow(torch.zeros(1, 4, 4, 2))),
            {"needs": ["gauss_newton"]},
            ParameterError,
            r"needs: expected \(\) \| \('gradient',\), got",
        ),
    ],
)
def test_errors_are_in_the_words_of_the_caller(arguments, options, error, match):
    """What does not fit is refused before anything is computed."""
    with pytest.raises(error, match=match):
        objective(*arguments, **options)


def test_an_operand_that_changed_its_shape_is_refused():
    """Between the making of a problem and its run."""
    problem = random_objective(30, batch=(1, 1, 2, 1))
    problem.fixed.resize_(3, *problem.fixed.shape[1:])
    with pytest.raises(
        ShapeError, match=r"fixed: expected shape \(2, .* got \(3, .* make a new one"
    ):
        CpuBackend().objective([problem])


def test_ragged_objectives_equal_single_ones():
    """Of any losses and sizes, and under a mode that watches as well."""
    problems = [
        random_objective(31, loss=loss, kind=kind) for loss in LOSSES for kind in ("affine", "flow")
    ]
    single = [operators.objective(problem) for problem in problems]
    for found, expected in zip(objective_ragged(problems), single, strict=True):
        assert_same(found, expected)
    with torch.autograd.forward_ad.dual_level():
        watched = objective_ragged(problems)
    for found, expected in zip(watched, single, strict=True):
        assert_close_in_norm(found.value, expected.value, 1e-12)
