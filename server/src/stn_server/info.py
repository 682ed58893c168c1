"""The reply of `GetServerInfo`: what a server can do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version

import torch

import stn_engine
from stn_engine import checks
from stn_engine.dispatch import select
from stn_proto.codec import data_type
from stn_proto.v1 import server_info_pb2, tensor_pb2, warp_pb2
from stn_server.batching.batcher import Statistics
from stn_server.config import ConfigError, ServerConfig
from stn_server.operands import LAYOUTS, NUMPY_DTYPES, transforms_in
from stn_server.service import METHODS
from stn_server.vocabulary import offered

DIMENSIONS = (2, 3)
"""The numbers of dimensions: images have two, volumes three."""


class ServerInfo:
    """Describes one server; the static part is made once."""

    def __init__(
        self,
        config: ServerConfig,
        is_ready: Callable[[], bool],
        statistics: Callable[[], Statistics],
        devices: Iterable[str] = ("cpu",),
    ) -> None:
        self._started = time.monotonic()
        self._is_ready = is_ready
        self._statistics = statistics
        self._static = server_info_pb2.GetServerInfoReply(
            name="stn-server",
            version=version("stn-server"),
            devices=[
                server_info_pb2.Device(name=name, backend=backend_on(name)) for name in devices
            ],
            capabilities=[_capabilities(dimensions) for dimensions in DIMENSIONS],
            limits=_limits(config),
            instance_id=secrets.token_hex(16),
            methods=METHODS,
            local_dir=config.local.dir,
        )

    def message(self) -> bytes:
        """Returns the serialized reply as of this moment."""
        reply = server_info_pb2.GetServerInfoReply()
        reply.CopyFrom(self._static)
        reply.uptime_s = time.monotonic() - self._started
        reply.ready = self._is_ready()
        reply.statistics.CopyFrom(server_info_pb2.Statistics(**asdict(self._statistics())))
        return reply.SerializeToString()


def backend_on(device: str) -> str:
    """Returns the name of the backend that warps on a device."""
    feature_map, theta = torch.zeros(1, 1, 1, 1), torch.eye(2, 3)[None]
    transform = stn_engine.Affine(theta.to(device))
    try:
        return select(stn_engine.WarpProblem(feature_map.to(device), transform)).name
    except (stn_engine.ParameterError, stn_engine.BackendUnavailableError) as error:
        raise ConfigError(str(error)) from None  # of the variable that names the only one


def _capabilities(dimensions: int) -> server_info_pb2.Capabilities:
    """Returns what the engine computes on maps of so many dimensions."""
    return server_info_pb2.Capabilities(
        dimensions=dimensions,
        data_types=_data_types(checks.FEATURE_MAP_DTYPES),
        gradient_data_types=_data_types(checks.GRADIENT_DTYPES),
        parameter_data_types=_data_types(checks.PARAMETER_DTYPES),
        layouts=LAYOUTS,
        interpolations=offered(warp_pb2.Interpolation, stn_engine.Interpolation),
        paddings=offered(warp_pb2.Padding, stn_engine.Padding),
        coordinates=offered(warp_pb2.Coordinates, stn_engine.Coordinates),
        subgradients=offered(warp_pb2.Subgradient, stn_engine.Subgradient),
        transforms=transforms_in(dimensions),
    )


def _data_types(dtypes: Iterable[torch.dtype]) -> list[tensor_pb2.DataType]:
    return [data_type(NUMPY_DTYPES[dtype]) for dtype in dtypes]


def _limits(config: ServerConfig) -> server_info_pb2.Limits:
    return server_info_pb2.Limits(
        max_message_bytes=config.limits.max_message_bytes,
        max_payloads=config.limits.max_payloads,
        max_envelope_bytes=config.limits.max_envelope_bytes,
        max_output_bytes=config.limits.max_output_bytes,
        max_output_samples=config.limits.max_output_samples,
        max_dimension_px=config.limits.max_dimension_px,
        max_control_points=config.limits.max_control_points,
        max_calls=config.limits.max_calls,
        max_resident_bytes=min(config.residents.max_bytes, config.residents.max_caller_bytes),
        resident_lease_s=config.residents.lease_s,
        max_admitted_items=config.batching.max_admitted_items,
        max_admitted_bytes=config.batching.max_admitted_bytes,
    )
