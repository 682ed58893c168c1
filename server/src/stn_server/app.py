"""The composition root: builds every part from the configuration and serves until told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import grpc.aio
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from stn_engine import compilations
from stn_server import signals, warm_up
from stn_server.auth import Authenticator
from stn_server.batching.batcher import Batcher
from stn_server.batching.devices import devices_of
from stn_server.batching.policy import Policy, PolicyLimits
from stn_server.batching.roles import Runner
from stn_server.batching.runner import EngineRunner, Lanes, nobody
from stn_server.batching.work import Cost
from stn_server.config import BatchingConfig, ConfigError, ServerConfig, is_unix, split_address
from stn_server.cores import threads_within
from stn_server.environment import loading
from stn_server.faults import Seam, no_fault
from stn_server.info import ServerInfo, backend_on
from stn_server.lifecycle import Shutdown
from stn_server.listening import listen_tcp, listen_unix
from stn_server.local.arenas import Arenas
from stn_server.local.transport import LocalTransport
from stn_server.log import log
from stn_server.memory import relax_collector, resident_bytes, retain_freed_memory
from stn_server.metrics import Metrics
from stn_server.output import BackgroundWriter
from stn_server.receiving import Receiver
from stn_server.reflection import reflect
from stn_server.reload import Watch
from stn_server.servicer import SERVICE, Servicer
from stn_server.tls import Certificates
from stn_server.tokens import read_tokens
from stn_server.translate import COLOUR_WORK, Translator

if TYPE_CHECKING:
    from stn_server.tracing import Tracing

STDIN = 0

HEALTH_NAMES = ("", SERVICE)
"""Services whose readiness is reported: the server as a whole, and ours."""

DESCRIBED = (SERVICE, health.SERVICE_NAME)
"""Services that reflection tells about, beside itself."""

REFUSING_S = 0.1
"""How long calls on their way are still refused, with a status that says to try elsewhere, before
gRPC stops reading and cancels what it has not read."""

HANDSHAKE_S = 10.0
"""How long a connection may take to begin; gRPC would wait for two minutes."""

SIGN_OF_LIFE_MS = 5_000
"""So often may clients ask whether the server is still there, idle ones as well; gRPC by itself
takes it as abuse."""

MAX_PENDING_CALLS = 65_536
"""Of all connections, that have arrived and were not looked at yet; gRPC by itself cancels those
beyond a thousand."""

STOPPING_S = 1.0
"""How long gRPC may take to cut calls off."""

NO_LIMIT = 2**31 - 1
"""What gRPC takes for never."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running server can be reached, with the ports that were taken."""

    targets: tuple[str, ...]
    metrics: str
    admin: str


class Server:
    """All parts of a server, wired. `start`, then `stop`.

    Args:
        config: How to serve.
        runner: What computes; None: the engine, on the devices of the configuration.
        seam: Where tests make things fail.
    """

    def __init__(
        self, config: ServerConfig, runner: Runner | None = None, seam: Seam = no_fault
    ) -> None:
        torch.set_num_threads(config.threads or threads_within(torch.get_num_threads()))
        self._config = config
        self._serving = False
        self._registry = CollectorRegistry()
        devices = devices_of(config.device)
        self._metrics = Metrics(self._registry, backend_on(devices[0].name))
        self._tracing = _tracing(config)
        watcher = self._tracing.watch if self._tracing else nobody
        runners: list[tuple[str, Runner]] = (
            [(device.name, EngineRunner(device, seam, watcher)) for device in devices]
            if runner is None
            else [("cpu", runner)]
        )
        self._lanes = Lanes(runners, self._metrics.lane_was_busy)
        make = self._tracing.batcher if self._tracing else Batcher
        self.batcher = make(
            Policy(_policy_limits(config.batching, len(self._lanes))),
            self._lanes,
            self._metrics,
            stall_s=config.batching.stall_s,
            seam=seam,
        )
        self._watchdog: asyncio.Task[None] | None = None
        self._metrics.watch(self.batcher.statistics, self.batcher.queue_age_s)
        held = {device.name: device.held_bytes for device in devices}
        self._metrics.watch_memory({"cpu": resident_bytes, **held})
        self._metrics.watch_lanes(Counter(device.name for device in devices))
        ProcessCollector(registry=self._registry)
        self._files = Watch(self._metrics.file_changed)
        tls = config.tls
        self._certificates = Certificates(tls, self._files) if tls.certificate else None
        self._health = health.aio.HealthServicer()
        self._grpc = self._grpc_server(seam)
        self._admin = self._admin_server()

    async def start(self) -> Addresses:
        """Listens, warms up, then reports ready.

        Raises:
            ConfigError: An address cannot be taken.
        """
        compilations.watch(self._metrics.kernels_compiled)  # first: `stop` takes it back
        await self._set_serving(False)
        listen, certificates = self._config.listen, self._certificates
        targets = [await self._bind(self._grpc, "listen", one, certificates) for one in listen]
        address = self._config.admin_listen
        admin = await self._bind(self._admin, "admin_listen", address) if address else ""
        metrics = await self._serve_metrics()
        if self._local:
            await self._local.start()
        await self._grpc.start()
        await self._admin.start()
        await self._warm_up()
        self._files.start()
        self._watchdog = asyncio.create_task(self._watch())
        await self._set_serving(True)
        return Addresses(tuple(targets), metrics, admin)

    def read_files_again(self) -> None:
        """Lets tokens and certificates be read anew, changed or not; returns at once."""
        log(logging.INFO, "reading files again")
        self._files.read_again()

    def watch_log(self, stderr: BackgroundWriter) -> None:
        """Counts the lines that are dropped there."""
        stderr.watch(self._metrics.log_lines_dropped.inc)

    async def stop(self, shutdown: Shutdown) -> None:
        """Turns readiness off, serves the lame-duck time, finishes what was admitted.

        A second signal during any of it cuts the rest short. A server that is not ready has no
        lame-duck time: nobody is told to call it.
        """
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._files.stop()
        if self._serving:
            await self._set_serving(False)
            await shutdown.pause(self._config.lifecycle.lame_duck_s)
        drained = asyncio.create_task(self._drain())
        await shutdown.wait_for(drained, self._config.lifecycle.grace_s)
        await shutdown.pause(REFUSING_S)
        drained.cancel()
        # Cuts off what is left, open health watches among it; a stuck caller cannot hold it up.
        if self._local:
            self._local.stop()
        stopping = [asyncio.create_task(s.stop(grace=0)) for s in (self._grpc, self._admin)]
        await asyncio.wait(stopping, timeout=STOPPING_S)
        self._lanes.close()
        compilations.unwatch(self._metrics.kernels_compiled)
        if self._tracing:
            await self._tracing.close()

    async def _drain(self) -> None:
        """Refuses new calls and returns when every reply has left."""
        await self.batcher.drain()
        await self._servicer.idle()

    def _grpc_server(self, seam: Seam) -> grpc.aio.Server:
        info = ServerInfo(
            self._config, lambda: self._serving, self.batcher.statistics, self._lanes.devices
        )
        limits = self._config.limits
        translator = self._tracing.translator(limits) if self._tracing else Translator(limits)
        admitted_bytes = self._config.batching.max_admitted_bytes
        arenas = Arenas(self._config.local)
        self._metrics.watch_arenas(arenas)
        self._servicer = Servicer(
            translator,
            self.batcher,
            Receiver(self.batcher, limits, admitted_bytes),
            self._metrics,
            info.message,
            seam,
            certified=bool(self._config.tls.client_ca),
            arenas=arenas if self._config.local.dir else None,
        )
        interceptors = tuple(self._interceptors())
        handlers, refuse_unknown = self._servicer.handlers(), self._servicer.refuse_unknown()
        config = self._config
        self._local = (
            LocalTransport(config.local, limits, self._servicer, arenas, interceptors)
            if config.local.dir
            else None
        )
        server = grpc.aio.server(interceptors=interceptors, options=grpc_options(self._config))
        server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._config.reflection == "listen":
            reflect(DESCRIBED, server)
        server.add_generic_rpc_handlers((refuse_unknown,))
        return server

    def _interceptors(self) -> Iterator[grpc.aio.ServerInterceptor]:
        """What stands before every method: nothing, unless it is asked for."""
        path = self._config.auth.tokens
        if path:
            tokens = self._files.value("tokens", [path], lambda: read_tokens(path))
            yield Authenticator(tokens, self._metrics)
        if self._tracing:
            yield self._tracing.interceptor()

    def _admin_server(self) -> grpc.aio.Server:
        """Answers those inside: probes, and people who look what is offered."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._config.reflection == "admin_listen":
            reflect(DESCRIBED, server)
        return server

    async def _bind(
        self,
        server: grpc.aio.Server,
        name: str,
        address: str,
        certificates: Certificates | None = None,
    ) -> str:
        """Binds an address; returns it with the port that was taken. Unix sockets need no TLS."""
        if is_unix(address):
            mode = int(self._config.listen_mode, 8) if self._config.listen_mode else None
            listen_unix(name, address, mode, server.add_insecure_port)
            return address

        def bind(one: str) -> int:
            if certificates is None:
                return server.add_insecure_port(one)
            return server.add_secure_port(one, certificates.credentials())

        port = await listen_tcp(name, address, bind)
        return f"{split_address(name, address)[0]}:{port}"

    async def _serve_metrics(self) -> str:
        """Starts the metrics endpoint in threads; returns its URL, empty if it is off."""
        if not self._config.metrics_listen:
            return ""

        def bind(one: str) -> int:
            host, port = split_address("metrics_listen", one)
            server, _thread = start_http_server(port, host.strip("[]"), self._registry)
            return server.server_port

        address = self._config.metrics_listen
        port = await listen_tcp("metrics_listen", address, bind)
        return f"http://{split_address('metrics_listen', address)[0]}:{port}/metrics"

    async def _warm_up(self) -> None:
        """Computes where calls will be computed, so that no caller pays for first times."""
        for batch in warm_up.batches():
            await self._lanes.warm_up(batch)

    async def _set_serving(self, serving: bool) -> None:  # noqa: FBT001 - read as a sentence
        """Tells everybody who asks whether calls are welcome."""
        self._serving = serving
        status = health_pb2.HealthCheckResponse
        for name in HEALTH_NAMES:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def _watch(self) -> None:
        """Reports not ready once nothing can be computed any more."""
        cause = await self.batcher.broken()
        log(logging.ERROR, "device lost", error=cause)
        await self._set_serving(False)


async def serve(config: ServerConfig, stdout: BackgroundWriter, stderr: BackgroundWriter) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        config: How to serve.
        stdout: Told where, when the server is ready.
        stderr: Where the log goes.

    Raises:
        ConfigError: The configuration asks for what is not here.
    """
    retain_freed_memory(config.retained_bytes)
    server = Server(config)
    server.watch_log(stderr)
    shutdown = Shutdown()
    shutdown.listen()
    if config.lifecycle.end_with_stdin:
        shutdown.ask_at_end_of(STDIN)
    signals.call(signal.SIGHUP, server.read_files_again, asyncio.get_running_loop())
    try:
        starting = asyncio.create_task(server.start())
        if await shutdown.asked_before(starting):
            starting.cancel()
        else:
            addresses = asdict(starting.result())
            relax_collector()
            log(logging.INFO, "serving", **addresses)
            stdout.write(json.dumps(addresses) + "\n")
            await shutdown.asked()
        before = server.batcher.statistics()
        log(logging.INFO, "draining", items=before.queued_items + before.running_items)
        await server.stop(shutdown)
        after = server.batcher.statistics()
        aborted = after.queued_items + after.running_items
        log(logging.INFO, "stopped", finished_items=after.finished_items, aborted_items=aborted)
    finally:
        signals.end_at_once()


def grpc_options(config: ServerConfig) -> list[tuple[str, int]]:
    """How gRPC serves what is configured."""
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
        ("grpc.max_connection_age_ms", _age_ms(config.lifecycle.connection_age_s)),
        ("grpc.so_reuseport", 0),
    ]


def _age_ms(age_s: float) -> int:
    """How old gRPC lets a connection get, on which calls are finished first; 0 is for ever."""
    return min(round(age_s * 1000), NO_LIMIT) or NO_LIMIT


def _tracing(config: ServerConfig) -> Tracing | None:
    """Sends spans if that is asked for; OpenTelemetry is imported only then."""
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
