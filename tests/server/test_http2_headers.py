"""The headers of gRPC's calls, and of its replies as grpcio and h2 read them."""

import asyncio
import base64
import socket

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_server.context import AbortedError, Context
from stn_server.event_loop import Backlog
from stn_server.handlers import Router
from stn_server.http2 import Http2Server, headers
from stn_server.http2.headers import MalformedError, NoCallError, read_request

PSEUDO = {b":method": b"POST", b":scheme": b"http", b":path": b"/a.B/C", b":authority": b"test"}
GRPC = [(b"te", b"trailers"), (b"content-type", b"application/grpc")]


def request(*more, **changes):
    """Headers of a call; None takes one away."""
    pseudo = {**PSEUDO, **{f":{name}".encode(): value for name, value in changes.items()}}
    return [(name, value) for name, value in pseudo.items() if value is not None] + GRPC + [*more]


def test_a_call_has_a_path_metadata_and_what_its_messages_need():
    found = read_request(
        request((b"x-word", b"value"), (b"grpc-encoding", b"gzip"), (b"grpc-timeout", b"5S"))
    )
    assert found.path == "/a.B/C"
    assert found.metadata == [("x-word", "value")]
    assert (found.encoding, found.timeout_s) == ("gzip", 5.0)


def test_a_call_may_say_nothing_of_time_and_compression():
    found = read_request(request())
    assert (found.encoding, found.timeout_s) == ("identity", None)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"10S", 10.0),
        (b"250m", 0.25),
        (b"7u", 7e-6),
        (b"8n", 8e-9),
        (b"0S", 0.0),
        (b"99999999H", 99_999_999 * 3600.0),
    ],
)
def test_timeouts_have_units(text, expected_s):
    assert read_request(request((b"grpc-timeout", text))).timeout_s == pytest.approx(expected_s)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b" 1S"])
def test_timeouts_of_another_form_are_malformed(text):
    with pytest.raises(MalformedError, match="expected a time as grpc-timeout"):
        read_request(request((b"grpc-timeout", text)))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=3), st.booleans())
def test_binary_values_are_base64_joined_or_not(values, is_padded):
    """As the protocol says: with padding or without, and several joined by commas."""
    coded = [base64.b64encode(value) for value in values]
    coded = coded if is_padded else [value.rstrip(b"=") for value in coded]
    entries = [(b"x-bin", value) for value in coded]
    expected = [("x-bin", value) for value in values]
    assert read_request(request(*entries)).metadata == expected
    assert read_request(request((b"x-bin", b",".join(coded)))).metadata == expected


@pytest.mark.parametrize("value", [b"A", b"%%%%", b"AA=A", b"\xff\xff"])
def test_binary_values_of_another_form_are_malformed(value):
    with pytest.raises(MalformedError, match="expected base64 in b'x-bin'"):
        read_request(request((b"x-bin", value)))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (request((b"X-Upper", b"v")), "unexpected b'X-Upper'"),
        (request((b"", b"v")), "unexpected b''"),
        (request((b"a b", b"v")), "unexpected b'a b'"),
        (request((b"a\xff", b"v")), "unexpected"),
        (request((b":status", b"200")), "unexpected b':status'"),
        (request((b":path", b"/again")), "unexpected b':path'"),
        ([GRPC[0], *request()], "unexpected b':method'"),
        ([(b"x-first", b""), *request()], "unexpected b':method'"),
        (request((b"connection", b"close")), "unexpected b'connection'"),
        (request((b"transfer-encoding", b"chunked")), "unexpected b'transfer-encoding'"),
        (request((b"te", b"gzip")), "expected te: trailers"),
        (request((b"x", b"a\r\nb")), "unexpected end of a line"),
        (request((b"x", b"a\0b")), "unexpected end of a line"),
        (request(path=None), "expected a method, a scheme and a path"),
        (request(path=b""), "expected a method, a scheme and a path"),
        (request(method=None), "expected a method, a scheme and a path"),
        (request(scheme=None), "expected a method, a scheme and a path"),
    ],
)
def test_headers_that_http2_forbids_are_malformed(found, text):
    with pytest.raises(MalformedError, match=text):
        read_request(found)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (request(method=b"GET"), 405),
        ([*PSEUDO.items()], 415),
        ([*PSEUDO.items(), (b"content-type", b"text/html")], 415),
        ([*PSEUDO.items(), (b"content-type", b"application/grpc-web+proto")], 415),
        (request((b"x", bytes(1) * 2**14)), 431),
        (request(*(512 * [(b"x", b"v")])), 431),
    ],
)
def test_what_is_no_call_has_a_status_of_http(found, status):
    with pytest.raises(NoCallError, match=str(status)) as error:
        read_request(found)
    assert error.value.status == status
    [decoded] = hpack.Decoder().decode(headers.refusal(status))
    assert decoded == (":status", str(status))


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto"])
def test_every_content_of_grpc_is_taken(kind):
    found = [*PSEUDO.items(), (b"content-type", kind)]
    assert read_request(found).path == "/a.B/C"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=70_000))))
def test_blocks_are_read_by_every_decoder(entries):
    """Lengths from 127 on take several bytes."""
    decoder = hpack.Decoder(max_header_list_size=2**30)
    assert decoder.decode(headers.block(entries), raw=True) == entries
    assert len(decoder.header_table.dynamic_entries) == 0


def test_the_end_of_a_call_that_went_well_is_short():
    found = hpack.Decoder().decode(headers.trailers(grpc.StatusCode.OK))
    assert found == [("grpc-status", "0")]


def test_the_head_of_a_reply_names_what_callers_may_send():
    assert hpack.Decoder().decode(headers.HEAD) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity,gzip,deflate"),
    ]


MESSAGES = [
    "",
    "plain",
    "100 % of %41 and 50%",
    "two\nlines\tand \x00 \x7f",
    "é ü 空間 🙂",
    "m" * 1000,
    '~!@#$^&*()_+`-={}|[]\\:";<>?,./',
]


def test_statuses_arrive_at_grpcio_as_they_were_meant():
    """Its own decoder reads messages of any characters, and metadata of any bytes."""
    metadata = (("x-word", "w" * 200), ("x-some-bin", bytes(range(256))), ("x-none-bin", b""))

    async def scenario():
        async def fail(context: Context):
            number = int(dict(context.metadata)["number"])
            await context.abort(grpc.StatusCode.ABORTED, MESSAGES[number], metadata)

        server = Http2Server(Router([{"/a.B/C": fail}], lambda _error, _path: fail), Backlog())
        port = server.listen(socket.AF_INET, ("127.0.0.1", 0), None)
        server.start()
        found = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/a.B/C")
            for number in range(len(MESSAGES)):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call(b"", metadata=(("number", str(number)),))
                found.append(error.value)
        await server.stop()
        return found

    found = asyncio.run(scenario())
    assert [error.details() for error in found] == MESSAGES
    assert {error.code() for error in found} == {grpc.StatusCode.ABORTED}
    assert all(tuple(error.trailing_metadata()) == metadata for error in found)


def test_a_message_that_is_no_text_is_sent_all_the_same():
    found = hpack.Decoder().decode(headers.trailers(grpc.StatusCode.ABORTED, "a\ud800b"))
    assert found == [("grpc-status", "10"), ("grpc-message", "a?b")]


def test_who_aborts_leaves_the_method():
    async def scenario():
        context = Context((), "unix:")
        with pytest.raises(AbortedError):
            await context.abort(grpc.StatusCode.ABORTED, "why")
        return context.ending

    assert asyncio.run(scenario()).message == "why"
