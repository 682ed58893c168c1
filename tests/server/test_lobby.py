"""The lobby: what it has room for, who goes first, and what is left after somebody goes."""

import math

import pytest

from stn_server.batching.lobby import MAX_GROUPS, Lobby
from stn_server.batching.work import BatchKey, Cost, Operation, WorkItem

BUDGET = Cost(size_bytes=100, samples=10, work=10)


def key(name="bilinear"):
    return BatchKey(Operation.WARP, "float32", name)


def item(name="bilinear", size_bytes=40, samples=4, work=0, **options):
    return WorkItem(
        key=key(name),
        cost=Cost(size_bytes, samples, work or samples),
        problem=None,
        arrived=0.0,
        **options,
    )


def lobby_of(*items, seconds_per_sample=0.0):
    lobby = Lobby(BUDGET, lambda _operation, samples: samples * seconds_per_sample)
    for one in items:
        lobby.add(one)
    return lobby


@pytest.mark.parametrize("size", [{"size_bytes": 21}, {"samples": 3}, {"work": 3}])
def test_there_is_room_for_one_batch_of_each_key(size):
    """In bytes, in samples and in work."""
    lobby = lobby_of(item(), item())
    assert lobby.has_room(item(size_bytes=20, samples=2), starts=0.0)
    assert not lobby.has_room(item(**{"size_bytes": 20, "samples": 2, **size}), starts=0.0)
    assert lobby.has_room(item("nearest", size_bytes=100, samples=10), starts=0.0)


def test_there_is_room_for_few_keys():
    """With many, who goes first matters."""
    lobby = lobby_of(*(item(f"key {number}") for number in range(MAX_GROUPS)))
    assert lobby.has_room(item("key 0"), starts=0.0)
    assert not lobby.has_room(item("one more"), starts=0.0)


@pytest.mark.parametrize(("deadline", "other"), [(12.0, math.inf), (math.inf, 12.0)])
def test_nobody_misses_a_deadline_by_a_newcomer(deadline, other):
    """All that waits counts, whatever its key: 4 + 4 s after the next batch begins."""
    lobby = lobby_of(item("nearest", deadline=other), seconds_per_sample=1.0)
    newcomer = item(deadline=deadline)
    assert lobby.has_room(newcomer, starts=4.0)
    assert not lobby.has_room(newcomer, starts=4.1)


def test_keys_go_first_that_came_first():
    """A group goes as a whole; a key that comes again goes behind the others."""
    a1, b1, a2, b2 = item("a"), item("b"), item("a"), item("b")
    lobby = lobby_of(a1, b1, a2)
    first = lobby.next_batch(now=0.0)
    assert (first.key, first.items, first.cost) == (key("a"), (a1, a2), Cost(80, 8, 8))
    a3 = item("a")
    for late in (a3, b2):
        lobby.add(late)
    assert [lobby.next_batch(now=0.0).items for _ in range(2)] == [(b1, b2), (a3,)]
    assert lobby.next_batch(now=0.0) is None
    assert not lobby


def test_a_batch_that_might_be_late_is_not_formed():
    """Who ranks may leave out what need not run."""
    lobby = lobby_of(item(deadline=5.0), item(), seconds_per_sample=1.0)
    assert lobby.next_batch(now=0.0) is None
    assert len(lobby) == 2


def test_who_goes_leaves_nothing_behind():
    """Neither cost nor, with the last of a key, a deadline."""
    gone, stays = item(deadline=3.0), item("nearest", deadline=7.0)
    lobby = lobby_of(gone, stays)
    assert lobby.deadline == 3.0
    assert lobby.discard(gone)
    assert not lobby.discard(gone)
    assert (len(lobby), lobby.deadline) == (1, 7.0)
    assert lobby.has_room(item(size_bytes=100, samples=10), starts=0.0)
    assert list(lobby.clear()) == [stays]
    assert (len(lobby), lobby.deadline, lobby.oldest_arrival) == (0, math.inf, math.inf)
