"""Memory for results: the caller's, or new."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from stn_engine.call import Call, Layout
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
    memory_format,
)
from stn_engine.spec import Interpolation

R = TypeVar("R", Tensor, Gradients)


def outputs_of(problems: Sequence[WarpProblem], out: Sequence[Tensor] | None) -> list[Tensor]:
    """Memory for V of each problem, which a kernel fills."""
    return [_output_of(problem) for problem in problems] if out is None else list(out)


def gradients_of(
    problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None
) -> list[Gradients]:
    """Memory for the gradients that are needed; zeros where the kernels have nothing to add."""
    new = [_gradients_of(problem) for problem in problems] if out is None else list(out)
    for problem, gradients in zip(problems, new, strict=True):
        empty = 0 in problem.warp.output_shape
        flat = empty or problem.warp.spec.interpolation == Interpolation.NEAREST
        if empty and gradients.feature_map is not None:
            gradients.feature_map.zero_()
        if flat and gradients.transform is not None:
            gradients.transform.zero_()
    return new


def delivered(results: list[R], out: Sequence[R] | None) -> list[R]:
    """Results of those who cannot write where they are told to, copied there."""
    if out is None:
        return results
    for result, destination in zip(results, out, strict=True):
        for values, memory in zip(_parts(result), _parts(destination), strict=True):
            if memory is not None and values is not None:
                memory.copy_(values)
    return list(out)


def _parts(result: Tensor | Gradients) -> tuple[Tensor | None, ...]:
    return (result,) if isinstance(result, Tensor) else (result.feature_map, result.transform)


def _output_of(problem: WarpProblem) -> Tensor:
    return _memory(problem.feature_map, problem.output_shape)


def _gradients_of(problem: WarpGradientsProblem) -> Gradients:
    feature_map, parameters = problem.warp.feature_map, problem.warp.transform.parameters
    grad_feature_map = (
        _memory(feature_map, feature_map.shape) if "feature_map" in problem.needs else None
    )
    grad_transform = (
        parameters.new_empty(parameters.shape) if "transform" in problem.needs else None
    )
    return Gradients(grad_feature_map, grad_transform)


def _memory(feature_map: Tensor, shape: tuple[int, ...]) -> Tensor:
    """New memory for a map like ``feature_map``."""
    order = memory_format(feature_map)
    if order == torch.contiguous_format:
        return feature_map.new_empty(shape)
    return torch.empty(
        shape, dtype=feature_map.dtype, device=feature_map.device, memory_format=order
    )


def call_on(problem: Problem, device: torch.device) -> Call:
    """The call of a problem whose operands lie on a device, and results as ``results_of`` says."""
    likes = iter(results_of(problem))
    results = tuple(None if one is None else Layout.of(next(likes)) for one in problem.call.results)
    return replace(problem.call, device=device, results=results)


def results_of(problem: Problem) -> tuple[Tensor, ...]:
    """Meta tensors like the results of a problem: of gradients, those that are asked for.

    Maps are in the memory order of the feature map: channels last if its strides say so, even
    where sizes of 1 leave that open.
    """
    return problem.plans.kept(results_of, _likes, problem)


def sizes_of(problem: Problem) -> tuple[list[int], list[int]]:
    """Bytes of each operand, and of each result as ``results_of`` lists them."""
    return problem.plans.kept(sizes_of, _sizes, problem)


def _sizes(problem: Problem) -> tuple[list[int], list[int]]:
    operands, results = problem.operands, results_of(problem)
    return [like.nbytes for like in operands], [like.nbytes for like in results]


def parts_of(result: Tensor | Gradients) -> tuple[Tensor, ...]:
    """The tensors of a result, as ``results_of`` lists them."""
    if isinstance(result, Tensor):
        return (result,)
    return tuple(part for part in _parts(result) if part is not None)


def _likes(problem: Problem) -> tuple[Tensor, ...]:
    match problem:
        case WarpProblem():
            return (_map_like(problem.feature_map, problem.output_shape),)
        case WarpGradientsProblem():
            feature_map, parameters = problem.warp.operands
            likes = {
                "feature_map": _map_like(feature_map, feature_map.shape),
                "transform": _meta(parameters.shape, parameters.dtype),
            }
            return tuple(like for name, like in likes.items() if name in problem.needs)
        case GridProblem():
            return (_meta(problem.output_shape, problem.output_dtype),)
        case GridGradientsProblem():
            (parameters,) = problem.grid.operands
            return (_meta(parameters.shape, parameters.dtype),)


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _map_like(like: Tensor, shape: Sequence[int]) -> Tensor:
    channels = like.shape[1]
    if channels == 1 or (like.stride(1), like.stride(-1)) != (1, channels):
        return _meta(shape, like.dtype)
    n, _, *size = shape
    return _meta((n, *size, channels), like.dtype).movedim(-1, 1)
