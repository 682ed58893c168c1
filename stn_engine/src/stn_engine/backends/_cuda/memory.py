"""Memory of all items of a batch: scratch of kernels, and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stn_engine.backends._cuda.rows import Row

Words: TypeAlias = npt.NDArray[np.int64]


def at(values: Any, places: Sequence[int]) -> Any:
    """Those of an array or a sequence that stand at some places, which are in order."""
    if len(values) == len(places):
        return values
    if isinstance(values, np.ndarray):
        return values[places]
    return [values[place] for place in places]


class Results(Protocol):
    """Memory for a result of every item."""

    @property
    def addresses(self) -> Words | Sequence[int]:
        """Where each begins."""

    def tensors(self) -> Sequence[Tensor | None]:
        """All results."""

    def zero(self) -> None:
        """Write 0 into all of them."""


class Provided(Results, Protocol):
    """Memory that the caller of an operation provides, for all problems of the call."""

    def of(self, places: Sequence[int]) -> Results:
        """That of some of the problems, which all need the result."""


class Given:
    """One tensor for each item.

    Args:
        tensors: None for those that do not need the result.
        addresses: Theirs.
    """

    def __init__(self, tensors: Sequence[Tensor | None], addresses: Sequence[int]) -> None:
        self._tensors, self.addresses = tensors, addresses

    def of(self, places: Sequence[int]) -> Given:
        """See ``Provided``."""
        return Given(at(self._tensors, places), at(self.addresses, places))

    def tensors(self) -> Sequence[Tensor | None]:
        """Those that were given."""
        return self._tensors

    def zero(self) -> None:
        """One after the other."""
        for tensor in self._tensors:
            if tensor is not None:
                tensor.zero_()


class Placed:
    """A piece of memory in which results lie side by side, but nothing of them as a tensor.

    Args:
        memory: The piece, of bytes.
        starts: Where each begins.
        sizes_bytes: Of each.
    """

    def __init__(self, memory: Tensor, starts: Words, sizes_bytes: Words) -> None:
        self._memory, self._starts, self._sizes_bytes = memory, starts, sizes_bytes
        self.addresses = starts + memory.data_ptr()

    def of(self, places: Sequence[int]) -> Placed:
        """See ``Provided``."""
        return Placed(self._memory, at(self._starts, places), at(self._sizes_bytes, places))

    def tensors(self) -> Sequence[Tensor | None]:
        """None for each: whoever provides the memory knows what is in it."""
        return [None] * len(self._starts)

    def zero(self) -> None:
        """One after the other."""
        for start, size in zip(self._starts.tolist(), self._sizes_bytes.tolist(), strict=True):
            self._memory[start : start + size].zero_()


class New:
    """New memory; several results share one piece of it.

    Args:
        rows: Of the items.
        name: Of the result, as in their forms.
        starts: Bytes of the piece before each.
        size_bytes: Of the piece.
    """

    def __init__(self, rows: Sequence[Row], name: str, starts: Words, size_bytes: int) -> None:
        self._rows, self._name, self._starts = rows, name, starts
        device = rows[0].key.device
        if len(rows) == 1:  # a tensor of its own, not a view
            (shape, strides), dtype = rows[0].forms[name]
            self._memory = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        else:
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.addresses = starts + self._memory.data_ptr()

    def tensors(self) -> Sequence[Tensor]:
        """Views, to be made as late as possible: nothing else on the host takes as long."""
        if len(self._rows) == 1:
            return [self._memory]
        forms = [row.forms[self._name] for row in self._rows]
        typed = {dtype: self._memory.view(dtype) for dtype in {dtype for _, dtype in forms}}
        return [
            typed[dtype].as_strided(shape, strides, start // dtype.itemsize)
            for ((shape, strides), dtype), start in zip(forms, self._starts.tolist(), strict=True)
        ]

    def zero(self) -> None:
        """At once."""
        self._memory.zero_()
