"""The device that a check runs on: a GPU, or the emulation of one in a dry run.

A dry run goes the same way as a real one, with small maps, so that what can fail before the first
kernel fails on a machine without a GPU. ``STN_GPU_CHECK=emulated`` asks for it.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from stn_engine import Affine, WarpProblem, dispatch
from stn_engine.backends.cuda import CudaBackend
from support.emulated_cuda import EMULATED_CUDA
from support.on_device import on_device

EMULATED = os.environ.get("STN_GPU_CHECK") == "emulated"
RUNS_AHEAD_CYCLES = 40_000_000
"""So long the device waits before calls are timed, so that it never waits for the host."""


class Gpu:
    """The first GPU of this machine, with the backend that is used there."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.backend = CudaBackend()
        self.name = torch.cuda.get_device_name()

    def side_px(self, side_px: int) -> int:
        """The side of a map that is to have this one."""
        return side_px

    def place(self, problem):
        """A problem whose operands are moved here."""
        return on_device(problem)

    def synchronize(self) -> None:
        """Waits for all kernels; raises what they failed with."""
        torch.cuda.synchronize()

    def device_us(self, run: Callable[[], object], calls: int) -> float:
        """Microseconds that the device needs for one call, the host being ahead of it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(RUNS_AHEAD_CYCLES)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls * 1e3

    def kernels_us(self, run: Callable[[], object]) -> dict[str, float]:
        """Microseconds of each kernel of one call, by CUPTI; the longest first."""
        run()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            for _ in range(5):
                run()
            torch.cuda.synchronize()
        events = sorted(watched.key_averages(), key=lambda event: -event.device_time_total)
        return {
            event.key[:60]: round(event.device_time_total / event.count, 2)
            for event in events
            if event.device_time_total > 0
        }

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """The most that a call holds at a time beyond what was there before it."""
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before


class Emulation:
    """The emulated device, whose memory is the host's; times mean nothing here."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.backend = EMULATED_CUDA
        self.name = "emulation"
        dispatch.BACKENDS = (EMULATED_CUDA, *dispatch.BACKENDS[1:])
        dispatch.candidates.cache_clear()

    def side_px(self, side_px: int) -> int:
        """Small, whatever was asked for."""
        return min(side_px, 16)

    def place(self, problem):
        """The problem, which is there already."""
        return problem

    def synchronize(self) -> None:
        """Nothing: a launch returns when its kernel is done."""

    def device_us(self, run: Callable[[], object], calls: int) -> float:
        """Microseconds of one call."""
        del calls
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1e6

    def kernels_us(self, run: Callable[[], object]) -> dict[str, float]:
        """Nothing: nobody watches the emulation."""
        del run
        return {}

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Nothing: nobody counts the host's memory."""
        run()
        return 0


def device() -> Gpu | Emulation:
    """The device of this run; on it the ``cuda`` backend is what calls are dispatched to.

    Raises:
        RuntimeError: There is no GPU, or another backend would be used on it.
    """
    if EMULATED:
        return Emulation()
    if not torch.cuda.is_available():
        raise RuntimeError("gpu_check: expected a GPU, got none. STN_GPU_CHECK=emulated runs dry.")
    gpu = Gpu()
    why_not = gpu.backend.unsupported_reasons(smallest_warp(gpu.device))
    if why_not:
        raise RuntimeError(f"gpu_check: expected the backend cuda on {gpu.name}, got {why_not}.")
    return gpu


def host_us(there: Gpu | Emulation, run: Callable[[], object], calls: int = 50) -> float:
    """Microseconds until a call returns, the device not being waited for; the median."""
    times = []
    for _ in range(1 if EMULATED else calls):
        there.synchronize()
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


class Findings:
    """One JSON line for each finding, on disk at once: the next one may end the process.

    Args:
        name: Of the file in the folder of results.
    """

    def __init__(self, name: str) -> None:
        self._path = results_folder() / f"{name}.jsonl"

    def add(self, **finding) -> None:
        """Write one line, and print it."""
        line = json.dumps(finding)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:400], flush=True)

    def read(self) -> Iterator[dict]:
        """All lines so far."""
        if self._path.exists():
            yield from map(json.loads, self._path.read_text(encoding="utf-8").splitlines())


def results_folder() -> Path:
    """Where results go: ``OUT``, or else a folder of the build."""
    folder = os.environ.get("OUT") or Path(__file__).parents[2] / "build" / "gpu-check"
    return Path(folder)


def smallest_warp(where: torch.device) -> WarpProblem:
    """One pixel by the identity."""
    theta = torch.eye(2, 3, device=where)[None]
    return WarpProblem(torch.zeros(1, 1, 1, 1, device=where), Affine(theta))
