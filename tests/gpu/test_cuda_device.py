"""What only a real device can show; the conformance battery runs beside this in `make test-gpu`."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stn_engine import Affine, WarpProblem, WarpSpec, dispatch
from stn_engine.backends.cuda import CudaBackend
from support.emulated_cuda import EMULATED_CUDA
from support.objectives import LOSSES, item_of, parts_of, random_objective
from support.on_device import on_device
from support.strategies import (
    DTYPES,
    IMAGE,
    KINDS,
    PADDINGS,
    VOLUME,
    VOLUME_KINDS,
    random_gradients,
    random_warp,
)

CUDA = CudaBackend()
LARGE = {"size": (61, 83), "output_size": (77, 59)}
REPEATS = 100
MEMORY = 40 << 30
"""Bytes that the largest test takes."""

per_padding = pytest.mark.parametrize("padding", PADDINGS)


def assert_same(left, right):
    assert torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def both(gradients):
    return gradients.feature_map, gradients.transform


@pytest.mark.parametrize("kind", KINDS)
@per_padding
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_repeat_bit_for_bit(kind, padding, dtype):
    """A hundred runs, one result."""
    spec = WarpSpec(padding=padding, fill=0.5)
    warp = random_warp(1, kind=kind, dtype=dtype, channels=8, spec=spec, **LARGE)
    problem = on_device(random_gradients(2, warp))
    first = both(CUDA.warp_gradients([problem])[0])
    for _ in range(REPEATS):
        for one, again in zip(first, both(CUDA.warp_gradients([problem])[0]), strict=True):
            assert_same(one, again)


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [*((kind, LARGE) for kind in KINDS), *((kind, VOLUME) for kind in VOLUME_KINDS)],
)
def test_a_batch_is_its_items_bit_for_bit(kind, sizes, dtype):
    """Together with others of other sizes, or alone: N items as well as N problems."""
    others = [random_warp(seed, kind=kind, dtype=dtype) for seed in range(3)]
    warp = random_warp(5, kind=kind, dtype=dtype, batch=(3, 3), **sizes)
    crowd = [on_device(random_gradients(6, one)) for one in (*others, warp)]
    together = CUDA.warp_gradients(crowd)[-1]
    values = CUDA.warp([one.warp for one in crowd])[-1]
    for n in range(3):
        alone = single(crowd[-1], n)
        assert_same(CUDA.warp([alone.warp])[0], values[n : n + 1])
        for one, whole in zip(both(CUDA.warp_gradients([alone])[0]), both(together), strict=True):
            assert_same(one, whole[n : n + 1].contiguous())


def single(problem, n):
    """Item n of a gradients problem as a problem of its own."""
    part = slice(n, n + 1)
    warp = problem.warp
    transform = warp.transform.with_parameters(warp.transform.parameters[part])
    alone = WarpProblem(warp.feature_map[part], transform, warp.output_size, warp.spec)
    return type(problem)(alone, problem.grad_output[part], problem.needs)


@pytest.mark.parametrize("kind", ["affine", "homography", "flow", "grid"])
@per_padding
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_results_are_those_of_the_emulation(kind, padding, interpolation, dtype):
    """Nothing is contracted or reordered behind our back: the device computes g++'s bits."""
    spec = WarpSpec(padding=padding, interpolation=interpolation, fill=0.5)
    problem = random_gradients(8, random_warp(7, kind=kind, dtype=dtype, spec=spec, **LARGE))
    there = on_device(problem)
    assert_same(CUDA.warp([there.warp])[0].cpu(), EMULATED_CUDA.warp([problem.warp])[0])
    gradients = CUDA.warp_gradients([there])[0], EMULATED_CUDA.warp_gradients([problem])[0]
    for got, want in zip(*map(both, gradients), strict=True):
        assert_same(got.cpu(), want)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_objectives_repeat_bit_for_bit_and_are_those_of_the_emulation(kind, loss, dtype):
    """Sums have one order, on a device as well as under g++; and every item is as if alone."""
    options = {"kind": kind, "loss": loss, "dtype": dtype, "batch": (1, 3, 1, 1)}
    problem = random_objective(9, **options, **LARGE)
    there = on_device(problem)
    first = parts_of(CUDA.objective([there])[0])
    emulated = parts_of(EMULATED_CUDA.objective([problem])[0])
    for _ in range(REPEATS):
        for name, part in parts_of(CUDA.objective([there])[0]).items():
            assert_same(part, first[name])
    for name, part in first.items():
        assert_same(part.cpu(), emulated[name])
    for n in range(3):
        for name, part in parts_of(CUDA.objective([item_of(there, n)])[0]).items():
            assert_same(part, first[name][n : n + 1].contiguous())


@pytest.mark.parametrize("kind", ["affine", "flow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_unordered_gradients_are_those_of_ordered_ones_but_for_rounding(kind, dtype):
    """Atomics change the order of a sum and nothing else."""
    results = []
    for deterministic in (True, False):
        spec = WarpSpec(padding="reflection", deterministic=deterministic)
        warp = random_warp(8, kind=kind, dtype=dtype, channels=8, spec=spec, **LARGE)
        results.append(CUDA.warp_gradients([on_device(random_gradients(9, warp))])[0].feature_map)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def test_streams_do_not_disturb_each_other():
    """Eight threads with a stream each, over and over."""
    problems = [on_device(random_gradients(n, random_warp(n, **LARGE))) for n in range(8)]
    expected = [both(CUDA.warp_gradients([one])[0]) for one in problems]
    torch.cuda.synchronize()

    def run(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [both(CUDA.warp_gradients([problems[number]])[0]) for _ in range(REPEATS)]
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(run, range(8))):
            for one in found:
                for got, want in zip(one, expected[number], strict=True):
                    assert_same(got, want)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[1] < MEMORY,
    reason="GPU WITH LESS THAN 40 GiB: maps beyond 2^31 elements were not tried",
)
@pytest.mark.timeout(300)
def test_more_than_two_to_the_31_elements():
    """Offsets between items and between channels have 64 bits."""
    n, c, size = 3, 3, 17000
    shape = (n, c, size, size)
    assert torch.Size(shape).numel() > 1 << 31
    u = torch.zeros(shape, dtype=torch.float16, device="cuda")
    u[-1, -1, -3:, -3:] = torch.arange(9, device="cuda").view(3, 3).half()
    shift = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]], device="cuda").expand(n, 2, 3)
    spec = WarpSpec(coordinates="pixel")
    warp = WarpProblem(u, Affine(shift.contiguous()), spec=spec)
    assert dispatch.select(warp).name == "cuda"
    shifted = dispatch.warp([warp])[0]
    assert torch.equal(shifted[-1, -1, -2:, -2:], u[-1, -1, -3:-1, -3:-1])
    assert shifted.count_nonzero() == 3


def test_kernels_are_clean_under_compute_sanitizer(tmp_path):
    """No read or write outside an allocation, in any kernel of small problems."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("NO COMPUTE-SANITIZER: memory accesses were not checked")
    run = subprocess.run(
        [
            *(sanitizer, "--error-exitcode", "9", "--report-api-errors", "no"),
            *(sys.executable, "-m", "gpu.every_kernel", "24"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=110,
    )
    if "Device not supported" in run.stdout + run.stderr:
        pytest.skip("COMPUTE-SANITIZER REFUSES THIS DEVICE: memory accesses were not checked")
    assert run.returncode == 0, run.stdout[-3000:]


def test_the_battery_is_not_run_on_the_emulation():
    """`make test-gpu` asks for the device."""
    assert CUDA.unsupported_reasons(on_device(random_warp(1, **IMAGE))) == ()
