"""The engine on a GPU against torch, torch.compile and the copy bandwidth of the device.

Contenders take turns in rounds; every figure is a median. Times are those of the device, the host
being ahead of it, unless a row says that it is the host's. A missed bar is said, and is no failure.
The result is one JSON file per device, which is written anew with every row.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench import report
from gpu_check import devices
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
from support.plain_torch import torch_both, torch_warp, turned

OUT = os.environ.get("OUT")
RESULTS = Path(__file__).parent / "results"
THERE = devices.device()
DEVICE = THERE.device
CALLS = 10
"""In one timing of the device."""

FORWARD_BAR = 0.85 if "H100" in THERE.name else 0.75
"""Of the copy bandwidth. An H200 computes as fast as an H100; its memory is half as fast again."""


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
    label = re.sub(r"[^a-z0-9]+", "_", THERE.name.lower())
    file = (devices.results_folder() if OUT else RESULTS) / f"engine_cuda_{label}.json"
    rows = []
    for group in GROUPS:
        if re.search(options.only, group.__name__):
            for row in group(time_all):
                rows.append(vars(row) | {"met": row.met})
                print_row(row)
                report.write(
                    file,
                    "the engine on a GPU against torch",
                    ("torch",),
                    device=THERE.name,
                    cuda=torch.version.cuda,
                    rounds=options.rounds,
                    rows=rows,
                )
            torch.cuda.empty_cache()
    print(file)


def print_row(row: Row) -> None:
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    asked = "" if row.bar is None else f"{'≤' if row.at_most else '≥'} {row.bar:g}"
    print(f"{row.what:70} {row.value:10.3f} {row.unit:8} {asked:8} {verdict}", flush=True)


def medians_ms(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of the device that one call of each takes."""
    for run in contenders.values():
        for _ in range(1 if devices.EMULATED else 3):
            run()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            found[name].append(THERE.device_us(run, CALLS) / 1e3)
    return {name: statistics.median(times) for name, times in found.items()}


def maps(n: int, channels: int, side_px: int, *, channels_last: bool = False) -> torch.Tensor:
    """Random maps (n, channels, side, side) on the device; few and small ones in a dry run."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    n, side_px = min(n, THERE.side_px(n)), THERE.side_px(side_px)
    return torch.randn(n, channels, side_px, side_px, device=DEVICE).to(memory_format=order)


def our_both(u: torch.Tensor, theta: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(warp(u, Affine(theta)), (u, theta), g)


def forward(time_all):
    u = maps(32, 3, 512)
    theta = turned(len(u), DEVICE)
    other = torch.empty_like(u)
    contenders = {
        "copy": lambda: other.copy_(u),
        "ours": lambda: warp(u, Affine(theta)),
        "eager": lambda: torch_warp(u, theta),
    }
    if not devices.EMULATED:  # inductor compiles for minutes on a small machine
        compiled = torch.compile(torch_warp)
        contenders["compiled"] = lambda: compiled(u, theta)
    found = time_all(contenders)
    name = "forward 32x3x512x512 float32"
    yield Row("copy", 2 * u.nbytes / found["copy"] / 1e6, "GB/s")
    yield Row(name, found["ours"] * 1e3, "us")
    yield Row(f"{name} of copy bandwidth", found["copy"] / found["ours"], "x", FORWARD_BAR)
    yield Row(f"{name} against eager", found["eager"] / found["ours"], "x", 5)
    if "compiled" in found:
        yield Row(f"{name} against compile", found["compiled"] / found["ours"], "x", 3)
    for degrees in (0.0, 30.0, 45.0, 90.0):
        transform = Affine(turned(len(u), DEVICE, degrees))
        times = time_all({"copy": contenders["copy"], "ours": partial(warp, u, transform)})
        rate = times["copy"] / times["ours"]
        yield Row(f"{name} turned by {degrees:g}, of copy bandwidth", rate, "x")


def other_forwards(time_all):
    u = maps(32, 3, 512)
    theta = turned(len(u), DEVICE)
    other = torch.empty_like(u)
    for mode, bar in (("bicubic", 0.4), ("nearest", None)):
        found = time_all(
            {
                "copy": lambda: other.copy_(u),
                "ours": partial(warp, u, Affine(theta), interpolation=mode),
                "eager": partial(torch_warp, u, theta, mode),
            }
        )
        yield Row(f"{mode} forward, of copy bandwidth", found["copy"] / found["ours"], "x", bar)
        yield Row(f"{mode} forward against eager", found["eager"] / found["ours"], "x")
    grey = (u * 50 + 128).byte().to(memory_format=torch.channels_last)
    for what, narrow, bar in (("bfloat16", u.bfloat16(), 0.75), ("uint8 NHWC", grey, 0.6)):
        into = torch.empty_like(narrow)
        found = time_all(
            {
                "copy": lambda into=into, narrow=narrow: into.copy_(narrow),
                "ours": partial(warp, narrow, Affine(theta)),
            }
        )
        rate = found["copy"] / found["ours"]
        yield Row(f"{what} forward, of the copy of its bytes", rate, "x", bar)
    last = maps(8, 64, 256, channels_last=True)
    theta = turned(len(last), DEVICE)
    into = torch.empty_like(last)
    found = time_all(
        {
            "copy": lambda: into.copy_(last),
            "ours": lambda: warp(last, Affine(theta)),
            "eager": lambda: torch_warp(last, theta),
        }
    )
    rate = found["copy"] / found["ours"]
    yield Row("forward 8x64x256x256 channels last, of copy", rate, "x", FORWARD_BAR)
    yield Row("  against eager", found["eager"] / found["ours"], "x")


def backward(time_all):
    for n, channels, side_px, last in (
        (32, 3, 512, False),
        (8, 64, 256, True),
        (64, 1, 28, False),
    ):
        u, g = (maps(n, channels, side_px, channels_last=last) for _ in range(2))
        u.requires_grad_()
        theta = turned(len(u), DEVICE).requires_grad_()
        into = torch.empty_like(g)
        found = time_all(
            {
                "copy": lambda into=into, g=g: into.copy_(g),
                "ours": partial(our_both, u, theta, g),
                "eager": partial(torch_both, u, theta, g),
            }
        )
        shape = f"{n}x{channels}x{side_px}x{side_px}{' channels last' if last else ''}"
        name = f"forward + backward {shape}"
        yield Row(name, found["ours"] * 1e3, "us")
        # U, G, V and the gradient of U once each are two copies.
        rate = found["ours"] / found["copy"] / 2
        bar = 2 if side_px > 28 else None
        yield Row(f"{name}, of its least traffic", rate, "x", bar, at_most=True)
        yield Row(f"{name} against eager", found["eager"] / found["ours"], "x")


def half_backward(time_all):
    for n, channels, side_px, last in ((32, 3, 512, False), (8, 64, 256, True)):
        u, g = (maps(n, channels, side_px, channels_last=last) for _ in range(2))
        theta = Affine(turned(len(u), DEVICE))
        found = time_all(
            {
                "float32": partial(warp_gradients, g, u, theta),
                "bfloat16": partial(warp_gradients, g.bfloat16(), u.bfloat16(), theta),
            }
        )
        ratio = found["bfloat16"] / found["float32"]
        what = f"bfloat16 backward {n}x{channels}x{side_px}x{side_px}, time of float32's"
        yield Row(what, ratio, "x", 1, at_most=True)


def ragged(time_all):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(64, 512, (256, 2), generator=generator)
    if devices.EMULATED:
        sizes = sizes[:4] // 32
    side = int((sizes.prod(1).float().mean()) ** 0.5)
    images = [torch.randn(1, 3, *size, device=DEVICE) for size in sizes.tolist()]
    theta = turned(1, DEVICE)
    problems = [WarpProblem(one, Affine(theta)) for one in images]
    uniform = torch.randn(len(images), 3, side, side, device=DEVICE)
    thetas = turned(len(images), DEVICE)
    found = time_all(
        {
            "ours": lambda: warp_ragged(problems),
            "uniform": lambda: warp(uniform, Affine(thetas)),
            "loop": lambda: [torch_warp(one, theta) for one in images],
        }
    )
    pixels = sizes.prod(1).sum().item() / (len(images) * side * side)
    rate = pixels * found["uniform"] / found["ours"]
    name = "ragged 256 mixed images"
    yield Row(f"{name}, of the uniform rate", rate, "x", 0.85)
    yield Row(f"{name} against a torch loop", found["loop"] / found["ours"], "x", 10)
    host = devices.host_us(THERE, lambda: warp_ragged(problems))
    yield Row(f"{name}, time of the host", host, "us")


def unordered(time_all):
    u, g = (maps(8, 64, 256, channels_last=True) for _ in range(2))
    flow = Flow(0.02 * torch.randn(len(u), *u.shape[2:], 2, device=DEVICE))
    found = time_all(
        {
            name: partial(warp_gradients, g, u, flow, deterministic=ordered, needs=("feature_map",))
            for name, ordered in (("ordered", True), ("atomic", False))
        }
    )
    ratio = found["ordered"] / found["atomic"]
    yield Row("backward to U of a flow: deterministic over atomic time", ratio, "x")


def overheads(time_all):
    count = 4 if devices.EMULATED else 64
    theta = Affine(turned(1, DEVICE))
    sizes = [(8 + n, 16) for n in range(count)]
    problems = [WarpProblem(torch.randn(1, 3, *size, device=DEVICE), theta) for size in sizes]
    outputs = dispatch.warp(problems)
    whole = WarpProblem(torch.randn(count, 3, 16, 16, device=DEVICE), Affine(turned(count, DEVICE)))
    for what, run in (
        ("64 problems of 64 sizes", lambda: dispatch.warp(problems)),
        ("64 problems, given memory", lambda: dispatch.warp(problems, out=outputs)),
        ("one problem of 64 items", lambda: dispatch.warp([whole])),
    ):
        yield Row(f"host: {what}", devices.host_us(THERE, run, 200), "us", 50, at_most=True)
    small, thetas = maps(64, 1, 28), turned(len(maps(64, 1, 28)), DEVICE)

    def end_to_end():
        warp(small, Affine(thetas))
        THERE.synchronize()

    duration = devices.host_us(THERE, end_to_end, 200)
    yield Row("host and device: 64x1x28x28 end to end", duration, "us", 60, at_most=True)
    del time_all
    u, g = maps(32, 3, 512), maps(32, 3, 512)
    problem = WarpProblem(u, Affine(turned(len(u), DEVICE)), spec=WarpSpec())
    gradients = WarpGradientsProblem(problem, g)
    for what, run, results in (
        ("forward", lambda: dispatch.warp([problem]), g.nbytes),
        ("backward", lambda: dispatch.warp_gradients([gradients]), u.nbytes),
    ):
        extra = max(0, THERE.peak_bytes(run) - results)
        yield Row(f"memory beyond the maps among the results, {what}", extra / 2**10, "KiB")


GROUPS = (forward, other_forwards, backward, half_backward, ragged, unordered, overheads)


if __name__ == "__main__":
    main()
