"""The heap with lazy repair, against sorting."""

from hypothesis import given
from hypothesis import strategies as st

from stn_server.batching.ranking import Ranking

THINGS = st.integers(0, 5)
CHANGES = st.lists(st.tuples(THINGS, st.one_of(st.none(), st.integers(0, 9)), st.booleans()))


@given(changes=CHANGES)
def test_the_first_is_the_lowest(changes):
    """Whatever joins, leaves or changes its rank; a rank that rose need not be told."""
    ranks = {}
    ranking = Ranking(lambda thing: (ranks[thing], thing))
    for thing, rank, silent in changes:
        if rank is None:
            ranks.pop(thing, None)
            ranking.discard(thing)
        elif not (silent and thing in ranks and rank >= ranks[thing]):
            ranks[thing] = rank
            ranking.add(thing)
        else:
            ranks[thing] = rank
        assert ranking.first() == min(ranks, key=lambda one: (ranks[one], one), default=None)
        assert len(ranking) == len(ranks)
        assert all(one in ranking for one in ranks)


def test_what_left_is_not_kept():
    """A first that stays does not let the dead pile up behind it."""
    ranking = Ranking(lambda thing: thing)
    ranking.add(0)
    for thing in range(1, 1000):
        ranking.add(thing)
        ranking.discard(thing)
    assert len(ranking._heap) < 20
    assert ranking.first() == 0
