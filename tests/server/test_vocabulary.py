"""Words of the contract that an engine may not have."""

from enum import StrEnum

import pytest

from stn_proto.v1 import warp_pb2
from stn_server.errors import UnsupportedError
from stn_server.vocabulary import _read_enum, offered


class Plain(StrEnum):
    """The interpolations of a smaller engine."""

    NEAREST = "nearest"


def test_a_value_that_only_the_contract_knows_is_unsupported():
    """It is no mistake of the caller, and the message says what there is instead."""
    expected = "expected one of INTERPOLATION_NEAREST, got INTERPOLATION_BICUBIC, which this server"
    with pytest.raises(UnsupportedError, match=rf"^spec\.interpolation: {expected}") as caught:
        _read_enum(
            warp_pb2.Interpolation,
            warp_pb2.INTERPOLATION_BICUBIC,
            Plain,
            Plain.NEAREST,
            "spec.interpolation",
        )
    assert (caught.value.field, caught.value.supported) == (
        "spec.interpolation",
        ("INTERPOLATION_NEAREST",),
    )


def test_offered_is_what_both_know():
    """GetServerInfo lists no more than the engine computes."""
    assert offered(warp_pb2.Interpolation, Plain) == [warp_pb2.INTERPOLATION_NEAREST]
