"""The ``torch`` backend: a composition of torch operators, for any device.

Problems whose tensors can be laid end to end run as one. Results of such a group share storage.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from stn_engine.backends._results import delivered
from stn_engine.backends.torch.objectives import objective
from stn_engine.backends.torch.points import generated_grid, generated_grid_adjoint
from stn_engine.backends.torch.sampler import sample, sample_adjoint
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

P = TypeVar("P")
R = TypeVar("R")


class TorchBackend:
    """Runs everything the engine offers; the results are differentiable torch graphs."""

    reads_bytes = False
    name = "torch"

    def plan(self, call: Call) -> Reasons:  # noqa: ARG002 - protocol
        """Returns the reason why nothing runs on addresses."""
        return ("composes torch operators, has no kernels",)

    def unsupported_reasons(self, problem: Problem) -> tuple[str, ...]:  # noqa: ARG002 - protocol
        """Returns no reason: this backend can run every valid problem."""
        return ()

    def warp(
        self, problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Returns V of each problem, (N, C, [Do,] Ho, Wo)."""
        return delivered(_grouped(problems, _warp_key, _warp_group), out)

    def warp_gradients(
        self, problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
    ) -> list[Gradients]:
        """Returns the gradients that each problem needs."""
        return delivered(_grouped(problems, _warp_gradients_key, _warp_gradients_group), out)

    def generate_grid(self, problems: Sequence[GridProblem]) -> list[Tensor]:
        """Returns the sampling grid of each problem, (N, [Do,] Ho, Wo, dims)."""
        return _grouped(problems, _grid_key, _grid_group)

    def generate_grid_gradients(self, problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
        """Returns the gradient of the parameters of each problem, shaped like them."""
        return _grouped(problems, _grid_gradients_key, _grid_gradients_group)

    def objective(self, problems: Sequence[ObjectiveProblem]) -> list[Objective]:
        """Returns value, count and what else each problem needs."""
        return list(map(objective, problems))


def _grouped(
    problems: Sequence[P],
    key: Callable[[P], Hashable],
    run: Callable[[list[P]], list[R]],
) -> list[R]:
    """Runs problems of equal key together; a key of None means alone. Results keep the order."""
    groups: dict[Hashable, list[int]] = {}
    for position, problem in enumerate(problems):
        found = key(problem)
        groups.setdefault(("alone", position) if found is None else found, []).append(position)
    results: dict[int, R] = {}
    for positions in groups.values():
        outcome = run([problems[position] for position in positions])
        results.update(zip(positions, outcome, strict=True))
    return [results[position] for position in range(len(problems))]


def _layout(tensor: Tensor) -> Hashable:
    """Returns all that must agree for tensors to be concatenated along the batch."""
    return tensor.dtype, tensor.device, tensor.shape[1:]


def _warp_key(problem: WarpProblem) -> Hashable:
    transform = problem.transform
    # Concatenated with others, an operand that is broadcast would meet items that are not its own.
    if problem.feature_map.shape[0] != transform.parameters.shape[0]:
        return None
    layouts = _layout(problem.feature_map), _layout(transform.parameters)
    kind = type(transform), transform.settings
    return *layouts, *kind, problem.output_shape[2:], problem.spec


def _joined_warp(problems: Sequence[WarpProblem]) -> WarpProblem:
    parameters = torch.cat([problem.transform.parameters for problem in problems])
    return replace(
        problems[0],
        feature_map=torch.cat([problem.feature_map for problem in problems]),
        transform=problems[0].transform.with_parameters(parameters),
    )


def _warp_group(problems: list[WarpProblem]) -> list[Tensor]:
    if len(problems) == 1:
        return [sample(problems[0])]
    output = sample(_joined_warp(problems))
    return _split(output, problems)


def _warp_gradients_key(problem: WarpGradientsProblem) -> Hashable:
    key = _warp_key(problem.warp)
    return None if key is None else (key, tuple(problem.needs))


def _warp_gradients_group(problems: list[WarpGradientsProblem]) -> list[Gradients]:
    if len(problems) == 1:
        return [sample_adjoint(problems[0])]
    grad_output = torch.cat([problem.grad_output for problem in problems])
    warp = _joined_warp([problem.warp for problem in problems])
    gradients = sample_adjoint(WarpGradientsProblem(warp, grad_output, problems[0].needs))
    absent: list[Tensor | None] = [None] * len(problems)
    grad_feature_map, grad_transform = (
        absent if gradient is None else _split(gradient, problems)
        for gradient in (gradients.feature_map, gradients.transform)
    )
    return [Gradients(*pair) for pair in zip(grad_feature_map, grad_transform, strict=True)]


def _split(joined: Tensor, problems: Sequence[Problem]) -> list[Tensor]:
    """Returns the parts of a joined result that belong to each problem."""
    return list(torch.split(joined, [problem.batch_size for problem in problems]))


def _grid_key(problem: GridProblem) -> Hashable:
    transform = problem.transform
    kind = type(transform), transform.settings
    return (
        _layout(transform.parameters),
        *kind,
        problem.output_size,
        problem.coordinates,
        problem.align_corners,
    )


def _joined_grid(problems: Sequence[GridProblem]) -> GridProblem:
    parameters = torch.cat([problem.transform.parameters for problem in problems])
    return replace(problems[0], transform=problems[0].transform.with_parameters(parameters))


def _grid_group(problems: list[GridProblem]) -> list[Tensor]:
    if len(problems) == 1:
        return [generated_grid(problems[0])]
    grids = generated_grid(_joined_grid(problems))
    return _split(grids, problems)


def _grid_gradients_key(problem: GridGradientsProblem) -> Hashable:
    return _grid_key(problem.grid)


def _grid_gradients_group(problems: list[GridGradientsProblem]) -> list[Tensor]:
    if len(problems) == 1:
        return [generated_grid_adjoint(problems[0].grid, problems[0].grad_grid)]
    grad_grid = torch.cat([problem.grad_grid for problem in problems])
    gradients = generated_grid_adjoint(
        _joined_grid([problem.grid for problem in problems]), grad_grid
    )
    return _split(gradients, problems)
