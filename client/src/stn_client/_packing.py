"""Several calls in one message, as the method `ComputeMany`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from stn_client._envelopes import METHOD_PREFIX, NESTED, Envelope, Places, mismatch
from stn_client._prepared_call import Call
from stn_proto import WireFormatError, join, join_many, split_many
from stn_proto.v1 import many_pb2


def compute_many(calls: Sequence[Call[Any]]) -> Call[list[bytes | many_pb2.Status]]:
    """Makes the call of the method `ComputeMany`.

    Returns:
        A call whose result has, for each of these calls, its serialized reply, in memory of its
        own, or a status.
    """
    payloads = [payload for call in calls for payload in call.payloads]
    request = join_many([call.envelope.nested for call in calls], payloads)
    replies = _ManyReplies([NESTED[call.method].name for call in calls])
    message = many_pb2.ComputeManyRequest()
    envelope = Envelope(METHOD_PREFIX + "ComputeMany", message, (), (), replies)
    envelope.size_bytes = len(request)
    return Call(envelope, payloads, serialized=request)


class _ManyReplies:
    """Reads replies of ComputeMany.

    Args:
        names: The name of the kind of each reply within, unless it is a status.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def read(self, message: bytes, _places: Places = ()) -> list[bytes | many_pb2.Status]:
        try:
            return list(self._replies(message))
        except (WireFormatError, DecodeError) as error:
            raise mismatch("ComputeMany", error) from error

    def _replies(self, message: bytes) -> Iterator[bytes | many_pb2.Status]:
        found, names = split_many(message), self._names
        if len(found.nested) != len(names):
            raise WireFormatError("replies", f"{len(names)} of them", str(len(found.nested)))
        end = 0
        # Those of one batch are mostly the same but for their payloads, and are parsed once.
        parsed: dict[bytes, tuple[Any, str | None, bytes]] = {}
        for piece, name in zip(found.nested, names, strict=True):
            known = parsed.get(piece)
            if known is None:
                reply = many_pb2.NestedReply.FromString(piece)
                kind = reply.WhichOneof("outcome")
                envelope = b"" if kind is None else getattr(reply, kind).SerializeToString()
                known = parsed[piece] = reply, kind, envelope
            reply, kind, envelope = known
            start, end = end, end + reply.payload_count
            if kind == "status":
                yield reply.status
            elif kind == name:
                yield join(envelope, found.payloads[start:end])
            else:
                raise WireFormatError("replies", f"one of {name}", f"one of {kind}")
