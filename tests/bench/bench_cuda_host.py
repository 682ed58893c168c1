"""What a call of the ``cuda`` backend costs the host; no GPU is needed, nothing is launched.

The least of many calls, in microseconds. To copy the table and to queue kernels comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch

from stn_engine import Affine, Gradients, WarpGradientsProblem, WarpProblem, dispatch
from stn_engine.adapters import device_buffers, on_bytes
from stn_engine.adapters.device_buffers import DeviceBuffer
from stn_engine.backends.cuda import CudaBackend

CALLS = 2000
COUNT = 64
HOST = torch.device("cpu")


class IdleLauncher:
    """Takes note of when the last kernel would have been launched."""

    def __init__(self) -> None:
        self.launched = 0.0

    def reasons_against(self, device):
        del device
        return ()

    def upload(self, words, device):
        del device
        return torch.from_numpy(words)

    def stream(self, device):
        del device
        return 0

    def zero(self, address, size_bytes, device):
        del address, size_bytes, device

    def hold(self, tensors, device):
        del tensors, device

    def retain(self, things):
        del things

    def launch(self, *launch):
        del launch
        self.launched = time.perf_counter()


def least_us(launcher: IdleLauncher, run: Callable[[], object]) -> tuple[float, float]:
    """Microseconds until the last launch, and until a call returns."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        run()
        times.append((launcher.launched - began, time.perf_counter() - began))
    launches, returns = zip(*times, strict=True)
    return min(launches) * 1e6, min(returns) * 1e6


@torch.no_grad()
def main() -> None:
    launcher = IdleLauncher()
    backends = (CudaBackend(launcher),)
    theta = torch.eye(2, 3)[None]
    some = [WarpProblem(torch.rand(1, 3, 8 + n, 16), Affine(theta)) for n in range(COUNT)]
    one = [WarpProblem(torch.rand(COUNT, 3, 16, 16), Affine(theta.repeat(COUNT, 1, 1)))]
    for what, warps in ((f"{COUNT} problems", some), (f"one problem of {COUNT} items", one)):
        backward = [WarpGradientsProblem(warp, torch.rand(warp.output_shape)) for warp in warps]
        outputs = [torch.empty(warp.output_shape) for warp in warps]
        gradients = [Gradients(*map(torch.empty_like, warp.operands)) for warp in warps]
        for name, run in {
            "forward": partial(dispatch.warp, warps, backends),
            "forward, given memory": partial(dispatch.warp, warps, backends, outputs),
            "backward": partial(dispatch.warp_gradients, backward, backends),
            "backward, given memory": partial(
                dispatch.warp_gradients, backward, backends, gradients
            ),
        }.items():
            report(what, name, launcher, run)
        for name, problems in {
            "forward, in buffers": warps,
            "backward, in buffers": backward,
        }.items():
            with patch.object(dispatch, "candidates", lambda: backends):
                report(what, name, launcher, partial(device_buffers.compute, *in_buffers(problems)))


def report(what: str, name: str, launcher: IdleLauncher, run: Callable[[], object]) -> None:
    launched, returned = least_us(launcher, run)
    print(f"{what:24} {name:24} launched {launched:6.1f}   returned {returned:6.1f}")


def in_buffers(problems) -> tuple[object, DeviceBuffer, DeviceBuffer]:
    """As a server has them: problems that were made once, and memory of this batch."""
    unbound = [
        problem.bound(*(operand.to("meta") for operand in problem.operands)) for problem in problems
    ]
    operands, results = (
        [size for some in sizes for size in some]
        for sizes in zip(*map(on_bytes.sizes_of, unbound), strict=True)
    )
    return (
        unbound,
        DeviceBuffer(operands, HOST),
        DeviceBuffer(results, HOST),
    )


if __name__ == "__main__":
    main()
