"""The queue against one that sorts everything that waits whenever a batch is formed."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from stn_server.batching.queue import Queue
from stn_server.batching.work import NOTHING, BatchKey, Cost, Operation, WorkItem
from stn_server.tuning import IMPLICIT_DEADLINE_S, LEAST_PART, TURN

BUDGET = Cost(size_bytes=100, samples=100, work=100)
KEYS = [BatchKey(Operation.WARP, "float32", name) for name in "abc"]
S_PER_WORK = 0.01

ARRIVALS = st.fixed_dictionaries(
    {
        "key": st.sampled_from(KEYS),
        "caller": st.sampled_from("xyz"),
        "size_bytes": st.sampled_from([1, 1, 10, 40, 60, 120]),
        "patience": st.sampled_from([math.inf, 0.2, 0.5, 0.9, 4.0]),
    }
)
STEPS = st.lists(st.one_of(ARRIVALS, st.just("take"), st.just("expire"), st.integers(0, 9)))


def batch_s(_operation, work):
    return S_PER_WORK * work


class Sorting:
    """The rules, as they are written in the module: slow, and nothing is kept up to date."""

    def __init__(self):
        self.waiting = []
        self.turns = {}  # of keys that wait: who has the lowest is next
        self.taken = {}  # of callers that wait
        self.latest = 0.0
        self.count = 0

    def next_turn(self):
        self.count += 1
        return self.count

    def add(self, item):
        self.turns.setdefault(item.key, self.next_turn())
        self.taken.setdefault(item.caller, self.latest)
        self.waiting.append(item)

    def remove(self, item):
        self.waiting.remove(item)
        self.turns = {k: t for k, t in self.turns.items() if any(i.key == k for i in self.waiting)}
        callers = {i.caller for i in self.waiting}
        self.taken = {c: t for c, t in self.taken.items() if c in callers}

    def rank(self, item):
        due = min(item.deadline, item.arrived + IMPLICIT_DEADLINE_S)
        return int(self.taken[item.caller] / TURN), due, item.number

    def take(self, now):
        if not self.waiting:
            return None
        key = min((self.rank(i)[0], self.turns[i.key], n) for n, i in enumerate(self.waiting))[2]
        key = self.waiting[key].key
        chosen, ends_by, work = [], math.inf, 0
        while alike := [item for item in self.waiting if item.key == key]:
            item = min(alike, key=self.rank)
            ends = now + S_PER_WORK * (work + item.cost.work)
            if chosen and (ends > ends_by or work + item.cost.size_bytes > BUDGET.size_bytes):
                break
            if ends <= item.deadline:
                ends_by = min(ends_by, item.deadline)
            self.latest = max(self.latest, self.taken[item.caller])
            self.taken[item.caller] += max(item.cost.size_bytes / BUDGET.size_bytes, LEAST_PART)
            chosen.append(item)
            work += item.cost.work
            self.remove(item)
        if key in self.turns:
            self.turns[key] = self.next_turn()
        return chosen


@settings(max_examples=300)
@given(steps=STEPS)
def test_batches_are_those_of_a_queue_that_sorts(steps):
    """Whatever comes, goes and is taken: same items, and those of each caller in the same order."""
    queue, model, now = Queue(BUDGET), Sorting(), 0.0
    for number, step in enumerate(steps):
        now += 0.0625
        if step == "take":
            batch, expected = queue.take(now, batch_s), model.take(now)
            assert (batch and set(batch.items)) == (expected and set(expected))
            if batch:
                assert batch.cost == sum((item.cost for item in batch.items), start=NOTHING)
                for caller in "xyz":
                    in_order = [item for item in batch.items if item.caller == caller]
                    assert in_order == [item for item in expected if item.caller == caller]
        elif step == "expire":
            for item in queue.expired(now):
                assert item.deadline <= now
                queue.remove(item)
                model.remove(item)
        elif isinstance(step, int):
            if queue.items:
                gone = list(queue.items.values())[step % len(queue.items)]
                queue.remove(gone)
                model.remove(gone)
        else:
            size = step["size_bytes"]
            item = WorkItem(
                key=step["key"],
                cost=Cost(size, size, size),
                problems=(None,),
                arrived=now,
                deadline=now + step["patience"],
                caller=step["caller"],
                number=number,
            )
            queue.add(item)
            model.add(item)
        waiting = model.waiting
        assert list(queue.items.values()) == waiting
        assert queue.next_deadline == min((i.deadline for i in waiting), default=math.inf)
        assert queue.oldest_arrival == min((i.arrived for i in waiting), default=math.inf)
        for key in KEYS:
            assert queue.keys_beside(key) == len({i.key for i in waiting} - {key})
