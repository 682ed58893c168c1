"""ttrpc, containerd's protocol for calls between processes of one host: unary calls, version 1.0.

`ClientConnection` and `ServerConnection` turn bytes into frames and frames into bytes, and know
neither sockets nor threads nor clocks; the owner of a socket feeds them. What stands in a frame are
the messages of `ttrpc_pb2`.
"""

from stn_proto.ttrpc.frames import (
    MAX_DATA_BYTES,
    ClientConnection,
    Frame,
    FrameError,
    OversizedFrame,
    ServerConnection,
)
from stn_proto.ttrpc.ttrpc_pb2 import KeyValue, Request, Response, Status

__all__ = [
    "MAX_DATA_BYTES",
    "ClientConnection",
    "Frame",
    "FrameError",
    "KeyValue",
    "OversizedFrame",
    "Request",
    "Response",
    "ServerConnection",
    "Status",
]
