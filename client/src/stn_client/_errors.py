"""How calls fail, and how gRPC statuses become exceptions.

    StnClientError                   request_id, code, reason
    ├─ InvalidRequestError           (also ValueError) an argument is wrong; see `violations`
    ├─ AccessDeniedError             the server does not know the token, or not for this
    ├─ DeadlineExceededError         (also TimeoutError) no result within the timeout
    ├─ OverloadedError               refused for now; `retry_after_s` says for how long
    ├─ TransportError                the bytes did not get through
    │   └─ UnavailableError          no server there, or it is about to stop
    ├─ ServerFaultError              the server failed; its log knows the request id
    └─ ProtocolMismatchError         the server does not speak or offer what was asked

Arguments that break a rule are InvalidRequestError whether the SDK notices, when it is given them,
or the server. Beside these, calls raise TypeError for a keyword that does not exist, as all
functions do, and whatever a token that is a function raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import RpcError, StatusCode

from stn_client._words import argument_of
from stn_proto.errors import ERROR_DOMAIN

M = TypeVar("M", bound=Message)
Metadata = Iterable[tuple[str, str | bytes]]


class StnClientError(Exception):
    """Base of the errors above.

    Attributes:
        request_id: What the server's log calls this call; empty if it was never sent.
        code: gRPC status it ended with; None if it was never sent.
        reason: Why the server ended it, as "QUEUE_FULL": the name of an `ErrorReason` of the
            contract, or of a newer one. Empty if no server said why, as when a connection breaks.
    """

    def __init__(
        self,
        message: str,
        *,
        request_id: str = "",
        code: StatusCode | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.code = code
        self.reason = reason


class InvalidRequestError(StnClientError, ValueError):
    """An argument of a client or of a call breaks a rule.

    Attributes:
        violations: (path of the argument, what is wrong with it), one per argument.
    """

    def __init__(
        self, message: str, *, violations: Sequence[tuple[str, str]] = (), **facts: Any
    ) -> None:
        super().__init__(message, **facts)
        self.violations = tuple(violations)


def invalid(argument: str, description: str) -> InvalidRequestError:
    """Returns the error of an argument that the SDK itself refuses."""
    return InvalidRequestError(f"{argument}: {description}", violations=[(argument, description)])


class AccessDeniedError(StnClientError):
    """The server wants a token that it knows."""


class DeadlineExceededError(StnClientError, TimeoutError):
    """No result within the timeout."""


class OverloadedError(StnClientError):
    """The server is full and refused the call at once.

    Attributes:
        retry_after_s: When it suggests to come again; None if it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class TransportError(StnClientError):
    """The connection broke or was refused."""


class UnavailableError(TransportError):
    """No server answers there, or it is about to stop."""


class ServerFaultError(StnClientError):
    """The server failed to compute a result."""


class ProtocolMismatchError(StnClientError):
    """The server does not know the method or offer the value, or sent an unreadable reply."""


CLASSES: dict[StatusCode, type[StnClientError]] = {
    StatusCode.CANCELLED: UnavailableError,  # by the server, on its way down
    StatusCode.UNKNOWN: ServerFaultError,
    StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    StatusCode.NOT_FOUND: InvalidRequestError,
    StatusCode.ALREADY_EXISTS: InvalidRequestError,
    StatusCode.PERMISSION_DENIED: AccessDeniedError,
    StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    StatusCode.FAILED_PRECONDITION: ServerFaultError,
    StatusCode.ABORTED: ServerFaultError,
    StatusCode.OUT_OF_RANGE: InvalidRequestError,
    StatusCode.UNIMPLEMENTED: ProtocolMismatchError,
    StatusCode.INTERNAL: ServerFaultError,
    StatusCode.UNAVAILABLE: UnavailableError,
    StatusCode.DATA_LOSS: ServerFaultError,
    StatusCode.UNAUTHENTICATED: AccessDeniedError,
}
"""The class of every status that is not OK."""

for _class in {StnClientError, TransportError, *CLASSES.values()}:
    _class.__module__ = "stn_client"  # tracebacks and pickles name what users can import


def error_from_status(
    code: StatusCode, message: str, metadata: Metadata, request_id: str
) -> StnClientError:
    """Returns the exception for a gRPC status."""
    details = _status_details(metadata)
    facts: dict[str, Any] = {"request_id": request_id, "code": code, "reason": _reason(details)}
    cls = CLASSES[code]
    if not message:  # as gRPC itself does where metadata are too many
        message = f"server: expected a result, or a reason why not, got {code.name} alone."
    if cls is InvalidRequestError:
        facts["violations"] = [
            (argument_of(violation.field), violation.description)
            for detail in _unpacked(details, BadRequest)
            for violation in detail.field_violations
        ]
    if cls is OverloadedError:
        delays = [d.retry_delay.ToNanoseconds() / 1e9 for d in _unpacked(details, RetryInfo)]
        if not delays:  # gRPC's own limit on the size of messages: no waiting will help
            cls = InvalidRequestError
        else:
            facts["retry_after_s"] = max(0.0, delays[0])
    return cls(argument_of(message), **facts)


def reason_of(failure: RpcError) -> str:
    """Returns the reason that a server gave for ending a call; empty if it gave none."""
    call: Any = failure
    return _reason(_status_details(call.trailing_metadata() or ()))


def _reason(details: Status) -> str:
    """Returns the reason in the details of a status; empty if there is none."""
    infos = _unpacked(details, ErrorInfo)
    return next((info.reason for info in infos if info.domain == ERROR_DOMAIN), "")


def _status_details(metadata: Metadata) -> Status:
    """Returns the details of a status in gRPC's richer error model."""
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _unpacked(status: Status, kind: type[M]) -> list[M]:
    found = []
    for detail in status.details:
        message = kind()
        with suppress(DecodeError):
            if detail.Unpack(message):
                found.append(message)
    return found
