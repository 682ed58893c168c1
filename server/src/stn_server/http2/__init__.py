"""gRPC over HTTP/2, as far as a server speaks it.

`frames` and `connection` know bytes and streams, `headers` and `messages` what gRPC makes of
them; none of these does I/O. `protocol` and `calls` are one connection of the event loop and its
calls, and `server` is what listens.
"""

from stn_server.http2.server import Http2Server

__all__ = ["Http2Server"]
