"""The batching policy: examples of each rule, then all rules under random events."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stn_server.batching.policy import (
    PATIENCE_S,
    Abandon,
    Arrive,
    Finish,
    Policy,
    PolicyLimits,
    Refusal,
    Tick,
)
from stn_server.batching.work import NOTHING, BatchKey, Cost, Operation, WorkItem

WARP = BatchKey(Operation.WARP, "float32", "bilinear")
NEAREST = BatchKey(Operation.WARP, "float32", "nearest")
GRADIENTS = BatchKey(Operation.WARP_GRADIENTS, "float32", "bilinear")


def make_policy(**changes):
    limits = {
        "budget": Cost(1000, 100),
        "max_admitted_items": 50,
        "max_admitted_bytes": 10_000,
        **changes,
    }
    return Policy(PolicyLimits(**limits))


def make_item(key=WARP, size_bytes=10, samples=1, arrived=0.0, deadline=math.inf):
    return WorkItem(
        key=key,
        cost=Cost(size_bytes, samples),
        problem=None,
        arrived=arrived,
        deadline=deadline,
    )


def start(policy, *items, now=0.0):
    """Lets items arrive while a first batch keeps the only lane busy; returns that batch."""
    (busy,) = policy.step(Arrive(make_item()), now).launches
    for item in items:
        assert policy.step(Arrive(item), now).launches == ()
    return busy


def finish(policy, batch, now=0.0):
    """Frees the lane; returns the items of the batch that follows."""
    launches = policy.step(Finish(batch), now).launches
    return [list(batch.items) for batch in launches]


def test_a_free_lane_takes_an_item_at_once():
    """An idle server makes nobody wait."""
    item = make_item()
    (batch,) = make_policy().step(Arrive(item), 0.0).launches
    assert batch.items == (item,)


def test_work_gathers_while_the_lane_is_busy():
    """What arrived during a batch runs together after it."""
    policy = make_policy()
    items = [make_item(), make_item(), make_item()]
    busy = start(policy, *items)
    assert finish(policy, busy) == [items]


def test_items_of_different_keys_do_not_share_a_batch():
    """A launch computes one operation, type and spec."""
    policy = make_policy()
    a, b, c = make_item(NEAREST), make_item(GRADIENTS), make_item(NEAREST)
    busy = start(policy, a, b, c)
    assert finish(policy, busy) == [[a, c]]


def test_keys_take_turns():
    """A key that was served goes behind the others."""
    policy = make_policy(budget=Cost(10, 100))
    a1, a2, b1 = make_item(NEAREST), make_item(NEAREST), make_item(GRADIENTS)
    batch = start(policy, a1, a2, b1)
    order = []
    for _ in range(3):
        (batch,) = policy.step(Finish(batch), 0.0).launches
        order += batch.items
    assert order == [a1, b1, a2]


def test_the_earliest_deadline_goes_first():
    """Within a key, urgency beats arrival; without a deadline, arrival decides."""
    policy = make_policy(budget=Cost(10, 100))
    late, none, soon = make_item(deadline=0.9), make_item(), make_item(deadline=0.5)
    batch = start(policy, late, none, soon)
    order = []
    for _ in range(3):
        (batch,) = policy.step(Finish(batch), 0.0).launches
        order += batch.items
    assert order == [soon, late, none]


@pytest.mark.parametrize("cost", [Cost(400, 1), Cost(1, 40)])
def test_a_batch_keeps_its_budget_in_bytes_and_samples(cost):
    """Two of these fit, the third waits."""
    policy = make_policy()
    items = [make_item(size_bytes=cost.size_bytes, samples=cost.samples) for _ in range(3)]
    busy = start(policy, *items)
    assert finish(policy, busy) == [items[:2]]


def test_an_item_above_the_budget_runs_alone():
    """Large requests are served, but nobody shares their batch."""
    policy = make_policy()
    large, small = make_item(size_bytes=5000), make_item()
    busy = start(policy, large, small)
    assert finish(policy, busy) == [[large]]


def test_an_expired_item_leaves_the_queue():
    """Its deadline is the wake-up call; it costs no device time."""
    policy = make_policy()
    item = make_item(deadline=2.0)
    busy = start(policy, item)
    assert policy.step(Tick(), 1.0).wake_at == 2.0
    assert policy.step(Tick(), 2.0).expired == (item,)
    assert finish(policy, busy, 3.0) == []


def test_an_expired_item_is_not_launched_by_the_event_that_finds_it():
    """Expiry comes before launching."""
    policy = make_policy()
    expired, alive = make_item(deadline=1.0), make_item(deadline=9.0)
    busy = start(policy, expired, alive)
    decisions = policy.step(Finish(busy), 5.0)
    assert decisions.expired == (expired,)
    assert [batch.items for batch in decisions.launches] == [(alive,)]


def test_an_abandoned_item_leaves_the_queue():
    """Nobody computes for a caller who has gone."""
    policy = make_policy()
    gone, alive = make_item(), make_item()
    busy = start(policy, gone, alive)
    assert policy.step(Abandon(gone), 0.0).abandoned
    assert finish(policy, busy) == [[alive]]


def test_abandoning_a_running_item_changes_nothing():
    """The batch that holds it finishes as it is."""
    policy = make_policy()
    busy = start(policy)
    assert not policy.step(Abandon(busy.items[0]), 0.0).abandoned
    assert policy.running_items == 1
    assert finish(policy, busy) == []
    assert policy.admitted_bytes == 0


def test_items_beyond_the_limit_are_refused():
    """Queued and running items count together."""
    policy = make_policy(max_admitted_items=2)
    start(policy, make_item())
    assert policy.step(Arrive(make_item()), 0.0).refusal == Refusal("items", 2, 3)
    assert policy.queued_items == 1


def test_bytes_beyond_the_limit_are_refused():
    """What is refused takes no place."""
    policy = make_policy(max_admitted_bytes=100)
    start(policy, make_item(size_bytes=80))
    assert policy.step(Arrive(make_item(size_bytes=11)), 0.0).refusal == Refusal("bytes", 100, 101)
    assert policy.step(Arrive(make_item(size_bytes=10)), 0.0).refusal is None


def test_a_window_lets_work_gather_on_a_free_lane():
    """It counts from the oldest item, and a full batch does not wait for it."""
    policy = make_policy(window_s=1.0)
    first, second = make_item(arrived=0.0), make_item(arrived=0.5)
    decisions = policy.step(Arrive(first), 0.0)
    assert (decisions.launches, decisions.wake_at) == ((), 1.0)
    assert policy.step(Arrive(second), 0.5).wake_at == 1.0
    (batch,) = policy.step(Tick(), 1.0).launches
    assert batch.items == (first, second)


def test_a_full_batch_does_not_wait_for_the_window():
    """There is nothing to gain by waiting."""
    policy = make_policy(window_s=1.0)
    policy.step(Arrive(make_item(size_bytes=600)), 0.0)
    assert len(policy.step(Arrive(make_item(size_bytes=600)), 0.0).launches) == 1


def test_the_oldest_arrival_is_that_of_a_waiting_item():
    """Running items do not count, and an empty queue has none."""
    policy = make_policy()
    assert policy.oldest_arrival() == math.inf
    start(policy, make_item(arrived=3.0), make_item(NEAREST, arrived=2.0), now=3.0)
    assert policy.oldest_arrival() == 2.0


def test_an_item_without_a_deadline_is_not_passed_over_for_ever():
    """It ages: what arrives PATIENCE_S later goes after it, however urgent."""
    policy = make_policy(budget=Cost(10, 100))
    patient = make_item()
    batch = start(policy, patient)
    order, now = [], 0.0
    while patient not in order:
        now += 0.3
        policy.step(Arrive(make_item(arrived=now, deadline=now + 0.5)), now)
        (batch,) = policy.step(Finish(batch), now).launches
        order += batch.items
    assert len(order) > 1
    assert now <= PATIENCE_S


def urgency_of(item):
    """What decides the order within a key."""
    return min(item.deadline, item.arrived + PATIENCE_S), item.number


class PolicyMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations, batches and time; every rule holds after every event."""

    BUDGET = Cost(100, 20)

    def __init__(self):
        super().__init__()
        self.policy = Policy(
            PolicyLimits(budget=self.BUDGET, max_admitted_items=12, max_admitted_bytes=400, lanes=2)
        )
        self.now = 0.0
        self.queued = {}
        self.running = []
        self.left = set()
        self.passed_over = {}

    def step(self, event):
        decisions = self.policy.step(event, self.now)
        for item in decisions.expired:
            assert item.deadline <= self.now
            self.leave(item)
        for batch in decisions.launches:
            self.check_batch(batch)
            self.running.append(batch)
        self.wake_at = decisions.wake_at
        return decisions

    def leave(self, item):
        assert item.number not in self.left, "an item left twice"
        del self.queued[item.number]
        self.left.add(item.number)

    def check_batch(self, batch):
        assert batch.items
        assert {item.key for item in batch.items} == {batch.key}
        assert all(item.deadline > self.now for item in batch.items)
        total = sum((item.cost for item in batch.items), start=NOTHING)
        assert len(batch.items) == 1 or total.fits(self.BUDGET)
        for item in batch.items:
            self.leave(item)
        urgency = [urgency_of(item) for item in batch.items]
        assert urgency == sorted(urgency)
        rest = [urgency_of(item) for item in self.queued.values() if item.key == batch.key]
        assert not rest or max(urgency) < min(rest), "order within a key"
        waiting = {item.key for item in self.queued.values()} - {batch.key}
        self.passed_over = {key: self.passed_over.get(key, 0) + 1 for key in waiting}
        assert all(count <= 2 for count in self.passed_over.values()), "three keys take turns"

    @rule(
        key=st.sampled_from([WARP, NEAREST, GRADIENTS]),
        size_bytes=st.integers(1, 120),
        samples=st.integers(1, 25),
        patience=st.one_of(st.just(math.inf), st.floats(0.1, 5.0)),
    )
    def arrive(self, key, size_bytes, samples, patience):
        item = WorkItem(
            key=key,
            cost=Cost(size_bytes, samples),
            problem=None,
            arrived=self.now,
            deadline=self.now + patience,
        )
        inside = [*self.queued.values(), *(i for batch in self.running for i in batch.items)]
        full = len(inside) + 1 > 12 or sum(i.cost.size_bytes for i in inside) + size_bytes > 400
        self.queued[item.number] = item
        refused = self.step(Arrive(item)).refusal is not None
        assert refused == full
        if refused:
            del self.queued[item.number]

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def abandon_queued(self, data):
        item = data.draw(st.sampled_from(list(self.queued.values())))
        self.leave(item)
        assert self.step(Abandon(item)).abandoned

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon_running(self, data):
        batch = data.draw(st.sampled_from(self.running))
        assert not self.step(Abandon(batch.items[0])).abandoned

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data):
        index = data.draw(st.integers(0, len(self.running) - 1))
        self.step(Finish(self.running.pop(index)))

    @rule(seconds=st.floats(0.0, 3.0))
    def pass_time(self, seconds):
        self.now += seconds
        self.step(Tick())

    @invariant()
    def counts_are_those_of_the_model(self):
        inside = [*self.queued.values(), *(i for batch in self.running for i in batch.items)]
        assert self.policy.queued_items == len(self.queued)
        assert self.policy.running_items == sum(len(batch.items) for batch in self.running)
        assert self.policy.admitted_bytes == sum(item.cost.size_bytes for item in inside)

    @invariant()
    def no_lane_idles_while_work_waits(self):
        assert len(self.running) == 2 or not self.queued

    @invariant()
    def expiry_is_scheduled(self):
        deadlines = [item.deadline for item in self.queued.values()]
        assert all(deadline > self.now for deadline in deadlines)
        if deadlines:
            assert self.wake_at == min(deadlines)


TestPolicyMachine = PolicyMachine.TestCase
