"""All public names of `stn_client`, which imports them from here when the first one is used."""

from stn_client import _transforms
from stn_client._aio import AsyncClient
from stn_client._arrays import SupportsArrayInterface, SupportsDLPack
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
from stn_client._prepared_call import Call, Gradients, Objective
from stn_client._residents import ResidentTensor
from stn_client._retry import RetryPolicy
from stn_client._server_info import Capabilities, Device, Limits, ServerInfo, ServerStatistics
from stn_client._statistics import ClientStatistics
from stn_client._transforms import *  # noqa: F403 - a kind is named there, and here by that

__all__ = [
    "AccessDeniedError",
    "AsyncClient",
    "Call",
    "CallOptions",
    "Capabilities",
    "Client",
    "ClientStatistics",
    "DeadlineExceededError",
    "Device",
    "Gradients",
    "GridCallOptions",
    "GridOptions",
    "InvalidRequestError",
    "Limits",
    "Objective",
    "OverloadedError",
    "ProtocolMismatchError",
    "ResidentTensor",
    "RetryPolicy",
    "ServerFaultError",
    "ServerInfo",
    "ServerStatistics",
    "StnClientError",
    "SupportsArrayInterface",
    "SupportsDLPack",
    "Tls",
    "TransportError",
    "UnavailableError",
    "WarpCallOptions",
    "WarpOptions",
]
__all__ += _transforms.__all__
