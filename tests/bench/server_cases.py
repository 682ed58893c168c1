"""What the server is asked for, and what that may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stn_client import Affine
from stn_client._calls import warp

SMALL, LARGE = (1, 1, 28, 28), (1, 3, 224, 224)
SIDES = (16, 512)
MIXED_MESSAGES = 256
"""More than are ever on their way together."""

Round = Mapping[str, Mapping[str, float]]
"""What was seen of each contender in one round, as `load.py` says it."""


@dataclass(frozen=True)
class Message:
    """A request in a file."""

    path: str
    samples: int


@dataclass(frozen=True)
class Contender:
    """Who is asked, for what, and how many calls are on their way at a time."""

    server: str
    messages: Sequence[Message]
    concurrency: int
    method: str = "/stn.v1.SpatialTransformer/Warp"


@dataclass(frozen=True)
class Quantity:
    """What a round tells, and where it should lie."""

    what: str
    of: Callable[[Round], float]
    unit: str = "x"
    bar: float | None = None
    at_most: bool = False


@dataclass(frozen=True)
class Case:
    """Contenders that take turns, and what is made of it."""

    name: str
    contenders: Mapping[str, Contender]
    quantities: Sequence[Quantity]
    note: str = ""


def all_cases(folder: Path) -> Iterator[Case]:
    """Every case; their messages are written to a folder."""
    yield against_echo(folder, SMALL, 1, latency=1.4)
    yield against_echo(folder, SMALL, 32, throughput=0.65)
    yield against_echo(folder, LARGE, 1, throughput=0.55)
    yield against_echo(folder, LARGE, 32, throughput=0.55)
    yield mixed_sizes(folder)
    yield slow_device(folder)


def against_echo(folder: Path, shape, concurrency: int, **bars: float) -> Case:
    """The service without numerics and as it is, beside what moves the same bytes."""
    messages = [write(folder, shape)]
    return Case(
        f"{'x'.join(map(str, shape))} float32, {concurrency} at a time",
        {name: Contender(name, messages, concurrency) for name in ("echo", "null", "service")},
        [one for name in ("null", "service") for one in beyond_echo(name, concurrency, **bars)],
    )


def beyond_echo(name: str, concurrency: int, throughput=None, latency=None) -> Iterator[Quantity]:
    of_echo = f"{name} : echo"
    yield Quantity(
        f"throughput, {of_echo}", partial(ratio, "requests_per_s", name, "echo"), bar=throughput
    )
    yield Quantity(
        f"latency, {of_echo}", partial(ratio, "p50_ms", name, "echo"), bar=latency, at_most=True
    )
    if concurrency == 1:
        yield Quantity(
            f"latency added by {name}",
            partial(added_ms, name, "echo"),
            "ms",
            0.3,
            at_most=True,
        )


def mixed_sizes(folder: Path) -> Case:
    logarithms = np.random.default_rng(0).uniform(*np.log(SIDES), (MIXED_MESSAGES, 2))
    sizes = np.exp(logarithms).round().astype(int)
    pixels = sizes.prod(axis=1)
    side = round(np.mean(pixels) ** 0.5)
    return Case(
        f"mixed sizes against {side}x{side}, 32 at a time",
        {
            "mixed": Contender("service", [write(folder, (1, 1, *size)) for size in sizes], 32),
            "uniform": Contender("service", [write(folder, (1, 1, side, side))], 32),
        },
        [
            Quantity(
                "samples per second, mixed : uniform",
                partial(ratio, "samples_per_s", "mixed", "uniform"),
                bar=0.85,
            )
        ],
        f"mixed: heights and widths uniform in their logarithm from {SIDES[0]} to {SIDES[1]}; "
        f"{pixels.min()} to {pixels.max()} pixels, median {np.median(pixels):.0f}, "
        f"mean {pixels.mean():.0f}",
    )


def slow_device(folder: Path) -> Case:
    messages = [write(folder, SMALL)]
    alone, crowd = "1 at a time", "32 at a time"
    return Case(
        "a device that takes 2 ms a launch",
        {alone: Contender("device", messages, 1), crowd: Contender("device", messages, 32)},
        [
            Quantity(
                f"throughput, {crowd} : {alone}",
                partial(ratio, "requests_per_s", crowd, alone),
                bar=8.0,
            )
        ],
    )


def ratio(quantity: str, name: str, other: str, seen: Round) -> float:
    return seen[name][quantity] / seen[other][quantity]


def added_ms(name: str, other: str, seen: Round) -> float:
    return seen[name]["p50_ms"] - seen[other]["p50_ms"]


def write(folder: Path, shape) -> Message:
    """The bytes that the SDK sends for a warp of a random feature map."""
    path = folder / "x".join(map(str, shape))
    if not path.exists():
        feature_map = np.random.default_rng(0).random(shape, np.float32)
        theta = np.array([[[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]], np.float32)
        path.write_bytes(warp(feature_map, Affine(theta), None, {}).request)
    return Message(str(path), int(shape[-2] * shape[-1]))
