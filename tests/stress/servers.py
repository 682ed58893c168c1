"""Servers for the stress suites, each a process: `servers.py fake|faulty`.

fake: the whole service over a device of fixed cost, 2 ms a launch and 4 us a sample, whose results
are the feature maps. Its capacity is known and does not depend on the machine.
faulty: the service on the engine, in which every hundredth crossing of a seam fails.

Prints its address as `stn-server` does, and stops at SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import sys

import uvloop

from stn_server.app import Server
from stn_server.config import LogConfig, ServerConfig
from stn_server.lifecycle import Shutdown
from stn_server.log import configure
from stn_server.memory import retain_freed_memory
from support.faulty import RandomFaults

LAUNCH_S, SAMPLE_S = 2e-3, 4e-6
FAULT_PROBABILITY = 0.01
ADDRESSES = ("127.0.0.1:0", "[::1]:0")


class FakeDevice:
    """Takes its time, and nothing else."""

    async def run(self, batch):
        await asyncio.sleep(LAUNCH_S + SAMPLE_S * batch.cost.samples)
        return [getattr(item.problem.bind(), "feature_map", None) for item in batch.items]

    def close(self):
        pass


async def main(kind: str) -> None:
    config = ServerConfig(listen=ADDRESSES, metrics_listen="")
    configure(LogConfig(level="error"))
    retain_freed_memory(config.retained_bytes)
    shutdown = Shutdown()
    shutdown.listen()
    if kind == "fake":
        server = Server(config, runner=FakeDevice())
        await start(server)
    else:
        faults = SwitchedOnLater()
        server = Server(config, seam=faults)
        await start(server)  # warms up without faults
        faults.seam = RandomFaults(random.Random(0), FAULT_PROBABILITY)
        logging.disable(logging.ERROR)  # injected faults are no news
    await shutdown.asked()
    await server.stop(shutdown)


class SwitchedOnLater:
    """A seam that does nothing until it is given another."""

    seam = None

    def __call__(self, point):
        if self.seam is not None:
            self.seam(point)


async def start(server: Server) -> None:
    addresses = await server.start()
    gc.collect()
    gc.freeze()
    print(json.dumps({"targets": addresses.targets, "metrics": ""}), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
