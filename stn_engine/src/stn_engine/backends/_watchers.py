"""Whether anybody watches: those who see, wrap or replace every tensor that is made meanwhile.

A tensor made before a watcher came, or kept after it left, is none of its own.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, such as ``jvp`` or ``vmap``."""
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no public function tells


def has_tangents() -> bool:
    """Whether forward-mode differentiation is going on, so that tensors may have tangents."""
    return forward_ad._current_level >= 0  # noqa: SLF001 - torch asks this, too, but builds objects


def is_traced() -> bool:
    """Whether a dispatch mode is at work, such as that of a tracer."""
    return torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001 - no public function tells


def is_watched() -> bool:
    """Whether tensors made now are not what they seem, so that nobody may keep them."""
    return is_transformed() or is_traced()


def is_plain(tensor: Tensor) -> bool:
    """Whether ``tensor`` is of no class that sees what is done with it."""
    return type(tensor) is Tensor or type(tensor) is Parameter
