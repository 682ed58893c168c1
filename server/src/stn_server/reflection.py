"""Server reflection under both of its names: `v1`, and `v1alpha` for tools that are older."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")


def reflect(services: Sequence[str], server: grpc.aio.Server) -> None:
    """Describes services, and reflection itself, to tools without .proto files."""
    _describe_v1()
    names = (*services, V1ALPHA, V1)
    reflection.enable_server_reflection(names, server)
    # grpcio-reflection has v1alpha alone, whose messages have the bytes of v1.
    method = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))


def _describe_v1() -> None:
    """Makes the descriptor of v1 known: that of v1alpha but for the name of the package."""
    known = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(known)
    text = text_format.MessageToString(known).replace("v1alpha", "v1")
    named = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(named.SerializeToString())
