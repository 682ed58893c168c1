"""Servers for the stress suites, each a process: `servers.py fake|faulty|engine`.

fake: the whole service over a device of fixed cost, 2 ms a launch and 4 us a sample, whose results
are the feature maps. Its capacity is known and does not depend on the machine.
engine: the service as it is.
faulty: the same, in which every hundredth crossing of a seam fails.

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

import uvloop

from stn_server.app import Server
from stn_server.config import LogConfig, ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.log import configure
from stn_server.memory import relax_collector, retain_freed_memory
from support.fakes import feature_maps
from support.faulty import RandomFaults

LAUNCH_S, SAMPLE_S = 2e-3, 4e-6
FAULT_PROBABILITY = 0.01
ADDRESSES = ("127.0.0.1:0", "[::1]:0")


class FakeDevice:
    """Takes its time, and nothing else."""

    async def run(self, batch):
        await asyncio.sleep(LAUNCH_S + SAMPLE_S * batch.cost.samples)
        return feature_maps(batch)

    def close(self):
        pass

    def at_once(self, _batch):
        return None


async def main(kind: str) -> None:
    config = ServerConfig(listen=ADDRESSES, metrics_listen="")
    configure(LogConfig(level="error"))
    retain_freed_memory(config.retained_bytes)
    shutdown = Shutdown()
    shutdown.listen()
    listen_for_questions()
    if kind == "fake":
        server = Server(config, runner=FakeDevice())
        await start(server)
    elif kind == "engine":
        server = Server(config)
        await start(server)
    else:
        faults = SwitchedOnLater()
        server = Server(config, seam=faults)
        await start(server)  # warms up without faults
        faults.seam = RandomFaults(random.Random(0), FAULT_PROBABILITY)
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


class SwitchedOnLater:
    """A seam that does nothing until it is given another."""

    seam = None

    def __call__(self, point):
        if self.seam is not None:
            self.seam(point)


async def start(server: Server) -> None:
    addresses = await server.start()
    relax_collector()
    print(json.dumps({"targets": addresses.targets, "metrics": ""}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
