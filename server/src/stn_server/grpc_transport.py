"""Calls that come by gRPC: messages in, replies or statuses out.

Handlers are registered without protobuf (de)serializers, so that tensor payloads stay views into
the message that gRPC received and replies are written once. gRPC buffers no more than 64 KiB
before it is told to read, and then takes the whole message. So methods are registered as streams
of one message, which is the same on the wire, and their messages are read once admitted:

- A call that declares the size of its message (metadata `stn-message-bytes`) counts for it, and for
  a result of the same size until the real one is known. Declared wrongly, it is refused.
- One that does not counts for the largest message while it is read, and few are read at a time; the
  others wait in the order in which they came, and as long as a message may take: else each that
  stalls would hold up all behind it, the last for as many times that as there are.
- A message that is not there in time is given up.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from stn_proto.metadata import MESSAGE_BYTES
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Place
from stn_server.call import LOCAL, OTHER_METHOD, REQUEST_ID, Call, Caller
from stn_server.config import LimitsConfig
from stn_server.errors import (
    InvalidRequestError,
    MessageTooLargeError,
    QueueFullError,
    UnknownMethodError,
    UploadTimeoutError,
    clear_frames,
)
from stn_server.event_loop import Backlog
from stn_server.events import NO_LISTENERS, End, Events
from stn_server.oip.service import OIP_METHODS, OIP_SERVICE
from stn_server.service import METHODS, SERVICE, Method, Service
from stn_server.status import Answer, answer_to
from stn_server.tokens import Token
from stn_server.tuning import (
    CANCELLATION_S,
    LEAST_RETRY_S,
    MAX_PEERS,
    PROBE_S,
    UNDECLARED_PART,
)

LABELS = {SERVICE: METHODS, OIP_SERVICE: OIP_METHODS}
"""The methods of both services, no two of which have the same name."""

MAX_PATH_CHARS = 200
"""The most characters of an unknown method that the log quotes."""

MAX_DIGITS = 19
"""The most digits of a declared size; more would be beyond every limit."""

Context = grpc.aio.ServicerContext[Any, Any]

Metadata = Sequence[tuple[str, str | bytes]]

Handler = Callable[[Any, Context], Awaitable[bytes]]
"""A function that gRPC calls, with an iterator of messages that is not used."""

T = TypeVar("T")

presented_token: ContextVar[Token | None] = ContextVar("presented_token", default=None)
"""The token of the call that the present task answers; set by `Authenticator`."""

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class LostMessageError(asyncio.CancelledError):
    """The call was over before its message was there.

    Attributes:
        code: How it ended, unless its deadline was the reason. gRPC ends a call whose message is
            too large with RESOURCE_EXHAUSTED, but tells a server no more of it than of one that
            its caller cancels: no message, then a cancellation. Calls that declare a size do not
            end so, unless they send more than they declare.
    """

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True, eq=False)
class GrpcCall:
    """A `Call` that came by gRPC."""

    method: str
    path: str
    caller: Caller
    deadline: float
    began: float
    """Instant of `time.perf_counter` at which its transport accepted it."""
    context: Context
    receiver: Receiver
    received_bytes: int = 0
    sent_bytes: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def metadata(self) -> Metadata:
        """The metadata that came beside the message; see `Call`."""
        return cast("Metadata", self.context.invocation_metadata() or ())

    @property
    def request_id(self) -> str:
        """The id that the caller gave; if none, a new one whenever it is asked for."""
        return given_request_id(self.metadata) or uuid.uuid4().hex[:16]

    @property
    def declared_bytes(self) -> int | None:
        """The size of its message that the call declares; see `Call`."""
        return declared_bytes(self.metadata)

    async def receive(self) -> tuple[bytes, Place]:
        """Receives the message; see `Call`."""
        return await self.receiver.receive(self.context, self.caller.name)

    def add_done_callback(self, callback: Any, /) -> None:
        """Calls back when the call is over; see `Call`."""
        self.context.add_done_callback(callback)

    async def abort(self, answer: Answer) -> bytes:
        """Ends the call with a status, unless its caller has gone."""
        if not self.context.done():
            await self.context.abort(answer.code, answer.message, answer.metadata())
        return b""


class GrpcTransport:
    """Serves the methods of a service by gRPC.

    Args:
        service: The service whose methods are called.
        receiver: Reads messages.
        now: The clock that deadlines refer to.
        events: Listeners of calls: how each began and ended.
        backlog: Calls that gRPC has accepted; None: they are not counted.
        certified: Whether callers may have certificates; gRPC takes a while to look for one.
        slow_call_s: The duration above which a call is reported as slow.
    """

    def __init__(
        self,
        service: Service,
        receiver: Receiver,
        now: Callable[[], float],
        events: Events = NO_LISTENERS,
        backlog: Backlog | None = None,
        *,
        certified: bool = True,
        slow_call_s: float = math.inf,
    ) -> None:
        self._slow_call_s = slow_call_s
        self.backlog = Backlog() if backlog is None else backlog
        self._service = service
        self._receiver = receiver
        self._now = now
        self._events = events
        self._certified = certified
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of the service, for registration in a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE, self.unary_handlers(SERVICE, self._service.methods)
        )

    def unary_handlers(
        self, service: str, methods: Mapping[str, Method]
    ) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Returns gRPC's handlers of methods of one message and one reply, by name."""
        return {
            name: grpc.stream_unary_rpc_method_handler(self.handler(f"/{service}/{name}", method))
            for name, method in methods.items()
        }

    def refuse_unknown(self) -> grpc.GenericRpcHandler:
        """Returns a handler of all methods that no other has; register it last."""
        return _Unknown(self.refusing)

    def refusing(self, error: Exception, path: str = "/") -> Handler:
        """Returns a method that ends every call with this error."""

        async def refuse(_call: Call) -> bytes:
            raise error

        return self.handler(path, refuse)

    async def checked(self, path: str, context: Context, request: Awaitable[T]) -> T:
        """Waits for a request of another service, and answers and reports its failure.

        By itself gRPC would parse it, answer UNKNOWN to what it cannot parse, count nothing, and
        log a traceback for each such request.
        """
        call = self.call_of(label_of(path), logged_as(path), context)
        try:
            return await request
        except LostMessageError as error:
            self._failed(call, self._cut_off(call, error))
            raise
        except Exception as error:  # noqa: BLE001 - the table knows what to do with each
            ending = self.refuse(call, error)
        await ending
        raise asyncio.CancelledError  # its caller has gone

    async def idle(self) -> None:
        """Waits until the reply of every call has left."""
        await self._idle.wait()

    def refuse(self, call: GrpcCall, error: Exception) -> Awaitable[bytes]:
        """Reports that a call failed; awaiting what it returns answers the call."""
        answer = answer_to(error, call.request_id)
        self._failed(call, End(answer.code, time.perf_counter() - call.began, answer, error))
        # After the listeners, which log the traceback.
        clear_frames(error)
        return call.abort(answer)

    def call_of(self, method: str, path: str, context: Context) -> GrpcCall:
        """Makes the `GrpcCall` of a call that has just come in.

        Args:
            method: The label of the method, as `label_of` returns it.
            path: The path for the log, as `logged_as` returns it.
            context: gRPC's own.
        """
        now = time.perf_counter()
        remaining_s = cast("float | None", context.time_remaining())  # the stubs forget the None
        deadline = math.inf if remaining_s is None else self._now() + remaining_s
        caller = caller_of(context, certified=self._certified)
        # gRPC accepts calls in threads of its own, where they wait for the event loop.
        began = now if caller.transport == LOCAL else now - self.backlog.wait_s
        return GrpcCall(method, path, caller, deadline, began, context, self._receiver)

    def handler(self, path: str, method: Method) -> Handler:
        """Returns a method whose every end is reported and mapped to a status."""
        label, shown = label_of(path), logged_as(path)

        async def answer(_messages: Any, context: Context) -> bytes:
            call = self.call_of(label, shown, context)
            # Local calls come through no backlog of gRPC, which would otherwise seem to shrink.
            self.backlog.begun += call.caller.transport != LOCAL
            self.enter(call)
            return await self.answered(call, method)

        return answer

    def enter(self, call: Call) -> None:
        """Makes `idle` wait for a call until that is done."""
        self._calls += 1
        self._idle.clear()
        call.add_done_callback(self._leave)

    async def answered(self, call: GrpcCall, method: Method) -> bytes:
        """Returns the reply to a call, or aborts it; its end is reported either way."""
        for tell_began in self._events.call_began:
            tell_began(call)
        try:
            reply = await method(call)
        except asyncio.CancelledError as error:
            self._failed(call, self._cut_off(call, error))
            raise
        except Exception as error:  # noqa: BLE001 - the table knows what to do with each
            ending = self.refuse(call, error)
        else:
            end = End(grpc.StatusCode.OK, time.perf_counter() - call.began)
            for tell in self._events.call_ended:
                tell(call, end)
            if end.duration_s > self._slow_call_s:
                self._tell_slow(call, end)
            return reply
        # Not inside `except`: gRPC would make the call and the traceback of its refusal a reference
        # cycle, which only the garbage collector ends, some day.
        return await ending

    def _failed(self, call: GrpcCall, end: End) -> None:
        for tell in (*self._events.call_ended, *self._events.call_failed):
            tell(call, end)
        if end.duration_s > self._slow_call_s:
            self._tell_slow(call, end)

    def _tell_slow(self, call: GrpcCall, end: End) -> None:
        for tell in self._events.call_slow:
            tell(call, end)

    def _leave(self, _call: Any) -> None:
        """Counts a call as done, whose reply has left."""
        self._calls -= 1
        if self._calls == 0:
            self._idle.set()

    def _cut_off(self, call: GrpcCall, error: asyncio.CancelledError) -> End:
        """Returns the end of a call that gRPC itself has ended."""
        duration_s = time.perf_counter() - call.began
        lost = error if isinstance(error, LostMessageError) else None
        # gRPC cancels for a deadline as for any other reason: only the clock tells them apart.
        if self._now() >= call.deadline:
            note = "its message was not there before its deadline" if lost else ""
            return End(grpc.StatusCode.DEADLINE_EXCEEDED, duration_s, note=note)
        if lost is None:
            return End(grpc.StatusCode.CANCELLED, duration_s)
        note = "its caller cancelled it, or went away, while its message came in"
        if lost.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            note = f"its message is above limits.max_message_bytes, or {note}"
        return End(lost.code, duration_s, note=note)


class _Unknown(grpc.GenericRpcHandler):
    """Refuses every method that no other handler knows.

    Args:
        refusing: Makes methods that refuse, as `GrpcTransport.refusing` does.
    """

    def __init__(self, refusing: Callable[[Exception, str], Handler]) -> None:
        self._refusing = refusing

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns a handler that refuses the method of a call."""
        refuse = self._refusing(UnknownMethodError(details.method), details.method)
        return grpc.stream_unary_rpc_method_handler(refuse)


class Receiver:
    """Reads the message of every call once it is admitted.

    Args:
        batcher: Admits calls.
        limits: The limits of one call.
        max_admitted_bytes: The limit for all calls; a part of it may be messages of unknown size.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, batcher: Batcher, limits: LimitsConfig, max_admitted_bytes: int) -> None:
        self._batcher = batcher
        self._limits = limits
        self._uploads = _Uploads(limits.upload_s)
        at_a_time = int(max_admitted_bytes * UNDECLARED_PART) // limits.max_message_bytes
        self._undeclared = _UploadLimit(
            "messages of undeclared size", max(1, at_a_time), limits.upload_s
        )
        # Apart from the others, so that calls that stall cannot keep health checks out.
        self._probe_uploads = _Uploads(PROBE_S)
        self._probes = _UploadLimit("probes", max(1, at_a_time), PROBE_S)

    def receiving_bytes(self) -> int:
        """Returns how many bytes are being received; unknown sizes count as the largest."""
        # A copy, as another thread may ask.
        return sum(size_bytes for _, size_bytes in list(self._uploads.under_way.values()))

    async def receive(self, context: Context, caller: str) -> tuple[bytes, Place]:
        """Returns the message of a call, and its place until the call is over.

        Args:
            context: gRPC's context. If it has an attribute `arrived`, that is the message.
            caller: The name of the caller.

        Raises:
            MessageTooLargeError: The declared size is above the limit.
            RefusedError: There is no room, or none in time.
            InvalidRequestError: The message is not there, or not of the declared size.
            UploadTimeoutError: It is not there in time.
            LostMessageError: The call is over.
        """
        arrived = getattr(context, "arrived", None)
        if arrived is not None:
            # The local transport has read a whole frame. The result counts as large as the message
            # until its real size is known.
            size_bytes = len(arrived) + min(len(arrived), self._limits.max_output_bytes)
            return arrived, self._batcher.reserve(size_bytes, caller=caller, call=context)
        declared = declared_bytes(cast("Metadata", context.invocation_metadata() or ()))
        if declared is None:
            return await self._receive_unknown(context, caller)
        largest = self._limits.max_message_bytes
        # Before a place is taken: no waiting makes room for such a message.
        if declared > largest:
            raise MessageTooLargeError("message", largest, declared, "bytes")
        result_bytes = min(declared, self._limits.max_output_bytes)
        place = self._batcher.reserve(declared + result_bytes, caller=caller, call=context)
        message = await self._read(context, self._uploads, declared)
        if len(message) != declared:
            expected = f"expected the {declared} bytes that {MESSAGE_BYTES} declares"
            raise InvalidRequestError("message", f"{expected}, got {len(message)}.")
        return message, place

    async def receive_probe(self, context: Context) -> bytes:
        """Returns the message of a health check, which needs no admission.

        Few are read at a time, and not for long, so that they take little memory all together. The
        message of an honest one is there before it is asked for.

        Raises:
            QueueFullError: Others took too long.
            UploadTimeoutError: It is not there in time.
            InvalidRequestError: It is not there at all.
            LostMessageError: The call is over.
        """
        async with self._probes:
            return await self._read(context, self._probe_uploads)

    async def _receive_unknown(self, context: Context, caller: str) -> tuple[bytes, Place]:
        # A full or draining server refuses before the wait; bytes count only from its turn on.
        place = self._batcher.reserve(0, caller=caller, call=context)
        async with self._undeclared:
            self._batcher.resize(place, self._limits.max_message_bytes)
            return await self._read(context, self._uploads), place

    async def _read(
        self, context: Context, uploads: _Uploads, declared: int | None = None
    ) -> bytes:
        task: Any = asyncio.current_task()
        uploads.begin(task, self._limits.max_message_bytes if declared is None else declared)
        try:
            message: Any = await context.read()
            if message is grpc.aio.EOF:
                # If gRPC is about to cancel the call, as one that is too large, that is the error
                # to report.
                await asyncio.sleep(CANCELLATION_S)
        except asyncio.CancelledError:
            # `_Uploads` takes a task out before it cancels it; above 0, gRPC has done so as well.
            if task not in uploads.under_way and task.uncancel() == 0:
                raise UploadTimeoutError(uploads.timeout_s) from None
            # A message above the limit ends so if it declares no size: see `LostMessageError`.
            code = (
                grpc.StatusCode.CANCELLED
                if declared is not None
                else grpc.StatusCode.RESOURCE_EXHAUSTED
            )
            raise LostMessageError(code) from None
        finally:
            uploads.under_way.pop(task, None)
        if message is grpc.aio.EOF:
            raise InvalidRequestError("message", "expected one, got the end of the call. Send one.")
        return cast("bytes", message)


class _UploadLimit:
    """Limits how many messages are read at the same time; further ones wait in order.

    Args:
        what: The plural of what is limited, for errors.
        limit: The most at the same time.
        timeout_s: The longest wait.
    """

    def __init__(self, what: str, limit: int, timeout_s: float) -> None:
        self._what = what
        self._limit = limit
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(limit)
        self._waiting = 0

    async def __aenter__(self) -> None:
        if not self._free.locked():  # most find it so, and need no timer
            await self._free.acquire()
            return
        # Counted for the error alone; the semaphore keeps the order of arrival.
        self._waiting += 1
        actual = self._limit + self._waiting
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise QueueFullError(self._what, self._limit, actual, LEAST_RETRY_S) from None
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_exception: object) -> None:
        self._free.release()


class _Uploads:
    """Cancels tasks that have waited too long for a message.

    One timer for all, which is set for the oldest: one for each would cost small calls a percent.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self.under_way: dict[asyncio.Task[Any], tuple[float, int]] = {}
        """The instant at which each began to wait, in order, and its bytes; tasks that have waited
        remove themselves."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[Any], size_bytes: int) -> None:
        """Begins to watch a task that waits for a message."""
        self.under_way[task] = self._loop.time(), size_bytes
        # A timer that is set is due no later, as all waits have the same length.
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._expire)

    def _expire(self) -> None:
        now, self._timer = self._loop.time(), None
        # In order of their begin, so that the first one within its time ends the look.
        for task, (began, _) in list(self.under_way.items()):
            if now < began + self.timeout_s:
                self._timer = self._loop.call_at(began + self.timeout_s, self._expire)
                return
            # First, so that `_read` sees who has cancelled it.
            del self.under_way[task]
            task.cancel()


def label_of(path: str) -> str:
    """Returns the name of a method for counting, or one label for all of other services."""
    service, _, name = path[1:].rpartition("/")
    return name if name in LABELS.get(service, ()) else OTHER_METHOD


def logged_as(path: str) -> str:
    """Returns the name of a method for the log, or its whole path if it is not of the service."""
    label = label_of(path)
    return path[:MAX_PATH_CHARS] if label == OTHER_METHOD else label


def caller_of(context: Context, *, certified: bool = True) -> Caller:
    """Returns the caller of a call.

    Args:
        context: gRPC's context of the call.
        certified: Whether callers may have certificates; gRPC takes a while to look for one.
    """
    host, token = _host_at(context.peer()), presented_token.get()
    if token is not None:
        return Caller(token.name, host.transport, token.quota, token.name)
    name = _certified_name(context) if certified else ""
    return Caller(name, host.transport) if name else host


@lru_cache(MAX_PEERS)
def _host_at(peer: str) -> Caller:
    """Returns the host, or the user of this one, at the other end of a connection."""
    if peer.startswith("unix:"):
        return Caller("unix", "unix")
    if peer.startswith(f"{LOCAL}:"):
        return Caller(peer.removeprefix(f"{LOCAL}:"), LOCAL)
    return Caller(peer.rpartition(":")[0], "tcp")


def _certified_name(context: Context) -> str:
    """Returns the name in the certificate that TLS has verified; empty if there is none."""
    facts = context.auth_context()
    names = facts.get("x509_common_name") or facts.get("x509_subject_alternative_name") or ()
    return next((name.decode(errors="replace") for name in names), "")


def given_request_id(metadata: Metadata) -> str:
    """Returns the caller's id for a call if it has a harmless form, else nothing."""
    given = next((str(value) for key, value in metadata if key == REQUEST_ID), "")
    return given if _REQUEST_ID_FORM.fullmatch(given) else ""


def declared_bytes(metadata: Metadata) -> int | None:
    """Returns the size of its message that a call declares; None if it does not.

    Raises:
        InvalidRequestError: It is no number.
    """
    for key, value in metadata:
        if key == MESSAGE_BYTES:
            digits = str(value)
            # `int` would also take signs, spaces, underscores and the digits of other scripts.
            if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS):
                complaint = f"expected a number of bytes, got {digits[:100]!r}."
                raise InvalidRequestError(MESSAGE_BYTES, complaint)
            return int(digits)
    return None
