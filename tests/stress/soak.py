"""Steady mixed load for a long time: `python -m stress.soak --seconds 1800`.

Fits lines to the server's resident and allocated memory over the second half; their rise must drown
in the noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter

import uvloop

from stress.chaos import ENDS, RESIDENT_NOISE, SPARE_BYTES, SPARE_BYTES_OF_CALL
from stress.process import MIB, ServerProcess
from stress.report import Report
from stress.traffic import traffic

CONCURRENCY = 16
CHUNK = 200


async def soak(seconds: float) -> Report:
    report, ended, instants, resident, allocated = Report(), Counter(), [], [], []
    with ServerProcess("engine") as server:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended += await traffic(server.target, CHUNK, CONCURRENCY, seed=ended.total())
            instants.append(time.monotonic())
            allocated.append(server.allocated_bytes())
            resident.append(server.resident_bytes())
        left, serving = server.settled(), server.is_serving()
    calls = ended.total()
    report.note(calls=calls, ended=dict(ended))
    report.promise("every end is one of those promised", ended.keys() <= ENDS - {"INTERNAL"})
    judge(report, "resident", instants, resident, RESIDENT_NOISE)
    judge(report, "allocated", instants, allocated, SPARE_BYTES + SPARE_BYTES_OF_CALL * calls)
    report.note(left_bytes=left.admitted_bytes, left_items=left.queued_items)
    report.promise("nothing is left inside", (left.admitted_bytes, left.queued_items) == (0, 0))
    report.promise("the server is ready", serving)
    return report


def judge(report: Report, what: str, instants, sizes, least_noise: int) -> None:
    """Whether bytes rise in the second half by more than they vary anyhow."""
    half = len(sizes) // 2
    slope, intercept = statistics.linear_regression(instants[half:], sizes[half:])
    noise = statistics.pstdev(
        size - intercept - slope * at
        for at, size in zip(instants[half:], sizes[half:], strict=True)
    )
    rise = slope * (instants[-1] - instants[half])
    seen = [round(size / MIB, 1) for size in sizes[:: len(sizes) // 10 + 1]]
    report.note(**{f"{what}_mib": seen, f"{what}_rise_mib": rise / MIB})
    report.note(**{f"{what}_noise_mib": noise / MIB})
    report.promise(f"{what} memory does not rise", rise < max(3 * noise, least_noise))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0)
    uvloop.run(soak(parser.parse_args().seconds)).finish()


if __name__ == "__main__":
    main()
