"""What the SDK and the command add to the calls they make, and what saves most of that.

The server is one other process of this host. Contenders take turns in every round; what is told of
them is taken within a round, then the median.

    python -m bench.bench_client [--rounds 7] [--only map] [--output FILE]
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import grpc
import numpy as np
from PIL import Image

from bench import report
from bench.bench_many import server
from bench.bench_server import verdict
from stn_client import Affine, Client, calls
from stn_client._calls import warp

STN = Path(sys.executable).with_name("stn")

CALLS = 300
"""Of small maps in a turn."""

FILES, FILES_ALONE = 500, 12
"""Files that one process warps, and so many processes that warp one each."""

IMAGES, SIDE_PX = 2000, 128

Turns = Mapping[str, Callable[[], float]]
"""What every contender takes for one item, in seconds."""


@dataclass(frozen=True)
class Case:
    """Contenders that take turns, and what is made of a turn of each."""

    name: str
    prepared: Callable[[str], object]
    """Target -> a context with the turns of this case."""
    what: str
    of: Callable[[Mapping[str, float]], float]
    unit: str
    bar: float
    at_most: bool = False


@contextmanager
def small_calls(target: str) -> Iterator[Turns]:
    """The same request of 1x1x28x28 again and again, by the SDK and by a stub of gRPC alone.

    The stub is given the bytes of the request, ready to be sent, and makes nothing of the reply.
    """
    u = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    transform = Affine(np.array([[[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]], np.float32))
    call = warp(u, transform, None, {})
    with Client(target, local=False) as stn, grpc.insecure_channel(target) as channel:
        stub = channel.unary_unary(call.method)
        yield {
            "SDK": lambda: median_s(lambda: stn.warp(u, transform)),
            "bare stub": lambda: median_s(lambda: stub(call.request)),
        }


def median_s(call: Callable[[], object]) -> float:
    """The median duration of many calls."""
    durations_s = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        durations_s.append(time.perf_counter() - began)
    return statistics.median(durations_s)


@contextmanager
def files(target: str) -> Iterator[Turns]:
    """Photos of 128x128 by the command `stn warp`."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        folder.mkdir()
        paths = [folder / f"{number:03}.png" for number in range(FILES)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)).save(path)

        def warped(*sources: Path) -> None:
            command = [STN, f"--target={target}", "warp"]
            arguments = ["--rotate=30", *map(str, sources), str(Path(name, "out/"))]
            subprocess.run([*command, *arguments], check=True)

        Path(name, "out").mkdir()
        yield {
            "one process": lambda: duration_s(lambda: warped(folder)) / FILES,
            "one process a file": lambda: (
                duration_s(lambda: [warped(path) for path in paths[:FILES_ALONE]]) / FILES_ALONE
            ),
        }


@contextmanager
def augmentations(target: str) -> Iterator[Turns]:
    """Images (128, 128, 3) in uint8, a random affine map each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIDE_PX, SIDE_PX, 3), np.uint8)
    matrices = np.eye(2, 3) + rng.uniform(-0.1, 0.1, (IMAGES, 2, 3)) * [1, 1, 100]
    with Client(target) as stn:

        def by_map() -> None:
            for _ in stn.map(
                calls.warp(image, Affine(matrix), layout="HWC", coordinates="pixel")
                for image, matrix in zip(images, matrices, strict=True)
            ):
                pass

        def by_opencv() -> None:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            for image, matrix in zip(images, matrices, strict=True):
                cv2.warpAffine(image, matrix, (SIDE_PX, SIDE_PX), flags=flags)

        yield {
            "map": lambda: duration_s(by_map) / IMAGES,
            "OpenCV": lambda: duration_s(by_opencv) / IMAGES,
        }


def duration_s(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


CASES = [
    Case(
        "1x1x28x28 float32, one at a time by gRPC",
        small_calls,
        "latency added by the SDK",
        lambda seen: (seen["SDK"] - seen["bare stub"]) * 1e3,
        "ms",
        0.1,
        at_most=True,
    ),
    Case(
        f"stn warp of {FILES} files",
        files,
        "files a second, one process : one process a file",
        lambda seen: seen["one process a file"] / seen["one process"],
        "x",
        10.0,
    ),
    Case(
        f"{IMAGES:,} images of {SIDE_PX}x{SIDE_PX}x3 uint8, local transport",
        augmentations,
        "images a second, map : OpenCV's loop",
        lambda seen: seen["OpenCV"] / seen["map"],
        "x",
        1.0,
    ),
]


def measure(case: Case, target: str, rounds: int) -> dict:
    """Medians over rounds that take turns, behind one that warms up."""
    rounds_seen: list[dict[str, float]] = []
    with case.prepared(target) as turns:
        for number in range(rounds + 1):
            order = list(turns)[:: 1 if number % 2 == 0 else -1]
            rounds_seen.append({name: turns[name]() for name in order})
    del rounds_seen[0]
    values = [case.of(seen) for seen in rounds_seen]
    value = statistics.median(values)
    return {
        "case": case.name,
        "contenders": [
            {"name": name, "s": statistics.median(seen[name] for seen in rounds_seen)}
            for name in turns
        ],
        "finding": {
            "what": case.what,
            "value": value,
            "least": min(values),
            "most": max(values),
            "unit": case.unit,
            "bar": case.bar,
            "at_most": case.at_most,
            "met": value <= case.bar if case.at_most else value >= case.bar,
        },
    }


def print_cell(cell: dict) -> None:
    print(f"\n{cell['case']}")
    for one in cell["contenders"]:
        print(f"  {one['name']:20}{one['s'] * 1e3:10.3f} ms each")
    one = cell["finding"]
    print(
        f"  {one['what']}: {one['value']:.3f} {one['unit']} ({one['least']:.3f} to "
        f"{one['most']:.3f})   {verdict(one)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="a pattern for the names of cases")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    cells = []
    with server() as target:
        for case in CASES:
            if re.search(options.only, case.name):
                cells.append(measure(case, target, options.rounds))
                print_cell(cells[-1])
    if options.output:
        packages = ("grpcio", "numpy", "opencv-python-headless", "pillow", "protobuf")
        report.write(options.output, "client", packages, rounds=options.rounds, cells=cells)


if __name__ == "__main__":
    main()
