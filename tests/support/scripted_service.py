"""A gRPC server on a real socket that answers any unary method by a script, and writes it down."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from stn_proto import join, put_tensor

Answer = Callable[[grpc.ServicerContext], bytes]

PATIENCE_S = 10.0
"""For events that happen at once unless the code under test is broken."""


@dataclass(frozen=True)
class Received:
    """One call as it came in."""

    method: str
    request: bytes
    metadata: dict[str, str | bytes]
    instant_s: float

    @property
    def request_id(self) -> str | bytes:
        return self.metadata["x-request-id"]


class ScriptedService(grpc.GenericRpcHandler):
    """Gives the next answer of the script to every call; without one, UNIMPLEMENTED."""

    def __init__(self, *answers: Answer) -> None:
        self.script = deque(answers)
        self.received: list[Received] = []
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, handler_call_details):
        if handler_call_details.method.startswith("/grpc.health."):
            return None  # not offered
        metadata = dict(handler_call_details.invocation_metadata)
        if "x-request-id" not in metadata:
            return None  # an SDK that looks for a local transport

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            call = Received(handler_call_details.method, request, metadata, time.monotonic())
            self.received.append(call)
            if not self.script:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "the script has ended")
            return self.script.popleft()(context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.stop(None).wait()


class Hang:
    """An answer that never comes: it waits until the caller is gone.

    A call with a short timeout may be over before a busy machine has brought it here.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gone = threading.Event()

    def __call__(self, context: grpc.ServicerContext) -> bytes:
        if not context.add_callback(self.gone.set):  # gone before the call was looked at
            self.gone.set()
        self.entered.set()
        self.gone.wait(PATIENCE_S)
        return b""


def reply(message: bytes) -> Answer:
    """An answer with these bytes."""
    return lambda _context: message


def abort(code: grpc.StatusCode, text: str = "as scripted", *details: Message) -> Answer:
    """An answer with a status, and its details in gRPC's richer error model."""

    def answer(context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(status_metadata(code, *details))
        context.abort(code, text)

    return answer


def status_metadata(code: grpc.StatusCode, *details: Message) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata as a server attaches it."""
    status = Status(code=code.value[0])
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def serialized(kind: type[Message], **arrays: np.ndarray) -> bytes:
    """A serialized message of which these fields are tensors."""
    payloads: list[memoryview] = []
    tensors = {name: put_tensor(array, payloads) for name, array in arrays.items()}
    return join(kind(**tensors).SerializeToString(), payloads)
