"""The composition root: makes every part of a server from the configuration, and wires them."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc.aio
import torch
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from prometheus_client import CollectorRegistry, ProcessCollector

from stn_proto.ttrpc import MAX_DATA_BYTES
from stn_server.auth import Authenticator
from stn_server.batching.batcher import Batcher, Runner
from stn_server.batching.devices import Device, EngineRunner, Lanes, devices_of
from stn_server.batching.policy import Policy, PolicyLimits
from stn_server.batching.work import Cost
from stn_server.config import BatchingConfig, ConfigError, ServerConfig
from stn_server.cores import threads_within, throttling, usable_cores
from stn_server.costs import COLOUR_WORK
from stn_server.environment import loading
from stn_server.event_loop import Backlog, LoopMonitor, accepted_calls
from stn_server.events import Events, Listener
from stn_server.grpc_transport import GrpcTransport, Receiver
from stn_server.health import Health
from stn_server.info import ServerInfo, backend_on
from stn_server.local.arenas import Arenas
from stn_server.local.transport import LocalTransport
from stn_server.log import EventLog
from stn_server.memory import resident_bytes
from stn_server.metrics import Metrics
from stn_server.oip.service import OIP_SERVICE, InferenceService
from stn_server.oip.streams import Streams
from stn_server.operands import Memory
from stn_server.reflection import Reflection
from stn_server.reload import Watch
from stn_server.residents import Residents
from stn_server.self_test import SelfTest
from stn_server.service import SERVICE, Service
from stn_server.tls import Certificates
from stn_server.tokens import read_tokens
from stn_server.transfers import Transfers
from stn_server.translate import Translator
from stn_server.tuning import (
    HANDSHAKE_S,
    MAX_PENDING_CALLS,
    SIGN_OF_LIFE_MS,
    UNDECLARED_PART,
)

if TYPE_CHECKING:
    from stn_server.tracing import Tracing

HEALTH_NAMES = ("", SERVICE, OIP_SERVICE)
"""Services whose readiness is reported: the server as a whole, and ours."""

DESCRIBED = (SERVICE, OIP_SERVICE, HEALTH_SERVICE)
"""Services that reflection tells about, beside itself."""

COUNTING = ("grpc.enable_channelz", 1)
"""Enables gRPC's own count of the calls that it accepts."""

NO_LIMIT = 2**31 - 1
"""The value with which gRPC never ends a connection."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a server; none of them works yet."""

    config: ServerConfig
    registry: CollectorRegistry
    metrics: Metrics
    event_log: EventLog
    tracing: Tracing | None
    events: Events
    files: Watch
    certificates: Certificates | None
    """The certificates of the addresses that serve calls; None: they speak no TLS."""
    lanes: Lanes
    batcher: Batcher
    residents: Residents
    transport: GrpcTransport
    local: LocalTransport | None
    """Takes calls of processes on this host, if that is configured."""
    health: Health
    monitor: LoopMonitor
    self_test: SelfTest
    grpc_server: grpc.aio.Server
    """Serves the callers."""
    admin_server: grpc.aio.Server
    """Answers probes and operators, inside the deployment only."""


def build(
    config: ServerConfig,
    runner: Runner | None = None,
    *listeners: Listener,
    now: Callable[[], float] | None = None,
) -> Parts:
    """Makes the parts of a server; it listens nowhere, starts and computes nothing.

    Args:
        config: The configuration of the server.
        runner: Computes batches; None: the engine does, on the devices of the configuration.
        listeners: Further listeners, beside metrics, spans and the log.
        now: The clock that deadlines refer to; None: that of the system.

    Raises:
        ConfigError: The configuration asks for what is not here.

    Concurrency: the parts belong to the event loop that runs.
    """
    torch.set_num_threads(config.threads or threads_within(torch.get_num_threads()))
    devices = devices_of(config.device, config.residents.max_bytes)
    registry, event_log, tracing = CollectorRegistry(), EventLog(), _tracing(config)
    metrics = Metrics(registry, backend_on(devices[0].name))
    events = Events(metrics, event_log, *([tracing] if tracing else []), *listeners)
    files, health = Watch(events), Health(HEALTH_NAMES)

    # What computes.
    lanes = _lanes(devices, runner, events)
    policy = Policy(_policy_limits(config.batching, len(lanes)))
    clock = time.monotonic if now is None else now
    batcher = Batcher(policy, lanes, events, clock, stall_s=config.batching.stall_s)
    self_test = SelfTest(batcher, health, config.batching.stall_s)
    events.add(self_test)

    # Where tensors lie that come with no message, what answers calls, and what brings these.
    arenas, residents = Arenas(config.local), Residents(config.residents, events, batcher.now)
    services = _services(config, batcher, lanes, arenas, residents, health, events)
    transports = _transports(config, batcher, services, arenas, health, files, events)

    parts = Parts(
        config=config,
        registry=registry,
        metrics=metrics,
        event_log=event_log,
        tracing=tracing,
        events=events,
        files=files,
        certificates=Certificates(config.tls, files) if config.tls.certificate else None,
        lanes=lanes,
        batcher=batcher,
        residents=residents,
        transport=transports.transport,
        local=transports.local,
        health=health,
        monitor=LoopMonitor(transports.backlog, events, config.lifecycle.hang_s),
        self_test=self_test,
        grpc_server=transports.grpc_server,
        admin_server=transports.admin_server,
    )
    _expose(parts, devices, arenas, transports)
    return parts


def _lanes(devices: Sequence[Device], runner: Runner | None, events: Events) -> Lanes:
    """Returns a lane for every device, or one on which a given runner computes."""
    if runner is not None:
        return Lanes([("cpu", runner)], events)
    return Lanes([(device.name, EngineRunner(device, events)) for device in devices], events)


@dataclass(frozen=True, slots=True)
class _Services:
    """What answers calls, whatever transport brings them."""

    service: Service
    inference: InferenceService
    """The same in the Open Inference Protocol."""


def _services(
    config: ServerConfig,
    batcher: Batcher,
    lanes: Lanes,
    arenas: Arenas,
    residents: Residents,
    health: Health,
    events: Events,
) -> _Services:
    """Makes what makes problems of messages, and replies of results."""

    def is_ready() -> bool:
        return health.is_ready

    memory = Memory(arenas if config.local.dir else None, residents)
    translator = Translator(config.limits, memory)
    transfers = Transfers(residents, config.limits, memory)
    info = ServerInfo(config, is_ready, batcher.statistics, lanes.devices)
    service = Service(translator, batcher, info.message, events, transfers.methods)
    inference = InferenceService(config, translator, batcher, service.quotas, is_ready, events)
    return _Services(service, inference)


@dataclass(frozen=True, slots=True)
class _Transports:
    """What brings messages to the services."""

    backlog: Backlog
    receiver: Receiver
    transport: GrpcTransport
    local: LocalTransport | None
    grpc_server: grpc.aio.Server
    admin_server: grpc.aio.Server


def _transports(
    config: ServerConfig,
    batcher: Batcher,
    services: _Services,
    arenas: Arenas,
    health: Health,
    files: Watch,
    events: Events,
) -> _Transports:
    """Makes what brings messages: gRPC for callers and for operators, and the local transport."""
    backlog = Backlog()
    receiver = Receiver(batcher, config.limits, config.batching.max_admitted_bytes)
    transport = GrpcTransport(
        services.service,
        receiver,
        batcher.now,
        events,
        backlog,
        certified=bool(config.tls.client_ca),
        slow_call_s=config.log.slow_call_s or math.inf,
    )
    most_bytes = config.limits.max_output_bytes
    streams = Streams(services.inference, transport, batcher, config.oip, most_bytes)
    interceptors = tuple(_interceptors(config, transport, files))
    grpc_server, admin_server = _grpc_servers(config, interceptors, backlog)
    # The first handlers that know a method take it: what refuses unknown ones comes last.
    grpc_server.add_generic_rpc_handlers((transport.handlers(), streams.handlers()))
    reflecting = {"listen": grpc_server, "admin_listen": admin_server}.get(config.reflection)
    if reflecting:
        reflecting.add_generic_rpc_handlers(Reflection(DESCRIBED, transport).handlers())
    for server in (grpc_server, admin_server):
        server.add_generic_rpc_handlers(
            (health.handlers(transport, receiver), transport.refuse_unknown())
        )
    local = _local_transport(config, transport, arenas, interceptors)
    return _Transports(backlog, receiver, transport, local, grpc_server, admin_server)


def _grpc_servers(
    config: ServerConfig, interceptors: Sequence[grpc.aio.ServerInterceptor], backlog: Backlog
) -> tuple[grpc.aio.Server, grpc.aio.Server]:
    """Makes the gRPC servers for callers and for operators, whose calls the backlog counts."""
    grpc_server, accepted = accepted_calls(
        lambda: grpc.aio.server(interceptors=interceptors, options=grpc_options(config))
    )
    admin_server, accepted_inside = accepted_calls(
        lambda: grpc.aio.server(options=[("grpc.so_reuseport", 0), COUNTING])
    )
    backlog.watch(lambda: accepted() + accepted_inside())
    return grpc_server, admin_server


def _local_transport(
    config: ServerConfig,
    transport: GrpcTransport,
    arenas: Arenas,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
) -> LocalTransport | None:
    """Returns the local transport if it is configured."""
    if not config.local.dir:
        return None
    undeclared_bytes = int(config.batching.max_admitted_bytes * UNDECLARED_PART)
    # The size of a frame is declared only once it is under way: few long ones at a time.
    long_frames = max(1, undeclared_bytes // MAX_DATA_BYTES)
    return LocalTransport(config.local, config.limits, long_frames, transport, arenas, interceptors)


def grpc_options(config: ServerConfig) -> list[tuple[str, int]]:
    """Returns gRPC's options for a configuration."""
    age_ms = round(config.lifecycle.connection_age_s * 1000)
    return [
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # max_output_bytes limits replies
        ("grpc.max_concurrent_streams", config.limits.max_concurrent_streams),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
        # Refusals are the server's own, with their status, and counted.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        # What nobody reads takes 64 KiB of each call; else it would be many MiB on a fast network.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", SIGN_OF_LIFE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # The age at which gRPC closes a connection after its last call; 0 of ours means never.
        ("grpc.max_connection_age_ms", min(age_ms, NO_LIMIT) or NO_LIMIT),
        ("grpc.so_reuseport", 0),
        COUNTING,
    ]


def _interceptors(
    config: ServerConfig, transport: GrpcTransport, files: Watch
) -> Iterator[grpc.aio.ServerInterceptor]:
    """Yields the interceptors of all methods that the configuration asks for."""
    path = config.auth.tokens
    if path:
        yield Authenticator(files.value("tokens", [path], lambda: read_tokens(path)), transport)


def _expose(
    parts: Parts, devices: Sequence[Device], arenas: Arenas, transports: _Transports
) -> None:
    """Lets metrics read, at every scrape, what the parts hold."""
    metrics, batcher, backlog = parts.metrics, parts.batcher, transports.backlog
    metrics.watch(batcher.statistics, batcher.queue_age_s)
    metrics.watch_readiness(lambda: parts.health.is_ready)
    metrics.watch_memory({"cpu": resident_bytes, **{one.name: one.held_bytes for one in devices}})
    metrics.watch_copies({one.name: one.copied_bytes for one in devices})
    metrics.watch_cpu(usable_cores(), throttling)
    metrics.watch_lanes(Counter(device.name for device in devices))
    metrics.watch_arenas(arenas)
    metrics.watch_residents(parts.residents)
    metrics.watch_receiving(transports.receiver.receiving_bytes)
    metrics.watch_loop(parts.monitor.still_s, backlog.pending, lambda: backlog.wait_s)
    ProcessCollector(registry=parts.registry)


def _tracing(config: ServerConfig) -> Tracing | None:
    """Returns the tracing that the configuration asks for; only then is OpenTelemetry imported."""
    if config.tracing == "off":
        return None
    try:
        from stn_server.tracing import otlp_tracing  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "tracing: expected OpenTelemetry for otlp, got none. "
            "In the checkout: pip install './server[otel]'"
        ) from error
    with loading("tracing", os.environ):
        return otlp_tracing()


def _policy_limits(config: BatchingConfig, lanes: int) -> PolicyLimits:
    return PolicyLimits(
        budget=Cost(
            size_bytes=config.max_batch_bytes,
            samples=config.max_batch_samples,
            work=config.max_batch_samples * COLOUR_WORK,
        ),
        max_admitted_items=config.max_admitted_items,
        max_admitted_bytes=config.max_admitted_bytes,
        window_s=config.window_s,
        lanes=lanes,
    )
