"""The wire contract of the spatial transformer service.

Owns the messages (`stn_proto.v1`), the tensor codec and the framing of payloads. Knows neither
the engine nor the server nor the client, so that both ends can share it.
"""

from stn_proto.codec import Declaration, get_declaration, get_tensor, put_tensor
from stn_proto.errors import WireFormatError
from stn_proto.framing import join, split

__all__ = [
    "Declaration",
    "WireFormatError",
    "get_declaration",
    "get_tensor",
    "join",
    "put_tensor",
    "split",
]
