"""Steady mixed load for a long time: `python -m stress.soak --seconds 1800`.

Fits a line to the server's resident memory over the second half; its rise must drown in the noise.
"""

from __future__ import annotations

import argparse
import statistics
import time

import uvloop

from stn_client.local import LocalServer
from stress.process import MIB, Watched
from stress.report import Report
from stress.traffic import traffic

CONCURRENCY = 16
CHUNK = 200
LEAST_NOISE_BYTES = 8 * MIB
"""A heap of this server breathes by so much without any leak."""


async def soak(seconds: float) -> Report:
    report, sizes, instants = Report(), [], []
    with LocalServer("--log-level=error") as running:
        server = Watched(running.process, running.target)
        end, calls = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            ended = await traffic(running.target, CHUNK, CONCURRENCY, seed=calls)
            calls += ended.total()
            instants.append(time.monotonic())
            sizes.append(server.resident_bytes())
        left, serving = server.settled(), server.is_serving()
    half = len(sizes) // 2
    slope, intercept = statistics.linear_regression(instants[half:], sizes[half:])
    noise = statistics.pstdev(
        size - intercept - slope * at
        for at, size in zip(instants[half:], sizes[half:], strict=True)
    )
    rise = slope * (instants[-1] - instants[half])
    report.note(calls=calls, resident_mib=[size // MIB for size in sizes[:: len(sizes) // 10 + 1]])
    report.note(rise_mib=rise / MIB, noise_mib=noise / MIB)
    report.promise("memory does not rise", rise < max(3 * noise, LEAST_NOISE_BYTES))
    report.promise("nothing is left inside", left.admitted_bytes + left.queued_items == 0)
    report.promise("the server is ready", serving)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    uvloop.run(soak(parser.parse_args().seconds)).finish()


if __name__ == "__main__":
    main()
