"""What can be wrong with bytes from the wire, and where callers find why a call failed."""

from __future__ import annotations

import copyreg
from typing import Any

ERROR_DOMAIN = "stn.v1.SpatialTransformer"
"""Domain of the `google.rpc.ErrorInfo` that every status of the service carries.

Its `reason` is the name of an `ErrorReason` of the contract without ERROR_REASON_.
"""


class WireFormatError(ValueError):
    """A message violates the wire contract.

    Attributes:
        field: Path of the field at fault, as `transform.affine.theta.shape`.
        expected: What the contract says.
        actual: What stood in the message.
    """

    def __init__(self, field: str, expected: str, actual: str, remedy: str = "") -> None:
        super().__init__(f"{field}: expected {expected}, got {actual}. {remedy}".rstrip())
        self.field = field
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, and not by the arguments of __init__: a worker process could not send it back.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class FrameTooLargeError(WireFormatError):
    """A message has more payloads, or more bytes beside them, than its receiver takes.

    Attributes:
        limit: What it takes.
    """

    def __init__(self, field: str, limit: int, unit: str, actual: str, remedy: str) -> None:
        super().__init__(field, f"at most {limit} {unit}", actual, remedy)
        self.limit = limit
