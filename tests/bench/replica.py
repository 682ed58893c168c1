"""One replica on a device of fixed cost, a process: `python -m bench.replica HOST:PORT`.

The device takes `LAUNCH_S` for up to `BATCH_ITEMS` calls and leaves the processor to others, so
that many fit on a small machine: each can answer `BATCH_ITEMS / LAUNCH_S` calls a second.

Prints its address as `stn-server` does.
"""

from __future__ import annotations

import sys

import uvloop

from bench.servers import Device, serve
from stn_server.config import BatchingConfig, ServerConfig

SHAPE = (1, 1, 28, 28)
LAUNCH_S, BATCH_ITEMS = 20e-3, 4


async def main(address: str) -> None:
    batching = BatchingConfig(max_batch_samples=BATCH_ITEMS * SHAPE[2] * SHAPE[3])
    config = ServerConfig(listen=(address,), metrics_listen="", batching=batching)
    await serve(Device(LAUNCH_S), config)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
