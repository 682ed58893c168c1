"""Small tensors that depend on sizes and specs only, made once."""

from functools import lru_cache

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


@lru_cache(maxsize=4096)
def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` as a tensor that every later call shares; never write to it."""
    # A tensor born in inference mode could not be saved for a backward pass later on.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)
