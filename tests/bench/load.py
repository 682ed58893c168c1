"""Closed-loop load from a process of its own: `load.py TARGET REQUEST_FILE CONCURRENCY SECONDS`.

Sends the bytes of a file as `Warp` requests and prints requests per second and latencies.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import grpc.aio
import uvloop

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def run(target: str, request: bytes, concurrency: int, seconds: float) -> dict[str, float]:
    latencies_s: list[float] = []
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        warp = channel.unary_unary("/stn.v1.SpatialTransformer/Warp")
        for _ in range(3):
            await warp(request)
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < end:
                await warp(request)
                latencies_s.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(concurrency)))
        duration_s = time.perf_counter() - started
    return {
        "requests_per_s": len(latencies_s) / duration_s,
        "p50_ms": statistics.median(latencies_s) * 1e3,
    }


if __name__ == "__main__":
    target, path, concurrency, seconds = sys.argv[1:]
    result = run(target, Path(path).read_bytes(), int(concurrency), float(seconds))
    print(json.dumps(uvloop.run(result)))
