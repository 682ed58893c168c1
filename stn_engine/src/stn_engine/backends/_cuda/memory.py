"""Memory of all items of a batch: scratch of kernels, and results."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stn_engine.backends._cuda.rows import Form

Words: TypeAlias = npt.NDArray[np.int64]


class Results(Protocol):
    """Memory for a result of every item."""

    @property
    def addresses(self) -> Words | Sequence[int]:
        """Where each begins."""

    def tensors(self) -> Sequence[Tensor]:
        """All results."""

    def zero(self) -> None:
        """Write 0 into all of them."""


class Given:
    """Memory that the caller of an operation gave.

    Args:
        tensors: One for each item.
        addresses: Theirs.
    """

    def __init__(self, tensors: Sequence[Tensor], addresses: Sequence[int]) -> None:
        self._tensors, self.addresses = tensors, addresses

    def tensors(self) -> Sequence[Tensor]:
        """Those that were given."""
        return self._tensors

    def zero(self) -> None:
        """One after the other."""
        for tensor in self._tensors:
            tensor.zero_()


class New:
    """New memory; several results share one piece of it.

    Args:
        forms: Of each result, dense.
        starts: Bytes of the piece before each.
        size_bytes: Of the piece.
        device: Where it is.
    """

    def __init__(
        self, forms: Sequence[Form], starts: Words, size_bytes: int, device: torch.device
    ) -> None:
        self._forms, self._starts = forms, starts
        if len(forms) == 1:  # a tensor of its own, not a view
            ((shape, strides), dtype) = forms[0]
            self._memory = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        else:
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.addresses = starts + self._memory.data_ptr()

    def tensors(self) -> Sequence[Tensor]:
        """Views, to be made as late as possible: nothing else on the host takes as long."""
        if len(self._forms) == 1:
            return [self._memory]
        dtypes = {dtype for _, dtype in self._forms}
        typed = {dtype: self._memory.view(dtype) for dtype in dtypes}
        return [
            typed[dtype].as_strided(shape, strides, start // dtype.itemsize)
            for ((shape, strides), dtype), start in zip(
                self._forms, self._starts.tolist(), strict=True
            )
        ]

    def zero(self) -> None:
        """At once."""
        self._memory.zero_()
