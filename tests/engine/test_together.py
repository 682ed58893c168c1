"""Ragged calls of the same problems, again and again: what is kept, and what is asked anew."""

import pytest
import torch

from stn_engine import Affine, Gradients, InvalidInputError, WarpProblem, WarpSpec
from stn_engine.adapters.tensors import KnownLayouts
from stn_engine.backends import kernels
from stn_engine.backends.cuda import CudaBackend
from stn_engine.backends.torch import TorchBackend
from stn_engine.memory import span_bytes
from support.emulated_cuda import EMULATED_CUDA, EmulatedLauncher
from support.profiling import functions_entered
from support.strategies import random_gradients, random_warp

FLOAT = torch.float32
HOW = ("transform", "output_size", "spec")
"""What a warp has besides its map."""


def some_tensors():
    """Whole ones, and a view into the middle of a storage."""
    return [torch.rand(2, 3), torch.rand(4, 5, 6).transpose(0, 1), torch.rand(40)[7:19].view(3, 4)]


def addresses_of(tensors):
    return [one.data_ptr() for one in tensors]


def test_tensors_that_lie_alike_are_found_to_do_so():
    """Wherever they begin, in memory or in their storage."""
    first, others = some_tensors(), some_tensors()
    known = KnownLayouts(first)
    assert known.addresses(first) == addresses_of(first)
    assert known.addresses(others) == addresses_of(others)
    others[2] = torch.rand(12).view(3, 4)
    assert known.addresses(others) == addresses_of(others)


def cut(tensor):
    """Its storage ends a byte before it does."""
    last = (tensor.storage_offset() * tensor.element_size()) + span_bytes(tensor)
    tensor.untyped_storage().resize_(last - 1)
    return tensor


def freed(tensor):
    """Its storage has no memory."""
    tensor.untyped_storage().resize_(0)
    return tensor


class Subclass(torch.Tensor):
    """Sees what is done with it."""


OTHERWISE = {
    "another shape": lambda one: torch.rand(*one.shape[:-1], one.shape[-1] + 1),
    "other strides": lambda one: one.contiguous().mT.contiguous().mT,
    "another dtype": lambda one: one.double(),
    "another device": lambda one: one.to("meta"),
    "negated": torch._neg_view,
    "a subclass": lambda one: one.as_subclass(Subclass),
    "cut": cut,
    "freed": freed,
    "zero": lambda one: torch._efficientzerotensor(tuple(one.shape)),
    "sparse": lambda one: one.to_sparse(),
}


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("otherwise", OTHERWISE)
def test_tensors_that_lie_otherwise_are_looked_at_one_by_one(place, otherwise):
    """One of many is enough."""
    tensors = some_tensors()
    known = KnownLayouts(tensors)
    tensors[place] = OTHERWISE[otherwise](tensors[place])
    assert known.addresses(tensors) is None


def test_tensors_that_were_one_must_be_one_again():
    """Which of them is no matter; more of them, or fewer, lie in another way."""
    one, other, third = (torch.rand(2, 3) for _ in range(3))
    known = KnownLayouts([one, other, one])
    for tensors in ([one, other, one], [third, one, third]):
        assert known.addresses(tensors) == addresses_of(tensors)
    for tensors in ([one, other, third], [one, one, one], [one, other, other]):
        assert known.addresses(tensors) is None
    assert KnownLayouts([one, other, third]).addresses([one, other, one]) is None
    assert KnownLayouts([one, one]).addresses([one, one]) is None  # no call has one operand alone


class Counting(EmulatedLauncher):
    """Counts launches, and tables that it uploads."""

    def __init__(self):
        super().__init__()
        self.launches = self.uploads = 0

    def upload(self, words, device):
        self.uploads += 1
        return super().upload(words, device)

    def launch(self, *launch):
        self.launches += 1
        super().launch(*launch)


def problems_of(kind="affine"):
    """Three warps of different sizes and batches, and their gradients."""
    warps = [
        random_warp(n, kind=kind, dtype=FLOAT, size=(5 + n, 7), output_size=(4, 6 + n))
        for n in range(3)
    ]
    return warps, [random_gradients(n, warp) for n, warp in enumerate(warps)]


def same(got, expected):
    """Bit for bit."""
    pairs = zip(got, expected, strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def parts(gradients):
    return [part for one in gradients for part in (one.feature_map, one.transform)]


@pytest.mark.parametrize("kind", ["affine", "flow", "thin_plate_spline", "similarity"])
def test_what_is_kept_of_a_ragged_call_changes_no_bit(kind):
    """Values, and memory of results, are those of the present call."""
    warps, gradients = problems_of(kind)
    for _ in range(4):
        alone = [EMULATED_CUDA.warp([one])[0] for one in warps]
        assert same(EMULATED_CUDA.warp(warps), alone)
        out = [torch.full_like(one, 7.0) for one in alone]
        assert same(EMULATED_CUDA.warp(warps, out), alone)
        apart = parts(EMULATED_CUDA.warp_gradients([one])[0] for one in gradients)
        assert same(parts(EMULATED_CUDA.warp_gradients(gradients)), apart)
        given = [Gradients(*map(torch.empty_like, one.warp.operands)) for one in gradients]
        assert same(parts(EMULATED_CUDA.warp_gradients(gradients, given)), apart)
        for warp in warps:
            warp.feature_map.mul_(0.5)


def test_a_ragged_call_is_one_upload_and_one_launch():
    """A problem alone is none and one."""
    launcher = Counting()
    warps, _ = problems_of()
    for _ in range(3):
        CudaBackend(launcher).warp(warps)
    assert (launcher.launches, launcher.uploads) == (3, 3)
    CudaBackend(launcher).warp(warps[:1])
    assert (launcher.launches, launcher.uploads) == (4, 3)


class Idle(EmulatedLauncher):
    """Launches nothing."""

    def launch(self, *launch):
        del launch


def warps_that_share(count, thetas):
    """Images of as many sizes, whose thetas are few or one."""
    affines = [Affine(torch.eye(2, 3)[None]) for _ in range(thetas)]
    return [
        WarpProblem(torch.rand(1, 1, 3 + n, 4), affines[n % thetas], (2, 2)) for n in range(count)
    ]


@pytest.mark.parametrize("of_each", [1, 16], ids=["own thetas", "shared thetas"])
def test_a_known_ragged_call_does_nothing_in_python_problem_by_problem(of_each):
    """Of four times as many problems it enters as many functions."""
    backend, counts = CudaBackend(Idle()), []
    for count in (16, 64):
        warps = warps_that_share(count, count // of_each)
        for _ in range(2):
            backend.warp(warps)
        counts.append(len(functions_entered(lambda warps=warps: backend.warp(warps))))
    assert counts[0] == counts[1] < 40


def test_thetas_that_are_shared_otherwise_are_known_from_the_second_time_on(monkeypatch):
    """The calls are the same whoever shares them."""
    backend, looked_at = CudaBackend(Idle()), []
    located = kernels.located
    monkeypatch.setattr(kernels, "located", lambda one: looked_at.append(one) or located(one))
    for thetas in (8, 1, 2, 8):
        warps = warps_that_share(8, thetas)
        looked_at.clear()
        for _ in range(2):
            backend.warp(warps)
        assert looked_at == [*warps, *warps]
        for _ in range(3):
            backend.warp(warps)
        assert len(looked_at) == 16


@pytest.mark.parametrize("given", [False, True])
def test_operands_that_change_between_ragged_calls_are_read_as_they_are_now(given):
    """Moved, in another memory format, or negated."""
    warps, _ = problems_of()
    out = EMULATED_CUDA.warp(warps) if given else None
    changes = (
        lambda one: one.clone(),
        lambda one: one.contiguous(memory_format=torch.channels_last),
        lambda one: torch._neg_view(-one),
        lambda one: torch.cat([one.new_zeros(9), one.flatten()])[9:].view_as(one),
    )
    for change in changes:
        for _ in range(3):
            EMULATED_CUDA.warp(warps, out)
        expected = [one.clone() for one in EMULATED_CUDA.warp(warps)]
        operand = warps[1].operands[0]
        operand.data = change(operand)
        assert same(EMULATED_CUDA.warp(warps, out), expected)


def test_operands_that_are_read_from_copies_are_copied_every_time():
    """Their memory holds values with the other sign, from the first call on."""
    warps, _ = problems_of()
    negated = torch._neg_view(-warps[1].feature_map)
    some = [warps[0], WarpProblem(negated, *(getattr(warps[1], name) for name in HOW)), warps[2]]
    expected = EMULATED_CUDA.warp(warps)
    for _ in range(4):
        assert same(EMULATED_CUDA.warp(some), expected)


@pytest.mark.parametrize("lose", [cut, freed])
def test_operands_that_lose_their_memory_between_ragged_calls_are_refused(lose):
    """Kernels would read what is not theirs."""
    warps, _ = problems_of()
    for _ in range(3):
        EMULATED_CUDA.warp(warps)
    lose(warps[2].transform.theta)
    with pytest.raises(InvalidInputError, match="theta"):
        EMULATED_CUDA.warp(warps)


def test_memory_for_results_may_lie_otherwise_the_next_time():
    """Dense in another order, or not dense."""
    warps, _ = problems_of()
    expected = EMULATED_CUDA.warp(warps)
    for _ in range(3):
        EMULATED_CUDA.warp(warps, [torch.empty_like(one) for one in expected])
    last = [torch.empty_like(one, memory_format=torch.channels_last) for one in expected]
    assert same(EMULATED_CUDA.warp(warps, last), expected)
    wide = [torch.full((*one.shape[:3], 20), -1.0)[..., : one.shape[3]] for one in expected]
    assert same(EMULATED_CUDA.warp(warps, wide), expected)


def test_gradients_that_are_needed_differ_from_problem_to_problem():
    """Each has its own number of results."""
    _, gradients = problems_of()
    needs = (("feature_map",), ("transform",), ("feature_map", "transform"))
    some = [
        type(one)(one.warp, one.grad_output, need)
        for one, need in zip(gradients, needs, strict=True)
    ]
    for _ in range(3):
        for got, one in zip(EMULATED_CUDA.warp_gradients(some), some, strict=True):
            expected = TorchBackend().warp_gradients([one])[0]
            for name in ("feature_map", "transform"):
                part, want = getattr(got, name), getattr(expected, name)
                assert (part is None) == (want is None)
                if part is not None:
                    torch.testing.assert_close(part, want, rtol=1e-4, atol=1e-4)


def test_problems_with_nothing_to_compute_are_among_others():
    """The others have a table without them."""
    warps, _ = problems_of()
    empty = WarpProblem(warps[0].feature_map, warps[0].transform, (0, 3), WarpSpec())
    for _ in range(3):
        found = EMULATED_CUDA.warp([warps[0], empty, warps[1]])
        assert found[1].shape[2:] == (0, 3)
        assert same([found[0], found[2]], EMULATED_CUDA.warp(warps[:2]))
