"""Times contenders in rounds that take turns, so that all of them meet the same machine.

Idle workers of a thread pool spin for some milliseconds before they sleep, and would steal time
from whoever runs next: each turn starts with a warm-up that outlasts them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import cv2
import torch

WARM_UP_S = 0.03
LEAST_CALLS = 3


@dataclass(frozen=True)
class Contender:
    """One way to compute the result of a case."""

    run: Callable[[], object]
    threads: int


def durations_s(
    contenders: Mapping[str, Contender], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """How long a call of each contender takes: the median of each round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        # Neither is always the one that runs second.
        for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            use_threads(contenders[name].threads)
            repeated(contenders[name].run, WARM_UP_S)
            found[name].append(statistics.median(repeated(contenders[name].run, seconds)))
    return found


def repeated(call: Callable[[], object], seconds: float) -> list[float]:
    """Durations in seconds of as many calls as fit, and of a few in any case."""
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < LEAST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return durations


def result(contender: Contender) -> object:
    """What a contender computes."""
    use_threads(contender.threads)
    return contender.run()


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def difference(one: object, other: object) -> tuple[float, float]:
    """The largest difference of two results, absolute and relative to the largest element.

    Results are arrays, or sequences of results; the relative difference is taken in each array.
    Those of gradients to theta look large: where rounding puts one coordinate on the other side of
    a cell edge, its slope is another.
    """
    if isinstance(one, Iterable) and not hasattr(one, "shape"):
        pairs = [difference(*pair) for pair in zip(one, other, strict=True)]
        absolute, relative = map(max, zip(*pairs, strict=True))
        return absolute, relative
    found, expected = (torch.as_tensor(x).double() for x in (one, other))
    largest = float((found - expected).abs().max())
    return largest, largest / float(expected.abs().max())
