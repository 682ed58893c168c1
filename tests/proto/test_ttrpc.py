"""The frames of ttrpc, byte for byte as the protocol describes them."""

import random
import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from stn_proto import ttrpc
from stn_proto.ttrpc import (
    MAX_DATA_BYTES,
    ClientConnection,
    Frame,
    FrameError,
    OversizedFrame,
    ServerConnection,
)
from stn_proto.ttrpc.frames import MAX_STREAM_ID

REQUEST, RESPONSE, DATA = 1, 2, 3


def frame(stream_id, kind, data=b"", *, size=None, flags=0):
    """A frame by the description: length, stream id, type, flags, data."""
    length = len(data) if size is None else size
    return struct.pack(">I", length) + struct.pack(">I", stream_id) + bytes([kind, flags]) + data


def pieces(data, seed):
    """The same bytes, cut at random places."""
    draw = random.Random(seed)
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(8)))
    bounds = [0, *cuts, len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def client_after(requests):
    """A client's end that has sent so many requests."""
    connection = ClientConnection()
    for _ in range(requests):
        connection.request(b"")
    return connection


def test_a_request_is_these_bytes():
    """Written out by hand from the description; ids are odd and rise."""
    client = ClientConnection()
    assert client.request(b"abc") == (1, bytes.fromhex("00000003 00000001 01 00 616263"))
    assert client.request(b"") == (3, bytes.fromhex("00000000 00000003 01 00"))


def test_a_response_is_these_bytes():
    """The same stream id, type 2."""
    expected = bytes.fromhex("00000002 0000012d 02 00 6f6b")
    assert ServerConnection.respond(301, b"ok") == expected


def test_messages_are_these_bytes():
    """Tag, length and value of every field, by hand."""
    request = ttrpc.Request(
        service="s.S",
        method="M",
        payload=b"\x01\x02",
        timeout_nano=300,
        metadata=[ttrpc.KeyValue(key="k", value="v")],
    )
    fields = "0a03 732e53  1201 4d  1a02 0102  20ac02  2a06 0a016b 120176"
    assert request.SerializeToString() == bytes.fromhex(fields)
    response = ttrpc.Response(status=ttrpc.Status(code=3, message="no"), payload=b"\x07")
    assert response.SerializeToString() == bytes.fromhex("0a06 0803 12026e6f  1201 07")


def test_a_status_is_that_of_google():
    """Its bytes are read as google.rpc.Status, details included."""
    theirs = status_pb2.Status(code=8, message="full")
    theirs.details.add().Pack(status_pb2.Status(message="detail"))
    ours = ttrpc.Status.FromString(theirs.SerializeToString())
    assert (ours.code, ours.message, len(ours.details)) == (8, "full", 1)
    assert ours.SerializeToString() == theirs.SerializeToString()
    assert set(ours.DESCRIPTOR.fields_by_name) == set(theirs.DESCRIPTOR.fields_by_name)


@given(st.lists(st.binary(max_size=64), max_size=8), st.integers())
def test_frames_come_out_as_they_went_in_however_they_are_cut(contents, seed):
    """In order, and nothing is left over; a client reads what a server writes and the reverse."""
    client, server = ClientConnection(), ServerConnection()
    sent = [client.request(data) for data in contents]
    received = [
        one for piece in pieces(b"".join(f for _, f in sent), seed) for one in server.receive(piece)
    ]
    expected = [Frame(2 * n + 1, data) for n, data in enumerate(contents)]
    assert received == expected
    answers = b"".join(server.respond(one.stream_id, one.data) for one in reversed(received))
    returned = [one for piece in pieces(answers, seed) for one in client.receive(piece)]
    assert returned == expected[::-1]
    assert not server.is_amid_frame


def test_the_longest_frame_is_taken():
    """4 MiB; its first byte is 0."""
    data = bytes(MAX_DATA_BYTES)
    _, sent = ClientConnection().request(data)
    assert sent[:4] == bytes.fromhex("00400000")
    assert ServerConnection().receive(sent) == [Frame(1, data)]


@pytest.mark.parametrize("size", [MAX_DATA_BYTES + 1, 2**32 - 1])
def test_longer_data_is_told_at_once_and_skipped(size):
    """The server learns of it by the header alone, and keeps none of what follows."""
    server = ServerConnection()
    assert server.receive(frame(1, REQUEST, size=size)) == [OversizedFrame(1, size)]
    for _ in range(3):
        assert server.receive(bytes(2**20)) == []
        assert len(server._reader._buffer) == 0
    assert server.is_amid_frame


def test_a_call_after_longer_data_is_read():
    """The connection goes on behind it."""
    server = ServerConnection()
    sent = frame(1, REQUEST, bytes(MAX_DATA_BYTES + 1)) + frame(3, REQUEST, b"next")
    received = [
        one
        for start in range(0, len(sent), 2**16)
        for one in server.receive(sent[start : start + 2**16])
    ]
    assert received == [OversizedFrame(1, MAX_DATA_BYTES + 1), Frame(3, b"next")]
    assert not server.is_amid_frame


def test_half_a_frame_is_noticed():
    """At every byte of it, whoever owns the clock can tell that more has to come."""
    server, whole = ServerConnection(), frame(1, REQUEST, b"abc")
    for came, byte in enumerate(whole[:-1], 1):
        assert server.receive(bytes([byte])) == []
        assert server.is_amid_frame
        assert server.awaited_bytes == (3 if came >= 10 else 0)  # by the header
    assert server.receive(whole[-1:]) == [Frame(1, b"abc")]
    assert not server.is_amid_frame
    assert server.awaited_bytes == 0


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (frame(1, RESPONSE), r"^frame.type: expected 1, a REQUEST, got 2\.$"),
        (frame(1, DATA), r"^frame.type: expected 1, a REQUEST, got 3\.$"),
        (frame(1, 0), r"^frame.type: expected 1, a REQUEST, got 0\.$"),
        (frame(1, REQUEST, flags=1), r"^frame.flags: expected 0, as of unary calls, got 1\.$"),
        (
            frame(0, REQUEST),
            r"^frame.stream_id: expected an odd number, as of every call, got 0\.$",
        ),
        (
            frame(2, REQUEST),
            r"^frame.stream_id: expected an odd number, as of every call, got 2\.$",
        ),
        (frame(3, REQUEST) * 2, r"^frame.stream_id: expected more than 3, got 3\.$"),
        (
            frame(5, REQUEST) + frame(3, REQUEST),
            r"^frame.stream_id: expected more than 5, got 3\.$",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", r"^frame.type: expected 1, a REQUEST, got 84\.$"),
        (b"GET / HTTP/1.1\r\n\r\n", r"^frame.type: expected 1, a REQUEST, got 84\.$"),
    ],
)
def test_a_server_refuses_what_breaks_the_protocol(sent, complaint):
    """Wrong type, flags or stream id, and other protocols."""
    with pytest.raises(FrameError, match=complaint):
        ServerConnection().receive(sent)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (frame(1, REQUEST), r"^frame.type: expected 2, a RESPONSE, got 1\.$"),
        (frame(1, RESPONSE, flags=4), r"^frame.flags: expected 0, as of unary calls, got 4\.$"),
        (frame(2, RESPONSE), r"^frame.stream_id: expected that of a request, got 2\.$"),
        (frame(5, RESPONSE), r"^frame.stream_id: expected that of a request, got 5\.$"),
        (
            frame(1, RESPONSE, size=MAX_DATA_BYTES + 1),
            rf"^frame.length: expected at most {MAX_DATA_BYTES} bytes, got {MAX_DATA_BYTES + 1}\.$",
        ),
    ],
)
def test_a_client_refuses_what_breaks_the_protocol(sent, complaint):
    """Also answers to calls that it never made."""
    with pytest.raises(FrameError, match=complaint):
        client_after(requests=2).receive(sent)


def test_data_that_no_frame_can_take_is_refused_before_it_is_sent():
    """By either end; the stream id stays free."""
    client = ClientConnection()
    for send in (client.request, lambda data: ServerConnection.respond(1, data)):
        with pytest.raises(FrameError, match=r"^frame.length: expected at most 4194304 bytes, got"):
            send(bytes(MAX_DATA_BYTES + 1))
    assert client.request(b"")[0] == 1


def test_stream_ids_end():
    """The last one is the largest odd number of 32 bits."""
    client = ClientConnection()
    client._next_id = MAX_STREAM_ID
    assert client.request(b"")[0] == 2**32 - 1
    assert client.is_used_up
    with pytest.raises(FrameError, match=r"^frame.stream_id: expected at most 4294967295, got"):
        client.request(b"")


@given(st.binary(max_size=200), st.integers())
def test_garbage_is_refused_or_waited_for(garbage, seed):
    """Any bytes end in frames, in FrameError or in waiting; nothing else."""
    for connection in (ServerConnection(), client_after(requests=3)):
        with suppress(FrameError):
            for piece in pieces(garbage, seed):
                connection.receive(piece)


FOREIGN_REQUEST = bytes.fromhex(
    "00000046 00000001 01 00"
    "0a19 73746e2e76312e5370617469616c5472616e73666f726d6572"
    "120d 476574536572766572496e666f"
    "20 cdf596d012"
    "2a14 0a0c 782d726571756573742d6964 1204 676f2d31"
)
"""As sent by the client of containerd/ttrpc 1.1.1 (Go), with 5 s to go, less some microseconds,
and one entry of metadata."""


def test_a_request_of_another_implementation_is_read_and_written():
    """What its bytes say is what it was asked for; ours of the same call are the same."""
    (received,) = ServerConnection().receive(FOREIGN_REQUEST)
    request = ttrpc.Request.FromString(received.data)
    assert (request.service, request.method) == ("stn.v1.SpatialTransformer", "GetServerInfo")
    assert (request.payload, request.timeout_nano) == (b"", 4_999_985_869)
    assert [(one.key, one.value) for one in request.metadata] == [("x-request-id", "go-1")]
    assert ClientConnection().request(request.SerializeToString()) == (1, FOREIGN_REQUEST)
