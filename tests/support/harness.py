"""Parts of a server put together for a test: a batcher in virtual time, a service on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from stn_server.batching.batcher import Batcher
from stn_server.batching.policy import Policy, PolicyLimits
from stn_server.batching.work import BatchKey, Cost, Operation
from stn_server.config import LimitsConfig
from stn_server.faults import no_fault
from stn_server.metrics import Metrics
from stn_server.receiving import Receiver
from stn_server.servicer import Servicer
from stn_server.translate import Translator
from support.clock import run_in_virtual_time
from support.fakes import RecordingObserver

METHOD_PREFIX = "/stn.v1.SpatialTransformer/"


def decode(request, method="Warp", **limits):
    """The task of a request."""
    translator = Translator(LimitsConfig(**limits))
    return translator.decode(Operation(method), request.SerializeToString())


def in_virtual_time(test):
    """Runs an asynchronous test in virtual time."""

    def run():
        run_in_virtual_time(test())

    run.__doc__ = test.__doc__
    run.__name__ = test.__name__
    return run


def make_batcher(
    runner,
    observer=None,
    *,
    now=None,
    policy=None,
    stall_s=math.inf,
    seam=no_fault,
    make=Batcher,
    **changes,
):
    """A batcher on the running loop and its clock, with limits that are easy to reach."""
    limits = {
        "budget": Cost(1000, 100, 100),
        "max_admitted_items": 50,
        "max_admitted_bytes": 10_000,
        **changes,
    }
    return make(
        Policy(PolicyLimits(**limits)) if policy is None else policy,
        runner,
        RecordingObserver() if observer is None else observer,
        asyncio.get_running_loop().time if now is None else now,
        stall_s=stall_s,
        seam=seam,
    )


async def submit(batcher, problem, *, spec="spec", size_bytes=10, **options):
    """Submits a problem of one key and cost."""
    key = BatchKey(Operation.WARP, "float32", spec)
    return await batcher.submit(problem, key=key, cost=Cost(size_bytes, 1, 1), **options)


async def outcome_of(awaitable):
    """A result, or the exception instead of it, cancellation included."""
    try:
        return await awaitable
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the test looks at it
        return error


def assert_nothing_left(batcher):
    """No item waits or runs, and no bytes are held."""
    left = batcher.statistics()
    assert (left.queued_items, left.running_items, left.admitted_bytes) == (0, 0, 0)
    assert batcher.queue_age_s() == 0.0


class WatchedMetrics(Metrics):
    """Metrics that a test can wait on."""

    def __init__(self, registry):
        super().__init__(registry)
        self.received = asyncio.Semaphore(0)
        self.sent = asyncio.Semaphore(0)
        self.abandoned = asyncio.Semaphore(0)

    def payload_moved(self, direction, transport, size_bytes):
        super().payload_moved(direction, transport, size_bytes)
        if direction == "received":  # admission follows without an await between
            self.received.release()
        else:
            self.sent.release()

    def item_abandoned(self):
        super().item_abandoned()
        self.abandoned.release()


class Service:
    """The service on a free port of this process, over a runner of the test."""

    def __init__(self, target, servicer, batcher, metrics, registry):
        self.target = target
        self.servicer = servicer
        self.idle = servicer.idle
        self.batcher = batcher
        self._metrics = metrics
        self.registry = registry

    async def admitted(self, count):
        """Returns when so many further calls have come in."""
        for _ in range(count):
            await self._metrics.received.acquire()

    async def answered(self, count):
        """Returns when so many further replies have been made."""
        for _ in range(count):
            await self._metrics.sent.acquire()

    async def abandoned(self, count):
        """Returns when so many further calls have left the queue without having run."""
        for _ in range(count):
            await self._metrics.abandoned.acquire()

    def value(self, name, **labels):
        """The present value of a metric."""
        return self.registry.get_sample_value(name, labels)


@contextlib.asynccontextmanager
async def serving(runner, *, limits=None, seam=no_fault, tracing=None, **changes):
    """Serves the real servicer and translator; calls are computed by `runner`."""
    make_translator, interceptors = Translator, []
    if tracing is not None:
        make_translator, interceptors = tracing.translator, [tracing.interceptor()]
        changes["make"] = tracing.batcher
    registry = CollectorRegistry()
    metrics = WatchedMetrics(registry)
    loop = asyncio.get_running_loop()
    policy_limits = {"max_admitted_bytes": 10**9, **changes}
    batcher = make_batcher(runner, metrics, now=loop.time, seam=seam, **policy_limits)
    metrics.watch(batcher.statistics, batcher.queue_age_s)
    limits = LimitsConfig() if limits is None else limits
    receiver = Receiver(batcher, limits, policy_limits["max_admitted_bytes"])
    servicer = Servicer(make_translator(limits), batcher, receiver, metrics, lambda: b"", seam)
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((servicer.handlers(), servicer.refuse_unknown()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Service(f"127.0.0.1:{port}", servicer, batcher, metrics, registry)
    finally:
        await server.stop(grace=None)


def statistics_when_idle(client, timeout_s=10.0):
    """The statistics of a server that nobody calls any more, once nothing is inside.

    A call gives its place back when its reply has left, which its caller may see before the server.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        left = client.server_info().statistics
        if (left.queued_items, left.running_items, left.admitted_bytes) == (0, 0, 0):
            return left
        assert time.monotonic() < give_up, f"after {timeout_s:g} s, of an idle server: {left}"


def run_server_command(*arguments):
    """Runs `python -m stn_server` to its end; for those that do not start."""
    return subprocess.run(
        [sys.executable, "-m", "stn_server", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def log_records(path):
    """The records of a JSON log; fails if a line is anything else."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for_record(path, event, count=1, timeout_s=30.0):
    """The latest record of an event, once a JSON log has so many of them."""
    give_up = time.monotonic() + timeout_s
    while True:
        lines = path.read_text().split("\n")[:-1]  # what is being written comes later
        found = [record for line in lines if (record := json.loads(line))["event"] == event]
        if len(found) >= count:
            return found[-1]
        assert time.monotonic() < give_up, f"after {timeout_s:g} s, {len(found)} x {event}"


def terminate(server):
    """Sends SIGTERM without waiting."""
    server.process.send_signal(signal.SIGTERM)


def scrape(url):
    """Metrics of a server as {'name{labels}': value}."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def as_facts(statistics):
    """Statistics of a batcher as a dictionary, without zeros."""
    return {name: value for name, value in asdict(statistics).items() if value}
