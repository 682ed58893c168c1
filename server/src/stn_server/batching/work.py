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
    """One request between admission and its outcome. Nobody changes it but to give it a place."""

    key: BatchKey
    cost: Cost
    problem: Any
    """What the runner understands; opaque to queue and policy."""
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
    call: Any = None
    """What listeners are told that it is for."""
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

    @property
    def problems(self) -> Sequence[Any]:
        """What the runner computes for it, each with an outcome of its own."""
        return (self.problem,)

    @property
    def calls(self) -> Sequence[Any]:
        """Whom listeners are told that it is for: the call of each of its problems."""
        return (self.call,)

    @property
    def count(self) -> int:
        """How many calls it is."""
        return 1


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

    problem: list[Any]
    call: list[Any]
    positions: list[int]
    """Where each of its calls stands in the message."""

    @classmethod
    def of(cls, wanted: Wanted, position: int, **facts: Any) -> Bundle:
        """A bundle that begins with this call; see `WorkItem` for the other facts."""
        return cls(
            key=wanted.key,
            cost=wanted.cost,
            problem=[wanted.problem],
            call=[wanted.call],
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
        self.problem.append(wanted.problem)
        self.call.append(wanted.call)
        self.positions.append(position)
        self.cost = cost
        self.is_placed = self.is_placed or wanted.is_placed

    @property
    def problems(self) -> Sequence[Any]:
        """What the runner computes; see `WorkItem`."""
        return self.problem

    @property
    def calls(self) -> Sequence[Any]:
        """Whom it is for; see `WorkItem`."""
        return self.call

    @property
    def count(self) -> int:
        """How many calls it is."""
        return len(self.problem)


@dataclass(slots=True, eq=False)
class Batch:
    """Items that one launch computes. Nobody changes it."""

    key: BatchKey
    items: tuple[WorkItem, ...]
    cost: Cost
    """The cost of all items together."""

    @property
    def count(self) -> int:
        """How many calls it computes."""
        return sum(item.count for item in self.items)

    @property
    def problems(self) -> list[Any]:
        """What the runner computes, each with an outcome of its own."""
        return [problem for item in self.items for problem in item.problems]

    @property
    def calls(self) -> list[Any]:
        """Whom listeners are told that each of its problems is for."""
        return [call for item in self.items for call in item.calls]
