"""One connection of HTTP/2 without I/O: rules of RFC 9113, flow control, and what floods may cost.

The client is the library h2 where an honest one will do, and bare frames where rules are broken.
"""

import struct
import tracemalloc
from itertools import chain, cycle

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_server.http2 import connection as limits
from stn_server.http2.connection import (
    Acknowledged,
    Began,
    Ended,
    Received,
    Reset,
    Sent,
    ServerConnection,
)
from stn_server.http2.frames import PREFACE, Code, ConnectionEndedError, Kind, Setting

END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
WINDOW = 65_535
HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"test"),
    (b"te", b"trailers"),
]
BLOCK = hpack.Encoder().encode(HEADERS, huffman=False)
"""The first block of a connection: the decoder has to know nothing."""
TRAILERS = b"\x00\x0bgrpc-status\x010"


def frame(kind, flags, stream_id, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


def settings(**values):
    pairs = (struct.pack(">HI", Setting[name], value) for name, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, b"".join(pairs))


def begin(stream_id=1, flags=END_HEADERS):
    return frame(Kind.HEADERS, flags, stream_id, BLOCK)


def update(stream_id, increment):
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))


def reset(stream_id):
    return frame(Kind.RST_STREAM, 0, stream_id, bytes(4))


def opened(*frames, max_streams=100):
    """A connection that a client has begun, with these frames of its own."""
    connection = ServerConnection(max_streams)
    connection.receive(PREFACE + settings() + b"".join(frames))
    sent(connection)
    return connection


def sent(connection):
    """The frames that a connection has to send: kind, flags, stream and payload of each."""
    data = b"".join(connection.output)
    connection.output.clear()
    connection.answers_bytes = 0
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream_id = struct.unpack(">BBI", data[3:9])
        found.append((kind, flags, stream_id, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def data_of(frames, stream_id):
    return b"".join(load for kind, _, of, load in frames if (kind, of) == (Kind.DATA, stream_id))


def merged(events):
    """Events, with the data of a stream in one piece, however it came."""
    found = []
    for event in events:
        if isinstance(event, Received):
            if found and isinstance(found[-1], list) and found[-1][0] == event.stream_id:
                found[-1][1] += bytes(event.data)
            else:
                found.append([event.stream_id, bytes(event.data)])
        else:
            found.append(event)
    return found


# Rules whose breach ends the connection


BREACHES = {
    "no preface": (b"GET / HTTP/1.1\r\n\r\n", Code.PROTOCOL_ERROR, "expected the preface"),
    "no settings": (PREFACE + frame(Kind.PING, 0, 0, bytes(8)), 1, "expected settings first"),
    "settings that acknowledge": (PREFACE + frame(4, ACK, 0), 1, "expected settings first"),
}


@pytest.mark.parametrize(("data", "code", "text"), BREACHES.values(), ids=BREACHES)
def test_a_connection_begins_with_the_preface_and_settings(data, code, text):
    with pytest.raises(ConnectionEndedError, match=text) as error:
        ServerConnection(1).receive(data)
    assert error.value.code == code


P, F, S, Z, C, Y = (
    Code.PROTOCOL_ERROR,
    Code.FLOW_CONTROL_ERROR,
    Code.STREAM_CLOSED,
    Code.FRAME_SIZE_ERROR,
    Code.COMPRESSION_ERROR,
    Code.ENHANCE_YOUR_CALM,
)
ENDED = begin(1, END_HEADERS | END_STREAM)
BROKEN = {
    "frame above the limit": (frame(9, 0, 1, length=limits.FRAME_BYTES + 1), Z, "too long"),
    "frame of a wrong length": (frame(Kind.PING, 0, 0, bytes(7)), Z, "wrong length"),
    "window of a wrong length": (frame(Kind.WINDOW_UPDATE, 0, 0, bytes(5)), Z, "wrong length"),
    "reset of a wrong length": (begin() + frame(3, 0, 1, bytes(3)), Z, "wrong length"),
    "priority of a wrong length": (frame(Kind.PRIORITY, 0, 1, bytes(4)), Z, "wrong length"),
    "long frame without data": (frame(4, 0, 0, length=limits.FRAME_BYTES), Z, "wrong length"),
    "settings on a stream": (frame(Kind.SETTINGS, 0, 1), P, "wrong stream"),
    "ping on a stream": (frame(Kind.PING, 0, 1, bytes(8)), P, "wrong stream"),
    "farewell on a stream": (frame(Kind.GOAWAY, 0, 1, bytes(8)), P, "wrong stream"),
    "data without a stream": (frame(Kind.DATA, 0, 0, b"x"), P, "wrong stream"),
    "headers without a stream": (begin(0), P, "wrong stream"),
    "reset without a stream": (reset(0), P, "wrong stream"),
    "priority without a stream": (frame(Kind.PRIORITY, 0, 0, bytes(5)), P, "wrong stream"),
    "data on a stream to come": (frame(Kind.DATA, 0, 1, b"x"), P, "stream to come"),
    "data on a server's stream": (begin(3) + frame(Kind.DATA, 0, 2, b"x"), P, "stream to come"),
    "window of a stream to come": (update(1, 1), P, "stream to come"),
    "reset of a stream to come": (reset(1), P, "stream to come"),
    "data after the end": (ENDED + frame(Kind.DATA, 0, 1, b"x"), S, "after the end of a stream"),
    "data after a reset": (begin() + reset(1) + frame(0, 0, 1, b"x"), S, "stream that is over"),
    "headers after the end": (ENDED + begin(1), S, "headers come after the end"),
    "headers after a reset": (begin() + reset(1) + begin(1), S, "stream that is over"),
    "headers of a server's stream": (begin(2), S, "stream that is over"),
    "headers of a skipped stream": (begin(5) + begin(3), S, "stream that is over"),
    "interrupted headers": (begin(1, 0) + begin(3), P, "expected the rest"),
    "headers that go on elsewhere": (begin(1, 0) + frame(9, 4, 3), P, "expected the rest"),
    "unknown frame amid headers": (begin(1, 0) + frame(0xFA, 0, 1), P, "expected the rest"),
    "rest of no headers": (frame(Kind.CONTINUATION, END_HEADERS, 1), P, "no rest of headers"),
    "headers that are no HPACK": (frame(1, END_HEADERS, 1, b"\xff"), C, "HPACK integer"),
    "table above its limit": (frame(1, 4, 1, b"\x3f\xe2\x1f"), C, "exceed"),
    "headers too short for a priority": (frame(1, 4 | PRIORITY, 1, bytes(4)), Z, "too short"),
    "headers all padding": (frame(1, 4 | PADDED, 1, b"\x01"), P, "all padding"),
    "headers without their padding": (frame(1, 4 | PADDED, 1), P, "all padding"),
    "data all padding": (begin() + frame(0, PADDED, 1, b"\x01"), P, "all padding"),
    "data without its padding": (begin() + frame(0, PADDED, 1), P, "all padding"),
    "push": (begin() + frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), P, "cannot push"),
    "settings in parts": (frame(Kind.SETTINGS, 0, 0, bytes(5)), Z, "settings have a wrong length"),
    "settings acknowledged": (frame(4, ACK, 0, bytes(6)), Z, "settings have a wrong length"),
    "window setting": (settings(INITIAL_WINDOW_SIZE=2**31), F, "window is too large"),
    "frame setting below": (settings(MAX_FRAME_SIZE=2**14 - 1), P, "out of bounds"),
    "frame setting above": (settings(MAX_FRAME_SIZE=2**24), P, "out of bounds"),
    "push setting": (settings(ENABLE_PUSH=2), P, "out of bounds"),
    "window of a stream by settings": (
        begin() + update(1, 2**31 - 1 - WINDOW) + settings(INITIAL_WINDOW_SIZE=WINDOW + 1),
        F,
        "window is too large",
    ),
    "window that stays": (update(0, 0), P, "grows by nothing"),
    "window above the limit": (update(0, 2**31 - WINDOW), F, "window is too large"),
}


@pytest.mark.parametrize(("data", "code", "text"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_a_rule_ends_the_connection(data, code, text):
    connection = opened()
    with pytest.raises(ConnectionEndedError, match=text) as error:
        connection.receive(data)
    assert error.value.code == code


def test_the_end_of_a_connection_names_the_last_stream_and_the_reason():
    connection = opened(begin(7))
    connection.end(Code.PROTOCOL_ERROR, "because")
    assert sent(connection) == [(Kind.GOAWAY, 0, 0, struct.pack(">II", 7, 1) + b"because")]


# Rules whose breach ends a stream


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (update(1, 0), Code.PROTOCOL_ERROR),
        (update(1, 2**31 - WINDOW), Code.FLOW_CONTROL_ERROR),
        (frame(Kind.HEADERS, END_HEADERS, 1, BLOCK), Code.PROTOCOL_ERROR),
        (4 * frame(Kind.DATA, 0, 1, bytes(2**14)), Code.FLOW_CONTROL_ERROR),
    ],
    ids=["window that stays", "window above the limit", "headers amid a stream", "data beyond it"],
)
def test_what_breaks_a_rule_of_a_stream_ends_that_alone(data, code):
    connection = opened(begin(1), begin(3))
    events = connection.receive(data)
    assert events[-1] == Reset(1)
    assert sent(connection) == [(Kind.RST_STREAM, 0, 1, struct.pack(">I", code))]
    assert connection.open_streams == 1
    assert merged(connection.receive(frame(Kind.DATA, END_STREAM, 3, b"x"))) == [
        [3, b"x"],
        Ended(3),
    ]


# What comes in


def test_a_call_comes_in_with_its_headers_its_data_and_its_end():
    events = opened().receive(begin(1) + frame(Kind.DATA, END_STREAM, 1, b"message"))
    assert merged(events) == [Began(1, HEADERS), [1, b"message"], Ended(1)]


def test_a_call_may_end_with_headers_that_say_nothing():
    events = opened(begin(1)).receive(frame(1, END_HEADERS | END_STREAM, 1, TRAILERS))
    assert events == [Ended(1)]


def test_headers_may_come_in_parts_padded_and_with_a_priority():
    padded = b"\x03" + bytes(5) + BLOCK[:4] + bytes(3)
    flags = PADDED | PRIORITY | END_STREAM
    data = frame(Kind.HEADERS, flags, 1, padded) + frame(9, 0, 1) + frame(9, 4, 1, BLOCK[4:])
    assert opened().receive(data) == [Began(1, HEADERS), Ended(1)]


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_of_data_is_no_data_but_counts_for_the_window(padding):
    connection = opened(begin(1))
    load = bytes([padding]) + b"abc" + bytes(padding)
    assert merged(connection.receive(frame(0, PADDED, 1, load))) == [[1, b"abc"]]
    connection.grant(1, 2 * WINDOW)
    increment = WINDOW + 4 + padding
    assert sent(connection) == [(Kind.WINDOW_UPDATE, 0, 1, struct.pack(">I", increment))]


def test_padding_alone_is_told_as_it_takes_a_part_of_the_window():
    events = opened(begin(1)).receive(frame(0, PADDED | END_STREAM, 1, b"\x09" + bytes(9)))
    assert merged(events) == [[1, b""], Ended(1)]


def test_frames_that_ask_for_nothing_are_passed_over():
    nothing = [
        frame(0xFA, 0xFF, 1, b"of a type to come"),
        frame(Kind.PRIORITY, 0, 9, bytes(5)),
        frame(Kind.GOAWAY, 0, 0, bytes(8)),
        frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 0xFAFA, 7)),
        frame(Kind.SETTINGS, ACK, 0),
        frame(Kind.PING, ACK, 0, bytes(8)),
    ]
    assert opened().receive(b"".join(nothing)) == []


def test_a_ping_is_answered_with_what_it_holds():
    connection = opened(frame(Kind.PING, 0, 0, b"12345678"))
    connection.receive(frame(Kind.PING, 0, 0, b"abcdefgh"))
    assert sent(connection) == [(Kind.PING, ACK, 0, b"abcdefgh")]


def test_only_an_answer_to_a_ping_from_here_is_told():
    connection, answer = opened(), frame(Kind.PING, ACK, 0, bytes(8))
    assert connection.receive(answer) == []
    connection.ping()
    assert sent(connection) == [(Kind.PING, 0, 0, bytes(8))]
    assert connection.receive(2 * answer) == [Acknowledged()]


def test_the_client_hears_the_limits_first():
    first = sent(ServerConnection(7))
    values = dict(struct.iter_unpack(">HI", first[0][3]))
    assert values == {
        Setting.MAX_CONCURRENT_STREAMS: 7,
        Setting.MAX_FRAME_SIZE: limits.FRAME_BYTES,
        Setting.MAX_HEADER_LIST_SIZE: limits.MAX_HEADER_BYTES,
    }
    assert first[1] == (Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - WINDOW))


def client_with_calls(bodies, padding):
    """The bytes of a client of the library h2 that makes these calls."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    for number, body in enumerate(bodies):
        stream_id = 2 * number + 1
        client.send_headers(stream_id, [*HEADERS, (b"x-number", str(number).encode())])
        client.ping(bytes(8))
        client.send_data(stream_id, body, end_stream=True, pad_length=padding)
    return client.data_to_send()


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 30)),
    st.lists(st.integers(1, 60), min_size=1, max_size=10),
)
def test_any_split_of_the_input_means_the_same(bodies, padding, steps):
    data = client_with_calls(bodies, padding)
    whole, split, single = (ServerConnection(100) for _ in range(3))
    at_once = whole.receive(data)
    in_steps, position = [], 0
    for step in cycle(steps):
        if position >= len(data):
            break
        in_steps += split.receive(data[position : position + step])
        position += step
    one_by_one = [event for byte in data for event in single.receive(bytes([byte]))]
    assert told(at_once) == told(in_steps) == told(one_by_one)
    assert [event for event in told(at_once) if isinstance(event, list)] == [
        [2 * number + 1, body] for number, body in enumerate(bodies) if body
    ]
    assert b"".join(whole.output) == b"".join(split.output) == b"".join(single.output)


def told(events):
    """What events say together; padding alone may be told in one piece or in several."""
    return [event for event in merged(events) if not isinstance(event, list) or event[1]]


# Flow control of what comes in


def test_a_stream_may_send_what_it_was_granted_and_no_more():
    connection = opened(begin(1))
    connection.grant(1, 100_000)
    assert sent(connection) == [(Kind.WINDOW_UPDATE, 0, 1, struct.pack(">I", 100_000 - WINDOW))]
    events = connection.receive(frame(Kind.DATA, 0, 1, bytes(100_000)))
    assert merged(events) == [[1, bytes(100_000)]]
    assert connection.receive(frame(Kind.DATA, 0, 1, b"x")) == [Reset(1)]


def test_a_window_does_not_grow_by_little():
    """Whoever sends one byte at a time does not get an answer for each."""
    connection = opened(begin(1))
    for _ in range(10):
        connection.receive(frame(Kind.DATA, 0, 1, b"x"))
        connection.grant(1, WINDOW)
    assert sent(connection) == []


def test_nothing_is_granted_to_a_stream_that_has_ended():
    connection = opened(ENDED)
    connection.grant(1, 2**20)
    connection.grant(3, 2**20)
    assert sent(connection) == []


def test_the_window_of_the_connection_is_given_back_before_it_is_used():
    connection, size = opened(begin(1)), limits.FRAME_BYTES
    granted, count = 0, 0
    while not granted:
        count += 1
        connection.grant(1, 2**30)
        sent(connection)
        connection.receive(frame(Kind.DATA, 0, 1, bytes(size)))
        granted += sum(
            int.from_bytes(load, "big")
            for kind, _, of, load in sent(connection)
            if (kind, of) == (8, 0)
        )
    assert granted == count * size == limits.TOP_UP_BYTES


# Flow control of what is sent


def test_data_waits_for_the_window_of_its_stream():
    connection = opened(begin(1))
    assert not connection.send(1, bytes(WINDOW), b"rest")
    assert data_of(sent(connection), 1) == bytes(WINDOW)
    assert connection.receive(update(0, 100)) == []
    assert sent(connection) == []
    assert connection.receive(update(1, 3)) == []
    assert data_of(sent(connection), 1) == b"res"
    assert connection.receive(update(1, 3)) == [Sent(1)]
    assert data_of(sent(connection), 1) == b"t"


def test_data_waits_for_the_window_of_the_connection_and_goes_in_turns():
    connection = opened(*(begin(one) for one in (1, 3, 5)))
    connection.send(1, bytes(WINDOW - 2))
    sent(connection)
    assert not connection.send(3, b"abcd")
    assert not connection.send(5, b"xyz")
    assert data_of(sent(connection), 3) == b"ab"
    assert connection.receive(update(0, 1)) == []
    assert data_of(sent(connection), 3) == b"c"  # or 5: each turn is one byte here
    assert connection.receive(update(0, 2)) == []
    found = sent(connection)
    assert (data_of(found, 5), data_of(found, 3)) == (b"xy", b"")
    assert connection.receive(update(0, 2)) == [Sent(3), Sent(5)]


def test_a_window_may_be_negative_after_settings():
    """RFC 9113, 6.9.2: the sender then waits until it is positive again."""
    connection = opened(begin(1))
    connection.send(1, bytes(1000))
    connection.receive(settings(INITIAL_WINDOW_SIZE=100))
    assert not connection.send(1, b"ab")
    sent(connection)
    connection.receive(update(1, 900))
    assert sent(connection) == []
    assert connection.receive(update(1, 1)) == []
    assert data_of(sent(connection), 1) == b"a"
    assert connection.receive(settings(INITIAL_WINDOW_SIZE=101)) == [Sent(1)]
    assert data_of(sent(connection), 1) == b"b"


def test_settings_count_for_streams_that_begin_after_them():
    connection = opened(settings(INITIAL_WINDOW_SIZE=5), begin(1))
    assert not connection.send(1, b"123456")
    assert data_of(sent(connection), 1) == b"12345"


@pytest.mark.parametrize("longest", [2**14, 20_000, 2**24 - 1])
def test_frames_are_as_long_as_the_client_takes_them(longest):
    connection = opened(settings(MAX_FRAME_SIZE=longest), begin(1, END_HEADERS | END_STREAM))
    assert connection.send(1, bytes(50_000))
    block = bytes(50_000)
    connection.end_stream(1, block)
    found = sent(connection)
    assert max(len(load) for *_, load in found) == min(longest, 50_000)
    assert data_of(found, 1) == bytes(50_000)
    headers = [one for one in found if one[0] != Kind.DATA]
    assert b"".join(load for *_, load in headers) == block
    assert headers[0][:2] == (Kind.HEADERS, END_STREAM | (0 if headers[1:] else END_HEADERS))
    assert headers[-1][1] & END_HEADERS
    assert {kind for kind, *_ in headers[1:]} <= {Kind.CONTINUATION}


@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=3),
    st.integers(1000, 70_000),
    st.integers(2**14, 2**16),
)
def test_replies_arrive_whole_at_a_client_that_reads_them(sizes, window, longest):
    """Its client is the library h2, which itself counts the windows."""
    replies = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    config = h2.config.H2Configuration(header_encoding=None)
    client = h2.connection.H2Connection(config)
    server, got, ended = ServerConnection(100), {}, set()
    client.initiate_connection()
    server.receive(client.data_to_send())
    client.update_settings(
        {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window,
            h2.settings.SettingCodes.MAX_FRAME_SIZE: longest,
        }
    )
    for number in range(len(replies)):
        client.send_headers(2 * number + 1, HEADERS, end_stream=True)
    for event in server.receive(client.data_to_send()):
        if isinstance(event, Began):
            server.send_headers(event.stream_id, b"\x88")
            server.send(event.stream_id, replies[event.stream_id // 2])
            server.end_stream(event.stream_id, TRAILERS)
    while server.output:
        output, server.output = server.output, []
        server.answers_bytes = 0
        # In pieces: the library takes longer frames from the next piece on.
        for event in chain.from_iterable(map(client.receive_data, pieces(b"".join(output)))):
            if isinstance(event, h2.events.DataReceived):
                got[event.stream_id] = got.get(event.stream_id, b"") + event.data
                client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
        server.receive(client.data_to_send())
        server.go_on()
    assert got == {2 * number + 1: reply for number, reply in enumerate(replies)}
    assert ended == set(got)
    assert server.open_streams == 0


def pieces(data):
    """The frames in what was sent."""
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        yield data[:end]
        data = data[end:]


def test_the_answer_to_settings_comes_before_what_they_allow():
    """A client counts by its former settings until it has that."""
    connection = opened(begin(1), update(0, WINDOW))
    connection.send(1, bytes(WINDOW), b"more")
    sent(connection)
    assert connection.receive(settings(INITIAL_WINDOW_SIZE=2**20)) == [Sent(1)]
    assert [kind for kind, *_ in sent(connection)] == [Kind.SETTINGS, Kind.DATA]


# Turns, and clients that do not read


def wide(*streams):
    """A connection whose windows hold up nothing."""
    return opened(
        settings(INITIAL_WINDOW_SIZE=2**31 - 1),
        update(0, 2**31 - 1 - WINDOW),
        *(begin(one, END_HEADERS | END_STREAM) for one in streams),
    )


def test_long_replies_take_turns():
    connection, turn = wide(1, 3, 5), limits.TURN_BYTES
    assert not connection.send(1, bytes(turn + 1))
    assert not connection.send(3, b"short")
    assert len(data_of(sent(connection), 1)) == turn
    assert connection.go_on() == [Sent(1), Sent(3)]
    found = sent(connection)
    assert (data_of(found, 1), data_of(found, 3)) == (b"\0", b"short")


def test_nothing_more_is_sent_to_a_client_that_does_not_read():
    """Neither data nor ends of streams, which would free places for further calls."""
    connection = wide(1, 3)
    connection.room_bytes = 0
    assert not connection.send(1, b"reply")
    assert not connection.end_stream(1, TRAILERS)
    assert not connection.end_stream(3, TRAILERS)
    assert connection.receive(settings()) == []
    assert [kind for kind, *_ in sent(connection)] == [Kind.SETTINGS]
    assert connection.open_streams == 2
    assert sorted(connection.go_on()) == [Sent(1), Sent(3)]
    assert connection.open_streams == 0


def test_ends_of_streams_need_no_window():
    connection = opened(begin(1), begin(3))
    connection.send(1, bytes(WINDOW), b"x")
    connection.room_bytes = 0
    connection.end_stream(3, TRAILERS)
    sent(connection)
    assert connection.go_on() == [Sent(3)]


# Ends of streams from here


def test_a_reply_before_the_end_of_the_message_ends_the_stream():
    """RFC 9113, 8.1: with NO_ERROR the client stops sending, and the reply counts."""
    connection = opened(begin(1))
    assert connection.end_stream(1, TRAILERS)
    end, stop = sent(connection)
    assert end == (Kind.HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS)
    assert stop == (Kind.RST_STREAM, 0, 1, struct.pack(">I", Code.NO_ERROR))


@pytest.mark.parametrize(
    "late",
    [
        frame(Kind.DATA, 0, 1, b"x"),
        frame(Kind.DATA, PADDED | END_STREAM, 1, b"\x02xyz"),
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS),
        update(1, 5),
        reset(1),
        frame(Kind.PRIORITY, 0, 1, bytes(5)),
    ],
)
def test_what_was_on_its_way_to_a_stream_that_ended_from_here_is_passed_over(late):
    connection = opened(begin(1))
    connection.reset(1, Code.CANCEL)
    sent(connection)
    assert connection.receive(late) == []
    assert sent(connection) == []


def test_data_that_is_under_way_when_its_stream_ends_is_passed_over():
    connection = opened(begin(1))
    whole = frame(Kind.DATA, END_STREAM, 1, b"0123456789")
    assert merged(connection.receive(whole[:12])) == [[1, b"012"]]
    connection.reset(1, Code.CANCEL)
    assert connection.receive(whole[12:] + begin(3)) == [Began(3, HEADERS)]


def test_a_stream_that_is_over_takes_no_output():
    connection = opened(begin(1))
    connection.receive(reset(1))
    connection.send_headers(1, b"\x88")
    assert connection.send(1, b"reply")
    assert connection.end_stream(1, TRAILERS)
    connection.reset(1, Code.CANCEL)
    assert connection.output == []


def test_a_reset_drops_what_waits():
    connection = opened(begin(1))
    connection.send(1, bytes(WINDOW + 1))
    sent(connection)
    assert connection.receive(reset(1)) == [Reset(1)]
    connection.receive(update(0, 2**20))
    assert sent(connection) == []


def test_streams_are_forgotten_some_day():
    connection = opened()
    for number in range(limits.MAX_FORGOTTEN + 1):
        connection.receive(begin(2 * number + 1))
        connection.reset(2 * number + 1, Code.CANCEL)
        sent(connection)
    assert connection.receive(frame(Kind.DATA, 0, 3, b"x")) == []
    with pytest.raises(ConnectionEndedError, match="stream that is over"):
        connection.receive(frame(Kind.DATA, 0, 1, b"x"))


def test_streams_beyond_the_limit_are_refused():
    connection = opened(max_streams=2)
    events = connection.receive(begin(1) + begin(3) + begin(5) + frame(Kind.DATA, 1, 5, b"x"))
    assert [event.stream_id for event in events] == [1, 3]
    refused = struct.pack(">I", Code.REFUSED_STREAM)
    assert sent(connection) == [(Kind.RST_STREAM, 0, 5, refused)]
    connection.receive(reset(1))
    assert connection.receive(begin(7)) == [Began(7, HEADERS)]


def test_a_connection_that_ends_refuses_streams_once_it_has_said_so_twice():
    """After the first word streams may be on their way; the second names the last one."""
    connection = opened(begin(1))
    connection.announce_end()
    assert sent(connection) == [(Kind.GOAWAY, 0, 0, struct.pack(">II", 2**31 - 1, 0))]
    assert connection.receive(begin(3)) == [Began(3, HEADERS)]
    connection.end()
    assert sent(connection) == [(Kind.GOAWAY, 0, 0, struct.pack(">II", 3, 0))]
    assert connection.receive(begin(5)) == []
    assert sent(connection) == [(Kind.RST_STREAM, 0, 5, struct.pack(">I", Code.REFUSED_STREAM))]
    assert merged(connection.receive(frame(Kind.DATA, END_STREAM, 3, b"x"))) == [
        [3, b"x"],
        Ended(3),
    ]


# Floods


def peak_bytes(action):
    """The most memory that an action takes at a time, beside what was there."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("one", "count"),
    [
        (frame(Kind.PING, 0, 0, bytes(8)), 4000),
        (settings(), 300),
        (settings(INITIAL_WINDOW_SIZE=1), 300),
    ],
    ids=["pings", "settings", "settings of windows"],
)
def test_answers_that_nobody_reads_end_the_connection(one, count):
    connection = opened()
    with pytest.raises(ConnectionEndedError, match="answers are not read") as error:
        connection.receive(count * one)
    assert error.value.code == Code.ENHANCE_YOUR_CALM
    read = opened()
    for _ in range(count):
        read.receive(one)
        sent(read)


def test_resets_from_here_count_as_answers():
    connection = opened(max_streams=10**6)
    for number in range(limits.MAX_ANSWERS_BYTES // len(reset(1)) + 1):
        assert connection.receive(begin(2 * number + 1))
        connection.reset(2 * number + 1, Code.PROTOCOL_ERROR)
    with pytest.raises(ConnectionEndedError, match="answers are not read"):
        connection.receive(frame(Kind.PRIORITY, 0, 1, bytes(5)))


def test_streams_that_are_begun_and_reset_without_end_gain_nothing():
    """Rapid reset: one piece of input begins as many calls as may be open, then is cut off."""
    connection = opened(max_streams=50)
    pairs = [begin(one) + reset(one) for one in range(1, 19_999, 2)]
    events = connection.receive(b"".join(pairs[:100]))
    assert sum(isinstance(event, Began) for event in events) == 50
    assert connection.open_streams == 0
    with pytest.raises(ConnectionEndedError, match="answers are not read"):
        connection.receive(b"".join(pairs[100:]))


@pytest.mark.parametrize("part", [b"", b"x", bytes(2**14)], ids=["empty", "tiny", "long"])
def test_headers_without_end_end_the_connection(part):
    connection = opened(begin(1, 0))
    flood = frame(Kind.CONTINUATION, 0, 1, part) * 4000

    def receive():
        with pytest.raises(ConnectionEndedError, match="headers are too long"):
            connection.receive(flood)

    assert peak_bytes(receive) < 2**20


def test_headers_that_stand_for_far_more_end_the_connection():
    """An HPACK bomb: one long header in the table, repeated by a byte each."""
    long = hpack.Encoder().encode([(b"x", bytes(4000))], huffman=False)
    connection = opened(frame(Kind.HEADERS, END_HEADERS, 1, long))

    def receive():
        with pytest.raises(ConnectionEndedError, match="headers are too long"):
            connection.receive(frame(Kind.HEADERS, END_HEADERS, 3, b"\xbe" * 16_000))

    assert peak_bytes(receive) < 2**20


@pytest.mark.parametrize(
    "one",
    [
        frame(Kind.DATA, 0, 1),
        frame(Kind.PRIORITY, 0, 1, bytes(5)),
        frame(0xFA, 0, 0),
        frame(Kind.DATA, 0, 3, b"x"),
    ],
    ids=["empty data", "priorities", "unknown", "data for nobody"],
)
def test_frames_without_sense_take_no_memory(one):
    connection = opened(begin(1), begin(3))
    connection.reset(3, Code.CANCEL)
    sent(connection)
    flood = one * 20_000
    assert peak_bytes(lambda: [connection.receive(flood) for _ in range(3)]) < 2**20 + len(flood)
    assert connection.output == []


def test_windows_that_grow_by_one_byte_take_a_bounded_time_and_memory():
    """With a thousand replies that wait, each step costs what it sends and no walk over all."""
    streams = range(1, 2001, 2)
    connection = opened(*(begin(one) for one in streams), max_streams=1000)
    for one in streams:
        connection.send(one, bytes(100))
    sent(connection)
    frames = []
    real = connection._send_output

    def counted(stream):
        frames.append(stream.id)
        return real(stream)

    connection._send_output = counted
    connection.receive(update(0, 1) * 500)
    assert len(frames) <= 500
    assert len(data_of_all(sent(connection))) == 500


def data_of_all(frames):
    return b"".join(load for kind, *_, load in frames if kind == Kind.DATA)


def test_the_part_of_a_frame_that_is_kept_is_short():
    """Data is passed on as it comes, padded or not; what is kept of others has a limit."""
    connection = opened(begin(1))
    connection.grant(1, 2**20)
    head = frame(Kind.DATA, PADDED, 1, b"\xff" + bytes(1000), length=limits.FRAME_BYTES)
    events = connection.receive(head)
    assert merged(events) == [[1, bytes(1000)]]
    assert connection._rest == b""
