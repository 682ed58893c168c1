"""The batching policy: examples of each rule, then all rules under random events."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stn_server.batching.policy import (
    Abandon,
    Arrive,
    ArriveTogether,
    Finish,
    Policy,
    PolicyLimits,
    Tick,
)
from stn_server.batching.work import (
    NOTHING,
    BatchKey,
    Bundle,
    Cost,
    Operation,
    Place,
    Wanted,
    WorkItem,
)
from stn_server.errors import DeadlineUnreachableError, QueueFullError
from stn_server.tuning import CALLER_SHARE, IMPLICIT_DEADLINE_S, LEAST_RETRY_S, SAFETY

WARP = BatchKey(Operation.WARP, "float32", "bilinear")
NEAREST = BatchKey(Operation.WARP, "float32", "nearest")
GRADIENTS = BatchKey(Operation.WARP_GRADIENTS, "float32", "bilinear")


def make_policy(**changes):
    limits = {
        "budget": Cost(1000, 100, 100),
        "max_admitted_items": 50,
        "max_admitted_bytes": 10_000,
        **changes,
    }
    return Policy(PolicyLimits(**limits))


def make_item(key=WARP, size_bytes=10, samples=1, work=None, **options):
    """As much work as samples, unless told otherwise."""
    return WorkItem(
        key=key,
        cost=Cost(size_bytes, samples, samples if work is None else work),
        problems=(None,),
        **{"arrived": 0.0, **options},
    )


def start(policy, *items, now=0.0):
    """Lets items arrive while a first batch keeps the only lane busy; returns that batch."""
    (busy,) = policy.step(Arrive(make_item()), now).launches
    for item in items:
        assert policy.step(Arrive(item), now).launches == ()
    return busy


def full(refusal):
    """Which limit was reached, and what it would have been."""
    assert isinstance(refusal, QueueFullError)
    return refusal.what, refusal.limit, refusal.actual


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
    policy = make_policy(budget=Cost(10, 100, 100))
    a1, a2, b1 = make_item(NEAREST), make_item(NEAREST), make_item(GRADIENTS)
    batch = start(policy, a1, a2, b1)
    order = []
    for _ in range(3):
        (batch,) = policy.step(Finish(batch), 0.0).launches
        order += batch.items
    assert order == [a1, b1, a2]


def test_the_earliest_deadline_goes_first():
    """Within a key, urgency beats arrival; without a deadline, arrival decides."""
    policy = make_policy(budget=Cost(10, 100, 100))
    late, none, soon = make_item(deadline=0.9), make_item(), make_item(deadline=0.5)
    batch = start(policy, late, none, soon)
    order = []
    for _ in range(3):
        (batch,) = policy.step(Finish(batch), 0.0).launches
        order += batch.items
    assert order == [soon, late, none]


@pytest.mark.parametrize("cost", [Cost(400, 1, 1), Cost(1, 40, 1), Cost(1, 1, 40)])
def test_a_batch_keeps_its_budget(cost):
    """Two of these fit, the third waits."""
    policy = make_policy()
    items = [make_item(WARP, cost.size_bytes, cost.samples, cost.work) for _ in range(3)]
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


def test_items_beyond_the_limit_are_refused():
    """Queued and running items count together."""
    policy = make_policy(max_admitted_items=2)
    start(policy, make_item())
    assert full(policy.step(Arrive(make_item()), 0.0).refusal) == ("items", 2, 3)
    assert policy.queued_items == 1


def test_bytes_beyond_the_limit_are_refused():
    """What is refused takes no place."""
    policy = make_policy(max_admitted_bytes=100)
    start(policy, make_item(size_bytes=80))
    refusal = policy.step(Arrive(make_item(size_bytes=11, caller="other")), 0.0).refusal
    assert full(refusal) == ("bytes", 100, 101)
    assert policy.step(Arrive(make_item(size_bytes=10, caller="other")), 0.0).refusal is None


def test_a_place_is_taken_until_the_reply_has_left():
    """A caller who does not read cannot make room for more of its calls."""
    policy = make_policy(max_admitted_items=1)
    (batch,) = policy.step(Arrive(make_item()), 0.0).launches
    policy.step(Finish(batch), 0.0)
    assert (policy.running_items, policy.admitted_bytes) == (0, 10)
    assert full(policy.step(Arrive(make_item()), 0.0).refusal) == ("items", 1, 2)
    policy.release(batch.items[0].place)
    assert policy.admitted_bytes == 0
    assert policy.step(Arrive(make_item()), 0.0).refusal is None


def test_the_bytes_of_a_caller_who_has_gone_are_held_while_they_are_read():
    """The device still works on them."""
    policy = make_policy()
    (batch,) = policy.step(Arrive(make_item()), 0.0).launches
    policy.release(batch.items[0].place)
    assert policy.admitted_bytes == 10
    policy.step(Finish(batch), 0.0)
    assert policy.admitted_bytes == 0


def admit_all(policy, caller, count):
    """Lets a caller ask for so much; returns how many were admitted and the first refusal."""
    refusals = [policy.step(Arrive(make_item(caller=caller)), 0.0).refusal for _ in range(count)]
    return refusals.count(None), next((full(refusal) for refusal in refusals if refusal), None)


def test_one_caller_leaves_room_for_the_next():
    """However much it asks for; and the next one for the third."""
    policy = make_policy(max_admitted_items=100)
    assert admit_all(policy, "noisy", 200) == (81, ("items of one caller", 4 * 19, 82))
    assert admit_all(policy, "other", 200)[0] == 16
    assert admit_all(policy, "quiet", 1) == (1, None)


def test_callers_take_turns_within_a_key():
    """What a quiet caller wants is not behind all that a noisy one has asked for."""
    policy = make_policy(budget=Cost(40, 100, 100))
    noisy = [make_item(caller="noisy") for _ in range(8)]
    quiet = make_item(caller="quiet")
    busy = start(policy, *noisy, quiet)
    ((*first_batch,),) = finish(policy, busy)
    assert quiet in first_batch
    assert len(first_batch) == 4


def test_much_work_on_few_points_is_a_turn_as_well():
    """Else who reads volumes would keep the device from who reads photos."""
    policy = make_policy(budget=Cost(1000, 1000, 100))
    heavy = [make_item(work=25, caller="heavy") for _ in range(8)]
    light = [make_item(caller="light") for _ in range(8)]
    busy = start(policy, *heavy, *light)
    ((*first_batch,),) = finish(policy, busy)
    assert set(light) <= set(first_batch)


def test_callers_take_turns_across_keys():
    """Many keys do not give many turns: a noisy caller's eight launches are one round."""
    policy = make_policy()
    noisy = [make_item(BatchKey(Operation.WARP, "float32", n), caller="noisy") for n in range(40)]
    quiet = make_item(NEAREST, caller="quiet")
    batch, launches = start(policy, *noisy, quiet), 0
    while quiet not in batch.items:
        (batch,) = policy.step(Finish(batch), 0.0).launches
        launches += 1
    assert launches <= 9


def learn(policy, *, seconds_per_sample, overhead_s=0.0, batches=20):
    """Lets the policy see batches of a device; returns the instant after them."""
    now = 0.0
    for n in range(batches):
        item = make_item(samples=10 + n, arrived=now)
        (batch,) = policy.step(Arrive(item), now).launches
        now += overhead_s + seconds_per_sample * item.cost.samples
        policy.step(Finish(batch), now)
        policy.release(item.place)
    return now


def test_a_deadline_that_cannot_be_met_is_refused_on_arrival():
    """With the time that it would have waited; one that can be met is admitted."""
    policy = make_policy()
    now = learn(policy, seconds_per_sample=0.001)
    policy.step(Arrive(make_item(samples=100, arrived=now)), now)
    policy.step(Arrive(make_item(samples=100, arrived=now)), now)
    hopeless = make_item(samples=10, arrived=now, deadline=now + 0.1)
    refusal = policy.step(Arrive(hopeless), now).refusal
    assert isinstance(refusal, DeadlineUnreachableError)
    assert refusal.remaining_s == pytest.approx(0.1)
    assert refusal.needed_s == pytest.approx(SAFETY * (0.1 + 0.01), rel=0.01)  # what runs, itself
    assert refusal.retry_after_s == pytest.approx(SAFETY * 0.1, rel=0.01)
    feasible = make_item(samples=10, arrived=now, deadline=now + 1.01 * SAFETY * 0.11)
    assert policy.step(Arrive(feasible), now).refusal is None


def test_what_is_due_later_does_not_count_as_waiting_time():
    """The earliest deadline goes first, so a patient queue does not turn urgent work away."""
    policy = make_policy()
    now = learn(policy, seconds_per_sample=0.001)
    for _ in range(10):
        policy.step(Arrive(make_item(samples=100, arrived=now)), now)
    urgent = make_item(samples=10, arrived=now, deadline=now + 0.3)
    assert policy.step(Arrive(urgent), now).refusal is None


def test_the_backlog_of_another_caller_does_not_count_beyond_its_share():
    """A noisy neighbour does not turn a quiet caller's deadline into a refusal."""
    policy = make_policy()
    now = learn(policy, seconds_per_sample=0.001)
    for _ in range(20):
        policy.step(Arrive(make_item(samples=100, arrived=now, caller="noisy")), now)
    later = now + 0.05
    own = {"samples": 10, "arrived": later, "deadline": later + 1.0}
    refusal = policy.step(Arrive(make_item(caller="noisy", **own)), later).refusal
    assert isinstance(refusal, DeadlineUnreachableError)
    assert policy.step(Arrive(make_item(caller="quiet", **own)), later).refusal is None


def test_an_idle_device_is_given_a_try():
    """Nothing but running can correct an estimate that is wrong."""
    policy = make_policy()
    now = learn(policy, seconds_per_sample=1.0)
    hasty = make_item(samples=10, arrived=now, deadline=now + 0.5)
    assert policy.step(Arrive(hasty), now).launches[0].items == (hasty,)


def test_a_batch_ends_before_the_first_deadline_in_it():
    """It takes no more than what lets its most urgent item be in time."""
    policy = make_policy(budget=Cost(1000, 10_000, 10_000))
    now = learn(policy, seconds_per_sample=0.001)
    (busy,) = policy.step(Arrive(make_item(arrived=now)), now).launches
    enough_s = SAFETY * 0.33  # for three of them, but not for four
    urgent = make_item(samples=100, arrived=now, deadline=now + enough_s)
    patient = [make_item(samples=100, arrived=now) for _ in range(5)]
    for item in (urgent, *patient):
        assert policy.step(Arrive(item), now).refusal is None
    (batch,) = policy.step(Finish(busy), now).launches
    assert batch.items == (urgent, *patient[:2])


def test_an_item_that_will_be_late_does_not_keep_a_batch_small():
    """Else a late queue would run one by one, and be later still."""
    policy = make_policy(budget=Cost(1000, 10_000, 10_000))
    now = learn(policy, seconds_per_sample=0.001)
    (busy,) = policy.step(Arrive(make_item(arrived=now)), now).launches
    deadline = now + SAFETY * 0.33
    late = [make_item(samples=100, arrived=now, deadline=deadline) for _ in range(3)]
    for item in late:
        assert policy.step(Arrive(item), now).refusal is None
    (batch,) = policy.step(Finish(busy), deadline - 0.05).launches
    assert batch.items == tuple(late)


def test_a_failed_batch_teaches_nothing():
    """That it failed at once does not make the device fast."""
    policy = make_policy()
    now = learn(policy, seconds_per_sample=0.001)
    for _ in range(50):
        item = make_item(samples=100, arrived=now)
        (batch,) = policy.step(Arrive(item), now).launches
        policy.step(Finish(batch, computed=False), now)
        policy.release(item.place)
    policy.step(Arrive(make_item(samples=100, arrived=now)), now)
    hopeless = make_item(samples=10, arrived=now, deadline=now + 0.05)
    assert isinstance(policy.step(Arrive(hopeless), now).refusal, DeadlineUnreachableError)


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
    assert policy.step(Tick(), 0.0).oldest_arrival == math.inf
    start(policy, make_item(arrived=2.0), make_item(NEAREST, arrived=3.0), now=3.0)
    assert policy.step(Tick(), 3.0).oldest_arrival == 2.0


def test_an_item_without_a_deadline_is_not_passed_over_for_ever():
    """It ages: what arrives IMPLICIT_DEADLINE_S later goes after it, however urgent."""
    policy = make_policy(budget=Cost(10, 100, 100))
    patient = make_item()
    batch = start(policy, patient)
    order, now = [], 0.0
    while patient not in order:
        now += 0.1
        policy.step(Arrive(make_item(arrived=now, deadline=now + 0.5)), now)
        (batch,) = policy.step(Finish(batch), now).launches
        order += batch.items
    assert len(order) > 1
    assert now <= IMPLICIT_DEADLINE_S


def make_bundle(policy, count, *, key=WARP, caller="", deadline=math.inf, now=0.0):
    """Calls of one message, let in by a place of their own; each costs 10 bytes and a sample."""
    place = policy.reserve(caller, 0, now)
    calls = [Wanted(number, key, Cost(10, 1, 1)) for number in range(count)]
    assert policy.resize(place, 10 * count, now, count) is None
    facts = {"arrived": now, "deadline": deadline, "caller": caller, "place": place}
    bundle = Bundle.of(calls[0], 0, **facts)
    for position, call in enumerate(calls[1:], 1):
        bundle.add(call, position, bundle.cost + call.cost)
    return bundle


def test_calls_of_a_message_run_as_one_item():
    """Counted as what they are, together with the calls of others."""
    policy = make_policy()
    single = make_item()
    busy = start(policy, single)
    bundle = make_bundle(policy, 5)
    assert policy.step(ArriveTogether([bundle]), 0.0).late == (None,)
    assert policy.queued_items == 6
    (batch,) = policy.step(Finish(busy), 0.0).launches
    assert (batch.items, len(batch.problems)) == ((single, bundle), 6)
    assert batch.problems == [None, 0, 1, 2, 3, 4]
    assert policy.running_items == 6
    assert batch.cost == Cost(60, 6, 6)


def test_a_message_does_not_hold_up_a_quiet_caller():
    """Its bundles are charged by their cost, so that a single call of another one is next."""
    policy = make_policy(budget=Cost(1000, 8, 8), max_admitted_items=200)
    busy = start(policy)
    bundles = [make_bundle(policy, 8, caller="noisy") for _ in range(6)]
    assert set(policy.step(ArriveTogether(bundles), 0.0).late) == {None}
    (batch,) = policy.step(Finish(busy), 0.0).launches
    quiet = make_item(caller="quiet")
    policy.step(Arrive(quiet), 0.0)
    (batch,) = policy.step(Finish(batch), 0.0).launches
    assert quiet in batch.items


def test_a_bundle_that_would_be_late_is_refused_and_its_room_is_free():
    """What is told is told to each of its calls; the message itself stays until its reply."""
    policy = make_policy()
    now = learn(policy, seconds_per_sample=0.01)
    policy.step(Arrive(make_item(samples=100, arrived=now)), now)
    before = policy.admitted_bytes
    late = make_bundle(policy, 5, deadline=now + 0.1, now=now)
    patient = make_bundle(policy, 5, now=now)
    refusal, admitted = policy.step(ArriveTogether([late, patient]), now).late
    assert isinstance(refusal, DeadlineUnreachableError)
    assert admitted is None
    assert policy.admitted_bytes == before + 50
    assert (late.place.items, late.place.size_bytes) == (1, 0)


def test_calls_of_a_message_are_let_in_one_by_one():
    """Up to the limits, and up to what one caller may hold."""
    policy = make_policy(max_admitted_items=20, max_admitted_bytes=155)
    place = policy.reserve("", 0, 0.0)
    assert policy.resize(place, 150, 0.0, 16) is None
    assert full(policy.resize(place, 156, 0.0, 16)) == ("bytes", 155, 156)
    other = policy.reserve("other", 0, 0.0)
    assert policy.resize(other, 0, 0.0, 4) is None
    assert full(policy.resize(other, 0, 0.0, 5)) == ("items", 20, 21)
    policy.release(other)
    assert policy.resize(place, 150, 0.0, 17) is None
    assert full(policy.resize(place, 150, 0.0, 18)) == ("items of one caller", 4 * 3, 18)
    policy.release(place)
    assert policy.admitted_bytes == 0


class PolicyMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations, batches, replies and time: every rule, after every event."""

    BUDGET = Cost(100, 20, 20)
    MAX_ITEMS, MAX_BYTES = 20, 800

    def __init__(self):
        super().__init__()
        self.policy = Policy(
            PolicyLimits(
                budget=self.BUDGET,
                max_admitted_items=self.MAX_ITEMS,
                max_admitted_bytes=self.MAX_BYTES,
                lanes=2,
            )
        )
        self.now = 0.0
        self.queued = {}
        self.running = []
        self.inside = {}
        self.departed = set()
        self.left = set()
        self.passed_over = {}
        self.wake_at = self.oldest_arrival = math.inf

    def step(self, event):
        decisions = self.policy.step(event, self.now)
        for item in decisions.expired:
            assert item.deadline <= self.now
            self.leave(item)
        for batch in decisions.launches:
            self.check_batch(batch)
            self.running.append(batch)
        self.wake_at = decisions.wake_at
        self.oldest_arrival = decisions.oldest_arrival
        return decisions

    def leave(self, item):
        assert item.number not in self.left, "an item left twice"
        del self.queued[item.number]
        self.left.add(item.number)

    def check_batch(self, batch):
        assert batch.items
        assert {item.key for item in batch.items} == {batch.key}
        assert all(item.deadline > self.now for item in batch.items)
        assert batch.cost == sum((item.cost for item in batch.items), start=NOTHING)
        assert len(batch.items) == 1 or batch.cost.fits(self.BUDGET)
        for item in batch.items:
            self.leave(item)
        self.check_order(batch)
        waiting = {(item.caller, item.key) for item in self.queued.values()} - {
            (item.caller, batch.key) for item in batch.items
        }
        self.passed_over = {one: self.passed_over.get(one, 0) + 1 for one in waiting}
        assert all(count <= self.LONGEST_WAIT for count in self.passed_over.values())

    LONGEST_WAIT = 40
    """Launches that six pairs of caller and key may wait for each other, at a turn of a batch."""

    def check_order(self, batch):
        """Within a key, each caller gets what is due first."""
        for caller in "ab":
            chosen = [(i.due, i.number) for i in batch.items if i.caller == caller]
            rest = [
                (item.due, item.number)
                for item in self.queued.values()
                if (item.key, item.caller) == (batch.key, caller)
            ]
            assert chosen == sorted(chosen)
            assert not rest or not chosen or max(chosen) < min(rest), "order within a key"

    @rule(
        key=st.sampled_from([WARP, NEAREST, GRADIENTS]),
        size_bytes=st.integers(1, 120),
        samples=st.integers(1, 25),
        patience=st.one_of(st.just(math.inf), st.floats(0.1, 5.0)),
        caller=st.sampled_from("ab"),
    )
    def arrive(self, key, size_bytes, samples, patience, caller):
        item = make_item(
            key, size_bytes, samples, arrived=self.now, deadline=self.now + patience, caller=caller
        )
        full = self.is_full(item)
        self.queued[item.number] = item
        refusal = self.step(Arrive(item)).refusal
        assert isinstance(refusal, QueueFullError) == full
        if refusal is None:
            self.inside[item.number] = item
        else:
            assert full or patience < math.inf
            assert refusal.retry_after_s >= LEAST_RETRY_S
            del self.queued[item.number]

    @rule(
        count=st.integers(2, 6),
        patience=st.one_of(st.just(math.inf), st.floats(0.1, 5.0)),
        caller=st.sampled_from("ab"),
    )
    def arrive_together(self, count, patience, caller):
        """Calls of one message, as far as they find room, in one bundle."""
        place = self.policy.reserve(caller, 0, self.now)
        if not isinstance(place, Place):
            assert self.is_full(make_item(size_bytes=0, caller=caller))
            return
        let_in = 0
        while let_in < count:
            if self.policy.resize(place, 3 * (let_in + 1), self.now, let_in + 1) is not None:
                break
            let_in += 1
        if not let_in:
            self.policy.release(place)
            return
        call = Wanted(None, WARP, Cost(3, 1, 1))
        deadline = self.now + patience
        facts = {"arrived": self.now, "deadline": deadline, "caller": caller, "place": place}
        bundle = Bundle.of(call, 0, **facts)
        for position in range(1, let_in):
            bundle.add(call, position, bundle.cost + call.cost)
        self.queued[bundle.number] = bundle
        self.inside[bundle.number] = bundle
        (refusal,) = self.step(ArriveTogether([bundle])).late
        if refusal is not None:
            assert patience < math.inf
            del self.queued[bundle.number], self.inside[bundle.number]
            self.policy.release(place)

    def is_full(self, item):
        inside = list(self.inside.values())
        own = [i for i in inside if i.caller == item.caller]
        return any(
            sum(map(amount, inside)) + amount(item) > limit
            or sum(map(amount, own)) > CALLER_SHARE * (limit - sum(map(amount, inside)))
            for amount, limit in (
                (lambda item: len(item.problems), self.MAX_ITEMS),
                (lambda item: item.cost.size_bytes, self.MAX_BYTES),
            )
        )

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
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        for item in batch.items:
            if item.number in self.departed:
                del self.inside[item.number]
        self.step(Finish(batch))

    @precondition(lambda self: self.left & self.inside.keys() - self.departed)
    @rule(data=st.data())
    def depart(self, data):
        candidates = sorted(self.left & self.inside.keys() - self.departed)
        item = self.inside[data.draw(st.sampled_from(candidates))]
        self.departed.add(item.number)
        if not any(item in batch.items for batch in self.running):
            del self.inside[item.number]
        self.policy.release(item.place)

    @rule(seconds=st.floats(0.0, 3.0))
    def pass_time(self, seconds):
        self.now += seconds
        self.step(Tick())

    @invariant()
    def counts_are_those_of_the_model(self):
        assert self.policy.queued_items == sum(len(item.problems) for item in self.queued.values())
        assert self.policy.running_items == sum(len(batch.problems) for batch in self.running)
        size_bytes = sum(item.cost.size_bytes for item in self.inside.values())
        assert self.policy.admitted_bytes == size_bytes

    @invariant()
    def the_oldest_arrival_is_that_of_the_model(self):
        arrivals = [item.arrived for item in self.queued.values()]
        assert self.oldest_arrival == min(arrivals, default=math.inf)

    @invariant()
    def no_lane_idles_while_work_waits(self):
        assert len(self.running) == 2 or not self.queued

    @invariant()
    def expiry_is_scheduled(self):
        deadlines = [item.deadline for item in self.queued.values()]
        assert all(deadline > self.now for deadline in deadlines)
        if any(deadline < math.inf for deadline in deadlines):
            assert self.wake_at == min(deadlines)

    def teardown(self):
        """When everybody has gone, nothing is held and nothing is remembered."""
        for item in list(self.queued.values()):
            self.abandon(item)
        while self.running:
            self.step(Finish(self.running.pop()))
        for number, item in self.inside.items():
            if number not in self.departed:
                self.policy.release(item.place)
        assert self.policy.admitted_bytes == self.policy.running_items == 0
        for name, parts in (
            ("_admission", ["_callers"]),
            ("_queue", ["items", "_deadlines", "_groups", "_accounts"]),
            ("_forecast", ["_callers", "_running"]),
        ):
            left = vars(vars(self.policy)[name])
            assert not any(left[part] for part in parts), name

    def abandon(self, item):
        if item.number in self.queued:
            self.leave(item)
            self.step(Abandon(item))


TestPolicyMachine = PolicyMachine.TestCase
