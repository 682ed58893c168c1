"""Quotas, by a clock that the test moves."""

import pytest

from stn_server.call import Caller
from stn_server.errors import QuotaExceededError, RequestTooLargeError
from stn_server.quota import Quotas
from stn_server.tokens import Quota
from stn_server.tuning import LEAST_RETRY_S


class Accounts:
    """Quotas whose clock stands still unless told otherwise."""

    def __init__(self):
        self.now = 100.0
        self._quotas = Quotas(lambda: self.now)
        self._held = []

    def begin(self, name="alice", size_bytes=1, **quota):
        held = self._quotas.admit(Caller(name, "tcp", Quota(**quota)), size_bytes)
        held.__enter__()
        self._held.append(held)

    def end(self):
        """The call that came first ends."""
        self._held.pop(0).__exit__(None, None, None)


@pytest.fixture
def accounts():
    return Accounts()


def test_without_a_quota_nothing_is_held():
    """Not even an account."""
    quotas = Quotas()
    for _ in range(3):
        with quotas.admit(Caller("ipv4:192.0.2.1", "tcp"), 10**12):
            pass
    assert quotas._accounts == {}


def test_calls_in_flight_are_counted_until_they_end(accounts):
    """The third of two has to wait, for the first to end and no longer."""
    for _ in range(2):
        accounts.begin(max_calls=2)
    message = r"^quota: expected at most 2 calls in flight for this token, got more with this req"
    with pytest.raises(QuotaExceededError, match=message) as refused:
        accounts.begin(max_calls=2)
    facts = refused.value
    assert (facts.limit, facts.actual, facts.retry_after_s) == (2, 3, LEAST_RETRY_S)
    accounts.end()
    accounts.begin(max_calls=2)


def test_bytes_in_flight_are_added_up(accounts):
    """To the last byte."""
    accounts.begin(size_bytes=60, max_bytes=100)
    accounts.begin(size_bytes=40, max_bytes=100)
    with pytest.raises(QuotaExceededError, match="at most 100 bytes in flight") as no:
        accounts.begin(size_bytes=1, max_bytes=100)
    assert no.value.actual == 101
    accounts.end()
    accounts.begin(size_bytes=60, max_bytes=100)


def test_a_call_beyond_its_quota_is_too_large(accounts):
    """No waiting would help, so it is not told to wait."""
    with pytest.raises(
        RequestTooLargeError, match=r"message: expected at most 100 bytes .* got 101"
    ):
        accounts.begin(size_bytes=101, max_bytes=100)
    accounts.begin(size_bytes=100, max_bytes=100)


def test_calls_a_second_may_come_at_once_and_then_one_by_one(accounts):
    """One second's worth, then as time passes; refused calls cost nothing."""
    for _ in range(4):
        accounts.begin(calls_per_s=4)
    for _ in range(2):
        with pytest.raises(QuotaExceededError, match=r"at most 4 calls a second .* got more") as no:
            accounts.begin(calls_per_s=4)
        assert no.value.retry_after_s == pytest.approx(0.25)
    accounts.now += 0.25
    accounts.begin(calls_per_s=4)
    with pytest.raises(QuotaExceededError, match="calls a second") as no:
        accounts.begin(calls_per_s=4)
    assert no.value.retry_after_s == pytest.approx(0.25)
    accounts.now += 1000
    for _ in range(4):
        accounts.begin(calls_per_s=4)
    with pytest.raises(QuotaExceededError, match="calls a second"):
        accounts.begin(calls_per_s=4)


def test_a_slow_rate_allows_a_first_call(accounts):
    """One in ten seconds is one, then none for ten seconds."""
    accounts.begin(calls_per_s=0.1)
    with pytest.raises(QuotaExceededError, match="calls a second") as no:
        accounts.begin(calls_per_s=0.1)
    assert no.value.retry_after_s == pytest.approx(10)
    accounts.now += 10
    accounts.begin(calls_per_s=0.1)


def test_callers_have_accounts_of_their_own(accounts):
    """And a changed quota counts at once, on what is in flight already."""
    accounts.begin("alice", max_calls=1)
    accounts.begin("bob", max_calls=1)
    with pytest.raises(QuotaExceededError, match="calls in flight"):
        accounts.begin("alice", max_calls=1)
    accounts.begin("alice", max_calls=2)


def test_a_call_that_fails_leaves_its_account():
    """Exceptions pass through."""
    quotas = Quotas()
    alice = Caller("alice", "tcp", Quota(max_calls=1))
    for _ in range(2):
        with pytest.raises(KeyError, match="x"), quotas.admit(alice, 1):
            raise KeyError("x")


def test_refusals_of_one_quota_are_told_in_the_same_words(accounts):
    """However much is inside: logs group what callers are told; numbers stand in the details."""
    told = {}
    accounts.begin(size_bytes=60, max_bytes=100)
    for size_bytes in (50, 60, 70):
        with pytest.raises(QuotaExceededError, match="bytes in flight") as refused:
            accounts.begin(size_bytes=size_bytes, max_bytes=100)
        told[refused.value.actual] = str(refused.value)
    assert list(told) == [110, 120, 130]
    assert len(set(told.values())) == 1
