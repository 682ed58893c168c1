"""Errors that the server itself can answer instead of a result.

    ServerError
    ├─ InvalidRequestError       a field of the request is wrong
    ├─ ArenaNotFoundError        a tensor lies in an arena that is not there
    ├─ HandleNotFoundError       the caller has no resident tensor of this handle
    ├─ ModelNotFoundError        the Open Inference Protocol has no such model here
    ├─ RegionNotFoundError       the caller has registered no such shared memory
    ├─ RegionExistsError         it has already
    ├─ UnsupportedError          a field asks for what this server does not know or offer
    │   └─ UnknownFieldError     the server does not know the field
    ├─ RefusedError              refused before admission; nothing was computed
    │   ├─ UnauthenticatedError  the call has no token of this server
    │   ├─ QuotaExceededError    the caller already uses its quota
    │   ├─ OverloadedError       the server has admitted too much already
    │   │   ├─ QueueFullError            a limit is reached
    │   │   ├─ DeviceFullError           half of its batch was too much for the device's memory
    │   │   ├─ ArenasFullError           no more memory is shared
    │   │   ├─ ResidentsFullError        calls use the tensors that would be evicted
    │   │   └─ DeadlineUnreachableError  the result would come too late
    │   ├─ DrainingError         the server is about to stop
    │   ├─ BrokenError           the device is lost
    │   ├─ UploadTimeoutError    its message did not arrive in time
    │   ├─ UnknownMethodError    no service has the method that it calls
    │   └─ RequestTooLargeError  too large for this server or this caller, now and later
    │       ├─ MessageTooLargeError      the message is above a configured limit
    │       ├─ ResultTooLargeError       the result would be
    │       └─ QuotaTooSmallError        the call alone is above the quota of its token
    ├─ DeadlineExceededError     the caller's deadline passed while the request was queued
    ├─ BatchFailedError          a batch failed; `__cause__` says how
    └─ DeviceLostError           the device failed for good; for runners, not for callers

`status.py` maps each class to its gRPC status and to its reason in the contract.
"""

from __future__ import annotations

import copyreg
import traceback
from typing import Any

from stn_server.tuning import ARENAS_FULL_RETRY_S, DEVICE_FULL_RETRY_S, RESIDENTS_FULL_RETRY_S


class ServerError(Exception):
    """Base of the errors above."""

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, and not by the arguments of __init__: a worker process could not send it back.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidRequestError(ServerError):
    """A field of the request breaks a rule.

    Attributes:
        field: Path of the field, as `transform.affine.theta`.
        description: What was expected, what was got, what to do.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ArenaNotFoundError(ServerError):
    """The caller has no such arena; whether another caller has one is not disclosed."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: expected an arena of this caller, got none. "
            "Ask for one, or send the tensor as a payload."
        )
        self.field = field


class HandleNotFoundError(ServerError):
    """The caller has no resident tensor of this handle; those of others are not disclosed."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: expected the handle of a resident tensor of this caller, got another one. "
            "Send the tensor again; the server may have let it go."
        )
        self.field = field


class ModelNotFoundError(ServerError):
    """The server has no such model."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: expected a model of this server, got none. RepositoryIndex lists them."
        )
        self.field = field


class RegionNotFoundError(ServerError):
    """The caller has not registered such a region, or there is no such memory."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: expected shared memory of this caller, got none. Register it first, by the "
            "name of an object that this server may read and write."
        )
        self.field = field


class RegionExistsError(ServerError):
    """The caller has registered a region of this name."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field}: expected a name that is free, got one of a region. Unregister that first."
        )
        self.field = field


class UnsupportedError(ServerError):
    """A field has a value that this server does not know, or knows and does not offer.

    Attributes:
        field: Path of the field.
        supported: The values that it offers.
    """

    def __init__(self, field: str, value: str, supported: tuple[str, ...]) -> None:
        super().__init__(
            f"{field}: expected one of {', '.join(supported)}, got {value}, which this server "
            "does not offer. Use one of those."
        )
        self.field = field
        self.supported = supported


class UnknownFieldError(UnsupportedError):
    """A request has a field that this server does not know, and therefore cannot honour."""

    def __init__(self, field: str) -> None:
        ServerError.__init__(
            self,
            f"{field}: expected a field that this server knows, got one that it does not. "
            "Leave it out, or ask a newer server.",
        )
        self.field = field
        self.supported = ()


class RefusedError(ServerError):
    """The call is refused before any work was done for it."""


class UnauthenticatedError(RefusedError):
    """The call brings no token that this server knows."""

    def __init__(self, got: str) -> None:
        super().__init__(f"authorization: expected a bearer token of this server, got {got}.")


class QuotaExceededError(RefusedError):
    """The caller already uses all that its token allows.

    The text is the same for every call that breaks the same quota, so that logs can group it.

    Attributes:
        quota: What is limited.
        limit: The most that the token allows.
        actual: The amount with this request.
        retry_after_s: When to come again, in seconds.
    """

    def __init__(self, what: str, limit: float, actual: float | str, retry_after_s: float) -> None:
        super().__init__(
            f"quota: expected at most {limit:g} {what} for this token, got more with this request. "
            "Try again after the delay that the details of this status give."
        )
        self.quota = what
        self.limit = limit
        self.actual = actual
        self.retry_after_s = retry_after_s


class OverloadedError(RefusedError):
    """The server has admitted too much to take this call.

    Attributes:
        retry_after_s: When to come again, in seconds.
    """

    def __init__(self, complaint: str, retry_after_s: float) -> None:
        super().__init__(f"{complaint} Try again in {retry_after_s:.3g} s.")
        self.retry_after_s = retry_after_s


class QueueFullError(OverloadedError):
    """The admitted calls already fill a limit.

    Attributes:
        what: Unit of the two numbers, and whose they are.
        limit: The most for all callers, or for one.
        actual: The amount with this request.
    """

    def __init__(self, what: str, limit: int, actual: int, retry_after_s: float) -> None:
        complaint = f"expected at most {limit} admitted {what}, got {actual} with this request."
        super().__init__(f"queue: {complaint}", retry_after_s)
        self.what = what
        self.limit = limit
        self.actual = actual


class ArenasFullError(OverloadedError):
    """No more memory may be shared, with all callers together or with this one.

    Attributes:
        limit: The most for all callers, or for one.
        actual: The amount with this request.
    """

    def __init__(self, what: str, limit: int, actual: int) -> None:
        complaint = f"expected at most {limit} {what}, got {actual} with this request."
        super().__init__(f"arenas: {complaint}", ARENAS_FULL_RETRY_S)
        self.limit = limit
        self.actual = actual


class ResidentsFullError(OverloadedError):
    """There is no room for a resident tensor while calls use those that would be evicted.

    Attributes:
        limit: The most for all callers, or for one.
        actual: The amount with this tensor.
    """

    def __init__(self, what: str, limit: int, actual: int) -> None:
        complaint = f"expected at most {limit} {what}, got {actual} with this one."
        super().__init__(f"residents: {complaint}", RESIDENTS_FULL_RETRY_S)
        self.limit = limit
        self.actual = actual


class DeviceFullError(OverloadedError):
    """The memory of the device could not hold the batch of this request, nor half of it.

    Attributes:
        device: The name of the device.
    """

    def __init__(self, device: str) -> None:
        complaint = f"expected memory for this request on {device}, got none."
        super().__init__(f"device: {complaint}", DEVICE_FULL_RETRY_S)
        self.device = device


class DeadlineUnreachableError(OverloadedError):
    """The work that is admitted already takes longer than the caller can wait.

    Attributes:
        needed_s: After which the result would be there.
        remaining_s: After which it is unwanted.
    """

    def __init__(self, needed_s: float, remaining_s: float, retry_after_s: float) -> None:
        complaint = f"expected at least {needed_s:.3g} s from now, got {remaining_s:.3g} s."
        super().__init__(f"deadline: {complaint}", retry_after_s)
        self.needed_s = needed_s
        self.remaining_s = remaining_s


class DrainingError(RefusedError):
    """The server finishes the calls that it has and takes no new ones."""

    def __init__(self) -> None:
        super().__init__("server: expected to be serving, got shutdown. Try another replica.")


class BrokenError(RefusedError):
    """The device is lost, and with it all calls that waited for it; only a restart helps."""

    def __init__(self) -> None:
        super().__init__("server: expected a working device, got none. Try another replica.")


class RequestTooLargeError(RefusedError):
    """A request exceeds a limit, now and whenever it is tried again.

    Attributes:
        field: Path of the field that asks for too much.
        limit: The most that the configuration allows.
        actual: The amount that was asked for.
    """

    def __init__(self, field: str, limit: int, actual: int, unit: str) -> None:
        super().__init__(f"{field}: expected at most {limit} {unit}, got {actual}. Ask for less.")
        self.field = field
        self.limit = limit
        self.actual = actual


class MessageTooLargeError(RequestTooLargeError):
    """The message has more bytes than the server takes."""


class ResultTooLargeError(RequestTooLargeError):
    """The result would have more bytes, samples, pixels or control points than allowed."""


class QuotaTooSmallError(RequestTooLargeError):
    """This call alone exceeds what its token allows, or a tensor what one caller may have."""


class UploadTimeoutError(RefusedError):
    """The message of a call did not arrive in time."""

    def __init__(self, timeout_s: float) -> None:
        expected = f"expected all of it within {timeout_s:g} s, got less"
        super().__init__(f"message: {expected}. Send it faster, or set limits.upload_s.")


class UnknownMethodError(RefusedError):
    """The server has no such method."""

    def __init__(self, path: str) -> None:
        super().__init__(f"method: expected one of this server, got {path}.")


class DeadlineExceededError(ServerError):
    """The deadline passed while the request waited for a device."""

    def __init__(self) -> None:
        super().__init__("deadline: expected a result in time, got none while queued.")


class BatchFailedError(ServerError):
    """The device could not run the batch that held this request.

    Attributes:
        batch_items: Requests in that batch.
    """

    def __init__(self, batch_items: int) -> None:
        super().__init__(f"batch: expected results for {batch_items} items, got a failure.")
        self.batch_items = batch_items


class DeviceLostError(ServerError):
    """The device has failed for good, so that nothing can be computed any more."""

    def __init__(self, description: str) -> None:
        super().__init__(f"device: {description}. Restart the server.")


def clear_frames(error: BaseException) -> None:
    """Frees what is held by the frames that an error and its causes went through.

    A waiting frame, its future and the error in that form a reference cycle, which would keep the
    message of the call in memory.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
