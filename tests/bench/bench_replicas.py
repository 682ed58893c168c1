"""How throughput grows with replicas, through the SDK, on devices of fixed cost (`replica.py`).

The same callers ask one, two, four and eight of them in turn, round after round. The devices wait
instead of computing: what is measured is the balancing, not the processor. `--output` writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import uvloop

from bench import report
from bench.replica import BATCH_ITEMS, LAUNCH_S, SHAPE
from stn_client import Affine, AsyncClient

REPLICAS = (1, 2, 4, 8)
CALLERS = 128
IMAGE, IDENTITY = np.zeros(SHAPE, np.float32), Affine(np.eye(2, 3, dtype=np.float32)[None])
WARM_UP_S = 1.0


def main() -> None:
    options = parse_options()
    with ExitStack() as running:
        addresses = start_all(max(REPLICAS), running)
        rounds = [
            [uvloop.run(load(addresses[:count], options.seconds)) for count in REPLICAS]
            for _ in range(options.rounds)
        ]
    cells = [summarized(count, seen) for count, *seen in zip(REPLICAS, *rounds, strict=True)]
    for cell in cells:
        cell["times_one"] = cell["requests_per_s"] / cells[0]["requests_per_s"]
        print("{replicas} replicas: {requests_per_s:.0f}/s, p50 {p50_ms:.0f} ms".format(**cell))
    if options.output:
        report.write(
            options.output,
            "throughput by replicas",
            ("grpcio", "stn-client", "stn-server"),
            rounds=options.rounds,
            callers=CALLERS,
            launch_s=LAUNCH_S,
            batch_items=BATCH_ITEMS,
            cells=cells,
        )


def start_all(count: int, running: ExitStack) -> list[str]:
    """Starts replicas at one port, each on a loopback address of its own."""
    addresses: list[str] = []
    for number in range(count):
        port = addresses[0].rpartition(":")[2] if addresses else "0"
        command = [sys.executable, "-m", "bench.replica", f"127.0.0.{2 + number}:{port}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.enter_context(process)
        running.callback(process.kill)
        addresses += json.loads(process.stdout.readline())["targets"]
    return addresses


async def load(addresses: list[str], seconds: float) -> dict[str, float]:
    """Calls from `CALLERS` at a time, each after the answer to its last one."""
    latencies_s: list[float] = []
    async with AsyncClient("ipv4:" + ",".join(addresses)) as stn:
        begin = time.perf_counter() + WARM_UP_S

        async def caller() -> None:
            ended = 0.0
            while ended < begin + seconds:
                started = time.perf_counter()
                await stn.warp(IMAGE, IDENTITY)
                ended = time.perf_counter()
                if begin <= ended < begin + seconds:
                    latencies_s.append(ended - started)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    p50, p99 = np.percentile(latencies_s, (50, 99)) * 1e3
    return {"requests_per_s": len(latencies_s) / seconds, "p50_ms": p50, "p99_ms": p99}


def summarized(count: int, seen: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds."""
    medians = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
    return {"replicas": count, **medians}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of load in each round")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
