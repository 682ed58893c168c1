from google.protobuf import any_pb2 as _any_pb2
from stn_proto.v1 import objective_pb2 as _objective_pb2
from stn_proto.v1 import warp_pb2 as _warp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ComputeManyRequest(_message.Message):
    __slots__ = ("calls", "alignment", "payloads")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[NestedCall]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, calls: _Optional[_Iterable[_Union[NestedCall, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class NestedCall(_message.Message):
    __slots__ = ("payload_count", "warp", "warp_gradients", "generate_grid", "generate_grid_gradients", "objective")
    PAYLOAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    WARP_FIELD_NUMBER: _ClassVar[int]
    WARP_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    GENERATE_GRID_FIELD_NUMBER: _ClassVar[int]
    GENERATE_GRID_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    payload_count: int
    warp: _warp_pb2.WarpRequest
    warp_gradients: _warp_pb2.WarpGradientsRequest
    generate_grid: _warp_pb2.GenerateGridRequest
    generate_grid_gradients: _warp_pb2.GenerateGridGradientsRequest
    objective: _objective_pb2.ObjectiveRequest
    def __init__(self, payload_count: _Optional[int] = ..., warp: _Optional[_Union[_warp_pb2.WarpRequest, _Mapping]] = ..., warp_gradients: _Optional[_Union[_warp_pb2.WarpGradientsRequest, _Mapping]] = ..., generate_grid: _Optional[_Union[_warp_pb2.GenerateGridRequest, _Mapping]] = ..., generate_grid_gradients: _Optional[_Union[_warp_pb2.GenerateGridGradientsRequest, _Mapping]] = ..., objective: _Optional[_Union[_objective_pb2.ObjectiveRequest, _Mapping]] = ...) -> None: ...

class ComputeManyReply(_message.Message):
    __slots__ = ("replies", "alignment", "payloads")
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[NestedReply]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, replies: _Optional[_Iterable[_Union[NestedReply, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class NestedReply(_message.Message):
    __slots__ = ("payload_count", "warp", "warp_gradients", "generate_grid", "generate_grid_gradients", "objective", "status")
    PAYLOAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    WARP_FIELD_NUMBER: _ClassVar[int]
    WARP_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    GENERATE_GRID_FIELD_NUMBER: _ClassVar[int]
    GENERATE_GRID_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    payload_count: int
    warp: _warp_pb2.WarpReply
    warp_gradients: _warp_pb2.WarpGradientsReply
    generate_grid: _warp_pb2.GenerateGridReply
    generate_grid_gradients: _warp_pb2.GenerateGridGradientsReply
    objective: _objective_pb2.ObjectiveReply
    status: Status
    def __init__(self, payload_count: _Optional[int] = ..., warp: _Optional[_Union[_warp_pb2.WarpReply, _Mapping]] = ..., warp_gradients: _Optional[_Union[_warp_pb2.WarpGradientsReply, _Mapping]] = ..., generate_grid: _Optional[_Union[_warp_pb2.GenerateGridReply, _Mapping]] = ..., generate_grid_gradients: _Optional[_Union[_warp_pb2.GenerateGridGradientsReply, _Mapping]] = ..., objective: _Optional[_Union[_objective_pb2.ObjectiveReply, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...
