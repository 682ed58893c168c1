"""Constants of padding "fill" to and from a message: labels of 64 bits lose nothing."""

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stn_proto import WireFormatError, join_fill, split_fill
from stn_proto.v1.warp_pb2 import WarpSpec

LABELS = st.integers(-(2**63), 2**64 - 1)
CONSTANTS = st.lists(st.floats() | LABELS, max_size=8)


def bits(constant):
    """The bits that a map gets: those of a label, or of a float of 64 bits."""
    if isinstance(constant, int):
        return (constant % 2**64).to_bytes(8, "little")
    return struct.pack("<d", constant)


@given(CONSTANTS)
@example([-0.0, math.nan, math.inf, 2**53 + 1, 2**64 - 1, 1 - 2**63])
def test_what_was_split_is_joined_to_the_last_bit(constants):
    """Through a serialized message; an integer that is a double may come back as that."""
    fill, remainder = split_fill(constants)
    sent = WarpSpec(fill=fill, fill_remainder=remainder).SerializeToString()
    spec = WarpSpec.FromString(sent)
    joined = join_fill(spec.fill, spec.fill_remainder)
    assert len(joined) == len(constants)
    for there, given_one in zip(joined, constants, strict=True):
        as_given = int(there) if isinstance(given_one, int) else there
        assert bits(as_given) == bits(given_one)


@pytest.mark.parametrize(
    ("constants", "fill", "remainder"),
    [
        ([], [], []),
        ([0.5, 3], [0.5, 3.0], []),
        ([2**53], [2.0**53], []),
        ([0.5, 2**53 + 1], [0.5, 2.0**53], [0, 1]),
        ([2**64 - 1, 1 - 2**63], [2.0**64, -(2.0**63)], [-1, 1]),
        ([np.uint64(2**63 + 1)], [2.0**63], [1]),
        ([float(2**53 + 2)], [2.0**53 + 2], []),
        ([10**300 + 1], [1e300], []),
    ],
    ids=str,
)
def test_only_labels_that_no_double_is_leave_something(constants, fill, remainder):
    """By hand."""
    assert split_fill(constants) == (fill, remainder)


def test_a_number_beyond_all_doubles_is_an_error():
    with pytest.raises(OverflowError, match="too large"):
        split_fill([10**400])


@pytest.mark.parametrize(
    ("fill", "remainder"),
    [([1.0], [1, 2]), ([], [1]), ([0.5], [1]), ([math.inf], [1]), ([math.nan, 2.0], [1, 0])],
    ids=str,
)
def test_a_remainder_of_no_integer_is_an_error(fill, remainder):
    expected = (
        f"^spec.fill_remainder: expected as many as spec.fill has integers, got {len(remainder)}. "
        "Send none for others.$"
    )
    with pytest.raises(WireFormatError, match=expected):
        join_fill(fill, remainder, "spec.fill")
