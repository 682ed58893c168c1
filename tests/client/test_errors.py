"""From gRPC statuses to exceptions: totality, details, and details that make no sense."""

import re

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from stn_client import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    ProtocolMismatchError,
    ServerFaultError,
    StnClientError,
    TransportError,
    UnavailableError,
    _errors,
)
from stn_client._errors import CLASSES, error_from_status
from support.scripted_service import status_metadata

RETRY_INFO = RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
BAD_REQUEST = BadRequest(
    field_violations=[
        BadRequest.FieldViolation(field="transform.affine.theta", description="expected a, got b."),
        BadRequest.FieldViolation(field="output_size", description="expected c, got d."),
    ]
)


def subclasses(cls):
    """A class and all that derive from it."""
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_errors_every_status_has_a_class(code):
    """Any failed call becomes an exception of this package that knows code and request id."""
    error = error_from_status(code, "text", (), "id-1")
    assert isinstance(error, StnClientError)
    assert (str(error), error.code, error.request_id) == ("text", code, "id-1")


def test_errors_of_few_words_say_what_there_is():
    """Such as gRPC's of metadata that are too many, which has no text."""
    error = error_from_status(StatusCode.RESOURCE_EXHAUSTED, "", (), "id-1")
    said = "server: expected a result, or a reason why not, got RESOURCE_EXHAUSTED alone."
    assert (type(error), str(error)) == (InvalidRequestError, said)


def test_errors_success_has_no_class():
    """The table has a row for every status but OK."""
    assert set(CLASSES) == set(StatusCode) - {StatusCode.OK}


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (StatusCode.UNAUTHENTICATED, AccessDeniedError),
        (StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        (StatusCode.UNAVAILABLE, UnavailableError),
        (StatusCode.UNIMPLEMENTED, ProtocolMismatchError),
        (StatusCode.FAILED_PRECONDITION, ServerFaultError),
        (StatusCode.INTERNAL, ServerFaultError),
        (StatusCode.UNKNOWN, ServerFaultError),
        (StatusCode.DATA_LOSS, ServerFaultError),
        (StatusCode.CANCELLED, UnavailableError),
    ],
)
def test_errors_statuses_of_the_server_become_these_classes(code, cls):
    """The rows that the service itself uses, spelt out."""
    assert type(error_from_status(code, "", (), "")) is cls


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (InvalidRequestError, ValueError),
        (DeadlineExceededError, TimeoutError),
        (UnavailableError, TransportError),
    ],
)
def test_errors_are_what_python_callers_expect(cls, base):
    """Those who catch the built-in class catch ours."""
    assert issubclass(cls, base)
    assert issubclass(cls, StnClientError)


def test_errors_are_drawn_in_the_module_docstring():
    """The tree in the docstring has every class, below the class it derives from."""
    drawn, path = {}, []
    line = re.compile(r"^( *│? *(?:[├└]─ )?)(\w+Error)\b", re.MULTILINE)
    for indent, name in line.findall(_errors.__doc__):
        path = [entry for entry in path if entry[0] < len(indent)]
        drawn[name] = path[-1][1] if path else "Exception"
        path.append((len(indent), name))
    actual = {cls.__name__: cls.__bases__[0].__name__ for cls in subclasses(StnClientError)}
    assert drawn == actual


def test_errors_invalid_request_lists_the_violations():
    """Every field violation of the details is a pair of argument and text."""
    code = StatusCode.INVALID_ARGUMENT
    error = error_from_status(code, "text", status_metadata(code, BAD_REQUEST), "")
    assert error.violations == (
        ("theta", "expected a, got b."),
        ("output_size", "expected c, got d."),
    )


@pytest.mark.parametrize(
    ("of_server", "of_caller"),
    [
        ("spec.fill: expected one value, got two.", "fill: expected one value, got two."),
        ("transform.affine.theta.shape: expected 3.", "theta.shape: expected 3."),
        ("transform.sampling_grid.grid: expected a.", "grid: expected a."),
        ("output_size: expected transform.x.y.", "output_size: expected transform.x.y."),
        ("transform.kind: expected one of affine.", "transform.kind: expected one of affine."),
        ("spec: expected one.", "spec: expected one."),
    ],
)
def test_errors_name_arguments_and_not_fields(of_server, of_caller):
    """What the contract nests, callers have given as arguments of their own."""
    assert str(error_from_status(StatusCode.INVALID_ARGUMENT, of_server, (), "")) == of_caller


def test_errors_overload_says_when_to_come_again():
    """The delay of RetryInfo is read in seconds, beside details of other kinds."""
    code = StatusCode.RESOURCE_EXHAUSTED
    metadata = status_metadata(code, ErrorInfo(reason="FULL"), RETRY_INFO)
    error = error_from_status(code, "text", metadata, "id-1")
    assert type(error) is OverloadedError
    assert (error.retry_after_s, error.request_id, error.code) == (1.5, "id-1", code)


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_errors_have_the_reason_that_the_server_gives(code):
    """Whatever their class; reasons of this version of the contract and of newer ones alike."""
    for reason in ("QUEUE_FULL", "OF_A_NEWER_CONTRACT"):
        info = ErrorInfo(reason=reason, domain="stn.v1.SpatialTransformer")
        metadata = status_metadata(code, BAD_REQUEST, info, RETRY_INFO)
        assert error_from_status(code, "", metadata, "").reason == reason


def test_errors_reasons_of_others_are_none_of_ours():
    """A proxy has reasons of its own, under its own domain; without any, the reason is empty."""
    code = StatusCode.UNAVAILABLE
    foreign = ErrorInfo(reason="QUEUE_FULL", domain="proxy.example")
    assert error_from_status(code, "", status_metadata(code, foreign), "").reason == ""
    assert error_from_status(code, "", (), "").reason == ""
    ours = ErrorInfo(reason="DRAINING", domain="stn.v1.SpatialTransformer")
    both = status_metadata(code, foreign, ours)
    assert error_from_status(code, "", both, "").reason == "DRAINING"


def test_errors_never_sent_have_no_reason():
    """What the SDK itself finds wrong comes from no server."""
    assert _errors.invalid("fill", "expected a, got b.").reason == ""


def test_errors_overload_never_asks_for_a_negative_pause():
    """A delay below 0 is taken as 0, so that nobody sleeps for it."""
    code = StatusCode.RESOURCE_EXHAUSTED
    metadata = status_metadata(code, RetryInfo(retry_delay=Duration(seconds=-3)))
    assert error_from_status(code, "", metadata, "").retry_after_s == 0.0


def test_errors_exhaustion_without_a_delay_is_an_invalid_request():
    """GRPC's own size limit says RESOURCE_EXHAUSTED, too; no waiting makes a message smaller."""
    code = StatusCode.RESOURCE_EXHAUSTED
    error = error_from_status(code, "Received message larger than max", (), "")
    assert type(error) is InvalidRequestError
    assert (error.violations, error.code) == ((), code)


BROKEN_DETAIL = AnyMessage(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\x0a\x05")
NONSENSE = {
    "not protobuf": (("grpc-status-details-bin", b"\x0a\x05"),),
    "text": (("grpc-status-details-bin", "text"),),
    "other keys": (("x-request-id", "1"), ("trace-bin", b"\x0a\x05")),
    "broken detail": (
        ("grpc-status-details-bin", Status(details=[BROKEN_DETAIL]).SerializeToString()),
    ),
    "unknown detail": (
        (
            "grpc-status-details-bin",
            Status(details=[AnyMessage(type_url="x/y.Z", value=b"\xff")]).SerializeToString(),
        ),
    ),
}


@pytest.mark.parametrize("metadata", NONSENSE.values(), ids=NONSENSE)
def test_errors_ignore_details_that_make_no_sense(metadata):
    """Unreadable details cost the caller the details, not the error."""
    error = error_from_status(StatusCode.INVALID_ARGUMENT, "text", metadata, "")
    assert type(error) is InvalidRequestError
    assert (str(error), error.violations) == ("text", ())


def test_errors_keep_good_details_beside_broken_ones():
    """One unreadable detail does not hide the next."""
    status = Status(details=[BROKEN_DETAIL])
    status.details.add().Pack(BAD_REQUEST)
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    error = error_from_status(StatusCode.INVALID_ARGUMENT, "text", metadata, "")
    assert [field for field, _ in error.violations] == ["theta", "output_size"]
