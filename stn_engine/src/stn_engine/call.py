"""What to compute, on layouts: a call without data.

A call says which operation it is, on tensors of which layouts, and the layouts of its results. Two
problems of the same layouts have the very same call, so that whatever a backend has worked out
for a call is found again by all of them.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

import torch
from torch import Tensor

from stn_engine.checks import NEEDS, OBJECTIVE_NEEDS
from stn_engine.spec import Comparison, WarpSpec

T = TypeVar("T")


class Operation(StrEnum):
    """The operation that a call computes."""

    WARP = "warp"
    """A feature map read at the points of a transform."""
    GENERATE_GRID = "generate_grid"
    """The points of a transform themselves."""
    OBJECTIVE = "objective"
    """The distance of a warped map from a fixed one, with its gradient."""


class Direction(StrEnum):
    """The direction of a call: forward, or its gradients."""

    FORWARD = "forward"
    """The result of the operation."""
    GRADIENTS = "gradients"
    """The gradients of its operands by that of its result, which is the first operand here."""


class Layout(NamedTuple):
    """Dtype, shape and strides of a tensor, without its memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """The strides, in elements."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Returns the layout of a tensor."""
        return cls(tensor.dtype, tensor.shape, tensor.stride())

    @property
    def size_bytes(self) -> int:
        """The size of all elements in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span_bytes(self) -> int:
        """The bytes from the first element to the last; strides are not negative, as in torch."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize


class Plans(dict[Hashable, Any]):
    """Results that backends have worked out for a call or a problem; a copy begins empty."""

    def kept(self, key: Hashable, work_out: Callable[..., T], *arguments: Any) -> T:
        """Returns what ``work_out`` returned when ``key`` was first asked for."""
        try:
            found: T = self[key]
        except KeyError:
            found = self[key] = work_out(*arguments)
        return found

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


def contiguous(dtype: torch.dtype, shape: Sequence[int]) -> Layout:
    """Returns the layout of new memory in row-major order."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return Layout(dtype, tuple(shape), tuple(reversed(strides)))


def map_like(feature_map: Tensor, shape: Sequence[int]) -> Layout:
    """Returns the layout of a new map: channels last if ``feature_map`` is, else contiguous."""
    if not feature_map.is_contiguous():
        # A map that is both, as with one channel, counts as contiguous.
        last = torch.channels_last if feature_map.dim() == 4 else torch.channels_last_3d
        if feature_map.is_contiguous(memory_format=last):
            # torch decides the strides of axes of size 0 and 1, so torch is asked for them.
            strides = torch.empty(shape, device="meta", memory_format=last).stride()
            return Layout(feature_map.dtype, tuple(shape), strides)
    return contiguous(feature_map.dtype, shape)


Expectation: TypeAlias = tuple[
    torch.dtype, tuple[int, ...], tuple[int, ...], int, int, torch.device
]
"""Of an operand: dtype, shape, strides, bytes of an element, bytes from the first to the last, and
device. A plain tuple, because it is taken apart before every run."""


@dataclass(frozen=True, eq=False)
class Call:
    """An operation on tensors of given layouts, whatever their values and addresses.

    Calls are compared by identity: ``problem.call`` is the same object if all layouts are equal.

    Attributes:
        operation: What is computed.
        direction: Which way.
        transform: The kind of transform.
        settings: What the transform has besides its parameters; see ``Transform.settings``.
        spec: How the feature map is read; of grids only the unit counts.
        operands: Feature map and parameters, or parameters alone of grids; in front of them, of
            gradients, the gradient of the result; behind them, of objectives, the fixed map and
            the weights, if there are any.
        results: Of a forward call the result; of gradients those of feature map and parameters,
            or of parameters alone of grids; of objectives the fields of ``Objective``. None for
            what is not needed.
        output_shape: Of the result of the operation, forward or not; of objectives that of the
            warped map.
        device: Where all tensors are.
        comparison: How objectives compare maps; None for all else.
        plans: What backends have worked out for it, each under itself.
    """

    operation: Operation
    direction: Direction
    transform: type[Any]
    settings: Hashable
    spec: WarpSpec
    operands: tuple[Layout, ...]
    results: tuple[Layout | None, ...]
    output_shape: tuple[int, ...]
    device: torch.device
    comparison: Comparison | None = None
    plans: Plans = field(default_factory=Plans, init=False, repr=False)

    @cached_property
    def looks_channels_last(self) -> bool:
        """True if the first map has sizes as of (N, H, W, C).

        Such are more than 4 channels and rows, but at most 4 columns.
        """
        _, channels, *size = self.operands[0].shape
        return min(channels, *size[:-1]) > 4 >= size[-1]

    @cached_property
    def needed(self) -> tuple[Layout, ...]:
        """The layouts of the results that are needed, in order."""
        return tuple(result for result in self.results if result is not None)

    @cached_property
    def expectations(self) -> tuple[Expectation, ...]:
        """Conditions on operands under which their addresses suffice."""
        return tuple(
            (*layout, layout.dtype.itemsize, layout.span_bytes, self.device)
            for layout in self.operands
        )

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """Names of the optional results of a warp's gradients or an objective, in order."""
        names = OBJECTIVE_NEEDS if self.operation == Operation.OBJECTIVE else NEEDS
        pairs = zip(names, self.results[-len(names) :], strict=True)
        return tuple(name for name, result in pairs if result is not None)

    def into(self, results: Sequence[Layout | None]) -> "Call":
        """Returns the same call, whose results are written to given memory."""
        results = tuple(results)
        if results == self.results:
            return self
        if len(self.plans) > MAX_VARIANTS:
            self.plans.clear()
        return self.plans.kept(results, lambda: replace(self, results=results))


MAX_VARIANTS = 16
"""Variants of a call by the layouts of results; memory for results is dense, so that there are
few."""
