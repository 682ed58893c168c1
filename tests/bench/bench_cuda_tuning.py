"""Variants of what the CUDA kernels are tuned by, side by side on one GPU.

Every variant is a copy of the kernels in which some constants have other values, and of the host's
constants beside them. All are compiled first, side by side; then one process times each in turn, by
CUPTI, and compares what it computes with the results of the first variant bit by bit. Each leaves a
JSON line in ``cuda_tuning.jsonl``: microseconds of the kernels of each call, what copies take, and
the calls whose results differ. With ``--smoke`` small maps go the same way and nothing is timed:
for tools that run kernels a hundred times slower. With ``STN_GPU_CHECK=emulated`` they do so on the
emulated device.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from gpu_check import devices
from stn_engine import Affine, Flow, WarpSpec, warp, warp_gradients
from stn_engine.backends.cuda import compiler, programs
from stn_engine.backends.cuda.programs import Program
from stn_engine.spec import Interpolation
from support import emulated_cuda
from support.plain_torch import turned

ROOT = Path(__file__).parents[2]
NATIVE = Path(programs.SOURCES).parent
SMOKE_PX = 80
VARIANTS = {
    "as it is": {},
    "resident": {"MOST_TILES": "32", "FILLS": "0"},
    "8 tiles": {"MOST_TILES": "8"},
    "gather in 4 blocks": {"kGatherBlocks": "4"},
    "single planes": {"kPlanes": "1"},
}
"""New values of constants, by name; those in capitals are the host's. Without fills a launch has no
more blocks than the device runs at a time."""

PROGRAMS = (
    *(Program(one) for one in ("gather", "slopes", "warp", "parameters")),
    *(Program("warp", one) for one in (torch.bfloat16, torch.uint8)),
    Program("warp", interpolation=Interpolation.BICUBIC),
)


def copied(folder: Path, changes: dict[str, str]) -> Path:
    """A copy of the kernels with other constants."""
    shutil.copytree(NATIVE, folder)
    path = folder / "cuda" / "tuning.cuh"
    text = path.read_text(encoding="utf-8")
    for name, value in _kernel_changes(changes).items():
        text, count = re.subn(rf"(\b{name} = )[^;\n]+", rf"\g<1>{value}", text)
        if not count:
            raise LookupError(f"expected {name} in {path.name}, got none")
    path.write_text(text, encoding="utf-8")
    return folder / "cuda"


_blocks = None


def _kernel_changes(changes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in changes.items() if not name.isupper()}


def use(sources: Path, changes: dict[str, str]) -> None:
    """Lets this process compile and launch a variant from now on."""
    programs.SOURCES = compiler.SOURCES = sources
    programs.sources_digest.cache_clear()
    emulated_cuda.program_library.cache_clear()
    if devices.EMULATED or not torch.cuda.is_available():
        return
    from stn_engine.backends.cuda import driver, tuning  # noqa: PLC0415 - needs a GPU

    global _blocks  # noqa: PLW0603 - the driver's own, before any variant
    _blocks = _blocks or driver._blocks
    driver._LOADED.clear()
    driver._code.cache_clear()
    for name in ("MOST_TILES", "FILLS"):
        setattr(driver, name, int(changes.get(name, getattr(tuning, name))))
    driver._blocks = _blocks if driver.FILLS else _resident_blocks


def _resident_blocks(kernel, tiles: int, multiprocessors: int) -> int:
    """As many blocks as there is room for, each with as many tiles as any other."""
    from stn_engine.backends.cuda import driver  # noqa: PLC0415 - needs a GPU

    if kernel.is_far:
        return min(tiles, driver.FAR_FILLS * multiprocessors)
    loaded = driver._LOADED[kernel, torch.cuda.current_device()]
    fills = loaded.kernel.occupancy.max_active_blocks_per_multiprocessor(driver.THREADS, 0)
    run = -(-tiles // (fills * multiprocessors))
    return -(-tiles // run)


def compile_one(sources: Path, program: Program, architecture: str) -> float:
    """Compiles a program of a variant; how long that took."""
    began = time.monotonic()
    use(sources, {})
    compiler.cubin(program, architecture)
    return time.monotonic() - began


class Calls:
    """What is timed: calls by name, on operands that all variants share."""

    def __init__(self, there, most_px: int) -> None:
        torch.manual_seed(1)
        self._there, self._most_px = there, most_px
        n = min(32, there.side_px(32), most_px // 16)
        self.all: dict[str, object] = {}
        add, device = self.all.__setitem__, there.device
        u, g = self._maps(n, 3, 512), self._maps(n, 3, 512)
        into = torch.empty_like(u)
        add("copy", lambda: into.copy_(u))
        for degrees in (0, 10, 45, 90):
            add(f"forward {degrees}", partial(warp, u, Affine(turned(n, device, float(degrees)))))
        theta = Affine(turned(n, device))
        border = WarpSpec(padding="border")
        add("forward border", partial(warp, u, theta, padding=border.padding))
        for mode in ("nearest", "bicubic"):
            add(mode, partial(warp, u, theta, interpolation=mode))
        half, levels = u.bfloat16(), u.clamp(0, 255).byte()
        into_half, into_levels = torch.empty_like(half), torch.empty_like(levels)
        add("copy bfloat16", lambda: into_half.copy_(half))
        add("bfloat16", partial(warp, half, theta))
        add("copy uint8", lambda: into_levels.copy_(levels))
        add("uint8 planes", partial(warp, levels, theta))
        last = levels.contiguous(memory_format=torch.channels_last)
        add("uint8 NHWC", partial(warp, last, theta))
        for degrees in (0, 10, 90):
            transform = Affine(turned(n, device, float(degrees)))
            add(f"gradients {degrees}", partial(warp_gradients, g, u, transform))
        few = min(n, 8)
        channels = self._maps(few, 64, 256).contiguous(memory_format=torch.channels_last)
        grads = self._maps(few, 64, 256).contiguous(memory_format=torch.channels_last)
        theta = Affine(turned(few, device))
        add("forward NHWC", partial(warp, channels, theta))
        add("gradients NHWC", partial(warp_gradients, grads, channels, theta))
        flow = Flow(0.02 * torch.randn(few, *channels.shape[2:], 2, device=device))
        add("flow NHWC", partial(warp, channels, flow))
        small = self._maps(2 * n, 1, 28)
        theta = Affine(turned(2 * n, device))
        add("small", partial(warp, small, theta))
        add("small gradients", partial(warp_gradients, small, small, theta))

    def _maps(self, n: int, channels: int, side_px: int) -> torch.Tensor:
        side_px = min(self._there.side_px(side_px), self._most_px)
        shape = n, channels, side_px, side_px
        return torch.randn(shape, device=self._there.device) * 50 + 128


def results(call) -> list[torch.Tensor]:
    """What a call computes, as bytes."""
    found = call()
    is_map = isinstance(found, torch.Tensor)
    tensors = [found] if is_map else [found.feature_map, found.transform]
    return [one.contiguous().view(torch.uint8).clone() for one in tensors]


def measure(there, calls: Calls, expected: dict, *, times_them: bool) -> dict:
    """One variant: times, and which calls differ from the first one."""
    times, differing = {}, []
    for name, call in calls.all.items():
        try:
            if not name.startswith("copy"):
                found = results(call)
                there.synchronize()
                wanted = expected.setdefault(name, found)
                if not all(map(torch.equal, found, wanted)):
                    differing.append(name)
            kernels = there.kernels_us(call) if times_them else {}
        except Exception as error:  # noqa: BLE001 - a finding, whatever it is
            times[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        times[name] = {re.sub("^stn_", "", key)[:40]: value for key, value in kernels.items()}
    return {"us": times, "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="variants whose name matches, and the first")
    parser.add_argument("--smoke", action="store_true", help="small maps, once each")
    parser.add_argument("--limit-s", type=float, default=100)
    options = parser.parse_args()
    began = time.monotonic()
    out = devices.results_folder()
    out.mkdir(parents=True, exist_ok=True)
    first = next(iter(VARIANTS))
    names = [name for name in VARIANTS if name == first or re.search(options.only, name)]
    scratch = ROOT / "build" / "cuda-tuning"
    shutil.rmtree(scratch, ignore_errors=True)
    os.environ.setdefault("STN_KERNEL_CACHE", str(ROOT / "build" / "cuda-tuning-kernels"))
    copies: dict[str, Path] = {}
    for name in names:
        key = str(_kernel_changes(VARIANTS[name]))
        if key not in copies:
            copies[key] = copied(scratch / str(len(copies)), VARIANTS[name])
    folders = {name: copies[str(_kernel_changes(VARIANTS[name]))] for name in names}
    with (out / "cuda_tuning.jsonl").open("a") as file:

        def tell(**line) -> None:
            text = json.dumps({"at_s": round(time.monotonic() - began, 1), **line})
            file.write(text + "\n")
            file.flush()
            print(text, flush=True)

        if not (devices.EMULATED or options.smoke):
            architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
            workers = len(os.sched_getaffinity(0))
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, spawned) as pool:
                jobs = [
                    pool.submit(compile_one, copy, program, architecture)
                    for program in PROGRAMS
                    for copy in copies.values()
                ]
                tell(compiled_s=[round(job.result(), 1) for job in jobs])
        there, expected = devices.device(), {}
        calls = Calls(there, SMOKE_PX if options.smoke else 512)
        for name in names:
            if time.monotonic() - began > options.limit_s:
                tell(variant=name, left_out="the time is over")
                continue
            use(folders[name], VARIANTS[name])
            tell(variant=name, **measure(there, calls, expected, times_them=not options.smoke))


if __name__ == "__main__":
    main()
