"""The wire contract only grows: clients in the field rely on every published line of it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from stn_proto.framing import ALIGNMENT_FIELD, PAYLOADS_FIELD
from stn_proto.v1 import service_pb2, warp_pb2
from support.contract import GOLDEN, contract

SERVICE = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"]
TENSOR_METHODS = [method for method in SERVICE.methods if method.name != "GetServerInfo"]
ENDS = [end for method in TENSOR_METHODS for end in (method.input_type, method.output_type)]


def test_contract_keeps_every_published_line():
    """No published field, value or method has changed or gone."""
    published = GOLDEN.read_text().splitlines()
    assert len(published) > 100
    assert set(published) - set(contract()) == set()


def test_contract_lines_are_published():
    """Whatever has been added stands in the golden file, which tests/golden/README.md renews."""
    assert set(contract()) - set(GOLDEN.read_text().splitlines()) == set()


@pytest.mark.parametrize("message", ENDS, ids=lambda message: message.name)
def test_contract_requests_and_replies_end_with_the_framing_fields(message):
    """Field 15 is repeated bytes `payloads`, field 14 bytes `alignment`, wherever tensors go."""
    payloads = message.fields_by_number[PAYLOADS_FIELD]
    alignment = message.fields_by_number[ALIGNMENT_FIELD]
    assert (payloads.name, payloads.type, payloads.is_repeated) == (
        "payloads",
        FieldDescriptor.TYPE_BYTES,
        True,
    )
    assert (alignment.name, alignment.type, alignment.is_repeated) == (
        "alignment",
        FieldDescriptor.TYPE_BYTES,
        False,
    )


def test_contract_enumerations_start_with_unspecified():
    """A field that nobody set says so: value 0 of every enumeration is UNSPECIFIED."""
    enums = warp_pb2.DESCRIPTOR.enum_types_by_name.values()
    assert enums
    assert all(enum.values_by_number[0].name.endswith("_UNSPECIFIED") for enum in enums)
