"""The way in for bytes: for those who move bytes and touch no tensors.

A problem on meta tensors says what is computed, and how its operands lie in memory; it is made
once. Bytes then come and go with every call. Where a backend has kernels for the problem that read
bytes, no tensor is made.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from stn_engine import dispatch
from stn_engine.backends._results import parts_of, results_of, sizes_of
from stn_engine.plan import Bytes
from stn_engine.problem import Problem

__all__ = ["Bytes", "Job", "compute", "parts_of", "results_of", "sizes_of"]

HOST = torch.device("cpu")

Job: TypeAlias = tuple[Problem, Sequence[Bytes]]
"""What to compute, and on which bytes."""


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
    if not jobs:
        return []
    planned = dispatch.planned([problem for problem, _ in jobs], HOST)
    if planned is None or not planned[0].reads_bytes:
        return _composed(jobs)
    backend, plans = planned
    threads = torch.get_num_threads() if threads is None else threads
    results: Sequence[tuple[Bytes, ...]]
    results = backend.run_on_bytes(plans, [operands for _, operands in jobs], threads)
    return results


def _composed(jobs: Sequence[Job]) -> Sequence[tuple[Bytes, ...]]:
    """Computes the same by way of tensors, for any backend of the host."""
    problems = [_bound(problem, operands) for problem, operands in jobs]
    found = dispatch.compute(problems)
    return [
        tuple(map(_bytes_of, parts_of(result), results_of(problem)))
        for result, problem in zip(found, problems, strict=True)
    ]


def _bound(problem: Any, operands: Sequence[Bytes]) -> Any:
    likes: Sequence[Tensor] = problem.operands
    pairs = zip(operands, likes, strict=True)
    return problem.bound(*(_tensor_over(operand, like) for operand, like in pairs))


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
