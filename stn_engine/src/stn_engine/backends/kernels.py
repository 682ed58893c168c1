"""What backends with kernels share: problems on tensors, brought to the one door."""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from stn_engine.adapters.tensors import located, readable
from stn_engine.backends._results import delivered, parts_of
from stn_engine.backends.torch import TorchBackend
from stn_engine.call import Call, Layout, Operation
from stn_engine.errors import BackendUnavailableError
from stn_engine.memory import is_dense
from stn_engine.plan import Addresses, Reasons
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

P = TypeVar("P")

COMPOSITION = TorchBackend()


class NewResults(Protocol):
    """New memory for the results of several calls, which share it."""

    def __init__(self, calls: Sequence[Call]) -> None: ...

    def addresses(self) -> Sequence[Sequence[int]]:
        """Where each needed result of each call begins."""

    def tensors(self) -> Sequence[Sequence[Tensor]]:
        """All results, asked for once, after kernels were launched."""


class KernelBackend(Generic[P]):
    """A backend that plans calls and runs them on addresses; see ``stn_engine.plan.Kernels``.

    It offers the same on problems whose operands are tensors, as dispatch asks every backend to.
    Grids alone are composed by torch: there is nothing to fuse.
    """

    name: str
    reads_bytes = False
    """Whether it has ``run_on_bytes``; see ``stn_engine.plan.Kernels``."""
    new_results: type[NewResults] | None = None
    """Memory for the results of several calls; None: every result has its own."""

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Why nothing can be run on a device; empty if something can."""
        raise NotImplementedError

    def plan_warp(self, call: Call) -> P | Reasons:
        """A new plan of a warp, or of its gradients, on a device that can run it."""
        raise NotImplementedError

    def run(self, plans: Sequence[P], addresses: Sequence[Addresses]) -> None:
        """Runs plans together, as ``stn_engine.plan.Kernels`` says."""
        raise NotImplementedError

    def plan(self, call: Call) -> P | Reasons:
        """How to run a call, kept with it, or every reason why this backend cannot."""
        reasons = self.reasons_against(call.device)
        if reasons:
            return reasons
        if call.operation is not Operation.WARP:
            return ("has kernels for feature maps, none for grids alone",)
        kept: P | Reasons | None = call.plans.get(self)
        if kept is None:
            kept = call.plans[self] = self.plan_warp(call)
        return kept

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """Every reason why this backend cannot run ``problem``; empty if it can."""
        if isinstance(problem, GridProblem | GridGradientsProblem):
            return self.reasons_against(problem.operands[0].device)
        try:
            call = problem.call
        except RuntimeError:  # sparse and the like have no layout; who reads them says so
            return self.reasons_against(problem.operands[0].device)
        plan = self.plan(call)
        return plan if isinstance(plan, tuple) else ()

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """V of each problem, (N, C, ...); new ones in the memory format of the feature map."""
        if out is None:
            return self._results(problems)
        if not all(map(is_dense, out)):
            return delivered(self.warp(problems), out)
        self._run_into(problems, [(one,) for one in out], [(Layout.of(one),) for one in out])
        return list(out)

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """The gradients that each problem needs."""
        if out is None:
            return self._results(problems)
        parts = list(map(parts_of, out))
        if not all(is_dense(part) for some in parts for part in some):
            return delivered(self.warp_gradients(problems), out)
        layouts = [(_layout(one.feature_map), _layout(one.transform)) for one in out]
        self._run_into(problems, parts, layouts)
        return list(out)

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """The sampling grid of each problem, composed."""
        return COMPOSITION.generate_grid(list(map(readable, problems)))

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """The gradient of the parameters of each problem, composed."""
        return COMPOSITION.generate_grid_gradients(list(map(readable, problems)))

    def _results(self, problems: Sequence[WarpProblem | WarpGradientsProblem]) -> list[Any]:
        """What ``warp`` or ``warp_gradients`` returns for each problem, in new memory."""
        if self.new_results is not None and len(problems) > 1:
            return self._results_together(problems, self.new_results)
        found, plans, addresses, results = [], [], [], []
        for problem in problems:  # loops: small calls spend their time here
            call, operands, where = located(problem)
            parts: list[Tensor | None] = []
            for layout in call.results:
                if layout is None:
                    parts.append(None)
                    continue
                dtype, shape, strides = layout
                part = torch.empty_strided(shape, strides, dtype=dtype, device=call.device)
                where.append(part.data_ptr())
                parts.append(part)
            found.append(operands)  # until the end: they may be copies
            plans.append(self._planned(call))
            addresses.append(where)
            results.append(parts[0] if len(parts) == 1 else Gradients(*parts))
        self.run(plans, addresses)
        return results

    def _results_together(
        self, problems: Sequence[WarpProblem | WarpGradientsProblem], new: type[NewResults]
    ) -> list[Any]:
        """Does the same in memory that results share."""
        found = list(map(located, problems))
        calls = [call for call, _, _ in found]
        memory = new(calls)
        places = memory.addresses()
        addresses = [[*where, *into] for (_, _, where), into in zip(found, places, strict=True)]
        self.run(list(map(self._planned, calls)), addresses)
        results = []
        for call, some in zip(calls, memory.tensors(), strict=True):
            left = iter(some)
            parts = [None if layout is None else next(left) for layout in call.results]
            results.append(parts[0] if len(parts) == 1 else Gradients(*parts))
        return results

    def _run_into(
        self,
        problems: Sequence[WarpProblem | WarpGradientsProblem],
        parts: Sequence[Sequence[Tensor]],
        layouts: Sequence[Sequence[Layout | None]],
    ) -> None:
        """Writes the needed results of each problem into tensors, which are dense."""
        found = list(map(located, problems))
        plans = [
            self._planned(call.into(results))
            for (call, _, _), results in zip(found, layouts, strict=True)
        ]
        addresses = [
            [*where, *(one.data_ptr() for one in some)]
            for (_, _, where), some in zip(found, parts, strict=True)
        ]
        self.run(plans, addresses)

    def _planned(self, call: Call) -> P:
        """The plan of a call that this backend can run."""
        plan: P | Reasons | None = call.plans.get(self)
        if plan is None or isinstance(plan, tuple):
            plan = self.plan(call)
        if isinstance(plan, tuple):
            raise BackendUnavailableError({self.name: plan})
        return plan


def _layout(tensor: Tensor | None) -> Layout | None:
    return None if tensor is None else Layout.of(tensor)
