"""The RPC methods: bytes in, bytes out.

Handlers are registered without protobuf (de)serializers, so that tensor payloads stay views into
the message that gRPC received and replies are written once; and as streams of one message, which
are the same on the wire, so that a call is admitted before its message is read (`receiving`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import grpc
import grpc.aio

from stn_proto.v1 import service_pb2
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Finished, Operation
from stn_server.caller import REQUEST_ID, Caller, caller_of, request_id_of
from stn_server.errors import RefusedError, UnknownMethodError
from stn_server.faults import Point, Seam, no_fault
from stn_server.local.arenas import Arenas
from stn_server.log import log
from stn_server.metrics import OTHER_METHOD, Metrics
from stn_server.quota import Quotas
from stn_server.receiving import LostMessageError, Receiver, declared_bytes
from stn_server.status import Answer, answer_to
from stn_server.translate import Request, Translator

SERVICE = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"].full_name

METHODS = (*(operation.value for operation in Operation), "GetServerInfo")

MAX_PATH_CHARS = 200
"""Of a method that is not of the service, in the log."""

Context = grpc.aio.ServicerContext[bytes, bytes]


def label_of(path: str) -> str:
    """What a method is counted as: its name, or one label for all that are not of the service."""
    service, _, name = path[1:].rpartition("/")
    return name if service == SERVICE and name in METHODS else OTHER_METHOD


def logged_as(path: str) -> str:
    """What a method is called in the log: its name, or the whole path."""
    label = label_of(path)
    return path[:MAX_PATH_CHARS] if label == OTHER_METHOD else label


class ServiceCall(NamedTuple):
    """What of a call matters to what computes it."""

    context: Context
    caller: Caller
    deadline: float
    """Instant of the batcher's clock."""


Method = Callable[[ServiceCall], Awaitable[bytes]]
"""A call -> its serialized reply."""

Handler = Callable[[Any, Context], Awaitable[bytes]]
"""What gRPC calls, with an iterator of messages that nobody uses."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A status other than OK, on its way."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...]

    async def send(self, context: Context) -> bytes:
        """Ends the call, unless its caller has gone."""
        if not context.done():
            await context.abort(self.code, self.message, self.metadata)
        return b""


class Servicer:
    """Answers the calls of the service `SpatialTransformer`."""

    def __init__(
        self,
        translator: Translator,
        batcher: Batcher,
        receiver: Receiver,
        metrics: Metrics,
        server_info: Callable[[], bytes],
        seam: Seam = no_fault,
        *,
        certified: bool = True,
        arenas: Arenas | None = None,
    ) -> None:
        self._arenas = arenas
        self._seam = seam
        self._certified = certified
        self._translator = translator
        self._batcher = batcher
        self._receiver = receiver
        self._metrics = metrics
        self._server_info = server_info
        self._quotas = Quotas(batcher.now)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._methods: dict[str, Method] = {
            **{operation.value: self._compute(operation) for operation in Operation},
            "GetServerInfo": self._get_server_info,
        }

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.stream_unary_rpc_method_handler(
                    self.guarded(f"/{SERVICE}/{name}", method)
                )
                for name, method in self._methods.items()
            },
        )

    def refuse_unknown(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers last: for methods that nobody else has."""
        return _Unknown(self.refusing)

    def refusing(self, error: Exception, path: str = "/") -> Handler:
        """A method that ends every call with this error."""

        async def refuse(_call: ServiceCall) -> bytes:
            raise error

        return self.guarded(path, refuse)

    async def idle(self) -> None:
        """Returns when the reply of every call has left."""
        await self._idle.wait()

    def _compute(self, operation: Operation) -> Method:
        async def method(call: ServiceCall) -> bytes:
            context, caller = call.context, call.caller
            declared = declared_bytes(context)
            with self._quotas.admit(caller, declared or 0) as resize:
                message, place = await self._receiver.receive(context, caller.name, declared)
                self._seam(Point.DECODE)
                find = None if self._arenas is None else partial(self._arenas.find, caller.name)
                request = self._translator.decode(operation, message, find)
                self._metrics.payload_moved("received", caller.transport, len(message))
                resize(request.cost.size_bytes)
                reply: bytes = await self._batcher.submit(
                    request.job,
                    key=request.key,
                    cost=request.cost,
                    deadline=call.deadline,
                    caller=caller.name,
                    place=place,
                    reply=lambda finished: self._encode(request, finished),
                )
            self._metrics.payload_moved("sent", caller.transport, len(reply))
            return reply

        return method

    def _encode(self, request: Request, finished: Finished) -> bytes:
        self._seam(Point.ALLOCATE)
        self._seam(Point.ENCODE)
        return request.encode(finished)

    async def _get_server_info(self, _call: ServiceCall) -> bytes:
        """Whatever the message says; it is not even read."""
        return self._server_info()

    def guarded(self, path: str, method: Method) -> Handler:
        """A method whose every end is counted, logged and mapped to a status."""
        label, name = label_of(path), logged_as(path)

        async def handler(_messages: Any, context: Context) -> bytes:
            self._enter(context)
            started, deadline = time.perf_counter(), self._deadline_of(context)
            caller = caller_of(context, certified=self._certified)
            code = grpc.StatusCode.OK
            try:
                return await method(ServiceCall(context, caller, deadline))
            except asyncio.CancelledError as error:
                code = self._code_of_end(error, deadline)
                if isinstance(error, LostMessageError):
                    request_id = request_id_of(context)
                    _log_loss(code, method=name, caller=caller.name, request_id=request_id)
                raise
            except Exception as error:  # noqa: BLE001 - the table knows what to do with each
                refusal = self._refusal(name, error, context, caller)
                code = refusal.code
                _let_go(error)
            finally:
                duration_s = time.perf_counter() - started
                self._metrics.request_finished(label, code.name, duration_s)
            # Not inside `except`: gRPC ties the call and the traceback of its refusal into a ring
            # that only the collector unties, some day.
            return await refusal.send(context)

        return handler

    def _enter(self, context: Context) -> None:
        """Counts a call until its reply has left."""
        self._calls += 1
        self._idle.clear()
        leave: Any = self._leave  # the stubs want a class
        context.add_done_callback(leave)

    def _leave(self, _context: Context) -> None:
        self._calls -= 1
        if self._calls == 0:
            self._idle.set()

    def _refusal(self, name: str, error: Exception, context: Context, caller: Caller) -> _Refusal:
        """What the caller of a failed method is told; tells the operator, too."""
        request_id = request_id_of(context)
        answer = answer_to(error, request_id)
        facts = {"method": name, "caller": caller.name, "request_id": request_id}
        _log_failure(error, answer, **facts)
        if isinstance(error, RefusedError):
            self._metrics.item_refused(answer.reason)
        metadata = ((REQUEST_ID, request_id), *answer.metadata())
        return _Refusal(answer.code, answer.message, metadata)

    def _code_of_end(self, error: asyncio.CancelledError, deadline: float) -> grpc.StatusCode:
        """How a call ended that gRPC has ended."""
        if self._batcher.now() >= deadline:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return error.code if isinstance(error, LostMessageError) else grpc.StatusCode.CANCELLED

    def _deadline_of(self, context: Context) -> float:
        """The caller's deadline as an instant of the batcher's clock."""
        remaining_s = cast("float | None", context.time_remaining())  # the stubs forget the None
        return math.inf if remaining_s is None else self._batcher.now() + remaining_s


class _Unknown(grpc.GenericRpcHandler):
    """Refuses every method.

    Args:
        refusing: As `Servicer.refusing`.
    """

    def __init__(self, refusing: Callable[[Exception, str], Handler]) -> None:
        self._refusing = refusing

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """See the class."""
        path = details.method
        refuse = self._refusing(UnknownMethodError(path), path)
        return grpc.stream_unary_rpc_method_handler(refuse)


def _log_loss(code: grpc.StatusCode, **facts: Any) -> None:
    """Tells the operator of a call whose message never was there."""
    reason = "its caller cancelled it, or went away, while its message came in"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        reason = f"its message is above limits.max_message_bytes, or {reason}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = "its message was not there before its deadline"
    log(logging.INFO, "request failed", code=code.name, reason=reason, **facts)


def _log_failure(error: Exception, answer: Answer, **facts: str) -> None:
    """Tells the operator, with a traceback where the fault is ours."""
    shown = error if answer.code is grpc.StatusCode.INTERNAL else None
    log(answer.log_level, "request failed", error=shown, code=answer.code.name, **facts)


def _let_go(error: BaseException | None) -> None:
    """Frees what is held by the frames that an error and its causes went through.

    A frame that waited, its future and the error in that form a ring, from which the message hangs.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
