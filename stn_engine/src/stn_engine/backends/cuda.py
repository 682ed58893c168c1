"""The ``cuda`` backend: fused, ragged kernels for tensors in the memory of a GPU.

All problems of one dtype, number of axes, interpolation and layout run in one launch, whatever
their sizes: a table describes them, and every block of threads finds its own. No grid and no
gradient of a grid is in memory but where one is asked for. Kernels are compiled when they are first
needed, kept on disk, and run on torch's current stream.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from stn_engine.backends._cuda.batches import Batch, Entry, Key, gradients_entry, warp_entry
from stn_engine.backends._cuda.device import DeviceLauncher
from stn_engine.backends._cuda.launcher import Launcher
from stn_engine.backends._results import gradients_of, output_of
from stn_engine.backends.torch import TorchBackend
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

P = TypeVar("P")
R = TypeVar("R")

COMPOSITION = TorchBackend()
LARGEST_SIZE = 1 << 24
"""Up to here float32 counts pixels exactly."""
LARGEST_OFFSET = (1 << 31) - 1
"""Within one item of a batch, offsets are 32-bit integers."""


class CudaBackend:
    """Runs every warp and its gradients on the device of the operands.

    Args:
        launcher: Who compiles and runs kernels.
    """

    name = "cuda"

    def __init__(self, launcher: Launcher | None = None) -> None:
        self._launcher = DeviceLauncher() if launcher is None else launcher

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """What this machine lacks, any other device, and maps beyond the kernels' range."""
        reasons = self._launcher.reasons_against(problem.operands[0].device)
        if reasons or isinstance(problem, GridProblem | GridGradientsProblem):
            return reasons
        return _reasons_against_sizes(problem if isinstance(problem, WarpProblem) else problem.warp)

    def warp(self, problems: Sequence[WarpProblem]) -> list[Tensor]:
        """V of each problem, (N, C, ...), in the memory format of its feature map."""
        outputs = [output_of(problem) for problem in problems]
        for batch in self._batches(problems, outputs, warp_entry):
            batch.run_warp()
        return outputs

    def warp_gradients(self, problems: Sequence[WarpGradientsProblem]) -> list[Gradients]:
        """The gradients that each problem needs."""
        gradients = [gradients_of(problem) for problem in problems]
        running = [
            (problem, result)
            for problem, result in zip(problems, gradients, strict=True)
            if 0 not in problem.warp.output_shape
        ]
        for batch in self._batches(*zip(*running, strict=True), gradients_entry):
            batch.run_gradients()
        return gradients

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """The sampling grid of each problem, composed: a generator alone has nothing to fuse."""
        return COMPOSITION.generate_grid(problems)

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """The gradient of the parameters of each problem, composed likewise."""
        return COMPOSITION.generate_grid_gradients(problems)

    def _batches(
        self,
        problems: Iterable[P],
        results: Iterable[R],
        describe: Callable[[P, R], tuple[Key, Entry]],
    ) -> list[Batch]:
        """One batch for all problems whose kernels are the same."""
        batches: dict[Key, list[Entry]] = {}
        for problem, result in zip(problems, results, strict=True):
            key, entry = describe(problem, result)
            batches.setdefault(key, []).append(entry)
        return [Batch(self._launcher, key, entries) for key, entries in batches.items()]


def _reasons_against_sizes(warp: WarpProblem) -> tuple[str, ...]:
    """Why the kernels' integers cannot hold a problem."""
    sizes = (*warp.feature_map.shape[2:], *warp.output_shape[2:])
    if max(sizes) > LARGEST_SIZE:
        return (f"maps are up to {LARGEST_SIZE} pixels wide, this one is {max(sizes)}",)
    item = warp.feature_map
    reach = sum((n - 1) * abs(step) for n, step in zip(item.shape[1:], item.stride()[1:], strict=True))
    largest = max(reach, math.prod(item.shape[1:]), math.prod(warp.output_shape[1:]))
    if largest > LARGEST_OFFSET:
        return (f"an item spans up to {LARGEST_OFFSET} elements, this one {largest}",)
    return ()
