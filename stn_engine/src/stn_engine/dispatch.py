"""Chooses a backend for each problem. Knows the order, and nothing of what backends do."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from stn_engine.adapters.tensors import is_negated, readable
from stn_engine.backends._results import call_on, delivered
from stn_engine.backends.base import Backend
from stn_engine.backends.cpu import CpuBackend
from stn_engine.backends.cuda import CudaBackend
from stn_engine.backends.kernels import KernelBackend
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend
from stn_engine.errors import BackendUnavailableError, ParameterError
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

BACKENDS: tuple[Backend, ...] = (
    CudaBackend(),
    CpuBackend(),
    TorchBackend(),
    ReferenceBackend(),
)
"""The backends, in order of preference."""

BACKEND_VARIABLE = "STN_BACKEND"
"""The environment variable that names the only backend to use."""

P = TypeVar(
    "P", WarpProblem, WarpGradientsProblem, GridProblem, GridGradientsProblem, ObjectiveProblem
)
R = TypeVar("R", Tensor, Gradients, Objective)


@lru_cache(maxsize=1)
def candidates() -> tuple[Backend, ...]:
    """Returns all backends, or the only one that ``STN_BACKEND`` names.

    The variable is read at the first call and never again: a look into the environment takes
    longer than the choice itself.

    Raises:
        ParameterError: there is no backend of that name.
    """
    name = os.environ.get(BACKEND_VARIABLE, "")
    chosen = tuple(backend for backend in BACKENDS if name in {"", backend.name})
    if not chosen:
        raise ParameterError(BACKEND_VARIABLE, name, [backend.name for backend in BACKENDS])
    return chosen


def select(problem: Problem, backends: Sequence[Backend] | None = None) -> Backend:
    """Returns the first backend that can run ``problem``; of ``candidates()`` by default.

    Raises:
        BackendUnavailableError: none can; it carries the reasons of every one.
    """
    reasons = {}
    for backend in candidates() if backends is None else backends:
        why_not = backend.unsupported_reasons(problem)
        if not why_not:
            return backend
        reasons[backend.name] = why_not
    raise BackendUnavailableError(reasons)


def select_once(problem: Problem) -> Backend:
    """Returns the backend that ``select`` returns, chosen once for problems of the same call."""
    backends = candidates()
    # The tuple of backends is the key: with another STN_BACKEND, as in tests, it is another one.
    chosen: Backend | None = problem.call.plans.get(backends)
    if chosen is None:
        chosen = problem.call.plans[backends] = select(problem, backends)
    return chosen


def _readable(backend: Backend, problems: Sequence[P]) -> Sequence[P]:
    """Returns problems whose operands can be read; kernels look at addresses by themselves."""
    if isinstance(backend, KernelBackend):
        return problems
    return [readable(problem) for problem in problems]


class FirstPlan(NamedTuple):
    """Plan of the first backend that has kernels for a problem."""

    backends: Sequence[Backend]
    """The backends that were asked."""
    backend: Any
    """The backend with kernels, as in ``stn_engine.plan.Kernels``; None if there is none."""
    plan: Any


def planned(problems: Sequence[Problem], device: torch.device) -> tuple[Any, list[Any]] | None:
    """Returns plans for operands on a device, of the first backend that has kernels for them.

    Returns:
        The backend, see ``stn_engine.plan.Kernels``, and its plans, kept with the problems; None
        if not all problems have a plan of one backend.
    """
    backends, first = candidates(), None
    plans: list[Any] = []
    for problem in problems:  # a loop: a server asks for every batch
        found: FirstPlan | None = problem.plans.get(device)
        # By identity: it is the same cached tuple unless the candidates were changed.
        if found is None or found.backends is not backends:
            found = problem.plans[device] = _first_plan(problem, device, backends)
        # One launch takes plans of one backend: a mixed batch goes by way of tensors.
        if first is not found.backend and plans:
            return None
        first = found.backend
        plans.append(found.plan)
    return None if first is None else (first, plans)


def _first_plan(problem: Problem, device: torch.device, backends: Sequence[Backend]) -> FirstPlan:
    call = call_on(problem, device)
    for backend in backends:
        plan = backend.plan(call)
        if not isinstance(plan, tuple):
            return FirstPlan(backends, backend, plan)
    return FirstPlan(backends, None, None)


def compute(problems: Sequence[Any]) -> Sequence[Any]:
    """Returns the results of problems of one type, whichever type that is."""
    return OPERATIONS[type(problems[0])](problems)


def warp(
    problems: Sequence[WarpProblem],
    backends: Sequence[Backend] | None = None,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Returns V of each problem, by the first backend that can; in ``out``, if that is given."""
    return _run(problems, backends, out, lambda backend, *chosen: backend.warp(*chosen))


def warp_gradients(
    problems: Sequence[WarpGradientsProblem],
    backends: Sequence[Backend] | None = None,
    out: Sequence[Gradients] | None = None,
) -> list[Gradients]:
    """Returns the gradients of each problem, otherwise as ``warp``."""
    return _run(problems, backends, out, lambda backend, *chosen: backend.warp_gradients(*chosen))


def generate_grid(
    problems: Sequence[GridProblem], backends: Sequence[Backend] | None = None
) -> list[Tensor]:
    """Returns the sampling grid of each problem, each by the first backend that can."""
    return _run(problems, backends, None, lambda backend, chosen, _: backend.generate_grid(chosen))


def generate_grid_gradients(
    problems: Sequence[GridGradientsProblem], backends: Sequence[Backend] | None = None
) -> list[Tensor]:
    """Returns the gradient of each problem's parameters, by the first backend that can."""
    return _run(
        problems, backends, None, lambda backend, chosen, _: backend.generate_grid_gradients(chosen)
    )


def objective(
    problems: Sequence[ObjectiveProblem], backends: Sequence[Backend] | None = None
) -> list[Objective]:
    """Returns the objective of each problem, each by the first backend that can."""
    return _run(problems, backends, None, lambda backend, chosen, _: backend.objective(chosen))


def _run(
    problems: Sequence[P],
    backends: Sequence[Backend] | None,
    out: Sequence[R] | None,
    operation: Callable[[Backend, Sequence[P], Sequence[R] | None], list[R]],
) -> list[R]:
    """Runs every problem on its backend, all problems of one backend together, in order."""
    if out is not None and any(map(is_negated, out)):  # only torch writes such memory
        return delivered(_run(problems, backends, None, operation), out)
    chosen = _chosen(problems, backends)
    # Mostly one backend runs all, and the order needs no bookkeeping.
    if chosen and chosen.count(chosen[0]) == len(chosen):
        return operation(chosen[0], _readable(chosen[0], problems), out)
    results: dict[int, R] = {}
    # Backends are singletons, told apart by identity, and keep the order of their first problem.
    for backend in {id(one): one for one in chosen}.values():
        positions = [i for i, one in enumerate(chosen) if one is backend]
        into = None if out is None else [out[i] for i in positions]
        some = _readable(backend, [problems[i] for i in positions])
        results.update(zip(positions, operation(backend, some, into), strict=True))
    return [results[i] for i in range(len(problems))]


def _chosen(problems: Sequence[Problem], backends: Sequence[Backend] | None) -> list[Backend]:
    """Returns the backend of each problem."""
    if backends is not None:
        return [select(one, backends) for one in problems]
    everyone = candidates()
    try:  # as nearly always: what was chosen for problems of these calls
        return [vars(one)["call"].plans[everyone] for one in problems]
    except KeyError:
        return [select_once(one) if "call" in vars(one) else select(one) for one in problems]


OPERATIONS: dict[type[Problem], Callable[[Any], Sequence[Tensor | Gradients | Objective]]] = {
    WarpProblem: warp,
    WarpGradientsProblem: warp_gradients,
    GridProblem: generate_grid,
    GridGradientsProblem: generate_grid_gradients,
    ObjectiveProblem: objective,
}
