"""The host of the ``cuda`` backend: what it keeps from call to call, and where results lie."""

import copy
import pickle
from itertools import product

import pytest
import torch

from stn_engine import (
    Affine,
    Gradients,
    SamplingGrid,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
)
from stn_engine.backends.cuda import CudaBackend
from stn_engine.backends.cuda.device import DeviceLauncher
from stn_engine.backends.cuda.structures import COUNT
from stn_engine.backends.torch import TorchBackend
from support.emulated_cuda import EMULATED_CUDA, EmulatedLauncher
from support.objectives import LOSSES, parts_of, random_objective
from support.strategies import random_gradients, random_warp

LAST = torch.channels_last


class CountingLauncher(EmulatedLauncher):
    """Remembers how many problems each kernel was launched for."""

    def __init__(self):
        super().__init__()
        self.launches = []

    def launch(self, kernel, arguments, device):
        self.launches.append((kernel.name, arguments[COUNT]))
        super().launch(kernel, arguments, device)


def interleaved_warp(seed=1, dtype=torch.float32):
    """A warp whose channels move as vectors, if they are aligned."""
    warp = random_warp(seed, dtype=dtype, channels=8)
    last = warp.feature_map.contiguous(memory_format=LAST)
    return warp.bound(last, warp.transform.parameters)


def unaligned(tensor):
    """The same values in memory that begins one element behind a vector."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return flat.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


def value(problem):
    return EMULATED_CUDA.warp([problem])[0]


def test_a_problem_is_computed_anew_whatever_is_kept_of_it():
    """Neither values nor addresses outlive a call."""
    problem = random_warp(1, dtype=torch.float32)
    first = value(problem)
    problem.feature_map.mul_(2)
    assert torch.equal(value(problem), 2 * first)
    problem.feature_map.data = problem.feature_map * 2
    problem.transform.parameters.data = problem.transform.parameters.clone()
    assert torch.equal(value(problem), 4 * first)


def test_a_bound_problem_is_a_problem_of_its_own():
    """Its operands may have other strides."""
    problem = random_warp(2, dtype=torch.float32, channels=8)
    expected = value(problem)
    last = problem.feature_map.contiguous(memory_format=LAST)
    bound = problem.bound(last, problem.transform.parameters)
    assert EMULATED_CUDA.plan(bound.call) is not EMULATED_CUDA.plan(problem.call)
    assert torch.equal(value(bound), expected)
    assert value(bound).is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_know_nothing_of_memory_that_is_not_theirs(again):
    """Plans of the ``cuda`` backend hold addresses of constants."""
    problem = random_gradients(3, random_warp(3))
    expected = EMULATED_CUDA.warp_gradients([problem])[0].feature_map
    assert problem.call.plans
    other = again(problem)
    assert not {"call", "plans"} & vars(other).keys()
    assert torch.equal(EMULATED_CUDA.warp_gradients([other])[0].feature_map, expected)


def test_memory_decides_how_channels_move():
    """One problem, results in memory of any alignment and order; the same bits."""
    launcher = CountingLauncher()
    problem = interleaved_warp()
    new = CudaBackend(launcher).warp([problem])[0]
    for out in (torch.empty_like(new), unaligned(new), torch.empty(new.shape)):
        assert torch.equal(CudaBackend(launcher).warp([problem], [out])[0], new)
    kernels = [f"stn_warp_matrix_{layout}" for layout in ("interleaved", "planes")]
    assert [kernel for kernel, _ in launcher.launches] == [kernels[0], *kernels, kernels[1]]


def test_operands_that_move_are_found_unaligned():
    """The same problem, its map at an odd address the second time."""
    problem = random_gradients(4, interleaved_warp(4))
    first = EMULATED_CUDA.warp_gradients([problem])[0]
    problem.warp.feature_map.data = unaligned(problem.warp.feature_map)
    second = EMULATED_CUDA.warp_gradients([problem])[0]
    assert torch.equal(first.feature_map, second.feature_map)
    torch.testing.assert_close(first.transform, second.transform)


@pytest.mark.parametrize("kind", ["affine", "homography", "thin_plate_spline", "similarity"])
def test_parameters_are_made_contiguous(kind):
    """Kernels read them one behind the other; a problem remembers nothing but that."""
    problem = random_gradients(5, random_warp(5, kind=kind))
    parameters = problem.warp.transform.parameters
    spread = torch.stack((parameters, parameters), -1)[..., 0]
    strided = problem.bound(problem.grad_output, problem.warp.feature_map, spread)
    together = EMULATED_CUDA.warp_gradients([problem, strided, strided])
    assert not strided.warp.transform.parameters.is_contiguous()
    for got in together[1:]:
        assert torch.equal(got.transform, together[0].transform)
        assert torch.equal(got.feature_map, together[0].feature_map)


def test_new_results_are_dense_and_do_not_overlap():
    """Several of one dtype share storage; one alone has its own."""
    dtype = torch.float32
    problems = [random_warp(seed, size=(3 + seed, 4), dtype=dtype) for seed in range(3)]
    problems.append(interleaved_warp(dtype=torch.float64))
    results = EMULATED_CUDA.warp(problems)
    expected = [value(one) for one in problems]
    for result in results:
        result.add_(1)
    for got, want in zip(results, expected, strict=True):
        assert torch.equal(got, want + 1)
        assert got.stride() == want.stride()
    assert len({one.untyped_storage().data_ptr() for one in results}) == 2
    assert expected[0].untyped_storage().nbytes() == expected[0].nbytes
    assert not expected[0]._is_view()


def test_a_change_of_one_result_is_no_change_of_the_others():
    """Autograd refuses what it saved and somebody changed, but not for a neighbour's sake."""
    saved, other = EMULATED_CUDA.warp([random_warp(seed, dtype=torch.float32) for seed in (1, 2)])
    weight = torch.ones_like(saved, requires_grad=True)
    total = (weight * saved).sum()
    other.add_(1)
    total.backward()
    assert torch.equal(weight.grad, saved)


def test_gradients_of_every_dtype_share_a_batch():
    """Parameters of float32 and of float64 beside each other."""
    warps = [
        random_warp(seed, dtype=torch.float32, parameter_dtype=dtype)
        for seed, dtype in enumerate((torch.float32, torch.float64) * 2)
    ]
    problems = [random_gradients(seed, warp) for seed, warp in enumerate(warps)]
    launcher = CountingLauncher()
    together = CudaBackend(launcher).warp_gradients(problems)
    assert {count for _, count in launcher.launches} == {4}
    for got, problem in zip(together, problems, strict=True):
        alone = EMULATED_CUDA.warp_gradients([problem])[0]
        assert got.transform.dtype == problem.warp.transform.parameters.dtype
        assert torch.equal(got.transform, alone.transform)
        assert torch.equal(got.feature_map, alone.feature_map)


def test_problems_without_a_result_take_no_part():
    """They are launched for nobody, and get what is theirs all the same."""
    launcher = CountingLauncher()
    full, empty = random_warp(6), random_warp(7, output_size=(0, 3))
    none, some = CudaBackend(launcher).warp([empty, full])
    assert none.shape == empty.output_shape
    assert torch.equal(some, value(full))
    gradients = random_gradients(8, empty)
    out = Gradients(*(torch.ones_like(one) for one in empty.operands))
    for given in (None, [out]):
        (got,) = CudaBackend(launcher).warp_gradients([gradients], given)
        assert not got.feature_map.any()
        assert not got.transform.any()
    assert [count for _, count in launcher.launches] == [1]


def test_flat_problems_have_gradients_of_zero_for_the_transform():
    """New ones as well as those in given memory, and no kernel runs for them."""
    launcher = CountingLauncher()
    warp = random_warp(9, kind="similarity", spec=WarpSpec(interpolation="nearest"))
    problem = random_gradients(9, warp, needs=("transform",))
    out = Gradients(None, torch.ones_like(warp.transform.parameters))
    for given in (None, [out, out]):
        for got in CudaBackend(launcher).warp_gradients([problem, problem], given):
            assert got.feature_map is None
            assert not got.transform.any()
    assert launcher.launches == []


GATHER, FAR = "stn_gather_planes", "stn_gather_far_planes"
SLOPES, FINISH, PREIMAGE = "stn_slopes_matrix_planes", "stn_finish", "stn_preimage"
WIDE = {"size": (40, 41), "output_size": (42, 43)}
"""Of more than one tile."""


@pytest.mark.parametrize(
    ("needs", "options", "kernels"),
    [
        ("feature_map", {}, [GATHER, FAR]),
        ("feature_map", WIDE, [PREIMAGE, GATHER, FAR]),
        ("feature_map", {"batch": (1, 3)}, [PREIMAGE, GATHER, FAR]),
        ("transform", {}, [SLOPES]),
        ("transform", WIDE, [SLOPES, FINISH]),
        ("transform", {"batch": (3, 1)}, [SLOPES, FINISH]),
        ("transform", {"kind": "similarity"}, ["stn_prepare", SLOPES, FINISH]),
    ],
)
def test_needs_and_tiles_decide_what_is_launched(needs, options, kernels):
    """What nobody asks for is not computed; what one tile has of a theta, it finishes."""
    warp = random_warp(10, **options)
    launcher = CountingLauncher()
    problem = WarpGradientsProblem(warp, random_gradients(1, warp).grad_output, (needs,))
    CudaBackend(launcher).warp_gradients([problem])
    assert [kernel for kernel, _ in launcher.launches] == kernels


MOMENTS = ["stn_moments", "stn_finish_moments"]
FINISH = "stn_finish_objective"
BOTH = ("gradient", "gauss_newton")
NEAREST = WarpSpec(interpolation="nearest")


@pytest.mark.parametrize(
    ("needs", "options", "kernels"),
    [
        (BOTH, {}, ["stn_objective_matrix", FINISH]),
        (("gauss_newton",), {"loss": "huber"}, ["stn_objective_matrix", FINISH]),
        (("gradient",), {"loss": "ncc"}, [*MOMENTS, "stn_objective_matrix", FINISH]),
        (BOTH, {"kind": "similarity"}, ["stn_prepare", "stn_objective_matrix", FINISH]),
        (("gradient",), {"kind": "thin_plate_spline"}, ["stn_objective_spline", FINISH]),
        (("gradient",), {"kind": "flow"}, [*MOMENTS, "stn_objective_field"]),
        ((), {}, MOMENTS),
        (BOTH, {"spec": NEAREST}, MOMENTS),
        (BOTH, {"output_size": (0, 3)}, MOMENTS[1:]),
        (BOTH, {"batch": (0, 0, 0, 0)}, []),
    ],
)
def test_needs_and_losses_decide_what_an_objective_launches(needs, options, kernels):
    """One pass over the maps where their means need not be known before."""
    launcher = CountingLauncher()
    problem = random_objective(11, weighted=False, **options).needing(needs)
    CudaBackend(launcher).objective([problem])
    assert [kernel for kernel, _ in launcher.launches] == kernels


@pytest.mark.parametrize("kind", ["affine", "thin_plate_spline", "flow"])
def test_objectives_of_any_losses_and_needs_come_together(kind):
    """With weights and without, of several sizes: every one has the bits that it has alone."""
    problems = [
        random_objective(n, kind=kind, loss=loss, weighted=weighted, size=(9 + n, 11))
        for n, (loss, weighted) in enumerate(product(LOSSES, (True, False)))
    ]
    problems.append(problems[0].needing(()))
    launcher = CountingLauncher()
    together = CudaBackend(launcher).objective(problems)
    if kind == "affine":  # of these ssd and huber share their launches
        assert ("stn_objective_matrix", 2) in launcher.launches
    for problem, found in zip(problems, together, strict=True):
        (alone,) = EMULATED_CUDA.objective([problem])
        assert parts_of(found).keys() == parts_of(alone).keys()
        for name, part in parts_of(alone).items():
            assert torch.equal(parts_of(found)[name], part), name


def test_thetas_of_one_tile_and_of_many_share_a_table():
    """Those that are finished by their tile are left alone by the kernel that sums tiles."""
    options = {"kind": "affine", "dtype": torch.float32}
    some = [{}, WIDE, {"batch": (3, 1)}, {"batch": (1, 3)}, {"batch": (4, 4)}, WIDE]
    problems = [random_gradients(n, random_warp(n, **options, **one)) for n, one in enumerate(some)]
    for problem, got in zip(problems, EMULATED_CUDA.warp_gradients(problems), strict=True):
        alone = EMULATED_CUDA.warp_gradients([problem])[0]
        assert torch.equal(got.feature_map, alone.feature_map)
        assert torch.equal(got.transform, alone.transform)
        expected = TorchBackend().warp_gradients([problem])[0]
        torch.testing.assert_close(got.transform, expected.transform, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("zooms", [(1, 9, 1, 1, 12), (9, 1), (1, 1, 9), (1, 1)])
def test_maps_without_far_pixels_lie_between_those_with_some(zooms):
    """A source pixel that very many target pixels read is left to a whole warp, wherever."""
    theta = torch.eye(2, 3).repeat(len(zooms), 1, 1) / torch.tensor(zooms)[:, None, None]
    source = torch.rand(len(zooms), 2, 40, 41, generator=torch.Generator().manual_seed(1))
    warp = WarpProblem(source, Affine(theta), (90, 91))
    problem = random_gradients(1, warp, needs=("feature_map",))
    (got,) = EMULATED_CUDA.warp_gradients([problem])
    (expected,) = TorchBackend().warp_gradients([problem])
    torch.testing.assert_close(got.feature_map, expected.feature_map, rtol=1e-4, atol=1e-4)


class Holding(EmulatedLauncher):
    """Takes note of what it is asked to hold and to retain."""

    def __init__(self):
        super().__init__()
        self.events, self.current = [], 0

    def stream(self, device):
        del device
        return self.current

    def hold(self, tensors, device):
        self.events.append(("hold", [tuple(one.shape) for one in tensors], device.type))

    def retain(self, things):
        self.events.append(("retain", things))

    def launch(self, *launch):
        self.events.append(("launch",))
        super().launch(*launch)


def test_the_basis_of_a_spline_is_held_before_kernels_read_it():
    """Its cache may drop it for another one while they do, on whatever stream."""
    launcher = Holding()
    warp = random_warp(1, kind="thin_plate_spline", dtype=torch.float32)
    CudaBackend(launcher).warp([warp])
    control = len(warp.transform.control_points)
    points = warp.output_shape[2] * warp.output_shape[3]
    assert ("hold", [(control, points)], "cpu") in launcher.events[:-1]
    assert launcher.events[-1] == ("launch",)


def test_constants_are_held_once_on_every_stream_that_reads_them():
    """Whoever lets go of a plan last frees them, maybe while kernels still run."""
    launcher = Holding()
    backend, warp = CudaBackend(launcher), random_warp(1, dtype=torch.float32)
    held = ("hold", [(6 * 7,)], "cpu")  # factors of six entries of the matrix
    for stream, count in ((0, 1), (0, 1), (7, 2), (0, 2), (7, 2)):
        launcher.current = stream
        backend.warp([warp])
        assert launcher.events.count(held) == count
        assert launcher.events[-1] == ("launch",)


def test_a_captured_graph_keeps_what_it_reads_at_every_replay(monkeypatch):
    """The table of the host, descriptors with their constants, and bases; else nothing is kept."""
    launcher = Holding()
    CudaBackend(launcher).warp([random_warp(1, dtype=torch.float32)])
    (retained,) = [event[1] for event in launcher.events if event[0] == "retain"]
    assert [type(one).__name__ for one in retained[0]] == ["Descriptor"]
    real = DeviceLauncher()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    real.retain("of no graph")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    real.retain("of a graph")
    assert real._retained == ["of a graph"]


HUGE = 1 << 40


@pytest.mark.parametrize("kind", ["affine", "flow", "grid"])
def test_strides_of_axes_of_size_one_may_be_any(kind):
    """Nobody steps along them, whether they belong to maps, their gradients or points."""
    warp = random_warp(1, kind=kind, dtype=torch.float32, size=(1, 7), output_size=(1, 6))
    problem = random_gradients(2, warp)
    expected = EMULATED_CUDA.warp_gradients([problem])[0], EMULATED_CUDA.warp([warp])[0]
    odd = problem.bound(*map(with_huge_steps, problem.operands))
    assert any(HUGE in operand.stride() for operand in odd.operands)
    assert odd.warp.feature_map.stride(2) == HUGE
    gradients = EMULATED_CUDA.warp_gradients([odd])[0]
    assert torch.equal(EMULATED_CUDA.warp([odd.warp])[0], expected[1])
    assert torch.equal(gradients.feature_map, expected[0].feature_map)
    assert torch.equal(gradients.transform, expected[0].transform)


def with_huge_steps(operand):
    """The same tensor, but for the strides of axes along which nobody steps."""
    pairs = zip(operand.shape, operand.stride(), strict=True)
    strides = [HUGE if size == 1 else stride for size, stride in pairs]
    return operand.as_strided(operand.shape, strides)


def meta(*shape, strides=None):
    extent = 1 << 34
    if strides is None:
        return torch.empty(shape, device="meta")
    return torch.empty(extent, device="meta").as_strided(shape, strides)


@pytest.mark.parametrize("which", ["grad_output", "points"])
def test_steps_beyond_the_integers_of_kernels_are_a_reason_and_no_error(which):
    """Another backend computes then."""
    far = 1 << 32
    points = meta(1, 2, 2, 2, strides=(8, far, 2, 1) if which == "points" else None)
    warp = WarpProblem(meta(1, 1, 4, 4), SamplingGrid(points))
    strides = (4, 4, far, 1) if which == "grad_output" else None
    problem = WarpGradientsProblem(warp, meta(1, 1, 2, 2, strides=strides))
    (reason,) = CudaBackend(AnyDevice()).unsupported_reasons(problem)
    last = far + (2 if which == "points" else 1)
    assert reason == f"a channel spans at most {(1 << 31) - 1} elements, this one {last}"


class AnyDevice(EmulatedLauncher):
    def reasons_against(self, device):
        del device
        return ()


def test_results_go_into_memory_that_is_not_dense():
    """By way of memory that is: sums of kernels lie side by side."""
    problem = random_gradients(2, random_warp(1, kind="flow", dtype=torch.float32))
    wide = torch.full((*problem.warp.feature_map.shape[:3], 20), -1.0)
    into = wide[..., : problem.warp.feature_map.shape[3]]
    transform = torch.empty_like(problem.warp.transform.parameters)
    (gradients,) = EMULATED_CUDA.warp_gradients([problem], [Gradients(into, transform)])
    (expected,) = EMULATED_CUDA.warp_gradients([problem])
    assert gradients.feature_map is into
    assert torch.equal(into, expected.feature_map)
    assert torch.equal(transform, expected.transform)
    assert (wide[..., into.shape[3] :] == -1).all()
    out = torch.empty(*problem.grad_output.shape[:3], 20)[..., : problem.grad_output.shape[3]]
    assert EMULATED_CUDA.warp([problem.warp], [out])[0] is out
    assert torch.equal(out, EMULATED_CUDA.warp([problem.warp])[0])
