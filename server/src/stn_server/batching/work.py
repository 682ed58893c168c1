"""The plain data that moves through the queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, NamedTuple

from stn_server.tuning import IMPLICIT_DEADLINE_S

_ids = count()


class Operation(StrEnum):
    """An operation of the engine; the value is the name of the RPC."""

    WARP = "Warp"
    WARP_GRADIENTS = "WarpGradients"
    GENERATE_GRID = "GenerateGrid"
    GENERATE_GRID_GRADIENTS = "GenerateGridGradients"
    OBJECTIVE = "Objective"

    __hash__ = str.__hash__  # that of Enum runs in Python, and every step of the policy asks


@dataclass(frozen=True, slots=True)
class BatchKey:
    """The facts that items must share to run in one launch; sizes are not among them."""

    operation: Operation
    dtype: Hashable
    """Element type of feature maps, or of grids."""
    spec: Hashable
    """Everything else that a launch has in common."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Kept, because every step of the policy looks keys up.
        object.__setattr__(self, "_hash", hash((self.operation, self.dtype, self.spec)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(slots=True)  # frozen ones take five times as long to make, here and below
class Cost:
    """The cost of an item or a batch, by budget; it is never changed."""

    size_bytes: int
    """Operands and results together."""
    samples: int
    """Source points computed."""
    work: int
    """The measure of a device's time, in reads of a value."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.size_bytes + other.size_bytes,
            self.samples + other.samples,
            self.work + other.work,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.size_bytes - other.size_bytes,
            self.samples - other.samples,
            self.work - other.work,
        )

    def fits(self, budget: Cost) -> bool:
        """Returns whether no part exceeds the budget's."""
        return (
            self.size_bytes <= budget.size_bytes
            and self.samples <= budget.samples
            and self.work <= budget.work
        )

    def part_of(self, budget: Cost) -> float:
        """Returns the largest of its parts, as a fraction of the budget's."""
        return max(
            self.size_bytes / budget.size_bytes,
            self.samples / budget.samples,
            self.work / budget.work,
        )


NOTHING = Cost(0, 0, 0)


class Finished(NamedTuple):
    """The outcome of an item that was computed."""

    result: Any
    queue_s: float
    compute_s: float
    """The time that its whole batch took, in seconds."""
    batch_items: int


def as_it_is(finished: Finished) -> Finished:
    """Returns the outcome itself as the reply."""
    return finished


@dataclass(slots=True, eq=False)
class Place:
    """The share of the limits that a call holds, before its item is known and after.

    It is free again when it has no holder any more: neither the call, whose reply takes memory
    until it has left, nor the waiter for its result, nor the device, which still reads its bytes.
    """

    caller: str
    size_bytes: int
    items: int = 1
    """How many calls of a message it is for."""
    holders: int = 1


@dataclass(slots=True, kw_only=True, eq=False)
class WorkItem:
    """A unit of the queue that is admitted, waits and runs as one; only its place changes."""

    key: BatchKey
    cost: Cost
    problems: Sequence[Any]
    """The problems that the runner computes for it, each with an outcome of its own: one for each
    call that it stands for. Opaque to queue and policy."""
    arrived: float
    """Monotonic instant in seconds."""
    deadline: float = math.inf
    """Monotonic instant in seconds after which the result is unwanted."""
    due_within_s: float = IMPLICIT_DEADLINE_S
    """The time after its arrival at which it is due, unless its deadline is earlier, in seconds."""
    reply: Callable[[Finished], Any] = as_it_is
    """Makes the reply from the outcome."""
    caller: str = ""
    """The name under which the caller has its share of the device; opaque here."""
    calls: Sequence[Any] = (None,)
    """The call of each of its problems, as listeners are told it."""
    place: Place | None = None
    """The place that it holds; None: none yet."""
    is_placed: bool = False
    """Whether its results are written to memory of the caller, who must not be answered before
    that: the caller would use the memory for something else."""
    number: int = field(default_factory=_ids.__next__)
    """The number that identifies the item, and is its rank in the order of arrival."""

    @property
    def due(self) -> float:
        """The instant by which it is ordered: items with a late deadline or none age."""
        return min(self.deadline, self.arrived + self.due_within_s)


class Wanted(NamedTuple):
    """A call of those that come together in one message."""

    problem: Any
    key: BatchKey
    cost: Cost
    call: Any = None
    is_placed: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Bundle(WorkItem):
    """Calls of one message and one key, which wait and run together as one item."""

    problems: list[Any]
    calls: list[Any]
    positions: list[int]
    """The position of each of its calls in the message."""

    @classmethod
    def of(cls, wanted: Wanted, position: int, **facts: Any) -> Bundle:
        """Makes a bundle that begins with this call; see `WorkItem` for the other facts."""
        return cls(
            key=wanted.key,
            cost=wanted.cost,
            problems=[wanted.problem],
            calls=[wanted.call],
            positions=[position],
            is_placed=wanted.is_placed,
            **facts,
        )

    def add(self, wanted: Wanted, position: int, cost: Cost) -> None:
        """Adds a call, before the bundle is queued.

        Args:
            wanted: A call of the same key.
            position: The position of the call in the message.
            cost: The cost of the bundle with the call.
        """
        self.problems.append(wanted.problem)
        self.calls.append(wanted.call)
        self.positions.append(position)
        self.cost = cost
        self.is_placed = self.is_placed or wanted.is_placed


@dataclass(slots=True, eq=False)
class Batch:
    """The items that one launch computes; it is never changed."""

    key: BatchKey
    items: tuple[WorkItem, ...]
    cost: Cost
    """The cost of all items together."""
    problems: Sequence[Any]
    """The problems of the items, one after the other, as the runner computes them."""

    @classmethod
    def of(cls, items: Sequence[WorkItem], cost: Cost) -> Batch:
        """Makes the batch of items that share a key."""
        problems = [problem for item in items for problem in item.problems]
        return cls(items[0].key, tuple(items), cost, problems)

    @property
    def calls(self) -> list[Any]:
        """The call of each problem, as listeners are told it."""
        return [call for item in self.items for call in item.calls]
