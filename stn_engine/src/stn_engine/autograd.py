"""Differentiation rules. Decides what is recorded; computes nothing itself.

A recorded operation saves its operands and nothing else. Its backward is one fused
vector-Jacobian product. When that backward is itself recorded (``create_graph=True``), it runs
as a composition of torch operators, and torch differentiates the composition.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stn_engine import dispatch
from stn_engine.backends.base import Backend
from stn_engine.backends.torch import TorchBackend
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    WarpGradientsProblem,
    WarpProblem,
)

COMPOSITION: Sequence[Backend] = (TorchBackend(),)
"""The backend whose results are graphs of differentiable operators."""


def warp(problem: WarpProblem) -> Tensor:
    """V, differentiable in the feature map and the transform's parameters."""
    operands = problem.feature_map, problem.transform.parameters
    if _is_recorded(*operands):
        output: Tensor = _Warp.apply(*operands, problem)  # type: ignore[no-untyped-call]  # torch
        return output
    return dispatch.warp([problem])[0]


def warp_gradients(problem: WarpGradientsProblem) -> Gradients:
    """The gradients of one warp, differentiable in all three operands."""
    warped = problem.warp
    operands = problem.grad_output, warped.feature_map, warped.transform.parameters
    backends = COMPOSITION if _is_recorded(*operands) else dispatch.BACKENDS
    return dispatch.warp_gradients([problem], backends)[0]


def generate_grid(problem: GridProblem) -> Tensor:
    """The sampling grid, differentiable in the transform's parameters."""
    parameters = problem.transform.parameters
    if _is_recorded(parameters):
        grid: Tensor = _GenerateGrid.apply(parameters, problem)  # type: ignore[no-untyped-call]  # torch
        return grid
    return dispatch.generate_grid([problem])[0]


def generate_grid_gradients(problem: GridGradientsProblem) -> Tensor:
    """The gradient of the parameters, differentiable in them and in the grid's gradient."""
    recorded = _is_recorded(problem.grad_grid, problem.grid.transform.parameters)
    backends = COMPOSITION if recorded else dispatch.BACKENDS
    return dispatch.generate_grid_gradients([problem], backends)[0]


def _is_recorded(*operands: Tensor) -> bool:
    return torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature_map: Tensor, parameters: Tensor, problem: WarpProblem) -> Tensor:
        ctx.save_for_backward(feature_map, parameters)
        ctx.problem = problem
        return dispatch.warp([problem])[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feature_map, parameters = ctx.saved_tensors
        names = ("feature_map", "transform")
        needs = [name for name, need in zip(names, ctx.needs_input_grad, strict=False) if need]
        transform = ctx.problem.transform.with_parameters(parameters)
        problem = replace(ctx.problem, feature_map=feature_map, transform=transform)
        gradients = warp_gradients(WarpGradientsProblem(problem, grad_outputs[0], needs))
        return gradients.feature_map, gradients.transform, None


class _GenerateGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters: Tensor, problem: GridProblem) -> Tensor:
        ctx.save_for_backward(parameters)
        ctx.problem = problem
        return dispatch.generate_grid([problem])[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (parameters,) = ctx.saved_tensors
        transform = ctx.problem.transform.with_parameters(parameters)
        problem = replace(ctx.problem, transform=transform)
        return generate_grid_gradients(GridGradientsProblem(problem, grad_outputs[0])), None
