"""The calls that move resident tensors: Upload, Download and Release."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from stn_client._arguments import check_dtype
from stn_client._arrays import Array, Operand, operand
from stn_client._calls import plain_call
from stn_client._envelopes import Payloads, Places, Replies, mismatch
from stn_client._errors import invalid
from stn_client._prepared_call import Call, CallSettings
from stn_client._residents import Held, ResidentTensor
from stn_proto import put_tensor
from stn_proto.codec import data_type
from stn_proto.v1 import resident_pb2
from stn_proto.v1.tensor_pb2 import ResidentRef

MAX_RELEASED = 512
"""The most tensors that one message releases; servers take few fields in one."""

PIECE_BYTES = (1 << 20) - (1 << 12)
"""The size of a piece of an upload: any server takes the message, and its overhead is small."""


def kept(given: Operand, client: str) -> ResidentTensor:
    """Returns an operand of a warp that the server keeps for the gradients of that warp."""
    return ResidentTensor(given.array, given.like, given.layout, held=Held(client, is_kept=True))


def resident_of(value: Any, client: str) -> ResidentTensor:
    """Returns a resident tensor that has not been uploaded yet.

    Args:
        value: What a caller gave; copied.
        client: Name of the client.

    Raises:
        InvalidRequestError: It is no array that the service takes.
    """
    given = operand("array", value)
    array = given.array
    check_dtype("array", array.dtype)
    if not array.size:
        raise invalid("array", f"expected at least one element, got shape {array.shape}.")
    try:
        # Kept for a later upload, so the caller must not be able to change what calls will compute.
        array = array.copy()
    except MemoryError as error:  # a view may be larger than any memory
        expected = "expected an array of which the client can keep a copy"
        raise invalid("array", f"{expected}: {error}.") from error
    array.flags.writeable = False
    return ResidentTensor(array, given.like, given.layout, held=Held(client, is_uploaded=True))


def check_resident(tensor: object) -> None:
    """Checks that a caller gave what `Client.upload` returns.

    Raises:
        InvalidRequestError: It is something else.
    """
    if not isinstance(tensor, ResidentTensor):
        expected = f"expected a tensor as upload returns it, got {type(tensor).__name__}."
        raise invalid("tensor", expected)


def given_up(residents: Iterable[ResidentTensor], client: str) -> dict[str, list[ResidentRef]]:
    """Releases tensors of a client; returns their references by the addresses of replicas."""
    references: dict[str, list[ResidentRef]] = {}
    for held in (resident.held for resident in residents):
        if held.client == client:
            # Before servers are told: a call that is made meanwhile must not name it any more.
            held.is_uploaded, there, held.references = False, held.references, {}
            for address, reference in tuple(there.items()):  # uploads under way may add
                references.setdefault(address, []).append(reference)
    return references


def upload(
    piece: memoryview,
    reference: ResidentRef | None,
    offset: int,
    dtype: np.dtype[Any],
    size_bytes: int,
    settings: CallSettings,
) -> Call[tuple[ResidentRef, int]]:
    """Makes the call of the method `Upload`.

    Args:
        piece: The bytes of the piece.
        reference: Where it stays; None: this is the first piece.
        offset: Where the piece begins, in bytes.
        dtype: The type of the tensor's elements.
        size_bytes: The size of the whole tensor.
        settings: How the call is made.

    Returns:
        A call whose result says where the tensor stays, and how many bytes are missing.
    """
    payloads: Payloads = []
    request = resident_pb2.UploadRequest(
        piece=put_tensor(np.frombuffer(piece, np.uint8), payloads),
        resident=reference,
        offset=offset,
        data_type=data_type(dtype),
        byte_count=size_bytes,
    )
    return plain_call("Upload", request, payloads, _UploadReplies(), settings)


def download(
    reference: ResidentRef, offset: int, size_bytes: int, settings: CallSettings
) -> Call[Array]:
    """Makes the call of the method `Download`, for bytes of a tensor."""
    request = resident_pb2.DownloadRequest(resident=reference, offset=offset, byte_count=size_bytes)
    replies = Replies("Download", resident_pb2.DownloadReply, ["piece"], lambda piece: piece)
    call: Call[Array] = plain_call("Download", request, [], replies, settings)
    call.address = reference.address
    return call


def release(references: Sequence[ResidentRef], address: str, settings: CallSettings) -> Call[int]:
    """Makes the call of the method `Release`, whose result is how many tensors were there."""
    request = resident_pb2.ReleaseRequest(residents=references)
    call = plain_call("Release", request, [], _ReleaseReplies(), settings)
    call.address = address
    return call


class _UploadReplies:
    """Reads the reference of a tensor, and how many of its bytes are missing."""

    def read(self, message: bytes, _places: Places = ()) -> tuple[ResidentRef, int]:
        try:
            reply = resident_pb2.UploadReply.FromString(message)
        except DecodeError as error:
            raise mismatch("Upload", error) from error
        return reply.resident, reply.missing_bytes


class _ReleaseReplies:
    """Reads how many tensors were released."""

    def read(self, message: bytes, _places: Places = ()) -> int:
        try:
            return resident_pb2.ReleaseReply.FromString(message).released
        except DecodeError as error:
            raise mismatch("Release", error) from error
