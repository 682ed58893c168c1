"""The composition root: makes every part of a server from the configuration, and wires them."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from stn_server.context import Handler
from stn_server.cores import threads_within, throttling, usable_cores
from stn_server.costs import COLOUR_WORK
from stn_server.environment import loading
from stn_server.event_loop import Backlog, LoopMonitor
from stn_server.events import Events, Listener
from stn_server.handlers import Authenticate, Handlers, Receiver, Router
from stn_server.health import Health
from stn_server.http2 import Http2Server
from stn_server.http2.calls import StreamContext
from stn_server.info import ServerInfo, backend_on
from stn_server.local.arenas import Arenas
from stn_server.local.leases import arena_handlers
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
from stn_server.tuning import LONG_FRAMES_PART

if TYPE_CHECKING:
    from stn_server.tracing import Tracing

HEALTH_NAMES = ("", SERVICE, OIP_SERVICE)
"""Services whose readiness is reported: the server as a whole, and ours."""

DESCRIBED = (SERVICE, OIP_SERVICE, HEALTH_SERVICE)
"""Services that reflection tells about, beside itself."""


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
    handlers: Handlers
    local: LocalTransport | None
    """Takes calls of processes on this host, if that is configured."""
    health: Health
    monitor: LoopMonitor
    self_test: SelfTest
    grpc_server: Http2Server
    """Serves the callers."""
    admin_server: Http2Server
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
        handlers=transports.handlers,
        local=transports.local,
        health=health,
        monitor=LoopMonitor(events, config.lifecycle.hang_s),
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

    backlog: Backlog[StreamContext]
    receiver: Receiver
    handlers: Handlers
    local: LocalTransport | None
    grpc_server: Http2Server
    admin_server: Http2Server


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
    limits, backlog = config.limits, Backlog[StreamContext]()
    receiver = Receiver(batcher, limits)
    slow_call_s = config.log.slow_call_s or math.inf
    handlers = Handlers(services.service, receiver, batcher.now, events, slow_call_s=slow_call_s)
    streams = Streams(services.inference, handlers, batcher, config.oip, limits.max_output_bytes)
    authenticate = _authenticate(config.auth.tokens, files)

    def router(*by_path: Mapping[str, Handler]) -> Router:
        return Router(by_path, handlers.refusing, authenticate)

    reflection = Reflection(DESCRIBED, handlers).handlers()
    of_health = health.handlers(handlers, receiver)
    of_service = handlers.of_service()
    outside = reflection if config.reflection == "listen" else {}
    grpc_server = Http2Server(
        router(of_service, streams.handlers(), of_health, outside),
        backlog,
        limits.max_concurrent_streams,
        limits.max_message_bytes,
        config.lifecycle.connection_age_s,
    )
    inside = reflection if config.reflection == "admin_listen" else {}
    admin_server = Http2Server(Router((of_health, inside), handlers.refusing), backlog)
    local = None
    if config.local.dir:
        # Long frames are not admitted until they are whole, so few come in at a time.
        frames_bytes = int(config.batching.max_admitted_bytes * LONG_FRAMES_PART)
        long_frames = max(1, frames_bytes // MAX_DATA_BYTES)
        of_arenas = router(arena_handlers(arenas, handlers))
        local = LocalTransport(
            config.local, limits, long_frames, router(of_service), of_arenas, arenas
        )
    return _Transports(backlog, receiver, handlers, local, grpc_server, admin_server)


def _authenticate(path: str, files: Watch) -> Authenticate | None:
    """Returns what asks calls for tokens, if the configuration asks for it."""
    if not path:
        return None
    return Authenticator(files.value("tokens", [path], lambda: read_tokens(path))).authenticate


def _expose(
    parts: Parts, devices: Sequence[Device], arenas: Arenas, transports: _Transports
) -> None:
    """Lets metrics read, at every scrape, what the parts hold."""
    metrics, batcher = parts.metrics, parts.batcher
    metrics.watch(batcher.statistics, batcher.queue_age_s)
    metrics.watch_readiness(lambda: parts.health.is_ready)
    metrics.watch_memory({"cpu": resident_bytes, **{one.name: one.held_bytes for one in devices}})
    metrics.watch_copies({one.name: one.copied_bytes for one in devices})
    metrics.watch_cpu(usable_cores(), throttling)
    metrics.watch_lanes(Counter(device.name for device in devices))
    metrics.watch_arenas(arenas)
    metrics.watch_residents(parts.residents)
    metrics.watch_receiving(transports.receiver.receiving_bytes)
    backlog = transports.backlog
    metrics.watch_loop(parts.monitor.still_s, backlog.pending, backlog.age_s)
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
