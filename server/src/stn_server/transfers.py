"""Answers Upload, Download and Release, which move resident tensors."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from stn_proto import Frame, describe_tensor, join
from stn_proto.codec import DTYPES
from stn_proto.v1 import resident_pb2, tensor_pb2
from stn_proto.v1.tensor_pb2 import ResidentRef
from stn_server.config import LimitsConfig
from stn_server.errors import InvalidRequestError, ResultTooLargeError
from stn_server.operands import (
    Memory,
    Payloads,
    declare,
    parse,
    reference_of,
    require_shape,
)
from stn_server.residents import Resident, Residents
from stn_server.vocabulary import unsupported

M = TypeVar("M", bound=Message)


class Transfers:
    """Answers the methods that move resident tensors, each a message -> its serialized reply.

    Args:
        residents: The store of resident tensors.
        limits: The limits of messages and replies.
        memory: The memory beside messages in which pieces may lie.
    """

    def __init__(self, residents: Residents, limits: LimitsConfig, memory: Memory) -> None:
        self._residents = residents
        self._limits = limits
        self._memory = memory
        self.methods = {
            "Upload": self._upload,
            "Download": self._download,
            "Release": self._release,
        }

    def _upload(self, message: bytes, caller: str) -> bytes:
        """Stores a piece of a tensor that a caller sends."""
        request, payloads = self._parsed(message, resident_pb2.UploadRequest)
        operand = declare(request.piece, "piece")
        declaration = operand.declaration
        require_shape(declaration, ("bytes",))
        if declaration.dtype != np.uint8:
            expected = f"expected DATA_TYPE_UINT8, got {declaration.dtype}. Send bytes."
            raise InvalidRequestError("piece.data_type", expected)
        reference = reference_of(message, resident_pb2.UploadRequest, declaration)
        if reference is None:
            declaration.check([len(payload) for payload in payloads])
            piece = operand.read(payloads)
        else:
            piece = operand.read(payloads, reference.locate(message, self._memory, caller))
        resident = (
            self._next_piece(request, piece, caller)
            if request.HasField("resident")
            else self._first_piece(request, piece, caller)
        )
        return resident_pb2.UploadReply(
            resident=ResidentRef(handle=resident.handle, address=self._residents.address),
            missing_bytes=resident.missing_bytes,
        ).SerializeToString()

    def _first_piece(
        self, request: resident_pb2.UploadRequest, piece: memoryview, caller: str
    ) -> Resident:
        if request.data_type not in DTYPES:
            raise unsupported("data_type", tensor_pb2.DataType, request.data_type, DTYPES)
        item_bytes = DTYPES[request.data_type].itemsize
        if request.byte_count < 1 or request.byte_count % item_bytes:
            expected = f"expected a multiple of {item_bytes} above 0, got {request.byte_count}."
            raise InvalidRequestError("byte_count", f"{expected} Count the whole tensor.")
        if request.offset:
            expected = f"expected 0 for the first piece, got {request.offset}."
            raise InvalidRequestError("offset", f"{expected} Say what it belongs to: `resident`.")
        return self._residents.begin(caller, request.data_type, request.byte_count, piece)

    def _next_piece(
        self, request: resident_pb2.UploadRequest, piece: memoryview, caller: str
    ) -> Resident:
        resident = self._residents.find(caller, "resident", request.resident.handle)
        said = request.data_type, request.byte_count
        known = resident.data_type, resident.size_bytes
        for name, one, other in zip(("data_type", "byte_count"), said, known, strict=True):
            if one not in {0, other}:
                expected = f"expected {other}, as of the first piece, or nothing, got {one}."
                raise InvalidRequestError(name, f"{expected} Leave it out.")
        resident.write(request.offset, piece)
        return resident

    def _download(self, message: bytes, caller: str) -> bytes:
        """Returns a piece of a resident tensor."""
        request, _ = self._parsed(message, resident_pb2.DownloadRequest)
        resident = self._residents.find(caller, "resident", request.resident.handle)
        if resident.missing_bytes:
            expected = f"expected all {resident.size_bytes} bytes of the tensor"
            got = f"got {resident.received_bytes} so far"
            raise InvalidRequestError("resident", f"{expected}, {got}. Upload the others first.")
        if not 0 <= request.offset < resident.size_bytes:
            expected = f"expected 0 to {resident.size_bytes - 1}, got {request.offset}."
            raise InvalidRequestError("offset", f"{expected} Begin within the tensor.")
        if request.byte_count < 1:
            expected = f"expected at least 1, got {request.byte_count}."
            raise InvalidRequestError("byte_count", f"{expected} Say how many are wanted.")
        end = min(request.offset + request.byte_count, resident.size_bytes)
        piece_bytes, most_bytes = end - request.offset, self._limits.max_output_bytes
        if piece_bytes > most_bytes:
            raise ResultTooLargeError("byte_count", most_bytes, piece_bytes, "bytes of output")
        reply = resident_pb2.DownloadReply(
            piece=describe_tensor(np.uint8, (piece_bytes,), 0),
            data_type=resident.data_type,
            byte_count=resident.size_bytes,
        )
        return join(reply.SerializeToString(), [resident.view()[request.offset : end]])

    def _release(self, message: bytes, caller: str) -> bytes:
        """Forgets resident tensors; those that are not there are no error."""
        request, _ = self._parsed(message, resident_pb2.ReleaseRequest)
        handles = [resident.handle for resident in request.residents]
        released = self._residents.release(caller, handles)
        return resident_pb2.ReleaseReply(released=released).SerializeToString()

    def _parsed(self, message: bytes, kind: type[M]) -> tuple[M, Payloads]:
        limits = self._limits
        frame = Frame.of(message, limits.max_payloads, limits.max_envelope_bytes)
        return parse(frame.envelope, kind), frame.cut(message)
