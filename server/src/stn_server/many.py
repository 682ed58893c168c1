"""Nested calls of a ComputeMany: each is reported, answered and counted as a call of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from grpc import StatusCode

from stn_proto import join_many, nested
from stn_proto.v1 import many_pb2
from stn_server.batching.work import Finished, Wanted
from stn_server.call import OTHER_METHOD, Caller, CallFacts
from stn_server.errors import RefusedError, clear_frames
from stn_server.events import End, Events, Stage
from stn_server.nested import NESTED, Nested
from stn_server.quota import Quotas, Resize
from stn_server.status import Answer, answer_to
from stn_server.tokens import UNLIMITED
from stn_server.translate import Request

STATUS = many_pb2.NestedReply.STATUS_FIELD_NUMBER


@dataclass(slots=True, eq=False)
class NestedCall:
    """A `Call` within another one, from which it has all but its method and its id."""

    method: str
    outer: CallFacts
    request_id: str
    """The request id of the message, with the index of the call in it."""
    received_bytes: int = 0
    """Always 0: the bytes are counted for the message, and so are those of the reply."""
    sent_bytes: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def began(self) -> float:
        """The instant at which the message was accepted; see `Call`."""
        return self.outer.began

    @property
    def path(self) -> str:
        """The method as the log names it; see `Call`."""
        return self.method

    @property
    def caller(self) -> Caller:
        """The caller of the message; see `Call`."""
        return self.outer.caller

    @property
    def deadline(self) -> float:
        """The deadline of the message; see `Call`."""
        return self.outer.deadline

    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The metadata beside the message; see `Call`."""
        return self.outer.metadata


class Many:
    """The nested calls of one message from decoding to reply; a context that ends with them.

    Args:
        call: The call of the message.
        found: The nested calls of the message.
        events: Listeners of each nested call.
    """

    def __init__(self, call: CallFacts, found: Sequence[Nested], events: Events) -> None:
        self._events = events
        self._began = call.began
        self._held = ExitStack()
        self._caller, call_id = call.caller, call.request_id
        self._calls: list[NestedCall] = []
        self._errors: dict[int, Exception] = {}
        """The errors of the calls that have no result, by position."""
        self._requests: dict[int, Request] = {}
        """The requests of the other calls, by position."""
        for position, (method, request) in enumerate(found):
            name = method or OTHER_METHOD
            self._calls.append(NestedCall(name, call, f"{call_id}.{position}"))
            if isinstance(request, Exception):
                self._errors[position] = request
            else:
                self._requests[position] = request

    def __enter__(self) -> Self:
        for tell in self._events.call_began:
            for call in self._calls:
                tell(call)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Ends all nested calls with the error of the message, if that has no reply."""
        self._held.close()
        if error is not None:
            is_answer = isinstance(error, Exception)
            code = answer_to(error, "").code if is_answer else StatusCode.CANCELLED
            end = End(code, time.perf_counter() - self._began)
            self._tell_ended(dict.fromkeys(range(len(self._calls)), end))
        for own in self._errors.values():
            clear_frames(own)
            # Its frames lead back to the one that holds this object and so the memory of all calls,
            # arenas among it: a reference cycle, which would last until the garbage collector runs.
            own.__traceback__ = None

    def hold(self, quotas: Quotas, resize: Resize) -> None:
        """Holds calls against the quota of their caller; the first takes the place of the message.

        Args:
            quotas: The quotas of all callers.
            resize: Changes what the message counts for.
        """
        if self._caller.quota is UNLIMITED:
            return
        # The message counted by its own size so far; from here on each call counts by its
        # cost.
        resize(0)
        is_first = True
        for position, request in list(self._requests.items()):
            size_bytes = request.cost.size_bytes
            try:
                if is_first:
                    is_first = False
                    resize(size_bytes)
                else:
                    self._held.enter_context(quotas.admit(self._caller, size_bytes))
            except RefusedError as error:
                self._fail(position, error)

    def wanted(self) -> list[Wanted]:
        """Returns the calls that are to be computed."""
        found = []
        for position, request in list(self._requests.items()):
            call = self._calls[position]
            try:
                for tell in self._events.reached:
                    tell(Stage.QUEUE, (call,))
            except Exception as error:  # noqa: BLE001 - of this call alone
                self._fail(position, error)
            else:
                found.append(
                    Wanted(request.job, request.key, request.cost, call, request.is_placed)
                )
        return found

    def reply(self, computed: Sequence[Finished | Exception]) -> bytes:
        """Returns the serialized reply of the message.

        Args:
            computed: The outcomes of the calls that were computed.
        """
        written: dict[int, tuple[bytes, Sequence[Any]]] = {}
        # A copy, from whose original `_fail` takes entries.
        pairs = zip(list(self._requests.items()), computed, strict=True)
        for (position, request), outcome in pairs:
            if isinstance(outcome, Exception):
                self._fail(position, outcome)
                continue
            try:
                written[position] = self._encoded(self._calls[position], request, outcome)
            except Exception as error:  # noqa: BLE001 - of this call alone
                self._fail(position, error)
        answers = {
            position: answer_to(error, self._calls[position].request_id)
            for position, error in self._errors.items()
        }
        replies: list[bytes] = []
        payloads: list[Any] = []
        for position in range(len(self._calls)):
            if position in answers:
                replies.append(nested(STATUS, answers[position].status(), 0))
            else:
                envelope, own = written[position]
                replies.append(envelope)
                payloads += own
        self._tell_outcomes(answers)
        return join_many(replies, payloads)

    def _fail(self, position: int, error: Exception) -> None:
        self._errors[position] = error
        del self._requests[position]

    def _encoded(
        self, call: NestedCall, request: Request, finished: Finished
    ) -> tuple[bytes, Sequence[Any]]:
        """Returns the serialized NestedReply of a call, and its payloads."""
        for tell in self._events.reached:
            tell(Stage.ALLOCATE, (call,))
            tell(Stage.ENCODE, (call,))
        call.queue_s, call.compute_s = finished.queue_s, finished.compute_s
        outer = call.outer
        outer.queue_s = max(outer.queue_s, finished.queue_s)
        outer.compute_s = max(outer.compute_s, finished.compute_s)
        envelope, payloads = request.encode_nested(finished)
        for tell in self._events.reached:
            tell(Stage.SEND, (call,))
        return nested(NESTED[call.method].number, envelope, len(payloads)), payloads

    def _tell_outcomes(self, answers: Mapping[int, Answer]) -> None:
        """Tells listeners how each call ended, and each reason of failures once."""
        duration_s = time.perf_counter() - self._began
        well = End(StatusCode.OK, duration_s)
        ends = dict.fromkeys(range(len(self._calls)), well)
        failed: dict[str, list[tuple[NestedCall, End]]] = {}
        for position, answer in answers.items():
            end = End(answer.code, duration_s, answer, self._errors[position])
            ends[position] = end
            failed.setdefault(answer.reason, []).append((self._calls[position], end))
        self._tell_ended(ends)
        for alike in failed.values():
            call, end = alike[0]
            for tell_end in self._events.call_failed:
                tell_end(call, replace(end, alike=len(alike)))

    def _tell_ended(self, ends: Mapping[int, End]) -> None:
        """Tells listeners how each call ended, by position; calls that ended alike together."""
        alike: dict[tuple[str, int], tuple[End, list[NestedCall]]] = {}
        for position, end in ends.items():
            call = self._calls[position]
            # By identity: all that ended well share one `End`, and each failure has its own.
            alike.setdefault((call.method, id(end)), (end, []))[1].append(call)
        for end, calls in alike.values():
            for tell in self._events.calls_ended:
                tell(calls, end)
