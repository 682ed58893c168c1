"""What is particular to the ``cuda`` backend, emulated: when it runs, and how sums are made."""

from dataclasses import replace

import pytest
import torch

from stn_engine import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
)
from stn_engine.backends.cuda import CudaBackend, device
from stn_engine.call import Layout
from support.emulated_cuda import EMULATED_CUDA
from support.oracles import exact_gradients
from support.strategies import KINDS, random_gradients, random_values, random_warp
from support.tolerances import GRADIENT, assert_close_in_norm

FAR_SIZES = {"size": (5, 7), "output_size": (33, 29)}
FAR_VOLUME_SIZES = {"size": (3, 2, 3), "output_size": (9, 10, 11)}
GPU = torch.device("cuda", 0)


@pytest.fixture
def launcher(monkeypatch):
    """A launcher on a machine whose GPU is of a given age."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    caches = device._reasons_against_gpu, device._driver
    for cache in caches:
        cache.cache_clear()
    yield device.DeviceLauncher()
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_a_gpu_is_taken_and_a_host_is_not(launcher):
    """Tensors elsewhere are refused with their device named."""
    assert launcher.reasons_against(GPU) == ()
    reasons = ("computes on CUDA devices, the operands are on cpu",)
    assert CudaBackend().unsupported_reasons(random_warp(1)) == reasons


def test_an_old_gpu_is_refused(launcher, monkeypatch):
    """The kernels use what came with compute capability 8.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    reasons = ("needs compute capability 8.0, cuda:0 has 7.5",)
    assert launcher.reasons_against(GPU) == reasons


def test_without_its_libraries_the_backend_says_what_to_install(launcher, monkeypatch):
    """Not found at all, or without NVRTC."""
    for error in (ImportError("No module named 'cuda'"), RuntimeError("no libnvrtc.so")):

        def missing(name, error=error):
            assert name == "stn_engine.backends.cuda.driver"
            raise error

        monkeypatch.setattr(device, "import_module", missing)
        device._reasons_against_gpu.cache_clear()
        advice = "In the checkout: pip install './stn_engine[cuda]'"
        reasons = (f"cuda.core is not usable: {error}. {advice}",)
        assert launcher.reasons_against(GPU) == reasons


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1 << 25, 1), "maps are at most 16777216 pixels wide, high or deep"),
        ((1 << 16, 1 << 16), "a channel spans at most 2147483647 elements, this one 4294967296"),
    ],
)
def test_maps_beyond_the_integers_of_the_kernels_are_refused(size, reason):
    """Somebody else computes them."""
    everywhere = torch.zeros(1, 1, 1, 1).expand(1, 1, *size)
    warp = WarpProblem(everywhere, SamplingGrid(torch.zeros(1, 2, 2, 2)))
    assert EMULATED_CUDA.unsupported_reasons(warp) == (reason,)
    gradients = WarpGradientsProblem(warp, torch.zeros(1, 1, 2, 2))
    assert EMULATED_CUDA.unsupported_reasons(gradients) == (reason,)


def test_results_that_are_not_dense_are_refused():
    """Sums of kernels lie side by side; whoever has other memory takes a copy."""
    problem = random_gradients(1, random_warp(1, dtype=torch.float32))
    dtype, shape, strides = problem.call.results[0]
    wide = Layout(dtype, shape, tuple(2 * step for step in strides))
    call = problem.call.into((wide, problem.call.results[1]))
    reason = f"writes dense memory, a result has strides {wide.strides}"
    assert EMULATED_CUDA.plan(call) == (reason,)


def assert_map_gradient_conforms(problem):
    got = EMULATED_CUDA.warp_gradients([problem])[0].feature_map
    dtype = problem.warp.output_dtype
    assert_close_in_norm(got, exact_gradients(problem)[0], GRADIENT[dtype])


@pytest.mark.parametrize("batch", [(2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("affine", FAR_SIZES),
        ("homography", FAR_SIZES),
        ("similarity", FAR_SIZES),
        ("affine", FAR_VOLUME_SIZES),
    ],
)
def test_pixels_with_many_candidates_are_gathered_whole(
    kind, sizes, dtype, interpolation, padding, batch
):
    """Magnified maps, and borders that half of the target reads."""
    spec = WarpSpec(padding=padding, interpolation=interpolation)
    warp = random_warp(1, kind=kind, dtype=dtype, batch=batch, spec=spec, **sizes)
    assert_map_gradient_conforms(random_gradients(2, warp))


@pytest.mark.parametrize("padding", ["zeros", "border", "fill"])
@pytest.mark.parametrize(
    "theta",
    [
        [[0.0, 0, 0.25], [0, 0, -0.25]],
        [[0.0, 0, 0], [0.5, 0.5, 0.1]],
        [[1e-9, 0, 0.1], [0, 1, 0.1]],
        [[-1.0, 0, 0.1], [0, -1, 0.1]],
    ],
)
def test_singular_maps_are_gathered_whole(theta, padding):
    """Nothing is inverted that cannot be: rows are cut by half-planes."""
    warp = random_warp(3, dtype=torch.float32, spec=WarpSpec(padding=padding), **FAR_SIZES)
    warp = replace(warp, transform=Affine(torch.tensor([theta]).expand(2, 2, 3).contiguous()))
    assert_map_gradient_conforms(random_gradients(4, warp))


@pytest.mark.parametrize("row", [[1.5, 0.3, 0.1], [-0.2, 2.0, -0.3], [0.9, 0.9, -3.0], [0, 0, -1]])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_homographies_are_gathered_on_both_sides_of_the_horizon(row, padding):
    """W changes its sign in the middle of the target, or is negative all over."""
    spec = WarpSpec(padding=padding)
    warp = random_warp(5, dtype=torch.float64, batch=(1, 1), spec=spec, **FAR_SIZES)
    theta = torch.tensor([[[1.0, 0.2, 0.1], [-0.1, 1.0, 0.2], row]]).double()
    warp = replace(warp, transform=Homography(theta))
    assert_map_gradient_conforms(random_gradients(6, warp))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["affine", "flow", "thin_plate_spline"])
@pytest.mark.parametrize("channels", [3, 8])
def test_unordered_sums_are_the_ordered_ones_but_for_rounding(dtype, kind, channels):
    """``deterministic=False`` changes how terms are added and nothing else."""
    results = []
    for deterministic in (True, False):
        spec = WarpSpec(padding="reflection", deterministic=deterministic)
        warp = random_warp(7, kind=kind, dtype=dtype, channels=channels, spec=spec)
        warp = warp.bound(
            warp.feature_map.contiguous(memory_format=torch.channels_last),
            warp.transform.parameters,
        )
        results.append(EMULATED_CUDA.warp_gradients([random_gradients(8, warp)])[0].feature_map)
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=4 * epsilon, atol=8 * epsilon)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e35])
def test_integer_sums_fit_gradients_of_any_size(size):
    """Their unit follows the largest |G|."""
    warp = random_warp(9, kind="flow", dtype=torch.float32)
    problem = random_gradients(10, warp, needs=("feature_map",))
    large = replace(problem, grad_output=problem.grad_output * size)
    assert_map_gradient_conforms(large)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_not_finite_spoils_what_it_reaches_and_nothing_else(bad, dtype):
    """Integers know no NaN; the sums say so all the same."""
    warp = WarpProblem(
        random_values(11, (1, 1, 4, 6), dtype),
        Flow(torch.full((1, 4, 6, 2), 0.25)),
        spec=WarpSpec(coordinates="pixel"),
    )
    grad_output = torch.ones(warp.output_shape, dtype=dtype)
    clean = EMULATED_CUDA.warp_gradients([WarpGradientsProblem(warp, grad_output)])[0].feature_map
    grad_output[0, 0, 1, 2] = bad
    spoiled = EMULATED_CUDA.warp_gradients([WarpGradientsProblem(warp, grad_output)])[0].feature_map
    reached = torch.zeros(warp.output_shape, dtype=torch.bool)
    reached[0, 0, 1:3, 2:4] = True
    assert torch.equal(spoiled.isnan(), reached)
    assert torch.equal(spoiled[~reached], clean[~reached])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_items_of_one_launch_do_not_see_each_other(dtype, padding):
    """Mixed kinds, sizes and layouts together give the bits that each gives alone."""
    spec = WarpSpec(padding=padding)
    problems = []
    for seed, kind in enumerate(KINDS * 2):
        sizes = {"size": (3 + seed, 40 - seed), "output_size": (35 - seed, 2 + seed)}
        warp = random_warp(seed, kind=kind, dtype=dtype, channels=8, spec=spec, **sizes)
        if seed % 3 == 0:
            last = warp.feature_map.contiguous(memory_format=torch.channels_last)
            warp = warp.bound(last, warp.transform.parameters)
        problems.append(random_gradients(seed, warp))
    together = EMULATED_CUDA.warp([one.warp for one in problems])
    gradients = EMULATED_CUDA.warp_gradients(problems)
    for problem, value, found in zip(problems, together, gradients, strict=True):
        alone = EMULATED_CUDA.warp_gradients([problem])[0]
        assert torch.equal(value, EMULATED_CUDA.warp([problem.warp])[0])
        assert torch.equal(found.feature_map, alone.feature_map)
        assert torch.equal(found.transform, alone.transform)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_large_numbers_that_cancel_move_no_point_out_of_the_map(interpolation):
    """Far out in a wide target, rounding moves points by pixels: no tile there counts as interior.

    What lies before and behind the map in memory is told from its values by its size.
    """
    height, columns, step = 200_000, 1 << 15, 6000.3
    around = torch.full((1, 1, height + 256, 8), 1e30)
    feature_map = around[:, :, 128:-128].copy_(random_values(1, (1, 1, height, 8), torch.float32))
    top = torch.arange(0.0, 40.0, 1.7)
    theta = torch.zeros(len(top), 2, 3)
    theta[:, 0, 2] = 3.5
    theta[:, 1, 0], theta[:, 1, 1] = step, -0.37
    theta[:, 1, 2] = top - step * (columns - 64)
    spec = WarpSpec(coordinates="pixel", interpolation=interpolation)
    (warped,) = EMULATED_CUDA.warp([WarpProblem(feature_map, Affine(theta), (32, columns), spec)])
    assert warped.count_nonzero() > 1000
    assert warped.abs().max() <= 4 * feature_map.abs().max()  # weights of bicubic sum to less
