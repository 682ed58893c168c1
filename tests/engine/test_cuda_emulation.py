"""Kernels in blocks of 256 emulated threads: where they meet, in which order, and what they touch.

What the emulated device promises is shown by kernels that break it on purpose.
"""

import signal
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from stn_engine import Affine, Comparison, ObjectiveProblem, WarpProblem, WarpSpec
from stn_engine.backends.cuda import CudaBackend
from stn_engine.backends.cuda.programs import all_programs
from stn_engine.backends.cuda.tuning import THREADS
from support.emulated_cuda import (
    EMULATED_CUDA,
    EMULATION,
    EmulatedDeviceError,
    EmulatedLauncher,
    compiled,
    kernel_command,
    loaded,
    run_kernel,
)
from support.every_kernel import every_kernel, results_of
from support.objectives import LOSSES, random_objective
from support.processes import run_python
from support.strategies import IMAGE, KINDS_AND_SIZES, PADDINGS, random_gradients, random_warp

SEEDS = range(4)
TURNED = list(reversed(range(THREADS)))


@pytest.fixture(scope="module")
def faulty():
    """The kernels of ``faulty.cu``."""
    path = EMULATION / "faulty.cu"
    command = kernel_command(path, {"STN_THREADS": str(THREADS)})
    return loaded(compiled("faulty", command, path.read_text(encoding="utf-8")))


def run(library, kernel, seed=0):
    """What one block writes."""
    found = np.zeros(THREADS, np.int32)
    run_kernel(library, kernel, [found.ctypes.data], blocks=1, seed=seed)
    return found.tolist()


def test_threads_that_meet_see_what_others_wrote(faulty):
    """In whatever order they come."""
    assert all(run(faulty, "turned", seed) == TURNED for seed in SEEDS)


def test_threads_that_do_not_meet_see_garbage(faulty):
    """Not what an earlier block left; and not always the same."""
    run(faulty, "turned")
    found = [run(faulty, "turned_too_early", seed) for seed in SEEDS]
    assert all(set(one) <= {-1, *TURNED} and -1 in one for one in found)
    assert len(set(map(tuple, found))) > 1


@pytest.mark.parametrize(
    ("kernel", "wrong"),
    [
        ("one_leaves", "expected all threads to meet, got 255 at a barrier, 1 done"),
        ("half_a_warp_exchanges", "expected all threads to meet, got 128 at an exchange, 128 done"),
        ("one_votes", "expected the lanes of a warp at one place, got them at two"),
        ("some_are_asked_for", "expected all lanes of a warp to be asked for, got some"),
        ("beyond_the_warp", "expected a lane of the warp, got 32"),
    ],
)
def test_what_hangs_or_is_undefined_on_a_device_is_an_error(faulty, kernel, wrong):
    """And the device goes on."""
    with pytest.raises(EmulatedDeviceError, match=f"^{kernel}: {wrong}\\.$"):
        run(faulty, kernel)
    assert run(faulty, "turned") == TURNED


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_order_of_threads_and_blocks(kind, sizes, padding, dtype):
    """Nor on how many blocks there are: no two threads race, and sums have one order."""
    sizes = {"size": sizes["size"], "output_size": tuple(9 * n for n in sizes["output_size"])}
    spec = WarpSpec(padding=padding, fill=0.5)
    problem = random_gradients(
        1, random_warp(2, kind=kind, dtype=dtype, channels=8, spec=spec, **sizes)
    )
    assert_one_result(problem)


@pytest.mark.parametrize("kind", ["affine", "thin_plate_spline"])
def test_sums_over_many_tiles_do_not_depend_on_it_either(kind):
    """Every warp of the block that makes them has some."""
    warp = random_warp(3, kind=kind, dtype=torch.float32, batch=(THREADS, 1), **IMAGE)
    assert_one_result(random_gradients(4, warp))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_objectives_do_not_depend_on_it(loss, kind, sizes):
    """Of several items and many tiles each, and whatever their sums are."""
    sizes = {"size": sizes["size"], "output_size": tuple(9 * n for n in sizes["output_size"])}
    options = {"loss": loss, "kind": kind, "batch": (1, 2, 1, 1), "dtype": torch.float32}
    assert_one_result(random_objective(5, **options, **sizes))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)
def test_values_of_objectives_do_not_depend_on_what_else_is_needed(
    loss, interpolation, kind, sizes
):
    """To the last bit: V of gradients is V of warps."""
    options = {"spec": WarpSpec(interpolation=interpolation), "batch": (1, 2, 1, 1)}
    problem = random_objective(6, loss=loss, kind=kind, dtype=torch.float32, **options, **sizes)
    alone = EMULATED_CUDA.objective([replace(problem, needs=())])[0]
    for needs in (problem.needs, ("gradient",)):
        found = EMULATED_CUDA.objective([replace(problem, needs=needs)])[0]
        assert torch.equal(found.value, alone.value)
        assert torch.equal(found.count, alone.count)


def test_a_tap_of_weight_zero_leaves_no_trace_in_the_value_of_an_objective():
    """However large it is: V is the pixel there, 3, and F is 1."""
    moving, weights = torch.full((1, 1, 6, 6), 3.0), torch.zeros(1, 1, 6, 6)
    moving[..., 1, 1], weights[..., 2, 2] = 1e30, 1.0
    spec = WarpSpec(coordinates="pixel", interpolation="bicubic")
    warp = WarpProblem(moving, Affine(torch.eye(3)[None, :2]), (6, 6), spec)
    problem = ObjectiveProblem(
        warp, torch.ones_like(moving), weights, Comparison(loss="ssd"), ("gradient",)
    )
    assert EMULATED_CUDA.objective([problem])[0].value.tolist() == [4.0]


def assert_one_result(problem):
    """Whatever the seed, and the number of blocks."""
    found = []
    for seed, most_blocks in zip(SEEDS, (1, 2, 5, 1 << 30), strict=True):
        backend = CudaBackend(EmulatedLauncher(most_blocks=most_blocks, seed=seed))
        found.append(results_of(backend, problem))
    for one, other in product(found[:1], found[1:]):
        for result, again in zip(one, other, strict=True):
            assert torch.equal(result.view(torch.uint8), again.view(torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("fenced", ["begin", "end"])
def test_no_kernel_touches_memory_outside(fenced):
    """Every kernel runs between pages that end the process when touched."""
    done = run_python("-m", "support.fenced_cuda", fenced)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.mark.slow
@pytest.mark.parametrize(("at_end", "offset"), [(False, -1), (True, 12)])
def test_a_fence_ends_whoever_crosses_it(at_end, offset):
    """Else the test before could not fail."""
    program = f"""
import ctypes, torch
from support.fenced_cuda import Fence
inside = Fence(at_end={at_end}).copy(torch.arange(3, dtype=torch.int32))
assert ctypes.string_at(inside.data_ptr(), 12) == bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])
print("inside", flush=True)
ctypes.string_at(inside.data_ptr() + {offset}, 1)
"""
    done = run_python("-c", program)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside\n")


@pytest.mark.slow
def test_every_program_has_a_problem_that_runs_it():
    """Kernels of every dtype, uint8 and the half types too, are smoke-tested and sanitized."""
    launched = set()

    class Noting(EmulatedLauncher):
        def launch(self, kernel, *launch):
            launched.add((kernel.program, kernel.name))
            super().launch(kernel, *launch)

    backend = CudaBackend(Noting())
    for problem in every_kernel():
        results_of(backend, problem)
    wanted = {(program, kernel) for program in all_programs() for kernel in program.kernels}
    assert launched == wanted
