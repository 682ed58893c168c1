"""The status table: total, and detailed where a program can use it."""

import inspect
import logging

import pytest
import torch
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

import stn_engine
import stn_server.errors
from stn_proto import FrameTooLargeError, WireFormatError
from stn_proto.errors import ERROR_DOMAIN
from stn_proto.v1 import errors_pb2, service_pb2
from stn_server.errors import (
    ArenaNotFoundError,
    ArenasFullError,
    BatchFailedError,
    BrokenError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceFullError,
    DrainingError,
    HandleNotFoundError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    QueueFullError,
    QuotaExceededError,
    QuotaTooSmallError,
    RefusedError,
    RegionExistsError,
    RegionNotFoundError,
    ResidentsFullError,
    ResultTooLargeError,
    ServerError,
    UnauthenticatedError,
    UnknownFieldError,
    UnknownMethodError,
    UnsupportedError,
    UploadTimeoutError,
)
from stn_server.status import INTERNAL, MAX_MESSAGE_CHARS, REFUSALS, TABLE, answer_to

REQUEST_ID = "0123456789abcdef"
REFUSED, BAD = StatusCode.RESOURCE_EXHAUSTED, StatusCode.INVALID_ARGUMENT

EXAMPLES = [
    (WireFormatError("a.b", "x", "y", "Do z."), BAD, [("a.b", "expected x, got y. Do z.")]),
    (InvalidRequestError("a.b", "expected x, got y."), BAD, [("a.b", "expected x, got y.")]),
    (stn_engine.ParameterError("fill", 1, (2,)), BAD, [("fill", "expected 2, got 1. Pass")]),
    (stn_engine.ShapeError("theta", [("N", 2)], (3,), "Do."), BAD, [("theta", "expected shape")]),
    (
        stn_engine.DTypeError("theta", (torch.float32,), torch.uint8, "Do."),
        BAD,
        [("theta", "expected torch.float32, got torch.uint8. Do.")],
    ),
    (ResultTooLargeError("out", 5, 7, "px"), BAD, [("out", "expected at most 5 px, got 7.")]),
    (
        MessageTooLargeError("message", 5, 7, "bytes"),
        BAD,
        [("message", "expected at most 5 bytes")],
    ),
    (QuotaTooSmallError("message", 5, 7, "bytes"), BAD, [("message", "expected at most 5 bytes")]),
    (
        FrameTooLargeError("payloads", 5, "payloads", "more", "Send fewer."),
        BAD,
        [("payloads", "expected at most 5 payloads, got more. Send fewer.")],
    ),
    (UnsupportedError("kind", "flow", ("affine",)), StatusCode.UNIMPLEMENTED, []),
    (UnknownFieldError("spec.99"), StatusCode.UNIMPLEMENTED, []),
    (UnauthenticatedError("none"), StatusCode.UNAUTHENTICATED, []),
    (UnknownMethodError("/a/b"), StatusCode.UNIMPLEMENTED, []),
    (UploadTimeoutError(60.0), StatusCode.DEADLINE_EXCEEDED, []),
    (QuotaExceededError("calls in flight", 1, 2, 0.25), REFUSED, []),
    (QueueFullError("items", 1, 2, 0.25), REFUSED, []),
    (DeviceFullError("cuda:0"), REFUSED, []),
    (ArenasFullError("arenas", 1, 2), REFUSED, []),
    (ArenaNotFoundError("grad_output.arena"), StatusCode.NOT_FOUND, []),
    (ResidentsFullError("bytes", 1, 2), REFUSED, []),
    (HandleNotFoundError("moving.resident"), StatusCode.NOT_FOUND, []),
    (ModelNotFoundError("model_name"), StatusCode.NOT_FOUND, []),
    (RegionNotFoundError("theta.shared_memory_region"), StatusCode.NOT_FOUND, []),
    (RegionExistsError("name"), StatusCode.ALREADY_EXISTS, []),
    (DeadlineUnreachableError(0.5, 0.25, 0.125), REFUSED, []),
    (DrainingError(), StatusCode.UNAVAILABLE, []),
    (BrokenError(), StatusCode.UNAVAILABLE, []),
    (DeadlineExceededError(), StatusCode.DEADLINE_EXCEEDED, []),
    (
        stn_engine.BackendUnavailableError({"cuda": ("no device", "no driver")}),
        StatusCode.FAILED_PRECONDITION,
        [],
    ),
]


def family(root):
    """A class and all its subclasses that belong to its distribution."""
    for cls in root.__subclasses__():
        yield from family(cls)
    if root.__module__.split(".")[0].startswith("stn_"):
        yield root


def details_of(error):
    """The details of an answer, read back as a client reads them."""
    metadata = dict(answer_to(error, REQUEST_ID).metadata())
    status = Status.FromString(metadata.get("grpc-status-details-bin", b""))
    found = []
    for detail in status.details:
        for kind in (BadRequest, ErrorInfo, RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found.append(message)
    return found


@pytest.mark.parametrize("root", [ServerError, stn_engine.EngineError, WireFormatError])
def test_every_class_has_a_row_or_is_internal_on_purpose(root):
    """A new exception class cannot forget its status."""
    classes = set(family(root))
    assert root in classes
    for cls in classes:
        assert any(base in TABLE for base in cls.__mro__) != (cls in INTERNAL), cls


def test_the_tree_of_server_errors_is_complete():
    """All exceptions of the module belong to it."""
    public = [cls for _, cls in inspect.getmembers(stn_server.errors, inspect.isclass)]
    assert {cls for cls in public if issubclass(cls, BaseException)} == set(family(ServerError))


@pytest.mark.parametrize(
    ("error", "code", "violations"), EXAMPLES, ids=lambda value: type(value).__name__
)
def test_a_row_gives_code_message_and_details(error, code, violations):
    """What the exception says reaches the caller as it is."""
    answer = answer_to(error, REQUEST_ID)
    assert (answer.code, answer.message) == (code, str(error))
    assert answer.log_level < logging.ERROR
    found = [
        violation
        for detail in details_of(error)
        if isinstance(detail, BadRequest)
        for violation in detail.field_violations
    ]
    assert [violation.field for violation in found] == [field for field, _ in violations]
    for violation, (_, beginning) in zip(found, violations, strict=True):
        assert violation.description.startswith(beginning)


def test_every_row_has_an_example():
    """The list above follows the table."""
    assert set(TABLE) <= {cls for error, _, _ in EXAMPLES for cls in type(error).__mro__}


def test_an_overloaded_server_says_when_to_come_again():
    """In the detail that gRPC has for it."""
    info, _ = details_of(QueueFullError("items", 1, 2, 0.25))
    assert info.retry_delay.ToNanoseconds() == 250_000_000
    metadata = dict(answer_to(QueueFullError("items", 1, 2, 0.25), REQUEST_ID).metadata())
    assert metadata["grpc-retry-pushback-ms"] == "250"


def test_a_request_that_is_too_large_learns_limit_and_actual():
    """As numbers, so that a program need not read the text."""
    _, info = details_of(ResultTooLargeError("output_size", 5, 7, "px"))
    assert info.reason == "RESULT_TOO_LARGE"
    assert dict(info.metadata) == {"limit": "5", "actual": "7"}


def test_backends_say_why_not():
    """Every reason of every backend."""
    (info,) = details_of(stn_engine.BackendUnavailableError({"cuda": ("no device", "old driver")}))
    assert info.reason == "BACKEND_UNAVAILABLE"
    assert dict(info.metadata) == {"cuda": "no device; old driver"}


@pytest.mark.parametrize(
    "error",
    [KeyError("secret"), ServerError("secret"), stn_engine.EngineError("secret")],
    ids=lambda error: type(error).__name__,
)
def test_an_unknown_failure_tells_nothing_but_the_request_id(error):
    """Its own text is for the log."""
    answer = answer_to(error, REQUEST_ID)
    assert answer.code is StatusCode.INTERNAL
    assert answer.log_level == logging.ERROR
    assert answer.message == (
        f"server: expected a result, got an internal error. Quote request id {REQUEST_ID}."
    )
    (info,) = details_of(error)
    assert dict(info.metadata) == {"request_id": REQUEST_ID}
    assert b"secret" not in dict(answer.metadata())["grpc-status-details-bin"]


def test_a_failed_batch_is_internal():
    """Its cause stays inside."""
    assert answer_to(BatchFailedError(3), REQUEST_ID).code is StatusCode.INTERNAL


def test_a_long_message_is_cut_to_what_metadata_carries():
    """GRPC would replace a status beyond 8 KiB by an error of its own."""
    error = InvalidRequestError("spec.fill", f"expected 3 values, got {'0.5, ' * 10_000}.")
    answer = answer_to(error, REQUEST_ID)
    assert len(answer.message) == MAX_MESSAGE_CHARS
    assert answer.message.startswith("spec.fill: expected 3 values")
    assert answer.message.endswith(" ...")
    assert sum(len(value) for _, value in answer.metadata()) < 4096


REASONS = {
    WireFormatError: ("INVALID_FIELD", {}),
    InvalidRequestError: ("INVALID_FIELD", {}),
    stn_engine.ParameterError: ("INVALID_FIELD", {}),
    stn_engine.ShapeError: ("INVALID_FIELD", {}),
    stn_engine.DTypeError: ("INVALID_FIELD", {}),
    ResultTooLargeError: ("RESULT_TOO_LARGE", {"limit": "5", "actual": "7"}),
    MessageTooLargeError: ("MESSAGE_TOO_LARGE", {"limit": "5", "actual": "7"}),
    QuotaTooSmallError: ("QUOTA_TOO_SMALL", {"limit": "5", "actual": "7"}),
    FrameTooLargeError: ("MESSAGE_TOO_LARGE", {"limit": "5", "actual": "more"}),
    UnsupportedError: ("UNSUPPORTED", {"field": "kind"}),
    UnknownFieldError: ("UNSUPPORTED", {"field": "spec.99"}),
    UnauthenticatedError: ("UNKNOWN_TOKEN", {}),
    UnknownMethodError: ("UNKNOWN_METHOD", {}),
    UploadTimeoutError: ("UPLOAD_TIMEOUT", {}),
    QuotaExceededError: (
        "QUOTA_EXCEEDED",
        {"quota": "calls in flight", "limit": "1", "actual": "2"},
    ),
    QueueFullError: ("QUEUE_FULL", {"limit": "1", "actual": "2"}),
    DeviceFullError: ("DEVICE_FULL", {"device": "cuda:0"}),
    ArenasFullError: ("ARENAS_FULL", {"limit": "1", "actual": "2"}),
    ArenaNotFoundError: ("ARENA_NOT_FOUND", {}),
    ResidentsFullError: ("RESIDENTS_FULL", {"limit": "1", "actual": "2"}),
    HandleNotFoundError: ("HANDLE_NOT_FOUND", {}),
    ModelNotFoundError: ("MODEL_NOT_FOUND", {}),
    RegionNotFoundError: ("REGION_NOT_FOUND", {}),
    RegionExistsError: ("REGION_EXISTS", {}),
    DeadlineUnreachableError: ("DEADLINE_UNREACHABLE", {}),
    DrainingError: ("DRAINING", {}),
    BrokenError: ("DEVICE_LOST", {}),
    DeadlineExceededError: ("DEADLINE_EXCEEDED", {}),
    stn_engine.BackendUnavailableError: (
        "BACKEND_UNAVAILABLE",
        {"cuda": "no device; no driver"},
    ),
}
ALL_ERRORS = [*(error for error, _, _ in EXAMPLES), KeyError("x"), BatchFailedError(3)]


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda error: type(error).__name__)
def test_every_answer_gives_one_reason_of_the_contract(error):
    """In one ErrorInfo under the name of the service, whatever other details there are."""
    (info,) = [detail for detail in details_of(error) if isinstance(detail, ErrorInfo)]
    service = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"]
    assert info.domain == service.full_name == ERROR_DOMAIN
    assert f"ERROR_REASON_{info.reason}" in errors_pb2.ErrorReason.keys()[1:]
    expected = REASONS.get(type(error), ("INTERNAL", {"request_id": REQUEST_ID}))
    assert (info.reason, dict(info.metadata)) == expected
    assert answer_to(error, REQUEST_ID).reason == info.reason


def test_reasons_of_refusals_are_those_of_their_classes():
    """Metrics show every one from the start."""
    refused = {REASONS[type(error)][0] for error in ALL_ERRORS if isinstance(error, RefusedError)}
    assert set(REFUSALS) == refused
    assert len(REFUSALS) == len(refused)
