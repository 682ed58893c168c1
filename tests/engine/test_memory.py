"""Tensors whose memory is not their value: resolved, or refused, by every way in."""

import itertools
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import stn_engine
from stn_engine import (
    Affine,
    DeviceMismatchError,
    Flow,
    Gradients,
    GridGradientsProblem,
    GridProblem,
    InvalidInputError,
    SamplingGrid,
    ShapeError,
    WarpGradientsProblem,
    WarpProblem,
    dispatch,
    generate_grid,
    generate_grid_gradients,
    generate_grid_gradients_ragged,
    generate_grid_ragged,
    warp,
    warp_gradients,
    warp_gradients_ragged,
    warp_ragged,
)
from stn_engine.adapters.tensors import located
from support.backends import BACKENDS
from support.strategies import (
    GENERATORS,
    KINDS,
    KINDS_AND_SIZES,
    random_gradients,
    random_values,
    random_warp,
)

IDENTITY = torch.eye(2, 3)[None]


def negated(tensor):
    """``tensor`` as a lazy negation: the same values, with the other sign in memory."""
    real = tensor if tensor.dtype.is_floating_point else tensor.double()
    lazy = torch.complex(torch.zeros_like(real), -real).conj().imag
    assert lazy.is_neg()
    assert torch.equal(lazy, tensor)
    return lazy


def zero_like(tensor):
    """A ZeroTensor, which has no memory at all."""
    return torch._efficientzerotensor(tuple(tensor.shape), dtype=tensor.dtype)


def freed(tensor):
    """``tensor`` after those who shard models have taken its memory back."""
    new = tensor.clone()
    new.untyped_storage().resize_(0)
    return new


def cut(tensor):
    """``tensor`` with a storage that ends within it."""
    new = tensor.clone()
    new.untyped_storage().resize_(new.nbytes - 1)
    return new


def cut_view(tensor):
    """A strided view whose last element lies behind the end of its storage."""
    wide = torch.stack((tensor, tensor), -1)
    view = wide[..., 1]
    wide.untyped_storage().resize_(wide.nbytes - tensor.element_size())
    return view


def on_meta(tensor):
    return tensor.to("meta")


REFUSED = {
    "freed": (freed, r"got \d+ bytes in a storage of 0\. Its storage was freed or cut"),
    "cut": (cut, r"got \d+ bytes in a storage of \d+\. Its storage was freed or cut"),
    "cut view": (cut_view, r"got \d+ bytes in a storage of \d+\. Its storage was freed or cut"),
    "sparse": (torch.Tensor.to_sparse, r"got layout torch\.sparse_coo\. Convert it"),
    "sparse rows": (torch.Tensor.to_sparse_csr, r"got layout torch\.sparse_csr\. Convert it"),
    "mkldnn": (torch.Tensor.to_mkldnn, r"got layout torch\._mkldnn\. Convert it"),
    "nested": (
        lambda one: torch.nested.nested_tensor(list(one)),
        r"expected a dense tensor, got a nested one\. Warp its parts",
    ),
    "jagged": (
        lambda one: torch.nested.nested_tensor(list(one), layout=torch.jagged),
        r"expected a dense tensor, got a nested one\. Warp its parts",
    ),
    "functional": (torch._to_functional_tensor, "got a Tensor without memory of its own"),
}
"""What has no values in memory, and what is said about it."""

per_refusal = pytest.mark.parametrize("case", REFUSED)


def made(case, tensor):
    """The tensor of a case, without torch's own remarks on prototypes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return REFUSED[case][0](tensor)


@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
@pytest.mark.parametrize("lazy", [negated, zero_like], ids=["negated", "zero"])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: one.name)
def test_lazy_operands_are_read_as_their_values(kind, sizes, lazy, backend):
    """Each operand by itself, forward and backward, on every backend."""
    problem = random_gradients(2, random_warp(1, kind=kind, dtype=torch.float32, **sizes))
    for place in range(3):
        operands = list(problem.operands)
        operands[place] = lazy(operands[place])
        plain = [one.clone().resolve_neg() for one in operands]
        plain[place] = operands[place] + 0.0 if lazy is negated else torch.zeros_like(plain[place])
        ours, theirs = problem.bound(*operands), problem.bound(*plain)
        (got,) = dispatch.warp_gradients([ours], (backend,))
        (expected,) = dispatch.warp_gradients([theirs], (backend,))
        assert torch.equal(got.feature_map, expected.feature_map)
        assert torch.equal(got.transform, expected.transform)
        (got,) = dispatch.warp([ours.warp], (backend,))
        assert torch.equal(got, dispatch.warp([theirs.warp], (backend,))[0])


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("lazy", [negated, zero_like], ids=["negated", "zero"])
def test_lazy_operands_of_grids_are_read_as_their_values(kind, lazy):
    """The generator alone, and its gradient."""
    transform = random_warp(1, kind=kind).transform
    parameters = lazy(transform.parameters)
    plain = transform.with_parameters(torch.zeros_like(transform.parameters))
    if lazy is negated:
        plain = transform
    lazily = transform.with_parameters(parameters)
    got, expected = generate_grid(lazily, (4, 6)), generate_grid(plain, (4, 6))
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)  # 0/0 of a homography
    grad = random_values(3, (2, 4, 6, 2), torch.float64)
    got, expected = (
        generate_grid_gradients(negated(grad), lazily),
        generate_grid_gradients(grad, plain),
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_a_gradient_that_autograd_negates_lazily_has_its_sign():
    """By hand: the imaginary part of conj(a + i·V) is -V, whose slope is -1 for every pixel."""
    u = torch.rand(1, 1, 4, 4, requires_grad=True)
    v = torch.complex(torch.zeros(1, 1, 4, 4), warp(u, Affine(IDENTITY)))
    v.conj().resolve_conj().imag.sum().backward()
    assert torch.equal(u.grad, torch.full((1, 1, 4, 4), -1.0))


def test_a_lazily_negated_map_that_records_has_the_gradient_of_its_values():
    """The chain rule through the lazy negation, to theta as well."""
    theta = IDENTITY.clone().requires_grad_()
    signal = torch.rand(1, 1, 4, 4).cfloat().requires_grad_()
    gradients = []
    for resolve in (lambda n: n, torch.Tensor.resolve_neg):
        n = resolve(torch.fft.fft2(signal).conj().imag)
        loss = warp(n, Affine(theta), (5, 3)).square().sum()
        gradients.append(torch.autograd.grad(loss, (signal, theta)))
    for lazy, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(lazy, plain)


def test_results_are_written_into_lazily_negated_memory_as_values():
    """Whoever reads ``out`` afterwards reads what was computed."""
    problem = random_gradients(2, random_warp(1))
    shape = problem.warp.output_shape
    memory, other = torch._neg_view(torch.zeros(shape).double()), torch.empty(shape).double()
    expected = warp_ragged([problem.warp])[0]
    assert warp_ragged([problem.warp, problem.warp], [memory, other])[0] is memory
    assert torch.equal(memory, expected)
    assert torch.equal(other, expected)
    out = Gradients(
        torch._neg_view(torch.zeros_like(problem.warp.feature_map)),
        torch.empty_like(problem.warp.transform.parameters),
    )
    warp_gradients_ragged([problem], [out])
    (expected,) = warp_gradients_ragged([problem])
    assert torch.equal(out.feature_map, expected.feature_map)
    assert torch.equal(out.transform, expected.transform)


def calls(u, theta, flow, grad):
    """Every way in that takes a feature map, parameters or a gradient, by what it reads."""
    wide = torch.rand(1, 2, 4, 4)
    yield "feature_map", lambda: warp(u, Affine(IDENTITY))
    yield "feature_map", lambda: warp_gradients(wide, u, Affine(IDENTITY))
    yield "feature_map", lambda: warp_ragged([WarpProblem(u, Affine(IDENTITY))])
    yield (
        "feature_map",
        lambda: warp_ragged([WarpProblem(u, Affine(IDENTITY))], [torch.empty(1, 2, 4, 4)]),
    )
    yield (
        "feature_map",
        lambda: torch.func.vjp(lambda t: warp(u, Affine(t)), IDENTITY)[1](wide),
    )
    yield "theta", lambda: warp(wide, Affine(theta))
    yield "theta", lambda: generate_grid(Affine(theta), (4, 4))
    yield "theta", lambda: generate_grid_ragged([GridProblem(Affine(theta), (4, 4))])
    yield "displacement", lambda: warp(wide, Flow(flow))
    yield "grid", lambda: warp(wide, SamplingGrid(flow))
    yield "grad_output", lambda: warp_gradients(grad, wide, Affine(IDENTITY))
    yield (
        "grad_output",
        lambda: warp_gradients_ragged(
            [WarpGradientsProblem(WarpProblem(wide, Affine(IDENTITY)), grad)]
        ),
    )
    yield "grad_grid", lambda: generate_grid_gradients(flow, Affine(IDENTITY))
    yield (
        "grad_grid",
        lambda: generate_grid_gradients_ragged(
            [GridGradientsProblem(GridProblem(Affine(IDENTITY), (4, 4)), flow)]
        ),
    )


@per_refusal
def test_what_has_no_values_in_memory_is_refused(case):
    """By every way in, with the argument named, and never a crash."""
    map_, points = torch.rand(1, 2, 4, 4), torch.rand(1, 4, 4, 2)
    operands = [made(case, one) for one in (map_, IDENTITY, points, map_)]
    for argument, call in calls(*operands):
        with pytest.raises(InvalidInputError, match=REFUSED[case][1]) as caught:
            call()
        assert caught.value.argument == argument


def test_operands_on_meta_are_refused_by_those_who_compute():
    """A problem may be made on them; nothing can be read from them."""
    u, theta, grid = on_meta(torch.rand(1, 2, 4, 4)), on_meta(IDENTITY), torch.rand(1, 4, 4, 2)
    problem = WarpProblem(u, Affine(theta))
    message = "got one on the meta device"
    for call in (
        lambda: warp(u, Affine(theta)),
        lambda: warp_gradients(u, u, Affine(theta)),
        lambda: warp_ragged([problem]),
        lambda: warp_gradients_ragged([WarpGradientsProblem(problem, u)]),
        lambda: generate_grid(Affine(theta), (4, 4)),
        lambda: generate_grid_gradients(on_meta(grid), Affine(theta)),
        lambda: torch.func.grad(lambda t: warp(u, Affine(t)).sum())(theta),
    ):
        with pytest.raises(InvalidInputError, match=message):
            call()


def test_operands_that_lose_their_memory_before_the_backward_pass_are_refused():
    """Whoever shards models frees storages between forward and backward."""
    u = torch.rand(1, 1, 4, 4)
    theta = IDENTITY.clone().requires_grad_()
    v = warp(u, Affine(theta))
    u.untyped_storage().resize_(0)
    with pytest.raises(InvalidInputError, match=r"^feature_map: .* storage of 0\. Its storage was"):
        v.sum().backward()


@pytest.mark.parametrize(
    ("resize", "message"),
    [
        (
            lambda u, _: u.resize_(2, 4, 5, 6),
            r"^feature_map: .* \(2, 3, 5, 6\), got \(2, 4, 5, 6\)",
        ),
        (
            lambda u, _: u.resize_(3, 3, 5, 6),
            r"^feature_map: .* \(2, 3, 5, 6\), got \(3, 3, 5, 6\)",
        ),
        (lambda u, _: u.resize_(2, 90), r"^feature_map: expected shape \(N, C, H, W\), got"),
        (lambda _, p: p.resize_(4, 2, 3), r"^theta: expected shape \(2, 2, 3\), got \(4, 2, 3\)"),
        (
            lambda _, p: p.resize_(1, 2, 2),
            r"^theta: expected shape \(N, 2, 3\) or \(N, 3, 4\), got",
        ),
    ],
)
def test_operands_of_other_shapes_than_the_problem_was_made_of_are_refused(resize, message):
    """Kernels would read beside them."""
    for gradients in (False, True):
        u, theta = torch.rand(2, 3, 5, 6), IDENTITY.clone()
        problem = WarpProblem(u, Affine(theta))
        backward = WarpGradientsProblem(problem, torch.rand(2, 3, 5, 6))
        resize(u, theta)
        with pytest.raises(ShapeError, match=message):
            warp_gradients_ragged([backward]) if gradients else warp_ragged([problem])


def test_both_operands_that_lost_items_are_refused():
    """A map and parameters of one item would fit each other, but not the result."""
    u, theta = torch.rand(2, 3, 5, 6), IDENTITY.repeat(2, 1, 1)
    problem = WarpProblem(u, Affine(theta))
    u.resize_(1, 3, 5, 6)
    theta.resize_(1, 2, 3)
    remedy = "It was of this shape when the problem was made"
    match = rf"^feature_map: expected shape \(2, 3, 5, 6\), got \(1, 3, 5, 6\)\. {remedy}"
    with pytest.raises(ShapeError, match=match):
        warp_ragged([problem])


def test_parameters_that_gained_items_are_refused():
    """A map of one item would be warped more often than the result has items."""
    theta = IDENTITY.repeat(2, 1, 1)
    problem = WarpProblem(torch.rand(1, 3, 5, 6), Affine(theta))
    theta.resize_(3, 2, 3)
    match = r"^theta: expected shape \(2, 2, 3\), got \(3, 2, 3\)\. It was of this shape"
    with pytest.raises(ShapeError, match=match):
        warp_ragged([problem])


def test_operands_on_another_device_are_found_where_they_are():
    """A module that is moved takes the parameters of problems with it."""
    u, theta = (torch.empty(size, device="meta") for size in ((1, 3, 5, 6), (1, 2, 3)))
    problem = WarpProblem(u, Affine(theta))
    torch.utils.swap_tensors(theta, IDENTITY.clone())
    torch.utils.swap_tensors(u, torch.rand(1, 3, 5, 6))
    call, operands, addresses = located(problem)
    assert call.device == u.device == torch.device("cpu")
    assert (
        [operand.data_ptr() for operand in operands]
        == addresses
        == [u.data_ptr(), theta.data_ptr()]
    )


def test_operands_on_several_devices_are_refused():
    """No kernel reads memory of another device than its own."""
    u, theta = torch.rand(1, 3, 5, 6), IDENTITY.clone()
    problem = WarpProblem(u, Affine(theta))
    torch.utils.swap_tensors(theta, IDENTITY.to("meta"))
    match = "^theta: expected one device, got feature_map on cpu and theta on meta"
    with pytest.raises(DeviceMismatchError, match=match):
        warp_ragged([problem])


class Wrapper(torch.Tensor):
    """A tensor that holds another one and has no memory, as subclasses for sharding are made."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        raise AssertionError(function)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (freed(torch.zeros(1, 1, 4, 4)), "64 bytes in a storage of 0"),
        (cut(torch.zeros(1, 1, 4, 4)), "64 bytes in a storage of 63"),
        (torch.zeros(1, 1, 4, 4).to_sparse(), r"layout torch\.sparse_coo"),
        (torch.zeros(1, 1, 4, 4).to_mkldnn(), r"layout torch\._mkldnn"),
        (torch._efficientzerotensor((1, 1, 4, 4)), r"a ZeroTensor\. Allocate it by torch\.empty"),
        (
            FakeTensorMode().from_tensor(torch.zeros(1, 1, 4, 4)),
            "a FakeTensor without memory of its",
        ),
        (Wrapper(torch.zeros(1, 1, 4, 4)), r"a Wrapper without memory .* Pass a plain tensor\."),
    ],
)
def test_memory_that_is_none_is_refused_for_results(memory, message):
    """Before anything runs."""
    problem = WarpProblem(torch.rand(1, 1, 4, 4), Affine(IDENTITY))
    with pytest.raises(InvalidInputError, match=rf"^out\[0\]: expected a dense tensor.*{message}"):
        warp_ragged([problem], [memory])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # used by torch itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lost", ["feature_map", "theta"])
def test_tangents_that_lose_their_memory_are_refused(lost, dtype):
    """Torch itself would read what is not there, in forward mode and in its function `jvp`."""
    operands = {"feature_map": torch.rand(1, 1, 4, 4, dtype=dtype), "theta": IDENTITY.to(dtype)}
    tangent = torch.rand_like(operands[lost])

    def call(**operands):
        tangent.untyped_storage().resize_(0)
        with torch.autocast("cpu", torch.bfloat16):
            return warp(operands["feature_map"], Affine(operands["theta"]))

    message = f"^tangent of {lost}: expected a dense tensor .* Its storage was freed or cut"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(operands[lost], tangent)
        with pytest.raises(InvalidInputError, match=message):
            call(**operands | {lost: dual})
    tangent.untyped_storage().resize_(tangent.nbytes)
    with pytest.raises(InvalidInputError, match=message):
        torch.func.jvp(lambda one: call(**operands | {lost: one}), (operands[lost],), (tangent,))


def test_views_of_part_of_a_storage_are_read():
    """Offsets, steps and expansions within the storage are no reason to refuse."""
    wide = torch.rand(2, 3, 8, 9)
    views = {
        "offset": wide[1:, 1:2],
        "steps": wide[:1, :, ::2, 1::3],
        "turned": wide.transpose(2, 3),
        "expanded": wide[:, :1].expand(-1, 5, -1, -1),
        "last rows": wide[:, :, -1:],
        "empty": wide[:0],
    }
    for view in views.values():
        v = warp(view, Affine(IDENTITY))
        assert torch.equal(v, warp(view.clone(), Affine(IDENTITY)))


class Marked(torch.Tensor):
    """A subclass without behaviour."""


def test_subclasses_are_read_as_the_tensors_that_they_are():
    """Alone, and in ragged calls."""
    u = torch.rand(1, 2, 4, 4)
    expected = warp(u, Affine(IDENTITY), (3, 5))
    got = warp(u.as_subclass(Marked), Affine(IDENTITY), (3, 5))
    assert torch.equal(got.as_subclass(torch.Tensor), expected)
    (got,) = warp_ragged([WarpProblem(u.as_subclass(Marked), Affine(IDENTITY), (3, 5))])
    assert torch.equal(got.as_subclass(torch.Tensor), expected)
    memory = torch.empty(1, 2, 3, 5)
    warp_ragged([WarpProblem(u.as_subclass(Marked), Affine(IDENTITY), (3, 5))], [memory])
    assert torch.equal(memory, expected)


def test_ragged_calls_serve_those_who_follow_every_operation():
    """Fake tensors have shapes, batched ones values."""
    with FakeTensorMode():
        u, theta = torch.empty(2, 3, 4, 5), torch.empty(2, 2, 3)
        problem = WarpProblem(u, Affine(theta), (6, 7))
        assert warp_ragged([problem])[0].shape == (2, 3, 6, 7)
        (gradients,) = warp_gradients_ragged(
            [WarpGradientsProblem(problem, u.new_empty(2, 3, 6, 7))]
        )
        assert gradients.transform.shape == (2, 2, 3)
        grid = GridProblem(Affine(theta), (6, 7))
        assert generate_grid_ragged([grid])[0].shape == (2, 6, 7, 2)
        problems = [GridGradientsProblem(grid, u.new_empty(2, 6, 7, 2))]
        assert generate_grid_gradients_ragged(problems)[0].shape == (2, 2, 3)
    maps = torch.rand(3, 1, 2, 4, 4)
    got = torch.vmap(lambda u: warp_ragged([WarpProblem(u, Affine(IDENTITY), (3, 5))])[0])(maps)
    expected = torch.stack([warp(u, Affine(IDENTITY), (3, 5)) for u in maps])
    torch.testing.assert_close(got, expected)


def test_functionalized_calls_are_not_refused():
    """A wrapper of torch.func has no address; what it wraps has."""
    u = torch.rand(1, 2, 4, 4)
    got = torch.func.functionalize(lambda u: warp(u, Affine(IDENTITY), (3, 5)))(u)
    torch.testing.assert_close(got, warp(u, Affine(IDENTITY), (3, 5)))


def test_every_operator_refuses_freed_memory():
    """Those who call the torch operators directly meet the same checks."""
    problem = random_gradients(2, random_warp(1))
    arguments = stn_engine.operators.warp_gradients.arguments(problem)
    for place in range(3):
        given = list(arguments)
        given[place] = freed(given[place])
        with pytest.raises(InvalidInputError, match="storage of 0"):
            torch.ops.stn_engine.warp_gradients(*given)


def test_compiled_calls_resolve_and_refuse():
    """The captured operator reads values, too."""
    compiled = torch.compile(lambda u: warp(u, Affine(IDENTITY), (3, 5)), backend="eager")
    u = torch.rand(1, 2, 4, 4)
    assert torch.equal(compiled(negated(u)), warp(u, Affine(IDENTITY), (3, 5)))
    with pytest.raises(InvalidInputError, match="storage of 0"):
        torch.ops.stn_engine.warp(
            freed(u), *stn_engine.operators.warp.arguments(WarpProblem(u, Affine(IDENTITY)))[1:]
        )


@pytest.mark.parametrize("place", [0, 1])
def test_drop_ins_resolve_and_refuse(place):
    """As the calls that they stand for."""
    operands = [torch.rand(1, 2, 4, 4), 2 * torch.rand(1, 3, 5, 2) - 1]
    expected = torch.nn.functional.grid_sample(*operands, align_corners=False)
    lazy = list(operands)
    lazy[place] = negated(operands[place])
    torch.testing.assert_close(stn_engine.grid_sample(*lazy, align_corners=False), expected)
    lost = list(operands)
    lost[place] = freed(operands[place])
    with pytest.raises(InvalidInputError, match="storage of 0"):
        stn_engine.grid_sample(*lost, align_corners=False)


def test_every_kind_of_transform_is_asked():
    """No kind has a way around."""
    for kind, lose in itertools.product(KINDS, (freed, cut)):
        problem = random_warp(1, kind=kind)
        lost = problem.bound(problem.feature_map, lose(problem.transform.parameters))
        with pytest.raises(InvalidInputError, match="Its storage was freed or cut") as caught:
            stn_engine.operators.warp(lost)
        assert caught.value.argument == problem.transform.argument


def cut(tensor):
    """``tensor``, whose storage ends before it does."""
    new = tensor.clone()
    new.untyped_storage().resize_(new.element_size())
    return new


@pytest.mark.parametrize("lose", [freed, cut])
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("theta", lambda lose: warp(torch.ones(1, 1, 2, 2), Affine(lose(IDENTITY.half())))),
        (
            "theta",
            lambda lose: stn_engine.affine_grid(
                lose(IDENTITY.half()), (1, 1, 2, 2), align_corners=False
            ),
        ),
        (
            "grid",
            lambda lose: stn_engine.grid_sample(
                torch.ones(1, 1, 2, 2), lose(torch.zeros(1, 2, 2, 2).half()), align_corners=False
            ),
        ),
        (
            "grad_output",
            lambda lose: warp_gradients(
                lose(torch.ones(1, 1, 2, 2).half()), torch.ones(1, 1, 2, 2), Affine(IDENTITY)
            ),
        ),
    ],
)
def test_half_precision_is_not_widened_before_its_memory_is_looked_at(argument, call, lose):
    """Torch would read beyond the end of the storage while it converts."""
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InvalidInputError, match=f"^{argument}: expected a dense tensor whose val"),
    ):
        call(lose)


@pytest.mark.parametrize("lose", [freed, cut])
def test_control_points_without_memory_are_refused(lose):
    """They become plain numbers when the transform is made, which reads them."""
    points, control = torch.rand(1, 3, 2), lose(torch.rand(3, 2))
    with pytest.raises(InvalidInputError, match=r"^control_points: expected a dense tensor whose"):
        stn_engine.ThinPlateSpline(points, control_points=control)
