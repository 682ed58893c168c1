"""What happens in a server, told once to everybody who listens.

Metrics, spans and logs are made of events, and tests make things fail at them. Whoever tells knows
none of those who listen; whoever listens overrides the methods of `Listener` that it cares for.
No setting and no variable adds a listener that fails on purpose, so that a server in production
cannot have faults switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpc import StatusCode

    from stn_engine.compilations import Outcome
    from stn_server.batching.work import Batch
    from stn_server.call import CallFacts
    from stn_server.residents import Eviction
    from stn_server.status import Answer


class Stage(StrEnum):
    """How far a call can be, in the order of its way."""

    DECODE = "decode"
    """Its message is there and becomes a validated request."""
    QUEUE = "queue"
    """It knocks at the door, then waits for a device."""
    LAND = "land"
    """A device takes its batch: its operands are on their way there."""
    ALLOCATE = "allocate"
    """Memory is taken for results: of a launch, and of a reply."""
    LAUNCH = "launch"
    """Kernels are about to run, for its batch or for it alone."""
    COLLECT = "collect"
    """The results of its batch are there."""
    ENCODE = "encode"
    """Its result becomes bytes."""
    SEND = "send"
    """Its reply is handed to the transport."""


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended."""

    code: StatusCode
    duration_s: float
    """Since it came in."""
    answer: Answer | None = None
    """What its caller is told instead of a reply."""
    error: Exception | None = None
    """Why."""
    note: str = ""
    """For the operator, of a call that its transport has ended: why that may be."""
    alike: int = 1
    """So many calls of one message ended for this reason."""


class Listener:
    """Hears of what happens; to everything it is told it does nothing, unless it is overridden.

    Concurrency: `reached` and `kernels_compiled` in any thread, `file_changed` and `lines_dropped`
    in threads of their own, all else in the event loop.
    """

    def call_began(self, call: CallFacts) -> None:
        """A call has come in; nothing is known of its message."""

    def reached(self, stage: Stage, calls: Sequence[CallFacts | None]) -> None:
        """Calls reach a stage, together; None: a call of the server to itself.

        What a listener raises here, the calls fail of.
        """

    def call_ended(self, call: CallFacts, end: End) -> None:
        """A call is about to be answered, with a reply or a status, or has been cut off."""

    def calls_ended(self, calls: Sequence[CallFacts], end: End) -> None:
        """Calls of one message and method are about to be answered alike: so many `call_ended`."""
        for call in calls:
            self.call_ended(call, end)

    def call_failed(self, call: CallFacts, end: End) -> None:
        """A call has ended without a reply; told beside `call_ended`.

        Of calls of one message that ended for the same reason it is told once.
        """

    def call_slow(self, call: CallFacts, end: End) -> None:
        """A call has taken longer than the operator finds right; told beside `call_ended`."""

    def item_abandoned(self) -> None:
        """A call left the queue without having run."""

    def batch_ended(self, batch: Batch, queue_s: Sequence[float], compute_s: float) -> None:
        """A batch is through, with the time that each of its calls waited."""

    def lane_freed(self, device: str, busy_s: float) -> None:
        """A lane of a device had a batch."""

    def tensor_evicted(self, why: Eviction) -> None:
        """A resident tensor is let go that its caller has not released."""

    def device_lost(self, cause: BaseException) -> None:
        """Nothing can be computed any more."""

    def loop_lagged(self, late_s: float) -> None:
        """The event loop was so late for something that was due; told again and again."""

    def kernels_compiled(self, outcome: Outcome, duration_s: float) -> None:
        """A program of kernels was compiled or read from disk, or could not be."""

    def file_changed(self, name: str, outcome: str, reason: str) -> None:
        """Tokens or certificates changed: "accepted", or "rejected", and why the old ones count."""

    def lines_dropped(self, count: int) -> None:
        """So many lines of the log were dropped, as nobody read them."""


class Events:
    """For every event those who listen: `for tell in events.reached: tell(stage, calls)`.

    A warp has a dozen events; those of which nobody wants to hear call nothing.
    """

    def __init__(self, *listeners: Listener) -> None:
        self.call_began: list[Callable[[CallFacts], None]] = []
        self.reached: list[Callable[[Stage, Sequence[CallFacts | None]], None]] = []
        self.call_ended: list[Callable[[CallFacts, End], None]] = []
        self.calls_ended: list[Callable[[Sequence[CallFacts], End], None]] = []
        self.call_failed: list[Callable[[CallFacts, End], None]] = []
        self.call_slow: list[Callable[[CallFacts, End], None]] = []
        self.item_abandoned: list[Callable[[], None]] = []
        self.batch_ended: list[Callable[[Batch, Sequence[float], float], None]] = []
        self.lane_freed: list[Callable[[str, float], None]] = []
        self.tensor_evicted: list[Callable[[Eviction], None]] = []
        self.device_lost: list[Callable[[BaseException], None]] = []
        self.loop_lagged: list[Callable[[float], None]] = []
        self.kernels_compiled: list[Callable[[Outcome, float], None]] = []
        self.file_changed: list[Callable[[str, str, str], None]] = []
        self.lines_dropped: list[Callable[[int], None]] = []
        for listener in listeners:
            self.add(listener)

    def add(self, listener: Listener) -> None:
        """A listener begins to hear of the events whose methods it overrides."""
        for event, those_who_hear in vars(self).items():
            methods = ("calls_ended", "call_ended") if event == "calls_ended" else (event,)
            if any(getattr(type(listener), m) is not getattr(Listener, m) for m in methods):
                those_who_hear.append(getattr(listener, event))


UNHEARD = Events()
"""The events of parts that stand alone; nobody is added."""
