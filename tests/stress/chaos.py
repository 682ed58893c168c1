"""Rude callers, killed callers and injected faults: `python -m stress.chaos --requests 100000`.

Sizes, deadlines and cancellations are random; one caller after another is killed in the middle of
its calls; every hundredth crossing of a seam of the server fails. Every call must end, nothing may
leak, and the server must be ready at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
from collections import Counter

import uvloop

from stress.process import MIB, ServerProcess
from stress.report import Report
from stress.traffic import traffic

CONCURRENCY = 24
ROUNDS = 10
SPARE_FILES = 2
"""gRPC opens some for itself when it meets its first connections."""

ENDS = {
    "OK",
    "INVALID_ARGUMENT",  # bad requests
    "UNIMPLEMENTED",
    "INTERNAL",  # injected faults
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "RESOURCE_EXHAUSTED",
}


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


async def rounds(server: ServerProcess, requests: int) -> list[tuple[Counter[str], int, int]]:
    """Calls in rounds; after each, how they ended, open files and resident bytes."""
    seen = []
    for number in range(ROUNDS):
        ended = await traffic(server.target, requests // ROUNDS, CONCURRENCY, seed=number)
        seen.append((ended, server.open_files(), server.resident_bytes()))
    return seen


async def chaos(requests: int) -> Report:
    report = Report()
    with ServerProcess("faulty") as server:
        server.statistics()
        files_before = server.open_files()
        enough = threading.Event()
        killer = asyncio.create_task(asyncio.to_thread(kill_callers, server.target, enough))
        seen = await rounds(server, requests)
        enough.set()
        await killer
        left, serving = server.settled(), server.is_serving()
        files = server.open_files_down_to(files_before + SPARE_FILES)
    ended = sum((counts for counts, _, _ in seen), Counter())
    resident = [size for _, _, size in seen]
    grown = max(resident[ROUNDS // 2 :]) - max(resident[: ROUNDS // 2])
    files_seen = [files_before, *(one for _, one, _ in seen), files]
    report.note(ended=dict(ended), files=files_seen)
    report.note(resident_mib=[size // MIB for size in resident])
    report.promise("every call ends exactly once", ended.total() == requests // ROUNDS * ROUNDS)
    report.promise("every end is one of those promised", ended.keys() <= ENDS)
    report.promise(
        "callers of every kind were met", {"OK", "INTERNAL", "CANCELLED"} <= ended.keys()
    )
    inside = (left.queued_items, left.running_items, left.admitted_bytes)
    report.promise(f"nothing is left inside: {inside}", inside == (0, 0, 0))
    report.promise("the server is ready", serving)
    report.promise("no file stays open", files <= files_before + SPARE_FILES)
    report.promise("memory is flat", grown < 64 * MIB)
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
