"""How long the device computes, kernel by kernel, and how long the host needs to ask for it.

The copy of the same bytes, torch eager and torch.compile stand beside it.
"""

import traceback
from functools import partial

import torch

from gpu_check.devices import EMULATED, Findings, device, host_us
from stn_engine import (
    Affine,
    Flow,
    ObjectiveProblem,
    WarpProblem,
    dispatch,
    objective,
    warp,
    warp_gradients,
)
from stn_engine.backends.kernels import COMPOSITION
from support.plain_torch import torch_both, torch_warp, turned

CALLS = 20
"""In one timing of the device."""

WARM_UP_CALLS = 3

there = device()
findings = Findings("kernels")


def case(name, run, moved_bytes=None):
    """One line: times of the device, of the host, and of every kernel."""
    finding = {"case": name}
    try:
        for _ in range(1 if EMULATED else WARM_UP_CALLS):
            run()
        device_us = there.device_us(run, CALLS)
        finding |= {"device_us": round(device_us, 2), "host_us": round(host_us(there, run), 1)}
        if moved_bytes:
            finding["gb_per_s"] = round(moved_bytes / device_us / 1e3)
        finding["kernels_us"] = there.kernels_us(run)
    except Exception:  # noqa: BLE001 - a finding, and no reason to stop
        finding["exception"] = traceback.format_exc()[-1200:]
    findings.add(**finding)


def maps(shape, *, channels_last=False, dtype=torch.float32):
    shape = [*shape[:2], *map(there.side_px, shape[2:])]
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(shape, device=there.device).to(dtype).to(memory_format=order)


def planes() -> None:
    """Maps of three channels, one behind the other."""
    n = 2 if EMULATED else 32
    shape = (n, 3, 512, 512)
    u, g, out = (maps(shape) for _ in range(3))
    theta = turned(n, there.device)
    moved = 2 * u.nbytes
    case("copy 32x3x512x512", lambda: out.copy_(u), moved)
    for degrees in (10, 0, 45, 90):
        transform = Affine(turned(n, there.device, degrees))
        case(f"forward, turned by {degrees}", partial(warp, u, transform), moved)
    case("forward, torch eager", partial(torch_warp, u, theta), moved)
    if not EMULATED:  # inductor compiles for minutes on a small machine
        case("forward, torch compile", partial(torch.compile(torch_warp), u, theta), moved)
    case("forward bicubic", partial(warp, u, Affine(theta), interpolation="bicubic"), moved)
    case("forward nearest", partial(warp, u, Affine(theta), interpolation="nearest"), moved)
    narrow = u.bfloat16()
    case("forward bfloat16", partial(warp, narrow, Affine(theta)), moved // 2)
    grey = (u * 50 + 128).byte()
    case("forward uint8", partial(warp, grey, Affine(theta)), moved // 4)
    case("gradients", partial(warp_gradients, g, u, Affine(theta)), 2 * moved)
    for needs in ("feature_map", "transform"):
        run = partial(warp_gradients, g, u, Affine(theta), needs=(needs,))
        case(f"gradient of {needs}", run)
    case("forward + backward", partial(_both, u, theta, g))
    ur, tr = u.clone().requires_grad_(), theta.clone().requires_grad_()
    case("forward + backward, torch eager", partial(torch_both, ur, tr, g))


def objectives() -> None:
    """Comparisons of warped maps with fixed ones, one pair and many."""
    n = 2 if EMULATED else 16
    moving, fixed = maps((1, 1, 512, 512)), maps((1, 1, 512, 512))
    one, many = Affine(turned(1, there.device)), Affine(turned(n, there.device))
    flow = Flow(0.02 * torch.randn(1, *fixed.shape[2:], 2, device=there.device))
    needs = ("gradient", "gauss_newton")
    both = moving.nbytes + fixed.nbytes
    case("objective 512x512", partial(objective, moving, fixed, one, needs=needs), both)
    case(f"objective, {n} thetas", partial(objective, moving, fixed, many, needs=needs), n * both)
    for loss in ("huber", "ncc"):
        case(f"objective, {loss}", partial(objective, moving, fixed, one, loss=loss), both)
    case("objective of a flow", partial(objective, moving, fixed, flow), 3 * both)
    problem = ObjectiveProblem(WarpProblem(moving, one), fixed, needs=needs)
    case("objective, composed", lambda: COMPOSITION.objective([problem]), both)


def channels_last() -> None:
    """Maps of 64 channels side by side."""
    n = 1 if EMULATED else 8
    u, g = (maps((n, 64, 256, 256), channels_last=True) for _ in range(2))
    theta = turned(n, there.device)
    case("copy channels last", lambda: g.copy_(u), 2 * u.nbytes)
    case("forward channels last", partial(warp, u, Affine(theta)), 2 * u.nbytes)
    case("forward channels last, torch eager", partial(torch_warp, u, theta), 2 * u.nbytes)
    case("gradients channels last", partial(warp_gradients, g, u, Affine(theta)))
    ur, tr = u.clone().requires_grad_(), theta.clone().requires_grad_()
    case("forward + backward channels last", partial(_both, u, theta, g))
    case("forward + backward channels last, torch eager", partial(torch_both, ur, tr, g))
    flow = Flow(0.02 * torch.randn(n, *u.shape[2:], 2, device=there.device))
    case("flow, forward channels last", partial(warp, u, flow), 2 * u.nbytes)
    for deterministic in (True, False):
        run = partial(
            warp_gradients, g, u, flow, deterministic=deterministic, needs=("feature_map",)
        )
        case(f"flow, gradient of feature_map, deterministic {deterministic}", run)


def small() -> None:
    """What costs when maps are small: launches, tables, the host."""
    n = 4 if EMULATED else 64
    u, g = maps((n, 1, 28, 28)), maps((n, 1, 28, 28))
    theta = turned(n, there.device)
    case("small forward 64x1x28x28", partial(warp, u, Affine(theta)))
    case("small forward, torch eager", partial(torch_warp, u, theta))
    case("small gradients", partial(warp_gradients, g, u, Affine(theta)))
    case("small forward + backward", partial(_both, u, theta, g))
    ur, tr = u.clone().requires_grad_(), theta.clone().requires_grad_()
    case("small forward + backward, torch eager", partial(torch_both, ur, tr, g))
    one = Affine(turned(1, there.device))
    problems = [
        WarpProblem(torch.randn(1, 3, 8 + k, 16, device=there.device), one) for k in range(n)
    ]
    case("64 problems of 64 sizes", lambda: dispatch.warp(problems))


def _both(u, theta, g):
    """V, and the gradients of both operands."""
    return warp(u, Affine(theta)), warp_gradients(g, u, Affine(theta))


if __name__ == "__main__":
    planes()
    objectives()
    channels_last()
    small()
