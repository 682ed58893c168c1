"""Parts of a server put together for a test: a batcher in virtual time, a service on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict

from stn_server.app import build
from stn_server.batching.batcher import Batcher
from stn_server.batching.devices import EngineRunner
from stn_server.batching.policy import Policy, PolicyLimits
from stn_server.batching.work import BatchKey, Cost, Operation
from stn_server.config import (
    BatchingConfig,
    LimitsConfig,
    OipConfig,
    ResidentsConfig,
    ServerConfig,
)
from stn_server.events import Events, Listener, Stage
from stn_server.handlers import Handlers, Receiver
from stn_server.service import Service
from stn_server.translate import Translator
from support.clock import run_in_virtual_time

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


def make_batcher(runner, *listeners, policy=None, stall_s=math.inf, **changes):
    """A batcher on the running loop and its clock, with limits that are easy to reach."""
    limits = {
        "budget": Cost(1000, 100, 100),
        "max_admitted_items": 50,
        "max_admitted_bytes": 10_000,
        **changes,
    }
    return Batcher(
        Policy(PolicyLimits(**limits)) if policy is None else policy,
        runner,
        Events(*listeners),
        asyncio.get_running_loop().time,
        stall_s=stall_s,
    )


def make_handlers(batcher, limits, *listeners):
    """The handlers of the service over a batcher, as transports call them."""
    events = Events(*listeners)
    return Handlers(
        Service(Translator(limits), batcher, lambda: b"info", events),
        Receiver(batcher, limits),
        batcher.now,
        events,
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


class HeldEngine(EngineRunner):
    """The engine, whose first batch waits for `gate`, so that others gather behind it."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.batches = []

    def run_inline(self, _batch):
        """Everything is worth a task."""

    async def run(self, batch):
        self.batches.append(len(batch.items))
        if len(self.batches) == 1:
            await self.gate.wait()
        return await super().run(batch)


class Milestones(Listener):
    """What a test can wait for."""

    def __init__(self):
        self.queued = asyncio.Semaphore(0)
        self.sent = asyncio.Semaphore(0)
        self.abandoned = asyncio.Semaphore(0)

    def reached(self, stage, _calls):
        if stage is Stage.QUEUE:  # admission follows without an await between
            self.queued.release()
        elif stage is Stage.SEND:
            self.sent.release()

    def item_abandoned(self):
        self.abandoned.release()


class RunningService:
    """The service on a free port of this process, over a runner of the test."""

    def __init__(self, target, parts, milestones):
        self.target = target
        self.handlers = parts.handlers
        self.idle = parts.handlers.idle
        self.batcher = parts.batcher
        upload = parts.handlers._service.methods["Upload"]
        self.transfers = upload.args[0].__self__
        self.residents = self.transfers._residents
        self.registry = parts.registry
        self._milestones = milestones

    async def admitted(self, count):
        """Returns when so many further calls have come in."""
        for _ in range(count):
            await self._milestones.queued.acquire()

    async def answered(self, count):
        """Returns when so many further replies have been made."""
        for _ in range(count):
            await self._milestones.sent.acquire()

    async def abandoned(self, count):
        """Returns when so many further calls have left the queue without having run."""
        for _ in range(count):
            await self._milestones.abandoned.acquire()

    def value(self, name, **labels):
        """The present value of a metric."""
        return self.registry.get_sample_value(name, labels)


@contextlib.asynccontextmanager
async def serving(runner, *listeners, limits=None, residents=None, oip=None, now=None, **changes):
    """Serves all parts of a server; calls are computed by `runner`, in small batches.

    Its clock is `now`, or else that of the event loop.
    """
    config = ServerConfig(
        limits=LimitsConfig() if limits is None else limits,
        residents=ResidentsConfig() if residents is None else residents,
        oip=OipConfig() if oip is None else oip,
        batching=BatchingConfig(
            **{
                "max_batch_bytes": 1000,
                "max_batch_samples": 100,
                "max_admitted_items": 50,
                "max_admitted_bytes": 10**9,
                **changes,
            }
        ),
    )
    milestones = Milestones()
    now = now or asyncio.get_running_loop().time
    parts = build(config, runner, milestones, *listeners, now=now)
    port = parts.grpc_server.listen(socket.AF_INET, ("127.0.0.1", 0), None)
    parts.grpc_server.start()
    try:
        yield RunningService(f"127.0.0.1:{port}", parts, milestones)
    finally:
        await parts.grpc_server.stop()
        parts.residents.close()


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
