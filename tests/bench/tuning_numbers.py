"""What the numbers of `stn_server.tuning` do to a server under overload, in virtual time.

`python -m bench.tuning_numbers` simulates the policy before one device of fixed cost whose batches
take up to some ten per cent more or less, for twenty seconds: a noisy caller asks for three times
the capacity, a quiet one for five calls a second, all with a deadline of a quarter of a second.
Seeded: the same numbers on every machine.
"""

from __future__ import annotations

import heapq
import random
import statistics
from itertools import count
from unittest import mock

from stn_server.batching import forecast, queue
from stn_server.batching.policy import Arrive, Finish, Policy, PolicyLimits, Tick
from stn_server.batching.work import BatchKey, Cost, Operation, WorkItem

LAUNCH_S, SAMPLE_S = 2e-3, 4e-6
SPREAD = 0.2
SECONDS, DEADLINE_S = 20.0, 0.25
QUIET_PER_S, OVERLOAD = 5.0, 3.0
KEYS = [BatchKey(Operation.WARP, "float32", number) for number in range(2)]
SMALL = Cost(size_bytes=4 * 1024, samples=256, work=256 * 8)
BUDGET = Cost(size_bytes=64 * SMALL.size_bytes, samples=64 * SMALL.samples, work=64 * SMALL.work)
CAPACITY_PER_S = 64 / (LAUNCH_S + SAMPLE_S * BUDGET.samples)

VARIED = {
    "SAFETY": (forecast, (1.0, 1.25, 1.5, 2.0, 3.0)),
    "TURN": (queue, (1 / 64, 1 / 8, 1.0)),
    "LEAST_PART": (queue, (1 / 256, 1 / 64, 1 / 16)),
}


def arrivals(rng):
    """The calls of both callers."""
    for caller, rate in (("noisy", OVERLOAD * CAPACITY_PER_S), ("quiet", QUIET_PER_S)):
        instant = 0.0
        while (instant := instant + rng.expovariate(rate)) < SECONDS:
            yield WorkItem(
                key=rng.choice(KEYS),
                cost=SMALL,
                problems=(None,),
                arrived=instant,
                deadline=instant + DEADLINE_S,
                caller=caller,
            )


def simulate() -> dict[str, float]:
    """What became of the calls."""
    rng = random.Random(0)
    limits = {"max_admitted_items": 4096, "max_admitted_bytes": 2 << 30}
    server = Policy(PolicyLimits(budget=BUDGET, **limits))
    order, events, sizes = count(), [], []
    ended = {"noisy": [], "quiet": []}
    refused = {"noisy": 0, "quiet": 0}
    ticks = set()

    def later(instant, event):
        heapq.heappush(events, (instant, next(order), event))

    for item in arrivals(rng):
        later(item.arrived, item)
    while events:
        now, _, event = heapq.heappop(events)
        if isinstance(event, WorkItem):
            decisions = server.step(Arrive(event), now)
            refused[event.caller] += decisions.refusal is not None
        elif event is None:
            decisions = server.step(Tick(), now)
        else:
            decisions = server.step(Finish(event), now)
            for item in event.items:
                server.release(item.place)
                ended[item.caller].append(now - item.arrived)
        for item in decisions.expired:
            server.release(item.place)
            ended[item.caller].append(DEADLINE_S * 2)
        for batch in decisions.launches:
            sizes.append(len(batch.items))
            jitter = rng.lognormvariate(0.0, SPREAD)
            later(now + (LAUNCH_S + SAMPLE_S * batch.cost.samples) * jitter, batch)
        if decisions.wake_at < SECONDS * 2 and decisions.wake_at not in ticks:
            ticks.add(decisions.wake_at)
            later(decisions.wake_at, None)
    waited = sorted(ended["noisy"])
    in_time = sum(1 for waited_s in waited if waited_s <= DEADLINE_S)
    return {
        "goodput": in_time / SECONDS / CAPACITY_PER_S,
        "late": 1 - in_time / len(waited),
        "items": statistics.mean(sizes),
        "quiet p99 ms": 1000 * sorted(ended["quiet"])[int(0.99 * len(ended["quiet"]))],
        "quiet refused": refused["quiet"],
    }


def main() -> None:
    for name, (module, values) in VARIED.items():
        for value in values:
            with mock.patch.object(module, name, value):
                seen = simulate()
            told = ", ".join(f"{what} {number:.3g}" for what, number in seen.items())
            mark = "*" if getattr(module, name) == value else " "
            print(f"{mark} {name:12} {value:8.4g}: {told}")


if __name__ == "__main__":
    main()
