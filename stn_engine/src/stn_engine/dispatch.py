"""Chooses a backend for each problem. Knows the order, and nothing of what backends do."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from stn_engine.backends.base import Backend
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend
from stn_engine.errors import BackendUnavailableError
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

BACKENDS: tuple[Backend, ...] = (TorchBackend(), ReferenceBackend())
"""In order of preference."""

P = TypeVar("P", WarpProblem, WarpGradientsProblem, GridProblem, GridGradientsProblem)
R = TypeVar("R", Tensor, Gradients)


def select(problem: Problem, backends: Sequence[Backend] = BACKENDS) -> Backend:
    """The first backend that can run ``problem``.

    Raises:
        BackendUnavailableError: none can; it carries the reasons of every one.
    """
    reasons = {}
    for backend in backends:
        why_not = backend.unsupported_reasons(problem)
        if not why_not:
            return backend
        reasons[backend.name] = why_not
    raise BackendUnavailableError(reasons)


def warp(problems: Sequence[WarpProblem], backends: Sequence[Backend] = BACKENDS) -> list[Tensor]:
    """V of each problem, each by the first backend that can."""
    return _run(problems, backends, lambda backend, chosen: backend.warp(chosen))


def warp_gradients(
    problems: Sequence[WarpGradientsProblem], backends: Sequence[Backend] = BACKENDS
) -> list[Gradients]:
    """Gradients of each problem, each by the first backend that can."""
    return _run(problems, backends, lambda backend, chosen: backend.warp_gradients(chosen))


def generate_grid(
    problems: Sequence[GridProblem], backends: Sequence[Backend] = BACKENDS
) -> list[Tensor]:
    """The sampling grid of each problem, each by the first backend that can."""
    return _run(problems, backends, lambda backend, chosen: backend.generate_grid(chosen))


def generate_grid_gradients(
    problems: Sequence[GridGradientsProblem], backends: Sequence[Backend] = BACKENDS
) -> list[Tensor]:
    """The gradient of the parameters of each problem, each by the first backend that can."""
    return _run(problems, backends, lambda backend, chosen: backend.generate_grid_gradients(chosen))


def _run(
    problems: Sequence[P],
    backends: Sequence[Backend],
    operation: Callable[[Backend, list[P]], list[R]],
) -> list[R]:
    """Run every problem on its backend, all problems of one backend together, in order."""
    chosen = [select(problem, backends) for problem in problems]
    results: dict[int, R] = {}
    for backend in backends:
        positions = [i for i, one in enumerate(chosen) if one is backend]
        outcome = operation(backend, [problems[i] for i in positions]) if positions else []
        results.update(zip(positions, outcome, strict=True))
    return [results[i] for i in range(len(problems))]
