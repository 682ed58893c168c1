"""Calls of the service, whichever transport brings them: received, answered, and their ends told.

A message counts for the calls that the server admits before it is read. By gRPC its size stands
before it, so that nobody need declare it: a call with a message that is not there yet counts for
it, and for a result of the same size until the real one is known. What has not been admitted takes
64 KiB of memory at most, as flow control keeps the rest with the caller. A message that is not
there in time is given up.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import grpc

from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Place
from stn_server.call import LOCAL, OTHER_METHOD, REQUEST_ID, Call, Caller
from stn_server.config import LimitsConfig
from stn_server.context import Context, Handler, Metadata
from stn_server.errors import (
    InvalidRequestError,
    MessageTooLargeError,
    UnauthenticatedError,
    UnknownMethodError,
    UploadTimeoutError,
    clear_frames,
)
from stn_server.events import NO_LISTENERS, End, Events
from stn_server.oip.service import OIP_METHODS, OIP_SERVICE
from stn_server.service import METHODS, SERVICE, Method, Service
from stn_server.status import Answer, answer_to
from stn_server.tuning import MAX_PEERS, PROBE_S

LABELS = {SERVICE: METHODS, OIP_SERVICE: OIP_METHODS}
"""The methods of both services, no two of which have the same name."""

PROBE_BYTES = 2**15
"""The longest message of a health check, half of what is taken before it is asked for."""

MAX_PATH_CHARS = 200
"""The most characters of an unknown method that the log quotes."""

Refuse = Callable[[Exception, str], Handler]
"""Makes a method that ends every call of a path with this error."""

Authenticate = Callable[[str, Context], None]
"""Notes the token of a call of a path; raises UnauthenticatedError if it needs another one."""

T = TypeVar("T")

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(slots=True, eq=False)
class ReceivedCall:
    """A `Call` as it came by a transport."""

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
        return self.context.metadata

    @property
    def request_id(self) -> str:
        """The id that the caller gave; if none, a new one whenever it is asked for."""
        return given_request_id(self.metadata) or uuid.uuid4().hex[:16]

    @property
    def message_bytes(self) -> int:
        """The size of its message as far as it is known; see `Call`."""
        return self.context.message_bytes()

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


class Handlers:
    """Serves the methods of a service by gRPC.

    Args:
        service: The service whose methods are called.
        receiver: Reads messages.
        now: The clock that deadlines refer to.
        events: Listeners of calls: how each began and ended.
        slow_call_s: The duration above which a call is reported as slow.
    """

    def __init__(
        self,
        service: Service,
        receiver: Receiver,
        now: Callable[[], float],
        events: Events = NO_LISTENERS,
        *,
        slow_call_s: float = math.inf,
    ) -> None:
        self._slow_call_s = slow_call_s
        self._service = service
        self._receiver = receiver
        self._now = now
        self._events = events
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def of_service(self) -> dict[str, Handler]:
        """Returns the handlers of the methods of the service, by their paths."""
        return self.of(SERVICE, self._service.methods)

    def of(self, service: str, methods: Mapping[str, Method]) -> dict[str, Handler]:
        """Returns the handlers of methods of one message and one reply, by their paths."""
        paths = ((f"/{service}/{name}", method) for name, method in methods.items())
        return {path: self.handler(path, method) for path, method in paths}

    def refusing(self, error: Exception, path: str) -> Handler:
        """Returns a handler that ends every call with this error, without reading its message."""

        async def refuse(_call: Call) -> bytes:
            raise error

        return self.handler(path, refuse)

    async def checked(self, path: str, context: Context, request: Awaitable[T]) -> T:
        """Waits for a request of another service, and answers and reports its failure."""
        call = self.call_of(label_of(path), logged_as(path), context)
        try:
            return await request
        except asyncio.CancelledError:
            self._failed(call, self._cut_off(call))
            raise
        except Exception as error:  # noqa: BLE001 - the table knows what to do with each
            ending = self.refuse(call, error)
        await ending
        raise asyncio.CancelledError  # its caller has gone

    async def idle(self) -> None:
        """Waits until the reply of every call has left."""
        await self._idle.wait()

    def refuse(self, call: ReceivedCall, error: Exception) -> Awaitable[bytes]:
        """Reports that a call failed; awaiting what it returns answers the call."""
        answer = answer_to(error, call.request_id)
        self._failed(call, End(answer.code, time.perf_counter() - call.began, answer, error))
        # After the listeners, which log the traceback.
        clear_frames(error)
        return call.abort(answer)

    def call_of(self, method: str, path: str, context: Context) -> ReceivedCall:
        """Makes the `ReceivedCall` of a call that has just come in.

        Args:
            method: The label of the method, as `label_of` returns it.
            path: The path for the log, as `logged_as` returns it.
            context: That of its transport.
        """
        deadline, caller = self._now() + context.remaining_s(), caller_of(context)
        return ReceivedCall(method, path, caller, deadline, context.began, context, self._receiver)

    def handler(self, path: str, method: Method) -> Handler:
        """Returns a handler whose every end is reported and mapped to a status."""
        label, shown = label_of(path), logged_as(path)

        async def answer(context: Context) -> bytes:
            call = self.call_of(label, shown, context)
            self.enter(call)
            return await self.answered(call, method)

        return answer

    def enter(self, call: Call) -> None:
        """Makes `idle` wait for a call until that is done."""
        self._calls += 1
        self._idle.clear()
        call.add_done_callback(self._leave)

    async def answered(self, call: ReceivedCall, method: Method) -> bytes:
        """Returns the reply to a call, or aborts it; its end is reported either way."""
        for tell_began in self._events.call_began:
            tell_began(call)
        try:
            reply = await method(call)
        except asyncio.CancelledError:
            self._failed(call, self._cut_off(call))
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
        # Not inside `except`: the call and the traceback of its refusal would become a reference
        # cycle, which only the garbage collector ends, some day.
        return await ending

    def _failed(self, call: ReceivedCall, end: End) -> None:
        for tell in (*self._events.call_ended, *self._events.call_failed):
            tell(call, end)
        if end.duration_s > self._slow_call_s:
            self._tell_slow(call, end)

    def _tell_slow(self, call: ReceivedCall, end: End) -> None:
        for tell in self._events.call_slow:
            tell(call, end)

    def _leave(self, _call: Any) -> None:
        """Counts a call as done, whose reply has left."""
        self._calls -= 1
        if self._calls == 0:
            self._idle.set()

    def _cut_off(self, call: ReceivedCall) -> End:
        """Returns the end of a call that its transport has cancelled."""
        duration_s = time.perf_counter() - call.began
        is_lost = call.context.is_amid_message
        # For its deadline as for any other reason: only the clock tells them apart.
        if self._now() >= call.deadline:
            note = "its message was not there before its deadline" if is_lost else ""
            return End(grpc.StatusCode.DEADLINE_EXCEEDED, duration_s, note=note)
        note = "its caller cancelled it, or went away, while its message came in" if is_lost else ""
        return End(grpc.StatusCode.CANCELLED, duration_s, note=note)


class Router:
    """Finds methods by their paths.

    Args:
        services: Methods by path; they have no path in common.
        refuse: Makes methods for calls that have none.
        authenticate: Asked before every method; None: no call needs a token.
    """

    def __init__(
        self,
        services: Sequence[Mapping[str, Handler]],
        refuse: Refuse,
        authenticate: Authenticate | None = None,
    ) -> None:
        self._methods = {path: method for one in services for path, method in one.items()}
        self._refuse = refuse
        self._authenticate = authenticate

    def find(self, path: str, context: Context) -> Handler:
        """Returns the method for a call, which may be one that refuses it."""
        if self._authenticate is not None:
            try:
                self._authenticate(path, context)
            except UnauthenticatedError as error:
                return self._refuse(error, path)
        method = self._methods.get(path)
        return self._refuse(UnknownMethodError(path), path) if method is None else method

    def refusing(self, error: Exception) -> Handler:
        """Returns a method for a call that cannot be read, whatever its path."""
        return self._refuse(error, "/")


class Receiver:
    """Reads the message of every call once it is admitted.

    Args:
        batcher: Admits calls.
        limits: The limits of one call.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, batcher: Batcher, limits: LimitsConfig) -> None:
        self._batcher = batcher
        self._limits = limits
        self._receiving: dict[Context, int] = {}

    def receiving_bytes(self) -> int:
        """Returns how many bytes of messages are being received."""
        return sum(list(self._receiving.values()))  # a copy, as another thread may ask

    async def receive(self, context: Context, caller: str) -> tuple[bytes, Place]:
        """Returns the message of a call, and its place until the call is over.

        Args:
            context: The call, of whichever transport.
            caller: The name of the caller.

        Raises:
            MessageTooLargeError: It is above the limit.
            RefusedError: There is no room.
            InvalidRequestError: The message is not there.
            UploadTimeoutError: It is not there in time.
            CancelledError: The call is over.
        """
        if context.message is not None:  # it came along with the call, as small ones do
            return context.message, self._reserve(context, caller, len(context.message))
        async with _in_time(self._limits.upload_s):
            announced = _present(await context.announced_bytes())
            largest = self._limits.max_message_bytes
            # Before a place is taken: no waiting makes room for such a message.
            if announced > largest:
                raise MessageTooLargeError("message", largest, announced, "bytes")
            place = self._reserve(context, caller, announced)
            self._receiving[context] = announced
            try:
                return _present(await context.read()), place
            finally:
                del self._receiving[context]

    async def receive_probe(self, context: Context) -> bytes:
        """Returns the message of a health check, which needs no admission.

        The message of an honest one is there before it is asked for.

        Raises:
            MessageTooLargeError: It is longer than such a message can be.
            UploadTimeoutError: It is not there in time.
            InvalidRequestError: It is not there at all.
            CancelledError: The call is over.
        """
        if context.message is not None:
            return context.message
        async with _in_time(PROBE_S):
            announced = _present(await context.announced_bytes())
            if announced > PROBE_BYTES:
                raise MessageTooLargeError("message", PROBE_BYTES, announced, "bytes")
            return _present(await context.read())

    def _reserve(self, context: Context, caller: str, size_bytes: int) -> Place:
        # The result counts as large as the message until its real size is known.
        result_bytes = min(size_bytes, self._limits.max_output_bytes)
        return self._batcher.reserve(size_bytes + result_bytes, caller=caller, call=context)


@asynccontextmanager
async def _in_time(timeout_s: float) -> AsyncIterator[None]:
    """Bounds the time that a message takes to come in."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise UploadTimeoutError(timeout_s) from None


def _present(found: T | None) -> T:
    """Returns what there is of a message, unless the caller has sent none."""
    if found is None:
        raise InvalidRequestError("message", "expected one, got the end of the call. Send one.")
    return found


def label_of(path: str) -> str:
    """Returns the name of a method for counting, or one label for all of other services."""
    service, _, name = path[1:].rpartition("/")
    return name if name in LABELS.get(service, ()) else OTHER_METHOD


def logged_as(path: str) -> str:
    """Returns the name of a method for the log, or its whole path if it is not of the service."""
    label = label_of(path)
    return path[:MAX_PATH_CHARS] if label == OTHER_METHOD else label


def caller_of(context: Context) -> Caller:
    """Returns the caller of a call: by its token, its certificate, or where it comes from."""
    host, token = _host_at(context.peer), context.token
    if token is not None:
        return Caller(token.name, host.transport, token.quota, token.name)
    return Caller(context.certified_name, host.transport) if context.certified_name else host


@lru_cache(MAX_PEERS)
def _host_at(peer: str) -> Caller:
    """Returns the host, or the user of this one, at the other end of a connection."""
    if peer.startswith("unix:"):
        return Caller("unix", "unix")
    if peer.startswith(f"{LOCAL}:"):
        return Caller(peer.removeprefix(f"{LOCAL}:"), LOCAL)
    return Caller(peer.rpartition(":")[0], "tcp")


def given_request_id(metadata: Metadata) -> str:
    """Returns the caller's id for a call if it has a harmless form, else nothing."""
    given = next((str(value) for key, value in metadata if key == REQUEST_ID), "")
    return given if _REQUEST_ID_FORM.fullmatch(given) else ""
