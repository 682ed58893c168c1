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

from stn_engine.backends._cuda.batches import Batch, Entry, gradients_entry, warp_entry
from stn_engine.backends._cuda.device import DeviceLauncher
from stn_engine.backends._cuda.launcher import Launcher
from stn_engine.backends._cuda.table import Key
from stn_engine.backends._results import gradients_of, outputs_of
from stn_engine.backends.torch import TorchBackend
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

P = TypeVar("P", WarpProblem, WarpGradientsProblem)
R = TypeVar("R")

COMPOSITION = TorchBackend()
LARGEST_SIZE = 1 << 24
"""Up to here float32 counts pixels exactly."""
LARGEST_OFFSET = (1 << 31) - 1
"""Within a channel, offsets are 32-bit integers."""


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
        return _reasons_against_sizes(_warp_of(problem))

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """V of each problem, (N, C, ...); new ones in the memory format of the feature map."""
        outputs = outputs_of(problems, out)
        for batch in self._batches(problems, outputs, warp_entry):
            batch.run_warp()
        return outputs

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """The gradients that each problem needs."""
        gradients = gradients_of(problems, out)
        for batch in self._batches(problems, gradients, gradients_entry):
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
        describe: Callable[[P, R], Entry],
    ) -> list[Batch]:
        """One batch for all problems whose kernels are the same, and none for empty ones."""
        batches: dict[Key, list[Entry]] = {}
        key: Key | None = None
        batch: list[Entry] = []
        for problem, result in zip(problems, results, strict=True):
            if 0 in _warp_of(problem).output_shape:
                continue
            entry = describe(problem, result)
            if entry.row.key is not key:  # neighbours are often alike, and keys slow to look up
                key = entry.row.key
                batch = batches.setdefault(key, [])
            batch.append(entry)
        return [Batch(self._launcher, key, entries) for key, entries in batches.items()]


def _warp_of(problem: WarpProblem | WarpGradientsProblem) -> WarpProblem:
    return problem if isinstance(problem, WarpProblem) else problem.warp


def _reasons_against_sizes(warp: WarpProblem) -> tuple[str, ...]:
    """Why the kernels' integers cannot hold a problem."""
    source, size = warp.feature_map, warp.output_shape[2:]
    values = max(source.numel(), math.prod(size) * source.shape[1])
    if values <= LARGEST_SIZE and source.is_contiguous():
        return ()
    if max(*source.shape[2:], *size) > LARGEST_SIZE:
        return (f"maps are at most {LARGEST_SIZE} pixels wide, high or deep",)
    channels = source.shape[1] if source.stride()[1] == 1 else 1
    steps = zip(source.shape[2:], source.stride()[2:], strict=True)
    reach = max(
        sum((n - 1) * abs(step) for n, step in steps),
        math.prod(source.shape[2:]) * channels,
        math.prod(size) * channels,
    )
    if reach > LARGEST_OFFSET:
        return (f"a channel spans at most {LARGEST_OFFSET} elements, this one {reach}",)
    return ()
