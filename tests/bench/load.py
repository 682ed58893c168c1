"""Closed-loop load from a process of its own, which takes one job a line from standard input.

A job says who is asked (`target`, and the process `pid` that serves there), for what (`messages`,
sent in turns: the file of a request of `method` and the samples that it asks for), how many calls
are on their way at a time (`concurrency`) and for how many `seconds`. What was seen comes back as
a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from itertools import cycle
from pathlib import Path

import grpc.aio
import uvloop

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def run(target, pid, method, messages, concurrency, seconds) -> dict[str, float]:
    turns = cycle([(read(one["path"]), one["samples"]) for one in messages])
    latencies_s: list[float] = []
    samples = 0
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        call = channel.unary_unary(method)

        async def caller(end: float) -> None:
            nonlocal samples
            while (started := time.perf_counter()) < end:
                message, message_samples = next(turns)
                await call(message)
                latencies_s.append(time.perf_counter() - started)
                samples += message_samples

        await asyncio.gather(*(call(next(turns)[0]) for _ in range(concurrency)))  # warms up
        used_s, started = cpu_s(pid), time.perf_counter()
        await asyncio.gather(*(caller(started + seconds) for _ in range(concurrency)))
        duration_s = time.perf_counter() - started
        used_s = cpu_s(pid) - used_s
    return {
        "requests_per_s": len(latencies_s) / duration_s,
        "samples_per_s": samples / duration_s,
        "p50_ms": statistics.median(latencies_s) * 1e3,
        "cpu_ms": used_s / len(latencies_s) * 1e3,
    }


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def main() -> None:
    for job in sys.stdin:
        print(json.dumps(await run(**json.loads(job))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
