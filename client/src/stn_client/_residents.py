"""Tensors that stay on the server, so that later calls name them instead of sending them.

Servers hold them as a cache. So a `ResidentTensor` keeps what it was made of, and a call whose
tensor the server has evicted uploads it again; whatever goes wrong with that, tensors are sent with
their calls. Behind a target of several replicas a tensor may stay on some of them, and calls that
name it go there. `_transfers` has the calls that move tensors, `_steps` the order of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stn_client._arrays import Array, Operand
from stn_proto.v1.tensor_pb2 import ResidentRef

LOST = "HANDLE_NOT_FOUND"
"""Why a call fails whose tensor the server has evicted."""

MAX_LOSSES = 3
"""The most times that a call, or an upload, begins anew because its tensors were evicted."""


@dataclass(eq=False, slots=True)
class Held:
    """The servers on which a tensor stays.

    Concurrency: thread-safe, as each of its changes is one of a dict.
    """

    client: str
    """Name of the client that it belongs to."""
    is_uploaded: bool = False
    """Whether it goes to the server alone."""
    is_kept: bool = False
    """Whether it goes with a warp, which keeps it there for its gradients."""
    references: dict[str, ResidentRef] = field(default_factory=dict)
    """The references by the addresses of replicas, as they tell them."""
    uploads: dict[str, Future[bool]] = field(default_factory=dict)
    """Ends of the uploads under way, by the addresses that they go to (empty: to any): whether
    other calls need no upload of their own, as the tensor is there, or is refused."""

    def add(self, reference: ResidentRef) -> None:
        """Notes that the tensor stays where a reply says."""
        self.references[reference.address] = reference

    def is_at(self, address: str) -> bool:
        """Returns whether it stays on a replica; of an empty address, on any."""
        return address in self.references or (not address and bool(self.references))


@dataclass(frozen=True, slots=True, eq=False)
class ResidentTensor(Operand):
    """A tensor that stays on a server: what `Client.upload` returns.

    It stands for the array that it was made of wherever calls of the same client take one, those of
    transforms included, and goes with calls of others as that array does. A server that was started
    anew, or needed the room, gets it again by itself.
    """

    held: Held = field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array."""
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return self.array.nbytes

    def is_in(self, payload: memoryview | bytes) -> bool:
        """Returns whether a payload is this very array, and not a conversion of it."""
        if len(payload) != self.array.nbytes:
            return False
        # Floats go as they are; only integers are converted, as theta from a list of them is.
        if self.array.dtype.kind not in "iu":
            return True
        # A conversion may have as many bytes, int32 to float32, so the memory itself is compared.
        return np.frombuffer(payload, np.uint8).ctypes.data == self.array.ctypes.data

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> Array:
        """Returns a copy of the array, for NumPy."""
        return np.array(self.array, dtype, copy=copy)

    def __repr__(self) -> str:
        return f"<ResidentTensor {self.shape} {self.dtype}>"


Residents = Sequence[ResidentTensor | None]
"""The resident tensor of each payload of a call, None for one that has none."""


def residents_of(*operands: Any) -> Residents:
    """Returns the resident tensors among the operands of a call; empty if there are none.

    Args:
        operands: As they were given, in the order of the payloads.
    """
    for one in operands:
        if isinstance(one, ResidentTensor):
            # Mostly there are none: the list is made only when the first one is found.
            return [other if isinstance(other, ResidentTensor) else None for other in operands]
    return ()
