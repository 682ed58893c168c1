"""The runner: one ragged engine call, and what happens when it fails."""

import asyncio

import pytest
import torch

import stn_engine
from stn_engine.adapters import on_bytes
from stn_server.batching.devices import EngineRunner, compute
from stn_server.batching.work import Batch, BatchKey, Cost, Operation, WorkItem
from stn_server.errors import DeviceLostError
from support.memory import job_of, results_from


def halve(problems):
    """A ragged call that cannot take odd numbers, nor anything beside one."""
    if any(problem % 2 for problem in problems):
        raise ValueError(f"odd: {problems}")
    return [problem // 2 for problem in problems]


def warp_problem(height, width):
    """A shear of random pixels, large enough to have an inside."""
    generator = torch.Generator().manual_seed(height)
    feature_map = torch.rand(1, 2, height, width, generator=generator)
    theta = torch.tensor([[[0.9, 0.2, 0.1], [-0.1, 1.1, 0.0]]])
    return stn_engine.WarpProblem(feature_map, stn_engine.Affine(theta))


LARGE = Cost(size_bytes=1 << 30, samples=1 << 30, work=1 << 30)
SMALL = Cost(size_bytes=1, samples=1, work=1)


def make_batch(operation, jobs, cost=LARGE):
    key = BatchKey(operation, torch.float32, None)
    items = [WorkItem(key=key, cost=cost, problems=(job,), arrived=0.0) for job in jobs]
    return Batch.of(items, cost)


@pytest.fixture
def runner():
    engine_runner = EngineRunner()
    yield engine_runner
    engine_runner.close()


def test_a_good_batch_is_one_call():
    """Splitting is for failures only."""
    calls = []

    def function(problems):
        calls.append(list(problems))
        return halve(problems)

    assert compute(function, [2, 4, 6]) == [1, 2, 3]
    assert calls == [[2, 4, 6]]


def test_a_bad_problem_fails_alone():
    """Its neighbours are computed, and it gets the exception of its own call."""
    first, error, last = compute(halve, [2, 3, 6])
    assert (first, last) == (1, 3)
    with pytest.raises(ValueError, match=r"odd: \[3\]"):
        raise error


def test_a_single_bad_problem_is_tried_once():
    """There is nothing to split."""
    calls = []

    def function(problems):
        calls.append(list(problems))
        return halve(problems)

    (error,) = compute(function, [3])
    assert isinstance(error, ValueError)
    assert calls == [[3]]


def test_the_engine_computes_every_operation(runner):
    """Results come in the order of the items and equal those of single calls, bit for bit."""
    warps = [warp_problem(5, 7), warp_problem(3, 4)]
    gradients = [
        stn_engine.WarpGradientsProblem(warp, torch.ones_like(warp.feature_map)) for warp in warps
    ]
    grids = [stn_engine.GridProblem(warp.transform, (3, 4)) for warp in warps]
    grid_gradients = [
        stn_engine.GridGradientsProblem(grid, torch.ones(grid.output_shape)) for grid in grids
    ]
    batches = {
        Operation.WARP: warps,
        Operation.WARP_GRADIENTS: gradients,
        Operation.GENERATE_GRID: grids,
        Operation.GENERATE_GRID_GRADIENTS: grid_gradients,
    }
    for operation, problems in batches.items():
        jobs = [job_of(problem) for problem in problems]
        results = asyncio.run(runner.run(make_batch(operation, jobs)))
        assert [*map(as_bytes, results)] == [as_bytes(on_bytes.compute([job])[0]) for job in jobs]


def as_bytes(results):
    return [*map(bytes, results)]


def test_results_go_where_they_have_a_place(runner):
    """On every device; what has none comes in memory of its own."""
    gradients = stn_engine.WarpGradientsProblem(warp_problem(5, 7), torch.ones(1, 2, 5, 7))
    job = job_of(gradients)
    expected = as_bytes(on_bytes.compute([job])[0])
    place = memoryview(bytearray(len(expected[0])))
    batch = make_batch(Operation.WARP_GRADIENTS, [job._replace(places=[place, None]), job])
    outcomes = asyncio.run(runner.run(batch))
    assert [*map(as_bytes, outcomes)] == [expected, expected]
    assert bytes(place) == expected[0]


def test_the_engine_runner_keeps_neighbours_of_a_bad_problem(runner):
    """What is no problem at all fails alone."""
    good = job_of(warp_problem(4, 4))
    batch = make_batch(Operation.WARP, [good, None, good])
    first, error, last = asyncio.run(runner.run(batch))
    assert isinstance(error, Exception)
    assert first == last == on_bytes.compute([good])[0]


def test_a_small_batch_is_computed_inline(runner):
    """The loop is kept free of what takes longer than to wake somebody, and of nothing else."""
    problem = warp_problem(4, 4)
    job = job_of(problem)
    (results,) = runner.run_inline(make_batch(Operation.WARP, [job], SMALL))
    (output,) = results_from(problem, results)
    assert torch.equal(output, stn_engine.warp_ragged([problem])[0])
    for cost in (LARGE, Cost(size_bytes=1, samples=1, work=1 << 30)):
        assert runner.run_inline(make_batch(Operation.WARP, [job], cost)) is None


def test_a_closed_runner_refuses(runner):
    """After `close` there is no thread to compute in."""
    runner.close()
    with pytest.raises(DeviceLostError, match="expected a thread to compute in, got none"):
        asyncio.run(runner.run(make_batch(Operation.WARP, [job_of(warp_problem(2, 2))])))
