"""The RPC methods: bytes in, bytes out.

Handlers are registered without protobuf (de)serializers, so that tensor payloads stay views into
the message that gRPC received and replies are written once.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import grpc
import grpc.aio

from stn_proto.v1 import service_pb2
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Finished, Operation
from stn_server.caller import REQUEST_ID, Caller, caller_of, request_id_of
from stn_server.errors import RefusedError
from stn_server.faults import Point, Seam, no_fault
from stn_server.log import log
from stn_server.metrics import Metrics
from stn_server.quota import Quotas
from stn_server.status import Answer, answer_to
from stn_server.translate import Request, Translator

SERVICE = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"].full_name

Context = grpc.aio.ServicerContext[bytes, bytes]


class _Call(NamedTuple):
    """What of a call matters to what computes it."""

    context: Context
    caller: Caller
    deadline: float
    """Instant of the batcher's clock."""


Method = Callable[[bytes, _Call], Awaitable[bytes]]
"""Serialized request -> serialized reply."""


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
        metrics: Metrics,
        server_info: Callable[[], bytes],
        seam: Seam = no_fault,
        *,
        certified: bool = True,
    ) -> None:
        self._seam = seam
        self._certified = certified
        self._translator = translator
        self._batcher = batcher
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
                name: grpc.unary_unary_rpc_method_handler(self._guarded(name, method))
                for name, method in self._methods.items()
            },
        )

    async def idle(self) -> None:
        """Returns when the reply of every call has left."""
        await self._idle.wait()

    def _compute(self, operation: Operation) -> Method:
        async def method(message: bytes, call: _Call) -> bytes:
            self._seam(Point.DECODE)
            request = self._translator.decode(operation, message)
            self._metrics.payload_moved("received", call.caller.transport, len(message))
            with self._quotas.admit(call.caller, request.cost.size_bytes):
                reply: bytes = await self._batcher.submit(
                    request.job,
                    key=request.key,
                    cost=request.cost,
                    deadline=call.deadline,
                    caller=call.caller.name,
                    call=call.context,
                    reply=lambda finished: self._encode(request, finished),
                )
            self._metrics.payload_moved("sent", call.caller.transport, len(reply))
            return reply

        return method

    def _encode(self, request: Request, finished: Finished) -> bytes:
        self._seam(Point.ALLOCATE)
        self._seam(Point.ENCODE)
        return request.encode(finished)

    async def _get_server_info(self, _message: bytes, _call: _Call) -> bytes:
        return self._server_info()

    def _guarded(self, name: str, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """A method whose every end is counted, logged and mapped to a status."""

        async def handler(message: bytes, context: Context) -> bytes:
            self._enter(context)
            started, deadline = time.perf_counter(), self._deadline_of(context)
            caller = caller_of(context, certified=self._certified)
            code = grpc.StatusCode.OK
            try:
                return await method(message, _Call(context, caller, deadline))
            except asyncio.CancelledError:
                late = self._batcher.now() >= deadline
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # noqa: BLE001 - the table knows what to do with each
                refusal = self._refusal(name, error, context, caller)
                code = refusal.code
                _let_go(error)
            finally:
                duration_s = time.perf_counter() - started
                self._metrics.request_finished(name, code.name, duration_s)
            # Not inside `except`, and without the message: gRPC ties the call and the traceback of
            # its refusal into a ring that only the collector unties, some day.
            del message
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
            self._metrics.item_refused(error.reason)
        metadata = ((REQUEST_ID, request_id), *answer.metadata())
        return _Refusal(answer.code, answer.message, metadata)

    def _deadline_of(self, context: Context) -> float:
        """The caller's deadline as an instant of the batcher's clock."""
        remaining_s = cast("float | None", context.time_remaining())  # the stubs forget the None
        return math.inf if remaining_s is None else self._batcher.now() + remaining_s


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
