"""Open-loop load at three times the capacity: `python -m stress.overload --seconds 60`.

A noisy caller sends at a fixed rate whatever comes back; a quiet one sends little, from another
address. Measured on the side of the callers: what is refused is refused at once, what is accepted
is in time, nothing is lost of the capacity, and the quiet caller notices nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict

import grpc
import grpc.aio
import uvloop

from stn_client import Affine
from stn_client._calls import warp
from stress.process import MIB, ServerProcess
from stress.report import Report, percentile
from support.bad_requests import ramp, theta
from support.harness import METHOD_PREFIX

SIDE = 64
DEADLINE_S = 1.0
OVERLOAD = 3.0
QUIET_RATE = 5.0
OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
MESSAGE = warp(ramp(1, 1, SIDE, SIDE), Affine(theta(1)), None, {}).request


class Caller:
    """A connection, and how its calls ended: by status, the seconds that they took."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._warp = self._channel.unary_unary(METHOD_PREFIX + "Warp")
        self.ended: defaultdict[grpc.StatusCode, list[float]] = defaultdict(list)

    async def call(self, deadline_s: float | None = DEADLINE_S) -> grpc.StatusCode:
        started, code = time.perf_counter(), OK
        try:
            await self._warp(MESSAGE, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            code = error.code()
        self.ended[code].append(time.perf_counter() - started)
        return code

    async def send(self, rate: float, seconds: float) -> None:
        """Open loop: one call every 1/rate s, whatever became of the others."""
        loop = asyncio.get_running_loop()
        begin, calls = loop.time(), set()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(begin + number / rate - loop.time())
            calls.add(asyncio.create_task(self.call()))
        await asyncio.gather(*calls)

    async def close(self) -> None:
        await self._channel.close()


async def peak_rate(target: str, seconds: float, concurrency: int = 64) -> float:
    """Calls a second of a closed loop that keeps the device busy."""
    caller = Caller(target)
    end = time.perf_counter() + seconds

    async def loop() -> None:
        while time.perf_counter() < end:
            await caller.call(deadline_s=None)

    started = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(concurrency)))
    rate = len(caller.ended[OK]) / (time.perf_counter() - started)
    await caller.close()
    return rate


async def recovery_s(target: str) -> float:
    """After which calls, sent one after the other, are served as by an idle server."""
    caller, began = Caller(target), time.perf_counter()
    while await caller.call() is not OK or caller.ended[OK][-1] > DEADLINE_S / 10:
        if time.perf_counter() - began > 10:
            break
    await caller.close()
    return time.perf_counter() - began


async def watch_memory(server: ServerProcess, peaks: list[int]) -> None:
    while True:
        peaks.append(server.resident_bytes())
        await asyncio.sleep(0.1)


async def overload(seconds: float, percent: float) -> Report:
    report = Report()
    with ServerProcess("fake") as server:
        peak = await peak_rate(server.targets[0], min(5.0, seconds))
        before = server.resident_bytes()
        noisy, quiet, memory = Caller(server.targets[0]), Caller(server.targets[1]), []
        watch = asyncio.create_task(watch_memory(server, memory))
        started = time.perf_counter()
        await asyncio.gather(noisy.send(OVERLOAD * peak, seconds), quiet.send(QUIET_RATE, seconds))
        duration = time.perf_counter() - started
        watch.cancel()
        recovered = await recovery_s(server.targets[0])
        await noisy.close()
        await quiet.close()
        judge(report, noisy, quiet, peak, duration)
        refused_s = percentile(noisy.ended[REFUSED], percent)
        report.promise(f"{percent:g} % of refusals take less than 5 ms", refused_s < 5e-3)
        grown = max(memory) - before
        report.note(memory_grown_mib=grown / MIB, recovery_s=recovered)
        report.promise("memory grows by less than 64 MiB", grown < 64 * MIB)
        report.promise("recovers within 1 s", recovered < 1.0)
        left = server.settled()
        report.promise("nothing is left", left.admitted_bytes + left.queued_items == 0)
    return report


def judge(report: Report, noisy: Caller, quiet: Caller, peak: float, duration: float) -> None:
    ended = {code.name: len(times) for code, times in noisy.ended.items()}
    accepted = [t for code, times in noisy.ended.items() if code is not REFUSED for t in times]
    goodput = (len(noisy.ended[OK]) + len(quiet.ended[OK])) / duration
    report.note(
        calls=ended,
        peak_per_s=peak,
        goodput_per_s=goodput,
        goodput_of_peak=goodput / peak,
        accepted_p99_s=percentile(accepted, 99),
        refused_p50_ms=percentile(noisy.ended[REFUSED], 50) * 1e3,
        refused_p99_ms=percentile(noisy.ended[REFUSED], 99) * 1e3,
        quiet={code.name: len(times) for code, times in quiet.ended.items()},
    )
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    report.promise("only OK, refused or late", noisy.ended.keys() <= {OK, REFUSED, late})
    report.promise("goodput is at least 90 % of the peak", goodput >= 0.9 * peak)
    report.promise("p99 of accepted calls is in time", percentile(accepted, 99) < DEADLINE_S)
    report.promise("the quiet caller is served", set(quiet.ended) == {OK})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--percent",
        type=float,
        default=99.0,
        help="of the refusals that must be immediate; 50 where others use the machine as well",
    )
    options = parser.parse_args()
    uvloop.run(overload(options.seconds, options.percent)).finish()


if __name__ == "__main__":
    main()
