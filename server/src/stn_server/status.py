"""The one table from exceptions to gRPC statuses and to reasons of the contract.

Messages of the exceptions listed here are written for callers. Anything else becomes INTERNAL with
a fixed text and the request id: what went wrong inside is for the log, not for the wire.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

import stn_engine
from stn_proto import FrameTooLargeError, WireFormatError
from stn_proto.errors import ERROR_DOMAIN
from stn_proto.v1 import errors_pb2
from stn_proto.v1.errors_pb2 import ErrorReason
from stn_server.call import REQUEST_ID
from stn_server.errors import (
    ArenaNotFoundError,
    ArenasFullError,
    BatchFailedError,
    BrokenError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceFullError,
    DeviceLostError,
    DrainingError,
    HandleNotFoundError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotFoundError,
    OverloadedError,
    QueueFullError,
    QuotaExceededError,
    QuotaTooSmallError,
    RefusedError,
    RegionExistsError,
    RegionNotFoundError,
    RequestTooLargeError,
    ResidentsFullError,
    ResultTooLargeError,
    ServerError,
    UnauthenticatedError,
    UnknownMethodError,
    UnsupportedError,
    UploadTimeoutError,
)

MAX_MESSAGE_CHARS = 1000
"""The most characters of a text: a status travels in metadata, which gRPC limits to 8 KiB."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status that a caller gets instead of a reply."""

    code: StatusCode
    reason: str
    """The name of the reason, as listed in the contract."""
    message: str
    details: tuple[Message, ...]
    log_level: int
    """The level of the log, by whose fault the failure is."""
    request_id: str
    """The request id, by which both sides can find the call."""

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Returns trailing metadata: the request id, and details in gRPC's richer error model.

        A retry time goes to gRPC's own retries as well.
        """
        pushback = tuple(
            ("grpc-retry-pushback-ms", str(detail.retry_delay.ToMilliseconds()))
            for detail in self.details
            if isinstance(detail, RetryInfo)
        )
        details = "grpc-status-details-bin", self._status(self.details)
        return (REQUEST_ID, self.request_id), details, *pushback

    def status(self) -> bytes:
        """Returns the serialized google.rpc.Status of a call that has no metadata of its own."""
        return self._status((*self.details, RequestInfo(request_id=self.request_id)))

    def _status(self, details: Iterable[Message]) -> bytes:
        status = Status(code=self.code.value[0], message=self.message)
        for detail in details:
            status.details.add().Pack(detail)
        serialized: bytes = status.SerializeToString()
        return serialized


def _no_facts(_error: Exception) -> Mapping[str, str]:
    return {}


def _no_details(_error: Exception) -> Iterator[Message]:
    yield from ()


@dataclass(frozen=True, slots=True)
class _Row:
    code: StatusCode
    reason: ErrorReason
    log_level: int
    details: Callable[[Any], Iterator[Message]] = _no_details
    """Returns the details beside the reason."""
    facts: Callable[[Any], Mapping[str, str]] = _no_facts
    """Returns facts that go with the reason, for programs."""

    def answer(self, error: BaseException, request_id: str) -> Answer:
        """Returns the answer to an error of this row."""
        reason = name_of(self.reason)
        info = ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=self.facts(error))
        details = (*self.details(error), info)
        return Answer(self.code, reason, _text(error), details, self.log_level, request_id)


def name_of(reason: ErrorReason) -> str:
    """Returns the name of a reason on the wire and in metrics."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def _field_violation(error: WireFormatError | InvalidRequestError) -> Iterator[Message]:
    yield _violation(error.field, error)


def _argument_violation(error: stn_engine.InvalidInputError) -> Iterator[Message]:
    yield _violation(error.argument, error)


def _violation(field: str, error: Exception) -> BadRequest:
    description = _text(error).removeprefix(f"{field}: ")
    return BadRequest(
        field_violations=[BadRequest.FieldViolation(field=field, description=description)]
    )


def _text(error: BaseException) -> str:
    """Returns the text of an exception, cut to what metadata can hold."""
    text = str(error)
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS - 4]} ..."


def _retry_info(error: OverloadedError | QuotaExceededError) -> Iterator[Message]:
    delay = Duration()
    delay.FromNanoseconds(int(error.retry_after_s * 1e9))
    yield RetryInfo(retry_delay=delay)


def _limit(
    error: RequestTooLargeError
    | QueueFullError
    | ArenasFullError
    | ResidentsFullError
    | FrameTooLargeError,
) -> Mapping[str, str]:
    return {"limit": str(error.limit), "actual": str(error.actual)}


def _quota(error: QuotaExceededError) -> Mapping[str, str]:
    return {"quota": error.quota, "limit": f"{error.limit:g}", "actual": str(error.actual)}


def _field(error: UnsupportedError) -> Mapping[str, str]:
    return {"field": error.field}


def _device(error: DeviceFullError) -> Mapping[str, str]:
    return {"device": error.device}


def _backend_reasons(error: stn_engine.BackendUnavailableError) -> Mapping[str, str]:
    return {name: "; ".join(why) for name, why in error.reasons.items()}


TABLE: dict[type[Exception], _Row] = {
    WireFormatError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_INVALID_FIELD,
        logging.DEBUG,
        _field_violation,
    ),
    InvalidRequestError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_INVALID_FIELD,
        logging.DEBUG,
        _field_violation,
    ),
    stn_engine.InvalidInputError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_INVALID_FIELD,
        logging.DEBUG,
        _argument_violation,
    ),
    FrameTooLargeError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_MESSAGE_TOO_LARGE,
        logging.DEBUG,
        _field_violation,
        _limit,
    ),
    MessageTooLargeError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_MESSAGE_TOO_LARGE,
        logging.DEBUG,
        _field_violation,
        _limit,
    ),
    ResultTooLargeError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_RESULT_TOO_LARGE,
        logging.DEBUG,
        _field_violation,
        _limit,
    ),
    QuotaTooSmallError: _Row(
        StatusCode.INVALID_ARGUMENT,
        errors_pb2.ERROR_REASON_QUOTA_TOO_SMALL,
        logging.DEBUG,
        _field_violation,
        _limit,
    ),
    UnsupportedError: _Row(
        StatusCode.UNIMPLEMENTED,
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        logging.DEBUG,
        facts=_field,
    ),
    UnknownMethodError: _Row(
        StatusCode.UNIMPLEMENTED, errors_pb2.ERROR_REASON_UNKNOWN_METHOD, logging.INFO
    ),
    UnauthenticatedError: _Row(
        StatusCode.UNAUTHENTICATED, errors_pb2.ERROR_REASON_UNKNOWN_TOKEN, logging.INFO
    ),
    QuotaExceededError: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
        logging.INFO,
        _retry_info,
        _quota,
    ),
    QueueFullError: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        errors_pb2.ERROR_REASON_QUEUE_FULL,
        logging.INFO,
        _retry_info,
        _limit,
    ),
    ArenasFullError: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        errors_pb2.ERROR_REASON_ARENAS_FULL,
        logging.INFO,
        _retry_info,
        _limit,
    ),
    ResidentsFullError: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        errors_pb2.ERROR_REASON_RESIDENTS_FULL,
        logging.INFO,
        _retry_info,
        _limit,
    ),
    HandleNotFoundError: _Row(
        StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_HANDLE_NOT_FOUND, logging.DEBUG
    ),
    ArenaNotFoundError: _Row(
        StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_ARENA_NOT_FOUND, logging.INFO
    ),
    ModelNotFoundError: _Row(
        StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_MODEL_NOT_FOUND, logging.INFO
    ),
    RegionNotFoundError: _Row(
        StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_REGION_NOT_FOUND, logging.INFO
    ),
    RegionExistsError: _Row(
        StatusCode.ALREADY_EXISTS, errors_pb2.ERROR_REASON_REGION_EXISTS, logging.INFO
    ),
    DeviceFullError: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        errors_pb2.ERROR_REASON_DEVICE_FULL,
        logging.INFO,
        _retry_info,
        _device,
    ),
    DeadlineUnreachableError: _Row(
        StatusCode.RESOURCE_EXHAUSTED,
        errors_pb2.ERROR_REASON_DEADLINE_UNREACHABLE,
        logging.INFO,
        _retry_info,
    ),
    DrainingError: _Row(StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_DRAINING, logging.INFO),
    BrokenError: _Row(StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_DEVICE_LOST, logging.WARNING),
    DeadlineExceededError: _Row(
        StatusCode.DEADLINE_EXCEEDED, errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED, logging.INFO
    ),
    UploadTimeoutError: _Row(
        StatusCode.DEADLINE_EXCEEDED, errors_pb2.ERROR_REASON_UPLOAD_TIMEOUT, logging.INFO
    ),
    stn_engine.BackendUnavailableError: _Row(
        StatusCode.FAILED_PRECONDITION,
        errors_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
        logging.WARNING,
        facts=_backend_reasons,
    ),
}
"""The rows by exception class; each holds for subclasses too, the nearest class first."""

INTERNAL: tuple[type[Exception], ...] = (
    ServerError,
    RefusedError,
    OverloadedError,
    RequestTooLargeError,
    BatchFailedError,
    DeviceLostError,
    stn_engine.EngineError,
)
"""The classes that become INTERNAL on purpose, unless a subclass has a row."""

REFUSALS = tuple(name_of(row.reason) for cls, row in TABLE.items() if issubclass(cls, RefusedError))
"""The reasons for which calls are refused before admission."""


def answer_to(error: BaseException, request_id: str) -> Answer:
    """Returns the answer that an exception becomes."""
    for cls in type(error).__mro__:
        row = TABLE.get(cls)
        if row is not None:
            return row.answer(error, request_id)
    message = f"server: expected a result, got an internal error. Quote request id {request_id}."
    reason, facts = name_of(errors_pb2.ERROR_REASON_INTERNAL), {"request_id": request_id}
    info = ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=facts)
    return Answer(StatusCode.INTERNAL, reason, message, (info,), logging.ERROR, request_id)
