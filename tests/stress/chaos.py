"""Rude callers, killed callers and injected faults: `python -m stress.chaos --requests 100000`.

Sizes, deadlines and cancellations are random; one caller after another is killed in the middle of
its calls; every hundredth stage that they reach fails. Every call must end, nothing may
leak, not even every hundredth message, and the server must be ready at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvloop

from stress.process import MIB, ServerProcess
from stress.report import Report
from stress.traffic import traffic

CONCURRENCY = 24
ROUNDS = 10
SPARE_FILES = 2
"""gRPC opens some for itself when it meets its first connections."""
RESIDENT_NOISE = 128 * MIB
"""A heap keeps what was inside at once at the worst moment, which may come late: here requests and
replies of 16 MiB, four of each. Leaks show in allocated memory."""

SPARE_BYTES, SPARE_BYTES_OF_CALL = 2 * MIB, 128
"""By less does allocated memory vary once the server knows all sizes, and grow with every call: a
server of grpc.aio that only echoes loses about 97 bytes with each call that its caller cancels, and
nothing with others. If every hundredth message were kept, it would be ten times as much; in 3,000
calls 4.8 MiB and more were seen then, and up to 1.4 without."""

ENDS = {
    "OK",
    "INVALID_ARGUMENT",  # bad requests
    "UNIMPLEMENTED",
    "INTERNAL",  # injected faults
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "RESOURCE_EXHAUSTED",
    "NOT_FOUND",  # resident tensors that were released or evicted
}


@dataclass(frozen=True)
class Round:
    """How its calls ended, and what the server held after."""

    ended: Counter[str]
    open_files: int
    resident_bytes: int


def kill_callers(target: str, enough: threading.Event) -> None:
    """One caller after another is killed in the middle of its calls."""
    command = [sys.executable, "-m", "stress.chaos", "--victim", target]
    while not enough.is_set():
        # Not asyncio's: libuv forks, and a fork of a process that runs gRPC may crash before exec.
        with subprocess.Popen(command, stdout=subprocess.PIPE) as caller:
            under_way = caller.stdout.readline()
            caller.kill()
            assert under_way, f"a caller ended by itself, with {caller.wait()}"


async def be_victim(target: str) -> None:
    calls = asyncio.create_task(traffic(target, sys.maxsize, CONCURRENCY, seed=-1))
    await traffic(target, 50, 4, seed=-2)
    print("under way", flush=True)
    await calls


@contextlib.asynccontextmanager
async def killed_callers(target: str) -> AsyncIterator[None]:
    enough = threading.Event()
    killer = asyncio.create_task(asyncio.to_thread(kill_callers, target, enough))
    yield
    enough.set()
    await killer


async def one_round(server: ServerProcess, number: int, calls: int) -> Round:
    ended = await traffic(server.target, calls, CONCURRENCY, seed=number)
    return Round(ended, server.open_files(), server.resident_bytes())


async def chaos(requests: int) -> Report:
    report, calls = Report(), requests // ROUNDS
    with ServerProcess("faulty") as server:
        server.statistics()
        files_before = server.open_files()
        seen = [await one_round(server, 0, calls)]
        allocated_before = server.allocated_bytes()
        async with killed_callers(server.target):
            seen += [await one_round(server, number, calls) for number in range(1, ROUNDS)]
        allocated = server.allocated_bytes() - allocated_before
        left, serving = server.settled(), server.is_serving()
        files = server.open_files_down_to(files_before + SPARE_FILES)
    ended = sum((one.ended for one in seen), Counter())
    resident = [one.resident_bytes for one in seen]
    grown = max(resident[ROUNDS // 2 :]) - max(resident[: ROUNDS // 2])
    files_seen = [files_before, *(one.open_files for one in seen), files]
    report.note(ended=dict(ended), files=files_seen)
    report.note(resident_mib=[size // MIB for size in resident])
    report.note(allocated_mib=allocated / MIB)
    report.promise("every call ends exactly once", ended.total() == calls * ROUNDS)
    report.promise("every end is one of those promised", ended.keys() <= ENDS)
    report.promise(
        "callers of every kind were met",
        {"OK", "INTERNAL", "CANCELLED", "NOT_FOUND"} <= ended.keys(),
    )
    inside = (left.queued_items, left.running_items, left.admitted_bytes)
    report.promise(f"nothing is left inside: {inside}", inside == (0, 0, 0))
    report.promise("the server is ready", serving)
    report.promise("no file stays open", files <= files_before + SPARE_FILES)
    report.promise("memory is flat", grown < RESIDENT_NOISE)
    spare = SPARE_BYTES + SPARE_BYTES_OF_CALL * requests
    report.promise("no message is kept", allocated < spare)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--victim", metavar="TARGET", help="be a caller that will be killed")
    options = parser.parse_args()
    if options.victim:
        uvloop.run(be_victim(options.victim))
    else:
        uvloop.run(chaos(options.requests)).finish()


if __name__ == "__main__":
    main()
