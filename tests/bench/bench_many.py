"""Small calls that go together in one message, against one call a message.

The server is one other process of this host. Contenders take turns in every round, each with a
client of its own; ratios are taken within a round, then their median.

    python -m bench.bench_many [--rounds 7] [--seconds 1] [--only gather] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import report
from stn_client import Affine, AsyncClient, Client, calls

CALLS, CALLERS = 2000, 33
SIDES = (20, 33)
OUTPUT_SIZE = (28, 28)


@dataclass(frozen=True)
class Case:
    """The same calls with packing and without, by one transport."""

    name: str
    run: Callable[..., float]
    """Target, seconds, settings of a client -> calls a second."""
    local: bool
    bar: float | None = None


def operands(count: int, *, alike: bool = False) -> list[tuple[np.ndarray, Affine]]:
    """Maps of one channel, all different in values, and in sizes unless they are alike."""
    rng = np.random.default_rng(0)
    sizes = [OUTPUT_SIZE] * count if alike else rng.integers(*SIDES, (count, 2))
    return [
        (
            rng.random((1, 1, *size), np.float32),
            Affine(rng.random((1, 2, 3)).astype(np.float32)),
        )
        for size in sizes
    ]


def gather(target: str, seconds: float, **settings) -> float:
    """All at once, by `asyncio.gather`, again and again."""

    async def main() -> float:
        async with AsyncClient(target, **settings) as stn:
            given = operands(CALLS)
            await stn.warp(*given[0], OUTPUT_SIZE)
            began, done = time.perf_counter(), 0
            while time.perf_counter() < began + seconds:
                await asyncio.gather(*(stn.warp(u, theta, OUTPUT_SIZE) for u, theta in given))
                done += CALLS
            return done / (time.perf_counter() - began)

    return asyncio.run(main())


def mapped(target: str, seconds: float, **settings) -> float:
    """All one after the other, by `Client.map`, again and again."""
    with Client(target, **settings) as stn:
        given = operands(CALLS)
        stn.warp(*given[0], OUTPUT_SIZE)
        began, done = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            for _ in stn.map(calls.warp(u, theta, OUTPUT_SIZE) for u, theta in given):
                done += 1
        return done / (time.perf_counter() - began)


def threads(target: str, seconds: float, **settings) -> float:
    """Callers of one process that wait for each result, in threads."""
    given = operands(CALLERS, alike=True)
    with Client(target, **settings) as stn:
        stn.warp(*given[0], OUTPUT_SIZE)
        began, done = time.perf_counter(), [0] * CALLERS

        def call(number: int) -> None:
            while time.perf_counter() < began + seconds:
                stn.warp(*given[number], OUTPUT_SIZE)
                done[number] += 1

        callers = [threading.Thread(target=call, args=[number]) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return sum(done) / (time.perf_counter() - began)


def tasks(target: str, seconds: float, **settings) -> float:
    """The same in tasks of one event loop."""
    given = operands(CALLERS, alike=True)

    async def main() -> float:
        async with AsyncClient(target, **settings) as stn:
            await stn.warp(*given[0], OUTPUT_SIZE)
            began, done = time.perf_counter(), 0

            async def call(number: int) -> None:
                nonlocal done
                while time.perf_counter() < began + seconds:
                    await stn.warp(*given[number], OUTPUT_SIZE)
                    done += 1

            await asyncio.gather(*map(call, range(CALLERS)))
            return done / (time.perf_counter() - began)

    return asyncio.run(main())


CASES = [
    Case(f"{name}, {transport}", run, local, bar if transport == "gRPC" else None)
    for name, run, bar in (
        (f"{CALLS:,} different small calls by gather", gather, 8.0),
        (f"{CALLS:,} different small calls by map", mapped, None),
        (f"28x28, {CALLERS} threads of one process", threads, None),
        (f"28x28, {CALLERS} tasks of one process", tasks, None),
    )
    for transport, local in (("gRPC", False), ("local transport", True))
]


def measure(case: Case, target: str, rounds: int, seconds: float) -> dict:
    """Medians over rounds that take turns."""
    seen: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for packing in (True, False)[:: 1 if number % 2 == 0 else -1]:
            rate = case.run(target, seconds, packing=packing, local=case.local)
            seen[packing].append(rate)
    ratios = [packed / alone for packed, alone in zip(seen[True], seen[False], strict=True)]
    return {
        "case": case.name,
        "packed_per_s": statistics.median(seen[True]),
        "alone_per_s": statistics.median(seen[False]),
        "times": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "bar": case.bar,
    }


@contextmanager
def server() -> Iterator[str]:
    """A server of its own for this run, with both transports; its target."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--listen=127.0.0.1:0", "--metrics-listen=", "--log-level=warning"]
        command = [sys.executable, "-m", "stn_server", *flags, f"--local-dir={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield json.loads(process.stdout.readline())["targets"][0]
        finally:
            process.terminate()
            process.wait()


def verdict(cell: dict) -> str:
    if cell["bar"] is None:
        return ""
    return f"bar {cell['bar']:g} {'met' if cell['times'] >= cell['bar'] else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn of callers")
    parser.add_argument("--only", default="", help="a pattern for the names of cases")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    cells = []
    with server() as target:
        for case in CASES:
            if re.search(options.only, case.name):
                cells.append(measure(case, target, options.rounds, options.seconds))
                cell = cells[-1]
                print(
                    f"{cell['case']:60}{cell['packed_per_s']:8.0f} against "
                    f"{cell['alone_per_s']:6.0f} calls/s: {cell['times']:5.2f} x "
                    f"({cell['least']:.2f} to {cell['most']:.2f})  {verdict(cell)}",
                    flush=True,
                )
    if options.output:
        packages = ("grpcio", "numpy", "protobuf", "torch")
        report.write(options.output, "many", packages, rounds=options.rounds, cells=cells)


if __name__ == "__main__":
    main()
