"""Server reflection under both of its names: `v1`, and `v1alpha` for tools that are older."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial

from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
)

from stn_server.context import Context, Handler
from stn_server.handlers import Handlers
from stn_server.operands import parse_any_version

METHOD = "ServerReflectionInfo"
V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")


Requests = AsyncIterator[ServerReflectionRequest]


class Reflection:
    """Describes services, and reflection itself, to tools without .proto files.

    Args:
        services: The names of those besides.
        handlers: Reports and answers calls without a proper message.
    """

    def __init__(self, services: Sequence[str], handlers: Handlers) -> None:
        _describe_v1()
        self._handlers = handlers
        self._servicer = reflection.aio.ReflectionServicer((*services, V1ALPHA, V1))

    def handlers(self) -> dict[str, Handler]:
        """Returns the handlers of reflection, by their paths."""
        # grpcio-reflection has v1alpha alone, whose messages have the bytes of v1.
        paths = (f"/{service}/{METHOD}" for service in (V1ALPHA, V1))
        return {path: partial(self._answer, path) for path in paths}

    async def _answer(self, path: str, context: Context) -> None:
        requests = self._requests(path, context)
        async for response in self._servicer.ServerReflectionInfo(requests, context):
            await context.write(response.SerializeToString())

    async def _requests(self, path: str, context: Context) -> Requests:
        checked = self._handlers.checked
        while (request := await checked(path, context, _next(context))) is not None:
            yield request


async def _next(context: Context) -> ServerReflectionRequest | None:
    message = await context.read()
    return None if message is None else parse_any_version(message, ServerReflectionRequest)


def _describe_v1() -> None:
    """Registers the descriptor of v1: that of v1alpha but for the name of the package."""
    known = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(known)
    text = text_format.MessageToString(known).replace("v1alpha", "v1")
    named = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(named.SerializeToString())
