"""What `GetServerInfo` tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

import stn_engine
from stn_engine.dispatch import candidates
from stn_proto.codec import DTYPES
from stn_proto.v1 import server_info_pb2, warp_pb2
from stn_server.batching.batcher import Statistics
from stn_server.config import ConfigError, ServerConfig
from stn_server.operands import TRANSFORMS
from stn_server.vocabulary import offered


class ServerInfo:
    """Describes one server; the static part is made once."""

    def __init__(
        self,
        config: ServerConfig,
        is_ready: Callable[[], bool],
        statistics: Callable[[], Statistics],
    ) -> None:
        self._started = time.monotonic()
        self._is_ready = is_ready
        self._statistics = statistics
        self._static = server_info_pb2.GetServerInfoReply(
            name="stn-server",
            version=version("stn-server"),
            devices=[server_info_pb2.Device(name="cpu", backend=_preferred_backend())],
            capabilities=_capabilities(),
            limits=_limits(config),
        )

    def message(self) -> bytes:
        """The serialized reply of this moment."""
        reply = server_info_pb2.GetServerInfoReply()
        reply.CopyFrom(self._static)
        reply.uptime_s = time.monotonic() - self._started
        reply.ready = self._is_ready()
        reply.statistics.CopyFrom(server_info_pb2.Statistics(**asdict(self._statistics())))
        return reply.SerializeToString()


def _preferred_backend() -> str:
    try:
        return candidates()[0].name
    except stn_engine.ParameterError as error:  # of the variable that chooses it
        raise ConfigError(str(error)) from None


def _capabilities() -> server_info_pb2.Capabilities:
    return server_info_pb2.Capabilities(
        data_types=list(DTYPES),
        interpolations=offered(warp_pb2.Interpolation, stn_engine.Interpolation),
        paddings=offered(warp_pb2.Padding, stn_engine.Padding),
        coordinates=offered(warp_pb2.Coordinates, stn_engine.Coordinates),
        subgradients=offered(warp_pb2.Subgradient, stn_engine.Subgradient),
        transforms=TRANSFORMS,
    )


def _limits(config: ServerConfig) -> server_info_pb2.Limits:
    return server_info_pb2.Limits(
        max_message_bytes=config.limits.max_message_bytes,
        max_output_bytes=config.limits.max_output_bytes,
        max_output_samples=config.limits.max_output_samples,
        max_dimension_px=config.limits.max_dimension_px,
        max_admitted_items=config.batching.max_admitted_items,
        max_admitted_bytes=config.batching.max_admitted_bytes,
    )
