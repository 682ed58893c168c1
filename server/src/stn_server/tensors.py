"""NumPy views of wire bytes to and from the engine's torch tensors, sharing memory."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

TORCH_DTYPES = {
    np.dtype("<f4"): torch.float32,
    np.dtype("<f8"): torch.float64,
    np.dtype("<f2"): torch.float16,
    _BFLOAT16: torch.bfloat16,
    np.dtype("u1"): torch.uint8,
}
"""The torch type of every NumPy type of the wire."""

NUMPY_DTYPES = {theirs: ours for ours, theirs in TORCH_DTYPES.items()}


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A tensor over the memory of an array. Must not be written to: it may be a received message.

    DLPack, because it is the one road into torch that takes read-only memory without a warning.
    """
    if array.dtype == _BFLOAT16:
        return from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return from_dlpack(array)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """An array over the memory of a tensor."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_BFLOAT16)
    array: NDArray[Any] = tensor.numpy()
    return array
