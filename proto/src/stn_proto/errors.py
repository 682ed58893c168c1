"""What can be wrong with bytes from the wire."""

from __future__ import annotations


class WireFormatError(ValueError):
    """A message does not keep the wire contract.

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
