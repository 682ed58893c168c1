"""A server that runs: it listens, warms up, serves until it is told to stop, and finishes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import socket
from dataclasses import asdict, dataclass
from typing import Any

import torch
from prometheus_client import start_http_server

from stn_engine import compilations
from stn_engine.compilations import Outcome
from stn_server import signals, warm_up
from stn_server.app import Parts, build
from stn_server.config import ServerConfig, is_unix, socket_path, split_address
from stn_server.event_loop import Hung
from stn_server.events import Listener
from stn_server.http2 import Http2Server
from stn_server.lifecycle import Shutdown
from stn_server.listening import listen_tcp, listen_unix, replica_address
from stn_server.log import log
from stn_server.memory import memory_limit_bytes, relax_collector, retain_freed_memory
from stn_server.output import BackgroundWriter
from stn_server.tls import Certificates
from stn_server.tuning import LAST_LINES_S, REFUSING_S, STOPPING_S

STDIN = 0

LOST = 3
"""The exit code where only a restart helps: the device is lost, or the event loop hangs."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a running server, with the ports that were taken."""

    targets: tuple[str, ...]
    metrics: str
    admin: str


class Server:
    """Runs the parts of a server: `start`, then `stop`.

    Args:
        parts: The parts of the server.
        hung: Called in a thread when the event loop hangs.
    """

    def __init__(self, parts: Parts, hung: Hung = lambda _still_s, _stack: None) -> None:
        self._parts = parts
        self._hung = hung
        self._watchdog: asyncio.Task[None] | None = None

    async def start(self) -> Addresses:
        """Listens, warms up, then reports ready.

        Raises:
            ConfigError: An address cannot be taken.
        """
        parts, config = self._parts, self._parts.config
        compilations.watch(self._compiled)  # first: `stop` takes it back
        parts.monitor.start(self._hung)
        # Before a health check can come, which would find these services unknown.
        await parts.health.set(ready=False)
        await parts.health.set_alive(alive=True)
        targets = [
            await self._bind(parts.grpc_server, "listen", one, parts.certificates)
            for one in config.listen
        ]
        parts.residents.address = replica_address(config.residents.address, targets)
        admin = ""
        if config.admin_listen:
            admin = await self._bind(parts.admin_server, "admin_listen", config.admin_listen)
        metrics = await self._serve_metrics()
        if parts.local:
            await parts.local.start()
        # Only once every address is bound: a server that cannot take one of them serves none.
        parts.grpc_server.start()
        parts.admin_server.start()
        for batch in warm_up.batches():  # so that no caller pays for first times
            await parts.lanes.warm_up(batch)
        parts.files.start()
        self._watchdog = asyncio.create_task(self._watch())
        await parts.health.set(ready=True)
        return Addresses(tuple(targets), metrics, admin)

    async def stop(self, shutdown: Shutdown) -> None:
        """Turns readiness off, serves the lame-duck time, finishes what was admitted.

        A second signal during any of it cuts the rest short. A server that is not ready has no
        lame-duck time: no load balancer sends calls to it.
        """
        parts, times = self._parts, self._parts.config.lifecycle
        # First: a device that is lost from here on changes nothing that is reported.
        if self._watchdog is not None:
            self._watchdog.cancel()
        # Else a test that passes would report the server ready again.
        parts.self_test.stop()
        parts.files.stop()
        if parts.health.is_ready:
            await parts.health.set(ready=False)
            await shutdown.pause(times.lame_duck_s)
        # In a task, so that a second signal can cut the wait short.
        drained = asyncio.create_task(self._drain())
        await shutdown.wait_for(drained, times.grace_s)
        # Calls on their way still get a status that says to try elsewhere.
        await shutdown.pause(REFUSING_S)
        drained.cancel()
        # Cuts off what is left, open health watches among it; a stuck caller cannot hold it up.
        if parts.local:
            parts.local.stop()
        # Calls that are cut off end in their own tasks, and what they are told has to leave.
        ends = parts.grpc_server.stop(), parts.admin_server.stop(), parts.handlers.idle()
        await asyncio.wait([asyncio.create_task(end) for end in ends], timeout=STOPPING_S)
        # After the servers: calls that were cut off used these until then.
        parts.lanes.close()
        parts.residents.close()
        compilations.unwatch(self._compiled)
        parts.monitor.stop()
        # Only now, with the failures of the calls that were cut off.
        parts.event_log.flush()
        if parts.tracing:
            await parts.tracing.close()

    async def lost(self) -> None:
        """Waits until nothing can be computed any more and health says so."""
        if self._watchdog is not None:
            await asyncio.shield(self._watchdog)

    def read_files_again(self) -> None:
        """Asks for tokens and certificates to be read anew, and returns immediately."""
        log(logging.INFO, "reading files again")
        self._parts.files.read_again()

    async def _drain(self) -> None:
        """Refuses new calls and waits until every reply has left."""
        await self._parts.batcher.drain()
        await self._parts.handlers.idle()

    def _compiled(self, outcome: Outcome, duration_s: float) -> None:
        for tell in self._parts.events.kernels_compiled:
            tell(outcome, duration_s)

    async def _bind(
        self,
        server: Http2Server,
        name: str,
        address: str,
        certificates: Certificates | None = None,
    ) -> str:
        """Binds an address; returns it with the port that was taken. Unix sockets need no TLS."""
        if is_unix(address):
            config, path = self._parts.config, socket_path(address)
            mode = int(config.listen_mode, 8) if config.listen_mode else None

            def bind_path() -> None:
                server.listen(socket.AF_UNIX, path, None)

            listen_unix(name, address, mode, bind_path, config.listen_group)
            return address

        def bind(family: socket.AddressFamily, one: Any) -> int:
            return server.listen(family, one, certificates.context if certificates else None)

        port = await listen_tcp(name, address, bind)
        return f"{split_address(name, address)[0]}:{port}"

    async def _serve_metrics(self) -> str:
        """Starts the metrics endpoint in threads; returns its URL, empty if it is off."""
        address = self._parts.config.metrics_listen
        if not address:
            return ""

        def bind(_family: socket.AddressFamily, one: Any) -> int:
            server, _thread = start_http_server(one[1], one[0], self._parts.registry)
            return server.server_port

        port = await listen_tcp("metrics_listen", address, bind)
        return f"http://{split_address('metrics_listen', address)[0]}:{port}/metrics"

    async def _watch(self) -> None:
        """Waits for the loss of the device, then reports not ready and not alive."""
        ways = self._parts.batcher.broken(), self._parts.self_test.lost()
        lost, others = await asyncio.wait(
            [asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
        )
        for other in others:
            other.cancel()
        cause = lost.pop().result()
        for tell in self._parts.events.device_lost:
            tell(cause)
        if self._parts.local:  # what hangs may yet write to arenas, whose slots must not be reused
            self._parts.local.stop()
        await self._parts.health.set(ready=False)
        await self._parts.health.set_alive(alive=False)


async def serve(
    config: ServerConfig,
    stdout: BackgroundWriter,
    stderr: BackgroundWriter,
    *listeners: Listener,
) -> bool:
    """Serves until SIGTERM or SIGINT, or until only a restart helps.

    Args:
        config: The configuration of the server.
        stdout: Gets the addresses when the server is ready.
        stderr: Gets the log.
        listeners: Further listeners, beside metrics, spans and the log.

    Returns:
        Whether it was asked to end. Else the device is lost, and every call has been answered.

    Raises:
        ConfigError: The configuration asks for what is not here.
        DeviceLostError: The device was lost before the server was ready.

    Concurrency:
        An event loop that hangs answers no call: the process ends at once, with `LOST`.
    """
    retain_freed_memory(config.retained_bytes)
    parts = build(config, None, *listeners)

    def hung(still_s: float, stack: str) -> None:
        log(logging.ERROR, "event loop hung", still_s=still_s, stack=stack)
        # An orderly exit would need the loop that hangs.
        stderr.drain(LAST_LINES_S)
        os._exit(LOST)

    server, batcher = Server(parts, hung), parts.batcher
    for tell in parts.events.lines_dropped:
        stderr.watch(tell)
    shutdown = Shutdown()
    shutdown.listen()
    if config.lifecycle.end_with_stdin:
        shutdown.ask_at_end_of(STDIN)
    signals.call(signal.SIGHUP, server.read_files_again, asyncio.get_running_loop())
    try:
        is_asked = True
        starting = asyncio.create_task(server.start())
        if await shutdown.asked_before(starting):
            # `stop` below ends whatever has been started by then.
            starting.cancel()
        else:
            addresses = asdict(starting.result())
            relax_collector()
            log(logging.INFO, "serving", **addresses, **_sizes(config))
            stdout.write(json.dumps(addresses) + "\n")
            is_asked = await shutdown.asked_before(asyncio.create_task(server.lost()))
        before = batcher.statistics()
        log(logging.INFO, "draining", items=before.queued_items + before.running_items)
        await server.stop(shutdown)
        after = batcher.statistics()
        aborted = after.queued_items + after.running_items
        log(logging.INFO, "stopped", finished_items=after.finished_items, aborted_items=aborted)
        return is_asked
    finally:
        # The handlers of `Shutdown` need the loop, which is about to close.
        signals.end_at_once()


def _sizes(config: ServerConfig) -> dict[str, Any]:
    """Returns how the cores and the memory of the process are divided."""
    limit_bytes = memory_limit_bytes()
    return {
        "threads": torch.get_num_threads(),
        "memory_limit_bytes": None if limit_bytes == math.inf else limit_bytes,
        "max_admitted_bytes": config.batching.max_admitted_bytes,
        "max_message_bytes": config.limits.max_message_bytes,
        "max_output_bytes": config.limits.max_output_bytes,
        "max_resident_bytes": config.residents.max_bytes,
        "retained_bytes": config.retained_bytes,
    }
