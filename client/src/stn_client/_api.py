"""All public names of `stn_client`, which imports them from here when the first one is used."""

from stn_client._aio import AsyncClient
from stn_client._arrays import SupportsArrayInterface, SupportsDLPack
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
from stn_client._options import (
    CallOptions,
    GridCallOptions,
    GridOptions,
    WarpCallOptions,
    WarpOptions,
)
from stn_client._retry import RetryPolicy
from stn_client._server_info import Capabilities, Device, Limits, ServerInfo, ServerStatistics
from stn_client._statistics import ClientStatistics
from stn_client._transforms import (
    Affine,
    Attention,
    Flow,
    Homography,
    ParametricTransform,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Transform,
    Translation,
)

__all__ = [
    "AccessDeniedError",
    "Affine",
    "AsyncClient",
    "Attention",
    "CallOptions",
    "Capabilities",
    "Client",
    "ClientStatistics",
    "DeadlineExceededError",
    "Device",
    "Flow",
    "Gradients",
    "GridCallOptions",
    "GridOptions",
    "Homography",
    "InvalidRequestError",
    "Limits",
    "OverloadedError",
    "ParametricTransform",
    "ProtocolMismatchError",
    "RetryPolicy",
    "Rotation",
    "SamplingGrid",
    "ServerFaultError",
    "ServerInfo",
    "ServerStatistics",
    "Similarity",
    "StnClientError",
    "SupportsArrayInterface",
    "SupportsDLPack",
    "ThinPlateSpline",
    "Tls",
    "Transform",
    "Translation",
    "TransportError",
    "UnavailableError",
    "WarpCallOptions",
    "WarpOptions",
]
