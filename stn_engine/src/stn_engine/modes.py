"""Which modes of torch are on: tracers, transforms and the like see, wrap or replace every tensor.

A tensor that was made before a mode was entered, or is kept after it was left, is none of its own.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

R = TypeVar("R")


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, such as ``jvp`` or ``vmap``."""
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no public function tells


def has_tangents() -> bool:
    """Whether forward-mode differentiation is going on, so that tensors may have tangents."""
    return forward_ad._current_level >= 0  # noqa: SLF001 - torch asks this, too, but builds objects


def is_traced() -> bool:
    """Whether a dispatch mode is at work, such as that of a tracer."""
    return torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001 - no public function tells


def is_scripted() -> bool:
    """Whether ``torch.jit.trace`` writes down what is done."""
    return torch._C._get_tracing_state() is not None  # noqa: SLF001 - two calls in public


def unrecorded(function: Callable[..., R]) -> Callable[..., R]:
    """``function`` as ``torch.jit.trace`` does not see it, for what only looks at sizes.

    Sizes are numbers to it. To a tracer they are tensors, of which every comparison would warn.
    """

    @wraps(function)
    def run(*arguments: Any) -> R:
        state: Any = torch._C._get_tracing_state()  # noqa: SLF001 - no public function pauses it
        if state is None:
            return function(*arguments)
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            return function(*arguments)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]  # noqa: SLF001

    return run


def is_intercepted() -> bool:
    """Whether tensors made now are not what they seem, so that nobody may keep them."""
    return is_transformed() or is_traced()


def is_plain_call() -> bool:
    """Whether no mode at all is on, so that tensors are what they seem and sizes are numbers.

    Not to be asked while ``torch.compiler.is_compiling()``.
    """
    return not (
        torch._C._get_tracing_state()  # noqa: SLF001 - as above
        or torch._C._len_torch_dispatch_stack()  # noqa: SLF001
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001
        or forward_ad._current_level >= 0  # noqa: SLF001
    )


PLAIN_TYPES = frozenset({Tensor, Parameter})
"""Classes of tensors that do not see what is done with them."""


def is_plain(tensor: Tensor) -> bool:
    """Whether ``tensor`` is of no class that sees what is done with it."""
    return type(tensor) in PLAIN_TYPES
