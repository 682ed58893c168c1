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
    """Returns whether a transform of torch.func is active, such as ``jvp`` or ``vmap``."""
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001 - no public function tells


def has_tangents() -> bool:
    """Returns whether forward-mode differentiation is on, so that tensors may have tangents."""
    return forward_ad._current_level >= 0  # noqa: SLF001 - torch asks this, too, but builds objects


def is_traced() -> bool:
    """Returns whether a dispatch mode is active, such as that of a tracer."""
    return torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001 - no public function tells


def is_scripted() -> bool:
    """Returns whether ``torch.jit.trace`` is recording."""
    return torch._C._get_tracing_state() is not None  # noqa: SLF001 - two calls in public


def unrecorded(function: Callable[..., R]) -> Callable[..., R]:
    """Hides ``function``, which only looks at sizes, from ``torch.jit.trace``.

    Sizes are numbers to it. To a tracer they are tensors, of which every comparison would warn.
    """

    @wraps(function)
    def run(*arguments: Any) -> R:
        state: Any = torch._C._get_tracing_state()  # noqa: SLF001 - no public function pauses it
        if state is None:
            return function(*arguments)
        # Restored in any case: a trace that lost its state would silently record nothing more.
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            return function(*arguments)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]  # noqa: SLF001

    return run


def is_intercepted() -> bool:
    """Returns whether a mode replaces new tensors, so that they must not be kept."""
    return is_transformed() or is_traced()


def is_plain_call() -> bool:
    """Returns whether no mode is on, so that tensors are real and sizes are numbers.

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
    """Returns whether the class of ``tensor`` overrides no operation."""
    return type(tensor) in PLAIN_TYPES
