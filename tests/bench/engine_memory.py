"""Memory that one call takes beyond its results, each figure from a process of its own.

`engine_memory CONTENDER KIND SHAPE THREADS`, as in `ours forward 1x3x1024x1024 2`, prints one.
`ENVIRONMENT` keeps the allocator from giving memory back, so that resident memory after a call is
its peak; what is free is given back before the call. Exact to a page of 4 KiB, unlike the peak
that the kernel records, which may lag behind by hundreds.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from bench.engine_calls import engine_affine, torch_affine
from bench.engine_operands import feature_map_and_theta, uniform
from stn_engine import Affine, objective, warp_gradients
from support.processes import environment

SHAPES = ((1, 3, 1024, 1024), (32, 3, 512, 512))
KINDS = ("forward", "backward", "objective")
BAR_BYTES_PER_THREAD = 64 * 1024
THETAS = 64
"""Of one objective: many for one pair."""
REPEATS = 5
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**60),
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


def measured(threads: int) -> Iterator[dict]:
    """Every figure, each from a process of its own."""
    for kind in KINDS:
        for shape in SHAPES:
            figures = {
                name: json.loads(child(name, kind, "x".join(map(str, shape)), str(threads)))
                for name in ("ours", "torch")
            }
            yield {
                "kind": kind,
                "shape": list(shape),
                "result_bytes": figures["ours"]["result_bytes"],
                **{f"{name}_extra_bytes": found["extra_bytes"] for name, found in figures.items()},
                "bar_bytes": BAR_BYTES_PER_THREAD * threads,
                "met": figures["ours"]["extra_bytes"] <= BAR_BYTES_PER_THREAD * threads,
            }


def child(*arguments: str) -> bytes:
    command = [sys.executable, "-m", "bench.engine_memory", *arguments]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment() | ENVIRONMENT
    ).stdout


def main(name: str, kind: str, shape: tuple[int, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    call = {"forward": forward, "backward": backward, "objective": compared}[kind](name, shape)
    result_bytes = sum(tensor.nbytes for tensor in call())
    # Holes between blocks can only add to what a call takes, so the least is the truest.
    extra_bytes = min(resident_growth_bytes(call) for _ in range(REPEATS)) - result_bytes
    print(json.dumps({"result_bytes": result_bytes, "extra_bytes": extra_bytes}))


def resident_growth_bytes(call: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    result = call()
    growth = resident_bytes() - before
    del result
    return growth


def resident_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("Rss:"))
    return int(kibibytes) * 1024


def forward(name, shape):
    function = {"ours": engine_affine, "torch": torch_affine}[name]
    operands = feature_map_and_theta(shape)
    return lambda: (function(*operands),)


def backward(name, shape):
    """The gradients alone, of the feature map and of theta; torch has run forward before."""
    operands = feature_map_and_theta(shape)
    grad_output = uniform(shape, -1.0, 1.0, seed=5)
    if name == "ours":
        return partial(engine_gradients, grad_output, *operands)
    inputs = tuple(operand.requires_grad_() for operand in operands)
    output = torch_affine(*inputs)
    return lambda: torch.autograd.grad(output, inputs, grad_output, retain_graph=True)


def compared(name, shape):
    """A pair of maps under many thetas, with Gauss-Newton matrices; by torch under one."""
    moving, theta = feature_map_and_theta((1, *shape[1:]))
    fixed = uniform((1, *shape[1:]), 0.0, 1.0, seed=6)
    if name == "ours":
        thetas = Affine(theta.repeat(THETAS, 1, 1))
        needs = ("gradient", "gauss_newton")
        return lambda: tuple(vars(objective(moving, fixed, thetas, needs=needs)).values())
    theta.requires_grad_()

    def step():
        value = (torch_affine(moving, theta) - fixed).square().mean()
        return value.detach(), *torch.autograd.grad(value, (theta,))

    return step


def engine_gradients(grad_output, feature_map, theta) -> tuple[torch.Tensor | None, ...]:
    gradients = warp_gradients(grad_output, feature_map, Affine(theta))
    return gradients.feature_map, gradients.transform


if __name__ == "__main__":
    contender, kind_, shape_, threads_ = sys.argv[1:]
    main(contender, kind_, tuple(map(int, shape_.split("x"))), int(threads_))
