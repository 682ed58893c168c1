"""gRPC's messages in the data of a stream, however that is cut."""

import gzip
import struct
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_server.http2.messages import Messages, decompressed, parts

MIB = 2**20


def framed(message, is_compressed=False):
    return struct.pack(">BI", is_compressed, len(message)) + message


def fed(data, *cuts):
    """Messages that were fed this data in pieces."""
    messages, edges = Messages(), sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    for first, last in pairwise(edges):
        messages.feed(memoryview(data[first:last]))
    return messages


@given(
    st.lists(st.tuples(st.binary(max_size=30), st.booleans()), max_size=5),
    st.lists(st.integers(0, 200)),
)
def test_messages_are_whole_however_they_are_cut(expected, cuts):
    data = b"".join(framed(*one) for one in expected)
    messages = fed(data, *cuts)
    assert list(messages.whole) == expected
    assert not messages.is_amid


@given(st.lists(st.integers(0, 70_000), max_size=8))
def test_long_and_short_pieces_come_in_order(cuts):
    message = bytes(range(256)) * 256
    assert list(fed(framed(message), *cuts).whole) == [(message, False)]


def test_every_byte_may_come_alone():
    data = framed(b"") + framed(b"ab", True) + framed(b"")
    messages = fed(data, *range(len(data)))
    assert list(messages.whole) == [(b"", False), (b"ab", True), (b"", False)]


def test_several_messages_may_come_together():
    messages = fed(framed(b"one") + framed(b"") + framed(b"two") + framed(b"three")[:6])
    assert [message for message, _ in messages.whole] == [b"one", b"", b"two"]
    assert messages.is_amid
    assert (messages.announced_bytes, messages.missing_bytes) == (5, 4)


@pytest.mark.parametrize("there", range(5))
def test_the_length_is_known_once_the_prefix_is_there(there):
    messages = fed(framed(b"message", True)[:there])
    assert messages.announced_bytes is None
    assert messages.missing_bytes == 5 - there
    assert messages.is_amid == bool(there)
    messages.feed(memoryview(framed(b"message", True)[there:5]))
    assert (messages.announced_bytes, messages.is_compressed) == (7, True)


@pytest.mark.parametrize("size", [0, 4, 100_000])
def test_what_stands_before_a_message_is_its_length(size):
    assert b"".join(parts(bytes(size))) == framed(bytes(size))


@pytest.mark.parametrize(
    ("part_bytes", "input_bytes"),
    [(1, 1), (1, 2**14), (2**12, 2**18), (2**16, 2**16)],
    ids=["bytes", "bytes among others", "frames among others", "long parts"],
)
def test_a_message_takes_a_small_multiple_of_its_length(part_bytes, input_bytes):
    """However tiny its frames are, and whatever else came in along with them."""
    count = min(MIB // part_bytes, 2**15)
    size = count * part_bytes
    messages = Messages()
    messages.feed(memoryview(struct.pack(">BI", 0, size + 1)))
    tracemalloc.start()
    try:
        for _ in range(count):
            messages.feed(memoryview(bytes(input_bytes))[:part_bytes])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert messages.missing_bytes == 1
    assert held < 4.5 * size + 2**14


DEFLATED = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", DEFLATED)
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_compressed_messages_are_read(encoding, size):
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert decompressed(DEFLATED[encoding](message), encoding, size) == message


@pytest.mark.parametrize("encoding", DEFLATED)
def test_a_message_that_holds_more_than_the_limit_is_not_made(encoding):
    """A decompression bomb: 64 MiB of zeros in 64 KiB."""
    bomb = DEFLATED[encoding](bytes(64 * MIB))
    tracemalloc.start()
    try:
        assert decompressed(bomb, encoding, MIB) is None
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", DEFLATED)
@pytest.mark.parametrize(
    "broken", [lambda _data: b"", lambda data: data[:-1], lambda data: b"no" + data]
)
def test_what_is_not_compressed_so_is_refused(encoding, broken):
    with pytest.raises(zlib.error, match=r"incomplete|incorrect"):
        decompressed(broken(DEFLATED[encoding](b"message")), encoding, 100)


def test_the_encodings_are_told_apart():
    with pytest.raises(zlib.error, match="incorrect header"):
        decompressed(gzip.compress(b"message"), "deflate", 100)
