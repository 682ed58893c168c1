"""The plain generated stub, for callers who want neither the SDK nor its framing."""

import grpc
import pytest

from stn_proto.v1 import service_pb2_grpc

METHODS = ("Warp", "WarpGradients", "GenerateGrid", "GenerateGridGradients", "GetServerInfo")


@pytest.mark.parametrize("name", METHODS)
def test_stub_has_every_method(name):
    """Stub and servicer offer each method of the service."""
    with grpc.insecure_channel("localhost:1") as channel:
        assert callable(getattr(service_pb2_grpc.SpatialTransformerStub(channel), name))
    assert callable(getattr(service_pb2_grpc.SpatialTransformerServicer, name))
