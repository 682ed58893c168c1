"""Everything the server itself can answer instead of a result.

    ServerError
    ├─ InvalidRequestError       a field of the request is wrong
    ├─ UnsupportedError          the contract has it, this server does not
    ├─ RefusedError              turned away at the door; nothing was computed
    │   ├─ UnauthenticatedError  no token of this server came along
    │   ├─ QuotaExceededError    the caller has its share already
    │   ├─ OverloadedError       the queue is full
    │   ├─ DrainingError         the server is about to stop
    │   └─ RequestTooLargeError  above a configured limit, now and later
    ├─ DeadlineExceededError     the caller's deadline passed while the request was queued
    └─ BatchFailedError          the device failed; `__cause__` says how

`status.py` maps each class to its gRPC status.
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of the errors above."""


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


class UnsupportedError(ServerError):
    """The contract knows this value, but this server cannot compute it.

    Attributes:
        field: Path of the field.
        supported: The values that it can compute.
    """

    def __init__(self, field: str, value: str, supported: tuple[str, ...]) -> None:
        super().__init__(
            f"{field}: expected one of {', '.join(supported)}, got {value}, which this server "
            "does not offer. GetServerInfo lists what it does."
        )
        self.field = field
        self.supported = supported


class RefusedError(ServerError):
    """Turned away before any work was done."""

    reason = "refused"


class UnauthenticatedError(RefusedError):
    """The call brings no token that this server knows."""

    reason = "unauthenticated"

    def __init__(self, got: str) -> None:
        super().__init__(f"authorization: expected a bearer token of this server, got {got}.")


class QuotaExceededError(RefusedError):
    """The caller already takes what its token allows.

    Attributes:
        limit: What the token allows.
        retry_after_s: When to come again, in seconds.
    """

    reason = "quota"

    def __init__(self, what: str, limit: float, actual: float | str, retry_after_s: float) -> None:
        super().__init__(
            f"quota: expected at most {limit:g} {what} for this token, got {actual} with this "
            f"request. Try again in {retry_after_s:g} s."
        )
        self.limit = limit
        self.retry_after_s = retry_after_s


class OverloadedError(RefusedError):
    """What waits and runs already fills the limits.

    Attributes:
        retry_after_s: When to come again, in seconds.
    """

    reason = "overloaded"

    def __init__(self, what: str, limit: int, actual: int, retry_after_s: float) -> None:
        super().__init__(
            f"queue: expected at most {limit} admitted {what}, got {actual} with this request. "
            f"Try again in {retry_after_s:g} s."
        )
        self.limit = limit
        self.actual = actual
        self.retry_after_s = retry_after_s


class DrainingError(RefusedError):
    """The server finishes what it has and takes nothing new."""

    reason = "draining"

    def __init__(self) -> None:
        super().__init__("server: expected to be serving, got shutdown. Try another replica.")


class RequestTooLargeError(RefusedError):
    """One request exceeds a limit that no waiting will change.

    Attributes:
        field: Path of the field that asks for too much.
        limit: What the configuration allows.
        actual: What was asked for.
    """

    reason = "too_large"

    def __init__(self, field: str, limit: int, actual: int, unit: str) -> None:
        super().__init__(f"{field}: expected at most {limit} {unit}, got {actual}. Ask for less.")
        self.field = field
        self.limit = limit
        self.actual = actual


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
