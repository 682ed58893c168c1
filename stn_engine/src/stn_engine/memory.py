"""Memory of tensors: whether they have it, how far it reaches, and whether it is dense."""

from typing import NoReturn

import torch
from torch import Tensor

from stn_engine.errors import InvalidInputError


def has_memory(tensor: Tensor) -> bool:
    """Returns whether a tensor has an address, and a storage that reaches to its end."""
    try:
        # Empty tensors have no address and need none; others without one are lost, or not real.
        if not tensor.data_ptr():
            return tensor.numel() == 0 and not tensor.is_meta
        size_bytes, first = tensor.untyped_storage().nbytes(), tensor.storage_offset()
    except (RuntimeError, NotImplementedError):  # sparse, mkldnn, and what only looks like a tensor
        return False
    # The common case first: no arithmetic on strides.
    if first == 0 and tensor.is_contiguous():
        return size_bytes >= tensor.nbytes
    return size_bytes >= _reach_bytes(tensor)


def _reach_bytes(tensor: Tensor) -> int:
    """Returns the bytes from the first of a tensor's storage to the tensor's last."""
    return int(tensor.storage_offset()) * tensor.element_size() + span_bytes(tensor)


def is_dense(tensor: Tensor) -> bool:
    """Returns whether a result can be written to a tensor: contiguous, or channels last."""
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    # Kernels write these two orders without gaps; torch calls both memory formats.
    return tensor.is_contiguous() or (
        order is not None and tensor.is_contiguous(memory_format=order)
    )


def span_bytes(tensor: Tensor) -> int:
    """Returns the bytes from the first of a tensor to its last."""
    if tensor.is_contiguous() or 0 in tensor.shape:
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)  # of torch, never negative
    last = sum((size - 1) * step for size, step in steps)
    return (last + 1) * tensor.element_size()


def refuse_lost(argument: str, tensor: Tensor) -> NoReturn:
    """Raises an error that says why a tensor cannot be read.

    Raises:
        InvalidInputError: Always.
    """
    expected = "a dense tensor whose values are in memory"
    if tensor.is_meta:
        got, remedy = "one on the meta device", "Make it on a device that has memory."
    elif tensor.layout != torch.strided:
        got, remedy = f"layout {tensor.layout}", "Convert it: Tensor.to_dense."
    elif tensor._is_zerotensor():  # noqa: SLF001 - no public function tells
        got, remedy = "a ZeroTensor", "Allocate it by torch.empty."
    elif _lacks_memory_only(tensor):
        got = f"a {type(tensor).__name__} without memory of its own, as fakes and wrappers are"
        remedy = "Pass a plain tensor."
    else:
        got = f"{_reach_bytes(tensor)} bytes in a storage of {tensor.untyped_storage().nbytes()}"
        remedy = "Its storage was freed or cut; keep it until all that reads it is done."
    raise InvalidInputError(argument, expected, got, remedy)


def _lacks_memory_only(tensor: Tensor) -> bool:
    """Returns whether a tensor without an address has a large enough storage, or none."""
    try:
        return tensor.untyped_storage().nbytes() >= _reach_bytes(tensor)
    except (RuntimeError, NotImplementedError):
        return True
