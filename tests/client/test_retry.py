"""When calls are repeated: the policy as a pure function, and the progress of one call."""

import asyncio
import re
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from hypothesis import example, given
from hypothesis import strategies as st

from stn_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ProtocolMismatchError,
    RetryPolicy,
    ServerFaultError,
    StnClientError,
    TransportError,
    UnavailableError,
)
from stn_client._connection import Outage, Progress
from support.answers import answer_calls
from support.logs import records_of
from support.scripted_service import status_metadata

UNAVAILABLE = UnavailableError("gone")

seconds = st.floats(0, 1e6)
draws = st.floats(0, 1, exclude_max=True)


def highest():
    """The largest draw, so that pauses are at their upper bound."""
    return 1.0


@pytest.mark.parametrize(
    ("attempt", "pause_s"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (5, 0.5), (6, None)]
)
def test_retry_pauses_double_up_to_the_bound(attempt, pause_s):
    """By hand: 0.1, 0.2, 0.4, then 0.5 for ever; the sixth of six attempts is the last."""
    policy = RetryPolicy(attempts=6, initial_s=0.1, max_s=0.5)
    assert policy.pause_s(UNAVAILABLE, attempt, None, highest) == pause_s


@given(st.integers(1, 10_000), st.integers(1, 10_000), seconds, seconds, draws)
@example(10_000, 9_999, 0.05, 2.0, 0.5)
def test_retry_pauses_keep_their_bounds(attempts, attempt, initial_s, max_s, draw):
    """A pause lies between 0 and max_s however patient the policy; none follows the last."""
    policy = RetryPolicy(attempts=attempts, initial_s=initial_s, max_s=max_s)
    pause_s = policy.pause_s(UNAVAILABLE, attempt, None, lambda: draw)
    if attempt >= attempts:
        assert pause_s is None
    else:
        assert 0 <= pause_s <= max_s


@given(seconds, seconds, draws)
def test_retry_waits_at_least_as_long_as_the_server_says(retry_after_s, initial_s, draw):
    """Backoff comes on top of what an overloaded server asks for."""
    policy = RetryPolicy(initial_s=initial_s, max_s=initial_s)
    error = OverloadedError("full", retry_after_s=retry_after_s)
    pause_s = policy.pause_s(error, 1, None, lambda: draw)
    assert retry_after_s <= pause_s <= retry_after_s + initial_s


def test_retry_spreads_the_callers_of_an_overloaded_server():
    """By hand: 3 s of pushback and at most 0.5 s of backoff, so that not all come at once."""
    error, policy = OverloadedError("full", retry_after_s=3.0), RetryPolicy(initial_s=0.5)
    assert policy.pause_s(error, 1, None, highest) == 3.5


def test_retry_backs_off_from_a_server_that_names_no_time():
    """Without a suggestion, an overload is waited out as any loss."""
    policy = RetryPolicy(initial_s=0.25)
    assert policy.pause_s(OverloadedError("full"), 1, None, highest) == 0.25


@given(seconds, seconds)
def test_retry_never_waits_for_more_than_the_time_left(remaining_s, max_s):
    """A pause that would use up the time that is left, and cannot be shorter, is not begun."""
    policy = RetryPolicy(initial_s=max_s, max_s=max_s)
    pause_s = policy.pause_s(UNAVAILABLE, 1, remaining_s, highest)
    assert pause_s == (max_s if max_s < remaining_s else None)


@pytest.mark.parametrize(
    "error",
    [
        StnClientError("x"),
        InvalidRequestError("x"),
        DeadlineExceededError("x"),
        TransportError("x"),
        ServerFaultError("x"),
        ProtocolMismatchError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_retry_gives_up_where_repeating_will_not_help(error):
    """Only overload and unavailability are repeated."""
    assert RetryPolicy().pause_s(error, 1, None, highest) is None


def test_retry_shortens_a_pause_that_would_take_all_the_time():
    """By hand: of 1.5 s a pause of up to 2 s leaves 0.1 s for a last attempt; of 0.1 s, none."""
    policy = RetryPolicy(initial_s=0.1, max_s=2.0)
    assert policy.pause_s(UNAVAILABLE, 9, 1.5, highest) == pytest.approx(1.4)
    assert policy.pause_s(UNAVAILABLE, 9, 0.1, highest) is None


def test_retry_never_comes_before_the_server_asked_for():
    """By hand: 1.0 s of pushback fit into 1.05 s, 1.1 s do not."""
    policy = RetryPolicy(initial_s=0.1)
    for asked_s, pause_s in ((1.0, 1.0), (1.1, None)):
        error = OverloadedError("full", retry_after_s=asked_s)
        assert policy.pause_s(error, 1, 1.05, highest) == pause_s


@given(st.integers(1, 10_000))
def test_retry_goes_on_until_the_time_is_up(attempt):
    """Unless a policy counts: how long is the promise of timeout_s."""
    assert RetryPolicy().pause_s(UNAVAILABLE, attempt, None, highest) is not None
    assert RetryPolicy().pause_s(UNAVAILABLE, attempt, 3.0, highest) is not None


def test_retry_with_one_attempt_never_repeats():
    """attempts=1 switches retries off."""
    assert RetryPolicy(attempts=1).pause_s(UNAVAILABLE, 1, None, highest) is None


@pytest.mark.parametrize(
    ("field", "match"),
    [
        ({"attempts": 0}, r"attempts: expected at least 1, got 0\."),
        ({"initial_s": -0.1}, r"initial_s: expected at least 0, got -0\.1\."),
        ({"max_s": -1.0}, r"max_s: expected at least 0, got -1\.0\."),
        ({"max_s": float("nan")}, r"max_s: expected at least 0, got nan\."),
    ],
    ids=str,
)
def test_retry_policies_are_valid_from_birth(field, match):
    """A policy that makes no sense cannot be made."""
    with pytest.raises(ValueError, match=match):
        RetryPolicy(**field)


class Failure(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, code, *details):
        super().__init__()
        self._code, self._metadata = code, status_metadata(code, *details)

    def code(self):
        return self._code

    def details(self):
        return None

    def trailing_metadata(self):
        return self._metadata


NO_PAUSES = RetryPolicy(attempts=3, initial_s=0)


def test_progress_counts_attempts_and_raises_after_the_last():
    """Two of three attempts may be repeated; the third failure is the caller's."""
    progress, failure = Progress(NO_PAUSES, None, lambda: True), Failure(StatusCode.UNAVAILABLE)
    for _ in range(2):
        progress.start()
        assert progress.pause_s(failure) == 0.0
    progress.start()
    with pytest.raises(UnavailableError, match="got UNAVAILABLE alone") as caught:
        progress.pause_s(failure)
    assert caught.value.request_id == progress.request_id
    assert caught.value.__cause__ is failure


def test_progress_waits_for_what_the_server_says():
    """The pause is the pushback of the status when there is no backoff."""
    progress = Progress(NO_PAUSES, None, lambda: True)
    progress.start()
    pushback = RetryInfo(retry_delay=Duration(nanos=250_000_000))
    assert progress.pause_s(Failure(StatusCode.RESOURCE_EXHAUSTED, pushback)) == 0.25


def test_progress_gives_every_attempt_the_same_id_and_less_time():
    """The timeout is for all attempts together; the id is that of the call."""
    progress = Progress(NO_PAUSES, 100.0, lambda: True)
    first, second = progress.start(), progress.start()
    expected = (("x-request-id", progress.request_id),)
    assert first["metadata"] == second["metadata"] == expected
    assert 0 < second["timeout"] <= first["timeout"] <= 100.0


def test_progress_without_a_timeout_sets_no_deadline():
    """None is no limit, on every attempt."""
    assert Progress(NO_PAUSES, None, lambda: True).start()["timeout"] is None


def test_progress_gives_calls_ids_of_their_own():
    """Two calls have different ids, of the form that the server accepts."""
    ids = {Progress(NO_PAUSES, None, lambda: True).request_id for _ in range(10)}
    assert len(ids) == 10
    assert all(len(name) == 16 and name.isalnum() for name in ids)


def test_progress_with_no_time_left_does_not_repeat():
    """A call whose time is up ends with the error of its last attempt."""
    progress = Progress(NO_PAUSES, 0.0, lambda: True)
    assert progress.start()["timeout"] == 0.0
    with pytest.raises(UnavailableError, match="got UNAVAILABLE alone"):
        progress.pause_s(Failure(StatusCode.UNAVAILABLE))


def test_progress_says_once_that_a_server_is_awaited_and_that_it_is_back(caplog):
    """However many calls and attempts meet the outage; and again at the next one."""
    clock = iter([100.0, 102.5, 200.0])
    outage = Outage("stn:1", clock.__next__)
    calls = [Progress(NO_PAUSES, 60.0, lambda: True, outage=outage) for _ in range(3)]
    before_s = calls[0].remaining_s()
    for _ in range(2):
        for progress in calls:
            progress.start()
            progress.pause_s(Failure(StatusCode.UNAVAILABLE))
    after_s = calls[0].remaining_s()
    calls[0].succeed()
    calls[1].succeed()
    awaited, back = (record.getMessage() for record in records_of(caplog, "stn_client"))
    assert awaited.startswith("stn:1: expected an answer, got none")
    told_s = re.search(r"repeated for up to (\d+\.\d) s\.$", awaited)[1]
    assert round(after_s, 1) <= float(told_s) <= round(before_s, 1) <= 60
    assert back == "stn:1: answers again after 2.5 s."
    other = Progress(NO_PAUSES, None, lambda: True, outage=outage)
    other.start()
    other.pause_s(Failure(StatusCode.UNAVAILABLE))
    assert (
        records_of(caplog, "stn_client")[-1]
        .getMessage()
        .endswith("Calls are repeated without limit.")
    )


def test_an_attempt_that_began_in_an_outage_tells_of_no_other(caplog):
    """Its failure is noted late, as by a thread that waited for its turn to run."""
    outage = Outage("stn:1")
    first, late, answered = (
        Progress(NO_PAUSES, 60.0, lambda: True, outage=outage) for _ in range(3)
    )
    for progress in (first, late):
        progress.start()
    first.pause_s(Failure(StatusCode.UNAVAILABLE))
    answered.start()
    answered.succeed()
    assert len(records_of(caplog, "stn_client")) == 2
    late.pause_s(Failure(StatusCode.UNAVAILABLE))
    assert len(records_of(caplog, "stn_client")) == 2
    late.start()
    late.pause_s(Failure(StatusCode.UNAVAILABLE))
    assert len(records_of(caplog, "stn_client")) == 3


def test_an_outage_that_several_threads_see_is_told_once(caplog):
    """While one of them looks at the clock, the others meet the same."""
    others, error = [], UnavailableError("gone")

    def now():
        while others:
            others.pop()()
        return 0.0

    outage = Outage("stn:1", now)
    others += [lambda: outage.goes_on(error, 1.0, 0)] * 2
    outage.goes_on(error, 1.0, 0)
    others += [outage.is_over] * 2
    outage.is_over()
    assert others == []
    awaited, back = (record.getMessage() for record in records_of(caplog, "stn_client"))
    assert awaited.endswith("Calls are repeated for up to 1.0 s.")
    assert back == "stn:1: answers again after 0.0 s."


def test_progress_is_quiet_about_overload(caplog):
    """A full server is there."""
    progress = Progress(NO_PAUSES, None, lambda: True)
    progress.start()
    progress.pause_s(Failure(StatusCode.RESOURCE_EXHAUSTED, RetryInfo()))
    progress.succeed()
    assert records_of(caplog, "stn_client") == []


def test_progress_whose_last_attempt_takes_too_long_tells_what_happened_before():
    """A deadline says nothing of the server; the failure before it does."""
    progress = Progress(RetryPolicy(), 60.0, lambda: True)
    progress.start()
    progress.pause_s(Failure(StatusCode.UNAVAILABLE))
    progress.start()
    with pytest.raises(DeadlineExceededError, match=r"\nThe attempt before that ended with: "):
        progress.pause_s(Failure(StatusCode.DEADLINE_EXCEEDED))


def test_progress_of_a_closed_client_waits_for_no_server(caplog):
    """Closing ends calls under way as UNAVAILABLE, which is no news of the server."""
    is_open = True
    progress = Progress(NO_PAUSES, 60.0, lambda: is_open)
    progress.start()
    is_open = False
    with pytest.raises(TransportError, match="expected an open connection, got a closed one"):
        progress.pause_s(Failure(StatusCode.UNAVAILABLE))
    assert records_of(caplog, "stn_client") == []


def nobody_there():
    """What every attempt meets."""
    raise Failure(StatusCode.UNAVAILABLE)


def test_the_timeout_is_how_long_a_client_tries(monkeypatch):
    """The last attempt begins one first pause before the end."""
    answer_calls(monkeypatch, nobody_there)
    with Client("localhost:1", timeout_s=1.5, local=False) as stn:
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match="got UNAVAILABLE alone"):
            stn.server_info()
        assert time.monotonic() - started_s >= 1.5 - RetryPolicy.initial_s


def test_the_timeout_is_how_long_an_async_client_tries(monkeypatch):
    """As of threads."""
    answer_calls(monkeypatch, nobody_there)

    async def scenario():
        async with AsyncClient("localhost:1", timeout_s=1.5, local=False) as stn:
            with pytest.raises(UnavailableError, match="got UNAVAILABLE alone"):
                await stn.server_info()

    started_s = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - started_s >= 1.5 - RetryPolicy.initial_s
