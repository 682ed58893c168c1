"""Bytes in, bytes out: as the same problems on tensors, bit for bit."""

import sys
import threading

import pytest
import torch
from hypothesis import given

from stn_engine import (
    Affine,
    BackendUnavailableError,
    Flow,
    GridGradientsProblem,
    GridProblem,
    ObjectiveProblem,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    dispatch,
)
from stn_engine.adapters import device_buffers, on_bytes
from stn_engine.adapters.device_buffers import Arena, DeviceBuffer
from stn_engine.adapters.on_bytes import Job
from stn_engine.backends.cpu import CpuBackend
from stn_engine.backends.torch import TorchBackend
from support.emulated_cuda import EMULATED_CUDA
from support.memory import bytes_of, job_of, results_from
from support.objectives import LOSSES, random_objective
from support.strategies import (
    DETERMINISTIC,
    DTYPES,
    INTERPOLATIONS,
    KINDS,
    VOLUME_KINDS,
    crowds,
    random_gradients,
    random_values,
    random_warp,
)

HOST = torch.device("cpu")
BACKENDS = [CpuBackend(), TorchBackend()]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request, monkeypatch):
    """The only one; of these, one has kernels for bytes."""
    monkeypatch.setattr(dispatch, "candidates", lambda: (request.param,))
    return request.param


def expected(problem):
    """The results of a problem on tensors."""
    functions = {
        WarpProblem: dispatch.warp,
        WarpGradientsProblem: dispatch.warp_gradients,
        GridProblem: dispatch.generate_grid,
        GridGradientsProblem: dispatch.generate_grid_gradients,
        ObjectiveProblem: dispatch.objective,
    }
    return on_bytes.parts_of(functions[type(problem)]([problem])[0])


def assert_as_on_tensors(problems, threads=None):
    """Also those that a kernel never touches."""
    jobs = [job_of(problem) for problem in problems]
    for problem, results in zip(problems, on_bytes.compute(jobs, threads), strict=True):
        tensors = results_from(problem, results)
        for got, want in zip(tensors, expected(problem), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def differentiable(warp):
    return warp.output_dtype != torch.uint8


@DETERMINISTIC
@given(warps=crowds(DTYPES))
def test_any_crowd_is_computed_as_on_tensors(warps):
    """Forward and backward, whatever is asked for."""
    assert_as_on_tensors(warps)
    needs = ("feature_map",), ("transform",), ("feature_map", "transform")
    assert_as_on_tensors(
        [
            random_gradients(seed, warp, needs=needs[seed % 3])
            for seed, warp in enumerate(filter(differentiable, warps))
        ]
    )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_computed_as_on_tensors(kind, interpolation):
    """With kernels for bytes or without them."""
    warp = random_warp(
        1, kind=kind, dtype=torch.float32, spec=WarpSpec(interpolation=interpolation)
    )
    assert_as_on_tensors([warp])
    assert_as_on_tensors([random_gradients(2, warp)])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", VOLUME_KINDS)
def test_volumes_are_computed_as_on_tensors(kind):
    """Channels first and last."""
    warp = random_warp(1, kind=kind, size=(4, 5, 6), output_size=(3, 6, 5))
    last = warp.bound(
        warp.feature_map.to(memory_format=torch.channels_last_3d), warp.transform.parameters
    )
    assert_as_on_tensors([warp, last])
    assert_as_on_tensors([random_gradients(2, warp), random_gradients(2, last)])


@pytest.mark.usefixtures("backend")
def test_grids_are_computed_as_on_tensors():
    """Backends of the host compose them."""
    grid = GridProblem(random_warp(1).transform, (3, 4))
    assert_as_on_tensors([grid])
    grad_grid = random_values(2, grid.output_shape, grid.output_dtype)
    assert_as_on_tensors([GridGradientsProblem(grid, grad_grid)])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_calls_are_computed_as_on_tensors(threads):
    """On several threads, beside small ones."""
    warps = [
        random_warp(seed, dtype=torch.float32, size=(side, side), output_size=(side, 2 * side))
        for seed, side in enumerate((3, 190, 5))
    ]
    assert_as_on_tensors(warps, threads)
    assert_as_on_tensors([random_gradients(3, warp) for warp in warps], threads)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_maps_of_one_pixel_keep_their_order_of_channels(dtype):
    """Sizes of 1 leave the memory format open; strides do not."""
    pixel = random_values(1, (2, 1, 1, 3), dtype).permute(0, 3, 1, 2)
    theta = torch.eye(2, 3, dtype=dtype).repeat(2, 1, 1)
    warp = WarpProblem(pixel, Affine(theta), (4, 5), WarpSpec(padding="border"))
    problem, operands, _ = job_of(warp)
    problem = problem.bound(
        torch.empty(2, 1, 1, 3, dtype=dtype, device="meta").permute(0, 3, 1, 2),
        problem.transform.parameters,
    )
    (like,) = on_bytes.results_of(problem)
    assert like.is_contiguous(memory_format=torch.channels_last)
    ((output,),) = on_bytes.compute([Job(problem, operands)])
    assert output == bytes_of(pixel.expand(2, 3, 4, 5).to(memory_format=torch.channels_last))


def test_maps_of_one_channel_are_in_one_order_only():
    """Whatever their strides say."""
    map_ = torch.empty(2, 4, 5, 1, device="meta").permute(0, 3, 1, 2)
    warp = WarpProblem(map_, Affine(torch.empty(2, 2, 3, device="meta")))
    assert on_bytes.results_of(warp)[0].is_contiguous()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)])
def test_batches_without_numbers_have_results_without_them(shape):
    """And gradients of zeros where there is something to have a gradient."""
    feature_map = torch.zeros(shape)
    theta = torch.zeros(shape[0], 2, 3)
    warp = WarpProblem(feature_map, Affine(theta))
    assert_as_on_tensors([warp])
    assert_as_on_tensors([WarpGradientsProblem(warp, torch.zeros(warp.output_shape))])
    empty = WarpProblem(torch.ones(2, 3, 4, 5), Flow(torch.zeros(2, 0, 7, 2)))
    assert_as_on_tensors([WarpGradientsProblem(empty, torch.zeros(empty.output_shape))])


@pytest.mark.usefixtures("backend")
def test_no_calls_have_no_results():
    """An empty batch is one, too."""
    assert list(on_bytes.compute([])) == []


@pytest.mark.usefixtures("backend")
def test_operands_may_lie_anywhere():
    """What is not aligned is copied first; nothing is written to it."""
    problem, operands, _ = job_of(random_gradients(3, random_warp(1)))
    shifted = [memoryview(b"?" + operand)[1:] for operand in operands]
    assert [*map(bytes, operands)] == [*map(bytes, shifted)]
    aligned, moved = on_bytes.compute([Job(problem, operands), Job(problem, shifted)])
    assert [*map(bytes, aligned)] == [*map(bytes, moved)]
    assert [*map(bytes, operands)] == [*map(bytes, shifted)]


@pytest.mark.usefixtures("backend")
def test_operands_of_another_size_are_refused():
    """Before anything is read beyond their end."""
    problem, (grad_output, feature_map, theta), _ = job_of(random_gradients(3, random_warp(1)))
    good = Job(problem, (grad_output, feature_map, theta))
    for bad in (
        (grad_output[:-1], feature_map, theta),
        (grad_output, feature_map + b"?", theta),
        (grad_output, feature_map, b""),
    ):
        with pytest.raises(ValueError, match=r"expected \d+ bytes, got \d+"):
            on_bytes.compute([good, Job(problem, bad)])


@DETERMINISTIC
@given(warps=crowds([torch.float32]))
@pytest.mark.usefixtures("backend")
def test_results_go_where_they_have_a_place(warps):
    """Those without one come in memory of their own; nothing around a place is written."""
    problems = [random_gradients(7, warp) for warp in warps]
    jobs, around = [], []
    for number, job in enumerate(map(job_of, problems)):
        sizes_bytes = on_bytes.sizes_of(job.problem)[1]
        memory = [memoryview(bytearray(b"?" * (size + 128))) for size in sizes_bytes]
        places = [one[64:-64] for one in memory]
        if number % 3 < len(places):
            places[number % 3] = None
        jobs.append(job._replace(places=places))
        around += memory
    for problem, job, results in zip(problems, jobs, on_bytes.compute(jobs), strict=True):
        for place, result in zip(job.places, results, strict=True):
            assert place is None or place is result
        for got, want in zip(results_from(problem, results), expected(problem), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert all(bytes(one[:64]) + bytes(one[-64:]) == b"?" * 128 for one in around)


@pytest.mark.usefixtures("backend")
def test_places_of_another_size_are_refused():
    """Or those that cannot be written to: before anything is computed."""
    job = job_of(random_warp(1))
    (size_bytes,) = on_bytes.sizes_of(job.problem)[1]
    for place in (
        memoryview(bytearray(size_bytes - 1)),
        memoryview(bytearray(size_bytes + 1)),
        memoryview(bytes(size_bytes)),
    ):
        with pytest.raises(ValueError, match=rf"place: expected {size_bytes} writable bytes, got"):
            on_bytes.compute([job._replace(places=[place])])
    with pytest.raises(ValueError, match="zip"):
        on_bytes.compute([job._replace(places=[None, None])])


def test_only_backends_that_may_compute_do(monkeypatch):
    """As on tensors: the one that `STN_BACKEND` names, or none."""
    monkeypatch.setattr(dispatch, "candidates", lambda: ())
    with pytest.raises(BackendUnavailableError):
        on_bytes.compute([job_of(random_warp(1))])


def test_the_work_on_a_problem_is_kept_with_it():
    """A server computes the same problem again and again."""
    job = job_of(random_warp(1))
    on_bytes.compute([job])
    backend, (plan,) = dispatch.planned([job.problem], HOST)
    assert plan is not None
    assert dispatch.planned([job.problem], HOST) == (backend, [plan])


def compute_in_block(problems):
    """The bytes of all results, from a block of the host's memory."""
    jobs = [job_of(problem) for problem in problems]
    operands = [operand for job in jobs for operand in job.operands]
    there = DeviceBuffer.of(operands)
    likes = [like for job in jobs for like in on_bytes.results_of(job.problem)]
    results = DeviceBuffer([like.nbytes for like in likes], HOST)
    results.memory.fill_(0x5A)
    device_buffers.compute([job.problem for job in jobs], there, results)
    found = iter(results.bytes)
    return [[next(found) for _ in on_bytes.results_of(job.problem)] for job in jobs]


def assert_in_block_as_on_tensors(problems):
    for problem, results in zip(problems, compute_in_block(problems), strict=True):
        tensors = results_from(problem, results)
        for got, want in zip(tensors, expected(problem), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


IN_BLOCKS = [EMULATED_CUDA, CpuBackend(), TorchBackend()]


@pytest.fixture(params=IN_BLOCKS, ids=lambda backend: backend.name)
def of_block(request, monkeypatch):
    """The only backend; the first, its kernels emulated, makes no tensors of places in blocks."""
    monkeypatch.setattr(dispatch, "candidates", lambda: (request.param, TorchBackend()))


ALL_NEEDS = ("feature_map",), ("transform",), ("feature_map", "transform")


def mixed_warps(kind, interpolation, dtype=torch.float32, **more):
    """Of several sizes, one with channels last."""
    spec = WarpSpec(interpolation=interpolation, **more)
    first, second, third = (
        random_warp(n, kind=kind, dtype=dtype, channels=8, size=(4 + n, 9), spec=spec)
        for n in range(3)
    )
    last = second.feature_map.to(memory_format=torch.channels_last)
    return [first, second.bound(last, second.transform.parameters), third]


@pytest.mark.usefixtures("of_block")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_computed_in_blocks_as_on_tensors(kind, interpolation):
    """Where its operands lie and where its results are to lie."""
    warps = mixed_warps(kind, interpolation)
    assert_in_block_as_on_tensors(warps)
    assert_in_block_as_on_tensors(
        [
            random_gradients(5, warp, needs=needs)
            for warp, needs in zip(warps, ALL_NEEDS, strict=True)
        ]
    )


@pytest.mark.usefixtures("of_block")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_unordered_sums_fit_into_blocks(dtype, padding):
    """Whether they begin as zeros in the result itself or elsewhere."""
    warps = mixed_warps("flow", "bilinear", dtype, padding=padding, deterministic=False)
    for warp, needs in zip(warps, ALL_NEEDS, strict=True):
        problem = random_gradients(5, warp, needs=needs)
        ((*results,),) = compute_in_block([problem])
        for got, want in zip(results_from(problem, results), expected(problem), strict=True):
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.usefixtures("of_block")
def test_volumes_and_grids_are_computed_in_blocks_as_on_tensors():
    """With kernels or without."""
    volume = random_warp(1, kind="affine", size=(4, 5, 6), output_size=(3, 6, 5))
    assert_in_block_as_on_tensors([volume])
    assert_in_block_as_on_tensors([random_gradients(2, volume)])
    grid = GridProblem(random_warp(1).transform, (3, 4))
    assert_in_block_as_on_tensors([grid])
    grad_grid = random_values(2, grid.output_shape, grid.output_dtype)
    assert_in_block_as_on_tensors([GridGradientsProblem(grid, grad_grid)])


@pytest.mark.usefixtures("of_block")
@pytest.mark.parametrize("kind", KINDS)
def test_objectives_are_computed_in_blocks_as_on_tensors(kind):
    """Of all losses together, with weights and without."""
    for weighted in (True, False):
        options = {"kind": kind, "dtype": torch.float32, "weighted": weighted}
        assert_in_block_as_on_tensors(
            [random_objective(n, loss=loss, **options) for n, loss in enumerate(LOSSES)]
        )


@DETERMINISTIC
@given(warps=crowds(DTYPES))
def test_any_crowd_is_computed_in_blocks_as_on_tensors(warps):
    """Those of size 0 included, for which no kernel runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "candidates", lambda: (EMULATED_CUDA, TorchBackend()))
        if warps:
            assert_in_block_as_on_tensors(warps)


@pytest.mark.usefixtures("of_block")
@pytest.mark.parametrize(
    ("operands", "results", "message"),
    [
        ((840, 48), (576,), r"operands: expected tensors of \[840, 96\] bytes, got \[840, 48\]"),
        ((840,), (576,), r"operands: expected tensors of \[840, 96\] bytes, got \[840\]"),
        ((840, 96), (575,), r"results: expected tensors of \[576\] bytes, got \[575\]"),
    ],
)
def test_blocks_of_other_tensors_are_refused(operands, results, message):
    """Kernels do not look where a block ends."""
    problem = job_of(random_warp(1, dtype=torch.float32, parameter_dtype=torch.float64)).problem
    with pytest.raises(ValueError, match=message):
        device_buffers.compute(
            [problem],
            DeviceBuffer(operands, HOST),
            DeviceBuffer(results, HOST),
        )


def test_a_row_is_found_once(monkeypatch):
    """A server computes the same problem again and again."""
    backends = (EMULATED_CUDA,)  # the same tuple at every call, as it is in a process
    monkeypatch.setattr(dispatch, "candidates", lambda: backends)
    problem, operands, _ = job_of(random_warp(1))
    sent = DeviceBuffer([len(operand) for operand in operands], HOST)
    results = DeviceBuffer([on_bytes.results_of(problem)[0].nbytes], HOST)
    device_buffers.compute([problem], sent, results)
    kept = dict(problem.plans)
    device_buffers.compute([problem], sent, results)
    assert problem.plans == kept


def test_blocks_align_their_tensors_and_keep_their_order_in_memory():
    """Vector loads want it, and kernels read channels last where they lie so."""
    likes = [
        torch.empty(3),
        torch.empty(1, 4, 5, 2).permute(0, 3, 1, 2),
        torch.empty(6, dtype=torch.float64),
    ]
    block = DeviceBuffer([like.nbytes for like in likes], HOST)
    tensors = block.tensors(likes)
    first = tensors[0].data_ptr()
    assert [one.data_ptr() - first for one in tensors] == [0, 256, 512]
    assert [*(block.addresses - first)] == [0, 256, 512]
    assert [one.stride() for one in tensors] == [like.stride() for like in likes]
    assert [len(memory) for memory in block.bytes] == [like.nbytes for like in likes]


@pytest.mark.usefixtures("of_block")
def test_operands_may_be_elsewhere_on_the_device():
    """Tensors that are there already are read where they lie, with kernels or without."""
    problem, operands, _ = job_of(random_warp(1, dtype=torch.float32))
    there = DeviceBuffer.of([b"", operands[1]])
    there.put(0, torch.frombuffer(bytearray(operands[0]), dtype=torch.uint8))
    likes = on_bytes.results_of(problem)
    results = DeviceBuffer([like.nbytes for like in likes], HOST)
    device_buffers.compute([problem], there, results)
    ((expected,),) = compute_in_block(
        [problem.bound(*random_warp(1, dtype=torch.float32).operands)]
    )
    assert bytes(results.bytes[0]) == bytes(expected)


def test_a_block_may_be_empty():
    """As a batch may."""
    block = DeviceBuffer([], HOST)
    assert block.memory.numel() == 0
    assert block.bytes == block.tensors([]) == []


@pytest.fixture
def patient_interpreter():
    """No thread is made to let another one run."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("patient_interpreter")
@pytest.mark.parametrize("way", ["into a block", "out of a block"])
def test_other_threads_run_while_bytes_are_copied(way):
    """A server goes on to answer while a batch of some 100 MB moves.

    Who never gets a core in time tries again.
    """
    message = bytes(1 << 28)
    block = DeviceBuffer.of([message])
    for _ in range(100):
        gate, has_run = threading.Lock(), threading.Event()

        def other(gate=gate, has_run=has_run):
            with gate:
                has_run.set()

        with gate:
            thread = threading.Thread(target=other)
            thread.start()
        copied = DeviceBuffer.of([message]) if way == "into a block" else block.copies([None])
        ran_meanwhile = has_run.is_set()
        thread.join()
        del copied
        if ran_meanwhile:
            return
    pytest.fail("nobody ever ran during a copy")


def test_an_arena_is_allocated_once_for_many_blocks():
    """It grows to the next power of two, and blocks begin where the last one did."""
    arena = Arena(pinned=False)
    first = DeviceBuffer([1000, 1000], torch.device("cpu"), arena)
    address = first.memory.data_ptr()
    assert first.memory.numel() == 2048
    smaller = DeviceBuffer([3], torch.device("cpu"), arena)
    assert (smaller.memory.data_ptr(), smaller.memory.numel()) == (address, 256)
    assert DeviceBuffer([2049], torch.device("cpu"), arena).memory.numel() == 2304
    again = DeviceBuffer([4000], torch.device("cpu"), arena)
    assert again.memory.numel() == 4096


def test_copies_of_a_block_are_no_part_of_it():
    """A reply that is read slowly holds itself, and what the next block writes it does not see."""
    arena = Arena(pinned=False)
    held = DeviceBuffer.of([b"one", b"two"], arena).copies([None, None])
    DeviceBuffer.of([b"___", b"___"], arena)
    assert [bytes(one) for one in held] == [b"one", b"two"]
