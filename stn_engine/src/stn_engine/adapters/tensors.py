"""Adapter for tensors: checks whether the values of a tensor are the bytes at its address.

They need not be. A lazily negated tensor is in memory with the other sign, a ZeroTensor, a meta
or a sparse tensor has no memory of this shape, and whoever shards models frees storages that
tensors still point into. Kernels see addresses only, so this is asked right before they run:
tensors change between the making of a problem and its backward pass.
"""

from collections.abc import Iterable, Sequence
from operator import is_, itemgetter, le
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, UntypedStorage
from torch._C._dynamo.guards import TensorGuards
from torch._subclasses.fake_tensor import FakeTensor

from stn_engine.call import Call
from stn_engine.checks import (
    check_device,
    check_dtype,
    check_shape,
    check_tensor,
    parts_in_memory,
)
from stn_engine.errors import InvalidInputError
from stn_engine.memory import has_memory, is_dense, refuse_lost, span_bytes
from stn_engine.problem import Gradients, Objective, Problem

P = TypeVar("P", bound=Problem)


def readable(problem: P) -> P:
    """Returns a problem like ``problem`` whose operands have their values at their addresses.

    Raises:
        InvalidInputError: An operand has no values in memory.
    """
    operands = problem.operands
    for operand in operands:  # a loop: this is asked before every call
        if operand.is_neg() or not has_memory(operand):
            bound: Any = problem.bound
            resolved: P = bound(*map(_resolved, problem.names, operands))
            return resolved
    return problem


def located(problem: Problem) -> tuple[Call, Sequence[Tensor], list[int]]:
    """Returns the call of a problem with the present layouts, its operands and their addresses.

    The operands may be copies: hold them as long as the addresses are in use.

    Raises:
        InvalidInputError: An operand has no values in memory, or is no longer one of this problem.
    """
    operands, addresses = problem.operands, []
    try:
        call = problem.call
        for operand, expected in zip(operands, call.expectations, strict=True):
            dtype, shape, strides, itemsize, span_bytes, device = expected
            address = operand.data_ptr()
            if not (
                address
                and operand.stride() == strides
                and operand.shape == shape
                and operand.dtype is dtype
                and operand.device == device
                and operand.storage_offset() * itemsize + span_bytes
                <= operand.untyped_storage().nbytes()
                and not operand.is_neg()
            ):
                return _moved(problem)
            addresses.append(address)
    except RuntimeError:  # sparse and the like: they have no strides, or no address
        return _moved(problem)
    return call, operands, addresses


class KnownLayouts:
    """Layouts of several tensors, which are compared with those of others all at once.

    Args:
        tensors: Tensors that ``located`` has found to have their values at their addresses.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Problems may share a tensor, and guards hold for no two that are the same one. All are
        # never one: then guards refuse them, and they are looked at one by one.
        firsts: dict[int, int] = {}
        for place, one in enumerate(tensors):
            firsts.setdefault(id(one), place)
        self._are_shared = 1 < len(firsts) < len(tensors)
        if self._are_shared:
            order = {number: place for place, number in enumerate(firsts)}
            self._distinct: Any = itemgetter(*firsts.values())
            self._of_each: Any = itemgetter(*(order[id(one)] for one in tensors))
            tensors = self._distinct(tensors)
        # What torch.compile asks before it runs code again; a comparison in Python of each
        # property of each tensor takes longer than all else that is done for small maps.
        sizes: Any = [list(one.shape) for one in tensors]
        strides: Any = [list(one.stride()) for one in tensors]
        self._guards = TensorGuards(
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        )
        self._item_bytes = [one.element_size() for one in tensors]
        self._span_bytes = [span_bytes(one) for one in tensors]

    def addresses(self, tensors: Sequence[Tensor]) -> list[int] | None:
        """Returns the addresses of other tensors in order; None if their layouts are different.

        They are then of the same class, dtype, shape, strides and device, are no negations and no
        wrappers, have their values in memory, and are the same tensor where the first ones were.
        """
        if not self._are_shared:
            return self._addresses(tensors)
        distinct = self._distinct(tensors)
        if not all(map(is_, self._of_each(distinct), tensors)):
            return None
        found = self._addresses(distinct)
        return None if found is None else list(self._of_each(found))

    def _addresses(self, distinct: Sequence[Tensor]) -> list[int] | None:
        if not self._guards.check(*distinct):
            return None
        # Guards do not look at storages: one may have been
        # freed or cut since, so its size is asked.
        ends: Iterable[int] = self._span_bytes
        offsets: Any = list(map(Tensor.storage_offset, distinct))
        if any(offsets):
            pairs = zip(offsets, self._item_bytes, self._span_bytes, strict=True)
            ends = [offset * item + span for offset, item, span in pairs]
        sizes = map(UntypedStorage.nbytes, map(Tensor.untyped_storage, distinct))
        addresses = list(map(Tensor.data_ptr, distinct))
        return addresses if all(addresses) and all(map(le, ends, sizes)) else None


def _moved(problem: Problem) -> tuple[Call, Sequence[Tensor], list[int]]:
    """Returns what ``located`` returns, for a problem whose operands have new layouts."""
    anew: Any = problem
    # Operands that were resized in place may no longer be valid ones: check before they are read.
    anew.recheck()
    there = readable(anew.bound(*problem.operands))
    return there.call, there.operands, [operand.data_ptr() for operand in there.operands]


def check_operands(problem: Problem) -> None:
    """Checks that operands and tangents can be read; torch resolves negative bits by itself.

    Raises:
        InvalidInputError: An operand has no values in memory.
    """
    for name, operand in zip(problem.names, problem.operands, strict=True):
        # Wrappers of torch.func have no memory of their own; what they wrap has.
        for part, tensor in parts_in_memory(name, operand):
            _resolved(part, tensor)


def check_out(argument: str, value: object, shape: Sequence[int], like: Tensor) -> None:
    """Checks that ``value`` can hold a result of this shape, with dtype and device of ``like``."""
    check_tensor(argument, value)
    memory = cast("Tensor", value)
    if memory.shape != shape:  # so as not to be slow where it is right
        check_shape(argument, memory, [tuple(shape)], "Allocate it for exactly this result.")
    check_dtype(argument, memory, (like.dtype,))
    check_device("feature_map", like, argument, memory)
    if isinstance(memory, FakeTensor) or not has_memory(memory):  # torch warns who asks a fake
        refuse_lost(argument, memory)
    if not is_dense(memory):
        got = f"strides {tuple(memory.stride())}"
        raise InvalidInputError(argument, "dense memory", got, "Allocate it by torch.empty.")


def check_apart(out: Sequence[tuple[str, Tensor]], operands: Iterable[Tensor]) -> None:
    """Checks that no memory for a result overlaps another result or an operand of any problem.

    Problems that are computed together are read and written in no order.
    """
    # One sweep over sorted ranges: comparing each with each would be quadratic in a large batch.
    results = {name: _addresses(memory) for name, memory in out}
    ranges = [(*ends, name) for name, ends in results.items()]
    ranges += [(*_addresses(operand), "") for operand in operands if has_memory(operand)]
    last: dict[bool, tuple[int, str]] = {True: (0, ""), False: (0, "")}  # of results, of operands
    for first, end, name in sorted(ranges):
        for is_result, (until, other) in last.items():
            # Two operands may overlap, as both are only read; an empty range overlaps nothing.
            if first < min(end, until) and (name or is_result):
                held_by = other if name and other else "an operand"
                got = f"memory that {held_by} lies in, too"
                remedy = "Allocate it by torch.empty."
                raise InvalidInputError(name or other, "memory of its own", got, remedy)
        last[bool(name)] = max(last[bool(name)], (end, name))


def is_negated(out: Tensor | Gradients | Objective) -> bool:
    """Returns whether the memory of a tensor holds its values with the other sign."""
    if isinstance(out, Tensor):
        return out.is_neg()
    return any(part is not None and part.is_neg() for part in vars(out).values())


def _resolved(argument: str, tensor: Tensor) -> Tensor:
    """Returns ``tensor``, or a copy of it whose memory holds its values."""
    if tensor._is_zerotensor():  # noqa: SLF001 - no public function tells
        return torch.zeros_like(tensor)
    if not has_memory(tensor):
        refuse_lost(argument, tensor)
    # A copy only if the negative bit is set: kernels read the bytes as they are stored.
    return tensor.resolve_neg()


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """Returns the addresses of the first byte of a tensor and of the one behind its last."""
    first = tensor.data_ptr()
    return first, first + span_bytes(tensor)
