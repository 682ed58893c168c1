"""Adapter for bytes: for callers that move bytes and have no tensors.

A problem on meta tensors says what is computed, and what layouts its operands have; it is made
once. Bytes then come and go with every call. Where a backend has kernels for the problem that read
bytes, no tensor is made.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Job(NamedTuple):
    """What to compute, on which bytes, and where its results go."""

    problem: Problem
    operands: Sequence[Bytes]
    """The operands in the order of ``bound``; contiguous, and in the order of memory."""
    places: Sequence[memoryview | None] = ()
    """Writable memory for each result, as ``results_of`` lists them; None: new bytes, as for all
    of them if there are no places."""


def compute(jobs: Sequence[Job], threads: int | None = None) -> Sequence[tuple[Bytes, ...]]:
    """Computes problems of one type on bytes, ragged like ``warp_ragged``.

    Args:
        jobs: Problems, each with the bytes of its operands. The problem's own operands tell
            shapes, dtypes and dense strides and are never read; meta tensors will do.
        threads: The most to compute with; None means ``torch.get_num_threads()``.

    Returns:
        The bytes of the results of each problem, which ``results_of`` tells how to read; where
        there is a place for a result, that place.

    Raises:
        ValueError: Bytes are fewer or more than their operand, or their result, has.
        BackendUnavailableError: ``STN_BACKEND`` names a backend that cannot run this.
    """
    if not jobs:
        return []
    planned = dispatch.planned([job.problem for job in jobs], HOST)
    if planned is None or not planned[0].reads_bytes:
        return _composed(jobs)
    backend, plans = planned
    threads = torch.get_num_threads() if threads is None else threads
    where: list[Sequence[Any]] = []
    placed: dict[int, tuple[memoryview, ...]] = {}
    for number, job in enumerate(jobs):
        if job.places:
            # The backend writes there, if it is told addresses behind the operands; else it makes
            # new bytes.
            places = placed[number] = _memory_for(job)
            where.append([*job.operands, *map(_address_of, places)])
        else:
            where.append(job.operands)
    results: Sequence[tuple[Bytes, ...]] = backend.run_on_bytes(plans, where, threads)
    if placed:
        return [placed.get(number, new) for number, new in enumerate(results)]
    return results


def _memory_for(job: Job) -> tuple[memoryview, ...]:
    """Returns memory for all results of a job; allocates what its caller did not provide."""
    sizes_bytes = sizes_of(job.problem)[1]
    for place, size_bytes in zip(job.places, sizes_bytes, strict=True):
        if place is not None and (place.readonly or place.nbytes != size_bytes):
            got = f"{place.nbytes}{' that are read-only' if place.readonly else ''}"
            raise ValueError(f"place: expected {size_bytes} writable bytes, got {got}.")
    return tuple(
        memoryview(bytearray(size_bytes)) if place is None else place
        for place, size_bytes in zip(job.places, sizes_bytes, strict=True)
    )


def _address_of(place: memoryview) -> int:
    # Empty memory has no first byte that ctypes could take the address of.
    return ctypes.addressof(ctypes.c_char.from_buffer(place)) if place.nbytes else 0


def _composed(jobs: Sequence[Job]) -> Sequence[tuple[Bytes, ...]]:
    """Computes a job through tensors, for any backend of the host."""
    memory = [_memory_for(job) if job.places else None for job in jobs]
    problems = [_bound(job.problem, job.operands) for job in jobs]
    found = dispatch.compute(problems)
    results = []
    for result, problem, places in zip(found, problems, memory, strict=True):
        new = tuple(map(_bytes_of, parts_of(result), results_of(problem)))
        for place, value in zip(places or (), new, strict=places is not None):
            place[:] = value
        results.append(new if places is None else places)
    return results


def _bound(problem: Any, operands: Sequence[Bytes]) -> Any:
    likes: Sequence[Tensor] = problem.operands
    pairs = zip(operands, likes, strict=True)
    return problem.bound(*(_tensor_over(operand, like) for operand, like in pairs))


def _tensor_over(operand: Bytes, like: Tensor) -> Tensor:
    """Returns a read-only tensor over bytes, or over a copy of them if they are not aligned.

    By DLPack, because torch takes read-only memory by nothing else without a warning.
    """
    numbers = np.frombuffer(operand, np.uint8)
    if numbers.size != like.nbytes:
        raise ValueError(f"operand: expected {like.nbytes} bytes, got {numbers.size}.")
    if numbers.ctypes.data % like.dtype.itemsize:
        numbers = numbers.copy()
    return from_dlpack(numbers).view(like.dtype).as_strided(like.shape, like.stride())


def _bytes_of(result: Tensor, like: Tensor) -> Bytes:
    """Returns the bytes of a result, in the memory order of another tensor."""
    ordered = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    ordered.copy_(result)
    numbers: memoryview = ordered.as_strided((like.numel(),), (1,)).view(torch.uint8).numpy().data
    return numbers
