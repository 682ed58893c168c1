"""What to compute, on layouts: a call without data.

A call says which operation it is, on tensors of which layouts, and where its results will lie. Two
problems whose tensors lie alike have the very same call, so that whatever a backend has worked out
for a call is found again by all of them.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from stn_engine.spec import WarpSpec


class Operation(StrEnum):
    """What is computed."""

    WARP = "warp"
    """A feature map read at the points of a transform."""
    GENERATE_GRID = "generate_grid"
    """The points of a transform themselves."""


class Direction(StrEnum):
    """Which way it is computed."""

    FORWARD = "forward"
    """The result of the operation."""
    GRADIENTS = "gradients"
    """The gradients of its operands by that of its result, which is the first operand here."""


class Layout(NamedTuple):
    """What a tensor is but for its memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """The layout of a tensor."""
        return cls(tensor.dtype, tensor.shape, tensor.stride())

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Call:
    """One operation on tensors of given layouts, whatever their values and addresses.

    Calls are compared by identity: ``problem.call`` is the same object for problems that lie alike.

    Attributes:
        operation: What is computed.
        direction: Which way.
        transform: The kind of transform.
        settings: What the transform has besides its parameters; see ``Transform.settings``.
        spec: How the feature map is read; of grids only the unit counts.
        operands: Feature map and parameters, or parameters alone of grids; in front of them, of
            gradients, the gradient of the result.
        results: Of a forward call the result; of gradients those of feature map and parameters,
            or of parameters alone of grids. None for gradients that are not needed.
        device: Where all of them are.
        plans: What backends have worked out for it, each under itself.
    """

    operation: Operation
    direction: Direction
    transform: type[Any]
    settings: Hashable
    spec: WarpSpec
    operands: tuple[Layout, ...]
    results: tuple[Layout | None, ...]
    device: torch.device
    plans: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def needed(self) -> Sequence[Layout]:
        """The layouts of the results that are needed, in order."""
        return [result for result in self.results if result is not None]
