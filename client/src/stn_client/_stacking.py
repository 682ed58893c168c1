"""Calls that are alike, as one call with the maps of all: a stack.

What a server computes of a map is the same bits whatever else is in its call, so the results of a
stack are those of its calls, for a fraction of what messages cost. Values may make a difference to
what a server refuses; then each goes alone, and has its own result or error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stn_client._arenas import ALIGNMENT_BYTES
from stn_client._arrays import Array
from stn_client._envelopes import Envelope, Payloads, Result, tensors_of
from stn_client._errors import (
    AccessDeniedError,
    DeadlineExceededError,
    OverloadedError,
    StnClientError,
    UnavailableError,
)
from stn_client._prepared_call import Call, Gradients

MAX_STACK_BYTES = 4 << 20
"""The most bytes of operands, or of results, of one stack: beyond it there is little left to save,
and one kept result keeps the memory of all."""

_OF_ALL = AccessDeniedError, DeadlineExceededError, OverloadedError, UnavailableError
"""Errors that say nothing about a single call."""


def most_in_stack(call: Call[Any]) -> int:
    """Returns how many calls like this one may be stacked; 1 if it has to be sent alone.

    So has one whose tensors stay on the server, of which there is nothing to send.
    """
    if call.residents:
        return 1
    envelope = call.envelope
    if envelope.most_in_stack is None:
        shapes = [tuple(tensor.shape) for tensor in tensors_of(envelope.message)]
        shapes += [result.shape for result in envelope.results]
        # An operand of N = 1 that serves a batch would be shared with the items of other calls.
        batches = {shape[0] if shape else 0 for shape in shapes}
        largest = max(envelope.all_operands_bytes, envelope.all_results_bytes, 1)
        has_batch = len(batches) == 1 and 0 not in batches and bool(envelope.results)
        envelope.most_in_stack = max(1, MAX_STACK_BYTES // largest) if has_batch else 1
    return envelope.most_in_stack


def are_alike(one: Call[Any], other: Call[Any]) -> bool:
    """Returns whether calls differ in the values of their tensors alone."""
    same = one.envelope is other.envelope and one.settings is other.settings
    return same and not other.residents


def stack_shape(calls: Sequence[Call[Any]]) -> tuple[int]:
    """Returns the bytes of a stack's operands, each aligned, as a shape."""
    return (sum(_aligned(len(calls) * one) for one in calls[0].envelope.operands_bytes),)


def stacked(calls: Sequence[Call[Any]], memory: Array) -> Call[Any]:
    """Makes one call in the place of several similar ones.

    Args:
        calls: At least two, at most as many as `most_in_stack` says.
        memory: `stack_shape`, uint8; the operands are put there.
    """
    count, first = len(calls), calls[0].envelope
    envelope = first.stacks.get(count)
    if envelope is None:
        envelope = first.stacks[count] = _envelope(first, count)
    payloads: Payloads = []
    start = 0
    for number, size_bytes in enumerate(envelope.operands_bytes):
        joined = memory[start : start + size_bytes]
        pieces = [np.frombuffer(call.payloads[number], np.uint8) for call in calls]
        payloads.append(np.concatenate(pieces, out=joined).data)
        start += _aligned(size_bytes)
    call = Call(envelope, payloads, calls[0].settings)
    call.count = count
    return call


def unstacked(result: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    """Returns the result of each call of a stack, as views of the common result."""
    if isinstance(result, Gradients):
        maps, transforms = _pieces(result.feature_map, calls), _pieces(result.transform, calls)
        results: list[Any] = [Gradients(*one) for one in zip(maps, transforms, strict=True)]
    else:
        results = _pieces(result, calls)
    return [
        one if call.finish is None else call.finish(one)
        for call, one in zip(calls, results, strict=True)
    ]


def is_of_all(error: StnClientError) -> bool:
    """Returns whether an error of a stack holds for each of its calls."""
    return isinstance(error, _OF_ALL)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _envelope(first: Envelope[Any], count: int) -> Envelope[Any]:
    message: Any = type(first.message)()
    message.CopyFrom(first.message)
    # Only the batch axis grows, so that the bytes of operands need no new order: they are joined.
    for tensor in tensors_of(message):
        tensor.shape[0] *= count
    operands_bytes = tuple(count * size_bytes for size_bytes in first.operands_bytes)
    results = [Result((count * one.shape[0], *one.shape[1:]), one.dtype) for one in first.results]
    return Envelope(first.method, message, operands_bytes, tuple(results), first.replies)


def _pieces(array: Array | None, calls: Sequence[Call[Any]]) -> list[Any]:
    if array is None:
        return [None] * len(calls)
    size = len(array) // len(calls)
    return [array[start : start + size] for start in range(0, len(array), size)]
