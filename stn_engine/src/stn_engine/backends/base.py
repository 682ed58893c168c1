"""What the dispatcher asks of a backend."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from stn_engine.call import Call
from stn_engine.plan import Reasons
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


class Backend(Protocol):
    """A way to compute every operation of the engine.

    All operations are ragged: they take problems of any sizes, dtypes and specs and return one
    result per problem, in order. The result of a problem is bit for bit the same whatever
    problems stand beside it.
    """

    @property
    def name(self) -> str:
        """Unique, short name of the backend."""

    @property
    def reads_bytes(self) -> bool:
        """True if its plans can be run on bytes; see ``stn_engine.plan.Kernels``."""

    def plan(self, call: Call) -> Any | Reasons:
        """Returns the plan of a call, see ``stn_engine.plan``, or reasons why there is none."""

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:
        """Returns every reason why this backend cannot run ``problem``; empty if it can."""

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Returns V of each problem, (N, C, [Do,] Ho, Wo); written into ``out``, if given."""

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """Returns the gradients that each problem needs; written into ``out``, if given."""

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """Returns the sampling grid of each problem, (N, [Do,] Ho, Wo, dims)."""

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """Returns the gradient of the parameters of each problem, shaped like them."""

    def objective(self, problems: Sequence[ObjectiveProblem]) -> list[Objective]:
        """Returns value, count and what else each problem needs."""


def reasons_against_device(problem: Problem) -> tuple[str, ...]:
    """Returns why a host backend cannot run ``problem``; empty if it is on the host."""
    device = problem.operands[0].device
    if device.type == "cpu":
        return ()
    return (f"computes in host memory, the operands are on {device}",)
