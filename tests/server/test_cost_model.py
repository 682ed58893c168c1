"""What the device takes, learned from random batches."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_server.batching.forecast import CostModel
from stn_server.batching.work import Operation
from stn_server.tuning import SHORTEST_S

WARP, GRADIENTS = Operation.WARP, Operation.WARP_GRADIENTS


def taught(seconds_of, sizes):
    model = CostModel()
    for work in sizes:
        model.observe(WARP, work, seconds_of(work))
    return model


@given(
    slope=st.floats(1e-7, 1e-5),
    overhead=st.floats(0, 0.01),
    sizes=st.lists(st.integers(100, 100_000), min_size=10, max_size=60, unique=True),
)
def test_it_learns_a_line(slope, overhead, sizes):
    """Within the sizes that it has seen, to a tenth."""
    model = taught(lambda work: overhead + slope * work, sizes * 4)
    middle = sum(sizes) / len(sizes)
    assert model.batch_s(WARP, middle) == pytest.approx(overhead + slope * middle, rel=0.1)
    assert model.overhead_s(WARP) >= 0


def test_it_tells_the_overhead_from_the_slope():
    """Sizes that differ show both."""
    sizes = [1000 * (n % 20 + 1) for n in range(200)]
    model = taught(lambda work: 0.002 + 1e-6 * work, sizes)
    assert model.overhead_s(WARP) == pytest.approx(0.002, rel=0.1)
    assert model.work_s(WARP, 1000) == pytest.approx(0.001, rel=0.1)


def test_batches_of_one_size_are_taken_for_proportional():
    """More than was seen takes more; it is not taken for free."""
    model = taught(lambda _work: 0.01, [1000] * 20)
    assert model.batch_s(WARP, 1000) == pytest.approx(0.01)
    assert model.batch_s(WARP, 3000) == pytest.approx(0.03)


def test_nothing_is_known_at_first():
    """And every operation is learned for itself."""
    model = taught(lambda _work: 0.01, [1000])
    assert model.batch_s(GRADIENTS, 1000) == 0
    assert CostModel().batch_s(WARP, 10**9) == 0


def test_an_accident_hardly_moves_it():
    """A batch that was held up for a minute is not a device that got slow."""
    noise = random.Random(0)
    model = taught(lambda work: 1e-6 * work * noise.uniform(0.9, 1.1), range(1000, 3000, 40))
    before = model.batch_s(WARP, 2000)
    model.observe(WARP, 2000, 60.0)
    assert model.batch_s(WARP, 2000) < 1.2 * before


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_lasting_change_is_followed(factor):
    """A device that is slower or faster from now on is known after some dozen batches."""
    model = taught(lambda work: 1e-6 * work, range(1000, 3000, 40))
    for work in list(range(1000, 3000, 40)) * 4:
        model.observe(WARP, work, factor * 1e-6 * work)
    assert model.batch_s(WARP, 2000) == pytest.approx(factor * 0.002, rel=0.1)


def test_a_device_that_took_no_time_can_become_slow():
    """Nothing is multiplied by zero for ever."""
    model = taught(lambda _work: 0.0, [1000] * 20)
    for _ in range(100):
        model.observe(WARP, 1000, 0.5)
    assert model.batch_s(WARP, 1000) > 1000 * SHORTEST_S


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 100)), max_size=60))
def test_no_estimate_is_negative(batches):
    """Whatever it was told, and more work never take less."""
    model = CostModel()
    for work, seconds in batches:
        model.observe(WARP, work, seconds)
    estimates = [model.batch_s(WARP, work) for work in (0, 10, 10**4, 10**7)]
    assert estimates == sorted(estimates)
    assert estimates[0] >= 0
