"""Several server processes behind one target, and callers that keep them busy."""

from __future__ import annotations

import operator
import threading
import time
from dataclasses import dataclass, field

from stn_client import Affine, Client, RetryPolicy, StnClientError
from stn_client.local import LocalServer
from support.bad_requests import ramp, theta
from support.harness import terminate

PATIENCE_S = 60.0
"""For what happens within seconds unless it never does."""


class Replicas:
    """Servers at one port, each on a loopback address of its own, as pods are. A context manager.

    Args:
        count: How many.
        folder: For their logs.
        flags: Of `stn-server`, for all of them.

    Attributes:
        hosts: Their addresses.
        port: That of all.
    """

    def __init__(self, count, folder, *flags):
        self._folder, self._flags = folder, flags
        self.hosts = [f"127.0.0.{2 + number}" for number in range(count)]
        self.port = 0
        self._servers = {}

    def __enter__(self):
        for number in range(len(self)):
            self.start(number)
        return self

    def __exit__(self, *_exception):
        for server in self._servers.values():
            terminate(server)
        for server in self._servers.values():
            server.stop()  # asked twice, it leaves at once

    def __len__(self):
        return len(self.hosts)

    def __getitem__(self, number):
        return self._servers[number]

    @property
    def target(self):
        """All of them, as clients name them."""
        return "ipv4:" + ",".join(f"{host}:{self.port}" for host in self.hosts)

    @property
    def targets(self):
        """Each alone, as they tell it with handles."""
        return [f"{host}:{self.port}" for host in self.hosts]

    def start(self, number, *flags):
        """Starts a new process on the address of one that has ended; returns when it serves."""
        host = self.hosts[number]
        addresses = f"--listen={host}:{self.port}", f"--metrics-listen={host}:0"
        server = LocalServer(*addresses, *self._flags, *flags, log=self.log(number))
        self._servers[number] = server
        self.port = server.target.rpartition(":")[2]

    def log(self, number):
        """The log of all processes on an address, one after the other."""
        return self._folder / f"{number}.log"

    def statistics(self, number):
        """What the present process on an address has done so far."""
        with Client(self[number].target) as stn:
            return stn.server_info().statistics


class Load:
    """Callers that warp, each call after the answer to the last one. A context manager.

    Args:
        target: Whom they call.
        callers: How many there are.
        retry: As of `Client`.
        feature_map: What they warp.

    Attributes:
        results: The different ones.
        failures: What was raised instead.
        latencies_s: How long each call took, with all its attempts.
    """

    def __init__(self, target, callers, retry=None, feature_map=ramp(1, 3, 60, 80)):  # noqa: B008
        self.results, self.failures, self.latencies_s = set(), [], []
        self._feature_map, self._theta = feature_map, Affine(theta(1))
        self._client = Client(target, retry=retry)
        self._ended, self._over = threading.Condition(), False
        self._counts = [0] * callers
        self._threads = [threading.Thread(target=self._call_on, args=[n]) for n in range(callers)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception):
        self._over = True
        for thread in self._threads:
            thread.join()
        self._client.close()

    def further(self, count):
        """Returns when so many more calls of every caller have ended."""
        with self._ended:
            enough = [ended + count for ended in self._counts]
            assert self._ended.wait_for(
                lambda: all(map(operator.ge, self._counts, enough)), PATIENCE_S
            )

    def until(self, holds):
        """Returns when something holds; looks again and again while calls go on."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline
            self.further(1)

    def _call_on(self, caller):
        while not self._over:
            started = time.monotonic()
            try:
                self.results.add(self._client.warp(self._feature_map, self._theta).tobytes())
            except StnClientError as error:
                self.failures.append(error)
            with self._ended:
                self.latencies_s.append(time.monotonic() - started)
                self._counts[caller] += 1
                self._ended.notify_all()


@dataclass(frozen=True, kw_only=True)
class NotedRetries(RetryPolicy):
    """The ordinary policy, which remembers how attempts failed."""

    failures: list = field(default_factory=list)

    def pause_s(self, error, *circumstances):
        self.failures.append(error)
        return super().pause_s(error, *circumstances)
