"""The wire contract of the spatial transformer service.

Owns the messages (`stn_proto.v1`), the codec of tensors and of constants, and the framing of
payloads. Knows neither the engine nor the server nor the client, so that both ends can share it.
"""

from stn_proto.codec import (
    Declaration,
    describe_tensor,
    get_declaration,
    get_tensor,
    put_tensor,
    to_payload,
)
from stn_proto.errors import FrameTooLargeError, WireFormatError
from stn_proto.fill import join_fill, split_fill
from stn_proto.framing import Frame, gaps, join, join_many, nested, split, split_many, values

__all__ = [
    "Declaration",
    "Frame",
    "FrameTooLargeError",
    "WireFormatError",
    "describe_tensor",
    "gaps",
    "get_declaration",
    "get_tensor",
    "join",
    "join_fill",
    "join_many",
    "nested",
    "put_tensor",
    "split",
    "split_fill",
    "split_many",
    "to_payload",
    "values",
]
