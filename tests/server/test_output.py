"""Output that is never waited for: a pipe that nobody reads, and one that is read late."""

import os
import threading
from contextlib import suppress

import pytest

from stn_server.output import BackgroundWriter

LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def read(descriptor, size_bytes):
    """So much of what was written; waits for it."""
    pieces = []
    while size_bytes:
        pieces.append(os.read(descriptor, size_bytes))
        size_bytes -= len(pieces[-1])
    return b"".join(pieces).decode()


def test_what_is_written_arrives_in_order(pipe):
    """From any thread, in one piece each."""
    out = BackgroundWriter(pipe[1])
    assert [out.write(text) for text in ("one\n", "zwei é\n", "three\n")] == [4, 7, 6]
    assert read(pipe[0], 18) == "one\nzwei é\nthree\n"
    assert out.drain(60)


def test_print_and_tracebacks_can_use_it(pipe):
    """It is a text stream as others; what cannot be encoded is shown all the same."""
    out = BackgroundWriter(pipe[1])
    print("a", "b", file=out, flush=True)
    out.write("\udcff\n")
    assert read(pipe[0], 11) == "a b\n\\udcff\n"


def full(pipe):
    """Fills a pipe; returns how much it took."""
    os.set_blocking(pipe[1], False)
    size_bytes = 0
    with suppress(BlockingIOError):
        while True:
            size_bytes += os.write(pipe[1], b" " * 4096)
    os.set_blocking(pipe[1], True)
    return size_bytes


def test_what_nobody_reads_is_dropped_counted_and_told_later(pipe):
    """Nothing waits; once all that was kept has been read, the number of the others is told."""
    before_bytes = full(pipe)
    told, counted, recovered = [], [], threading.Event()

    def tell(number):
        told.append(number)
        recovered.set()

    out = BackgroundWriter(pipe[1], tell, capacity_bytes=1000)
    for _ in range(12):
        out.write(LINE)
    out.watch(counted.append)
    for _ in range(25):
        out.write(LINE)
    assert counted == [2] + [1] * 25
    assert not out.drain(0)
    assert told == []
    assert read(pipe[0], before_bytes + 1000) == " " * before_bytes + LINE * 10
    assert recovered.wait(60)
    assert told == [27]
    assert out.drain(60)


def test_what_is_dropped_when_a_watch_begins_is_counted_once(pipe):
    """Either it was before, or it is told by itself."""
    out, counted = BackgroundWriter(pipe[1], capacity_bytes=10), []
    watching = threading.Thread(target=out.watch, args=[counted.append])
    with out._changed:  # the watch is at this lock by the time of the write, or comes later
        watching.start()
        out.write(LINE)
    watching.join()
    assert sum(counted) == 1


def test_what_is_longer_than_all_that_may_wait_is_dropped(pipe):
    """The next line arrives."""
    out = BackgroundWriter(pipe[1], capacity_bytes=10)
    out.write(LINE)
    out.write("short\n")
    assert read(pipe[0], 6) == "short\n"


def test_a_descriptor_that_takes_only_what_it_can_is_waited_for(pipe):
    """Whoever started the process may have made the pipe non-blocking; nothing is lost."""
    os.set_blocking(pipe[1], False)
    out = BackgroundWriter(pipe[1])
    for _ in range(1500):
        out.write(LINE)
    assert read(pipe[0], 150_000) == LINE * 1500
    assert out.drain(60)


def test_lines_for_a_reader_that_has_gone_are_dropped():
    """As those for one that does not read; the writer goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    counted, gone = [], threading.Semaphore(0)
    out = BackgroundWriter(writer, lambda _: pytest.fail("nobody is there to be told"))
    out.watch(lambda number: (counted.append(number), gone.release()))
    out.write(LINE)
    out.write(LINE)
    assert gone.acquire(timeout=60)
    assert out.drain(60)
    assert sum(counted) == 2
    os.close(writer)
