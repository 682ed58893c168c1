"""Results: what they are like, and how they come to where a caller wants them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from stn_engine.call import Call, Layout, Operation
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

R = TypeVar("R", Tensor, Gradients, Objective)
Result: TypeAlias = Tensor | Gradients | Objective


def delivered(results: list[R], out: Sequence[R] | None) -> list[R]:
    """Returns results in ``out``, copied from backends that cannot write there themselves."""
    if out is None:
        return results
    for result, destination in zip(results, out, strict=True):
        for values, memory in zip(_parts(result), _parts(destination), strict=True):
            if memory is not None and values is not None:
                memory.copy_(values)
    return list(out)


def _parts(result: Result) -> tuple[Tensor | None, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(vars(result).values())


def assembled(call: Call, parts: Sequence[Tensor | None]) -> Any:
    """Returns the result of a call made of these tensors, in its order; None for unneeded ones."""
    if call.operation is Operation.OBJECTIVE:
        return Objective(*parts)  # type: ignore[arg-type]  # value and count are always needed
    return parts[0] if len(parts) == 1 else Gradients(*parts)


def call_on(problem: Problem, device: torch.device) -> Call:
    """Returns the call of a problem on a device, with results as ``results_of`` lists them."""
    likes = iter(results_of(problem))
    results = tuple(None if one is None else Layout.of(next(likes)) for one in problem.call.results)
    return replace(problem.call, device=device, results=results)


def results_of(problem: Problem) -> tuple[Tensor, ...]:
    """Returns meta tensors like the results of a problem: of gradients, those that are asked for.

    Maps are in the memory order of the feature map: channels last if its strides say so, even
    where sizes of 1 leave that open.
    """
    return problem.plans.kept(results_of, _likes, problem)


def sizes_of(problem: Problem) -> tuple[list[int], list[int]]:
    """Returns the bytes of each operand, and of each result as ``results_of`` lists them."""
    return problem.plans.kept(sizes_of, _sizes, problem)


def _sizes(problem: Problem) -> tuple[list[int], list[int]]:
    operands, results = problem.operands, results_of(problem)
    return [like.nbytes for like in operands], [like.nbytes for like in results]


def parts_of(result: Result) -> tuple[Tensor, ...]:
    """Returns the tensors of a result, as ``results_of`` lists them."""
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
        case ObjectiveProblem():
            return tuple(_meta(one.shape, one.dtype) for one in problem.call.needed)


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _map_like(like: Tensor, shape: Sequence[int]) -> Tensor:
    channels = like.shape[1]
    if channels == 1 or (like.stride(1), like.stride(-1)) != (1, channels):
        return _meta(shape, like.dtype)
    n, _, *size = shape
    return _meta((n, *size, channels), like.dtype).movedim(-1, 1)
