"""Server reflection under both of its names: `v1`, and `v1alpha` for tools that are older."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from stn_server.grpc_transport import Context, GrpcTransport
from stn_server.operands import parse_any_version

METHOD = "ServerReflectionInfo"
V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")


class Reflection:
    """Describes services, and reflection itself, to tools without .proto files.

    Args:
        services: The names of those besides.
        transport: Reports and answers calls without a proper message.
    """

    def __init__(self, services: Sequence[str], transport: GrpcTransport) -> None:
        _describe_v1()
        self._transport = transport
        self._servicer = reflection.aio.ReflectionServicer((*services, V1ALPHA, V1))

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Returns the handlers of reflection, for registration in a gRPC server."""
        # grpcio-reflection has v1alpha alone, whose messages have the bytes of v1.
        return self._handler(V1ALPHA), self._handler(V1)

    def _handler(self, service: str) -> grpc.GenericRpcHandler:
        path, checked = f"/{service}/{METHOD}", self._transport.checked

        async def requests(context: Context) -> AsyncIterator[ServerReflectionRequest]:
            while (request := await checked(path, context, _next(context))) is not None:
                yield request

        async def answer(_messages: Any, context: Context) -> None:
            self._transport.backlog.begun += 1
            async for response in self._servicer.ServerReflectionInfo(requests(context), context):
                await context.write(response)

        write = ServerReflectionResponse.SerializeToString
        method: Any = grpc.stream_stream_rpc_method_handler(answer, None, write)
        return grpc.method_handlers_generic_handler(service, {METHOD: method})


async def _next(context: Context) -> ServerReflectionRequest | None:
    message: Any = await context.read()
    return None if message is grpc.aio.EOF else parse_any_version(message, ServerReflectionRequest)


def _describe_v1() -> None:
    """Registers the descriptor of v1: that of v1alpha but for the name of the package."""
    known = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(known)
    text = text_format.MessageToString(known).replace("v1alpha", "v1")
    named = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(named.SerializeToString())
