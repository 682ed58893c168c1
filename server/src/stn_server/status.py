"""The one table from exceptions to gRPC statuses.

Messages of the exceptions listed here are written for callers. Anything else becomes INTERNAL with
a fixed text and the request id: what went wrong inside is for the log, not for the wire.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

import stn_engine
from stn_proto import WireFormatError
from stn_server.errors import (
    BatchFailedError,
    BrokenError,
    DeadlineExceededError,
    DeviceLostError,
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    QuotaExceededError,
    RefusedError,
    RequestTooLargeError,
    ServerError,
    UnauthenticatedError,
    UnknownMethodError,
    UnsupportedError,
    UploadTimeoutError,
)

DOMAIN = "stn"

MAX_MESSAGE_CHARS = 1000
"""A status travels in metadata, of which gRPC takes 8 KiB; a request can hold more to quote."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller gets instead of a reply."""

    code: StatusCode
    message: str
    details: tuple[Message, ...]
    log_level: int
    """How loudly it is told to the operator: whose fault it is."""

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata with the details, in gRPC's richer error model.

        A time to come again is told to gRPC's own retries as well.
        """
        if not self.details:
            return ()
        pushback = tuple(
            ("grpc-retry-pushback-ms", str(detail.retry_delay.ToMilliseconds()))
            for detail in self.details
            if isinstance(detail, RetryInfo)
        )
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()), *pushback)


@dataclass(frozen=True, slots=True)
class _Row:
    code: StatusCode
    log_level: int
    details: Callable[[Any], Iterator[Message]]


def _no_details(_error: Exception) -> Iterator[Message]:
    yield from ()


def _field_violation(error: WireFormatError | InvalidRequestError) -> Iterator[Message]:
    yield _violation(error.field, error)


def _argument_violation(error: stn_engine.InvalidInputError) -> Iterator[Message]:
    yield _violation(error.argument, error)


def _too_large(error: RequestTooLargeError) -> Iterator[Message]:
    yield _violation(error.field, error)
    yield ErrorInfo(
        reason="TOO_LARGE",
        domain=DOMAIN,
        metadata={"limit": str(error.limit), "actual": str(error.actual)},
    )


def _violation(field: str, error: Exception) -> BadRequest:
    description = _text(error).removeprefix(f"{field}: ")
    return BadRequest(
        field_violations=[BadRequest.FieldViolation(field=field, description=description)]
    )


def _text(error: BaseException) -> str:
    """What an exception says, cut to what metadata can carry."""
    text = str(error)
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS - 4]} ..."


def _retry_info(error: OverloadedError | QuotaExceededError) -> Iterator[Message]:
    delay = Duration()
    delay.FromNanoseconds(int(error.retry_after_s * 1e9))
    yield RetryInfo(retry_delay=delay)


def _quota(error: QuotaExceededError) -> Iterator[Message]:
    yield from _retry_info(error)
    facts = {"quota": error.quota, "limit": f"{error.limit:g}", "actual": str(error.actual)}
    yield ErrorInfo(reason="QUOTA", domain=DOMAIN, metadata=facts)


def _backend_reasons(error: stn_engine.BackendUnavailableError) -> Iterator[Message]:
    reasons = {name: "; ".join(why) for name, why in error.reasons.items()}
    yield ErrorInfo(reason="BACKEND_UNAVAILABLE", domain=DOMAIN, metadata=reasons)


TABLE: dict[type[Exception], _Row] = {
    WireFormatError: _Row(StatusCode.INVALID_ARGUMENT, logging.DEBUG, _field_violation),
    InvalidRequestError: _Row(StatusCode.INVALID_ARGUMENT, logging.DEBUG, _field_violation),
    stn_engine.InvalidInputError: _Row(
        StatusCode.INVALID_ARGUMENT, logging.DEBUG, _argument_violation
    ),
    RequestTooLargeError: _Row(StatusCode.INVALID_ARGUMENT, logging.DEBUG, _too_large),
    UnsupportedError: _Row(StatusCode.UNIMPLEMENTED, logging.DEBUG, _no_details),
    UnknownMethodError: _Row(StatusCode.UNIMPLEMENTED, logging.INFO, _no_details),
    UnauthenticatedError: _Row(StatusCode.UNAUTHENTICATED, logging.INFO, _no_details),
    QuotaExceededError: _Row(StatusCode.RESOURCE_EXHAUSTED, logging.INFO, _quota),
    OverloadedError: _Row(StatusCode.RESOURCE_EXHAUSTED, logging.INFO, _retry_info),
    DrainingError: _Row(StatusCode.UNAVAILABLE, logging.INFO, _no_details),
    BrokenError: _Row(StatusCode.UNAVAILABLE, logging.WARNING, _no_details),
    DeadlineExceededError: _Row(StatusCode.DEADLINE_EXCEEDED, logging.INFO, _no_details),
    UploadTimeoutError: _Row(StatusCode.DEADLINE_EXCEEDED, logging.INFO, _no_details),
    stn_engine.BackendUnavailableError: _Row(
        StatusCode.FAILED_PRECONDITION, logging.WARNING, _backend_reasons
    ),
}
"""Rows hold for subclasses too, the nearest one first."""

INTERNAL: tuple[type[Exception], ...] = (
    ServerError,
    RefusedError,
    BatchFailedError,
    DeviceLostError,
    stn_engine.EngineError,
)
"""Classes that are INTERNAL on purpose, unless a subclass has a row."""


def answer_to(error: BaseException, request_id: str) -> Answer:
    """The answer that an exception becomes."""
    for cls in type(error).__mro__:
        row = TABLE.get(cls)
        if row is not None:
            return Answer(row.code, _text(error), tuple(row.details(error)), row.log_level)
    message = f"server: expected a result, got an internal error. Quote request id {request_id}."
    details = (ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"request_id": request_id}),)
    return Answer(StatusCode.INTERNAL, message, details, logging.ERROR)
