"""The batcher's licence: a batch is the concatenation of its single results, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stn_engine import (
    Affine,
    Flow,
    Gradients,
    GridGradientsProblem,
    GridProblem,
    InvalidInputError,
    SamplingGrid,
    ThinPlateSpline,
    WarpProblem,
    generate_grid_gradients_ragged,
    generate_grid_ragged,
    warp_gradients_ragged,
    warp_ragged,
)
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend
from stn_engine.backends.torch.trees import tree_sum
from support.strategies import (
    CONVENTIONS,
    DETERMINISTIC,
    DTYPES,
    GENERATORS,
    KINDS,
    VOLUME_KINDS,
    crowds,
    random_transform,
    random_values,
    random_warp,
)
from support.strategies import random_gradients as gradients_of


@st.composite
def gradient_crowds(draw):
    """Gradients problems of which many can share a batch."""
    few_needs = [("feature_map",), ("transform",), ("feature_map", "transform")]
    return [
        gradients_of(draw(st.integers(0, 2**16)), warp, needs=draw(st.sampled_from(few_needs)))
        for warp in draw(crowds(dtypes=DTYPES[:-1]))
    ]


@st.composite
def grid_problems(draw):
    """Any small generator problem."""
    coordinates, align_corners = draw(st.sampled_from(CONVENTIONS))
    kind, n = draw(st.sampled_from(GENERATORS)), draw(st.integers(0, 3))
    sizes = [(1, 1), (3, 4), (0, 2)]
    if kind in VOLUME_KINDS:
        sizes += [(1, 1, 1), (2, 3, 4), (2, 0, 2)]
    size = draw(st.sampled_from(sizes))
    read = (5, 7, 6)[: len(size)]
    transform = random_transform(draw(st.integers(0, 2**16)), kind, n, read, size, coordinates)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    transform = transform.with_parameters(transform.parameters.to(dtype))
    return GridProblem(transform, size, coordinates, align_corners)


def assert_same(left, right):
    """Both are None, or tensors of the same bits."""
    assert (left is None) == (right is None)
    if left is not None:
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def assert_same_gradients(left, right):
    assert_same(left.feature_map, right.feature_map)
    assert_same(left.transform, right.transform)


@DETERMINISTIC
@given(problems=crowds())
def test_warp_ragged_is_its_single_results(problems):
    """Values do not depend on the neighbours in the batch."""
    for together, problem in zip(warp_ragged(problems), problems, strict=True):
        assert_same(together, warp_ragged([problem])[0])


@DETERMINISTIC
@given(problems=gradient_crowds())
def test_warp_gradients_ragged_is_its_single_results(problems):
    """Neither does any gradient."""
    for together, problem in zip(warp_gradients_ragged(problems), problems, strict=True):
        assert_same_gradients(together, warp_gradients_ragged([problem])[0])


@DETERMINISTIC
@given(problems=st.lists(grid_problems(), max_size=8), seed=st.integers(0, 2**16))
def test_generate_grid_ragged_is_its_single_results(problems, seed):
    """Nor a grid, nor the gradient of theta."""
    for together, problem in zip(generate_grid_ragged(problems), problems, strict=True):
        assert_same(together, generate_grid_ragged([problem])[0])
    adjoints = [
        GridGradientsProblem(one, random_values(seed, one.output_shape, one.output_dtype))
        for one in problems
    ]
    for together, adjoint in zip(generate_grid_gradients_ragged(adjoints), adjoints, strict=True):
        assert_same(together, generate_grid_gradients_ragged([adjoint])[0])


@DETERMINISTIC
@given(problems=gradient_crowds(), data=st.data())
def test_permuting_problems_permutes_results(problems, data):
    """Results come in the order of their problems."""
    order = data.draw(st.permutations(range(len(problems))))
    results = warp_gradients_ragged(problems)
    permuted = warp_gradients_ragged([problems[position] for position in order])
    for got, position in zip(permuted, order, strict=True):
        assert_same_gradients(got, results[position])


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
@pytest.mark.parametrize(
    ("kind", "size", "output_size"),
    [
        *((kind, (33, 47), (61, 53)) for kind in KINDS),
        *((kind, (13, 11, 12), (9, 17, 20)) for kind in VOLUME_KINDS),
    ],
)
def test_large_group_is_its_single_results(dtype, kind, size, output_size):
    """Also where tensors are large enough for vectorised and threaded kernels."""
    sizes = {"channels": 3, "size": size, "output_size": output_size}
    warped = [
        random_warp(seed, kind=kind, dtype=dtype, batch=(n, n), **sizes)
        for seed, n in enumerate((1, 3, 1, 2))
    ]
    problems = [gradients_of(seed, one) for seed, one in enumerate(warped)]
    for together, one in zip(warp_ragged(warped), warped, strict=True):
        assert_same(together, warp_ragged([one])[0])
    for together, one in zip(warp_gradients_ragged(problems), problems, strict=True):
        assert_same_gradients(together, warp_gradients_ragged([one])[0])


def test_splines_of_different_settings_stay_apart():
    """Equal shapes do not make one batch of unlike control points or regularizations."""
    control = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    source = random_values(5, (1, 4, 2), torch.float64)
    splines = [
        ThinPlateSpline(source, control_points=points, regularization=regularization)
        for points, regularization in ((control, 0.0), (control, 1.0), (0.5 * control, 0.0))
    ]
    feature_map = random_values(6, (1, 2, 5, 7), torch.float64)
    for problems, run in (
        ([WarpProblem(feature_map, one) for one in splines], warp_ragged),
        ([GridProblem(one, (3, 4)) for one in splines], generate_grid_ragged),
    ):
        together, alone = run(problems), [run([one])[0] for one in problems]
        for left, right in zip(together, alone, strict=True):
            assert_same(left, right)
        assert not torch.equal(alone[0], alone[1])
        assert not torch.equal(alone[0], alone[2])


def test_kinds_of_equal_shape_stay_apart():
    """A flow is not read as a sampling grid, though their parameters look alike."""
    feature_map, points = (random_values(7, (1, 2, 3, 2), torch.float64) for _ in range(2))
    problems = [WarpProblem(feature_map, kind(points)) for kind in (SamplingGrid, Flow)]
    for together, problem in zip(warp_ragged(problems), problems, strict=True):
        assert_same(together, warp_ragged([problem])[0])
    assert not torch.equal(*warp_ragged(problems))


def test_images_and_volumes_share_a_call():
    """Each gets its own number of axes, in the order of the call."""
    sizes = [(3, 4), (2, 3, 4), (3, 4), (1, 3, 4)]
    warped = [
        random_warp(seed, size=size, output_size=size, batch=(1, 1))
        for seed, size in enumerate(sizes)
    ]
    for together, problem, size in zip(warp_ragged(warped), warped, sizes, strict=True):
        assert together.shape == (1, 3, *size)
        assert_same(together, warp_ragged([problem])[0])


def test_ragged_calls_record_no_graph():
    """Operands that require a gradient do not make ragged results require one."""
    problem = random_warp(1)
    theta = problem.transform.theta.clone().requires_grad_()
    grids = [GridProblem(Affine(theta), (2, 2))]
    recorded = [type(problem)(problem.feature_map, Affine(theta))]
    assert not warp_ragged(recorded)[0].requires_grad
    assert not generate_grid_ragged(grids)[0].requires_grad
    assert not warp_gradients_ragged([gradients_of(2, recorded[0])])[0].transform.requires_grad


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 13])
def test_tree_sum_pairs_terms_a_power_of_two_apart(count):
    """Term k meets term k + 2^m first for the largest m, as if padded with zeros."""
    terms = random_values(3, (2, count, 3), torch.float32)
    size = 1 << max(count - 1, 0).bit_length()
    level = torch.zeros(2, size, 3)
    level[:, :count] = terms
    while level.shape[1] > 1:
        half = level.shape[1] // 2
        level = level[:, :half] + level[:, half:]
    assert torch.equal(tree_sum(terms, 1), level[:, 0])


def memory_like(result):
    """Other memory of the same layout, full of values that nobody asked for."""
    return torch.full_like(result, 7)


@given(crowds(dtypes=DTYPES))
@DETERMINISTIC
def test_results_are_written_where_the_caller_wants_them(problems):
    """Into the memory that was given, whichever backends run; bits are those of new results."""
    expected = warp_ragged(problems)
    out = [memory_like(result) for result in expected]
    got = warp_ragged(problems, out)
    assert all(one is two for one, two in zip(got, out, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(out, expected, strict=True))


@given(gradient_crowds())
@DETERMINISTIC
def test_gradients_are_written_where_the_caller_wants_them(problems):
    """What a problem does not need stays as it was."""
    expected = warp_gradients_ragged(problems)
    out = [
        Gradients(*(memory_like(operand) for operand in problem.warp.operands))
        for problem in problems
    ]
    warp_gradients_ragged(problems, out)
    for memory, result in zip(out, expected, strict=True):
        for name in ("feature_map", "transform"):
            got, want = getattr(memory, name), getattr(result, name)
            assert torch.equal(got, memory_like(got) if want is None else want)


@pytest.mark.parametrize("backend", [TorchBackend(), ReferenceBackend()], ids=lambda one: one.name)
def test_backends_that_compose_copy_their_results(backend):
    """They cannot write where they are told to, and nobody notices."""
    problem = gradients_of(3, random_warp(4))
    memory = torch.empty(problem.warp.output_shape, dtype=torch.float64)
    assert backend.warp([problem.warp], [memory])[0] is memory
    assert torch.equal(memory, backend.warp([problem.warp])[0])
    out = Gradients(*map(torch.empty_like, problem.warp.operands))
    assert backend.warp_gradients([problem], [out])[0] is out
    assert torch.equal(out.transform, backend.warp_gradients([problem])[0].transform)


SHAPE = (2, 3, 4, 6)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ([], r"out: expected 1 elements, got 0\. Give one per problem"),
        (iter([]), r"out: expected 1 elements, got list_iterator\. Give one per problem"),
        ([None], r"out\[0\]: expected a torch.Tensor, got NoneType"),
        ([torch.empty(2, 3, 4, 5)], r"out\[0\]: expected shape \(2, 3, 4, 6\), got"),
        ([torch.empty(SHAPE)], r"out\[0\]: expected .*float64, got .*float32"),
        (
            [torch.empty(2, 3, 4, 12, dtype=torch.float64)[..., ::2]],
            r"out\[0\]: expected dense memory, got strides",
        ),
        ([torch.empty(SHAPE, dtype=torch.float64, device="meta")], r"out\[0\]"),
    ],
)
def test_memory_that_does_not_fit_is_refused(out, message):
    """Before anything runs."""
    with pytest.raises(InvalidInputError, match=message):
        warp_ragged([random_warp(5)], out)


def test_memory_of_operands_is_refused():
    """A kernel would read what it has written."""
    problem = random_warp(6, output_size=(5, 7))
    with pytest.raises(InvalidInputError, match=r"out\[0\]: expected memory of its own"):
        warp_ragged([problem], [problem.feature_map])
    gradients = gradients_of(7, problem)
    out = Gradients(gradients.grad_output, torch.empty_like(problem.transform.parameters))
    message = r"out\[0\].feature_map: expected memory of its own"
    with pytest.raises(InvalidInputError, match=message):
        warp_gradients_ragged([gradients], [out])
    out = Gradients(torch.empty_like(problem.feature_map), None)
    with pytest.raises(InvalidInputError, match=r"out\[0\].transform: .* got NoneType"):
        warp_gradients_ragged([gradients], [out])


def test_memory_of_other_problems_and_results_is_refused():
    """Problems are computed side by side: none may write what another one reads or writes."""
    problems = [random_warp(8, output_size=(5, 7)), random_warp(8, output_size=(5, 7))]
    new = torch.empty(problems[0].output_shape, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match=r"out\[0\]: .* got memory that an operand lies in"):
        warp_ragged(problems, [problems[1].feature_map, new])
    with pytest.raises(InvalidInputError, match=r"out\[1\]: .* got memory that out\[0\] lies in"):
        warp_ragged(problems, [new, new])
    both = torch.empty(2, *new.shape, dtype=torch.float64)
    results = warp_ragged(problems, list(both))  # neighbours in one storage are apart
    assert all(map(torch.equal, results, warp_ragged(problems)))


def test_autograd_learns_that_memory_for_results_was_written():
    """As of every operation in place, so that no gradient is of values that have gone."""
    problem = random_warp(9)
    saved = torch.ones(problem.output_shape, dtype=torch.float64)
    loss = (saved * torch.ones_like(saved, requires_grad=True)).sum()
    warp_ragged([problem], [saved])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():  # where nothing is counted
        out = torch.empty_like(saved)
        assert torch.equal(warp_ragged([problem], [out])[0], saved)
