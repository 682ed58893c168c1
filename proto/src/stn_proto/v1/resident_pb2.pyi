from stn_proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadRequest(_message.Message):
    __slots__ = ("piece", "resident", "offset", "data_type", "byte_count", "alignment", "payloads")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    piece: _tensor_pb2.Tensor
    resident: _tensor_pb2.ResidentRef
    offset: int
    data_type: _tensor_pb2.DataType
    byte_count: int
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, piece: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., resident: _Optional[_Union[_tensor_pb2.ResidentRef, _Mapping]] = ..., offset: _Optional[int] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., byte_count: _Optional[int] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("resident", "missing_bytes")
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    MISSING_BYTES_FIELD_NUMBER: _ClassVar[int]
    resident: _tensor_pb2.ResidentRef
    missing_bytes: int
    def __init__(self, resident: _Optional[_Union[_tensor_pb2.ResidentRef, _Mapping]] = ..., missing_bytes: _Optional[int] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("resident", "offset", "byte_count")
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    resident: _tensor_pb2.ResidentRef
    offset: int
    byte_count: int
    def __init__(self, resident: _Optional[_Union[_tensor_pb2.ResidentRef, _Mapping]] = ..., offset: _Optional[int] = ..., byte_count: _Optional[int] = ...) -> None: ...

class DownloadReply(_message.Message):
    __slots__ = ("piece", "data_type", "byte_count", "alignment", "payloads")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    piece: _tensor_pb2.Tensor
    data_type: _tensor_pb2.DataType
    byte_count: int
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, piece: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., byte_count: _Optional[int] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("residents",)
    RESIDENTS_FIELD_NUMBER: _ClassVar[int]
    residents: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ResidentRef]
    def __init__(self, residents: _Optional[_Iterable[_Union[_tensor_pb2.ResidentRef, _Mapping]]] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: int
    def __init__(self, released: _Optional[int] = ...) -> None: ...
