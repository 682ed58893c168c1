"""Which calls go next, and which together: the queue of a connection, without one."""

import itertools

import numpy as np
import pytest

from stn_client import Affine, RetryPolicy
from stn_client._calls import server_info, warp
from stn_client._connection import Progress
from stn_client._sending import (
    MAX_CALLS,
    MAX_MESSAGES,
    GoAlone,
    Packet,
    SendQueue,
    Waiter,
)
from stn_client._transports import MAX_MESSAGE_BYTES

IDENTITY = Affine(np.eye(2, 3, dtype=np.float32)[None])
SMALL = warp(np.zeros((1, 1, 28, 28), np.float32), IDENTITY, None, {})
LARGE = warp(np.zeros((1, 1, 64, 64), np.float32), IDENTITY, None, {})
LARGE_RESULT = warp(np.zeros((1, 1, 2, 2), np.float32), IDENTITY, (64, 64), {})


class Sender:
    """A queue, and what its calls were told to send."""

    def __init__(self, max_in_flight=256, *, packs=True, most_bytes=MAX_MESSAGE_BYTES):
        self.queue = SendQueue(max_in_flight, packs=packs)
        self.sent = []
        self.most_bytes = most_bytes
        self._names = {}
        self._number = itertools.count()

    def waiter(self, call=SMALL, timeout_s=60.0):
        progress = Progress(RetryPolicy(), timeout_s, lambda: True)
        waiter = Waiter(call, progress, lambda told: told.goes and self.sent.append(told.goes))
        self._names[waiter] = next(self._number)
        return waiter

    def add(self, *waiters):
        for waiter in waiters:
            self.queue.add(waiter)
            self.queue.start(self.most_bytes)

    def calls(self, count, call=SMALL):
        waiters = [self.waiter(call) for _ in range(count)]
        self.add(*waiters)
        return waiters

    def answer(self, sent, outcome=(b"", ())):
        """What somebody sent is answered, for all its calls alike."""
        for waiter in sent.waiters if isinstance(sent, Packet) else [sent]:
            waiter.outcome, waiter.goes = outcome, None
        self.queue.answered(sent)
        self.queue.start(self.most_bytes)

    def messages(self):
        """The numbers of the calls of each message so far."""
        return [
            [self._names[w] for w in (sent.waiters if isinstance(sent, Packet) else [sent])]
            for sent in self.sent
        ]


def test_the_first_calls_go_at_once_and_what_waits_goes_together():
    """In the order they came in."""
    sender = Sender()
    sender.calls(7)
    assert sender.messages() == [[0], [1]]
    sender.answer(sender.sent[1])
    assert sender.messages() == [[0], [1], [2, 3, 4, 5, 6]]


def test_a_full_message_leaves_the_rest_for_the_next():
    """No more than MAX_CALLS, and no more bytes than allowed."""
    sender = Sender(1024)
    sender.calls(MAX_MESSAGES + MAX_CALLS + 3)
    sender.answer(sender.sent[0])
    assert len(sender.messages()[-1]) == MAX_CALLS
    sender.answer(sender.sent[1])
    assert len(sender.messages()[-1]) == 3
    narrow = Sender(most_bytes=3 * 28 * 28 * 4)
    narrow.calls(MAX_MESSAGES + 5)
    narrow.answer(narrow.sent[0])
    narrow.answer(narrow.sent[1])
    assert narrow.messages()[2:] == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    "call", [LARGE, LARGE_RESULT, server_info({})], ids=["operand", "result", "other method"]
)
def test_calls_that_are_not_small_go_alone_whatever_is_under_way(call):
    """What they cost is not the message; small ones behind them still wait for each other."""
    sender = Sender()
    sender.calls(3)
    sender.calls(3, call)
    assert sender.messages() == [[0], [1], [3], [4], [5]]


def test_a_message_may_take_its_part_of_what_is_there_and_leave_the_rest():
    """Half of what waits and is under way, for each of two messages; no more than MAX_CALLS."""
    sender = Sender(1024)
    sender.calls(1)
    for _ in range(8):
        sender.queue.add(sender.waiter())
    sender.queue.start(sender.most_bytes, splits=True)
    assert sender.messages() == [[0], [1, 2, 3, 4, 5]]
    sender.answer(sender.sent[0])
    assert sender.messages()[2:] == [[6, 7, 8]]
    full = Sender(1024)
    for _ in range(3 * MAX_CALLS):
        full.queue.add(full.waiter())
    full.queue.start(full.most_bytes, splits=True)
    assert [len(message) for message in full.messages()] == [MAX_CALLS] * 2


def test_few_calls_wait_for_those_of_an_answered_message():
    """As long as another one is under way, and unless more wait than come back."""
    sender = Sender()
    sender.calls(1)
    for _ in range(3):
        sender.queue.add(sender.waiter())
    assert not sender.queue.is_packing
    sender.queue.start(sender.most_bytes)
    single, packet = sender.sent
    assert sender.queue.is_packing
    for waiter in packet.waiters:
        waiter.outcome = (b"", ())
    sender.queue.answered(packet)
    sender.calls(1)  # beside the first one
    assert not sender.queue.is_packing
    for _ in range(2):
        sender.queue.add(sender.waiter())
    assert sender.queue.waits_for(packet)
    sender.queue.add(sender.waiter())
    assert not sender.queue.waits_for(packet)
    for sent in (single, sender.sent[2]):
        sent.outcome = (b"", ())
        sender.queue.answered(sent)
    assert not sender.queue.waits_for(packet)


def test_turns_bound_the_calls_under_way_in_messages_too():
    """Of what waits no more goes than there are turns, and the rest in order."""
    sender = Sender(max_in_flight=4)
    sender.calls(9)
    sender.answer(sender.sent[0])
    sender.answer(sender.sent[1])
    assert sender.messages()[2:] == [[2, 3, 4], [5]]
    assert sender.queue.in_flight == 4
    sender.answer(sender.sent[2])
    assert sender.messages()[4:] == [[6, 7, 8]]


def test_turns_of_calls_of_both_kinds_come_in_the_order_of_asking():
    """A large call does not let small ones pass that came later, nor the other way round."""
    sender = Sender(max_in_flight=1)
    first, *_ = sender.calls(1)
    sender.calls(1, LARGE)
    sender.calls(1)
    sender.calls(1, LARGE)
    for number in range(3):
        sender.answer(sender.sent[number])
    assert sender.messages() == [[0], [1], [2], [3]]
    assert not first.has_turn


def test_a_call_that_is_tried_again_keeps_its_turn_and_goes_before_others():
    """It is under way until it is over."""
    sender = Sender(max_in_flight=1)
    first, _second = sender.calls(2)
    sender.answer(sender.sent[0], outcome=RuntimeError())
    assert first.has_turn
    first.outcome = None
    sender.add(first)
    assert sender.messages() == [[0], [0]]


def test_a_call_that_leaves_makes_room():
    """One that waits is not sent; one that is under way gives its turn back, once."""
    sender = Sender(max_in_flight=1)
    first, second, _third = sender.calls(3)
    assert sender.queue.leave(second)
    assert not sender.queue.leave(first)
    assert not sender.queue.leave(first)
    assert sender.queue.in_flight == 0
    sender.queue.start(sender.most_bytes)
    assert sender.messages() == [[0], [2]]


def test_the_clock_of_a_message_is_that_of_the_call_with_the_most_time():
    """So that no call ends because of another one's deadline."""
    sender = Sender()
    sender.calls(2)
    waiters = [sender.waiter(timeout_s=timeout_s) for timeout_s in (5.0, None, 30.0)]
    sender.add(*waiters)
    sender.answer(sender.sent[0])
    assert sender.sent[2].lead is waiters[1]
    attempt = sender.sent[2].start()
    assert attempt["timeout"] is None
    ids = dict(attempt["metadata"])
    assert ids["x-request-id"] == waiters[1].progress.request_id


def test_a_packet_wakes_its_calls_when_it_is_told_to():
    """All have their outcomes by then; the next message goes in between."""
    woken = []
    waiters = [
        Waiter(SMALL, Progress(RetryPolicy(), None, lambda: True), woken.append) for _ in "ab"
    ]
    packet = Packet(waiters, SendQueue(2, packs=True))
    packet.fail(KeyboardInterrupt(), is_lost=True)
    assert woken == []
    assert all(isinstance(waiter.outcome, GoAlone) for waiter in waiters)
    packet.wake()
    assert woken == waiters


def test_without_packing_every_call_goes_alone_and_at_once():
    """As many as may be under way."""
    sender = Sender(packs=False)
    sender.calls(5)
    assert sender.messages() == [[0], [1], [2], [3], [4]]
