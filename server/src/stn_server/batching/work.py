"""What moves through the queue: plain data."""

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
    """What the engine is asked for; the value is the name of the RPC."""

    WARP = "Warp"
    WARP_GRADIENTS = "WarpGradients"
    GENERATE_GRID = "GenerateGrid"
    GENERATE_GRID_GRADIENTS = "GenerateGridGradients"
    OBJECTIVE = "Objective"

    __hash__ = str.__hash__  # that of Enum runs in Python, and every step of the policy asks


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What items must share to run in one launch. Sizes are not part of it."""

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
    """What an item takes of a budget. Nobody changes it."""

    size_bytes: int
    """Operands and results together."""
    samples: int
    """Source points computed."""
    work: int
    """What the time of a device grows with, in reads of a value."""

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
        """Whether no part exceeds the budget's."""
        return (
            self.size_bytes <= budget.size_bytes
            and self.samples <= budget.samples
            and self.work <= budget.work
        )

    def part_of(self, budget: Cost) -> float:
        """The largest of its parts, as a fraction of the budget's."""
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
    """The time that its whole batch took."""
    batch_items: int


def as_it_is(finished: Finished) -> Finished:
    """A reply that is the outcome itself."""
    return finished


@dataclass(slots=True, eq=False)
class Place:
    """What a call counts for at the door, before its item is known and after.

    It is free again when nobody holds it any more: neither the call, whose reply takes memory until
    it has left, nor who waits for its result, nor the device, which still reads its bytes.
    """

    caller: str
    size_bytes: int
    items: int = 1
    """How many calls of a message it is for."""
    holders: int = 1


@dataclass(slots=True, kw_only=True, eq=False)
class WorkItem:
    """What is let in, waits and runs as one. Nobody changes it but to give it a place."""

    key: BatchKey
    cost: Cost
    problems: Sequence[Any]
    """What the runner computes for it, each with an outcome of its own: one for each call that it
    stands for. Opaque to queue and policy."""
    arrived: float
    """Monotonic instant in seconds."""
    deadline: float = math.inf
    """Monotonic instant in seconds after which nobody wants the result."""
    due_within_s: float = IMPLICIT_DEADLINE_S
    """It counts as due so long after its arrival, or at its deadline if that is earlier."""
    reply: Callable[[Finished], Any] = as_it_is
    """What is made of the outcome."""
    caller: str = ""
    """Whom fairness is owed to: opaque, the same for all calls of one caller."""
    calls: Sequence[Any] = (None,)
    """Whom listeners are told that it is for: the call of each of its problems."""
    place: Place | None = None
    """What it counts for at the door; None: nothing yet."""
    is_placed: bool = False
    """Whether its results are written to memory of the caller, who must not be answered meanwhile:
    it would use the memory for something else."""
    number: int = field(default_factory=_ids.__next__)
    """Identity, and order of arrival."""

    @property
    def due(self) -> float:
        """What counts as its deadline: those with a late one or none age."""
        return min(self.deadline, self.arrived + self.due_within_s)


class Wanted(NamedTuple):
    """A call that comes with others in one message."""

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
    """Where each of its calls stands in the message."""

    @classmethod
    def of(cls, wanted: Wanted, position: int, **facts: Any) -> Bundle:
        """A bundle that begins with this call; see `WorkItem` for the other facts."""
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
        """Grows it, before it knocks.

        Args:
            wanted: A call of the same key.
            position: Where it stands in the message.
            cost: Of the bundle with it.
        """
        self.problems.append(wanted.problem)
        self.calls.append(wanted.call)
        self.positions.append(position)
        self.cost = cost
        self.is_placed = self.is_placed or wanted.is_placed


@dataclass(slots=True, eq=False)
class Batch:
    """Items that one launch computes. Nobody changes it."""

    key: BatchKey
    items: tuple[WorkItem, ...]
    cost: Cost
    """The cost of all items together."""
    problems: Sequence[Any]
    """What the runner computes: the problems of the items, one behind the other."""

    @classmethod
    def of(cls, items: Sequence[WorkItem], cost: Cost) -> Batch:
        """The batch of items that share a key."""
        problems = [problem for item in items for problem in item.problems]
        return cls(items[0].key, tuple(items), cost, problems)

    @property
    def calls(self) -> list[Any]:
        """Whom listeners are told that each of its problems is for."""
        return [call for item in self.items for call in item.calls]
