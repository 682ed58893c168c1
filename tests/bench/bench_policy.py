"""What the batching policy itself takes: steps a second, in virtual time, without a loop or engine.

`python -m bench.bench_policy` prints a table. A step is an arrival, or the end of a batch and what
follows from it. On a noisy machine only two versions side by side mean something.
"""

from __future__ import annotations

import math
import statistics
import time
from itertools import count

from stn_server.batching.policy import Arrive, Finish, Policy, PolicyLimits
from stn_server.batching.work import BatchKey, Cost, Operation, WorkItem

BUDGET = Cost(size_bytes=256 << 20, samples=16 << 20, work=16 * (16 << 20))
SMALL = Cost(size_bytes=6272, samples=784, work=784 * 8)
LARGE = Cost(size_bytes=64 << 20, samples=4 << 20, work=16 * (4 << 20))
ITEM_S = 1e-4
"""What every item adds to the time of its batch."""
STEPS, ROUNDS = 5000, 5

CASES = {
    "one at a time": {"inside": 1},
    "32 inside": {"inside": 32},
    "32 inside, deadlines of 1 s": {"inside": 32, "patience_s": 1.0},
    "32 inside, 4 keys": {"inside": 32, "keys": 4},
    "512 inside, 4 keys, 8 callers": {"inside": 512, "keys": 4, "callers": 8},
    "800 inside, 800 keys": {"inside": 800, "keys": 800},
    "800 inside, 800 keys, 40 callers": {"inside": 800, "keys": 800, "callers": 40},
    "20 inside, 4 to a batch": {"inside": 20, "cost": LARGE},
}


def steps_per_s(*, inside, keys=1, callers=1, patience_s=math.inf, cost=SMALL) -> float:
    """A closed loop that keeps so many items inside."""
    policy = Policy(
        PolicyLimits(budget=BUDGET, max_admitted_items=1024, max_admitted_bytes=2 << 30)
    )
    kinds = [BatchKey(Operation.WARP, "float32", number) for number in range(keys)]
    numbers, now, steps, held, running = count(), 0.0, 0, 0, None
    began = time.perf_counter()
    while steps < STEPS:
        while held < inside:
            number = next(numbers)
            item = WorkItem(
                key=kinds[number % keys],
                cost=cost,
                problems=(None,),
                arrived=now,
                deadline=now + patience_s,
                caller=f"caller {number % callers}",
            )
            decisions = policy.step(Arrive(item), now)
            steps += 1
            held += decisions.refusal is None
            running = decisions.launches[0] if decisions.launches else running
            if decisions.refusal is not None:
                break
        now += ITEM_S * len(running.items)
        decisions = policy.step(Finish(running), now)
        steps += 1
        for item in (*running.items, *decisions.expired):
            policy.release(item.place)
            held -= 1
        running = decisions.launches[0] if decisions.launches else None
    return steps / (time.perf_counter() - began)


if __name__ == "__main__":
    for name, case in CASES.items():
        rates = [steps_per_s(**case) for _ in range(ROUNDS)]
        print(f"{name:34} {statistics.median(rates):9.0f} steps/s")
