"""The methods of the service, each from a call to its serialized reply, by any transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType

from stn_proto.v1 import service_pb2
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Finished, Operation
from stn_server.call import Call
from stn_server.events import NO_LISTENERS, Events, Stage
from stn_server.many import Many
from stn_server.nested import NestedTranslator
from stn_server.quota import Quotas, Resize
from stn_server.tokens import UNLIMITED
from stn_server.translate import Request, Translator

SERVICE = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"].full_name

COMPUTE_MANY = "ComputeMany"

TRANSFERS = "Upload", "Download", "Release"

METHODS = (
    *(operation.value for operation in Operation),
    COMPUTE_MANY,
    *TRANSFERS,
    "GetServerInfo",
)

Method = Callable[[Call], Awaitable[bytes]]
"""Answers a call with its serialized reply; raises errors that `status` maps."""

Transfer = Callable[[bytes, str], bytes]
"""Answers a message of the named caller with a serialized reply; raises errors that `status`
maps."""


class Service:
    """Answers the calls of the service `SpatialTransformer`.

    Args:
        translator: Between messages and problems.
        batcher: Computes problems.
        server_info: The reply of `GetServerInfo`.
        events: Listeners of the stages of every call.
        transfers: Methods that move resident tensors.
    """

    def __init__(
        self,
        translator: Translator,
        batcher: Batcher,
        server_info: Callable[[], bytes],
        events: Events = NO_LISTENERS,
        transfers: Mapping[str, Transfer] = MappingProxyType({}),
    ) -> None:
        self._translator = translator
        self._nested_translator = NestedTranslator(translator)
        self._batcher = batcher
        self._server_info = server_info
        self._events = events
        self._reached = events.reached
        self.quotas = Quotas(batcher.now)
        self.methods: dict[str, Method] = {
            **{operation.value: partial(self._compute, operation) for operation in Operation},
            COMPUTE_MANY: self._compute_many,
            **{name: partial(self._transfer, transfers[name]) for name in transfers},
            "GetServerInfo": self._get_server_info,
        }

    async def _compute(self, operation: Operation, call: Call) -> bytes:
        if call.caller.quota is UNLIMITED:  # most are, and need no account
            return await self._admitted(operation, call, None)
        with self.quotas.admit(call.caller, call.message_bytes) as resize:
            return await self._admitted(operation, call, resize)

    async def _admitted(self, operation: Operation, call: Call, resize: Resize | None) -> bytes:
        message, place = await call.receive()
        for tell in self._reached:
            tell(Stage.DECODE, (call,))
        request = self._translator.decode(operation, message, call.caller.name)
        call.received_bytes = len(message)
        if resize is not None:
            resize(request.cost.size_bytes)
        reply: bytes = await self._batcher.submit(
            request.job,
            key=request.key,
            cost=request.cost,
            deadline=call.deadline,
            caller=call.caller.name,
            call=call,
            place=place,
            is_placed=request.is_placed,
            reply=partial(self._encode, call, request),
        )
        for tell in self._reached:
            tell(Stage.SEND, (call,))
        call.sent_bytes = len(reply)
        return reply

    def _encode(self, call: Call, request: Request, finished: Finished) -> bytes:
        for tell in self._reached:
            tell(Stage.ALLOCATE, (call,))
            tell(Stage.ENCODE, (call,))
        call.queue_s, call.compute_s = finished.queue_s, finished.compute_s
        return request.encode(finished)

    async def _compute_many(self, call: Call) -> bytes:
        """Answers the nested calls of one message, each of which succeeds or fails for itself."""
        with self.quotas.admit(call.caller, call.message_bytes) as resize:
            message, place = await call.receive()
            for tell in self._reached:
                tell(Stage.DECODE, (call,))
            nested = self._nested_translator.decode(message, call.caller.name)
            call.received_bytes = len(message)
            with Many(call, nested, self._events) as many:
                many.hold(self.quotas, resize)
                found = await self._batcher.submit_together(
                    many.wanted(), deadline=call.deadline, caller=call.caller.name, place=place
                )
                reply = many.reply(found)
        for tell in self._reached:
            tell(Stage.SEND, (call,))
        call.sent_bytes = len(reply)
        return reply

    async def _transfer(self, transfer: Transfer, call: Call) -> bytes:
        """Answers a call that sends, fetches or releases resident tensors."""
        with self.quotas.admit(call.caller, call.message_bytes) as resize:
            message, place = await call.receive()
            for tell in self._reached:
                tell(Stage.DECODE, (call,))
            resize(len(message))
            reply = transfer(message, call.caller.name)
            call.received_bytes = len(message)
            # Both are in memory until the reply has left.
            self._batcher.resize(place, len(message) + len(reply))
            resize(len(message) + len(reply))
        for tell in self._reached:
            tell(Stage.SEND, (call,))
        call.sent_bytes = len(reply)
        return reply

    async def _get_server_info(self, _call: Call) -> bytes:
        """Answers with what the server is; the message is not even read."""
        return self._server_info()
