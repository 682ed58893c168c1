"""Logs: one record a line, facts as fields, nothing hostile in them."""

import asyncio
import io
import json
import logging
import math
import re
from datetime import datetime

import grpc
import pytest

from stn_server.call import Caller
from stn_server.config import LogConfig
from stn_server.errors import BrokenError, DrainingError
from stn_server.events import End
from stn_server.handlers import ReceivedCall
from stn_server.log import LOGGER, EventLog, JsonFormatter, TextFormatter, configure, log
from stn_server.status import answer_to
from stn_server.tuning import MAX_REPEATED, MAX_REQUEST_IDS, REPEAT_S
from support.clock import run_in_virtual_time
from support.fakes import FakeContext


def call_with(metadata):
    """A call of which only its metadata matters."""
    return ReceivedCall(
        "Warp", "Warp", Caller("", "tcp"), math.inf, 0.0, FakeContext(metadata), None
    )


def request_id_of(metadata):
    return call_with(metadata).request_id


def log_failure(error, request_id):
    """Tells the log how a call has ended."""
    answer = answer_to(error, request_id)
    EventLog().call_failed(call_with(()), End(answer.code, 0.0, answer, error))


@pytest.fixture
def written():
    """Captures what a formatter makes of the package's records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    LOGGER.handlers[:], LOGGER.propagate = [handler], False
    LOGGER.setLevel(logging.DEBUG)
    yield lambda: stream.getvalue().splitlines()
    LOGGER.handlers[:], LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


def as_text():
    """Switches the captured handler to text."""
    LOGGER.handlers[0].setFormatter(TextFormatter())


def raised():
    """An exception that has been somewhere, with a message of two lines."""
    with pytest.raises(KeyError, match="one") as caught:
        {}[Lines()]
    return caught.value


class Lines:
    """A key that cannot be shown in one line."""

    def __repr__(self):
        return "line one\nline two"


def test_a_json_record_has_time_level_event_and_facts(written):
    """In this order, with the time in UTC."""
    log(logging.INFO, "serving", targets=["a:1"], items=3)
    (line,) = written()
    record = json.loads(line)
    assert list(record) == ["time", "level", "event", "targets", "items"]
    assert record["level"] == "info"
    assert (record["event"], record["targets"], record["items"]) == ("serving", ["a:1"], 3)
    assert datetime.fromisoformat(record["time"]).utcoffset().total_seconds() == 0


def test_a_json_record_holds_a_traceback_in_one_line(written):
    """Line breaks are escaped."""
    log(logging.ERROR, "request failed", error=raised(), method="Warp")
    (line,) = written()
    record = json.loads(line)
    assert record["traceback"].startswith("Traceback (most recent call last)")
    assert record["traceback"].endswith("line one\nline two")


def test_a_text_record_reads_from_left_to_right(written):
    """Time, level, event, facts; then the traceback."""
    as_text()
    log(logging.INFO, "draining", items=2)
    log(logging.ERROR, "request failed", error=raised(), method="Warp")
    first, second, third, *_ = written()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    draining items=2", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR   request failed method=Warp", second)
    assert third.startswith("Traceback")


@pytest.mark.parametrize(
    ("error", "has_traceback"), [(KeyError("inside"), True), (DrainingError(), False)]
)
def test_only_our_own_faults_have_a_traceback(error, has_traceback, written):
    """What the caller did is told in one short line."""
    log_failure(error, "id-1")
    record = json.loads(written()[0])
    assert ("traceback" in record) == has_traceback
    assert (record["method"], record["request_id"]) == ("Warp", "id-1")
    assert record["code"] == ("INTERNAL" if has_traceback else "UNAVAILABLE")


@pytest.fixture
def root():
    """The root logger, left as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, LOGGER.level
    yield root
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    LOGGER.setLevel(before[2])


@pytest.mark.parametrize(("form", "formatter"), [("json", JsonFormatter), ("text", TextFormatter)])
def test_the_configuration_chooses_form_and_level(form, formatter, root):
    """One handler for the whole process, however often it is configured; others only warn."""
    configure(LogConfig(format=form, level="error"))
    configure(LogConfig(format=form, level="info"))
    (handler,) = root.handlers
    assert isinstance(handler.formatter, formatter)
    assert (root.level, LOGGER.level) == (logging.WARNING, logging.INFO)


@pytest.mark.parametrize("given", ["a", "Order_7.retry-2", "0" * 64])
def test_a_harmless_request_id_is_kept(given):
    """So that the caller finds its call in our log."""
    assert request_id_of([("other", "x"), ("x-request-id", given)]) == given


@pytest.mark.parametrize(
    "given",
    ["", "0" * 65, "a b", "a\nlevel=error", 'a"', "é", "../x", "%s", b"\xff\x00"],
    ids=repr,
)
def test_a_hostile_request_id_is_replaced(given):
    """Raw strings of clients do not reach the log."""
    assert_own_id(request_id_of([("x-request-id", given)]))


@pytest.mark.parametrize("metadata", [(), [("x-request", "a")]], ids=repr)
def test_a_call_without_an_id_gets_one(metadata):
    """Never the same twice."""
    first, second = (request_id_of(metadata) for _ in range(2))
    assert_own_id(first)
    assert first != second


def assert_own_id(request_id):
    """The form of the ids that the server makes."""
    assert re.fullmatch(r"[0-9a-f]{16}", request_id)


def test_codes_are_logged_by_name(written):
    """Numbers would have to be looked up."""
    error = RuntimeError("x")
    log_failure(error, "id")
    assert json.loads(written()[0])["code"] == grpc.StatusCode.INTERNAL.name


class Failures:
    """Tells a log of calls that fail, and what it has written.

    Args:
        written: What the log has written, as lines.
    """

    def __init__(self, written):
        self.log = EventLog()
        self._written = written

    def fail(self, error, request_id, caller="alice"):
        call = ReceivedCall(
            "Warp", "Warp", Caller(caller, "tcp"), math.inf, 0.0, FakeContext(()), None
        )
        answer = answer_to(error, request_id)
        self.log.call_failed(call, End(answer.code, 0.0, answer, error))

    def records(self):
        return [json.loads(line) for line in self._written()]


def test_failures_that_are_alike_are_told_once_with_their_count(written):
    """The first at once, with its traceback; a line for all that follow within ten seconds."""
    LOGGER.setLevel(logging.INFO)

    async def scenario():
        failures = Failures(written)
        for number in range(500):
            failures.fail(KeyError("inside"), f"id-{number}")
        first = failures.records()
        await asyncio.sleep(REPEAT_S)
        again = failures.records()[1:]
        await asyncio.sleep(10 * REPEAT_S)
        return first, again, failures.records()[2:]

    first, again, rest = run_in_virtual_time(scenario())
    assert [record["event"] for record in first] == ["request failed"]
    assert "traceback" in first[0]
    (record,) = again
    assert (record["event"], record["calls"]) == ("requests failed alike", 499)
    assert record["request_ids"] == [f"id-{n}" for n in range(1, 1 + MAX_REQUEST_IDS)]
    assert (record["caller"], record["code"], record["level"]) == ("alice", "INTERNAL", "error")
    assert rest == []


def test_failures_that_differ_are_each_told(written):
    """By caller, by reason, and by what failed inside."""
    LOGGER.setLevel(logging.INFO)

    async def scenario():
        failures = Failures(written)
        failures.fail(KeyError("inside"), "1")
        failures.fail(KeyError("inside"), "2", caller="bob")
        failures.fail(ValueError("inside"), "3")
        failures.fail(DrainingError(), "4")
        failures.fail(BrokenError(), "5")
        return [record["request_id"] for record in failures.records()]

    assert run_in_virtual_time(scenario()) == ["1", "2", "3", "4", "5"]


def test_what_was_counted_is_told_at_the_end(written):
    """A server that stops within the ten seconds."""
    LOGGER.setLevel(logging.INFO)

    async def scenario():
        failures = Failures(written)
        for number in range(3):
            failures.fail(DrainingError(), str(number))
        failures.log.flush()
        await asyncio.sleep(2 * REPEAT_S)
        return [record.get("calls") for record in failures.records()]

    assert run_in_virtual_time(scenario()) == [None, 2]


def test_every_failure_is_told_at_level_debug(written):
    """For who looks for one of them."""

    async def scenario():
        failures = Failures(written)
        for number in range(3):
            failures.fail(DrainingError(), str(number))
        return [record["request_id"] for record in failures.records()]

    assert run_in_virtual_time(scenario()) == ["0", "1", "2"]


def test_callers_without_end_do_not_fill_the_memory(written):
    """The oldest are forgotten, and what was counted of them is told."""
    LOGGER.setLevel(logging.INFO)

    async def scenario():
        failures = Failures(written)
        for number in range(2 * MAX_REPEATED):
            failures.fail(DrainingError(), "a", caller=f"host-{number}")
            failures.fail(DrainingError(), "b", caller=f"host-{number}")
        told = [r["calls"] for r in failures.records() if r["event"] == "requests failed alike"]
        return len(failures.log._repeated), told

    kept, told = run_in_virtual_time(scenario())
    assert kept == MAX_REPEATED
    assert told == [1] * MAX_REPEATED
