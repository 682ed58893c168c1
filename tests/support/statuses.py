"""What a google.rpc.Status, or one of ours with the same fields, says beside its code."""

from __future__ import annotations

from google.rpc import error_details_pb2


def detail(status, kind):
    """The one detail of this kind in a status."""
    (found,) = (packed for packed in status.details if packed.Is(kind.DESCRIPTOR))
    message = kind()
    found.Unpack(message)
    return message


def reason(status):
    """Why, by the list of the contract."""
    return detail(status, error_details_pb2.ErrorInfo).reason
