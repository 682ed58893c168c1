"""The ``cuda`` backend: fused, ragged kernels for tensors in the memory of a GPU.

All problems of one dtype, number of axes, interpolation and layout run in one launch, whatever
their sizes: a table describes them, and every block of threads finds its own. No grid and no
gradient of a grid is in memory but where one is asked for. Kernels are compiled when they are first
needed, kept on disk, and run on torch's current stream.
"""

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor

from stn_engine.backends._cuda.batches import Batch
from stn_engine.backends._cuda.device import DeviceLauncher
from stn_engine.backends._cuda.item import FIELDS
from stn_engine.backends._cuda.launcher import Launcher
from stn_engine.backends._cuda.plans import (
    found_gradients,
    found_warps,
    grouped,
)
from stn_engine.backends._results import delivered, gradients_of, outputs_of, parts_of
from stn_engine.backends.torch import TorchBackend
from stn_engine.call import Call
from stn_engine.memory import is_dense
from stn_engine.plan import Reasons
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

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
    reads_bytes = False

    def __init__(self, launcher: Launcher | None = None) -> None:
        self._launcher = DeviceLauncher() if launcher is None else launcher

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """What this machine lacks, any other device, and maps beyond the kernels' range."""
        reasons: tuple[str, ...] | None = problem.plans.get(self)
        if reasons is None:
            reasons = problem.plans[self] = self._reasons_against(problem)
        return reasons

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """V of each problem, (N, C, ...); new ones in the memory format of the feature map."""
        if out is not None and not all(map(is_dense, out)):
            return delivered(self.warp(problems), out)
        found = found_warps(problems, out)
        nothing, batches = grouped(found.rows)
        results = {i: outputs_of([problems[i]], out and [out[i]])[0] for i in nothing}
        for at in batches:
            batch = Batch(self._launcher, found, at, [problems[i] for i in at])
            batch.run_warp()
            results.update(zip(at, cast("Sequence[Tensor]", batch.tensors("target")), strict=True))
        return [results[i] for i in range(len(problems))]

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """The gradients that each problem needs."""
        if out is not None and not all(is_dense(part) for one in out for part in parts_of(one)):
            return delivered(self.warp_gradients(problems), out)
        found = found_gradients(problems, out)
        nothing, batches = grouped(found.rows)
        results = {i: gradients_of([problems[i]], out and [out[i]])[0] for i in nothing}
        for at in batches:
            batch = Batch(self._launcher, found, at, [problems[i].warp for i in at])
            batch.run_gradients()
            parts = batch.tensors("by_source"), batch.tensors("by_parameters")
            results.update(zip(at, map(Gradients, *parts), strict=True))
        return list(out) if out is not None else [results[i] for i in range(len(problems))]

    def plan(self, call: Call) -> Reasons:  # noqa: ARG002 - protocol
        """Its kernels are run on tensors."""
        return ("runs on tensors",)

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """The sampling grid of each problem, composed: a generator alone has nothing to fuse."""
        return COMPOSITION.generate_grid(problems)

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """The gradient of the parameters of each problem, composed likewise."""
        return COMPOSITION.generate_grid_gradients(problems)

    def _reasons_against(self, problem: Problem) -> tuple[str, ...]:
        reasons = self._launcher.reasons_against(problem.operands[0].device)
        if reasons or isinstance(problem, GridProblem | GridGradientsProblem):
            return reasons
        return _reasons_against_sizes(problem)


def _reasons_against_sizes(problem: WarpProblem | WarpGradientsProblem) -> tuple[str, ...]:
    """Why the kernels' integers cannot hold a problem."""
    warp = problem if isinstance(problem, WarpProblem) else problem.warp
    source, size = warp.feature_map, warp.output_shape[2:]
    maps = [source] if warp is problem else [source, problem.operands[0]]
    points = [warp.transform.parameters] if isinstance(warp.transform, FIELDS) else []
    values = max(source.numel(), math.prod(size) * source.shape[1])
    if values <= LARGEST_SIZE and all(one.is_contiguous() for one in (*maps, *points)):
        return ()
    if max(*source.shape[2:], *size) > LARGEST_SIZE:
        return (f"maps are at most {LARGEST_SIZE} pixels wide, high or deep",)
    channels = source.shape[1] if source.stride()[1] == 1 else 1
    reach = max(
        *(_reach(one.shape[2:], one.stride()[2:]) for one in maps),
        *(_reach(one.shape[1:-1], one.stride()[1:-1]) for one in points),
        math.prod(source.shape[2:]) * channels,
        math.prod(size) * channels,
    )
    if reach > LARGEST_OFFSET:
        return (f"a channel spans at most {LARGEST_OFFSET} elements, this one {reach}",)
    return ()


def _reach(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """The largest offset of an element along some axes."""
    return sum((n - 1) * abs(step) for n, step in zip(sizes, strides, strict=True))
