"""The server's GPU: what travels there comes back as the host would have computed it."""

import pytest
import torch

from stn_server.batching.devices import LANES_PER_GPU, DeviceMemory, Gpu, Host, devices_of
from stn_server.residents import Resident
from support.memory import job_of, results_from
from support.strategies import random_gradients, random_warp


@pytest.fixture
def gpu():
    return Gpu(torch.device("cuda:0"))


def launch(device, problems):
    """The results of every problem, as tensors."""
    outcomes = device.run([job_of(problem) for problem in problems], lambda: None)
    return [results_from(*pair) for pair in zip(problems, outcomes, strict=True)]


def test_warps_of_all_sizes_travel_together(gpu):
    """One copy in, one launch, one copy back; float32 differs by its rounding only."""
    problems = [random_warp(seed, dtype=torch.float32, size=(4 + seed, 9)) for seed in range(8)]
    results = launch(gpu, problems)
    for (got,), (want,) in zip(results, launch(Host(), problems), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_travel(gpu):
    """Those that are needed, and no others."""
    problem = random_gradients(3, random_warp(4), needs=("transform",))
    ((got,),) = launch(gpu, [problem])
    ((want,),) = launch(Host(), [problem])
    torch.testing.assert_close(got, want)


def test_resident_tensors_stay_there():
    """What two lanes read there, on their own streams, is what the host has."""
    memory = DeviceMemory(lanes=2, resident_bytes=1 << 20)
    lanes = [Gpu(torch.device("cuda:0"), memory) for _ in range(2)]
    problem = random_warp(5, dtype=torch.float32, size=(61, 83))
    job = job_of(problem)
    tensor = Resident("caller", 1, memoryview(job.operands[0]), len(job.operands[0]))
    jobs = [job._replace(operands=[tensor.view(), job.operands[1]])]
    first = [*map(bytes, lanes[0].run(jobs, lambda: None)[0])]
    resident = memory.copies.resident_of(tensor.view())
    assert memory.copies.find(resident).device.type == "cuda"
    for lane in 4 * lanes:
        assert [*map(bytes, lane.run(jobs, lambda: None)[0])] == first
    assert memory.copies.size_bytes == tensor.size_bytes
    ((want,),) = launch(Host(), [problem])
    torch.testing.assert_close(results_from(problem, first)[0], want, rtol=1e-4, atol=1e-4)


def test_every_gpu_here_has_its_lanes():
    """All of them, unless some are named."""
    count = torch.cuda.device_count()
    assert len(devices_of("auto")) == LANES_PER_GPU * count
    assert len(devices_of("cuda:0")) == LANES_PER_GPU
    assert devices_of("cuda:0")[0].held_bytes() >= 0
