"""The engine on raw memory: bytes in, bytes out, for those who move bytes and touch no tensors.

A problem on meta tensors says what is computed, and how its operands lie in memory; it is made
once. Bytes then come and go with every call: in host memory (``compute``), or in blocks of memory
of any device (``compute_in``). Where a backend has kernels for the problem, no tensor is made.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from stn_engine import dispatch
from stn_engine.backends import cpu
from stn_engine.backends._results import parts_of, results_of
from stn_engine.backends.cuda import CudaBackend
from stn_engine.blocks import Arena, Block
from stn_engine.checks import NEEDS
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)

__all__ = [
    "Arena",
    "Block",
    "Bytes",
    "Job",
    "compute",
    "compute_in",
    "parts_of",
    "results_of",
    "sizes_of",
]

Bytes: TypeAlias = bytes | memoryview
Job: TypeAlias = tuple[Problem, Sequence[Bytes]]
"""What to compute, and on which bytes."""

_DISPATCH: dict[type[Problem], Callable[[Any], Sequence[Tensor | Gradients]]] = {
    WarpProblem: dispatch.warp,
    WarpGradientsProblem: dispatch.warp_gradients,
    GridProblem: dispatch.generate_grid,
    GridGradientsProblem: dispatch.generate_grid_gradients,
}


def compute(jobs: Sequence[Job], threads: int | None = None) -> Sequence[tuple[Bytes, ...]]:
    """Computes problems of one type on bytes, ragged like ``warp_ragged``.

    Args:
        jobs: Problems, each with the bytes of its operands, in the order of ``bound``. The
            problem's own operands tell shapes, dtypes and dense strides and are never read; meta
            tensors will do. Bytes are contiguous and in the order of memory.
        threads: The most to compute with; None means ``torch.get_num_threads()``.

    Returns:
        The bytes of the results of each problem, which ``results_of`` tells how to read.

    Raises:
        ValueError: Bytes are fewer or more than their operand has.
        BackendUnavailableError: ``STN_BACKEND`` names a backend that cannot run this.
    """
    forms = [_form_of(problem) for problem, _ in jobs]
    if None in forms:
        return _composed(jobs)
    items = [(form, *operands) for form, (_, operands) in zip(forms, jobs, strict=True)]
    return cpu.compute(items, torch.get_num_threads() if threads is None else threads)


def compute_in(problems: Sequence[Problem], operands: Block, results: Block) -> None:
    """Computes problems of one type in the memory of a device, in the order of its stream.

    Args:
        problems: As for ``compute``.
        operands: Those of every problem, one behind the other, in the order of ``bound``.
        results: Where those go that ``results_of`` lists.

    Raises:
        ValueError: A block holds tensors of other sizes.
        BackendUnavailableError: No backend can run one of the problems there.
    """
    sizes_bytes = [sizes_of(problem) for problem in problems]
    _require_sizes("operands", operands, [size for sizes, _ in sizes_bytes for size in sizes])
    _require_sizes("results", results, [size for _, sizes in sizes_bytes for size in sizes])
    device = operands.memory.device
    for backend in dispatch.candidates():
        if isinstance(backend, CudaBackend) and all(
            backend.takes_places(problem, device) for problem in problems
        ):
            backend.compute_in(problems, operands, results)
            return
    _compute_views(problems, operands, results)


def sizes_of(problem: Problem) -> tuple[list[int], list[int]]:
    """Bytes of each operand, and of each result."""
    return problem.plans.kept(sizes_of, _sizes, problem)


def _form_of(problem: Problem) -> Any:
    """What the ``cpu`` backend has worked out for a problem; None if it is not to run it so."""
    return problem.plans.kept(_form_of, _new_form, problem)


def _new_form(problem: Problem) -> Any:
    host = next((one for one in dispatch.candidates() if isinstance(one, cpu.CpuBackend)), None)
    return None if host is None else host.form(problem, results_of(problem))


def _sizes(problem: Problem) -> tuple[list[int], list[int]]:
    operands, results = problem.operands, results_of(problem)
    return [like.nbytes for like in operands], [like.nbytes for like in results]


def _require_sizes(what: str, block: Block, expected: Sequence[int]) -> None:
    actual = block.sizes_bytes.tolist()
    if actual != expected:
        raise ValueError(f"{what}: expected tensors of {expected} bytes, got {actual}.")


def _composed(jobs: Sequence[Job]) -> Sequence[tuple[Bytes, ...]]:
    """The same by way of tensors, for any backend of the host."""
    problems = [_bound(problem, operands) for problem, operands in jobs]
    found = _DISPATCH[type(problems[0])](problems) if problems else ()
    return [
        tuple(map(_bytes_of, parts_of(result), results_of(problem)))
        for result, problem in zip(found, problems, strict=True)
    ]


def _bound(problem: Any, operands: Sequence[Bytes]) -> Any:
    likes: Sequence[Tensor] = problem.operands
    pairs = zip(operands, likes, strict=True)
    return problem.bound(*(_tensor_over(operand, like) for operand, like in pairs))


def _compute_views(problems: Sequence[Any], operands: Block, results: Block) -> None:
    """The same by way of tensors, for any backend of the device."""
    there = iter(operands.tensors([like for problem in problems for like in problem.operands]))
    bound = [problem.bound(*(next(there) for _ in problem.operands)) for problem in problems]
    places = results.tensors([like for problem in problems for like in results_of(problem)])
    free = iter(places)
    if isinstance(problems[0], WarpProblem):
        dispatch.warp(bound, out=places)
    elif isinstance(problems[0], WarpGradientsProblem):
        dispatch.warp_gradients(bound, out=[_gradients(problem, free) for problem in bound])
    else:  # grids are composed by torch, which allocates for itself
        for place, grid in zip(places, _DISPATCH[type(problems[0])](bound), strict=True):
            place.copy_(parts_of(grid)[0])


def _gradients(problem: WarpGradientsProblem, free: Iterator[Tensor]) -> Gradients:
    """Places for the gradients that are asked for."""
    return Gradients(*(next(free) if name in problem.needs else None for name in NEEDS))


def _tensor_over(operand: Bytes, like: Tensor) -> Tensor:
    """A tensor over bytes, which it must not write to; over a copy, if they are not aligned.

    By DLPack, because that is the one road into torch that takes read-only memory without a
    warning.
    """
    numbers = np.frombuffer(operand, np.uint8)
    if numbers.size != like.nbytes:
        raise ValueError(f"operand: expected {like.nbytes} bytes, got {numbers.size}.")
    if numbers.ctypes.data % like.dtype.itemsize:
        numbers = numbers.copy()
    return from_dlpack(numbers).view(like.dtype).as_strided(like.shape, like.stride())


def _bytes_of(result: Tensor, like: Tensor) -> Bytes:
    """The bytes of a result, in the memory order of another tensor."""
    ordered = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    ordered.copy_(result)
    numbers: memoryview = ordered.as_strided((like.numel(),), (1,)).view(torch.uint8).numpy().data
    return numbers
