"""SDK of the spatial transformer service: remote warps and exact gradients that feel local.

NumPy arrays go in and come out of `Client` and `AsyncClient`; `stn_client.torch` makes the same
calls differentiable for torch. `stn_client.local` starts a server on this machine.
"""

from stn_client._aio import AsyncClient
from stn_client._calls import Gradients
from stn_client._client import Client
from stn_client._credentials import Tls
from stn_client._errors import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ProtocolMismatchError,
    ServerFaultError,
    StnClientError,
    TransportError,
    UnavailableError,
)
from stn_client._options import GridOptions, WarpOptions
from stn_client._retry import RetryPolicy
from stn_client._transforms import (
    Affine,
    Attention,
    Flow,
    Homography,
    ParametricTransform,
    Rotation,
    SamplingGrid,
    Similarity,
    Transform,
    Translation,
)

__all__ = [
    "AccessDeniedError",
    "Affine",
    "AsyncClient",
    "Attention",
    "Client",
    "DeadlineExceededError",
    "Flow",
    "Gradients",
    "GridOptions",
    "Homography",
    "InvalidRequestError",
    "OverloadedError",
    "ParametricTransform",
    "ProtocolMismatchError",
    "RetryPolicy",
    "Rotation",
    "SamplingGrid",
    "ServerFaultError",
    "Similarity",
    "StnClientError",
    "Tls",
    "Transform",
    "Translation",
    "TransportError",
    "UnavailableError",
    "WarpOptions",
]

for _name in __all__:
    if _name.endswith("Error"):  # tracebacks and pickles name what users can import
        globals()[_name].__module__ = __name__
