"""Devices: a batch that travels comes back as if it had stayed, and lack of memory is told."""

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from prometheus_client import CollectorRegistry

import stn_engine
from stn_engine.adapters import device_buffers
from stn_engine.adapters.device_buffers import DeviceBuffer
from stn_server.batching import devices
from stn_server.batching.devices import (
    Accelerator,
    DeviceMemory,
    EngineRunner,
    Host,
    Lanes,
    devices_of,
)
from stn_server.batching.work import NOTHING, Batch, BatchKey, Operation, WorkItem
from stn_server.config import ConfigError, ServerConfig
from stn_server.errors import DeviceFullError, DeviceLostError
from stn_server.events import Events, Listener
from stn_server.metrics import Metrics
from stn_server.residents import Resident
from support.fakes import FakeRunner
from support.memory import job_of

HOST, ELSEWHERE = Host(), Accelerator(torch.device("cpu"))
"""The second does all that it would do for a GPU, but finds it in host memory."""


def random(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def warps():
    """Of several sizes, one with channels last."""
    theta = torch.tensor([[[0.9, 0.2, 0.1], [-0.1, 1.1, 0.0]]])
    last = random(3, 2, 5, 6, 3).permute(0, 3, 1, 2)
    return [
        stn_engine.WarpProblem(feature_map, stn_engine.Affine(theta), size)
        for feature_map, size in ((random(1, 1, 2, 5, 7), (4, 4)), (last, None))
    ]


def problems_of(operation):
    if operation == Operation.WARP:
        return warps()
    if operation == Operation.WARP_GRADIENTS:
        needs = ("feature_map",), ("feature_map", "transform")
        return [
            stn_engine.WarpGradientsProblem(warp, random(5, *warp.output_shape), some)
            for warp, some in zip(warps(), needs, strict=True)
        ]
    grids = [stn_engine.GridProblem(warp.transform, (3, 4)) for warp in warps()]
    if operation == Operation.GENERATE_GRID:
        return grids
    return [stn_engine.GridGradientsProblem(grid, random(6, *grid.output_shape)) for grid in grids]


def run(device, problems):
    """The bytes of all results, or what came instead."""
    outcomes = device.run([job_of(problem) for problem in problems], lambda: None)
    return [one if isinstance(one, Exception) else [*map(bytes, one)] for one in outcomes]


@pytest.mark.parametrize("operation", Operation)
def test_a_batch_that_travels_comes_back_as_if_it_had_stayed(operation):
    """Bit for bit, in the same order of memory."""
    problems = problems_of(operation)
    assert run(ELSEWHERE, problems) == run(HOST, problems)


@pytest.mark.parametrize("operation", Operation)
def test_a_batch_crosses_in_one_copy_each_way(operation, monkeypatch):
    """However many calls it holds; and kernels are launched in between."""
    events = []
    copy_from = DeviceBuffer.copy_from

    def counted(self, other):
        events.append("copy")
        copy_from(self, other)

    monkeypatch.setattr(DeviceBuffer, "copy_from", counted)
    jobs = [job_of(problem) for problem in problems_of(operation)]
    ELSEWHERE.run(jobs, lambda: events.append("launch"))
    assert events == ["copy", "launch", "copy"]


@pytest.fixture
def memory_for(monkeypatch):
    """Lets devices run out of memory above so many problems."""
    calls, compute_in = [], device_buffers.compute

    def limit(most):
        def scarce(problems, *blocks):
            calls.append(len(problems))
            if len(problems) > most:
                raise torch.OutOfMemoryError
            return compute_in(problems, *blocks)

        monkeypatch.setattr(device_buffers, "compute", scarce)
        return calls

    return limit


def test_a_batch_that_does_not_fit_is_tried_in_halves(memory_for):
    """In order, and to the same results."""
    problems = [*warps(), warps()[0]]
    expected = run(HOST, problems)
    calls = memory_for(2)
    assert run(ELSEWHERE, problems) == expected
    assert calls == [3, 2, 1]


def test_a_half_that_does_not_fit_is_refused(memory_for):
    """Its callers may come again; the other half is computed."""
    calls = memory_for(1)
    first, second, third = run(ELSEWHERE, [*warps(), warps()[0]])
    assert calls == [3, 2, 1]
    assert [third] == run(HOST, warps()[:1])
    for error in (first, second):
        with pytest.raises(DeviceFullError, match="expected memory for this request on cpu, got"):
            raise error
        assert (error.device, error.retry_after_s) == ("cpu", 1.0)


def test_a_single_call_that_does_not_fit_is_refused(memory_for):
    """There is nothing to halve, but what others left may be given back meanwhile."""
    calls = memory_for(0)
    (error,) = run(ELSEWHERE, warps()[:1])
    assert isinstance(error, DeviceFullError)
    assert calls == [1, 1]


@pytest.fixture
def failing(monkeypatch):
    """A device whose kernels fail with an error of the driver, once."""

    def make(error, *, lost=False):
        errors, compute_in = [error], device_buffers.compute

        def fail(*arguments):
            if errors:
                raise errors.pop()
            return compute_in(*arguments)

        monkeypatch.setattr(device_buffers, "compute", fail)
        device = Accelerator(torch.device("cpu"))
        monkeypatch.setattr(device, "_is_lost", lambda: lost)
        return device

    return make


def accelerator_error(code):
    error = torch.AcceleratorError(f"CUDA error {code}")
    error.error_code = code
    return error


def test_a_failed_allocation_of_pinned_memory_is_no_lost_device(failing):
    """It is the driver that says so, by an error of the kind that lost devices raise, too."""
    device = failing(accelerator_error(devices.CUDA_OUT_OF_MEMORY))
    assert run(device, warps()) == run(HOST, warps())


def test_a_device_that_refuses_an_argument_is_not_lost(failing):
    """The batch failed; the next one need not."""
    device = failing(accelerator_error(1))
    with pytest.raises(torch.AcceleratorError, match="CUDA error 1"):
        run(device, warps())
    assert run(device, warps()) == run(HOST, warps())


def test_a_device_that_fails_at_every_call_is_lost(failing):
    with pytest.raises(DeviceLostError, match="expected cpu to compute, got CUDA error 700"):
        run(failing(accelerator_error(700), lost=True), warps())


def test_before_a_device_is_full_other_lanes_end_once(monkeypatch):
    """What did not fit beside another batch is tried again without it."""
    memory, compute_in = DeviceMemory(lanes=2), device_buffers.compute
    tried_beside, calls = threading.Event(), []
    is_beside = [True]

    def scarce(*arguments):
        calls.append(is_beside[0])
        if is_beside[0]:
            if len(calls) == 2:  # the batch, and its only half: now it waits for the other lane
                tried_beside.set()
            raise torch.OutOfMemoryError
        return compute_in(*arguments)

    monkeypatch.setattr(device_buffers, "compute", scarce)
    device = Accelerator(torch.device("cpu"), memory)
    with ThreadPoolExecutor(1) as pool:
        with memory.shared():  # the batch of the other lane
            running = pool.submit(run, device, warps()[:1])
            tried_beside.wait()
            is_beside[0] = False
        outcome = running.result()
    assert calls == [True, True, False]
    assert outcome == run(HOST, warps()[:1])


def test_the_last_try_of_a_lane_waits_for_the_others_and_keeps_new_ones_out():
    """In the order that locks give: nobody computes beside the one that is alone."""
    memory, events = DeviceMemory(lanes=2), []
    inside, leave = threading.Event(), threading.Event()

    def other():
        with memory.shared():
            inside.set()
            leave.wait()
            events.append("other")

    def alone():
        with memory.alone():
            events.append("alone")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(other)
        inside.wait()
        second = pool.submit(alone)
        leave.set()
        first.result()
        second.result()
    assert events == ["other", "alone"]
    with memory.shared():
        events.append("again")
    assert events[-1] == "again"


def test_results_of_a_batch_are_not_those_of_the_next():
    """Arenas are used again; callers that read slowly hold copies."""
    problems = warps()
    expected = run(HOST, problems)
    held = ELSEWHERE.run([job_of(problem) for problem in problems], lambda: None)
    run(ELSEWHERE, [problem.bound(*(2 * one for one in problem.operands)) for problem in problems])
    assert [[*map(bytes, one)] for one in held] == expected


OF_ONE_MAP = 1024
"""Room for the copy of one resident tensor of the following tests and not of two."""


def resident_jobs(count=1):
    """Warps of resident tensors, the tensors, and what they come to on the host."""
    jobs, tensors = [], []
    for seed in range(count):
        warp = stn_engine.WarpProblem(random(seed, 1, 2, 9, 8), warps()[0].transform, (4, 4))
        job = job_of(warp)
        tensors.append(Resident("caller", 1, memoryview(job.operands[0]), len(job.operands[0])))
        jobs.append(job._replace(operands=[tensors[-1].view(), job.operands[1]]))
    return jobs, tensors, [[*map(bytes, one)] for one in HOST.run(jobs, lambda: None)]


def outcomes_of(device, jobs):
    return [[*map(bytes, one)] for one in device.run(jobs, lambda: None)]


@pytest.fixture
def crossed(monkeypatch):
    """How many bytes were copied at a time, of tensors alone."""
    sizes, copy_from = [], DeviceBuffer.copy_from

    def counted(self, other):
        sizes.append(int(other.sizes_bytes.sum()))
        copy_from(self, other)

    monkeypatch.setattr(DeviceBuffer, "copy_from", counted)
    return sizes


def copy_of(memory, tensor):
    """The copy of a resident tensor on a device; None if there is none."""
    copies = memory.copies
    return copies.find(copies.resident_of(tensor.view()))


def test_a_resident_tensor_crosses_once(crossed):
    """In the one copy of the first batch that reads it; on any lane it is there then."""
    memory = DeviceMemory(lanes=2, resident_bytes=OF_ONE_MAP)
    lanes = [Accelerator(torch.device("cpu"), memory) for _ in range(2)]
    jobs, (tensor,), expected = resident_jobs()
    theta, output = len(jobs[0].operands[1]), len(expected[0][0])
    for lane in (lanes[0], lanes[1], lanes[0]):
        assert outcomes_of(lane, 2 * jobs) == 2 * expected
    assert crossed == [tensor.size_bytes + 2 * theta, 2 * output, *2 * [2 * theta, 2 * output]]
    registry = CollectorRegistry()
    Metrics(registry).watch_copies({lane.name: lane.copied_bytes for lane in lanes})
    found = registry.get_sample_value("stn_device_resident_bytes", {"device": "cpu"})
    assert found == tensor.size_bytes


def test_a_copy_goes_with_its_resident_tensor():
    """Not before the last call that reads it; and another tensor is another one."""
    memory = DeviceMemory(resident_bytes=OF_ONE_MAP)
    device = Accelerator(torch.device("cpu"), memory)
    jobs, tensors, expected = resident_jobs()
    assert outcomes_of(device, jobs) == expected
    tensors.clear()
    assert memory.copies.size_bytes > 0
    jobs.clear()
    assert memory.copies.size_bytes == 0
    others, tensors, expected = resident_jobs(2)
    assert outcomes_of(device, others[1:]) == expected[1:]


def test_copies_make_room_for_each_other():
    """Those that were read longest ago go; what can never fit crosses each time."""
    memory = DeviceMemory(resident_bytes=OF_ONE_MAP)
    device = Accelerator(torch.device("cpu"), memory)
    jobs, tensors, expected = resident_jobs(3)
    for n in (0, 1, 2, 1):
        assert outcomes_of(device, jobs[n : n + 1]) == expected[n : n + 1]
        assert memory.copies.size_bytes == tensors[n].size_bytes
        there = [copy_of(memory, one) is not None for one in tensors]
        assert there == [n == other for other in range(3)]
    tight = DeviceMemory(resident_bytes=tensors[0].size_bytes - 1)
    assert outcomes_of(Accelerator(torch.device("cpu"), tight), jobs) == expected
    assert tight.copies.size_bytes == 0


def test_no_copy_is_freed_under_a_running_batch(monkeypatch):
    """Whatever is forgotten meanwhile: the batch holds what it reads."""
    memory = DeviceMemory(resident_bytes=OF_ONE_MAP)
    device, compute_in = Accelerator(torch.device("cpu"), memory), device_buffers.compute
    jobs, (tensor,), expected = resident_jobs()
    outcomes_of(device, jobs)
    copy, alive = weakref.ref(copy_of(memory, tensor)), []

    def forgetful(*arguments):
        memory.copies.clear()
        alive.append(copy() is not None)
        return compute_in(*arguments)

    monkeypatch.setattr(device_buffers, "compute", forgetful)
    assert outcomes_of(device, jobs) == expected
    assert alive == [True]
    memory.copies.clear()
    assert copy() is None


def test_a_device_without_room_for_copies_computes_all_the_same(monkeypatch):
    """What stays beside a batch never fails it."""
    memory = DeviceMemory(resident_bytes=OF_ONE_MAP)
    device = Accelerator(torch.device("cpu"), memory)
    jobs, tensors, expected = resident_jobs()

    def full(_tensor):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "clone", full)
    assert outcomes_of(device, jobs) == expected
    assert copy_of(memory, tensors[0]) is None


def test_copies_go_when_a_batch_does_not_fit(monkeypatch):
    """They are a cache: they cross again."""
    memory = DeviceMemory(resident_bytes=OF_ONE_MAP)
    device, compute_in = Accelerator(torch.device("cpu"), memory), device_buffers.compute
    jobs, (tensor,), expected = resident_jobs()
    outcomes_of(device, jobs)
    held = [memory.copies.size_bytes]

    def scarce(*arguments):
        held.append(memory.copies.size_bytes)
        if len(held) == 2:
            raise torch.OutOfMemoryError
        return compute_in(*arguments)

    monkeypatch.setattr(device_buffers, "compute", scarce)
    assert outcomes_of(device, jobs) == expected
    assert held == [tensor.size_bytes, tensor.size_bytes, 0]


class Named(NamedTuple):
    name: str


def test_devices_are_found_by_name(monkeypatch):
    """Two lanes a GPU, all GPUs unless some are named, the host where there are none."""
    monkeypatch.setattr(devices, "Gpu", lambda device, _memory: Named(str(device)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = {
        setting: [device.name for device in devices_of(setting)]
        for setting in ("auto", "cpu", "cuda:1")
    }
    assert names == {
        "auto": ["cuda:0", "cuda:1", "cuda:0", "cuda:1"],
        "cpu": ["cpu"],
        "cuda:1": ["cuda:1", "cuda:1"],
    }
    with pytest.raises(ConfigError, match="device: expected some of auto, cpu, cuda:0, cuda:1, go"):
        devices_of("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [device.name for device in devices_of("auto")] == ["cpu"]


def test_every_gpu_has_room_for_copies_of_its_own(monkeypatch):
    """Its lanes share them."""
    monkeypatch.setattr(devices, "Gpu", lambda _device, memory: memory)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second, again, _ = devices_of("auto", 100)
    assert first is again
    assert first is not second
    assert [one.copies.max_bytes for one in (first, second)] == [100, 100]


@pytest.mark.parametrize("value", ["gpu", "cuda", "cuda:0,cpu", "cuda:0,cuda:0", ""])
def test_settings_that_name_no_devices_are_refused(value):
    """Before anything is looked for."""
    with pytest.raises(ConfigError, match="device: expected auto, cpu, or distinct devices"):
        ServerConfig(device=value)


def make_batch():
    key = BatchKey(Operation.WARP, torch.float32, None)
    item = WorkItem(key=key, cost=NOTHING, problems=(None,), arrived=0.0)
    return Batch.of((item,), NOTHING)


def test_lanes_share_a_queue():
    """Each batch goes to a lane that is free, and its time to the name of the device."""

    async def scenario():
        busy = []

        class Busy(Listener):
            def lane_freed(self, device, busy_s):
                busy.append((device, busy_s >= 0))

        runners = [FakeRunner(held=True), FakeRunner(held=True)]
        lanes = Lanes(
            list(zip(("cuda:0", "cuda:1"), runners, strict=True)),
            Events(Busy()),
        )
        tasks = [asyncio.create_task(lanes.run(make_batch())) for _ in range(2)]
        for runner in runners:
            await runner.begun(1)
        for runner in runners:
            runner.release_all()
        await asyncio.gather(*tasks)
        await lanes.run(make_batch())
        assert sorted(len(runner.batches) for runner in runners) == [1, 2]
        assert len(lanes) == 2
        assert lanes.devices == ["cuda:0", "cuda:1"]
        assert {name for name, _ in busy} == {"cuda:0", "cuda:1"}
        assert [positive for _, positive in busy] == [True] * 3

    asyncio.run(scenario())


class LostDevice:
    """Fails for good."""

    name = "lost"
    small = NOTHING

    def run(self, *_):
        raise DeviceLostError("expected a context, got a poisoned one")


def test_a_lost_device_is_no_outcome_of_an_item():
    """The server has to know, and no item is tried again on it."""
    runner = EngineRunner(LostDevice())
    with pytest.raises(DeviceLostError, match="got a poisoned one"):
        asyncio.run(runner.run(make_batch()))
    runner.close()
