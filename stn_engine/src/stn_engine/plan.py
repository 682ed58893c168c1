"""The interface of kernels: a call is planned once, and run on addresses.

Tensors, bytes and device buffers come in by ``stn_engine.adapters``, which give the addresses.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

from stn_engine.call import Call

Reasons: TypeAlias = tuple[str, ...]
"""Why a backend has no plan for a call; never empty."""

Addresses: TypeAlias = Sequence[int]
"""Addresses of the operands of a call, then of its needed results, in the call's order."""

Bytes: TypeAlias = bytes | memoryview
"""The contiguous bytes of a tensor in host memory, in the order of its memory."""

P = TypeVar("P")


class Kernels(Protocol[P]):
    """A backend whose kernels read and write memory at addresses.

    A plan holds for every call of these layouts, whatever the addresses; it may be kept, shared by
    threads, and run in any company.
    """

    @property
    def name(self) -> str:
        """Unique, short name of the backend."""

    @property
    def reads_bytes(self) -> bool:
        """True if there is ``run_on_bytes``."""

    def plan(self, call: Call) -> P | Reasons:
        """Returns the plan of a call, or every reason why this backend has none."""

    def run(self, plans: Sequence[P], addresses: Sequence[Addresses]) -> None:
        """Runs plans together, each on its addresses; in the order of the device's stream.

        Results are bit for bit the same whatever plans run beside them. Every byte of every
        needed result is written.
        """

    def run_on_bytes(
        self, plans: Sequence[P], operands: Sequence[Sequence[Bytes]], threads: int
    ) -> Sequence[tuple[Bytes, ...]]:
        """Returns the needed results of plans, in new memory, from the bytes of operands.

        Raises:
            ValueError: Bytes are fewer or more than their operand has.
        """
