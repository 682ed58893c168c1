"""Small tensors that depend on sizes and specs only, made once."""

from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from stn_engine.modes import is_intercepted

Numbers: TypeAlias = "tuple[float | Numbers, ...]"


def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns ``values`` as a tensor that later calls share; never write to it."""
    if is_intercepted():
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, dtype, device)


@lru_cache(maxsize=4096)
def _kept(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor born in inference mode could not be saved for a backward pass later on.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)
