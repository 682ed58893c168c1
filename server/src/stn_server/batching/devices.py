"""The devices that compute batches: the host, where bytes already are, or GPUs.

A device computes jobs in a thread of its own, so that the event loop stays free; lanes are devices
that take batches from one queue at the same time.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from stn_engine.adapters import device_buffers, on_bytes
from stn_engine.adapters.device_buffers import Arena, DeviceBuffer
from stn_server.batching.batcher import Runner
from stn_server.batching.device_copies import DeviceCopies
from stn_server.batching.work import NOTHING, Batch, Cost
from stn_server.config import ConfigError
from stn_server.errors import DeviceFullError, DeviceLostError
from stn_server.events import NO_LISTENERS, Events, Stage
from stn_server.memory import resident_bytes
from stn_server.tuning import LANES_PER_GPU, SMALL_BYTES, SMALL_SAMPLES, SMALL_WORK

Launching = Callable[[], None]
"""Called when the operands are on the device and kernels are about to be launched."""

HOST = torch.device("cpu")

CUDA_OUT_OF_MEMORY = 2
"""`cudaErrorMemoryAllocation`: out of memory of the device, or of pinned memory of the host."""

Compute = Callable[[Sequence[Any]], Sequence[Any]]

Outcome = tuple[on_bytes.Bytes, ...] | Exception
"""The bytes of the results of a job, or the exception of a job that has none."""


class Device(Protocol):
    """Computes jobs, of one operation at a time; belongs to one thread."""

    name: str
    """The device as a label of metrics."""
    small: Cost
    """Batches of at most so much work take less time than to wake a thread for them."""

    def run(self, jobs: Sequence[on_bytes.Job], launching: Launching) -> Sequence[Outcome]:
        """Returns one outcome per job, in host memory.

        Raises:
            DeviceLostError: Nothing can be computed any more.
            Exception: The jobs failed as a whole.
        """

    def held_bytes(self) -> float:
        """Returns how much memory this process holds on the device."""

    def copied_bytes(self) -> float:
        """Returns the size of the copies of resident tensors that the device keeps."""


class Host:
    """The host, whose engine reads operands where they are: in the bytes of requests."""

    name = "cpu"
    small = Cost(SMALL_BYTES, SMALL_SAMPLES, SMALL_WORK)

    def __init__(self) -> None:
        # As the configuration has set it before; asked for once, and not with every batch.
        self._threads = torch.get_num_threads()

    def run(self, jobs: Sequence[on_bytes.Job], launching: Launching) -> Sequence[Outcome]:
        """Computes the jobs by one ragged call."""
        launching()
        return on_bytes.compute(jobs, self._threads)

    def held_bytes(self) -> float:
        """Returns the resident memory of the process."""
        return resident_bytes()

    def copied_bytes(self) -> float:
        """Returns 0: the host reads resident tensors where they are."""
        return 0.0


class DeviceMemory:
    """The memory of one device, which its lanes share.

    Concurrency: the lanes are threads. A lane that waits to be alone holds nothing that another
        one waits for.

    Args:
        lanes: The number of lanes.
        resident_bytes: The most bytes of copies of resident tensors that stay there.
    """

    def __init__(self, lanes: int = 1, resident_bytes: int = 0) -> None:
        self.lanes = lanes
        self.copies = DeviceCopies(resident_bytes)
        self._changed = threading.Condition()
        self._batches = 0
        self._is_taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Holds the memory for a batch beside those of other lanes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            self._batches += 1
        try:
            yield
        finally:
            with self._changed:
                self._batches -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the memory for one batch: the others end first, later ones wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            # The claim first, so that no further batch comes in while those that run go out.
            self._is_taken = True
            self._changed.wait_for(lambda: self._batches == 0)
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()


class Accelerator:
    """A device with memory of its own: one copy in, one ragged call, one copy back.

    A batch for which its memory is too small is tried in halves; a half that does not fit beside
    the batches of other lanes is tried once without them. What still does not fit is refused.

    Bytes are copied by way of arenas of this lane, which the next batch uses again: results are
    copied out of them, so that a caller who reads slowly holds its own reply and not a whole batch.
    Resident tensors are copied with the first batch that reads them, and stay until memory runs
    out.

    Args:
        device: The device on which to compute.
        memory: The memory of the device; None if no other lane computes there.
    """

    small = NOTHING

    def __init__(self, device: torch.device, memory: DeviceMemory | None = None) -> None:
        self.name = str(device)
        self._device = device
        self._memory = DeviceMemory() if memory is None else memory
        is_remote = device != HOST
        self._sent, self._received = Arena(pinned=is_remote), Arena(pinned=is_remote)

    def run(self, jobs: Sequence[on_bytes.Job], launching: Launching) -> Sequence[Outcome]:
        """Computes the jobs together, or in two halves."""
        outcomes = self._beside_others(jobs, launching)
        if outcomes is not None:
            return outcomes
        middle = math.ceil(len(jobs) / 2)
        found: list[Outcome] = []
        for half in filter(None, (jobs[:middle], jobs[middle:])):
            # What torch keeps of the try that failed is cut to the sizes of the whole batch.
            self._free_cached()
            outcomes = self._beside_others(half, launching)
            if outcomes is None and self._memory.lanes > 1:
                # Only here, where this lane holds no share any more: else it would wait for itself.
                with self._memory.alone():
                    self._free_cached()
                    outcomes = self._tried(half, launching)
            found += [DeviceFullError(self.name) for _ in half] if outcomes is None else outcomes
        return found

    def held_bytes(self) -> float:
        """Returns what torch has reserved, whether it is in use or kept for later."""
        return float(torch.cuda.memory_reserved(self._device))

    def copied_bytes(self) -> float:
        """Returns the size of the copies of resident tensors, which all lanes of it share."""
        return float(self._memory.copies.size_bytes)

    def _beside_others(
        self, jobs: Sequence[on_bytes.Job], launching: Launching
    ) -> Sequence[Outcome] | None:
        with self._memory.shared():
            return self._tried(jobs, launching)

    def _tried(
        self, jobs: Sequence[on_bytes.Job], launching: Launching
    ) -> Sequence[Outcome] | None:
        """Returns one outcome per job; None if the memory of the device does not suffice."""
        with self._current():
            try:
                self._finish()  # a batch that failed may have left copies that read the arenas
                on_device = self._copied_in(jobs)
                launching()
                return self._computed(jobs, on_device)
            except torch.OutOfMemoryError:
                return None
            except torch.AcceleratorError as error:
                if getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY:
                    return None
                if self._is_lost():
                    raise DeviceLostError(
                        f"expected {self.name} to compute, got {error}"
                    ) from error
                raise

    def _copied_in(self, jobs: Sequence[on_bytes.Job]) -> DeviceBuffer:
        """Copies the operands of all jobs to memory of the device, each resident tensor once.

        Those that are there already are not copied.
        """
        operands, copies = _operands(jobs), self._memory.copies
        there: dict[int, torch.Tensor] = {}
        # Of resident tensors that are copied now, those that several jobs read: many thetas for one
        # map.
        copied_now: dict[int, int] = {}
        again: dict[int, int] = {}
        for number, operand in enumerate(operands):
            resident = copies.resident_of(operand)
            if resident is None:
                continue
            copy = copies.find(resident)
            if copy is not None:
                there[number] = copy
            elif copied_now.setdefault(id(resident), number) != number:
                again[number] = copied_now[id(resident)]
        coming = [
            b"" if number in there or number in again else operand
            for number, operand in enumerate(operands)
        ]
        sent = DeviceBuffer.of(coming, self._sent)
        on_device = DeviceBuffer(sent.sizes_bytes, self._device)
        on_device.copy_from(sent)
        pieces = on_device.pieces if again else []
        there.update((number, pieces[first]) for number, first in again.items())
        for number, copy in there.items():
            on_device.put(number, copy)
        return on_device

    def _keep(self, jobs: Sequence[on_bytes.Job], on_device: DeviceBuffer) -> None:
        """Keeps resident tensors that came with these jobs, for those that follow."""
        copies, pieces = self._memory.copies, on_device.pieces
        new = [
            (resident, piece)
            for number, (operand, piece) in enumerate(zip(_operands(jobs), pieces, strict=True))
            if number not in on_device.elsewhere
            if (resident := copies.resident_of(operand)) is not None
        ]
        if not new:
            return
        try:
            kept = [(resident, piece.clone()) for resident, piece in new]
        except torch.OutOfMemoryError:
            copies.clear()
            return
        self._finish()  # the streams of other lanes will read them
        for resident, copy in kept:
            copies.keep(resident, copy)

    def _computed(self, jobs: Sequence[on_bytes.Job], operands: DeviceBuffer) -> Sequence[Outcome]:
        problems = [job.problem for job in jobs]
        sizes = [on_bytes.sizes_of(problem)[1] for problem in problems]
        sizes_bytes = [size for some in sizes for size in some]
        results = DeviceBuffer(sizes_bytes, self._device)
        received = DeviceBuffer(sizes_bytes, HOST, self._received)
        device_buffers.compute(problems, operands, results)
        received.copy_from(results)
        # The copy is asynchronous: the bytes are there only when the stream has come to its end.
        self._finish()
        self._keep(jobs, operands)
        places = [
            place
            for job, some in zip(jobs, sizes, strict=True)
            for place in job.places or [None] * len(some)
        ]
        values = iter(received.copies(places))
        return [tuple(next(values) for _ in some) for some in sizes]

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes torch launch kernels on this device within the context."""
        yield

    def _finish(self) -> None:
        """Waits for everything that was launched."""

    def _is_lost(self) -> bool:
        """Returns whether a failure of the device is for good."""
        return False

    def _free_cached(self) -> None:
        """Frees memory that is kept for later."""
        self._memory.copies.clear()


class Gpu(Accelerator):
    """A CUDA device, on a stream of its own."""

    def __init__(self, device: torch.device, memory: DeviceMemory | None = None) -> None:
        super().__init__(device, memory)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch

    @contextmanager
    def _current(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _finish(self) -> None:
        self._stream.synchronize()

    def _is_lost(self) -> bool:
        """Returns whether later calls fail too, as after errors of a kernel, not of an argument."""
        try:
            torch.cuda.synchronize(self._device)
        except torch.AcceleratorError:
            return True
        return False

    def _free_cached(self) -> None:
        super()._free_cached()
        torch.cuda.empty_cache()


class EngineRunner:
    """Runs every batch as one ragged engine call.

    A problem of an item is a `stn_engine.adapters.on_bytes.Job`.

    Args:
        device: The device, which this runner alone uses.
        events: Listeners of stages, called in the thread that computes.

    Concurrency: one batch at a time; nothing can interrupt the one that runs. Batches that are
        small for the device are computed in the event loop's own thread.
    """

    def __init__(self, device: Device | None = None, events: Events = NO_LISTENERS) -> None:
        self._device = Host() if device is None else device
        self._small = self._device.small
        self._reached = events.reached
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stn-runner")

    async def run(self, batch: Batch) -> Sequence[Any]:
        """Returns one result or exception per problem, in order.

        Raises:
            DeviceLostError: The thread is gone.
        """
        self._reach(Stage.LAND, batch)  # in the device's thread; on a host the bytes stay
        try:
            running = self._thread.submit(self._compute, batch)
        except RuntimeError as error:
            raise DeviceLostError("expected a thread to compute in, got none") from error
        return await asyncio.wrap_future(running)

    def run_inline(self, batch: Batch) -> Sequence[Any] | None:
        """Does what `run` does for a batch that is small for the device; else returns None."""
        # `Cost.fits`, written out: every small call comes here.
        cost, small = batch.cost, self._small
        if (
            cost.work > small.work
            or cost.samples > small.samples
            or cost.size_bytes > small.size_bytes
        ):
            return None
        self._reach(Stage.LAND, batch)
        return self._compute(batch)

    def close(self) -> None:
        """Ends the thread after the batch that runs; does not wait for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compute(self, batch: Batch) -> Sequence[Any]:
        launching = partial(self._reach, Stage.LAUNCH, batch)

        def launch(jobs: Sequence[Any]) -> Sequence[Any]:
            self._reach(Stage.ALLOCATE, batch)
            return self._device.run(jobs, launching)

        outcomes = compute(launch, batch.problems)
        self._reach(Stage.COLLECT, batch)
        return outcomes

    def _reach(self, stage: Stage, batch: Batch) -> None:
        for tell in self._reached:
            tell(stage, batch.calls)


class Lanes:
    """The devices that run batches at the same time, from one queue.

    Args:
        runners: One per lane, by the name of its device.
        events: Listeners of the time that a device was busy.

    Concurrency: belongs to one event loop. Takes as many batches at a time as there are runners.
    """

    def __init__(
        self, runners: Sequence[tuple[str, Runner]], events: Events = NO_LISTENERS
    ) -> None:
        self._runners = runners
        self._free = list(runners)
        self._events = events

    def __len__(self) -> int:
        return len(self._runners)

    @property
    def devices(self) -> list[str]:
        """The names of the devices, each once."""
        return list(dict.fromkeys(name for name, _ in self._runners))

    async def run(self, batch: Batch) -> Sequence[Any]:
        """Computes a batch on a runner that is free; see `Runner.run`."""
        # One is free: the policy launches no more batches at a time than there are lanes. It goes
        # back behind the others, so that all devices take turns.
        name, runner = lane = self._free.pop(0)
        began = time.monotonic()
        try:
            return await runner.run(batch)
        finally:
            self._free.append(lane)
            self._freed(name, began)

    def run_inline(self, batch: Batch) -> Sequence[Any] | None:
        """Computes a batch on a free runner in this thread; see `Runner.run_inline`."""
        # It stays in the list, because nothing else can ask for a lane before this returns.
        name, runner = self._free[0]
        began = time.monotonic()
        outcomes = runner.run_inline(batch)
        if outcomes is not None:
            self._freed(name, began)
        return outcomes

    def _freed(self, name: str, began: float) -> None:
        busy_s = time.monotonic() - began
        for tell in self._events.lane_freed:
            tell(name, busy_s)

    async def warm_up(self, batch: Batch) -> None:
        """Runs a batch on every lane.

        Raises:
            Exception: An item could not be computed, for this reason.
        """
        for _, runner in self._runners:
            for outcome in await runner.run(batch):
                if isinstance(outcome, Exception):
                    raise outcome

    def close(self) -> None:
        """Closes the runner of every lane."""
        for _, runner in self._runners:
            runner.close()


def compute(function: Compute, jobs: Sequence[Any]) -> Sequence[Any]:
    """Makes a ragged call; if it fails, computes each job alone, so that only the bad ones fail."""
    try:
        return function(jobs)
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001 - becomes the outcome of the item
        if len(jobs) == 1:
            return [error]
    return [compute(function, [job])[0] for job in jobs]


def _operands(jobs: Sequence[on_bytes.Job]) -> list[on_bytes.Bytes]:
    return [operand for job in jobs for operand in job.operands]


def devices_of(setting: str, resident_bytes: int = 0) -> list[Device]:
    """Returns one device per lane for the setting `device`.

    Args:
        setting: The devices.
        resident_bytes: The most bytes of resident tensors on each of them that is not the host.

    Raises:
        ConfigError: It names a device that is not here.
    """
    here = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if setting == "cpu" or (setting == "auto" and not here):
        return [Host()]
    names = here if setting == "auto" else setting.split(",")
    for name in names:
        if name not in here:
            known = ", ".join(["auto", "cpu", *here])
            raise ConfigError(f"device: expected some of {known}, got {name}, which is not here.")
    memories = {name: DeviceMemory(LANES_PER_GPU, resident_bytes) for name in names}
    # Each device once before any of them twice, so that the first batches go to different ones.
    return [Gpu(torch.device(name), memories[name]) for _ in range(LANES_PER_GPU) for name in names]
