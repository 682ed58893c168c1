"""What backends with kernels share: problems on tensors, brought to the one door."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from stn_engine.adapters.tensors import current_call
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


class NewResults:
    """New memory for the results of calls, a tensor of its own for each."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._tensors = [
            [
                torch.empty_strided(shape, strides, dtype=dtype, device=call.device)
                for dtype, shape, strides in call.needed
            ]
            for call in calls
        ]

    def addresses(self) -> list[list[int]]:
        """Where each result of each call begins."""
        return [[one.data_ptr() for one in some] for some in self._tensors]

    def tensors(self) -> list[list[Tensor]]:
        """All results, asked for once, after kernels were launched."""
        return self._tensors


class KernelBackend(ABC, Generic[P]):
    """A backend that plans calls and runs them on addresses; see ``stn_engine.plan.Kernels``.

    It offers the same on problems whose operands are tensors, as dispatch asks every backend to.
    Grids alone are composed by torch: there is nothing to fuse.
    """

    name: str
    reads_bytes = False
    """Whether it has ``run_on_bytes``; see ``stn_engine.plan.Kernels``."""
    new_results: type[NewResults] = NewResults
    """How memory for results is made."""

    @abstractmethod
    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Why nothing can be run on a device; empty if something can."""

    @abstractmethod
    def plan_warp(self, call: Call) -> P | Reasons:
        """A new plan of a warp, or of its gradients, on a device that can run it."""

    @abstractmethod
    def run(self, plans: Sequence[P], addresses: Sequence[Addresses]) -> None:
        """See ``stn_engine.plan.Kernels``."""

    def plan(self, call: Call) -> P | Reasons:
        """How to run a call, kept with it, or every reason why this backend cannot."""
        reasons = self.reasons_against(call.device)
        if reasons:
            return reasons
        if call.operation != Operation.WARP:
            return ("has kernels for feature maps, none for grids alone",)
        found: P | Reasons | None = call.plans.get(self)
        if found is None:
            found = call.plans[self] = self.plan_warp(call)
        return found

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """Every reason why this backend cannot run ``problem``; empty if it can."""
        if isinstance(problem, GridProblem | GridGradientsProblem):
            return self.reasons_against(problem.operands[0].device)
        plan = self.plan(problem.call)
        return plan if isinstance(plan, tuple) else ()

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """V of each problem, (N, C, ...); new ones in the memory format of the feature map."""
        if out is None:
            return [result for (result,) in self._results(problems)]
        if not all(map(is_dense, out)):
            return delivered(self.warp(problems), out)
        self._run_into(problems, [(one,) for one in out], [(Layout.of(one),) for one in out])
        return list(out)

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """The gradients that each problem needs."""
        if out is None:
            found = self._results(problems)
            return [
                Gradients(*parts) if len(parts) == 2 else _only(problem, *parts)
                for problem, parts in zip(problems, found, strict=True)
            ]
        parts = list(map(parts_of, out))
        if not all(is_dense(part) for some in parts for part in some):
            return delivered(self.warp_gradients(problems), out)
        layouts = [(_layout(one.feature_map), _layout(one.transform)) for one in out]
        self._run_into(problems, parts, layouts)
        return list(out)

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """The sampling grid of each problem, composed."""
        return COMPOSITION.generate_grid(problems)

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """The gradient of the parameters of each problem, composed."""
        return COMPOSITION.generate_grid_gradients(problems)

    def _results(
        self, problems: Sequence[WarpProblem | WarpGradientsProblem]
    ) -> list[list[Tensor]]:
        """The needed results of each problem, in new memory."""
        calls = list(map(current_call, problems))
        results = self.new_results(calls)
        self.run(
            list(map(self._planned, calls)),
            [
                [*(operand.data_ptr() for operand in problem.operands), *where]
                for problem, where in zip(problems, results.addresses(), strict=True)
            ],
        )
        return results.tensors()

    def _run_into(
        self,
        problems: Sequence[WarpProblem | WarpGradientsProblem],
        parts: Sequence[Sequence[Tensor]],
        layouts: Sequence[Sequence[Layout | None]],
    ) -> None:
        """Writes the needed results of each problem into tensors, which are dense."""
        calls = [
            current_call(problem).into(results)
            for problem, results in zip(problems, layouts, strict=True)
        ]
        addresses = [
            [one.data_ptr() for one in (*problem.operands, *some)]
            for problem, some in zip(problems, parts, strict=True)
        ]
        self.run(list(map(self._planned, calls)), addresses)

    def _planned(self, call: Call) -> P:
        """The plan of a call that this backend can run."""
        plan = self.plan(call)
        if isinstance(plan, tuple):
            raise BackendUnavailableError({self.name: plan})
        return plan


def _layout(tensor: Tensor | None) -> Layout | None:
    return None if tensor is None else Layout.of(tensor)


def _only(problem: WarpGradientsProblem, gradient: Tensor) -> Gradients:
    """The one gradient that a problem needs."""
    return Gradients(**{"feature_map": None, "transform": None, problem.needs[0]: gradient})
