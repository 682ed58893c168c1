"""Servers for the stress suites, each a process: `servers.py fake|faulty|engine`.

fake: the whole service over a device of fixed cost, 2 ms a launch and 4 us a sample, whose results
are the feature maps. Its capacity is known and does not depend on the machine.
engine: the service as it is.
faulty: the same, in which every hundredth stage that a call reaches fails.

Prints its address as `stn-server` does, then at every SIGUSR1 the bytes that it has taken from the
C library and not given back; stops at SIGTERM.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import random
import signal
import sys
import tempfile

import uvloop

from stn_server.app import build
from stn_server.config import LocalConfig, LogConfig, ResidentsConfig, ServerConfig
from stn_server.events import Listener
from stn_server.lifecycle import Shutdown
from stn_server.log import configure
from stn_server.memory import relax_collector, retain_freed_memory
from stn_server.server import Server
from support.fakes import feature_maps
from support.faulty import RandomFaults

LAUNCH_S, SAMPLE_S = 2e-3, 4e-6
FAULT_PROBABILITY = 0.01
RESIDENT_BYTES = 512 * 1024
"""So little that tensors which stay are evicted all the time, and do not count as a leak."""
ADDRESSES = ("127.0.0.1:0", "[::1]:0")


class FakeDevice:
    """Takes its time, and nothing else."""

    async def run(self, batch):
        await asyncio.sleep(LAUNCH_S + SAMPLE_S * batch.cost.samples)
        return feature_maps(batch)

    def close(self):
        pass

    def run_inline(self, _batch):
        return None


async def main(kind: str, folder: str) -> None:
    local = LocalConfig(dir=folder)
    residents = ResidentsConfig(max_bytes=RESIDENT_BYTES)
    config = ServerConfig(listen=ADDRESSES, metrics_listen="", local=local, residents=residents)
    configure(LogConfig(level="error"))
    retain_freed_memory(config.retained_bytes)
    shutdown = Shutdown()
    shutdown.listen()
    listen_for_questions()
    if kind == "fake":
        server = Server(build(config, FakeDevice()))
        await start(server)
    elif kind == "engine":
        server = Server(build(config))
        await start(server)
    else:
        faults = SwitchedOnLater()
        server = Server(build(config, None, faults))
        await start(server)  # warms up without faults
        faults.to = RandomFaults(random.Random(0), FAULT_PROBABILITY)
        logging.disable(logging.ERROR)  # injected faults are no news
    await shutdown.asked()
    await server.stop(shutdown)


class Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def allocated_bytes() -> int:
    """Unlike resident memory this does not count what is free and kept for the next call."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def listen_for_questions() -> None:
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR1, lambda: print(allocated_bytes(), flush=True)
    )


class SwitchedOnLater(Listener):
    """Does nothing until it is given faults."""

    to = None

    def reached(self, stage, calls):
        if self.to is not None:
            self.to.reached(stage, calls)


async def start(server: Server) -> None:
    addresses = await server.start()
    relax_collector()
    print(json.dumps({"targets": addresses.targets, "metrics": ""}), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stn-") as folder:
        uvloop.run(main(sys.argv[1], folder))
