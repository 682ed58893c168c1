"""The common base of backends with kernels: runs problems on tensors by plans and addresses."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, islice
from operator import is_
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stn_engine.adapters.tensors import KnownLayouts, located, readable
from stn_engine.backends._results import assembled, delivered
from stn_engine.backends.torch import TorchBackend
from stn_engine.call import Call, Layout, Operation
from stn_engine.errors import BackendUnavailableError
from stn_engine.memory import is_dense
from stn_engine.plan import Addresses, Reasons
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Objective,
    ObjectiveProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

P = TypeVar("P")
Words: TypeAlias = npt.NDArray[np.int64]

COMPOSITION = TorchBackend()


class NewResults(Protocol):
    """Offsets of the new results of several calls in memory that they share."""

    def __init__(self, calls: Sequence[Call]) -> None: ...

    def allocate(self) -> tuple[Sequence[Tensor], Words]:
        """Returns new memory, and the address of each needed result in it, call by call."""

    def tensors(self, memory: Sequence[Tensor]) -> list[Tensor]:
        """Returns the needed results as tensors, call by call; called after the launches."""


class Together:
    """Layouts and addresses of calls that are computed together, kept for the next time.

    From the second time on that they come together, all operands are compared at once with
    the layouts that they had.

    Args:
        calls: In order; all of one direction.
        plans: Theirs.
        results: Layout of their new results.
    """

    def __init__(self, calls: Sequence[Call], plans: Sequence[Any], results: NewResults) -> None:
        self.calls, self.plans, self.results = calls, plans, results
        self._counts = {(len(call.operands), len(call.needed)) for call in calls}
        self._is_known = False
        self._operands: KnownLayouts | None = None
        self._into: tuple[KnownLayouts, Together] | None = None

    def where(self, operands: Sequence[Tensor]) -> list[int] | None:
        """Returns the addresses of all operands; None if each must be inspected."""
        return None if self._operands is None else self._operands.addresses(operands)

    def learn(self, operands: Sequence[Tensor]) -> None:
        """Remembers operands that were inspected one by one, every second time."""
        if self._is_known:
            self._operands = KnownLayouts(operands)
        self._is_known = not self._is_known

    def into(self, memory: Sequence[Tensor]) -> "tuple[Together, list[int]] | None":
        """Returns the calls with results in given memory, and its addresses; None if unknown."""
        if self._into is None:
            return None
        known, calls = self._into
        where = known.addresses(memory)
        return None if where is None else (calls, where)

    def learn_into(self, memory: Sequence[Tensor], calls: "Together") -> None:
        """Remembers dense memory for results, and the calls that write there."""
        if self._operands is not None and self._into is None:
            self._into = KnownLayouts(memory), calls

    def rows(self, operands: Sequence[int], results: Sequence[int] | Words) -> Sequence[Addresses]:
        """Returns addresses call by call, from those of all operands and of all needed results."""
        if len(self._counts) == 1:
            count = len(self.calls)
            of_operands = np.array(operands, np.int64).reshape(count, -1)
            of_results = np.asarray(results, np.int64).reshape(count, -1)
            rows: Any = np.concatenate([of_operands, of_results], 1)
            return cast("Sequence[Addresses]", rows)
        there, left = iter(operands), iter(map(int, results))
        return [
            [*islice(there, len(call.operands)), *islice(left, len(call.needed))]
            for call in self.calls
        ]


class KernelBackend(Generic[P]):
    """A backend that plans calls and runs them on addresses; see ``stn_engine.plan.Kernels``.

    It offers the same on problems whose operands are tensors, as dispatch asks every backend to.
    Grids alone are composed by torch: there is nothing to fuse.
    """

    name: str
    operations = frozenset({Operation.WARP})
    """Operations that it has kernels for."""
    reads_bytes = False
    """Whether it has ``run_on_bytes``; see ``stn_engine.plan.Kernels``."""
    new_results: type[NewResults] | None = None
    """Layout of memory that the results of several calls share; None: each has its own."""

    def reasons_against(self, device: torch.device) -> tuple[str, ...]:
        """Returns why nothing can be run on a device; empty if something can."""
        raise NotImplementedError

    def new_plan(self, call: Call) -> P | Reasons:
        """Returns a new plan of one of its operations on a device that can run it."""
        raise NotImplementedError

    def run(self, plans: Sequence[P], addresses: Sequence[Addresses]) -> None:
        """Runs plans together, as ``stn_engine.plan.Kernels`` says."""
        raise NotImplementedError

    def plan(self, call: Call) -> P | Reasons:
        """Returns the plan of a call, kept with it, or every reason why there is none."""
        reasons = self.reasons_against(call.device)
        if reasons:
            return reasons
        if call.operation not in self.operations:
            return (f"has no kernels for {call.operation}",)
        kept: P | Reasons | None = call.plans.get(self)
        if kept is None:
            kept = call.plans[self] = self.new_plan(call)
        return kept

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """Returns every reason why this backend cannot run ``problem``; empty if it can."""
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
        """Returns V of each problem, (N, C, ...); new ones in the feature map's memory format."""
        if out is None:
            return self._results(problems)
        if not self._write(problems, [(one,) for one in out]):
            return delivered(self.warp(problems), out)
        return list(out)

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """Returns the gradients that each problem needs."""
        if out is None:
            return self._results(problems)
        if not self._write(problems, [(one.feature_map, one.transform) for one in out]):
            return delivered(self.warp_gradients(problems), out)
        return list(out)

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """Returns the sampling grid of each problem, composed."""
        return COMPOSITION.generate_grid(list(map(readable, problems)))

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """Returns the gradient of the parameters of each problem, composed."""
        return COMPOSITION.generate_grid_gradients(list(map(readable, problems)))

    def objective(self, problems: Sequence[ObjectiveProblem]) -> list[Objective]:
        """Returns value, count and what else each problem needs."""
        return self._results(problems)

    def _results(self, problems: Sequence[Problem]) -> list[Any]:
        """Returns the results of problems that have kernels, in new memory."""
        if self.new_results is not None and len(problems) > 1:
            return self._results_together(problems)
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
            results.append(parts[0] if len(parts) == 1 else assembled(call, parts))
        self.run(plans, addresses)
        return results

    def _results_together(self, problems: Sequence[Problem]) -> list[Any]:
        """Returns the results of problems in memory that they share."""
        together, operands, where = self._located_together(problems)
        memory, free = together.results.allocate()
        self.run(together.plans, together.rows(where, free))
        del operands  # until here: they may be copies
        tensors = together.results.tensors(memory)
        if isinstance(problems[0], WarpProblem):
            return tensors
        left = iter(tensors)
        return [
            assembled(call, [None if layout is None else next(left) for layout in call.results])
            for call in together.calls
        ]

    def _write(
        self,
        problems: Sequence[WarpProblem | WarpGradientsProblem],
        out: Sequence[Sequence[Tensor | None]],
    ) -> bool:
        """Writes the results of each problem into tensors; returns False if one is not dense."""
        memory = [part for some in out for part in some if part is not None]
        if self.new_results is None or len(problems) == 1:
            return all(map(is_dense, memory)) and self._write_each(problems, out)
        together, operands, where = self._located_together(problems)
        known = together.into(memory)
        if known is None:
            if not all(map(is_dense, memory)):
                return False
            pairs = zip(together.calls, map(_layouts, out), strict=True)
            into = self._together(tuple([call.into(layouts) for call, layouts in pairs]))
            together.learn_into(memory, into)
            known = into, [part.data_ptr() for part in memory]
        into, free = known
        self.run(into.plans, into.rows(where, free))
        del operands  # until here: they may be copies
        return True

    def _write_each(
        self,
        problems: Sequence[WarpProblem | WarpGradientsProblem],
        out: Sequence[Sequence[Tensor | None]],
    ) -> bool:
        """Writes the results of problems with little in common into dense memory."""
        found = list(map(located, problems))
        plans = [
            self._planned(call.into(_layouts(parts)))
            for (call, _, _), parts in zip(found, out, strict=True)
        ]
        addresses = [
            [*where, *(part.data_ptr() for part in parts if part is not None)]
            for (_, _, where), parts in zip(found, out, strict=True)
        ]
        self.run(plans, addresses)
        return True

    def _located_together(
        self, problems: Sequence[Problem]
    ) -> tuple[Together, Sequence[Tensor], Sequence[int]]:
        """Returns the calls of problems, their operands and their addresses."""
        operands = [*chain.from_iterable([problem.operands for problem in problems])]
        try:
            calls = tuple([problem.call for problem in problems])
        except RuntimeError:  # sparse and the like have no layout; who reads them says so
            calls = ()
        known = self._together(calls) if calls else None
        where = None if known is None else known.where(operands)
        if known is not None and where is not None:
            return known, operands, where
        found = list(map(located, problems))
        now = tuple([call for call, _, _ in found])
        held = [*chain.from_iterable([there for _, there, _ in found])]
        if known is None or now != calls:
            known = self._together(now)
        elif all(map(is_, held, operands)):  # and no copies
            known.learn(operands)
        return known, held, [*chain.from_iterable([where for _, _, where in found])]

    def _together(self, calls: tuple[Call, ...]) -> Together:
        """Returns what is known of these calls, kept until they come together again."""
        return _kept_together(self, torch.is_inference_mode_enabled(), calls)

    def _planned(self, call: Call) -> P:
        """Returns the plan of a call that this backend can run."""
        plan: P | Reasons | None = call.plans.get(self)
        if plan is None or isinstance(plan, tuple):
            plan = self.plan(call)
        if isinstance(plan, tuple):
            raise BackendUnavailableError({self.name: plan})
        return plan


@lru_cache(maxsize=64)  # of them 256 calls take some 200 KB
def _kept_together(
    backend: KernelBackend[Any],
    is_inference: bool,  # noqa: FBT001, ARG001 - another mode, other bits of the same tensors
    calls: tuple[Call, ...],
) -> Together:
    plans = tuple([backend._planned(call) for call in calls])  # noqa: SLF001 - a method, kept
    new_results = cast("type[NewResults]", backend.new_results)
    return Together(calls, plans, new_results(calls))


def _layouts(parts: Sequence[Tensor | None]) -> tuple[Layout | None, ...]:
    return tuple(None if part is None else Layout.of(part) for part in parts)
