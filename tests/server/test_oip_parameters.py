"""Parameters of requests by the Open Inference Protocol, as fields of `stn.v1`."""

import pytest

from stn_proto.oip.inference_pb2 import InferParameter
from stn_proto.v1 import warp_pb2
from stn_server.oip.models import models
from stn_server.oip.parameters import set_field


@pytest.mark.parametrize(
    ("parameter", "fill", "remainder"),
    [
        (InferParameter(int64_param=2**53), [2.0**53], []),
        (InferParameter(int64_param=1 - 2**63), [-(2.0**63)], [1]),
        (InferParameter(uint64_param=2**64 - 1), [2.0**64], [-1]),
        (InferParameter(double_param=2.0**60), [2.0**60], []),
        (
            InferParameter(string_param="9007199254740993, 0.5,-1e3"),
            [2.0**53, 0.5, -1e3],
            [1, 0, 0],
        ),
        (InferParameter(string_param="1" * 400), [float("inf")], []),
    ],
    ids=str,
)
def test_a_fill_keeps_all_digits(parameter, fill, remainder):
    """A label of 64 bits is said in full, as a number or in a text; by hand."""
    spec = warp_pb2.WarpSpec()
    set_field(spec, spec.DESCRIPTOR.fields_by_name["fill"], parameter)
    assert (list(spec.fill), list(spec.fill_remainder)) == (fill, remainder)


def test_what_is_left_of_a_fill_is_no_parameter():
    """As the parameter of the fill says all of it."""
    for model in models().values():
        assert "fill_remainder" not in model.options
