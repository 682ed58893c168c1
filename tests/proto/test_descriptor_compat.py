"""The wire contract only grows: clients in the field rely on every published line of it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from stn_proto.framing import ALIGNMENT_FIELD, PAYLOADS_FIELD
from stn_proto.v1 import many_pb2, service_pb2
from support.contract import lines, present, published

SERVICE = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"]
TENSOR_METHODS = [method for method in SERVICE.methods if method.name != "GetServerInfo"]
TRANSFERS = {"Upload", "Download", "Release"}
"""Methods that compute nothing; of their messages these have tensors."""
ENDS = [
    end
    for method in TENSOR_METHODS
    for end in (method.input_type, method.output_type)
    if method.name not in TRANSFERS or end.name in {"UploadRequest", "DownloadReply"}
]


def test_contract_keeps_every_published_line():
    """No published field, value or method has changed or gone."""
    kept = lines(published())
    assert len(kept) > 100
    assert set(kept) - set(lines(present())) == set()


def test_contract_lines_are_published():
    """Whatever has been added stands in the golden file, which tests/golden/README.md renews."""
    assert set(lines(present())) - set(lines(published())) == set()


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


COMMON_FIELDS = {
    "keep_for_gradients": 10,
    "placement": 11,
    "kept": 12,
    "timing": 13,
    "alignment": 14,
    "payloads": 15,
}
"""Numbers that mean the same in every request and reply with tensors, planned ones included."""


@pytest.mark.parametrize("message", ENDS, ids=lambda message: message.name)
def test_contract_common_numbers_mean_the_same_everywhere(message):
    """A number of the plan has its name, the name has its number, and no other is above 9."""
    for field in message.fields:
        if field.number > 9 or field.name in COMMON_FIELDS:
            assert COMMON_FIELDS.get(field.name) == field.number, field.full_name


COMPUTE_METHODS = [
    method for method in TENSOR_METHODS if method.name not in {"ComputeMany", *TRANSFERS}
]


@pytest.mark.parametrize("method", COMPUTE_METHODS, ids=lambda method: method.name)
def test_contract_replies_tell_their_timing(method):
    """Under the common number, and requests have none; ComputeMany has it in each reply."""
    assert method.output_type.fields_by_name["timing"].number == 13
    assert "timing" not in method.input_type.fields_by_name


def test_contract_compute_many_takes_every_method_that_computes():
    """By the same names and numbers in requests and replies, and not itself."""
    calls = many_pb2.NestedCall.DESCRIPTOR.oneofs_by_name["request"].fields
    replies = many_pb2.NestedReply.DESCRIPTOR.oneofs_by_name["outcome"].fields
    assert [field.message_type for field in calls] == [m.input_type for m in COMPUTE_METHODS]
    assert [field.message_type for field in replies[:-1]] == [
        method.output_type for method in COMPUTE_METHODS
    ]
    named = [(field.name, field.number) for field in calls]
    assert [(field.name, field.number) for field in replies[:-1]] == named
    assert replies[-1].name == "status"


def test_contract_reserves_what_was_deleted_only():
    """Nothing was: planned fields have numbers in the documentation, not in `reserved`."""
    for file in present().file:
        for message in file.message_type:
            assert not message.reserved_range, message.name
            assert not message.reserved_name, message.name


def test_contract_enumerations_start_with_unspecified():
    """A field that nobody set says so: value 0 of every enumeration is UNSPECIFIED."""
    enums = [enum for file in present().file for enum in file.enum_type]
    assert len(enums) > 7
    assert all(enum.value[0].name.endswith("_UNSPECIFIED") for enum in enums)
    assert all(enum.value[0].number == 0 for enum in enums)


def test_contract_names_its_packages_for_other_languages():
    """Go and Java code generated from it has a package of its own, the same for all files."""
    ours = [file for file in present().file if file.package == "stn.v1"]
    assert len(ours) == len(present().file) - 1  # but for what is imported of protobuf itself
    for file in ours:
        assert file.options.go_package == "stn_proto/v1;stnv1"
        assert (file.options.java_package, file.options.java_multiple_files) == ("stn.v1", True)
