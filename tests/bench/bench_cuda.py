"""The engine on a GPU against torch, torch.compile and the copy bandwidth of the device.

Contenders take turns in rounds; every figure is a median of event timings. A missed bar is said,
and is no failure. The result is one JSON file per device.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from bench import report
from stn_engine import (
    Affine,
    Flow,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    dispatch,
    warp,
    warp_gradients,
    warp_ragged,
)
from stn_engine.backends._cuda.batches import Batch
from stn_engine.backends._cuda.device import DeviceLauncher
from stn_engine.backends._cuda.plans import found_warps

RESULTS = Path(__file__).parent / "results"
DEVICE = torch.device("cuda")
CALLS = 10
"""Calls per event timing."""


@dataclass(frozen=True)
class Row:
    """One finding and what was asked of it; a bar is the least value, or the most."""

    what: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="measure groups whose name matches")
    options = parser.parse_args()
    time_all = partial(medians_ms, rounds=options.rounds)
    rows = []
    for group in GROUPS:
        if re.search(options.only, group.__name__):
            for row in group(time_all):
                rows.append(row)
                print_row(row)
            torch.cuda.empty_cache()
    name = torch.cuda.get_device_name(DEVICE)
    file = RESULTS / f"engine_cuda_{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"
    report.write(
        file,
        "the engine on a GPU against torch",
        ("torch",),
        device=name,
        cuda=torch.version.cuda,
        rounds=options.rounds,
        rows=[vars(row) | {"met": row.met} for row in rows],
    )
    print(file)


def print_row(row: Row) -> None:
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    asked = "" if row.bar is None else f"{'≤' if row.at_most else '≥'} {row.bar:g}"
    print(f"{row.what:70} {row.value:10.3f} {row.unit:8} {asked:8} {verdict}", flush=True)


def medians_ms(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds that one call of each takes."""
    for run in contenders.values():
        for _ in range(3):
            run()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            found[name].append(event_ms(run))
    return {name: statistics.median(times) for name, times in found.items()}


def event_ms(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def turned(n: int, degrees: float = 10.0, zoom: float = 0.95) -> torch.Tensor:
    """Thetas that read nearly all of a map and little beside it."""
    angle = torch.deg2rad(torch.tensor(degrees))
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom * angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -zoom * angle.sin(), zoom * angle.sin()
    return theta.to(DEVICE)


def torch_warp(u: torch.Tensor, theta: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    grid = functional.affine_grid(theta, list(u.shape), align_corners=False)
    return functional.grid_sample(u, grid.to(u.dtype), mode, "zeros", align_corners=False)


def torch_both(u: torch.Tensor, theta: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(torch_warp(u, theta), (u, theta), g)


def our_both(u: torch.Tensor, theta: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(warp(u, Affine(theta)), (u, theta), g)


def copy_ms(like: torch.Tensor, time_all) -> float:
    """One read and one write of as many bytes."""
    other = torch.empty_like(like)
    return time_all({"copy": lambda: other.copy_(like)})["copy"]


def forward(time_all):
    u, theta = torch.randn(32, 3, 512, 512, device=DEVICE), turned(32)
    copy = copy_ms(u, time_all)
    yield Row("copy", 2 * u.nbytes / copy / 1e6, "GB/s")
    compiled = torch.compile(torch_warp)
    found = time_all(
        {
            "ours": lambda: warp(u, Affine(theta)),
            "eager": lambda: torch_warp(u, theta),
            "compiled": lambda: compiled(u, theta),
        }
    )
    name = "forward 32x3x512x512 float32"
    yield Row(f"{name}", found["ours"] * 1e3, "us")
    yield Row(f"{name} of copy bandwidth", copy / found["ours"], "x", 0.75)
    yield Row(f"{name} against eager", found["eager"] / found["ours"], "x", 5)
    yield Row(f"{name} against compile", found["compiled"] / found["ours"], "x", 3)
    for degrees in (0.0, 30.0, 45.0, 90.0):
        other = turned(32, degrees)
        ours = time_all({"ours": lambda other=other: warp(u, Affine(other))})["ours"]
        yield Row(f"{name} turned by {degrees:g}, of copy bandwidth", copy / ours, "x")


def other_forwards(time_all):
    u, theta = torch.randn(32, 3, 512, 512, device=DEVICE), turned(32)
    for mode, bar in (("bicubic", 3), ("nearest", None)):
        found = time_all(
            {
                "ours": lambda mode=mode: warp(u, Affine(theta), interpolation=mode),
                "eager": lambda mode=mode: torch_warp(u, theta, mode),
            }
        )
        yield Row(f"{mode} forward against eager", found["eager"] / found["ours"], "x", bar)
    last = torch.randn(8, 64, 256, 256, device=DEVICE).to(memory_format=torch.channels_last)
    theta = turned(8)
    copy = copy_ms(last, time_all)
    found = time_all(
        {
            "ours": lambda: warp(last, Affine(theta)),
            "eager": lambda: torch_warp(last, theta),
        }
    )
    yield Row("forward 8x64x256x256 channels last, of copy", copy / found["ours"], "x")
    yield Row("  against eager", found["eager"] / found["ours"], "x")


def backward(time_all):
    for shape, last, bar in (
        ((32, 3, 512, 512), False, 3),
        ((8, 64, 256, 256), True, 2),
        ((64, 1, 28, 28), False, None),
    ):
        form = torch.channels_last if last else torch.contiguous_format
        u = torch.randn(shape, device=DEVICE).to(memory_format=form).requires_grad_()
        g = torch.randn(shape, device=DEVICE).to(memory_format=form)
        theta = turned(shape[0]).requires_grad_()
        found = time_all(
            {"ours": partial(our_both, u, theta, g), "eager": partial(torch_both, u, theta, g)}
        )
        name = f"forward + backward {'x'.join(map(str, shape))}{' channels last' if last else ''}"
        yield Row(name, found["ours"] * 1e3, "us")
        yield Row(f"{name} against eager", found["eager"] / found["ours"], "x", bar)


def half_backward(time_all):
    narrow = torch.bfloat16
    for shape, last in (((32, 3, 512, 512), False), ((8, 64, 256, 256), True)):
        form = torch.channels_last if last else torch.contiguous_format
        u, g = (torch.randn(shape, device=DEVICE).to(memory_format=form) for _ in range(2))
        half_u, half_g, theta = u.to(narrow), g.to(narrow), Affine(turned(shape[0]))
        found = time_all(
            {
                "float32": lambda g=g, u=u, theta=theta: warp_gradients(g, u, theta),
                "bfloat16": lambda g=half_g, u=half_u, theta=theta: warp_gradients(g, u, theta),
            }
        )
        ratio = found["bfloat16"] / found["float32"]
        what = f"bfloat16 backward {'x'.join(map(str, shape))}, time of float32's"
        yield Row(what, ratio, "x", 1, at_most=True)


def ragged(time_all):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(64, 512, (256, 2), generator=generator).tolist()
    maps = [torch.randn(1, 3, *size, device=DEVICE) for size in sizes]
    theta = turned(1)
    problems = [WarpProblem(one, Affine(theta)) for one in maps]
    side = int((sum(h * w for h, w in sizes) / 256) ** 0.5)
    uniform = torch.randn(256, 3, side, side, device=DEVICE)
    thetas = turned(256)
    found = found_warps(problems, None)
    described = Batch(DeviceLauncher(), found, range(len(problems)), problems)
    found = time_all(
        {
            "described": described.run_warp,
            "ours": lambda: warp_ragged(problems),
            "uniform": lambda: warp(uniform, Affine(thetas)),
            "loop": lambda: [torch_warp(one, theta) for one in maps],
        }
    )
    pixels = sum(h * w for h, w in sizes) / (256 * side * side)
    rate = pixels * found["uniform"] / found["described"]
    yield Row("ragged 256 mixed images already described, of the uniform rate", rate, "x")
    rate = pixels * found["uniform"] / found["ours"]
    yield Row("ragged 256 mixed images, of the uniform rate", rate, "x", 0.8)
    yield Row(
        "ragged 256 mixed images against a torch loop", found["loop"] / found["ours"], "x", 10
    )


def unordered(time_all):
    shape = (8, 64, 256, 256)
    g, u = (
        torch.randn(shape, device=DEVICE).to(memory_format=torch.channels_last) for _ in range(2)
    )
    flow = Flow(0.02 * torch.randn(8, 256, 256, 2, device=DEVICE))
    found = time_all(
        {
            name: lambda d=d: warp_gradients(g, u, flow, deterministic=d, needs=("feature_map",))
            for name, d in (("ordered", True), ("atomic", False))
        }
    )
    ratio = found["ordered"] / found["atomic"]
    yield Row("backward to U of a flow: deterministic over atomic time", ratio, "x")


def overheads(time_all):
    del time_all
    theta = Affine(turned(1))
    problems = [WarpProblem(torch.randn(1, 3, 8 + n, 16, device=DEVICE), theta) for n in range(64)]
    outputs = dispatch.warp(problems)
    whole = WarpProblem(torch.randn(64, 3, 16, 16, device=DEVICE), Affine(turned(64)))
    for what, run in (
        ("64 problems of 64 sizes", lambda: dispatch.warp(problems)),
        ("64 problems, given memory", lambda: dispatch.warp(problems, out=outputs)),
        ("one problem of 64 items", lambda: dispatch.warp([whole])),
    ):
        yield Row(f"host time of a launch of {what}", host_us(run), "us", 50, at_most=True)
    u, g = (torch.randn(32, 3, 512, 512, device=DEVICE) for _ in range(2))
    problem = WarpProblem(u, Affine(turned(32)), spec=WarpSpec())
    gradients = WarpGradientsProblem(problem, g)
    for what, run in (
        ("forward", lambda: dispatch.warp([problem])[0].nbytes),
        (
            "backward",
            lambda: sum(
                one.nbytes for one in vars(dispatch.warp_gradients([gradients])[0]).values()
            ),
        ),
    ):
        yield Row(f"memory beyond the results, {what}", extra_bytes(run) / 2**10, "KiB")


def host_us(run: Callable[[], object]) -> float:
    """Microseconds until a call returns, the device not being waited for."""
    times = []
    for _ in range(200):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def extra_bytes(run: Callable[[], int]) -> int:
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run()
    return torch.cuda.max_memory_allocated() - before - results


GROUPS = (forward, other_forwards, backward, half_backward, ragged, unordered, overheads)


if __name__ == "__main__":
    main()
