"""Replicas behind one target: what callers notice when they come and go."""

import signal

import pytest

from stn_client import RetryPolicy, UnavailableError
from stress.report import percentile
from support.harness import log_records, terminate
from support.replicas import Load, NotedRetries, Replicas

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COUNT, CALLERS = 3, 8
LAME_DUCK_S = 1.0
ROUND = CALLERS + COUNT
"""Once so many calls have ended, each replica has been given a new one: those that were under way
before, and one turn of each."""

PAUSES_S = sum(
    min(RetryPolicy.max_s, RetryPolicy.initial_s * 2**retry)
    for retry in range(RetryPolicy.attempts - 1)
)
"""What a call waits at most between its attempts."""


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Every test leaves all of them serving."""
    folder = tmp_path_factory.mktemp("replicas")
    with Replicas(COUNT, folder, f"--lifecycle-lame-duck-s={LAME_DUCK_S}") as running:
        yield running


def serves(replicas, number):
    """Whether the present process on an address has answered calls."""
    return lambda: replicas.finished(number) > 0


def test_a_rolling_restart_loses_no_call(replicas):
    """One after the other ends in order and is replaced; no caller waits for that.

    99 of 100 calls take no longer than the pauses of one call that has to be tried again and again:
    the lame duck is longer, and so is a start.
    """
    assert PAUSES_S < LAME_DUCK_S
    with Load(replicas.target, CALLERS) as load:
        for number in range(COUNT):
            load.until(serves(replicas, number))
            assert replicas[number].stop() == 0
            assert log_records(replicas.log(number))[-1]["aborted_items"] == 0
            replicas.start(number)
            load.until(serves(replicas, number))
    assert load.failures == []
    assert percentile(load.latencies_s, 99) < PAUSES_S


def test_a_killed_replica_loses_no_call(replicas):
    """Those that it had taken are sent to others, and its successor gets its share again."""
    retries = NotedRetries()
    with Load(replicas.target, CALLERS, retries) as load:
        load.until(serves(replicas, 1))
        replicas[1].process.send_signal(signal.SIGSTOP)
        load.further(ROUND)  # with calls inside that it cannot answer any more
        replicas[1].process.kill()
        load.further(ROUND)
        replicas[1].stop()
        replicas.start(1)
        load.until(serves(replicas, 1))
    assert load.failures == []
    assert retries.failures
    assert all(isinstance(failure, UnavailableError) for failure in retries.failures)


def test_callers_leave_a_lame_duck_before_it_stops(replicas):
    """Its health sends them elsewhere while it still serves: no call is even tried again."""
    replicas[0].stop()
    replicas.start(0, "--lifecycle-lame-duck-s=3600")
    retries = NotedRetries()

    def is_left():
        before = replicas.finished(0)
        load.further_of_each(1 + COUNT)  # the one under way, and whatever took a turn after it
        return replicas.finished(0) == before

    with Load(replicas.target, CALLERS, retries) as load:
        load.until(serves(replicas, 0))
        terminate(replicas[0])
        load.until(is_left)
        terminate(replicas[0])
        assert replicas[0].process.wait(timeout=60) == 0
        load.further(ROUND)
    assert load.failures == retries.failures == []
    replicas[0].stop()
    replicas.start(0)
