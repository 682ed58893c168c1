"""The events of a server, each told once to every listener.

Metrics, spans and logs are made of events, and tests make things fail at them. An event's
source knows no listener; a listener overrides the methods of `Listener` that it cares for.
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
    """The stages of a call, in the order in which it reaches them."""

    DECODE = "decode"
    """Its message has arrived and is decoded into a validated request."""
    QUEUE = "queue"
    """It asks for admission, then waits for a device."""
    LAND = "land"
    """A device takes its batch: its operands are copied there."""
    ALLOCATE = "allocate"
    """Memory is allocated for results: of a launch, and of a reply."""
    LAUNCH = "launch"
    """Kernels are about to run, for its batch or for it alone."""
    COLLECT = "collect"
    """The results of its batch are there."""
    ENCODE = "encode"
    """Its result is encoded into bytes."""
    SEND = "send"
    """Its reply is handed to the transport."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a call."""

    code: StatusCode
    duration_s: float
    """Seconds since it was accepted."""
    answer: Answer | None = None
    """The status that its caller gets instead of a reply."""
    error: Exception | None = None
    """The exception that ended it, if one did."""
    note: str = ""
    """What tells the operator why a transport may have ended the call itself; empty: nothing."""
    alike: int = 1
    """How many nested calls of one message ended for this reason."""


class Listener:
    """Receives the events of a server; every method does nothing unless it is overridden.

    Concurrency: `reached` and `kernels_compiled` in any thread, `file_changed` and `lines_dropped`
    in threads of their own, all else in the event loop.
    """

    def call_began(self, call: CallFacts) -> None:
        """A call has been accepted; nothing is known of its message yet."""

    def reached(self, stage: Stage, calls: Sequence[CallFacts | None]) -> None:
        """Calls reach a stage together; None stands for a call of the server to itself.

        An exception that a listener raises here fails the calls.
        """

    def call_ended(self, call: CallFacts, end: End) -> None:
        """A call is about to be answered, with a reply or a status, or has been cut off."""

    def calls_ended(self, calls: Sequence[CallFacts], end: End) -> None:
        """Nested calls of one message and method are about to end alike, as in `call_ended`."""
        for call in calls:
            self.call_ended(call, end)

    def call_failed(self, call: CallFacts, end: End) -> None:
        """A call has ended without a reply; comes beside `call_ended`.

        Nested calls of one message that ended for the same reason cause one event.
        """

    def call_slow(self, call: CallFacts, end: End) -> None:
        """A call has taken longer than the configured limit; comes beside `call_ended`."""

    def item_abandoned(self) -> None:
        """A call has left the queue without having run."""

    def batch_ended(self, batch: Batch, queue_s: Sequence[float], compute_s: float) -> None:
        """A batch has ended, whose calls waited so long in the queue."""

    def lane_freed(self, device: str, busy_s: float) -> None:
        """A lane of a device has finished a batch."""

    def tensor_evicted(self, why: Eviction) -> None:
        """A resident tensor is evicted that its caller has not released."""

    def device_lost(self, cause: BaseException) -> None:
        """The device is lost: nothing can be computed any more."""

    def loop_lagged(self, late_s: float) -> None:
        """The event loop ran a timer so late; every timer reports it, however punctual."""

    def kernels_compiled(self, outcome: Outcome, duration_s: float) -> None:
        """A program of kernels was compiled or read from disk, or could not be."""

    def file_changed(self, name: str, outcome: str, reason: str) -> None:
        """Tokens or certificates changed: "accepted", or "rejected" with the reason."""

    def lines_dropped(self, count: int) -> None:
        """Lines of the log were dropped because their reader was too slow."""


class Events:
    """The listeners of every event: `for tell in events.reached: tell(stage, calls)`.

    A warp has a dozen events; those without a listener call nothing.
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
        """Registers a listener for the events whose methods it overrides."""
        for event, listeners_of in vars(self).items():
            # By itself `calls_ended` calls `call_ended`: who overrides either of them has to hear
            # of it.
            methods = ("calls_ended", "call_ended") if event == "calls_ended" else (event,)
            if any(getattr(type(listener), m) is not getattr(Listener, m) for m in methods):
                listeners_of.append(getattr(listener, event))


NO_LISTENERS = Events()
"""The events of parts that stand alone; no listener is added to them."""
