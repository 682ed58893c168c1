"""Cutting messages into envelope and payloads, with protobuf's own parser as the oracle."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from stn_proto import (
    Frame,
    FrameTooLargeError,
    WireFormatError,
    gaps,
    join,
    join_many,
    nested,
    split,
    split_many,
)
from stn_proto.framing import ALIGNMENT_FIELD, PAYLOADS_FIELD
from stn_proto.limits import (
    MAX_FIELDS,
    PAYLOAD_ALIGNMENT_BYTES,
)
from stn_proto.v1.many_pb2 import ComputeManyRequest, NestedCall
from stn_proto.v1.tensor_pb2 import Tensor
from stn_proto.v1.warp_pb2 import PADDING_FILL, WarpRequest, WarpSpec

payload_lists = st.lists(st.binary(max_size=300), max_size=16)
varints = st.integers(0, 2**64 - 1)


@st.composite
def requests(draw):
    """Warp requests without payloads."""
    sizes = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
    return WarpRequest(
        feature_map=draw(st.none() | st.builds(Tensor, shape=sizes, payload=st.integers(0, 9))),
        output_size=draw(sizes),
        spec=draw(st.none() | st.builds(WarpSpec, fill=st.lists(st.floats(allow_nan=False)))),
    )


def varint(value):
    """A varint, by the definition: groups of seven bits, lowest first."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def delimited(number, content):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


@st.composite
def any_fields(draw):
    """A well-formed field of any number and wire type, known to the contract or not."""
    number = draw(st.integers(1, 20))
    values = {
        0: varints.map(varint),
        1: st.binary(min_size=8, max_size=8),
        2: st.binary(max_size=40).map(lambda content: varint(len(content)) + content),
        5: st.binary(min_size=4, max_size=4),
    }
    wire_type = draw(st.sampled_from(sorted(values)))
    return varint(number << 3 | wire_type) + draw(values[wire_type])


@st.composite
def mutated_messages(draw):
    """Valid messages with a stretch of bytes replaced by another."""
    message = join(draw(requests()).SerializeToString(), draw(payload_lists))
    start = draw(st.integers(0, len(message)))
    end = draw(st.integers(start, min(len(message), start + 4)))
    return message[:start] + draw(st.binary(max_size=4)) + message[end:]


def without_framing(request):
    """The serialized rest of a request, without payloads and alignment."""
    rest = WarpRequest.FromString(request.SerializeToString())
    rest.ClearField("payloads")
    rest.ClearField("alignment")
    return rest.SerializeToString(deterministic=True)


def assert_splits_as_protobuf_parses(message):
    """Holds `split` against protobuf's own parse of the same bytes."""
    oracle = WarpRequest.FromString(message)
    envelope, payloads = split(message)
    parsed = WarpRequest.FromString(envelope)
    assert [bytes(view) for view in payloads] == list(oracle.payloads)
    assert not parsed.payloads
    assert not parsed.alignment
    assert parsed.SerializeToString(deterministic=True) == without_framing(oracle)


@given(requests(), payload_lists)
def test_framing_split_undoes_join(request_, payloads):
    """Envelope and payloads come back as they were, and so do their order and number."""
    envelope = request_.SerializeToString()
    received, views = split(join(envelope, payloads))
    assert (received, [bytes(view) for view in views]) == (envelope, payloads)


@given(requests(), payload_lists)
def test_framing_protobuf_reads_what_join_writes(request_, payloads):
    """To protobuf, a joined message is the request with its payloads; alignment aside."""
    parsed = WarpRequest.FromString(join(request_.SerializeToString(), payloads))
    assert list(parsed.payloads) == payloads
    parsed.ClearField("payloads")
    parsed.ClearField("alignment")
    assert parsed == request_


@given(requests(), payload_lists, st.binary(max_size=20), st.randoms(use_true_random=False))
def test_framing_split_reads_what_protobuf_writes_in_any_order(
    request_, payloads, alignment, random
):
    """Payloads may stand anywhere between the other fields; their own order counts."""
    fields = [
        WarpRequest(feature_map=request_.feature_map).SerializeToString(),
        WarpRequest(output_size=request_.output_size).SerializeToString(),
        WarpRequest(spec=request_.spec).SerializeToString(),
        WarpRequest(alignment=alignment).SerializeToString(),
        *(WarpRequest(payloads=[payload]).SerializeToString() for payload in payloads),
    ]
    random.shuffle(fields)
    assert_splits_as_protobuf_parses(b"".join(fields))


def test_framing_writes_these_bytes():
    """By hand: one size, then 14 bytes of alignment and its header, then the payload at 32."""
    envelope = WarpRequest(output_size=[5]).SerializeToString()
    assert envelope == bytes.fromhex("1a0105")
    # 3 bytes so far and 2 of the payload's header; 2 of the alignment's header: 9 more to 16
    assert join(envelope, [b"ab"]) == bytes.fromhex("1a0105 7209") + bytes(9) + b"\x7a\x02ab"


@given(st.binary(max_size=40), payload_lists)
def test_framing_payloads_start_at_multiples_of_the_alignment(content, payloads):
    """Every payload, empty ones included, starts at a multiple of 16 bytes."""
    message = join(delimited(20, content), payloads)
    base = np.frombuffer(message, np.uint8).ctypes.data
    starts = [np.frombuffer(view, np.uint8).ctypes.data for view in split(message)[1] if view]
    assert len(starts) == sum(map(bool, payloads))
    assert [(start - base) % PAYLOAD_ALIGNMENT_BYTES for start in starts] == [0] * len(starts)


@given(payload_lists)
def test_framing_alignment_is_short_and_only_where_needed(payloads):
    """Alignment costs less than two multiples per payload, and nothing where it is not needed."""
    plain = b"".join(delimited(PAYLOADS_FIELD, payload) for payload in payloads)
    joined = join(b"", payloads)
    assert 0 <= len(joined) - len(plain) < 2 * PAYLOAD_ALIGNMENT_BYTES * len(payloads) + 1
    aligned_already = delimited(20, bytes(11))  # 2 + 1 + 11 bytes: the next payload is at 16
    assert len(join(aligned_already, [b"x"])) == 17


def test_framing_gaps_do_not_ask_for_payloads():
    """Who knows their sizes can prepare all that stands around them."""
    payloads = [b"abc", bytes(200), b""]
    before = b"".join(
        gap + payload for gap, payload in zip(gaps(5, map(len, payloads)), payloads, strict=True)
    )
    envelope = b"\x0a\x03abc"
    assert envelope + before == join(envelope, payloads)


def test_framing_payloads_are_views_of_the_message():
    """A payload is read-only memory of the message it came in."""
    message = join(b"", [bytes(1000)])
    (payload,) = split(message)[1]
    assert payload.readonly
    assert np.shares_memory(np.frombuffer(payload, np.uint8), np.frombuffer(message, np.uint8))


def test_framing_join_takes_any_contiguous_bytes():
    """Bytes and memory views are joined alike."""
    assert join(b"", [b"ab"]) == join(b"", [memoryview(b"ab")])


@pytest.mark.parametrize("size", [0, 127, 128, 16383, 16384, 2**21])
def test_framing_lengths_of_every_varint_size(size):
    """Payloads at the borders of one, two, three and four length bytes come back whole."""
    envelope, (payload,) = split(join(b"", [bytes(size)]))
    assert (envelope, len(payload)) == (b"", size)


def test_framing_joins_the_parts_of_the_envelope_in_order():
    """Fields around payloads stay in order, so that the last value of a field still wins."""
    first, last = (WarpRequest(spec=WarpSpec(padding=n)) for n in (PADDING_FILL, 1))
    payload = delimited(PAYLOADS_FIELD, b"x")
    envelope, _ = split(first.SerializeToString() + payload + last.SerializeToString())
    assert envelope == first.SerializeToString() + last.SerializeToString()


@pytest.mark.parametrize("number", [PAYLOADS_FIELD, ALIGNMENT_FIELD])
@pytest.mark.parametrize(
    "field", [(0, b"\x01"), (1, bytes(8)), (5, bytes(4))], ids=["varint", "fixed64", "fixed32"]
)
def test_framing_fields_of_another_wire_type_are_no_payloads(number, field):
    """Field 15 as a number is unknown to protobuf and stays in the envelope, as any unknown."""
    wire_type, value = field
    message = varint(number << 3 | wire_type) + value
    assert split(message) == (message, [])
    assert_splits_as_protobuf_parses(message)


MALFORMED = {
    "tag without end": (b"\x80", "an unfinished varint at byte 0"),
    "tag of 11 bytes": (b"\x80" * 10 + b"\x01", "an unfinished varint at byte 0"),
    "number without end": (b"\x18\xff", "an unfinished varint at byte 1"),
    "length without end": (b"\x7a\x80", "an unfinished varint at byte 1"),
    "no length": (b"\x7a", "an unfinished varint at byte 1"),
    "field number 0": (b"\x02\x00", "field number 0 at byte 0"),
    "payload cut short": (b"\x7a\x05abcd", "a field of 5 bytes at byte 0 of 6"),
    "huge length": (b"\x7a" + varint(2**64 - 1), "a field of 18446744073709551615 bytes"),
    "fixed64 cut short": (b"\x09" + bytes(7), "a field of 8 bytes at byte 0 of 8"),
    "fixed32 cut short": (b"\x0d" + bytes(3), "a field of 4 bytes at byte 0 of 4"),
    "group": (b"\x0b\x0c", "wire type 3 at byte 1"),
    "wire type 7": (b"\x0f", "wire type 7 at byte 1"),
}


@pytest.mark.parametrize(("message", "actual"), MALFORMED.values(), ids=MALFORMED)
def test_framing_refuses_malformed_messages(message, actual):
    """The error says what was found and where."""
    match = f"message: expected serialized protobuf, got {actual}"
    with pytest.raises(WireFormatError, match=match) as caught:
        split(message)
    assert (caught.value.field, caught.value.expected) == ("message", "serialized protobuf")


def test_framing_limits_the_number_of_fields():
    """MAX_FIELDS fields pass, one more does not, however many follow."""
    field = b"\x18\x01"
    assert split(field * MAX_FIELDS) == (field * MAX_FIELDS, [])
    match = "message: expected at most 1024 fields beside payloads, got more"
    with pytest.raises(WireFormatError, match=match):
        split(field * (MAX_FIELDS + 1))
    with pytest.raises(WireFormatError, match=match):
        split(field * 2**22)
    with pytest.raises(WireFormatError, match=match):
        split(delimited(14, b"") * 2**22)


def test_framing_payloads_and_their_alignment_are_no_such_fields():
    """A reply to many calls in one message has as many payloads as it needs."""
    payloads = [b"x"] * (2 * MAX_FIELDS)
    message = join(b"\x18\x01" * MAX_FIELDS, payloads)
    assert split(message) == (b"\x18\x01" * MAX_FIELDS, payloads)
    with pytest.raises(WireFormatError, match="at most 1024 fields beside payloads, got more"):
        split(b"\x18\x01" * (MAX_FIELDS + 1) + join(b"", [b"x"]))


def test_framing_limits_the_number_of_payloads():
    """As many as the receiver says pass, one more does not, however many follow."""
    frame = Frame.of(join(b"", [b"x"] * 5), max_payloads=5)
    assert len(frame.payloads) == 5
    match = r"^payloads: expected at most 5 payloads, got more\. Send fewer"
    for count in (6, 2**20):
        with pytest.raises(FrameTooLargeError, match=match) as caught:
            Frame.of(delimited(PAYLOADS_FIELD, b"x") * count, max_payloads=5)
        assert caught.value.limit == 5


def test_framing_limits_the_envelope():
    """A message without its payloads has as many bytes as the receiver says; these do not count."""
    largest = delimited(20, bytes(997))  # 2 bytes of tag, 2 of length
    message = join(largest, [bytes(5000)])
    assert Frame.of(message, max_envelope_bytes=1001).envelope == largest
    match = "at most 1000 bytes without payloads, got 1001 bytes. Put tensor bytes into"
    with pytest.raises(FrameTooLargeError, match=match) as caught:
        Frame.of(message, max_envelope_bytes=1000)
    assert caught.value.limit == 1000


def test_framing_has_no_limits_of_its_own_for_what_a_receiver_trusts():
    """Nothing but the number of fields is limited where no limit is given."""
    largest = delimited(20, bytes(2**20))
    assert split(join(largest, [b"x"] * 100)) == (largest, [b"x"] * 100)


def assert_splits_or_refuses(message):
    """Splits as protobuf parses, or raises WireFormatError; protobuf may refuse more."""
    try:
        split(message)
    except WireFormatError:
        return
    try:
        WarpRequest.FromString(message)
    except DecodeError:
        return
    assert_splits_as_protobuf_parses(message)


@given(st.binary(max_size=200))
def test_framing_of_arbitrary_bytes_splits_or_refuses(message):
    """No bytes raise anything but WireFormatError."""
    assert_splits_or_refuses(message)


@given(mutated_messages())
def test_framing_of_mutated_messages_splits_or_refuses(message):
    """Whatever a broken sender writes, nothing is read that protobuf would read differently."""
    assert_splits_or_refuses(message)


@given(st.lists(any_fields(), max_size=12).map(b"".join))
@example(b"\x78\x05")
def test_framing_of_unknown_fields_agrees_with_protobuf(message):
    """Fields of any number and wire type are taken as protobuf takes them."""
    assert_splits_or_refuses(message)


@given(
    requests(), payload_lists, st.randoms(use_true_random=False), st.binary(min_size=1, max_size=1)
)
def test_framing_a_frame_fits_what_differs_in_payloads_alone(request_, payloads, random, byte):
    """Then its payloads are where the frame says; any other difference is seen."""
    message = join(request_.SerializeToString(), payloads)
    others = [random.randbytes(len(payload)) for payload in payloads]
    other = join(request_.SerializeToString(), others)
    frame = Frame.of(message)
    assert frame.fits(other)
    assert [bytes(view) for view in frame.cut(other)] == others
    assert not frame.fits(other + byte)
    inside = {place for span in frame.payloads for place in range(span.start, span.stop)}
    for place in set(range(len(message))) - inside:
        changed = bytearray(other)
        changed[place] ^= 1 + byte[0] % 255
        assert not frame.fits(bytes(changed))


calls_with_payloads = st.lists(st.tuples(requests(), payload_lists), max_size=5)


def many(calls):
    """The message of these calls, written by this package."""
    pieces = [nested(2, request.SerializeToString(), len(own)) for request, own in calls]
    return join_many(pieces, [payload for _, own in calls for payload in own])


@given(calls_with_payloads)
def test_compute_many_is_what_protobuf_reads_and_writes(calls):
    """Calls and payloads in order, aligned; cut apart again, also as protobuf writes them."""
    message = many(calls)
    read = ComputeManyRequest.FromString(message)
    assert [call.warp for call in read.calls] == [request for request, _ in calls]
    assert [call.payload_count for call in read.calls] == [len(own) for _, own in calls]
    payloads = [payload for _, own in calls for payload in own]
    assert list(read.payloads) == payloads
    for written in (message, read.SerializeToString()):
        found = split_many(written)
        assert [NestedCall.FromString(one) for one in found.nested] == list(read.calls)
        assert [bytes(payload) for payload in found.payloads] == payloads
        assert found.rest == b""
    starts = [message.index(payload) for payload in payloads if len(payload) > 200]
    assert len(set(payloads)) < len(payloads) or all(start % 16 == 0 for start in starts)


@given(mutated_messages() | st.binary(max_size=60))
def test_compute_many_of_any_bytes_is_cut_as_protobuf_parses_them_or_refused(message):
    """No byte is read beyond the message, and nothing is taken for something else."""
    try:
        found = split_many(message)
    except WireFormatError:
        return
    pieces = [delimited(1, one) for one in found.nested]
    pieces += [delimited(15, bytes(one)) for one in found.payloads]
    again = split_many(found.rest + b"".join(pieces))
    assert (again.nested, again.rest) == (found.nested, found.rest)


def test_compute_many_has_limits():
    """As many calls and payloads as allowed, and a bounded number of other fields."""
    message = many([(WarpRequest(), [b"a", b"b"])] * 3)
    assert len(split_many(message, 3, 6).nested) == 3
    with pytest.raises(FrameTooLargeError, match="calls: expected at most 2 calls, got more"):
        split_many(message, 2, 6)
    with pytest.raises(FrameTooLargeError, match="payloads: expected at most 5 payloads, got more"):
        split_many(message, 3, 5)
    others = delimited(7, b"") * (MAX_FIELDS + 1)
    with pytest.raises(WireFormatError, match="fields beside calls and payloads, got more"):
        split_many(others)
    assert split_many(delimited(7, b"x")).rest == delimited(7, b"x")
