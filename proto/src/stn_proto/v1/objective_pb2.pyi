from stn_proto.v1 import tensor_pb2 as _tensor_pb2
from stn_proto.v1 import warp_pb2 as _warp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Loss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_UNSPECIFIED: _ClassVar[Loss]
    LOSS_SSD: _ClassVar[Loss]
    LOSS_HUBER: _ClassVar[Loss]
    LOSS_NCC: _ClassVar[Loss]

class Domain(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOMAIN_UNSPECIFIED: _ClassVar[Domain]
    DOMAIN_OVERLAP: _ClassVar[Domain]
    DOMAIN_ALL: _ClassVar[Domain]

class ObjectiveResult(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_RESULT_UNSPECIFIED: _ClassVar[ObjectiveResult]
    OBJECTIVE_RESULT_VALUE: _ClassVar[ObjectiveResult]
    OBJECTIVE_RESULT_GRADIENT: _ClassVar[ObjectiveResult]
    OBJECTIVE_RESULT_GAUSS_NEWTON: _ClassVar[ObjectiveResult]
LOSS_UNSPECIFIED: Loss
LOSS_SSD: Loss
LOSS_HUBER: Loss
LOSS_NCC: Loss
DOMAIN_UNSPECIFIED: Domain
DOMAIN_OVERLAP: Domain
DOMAIN_ALL: Domain
OBJECTIVE_RESULT_UNSPECIFIED: ObjectiveResult
OBJECTIVE_RESULT_VALUE: ObjectiveResult
OBJECTIVE_RESULT_GRADIENT: ObjectiveResult
OBJECTIVE_RESULT_GAUSS_NEWTON: ObjectiveResult

class ObjectiveRequest(_message.Message):
    __slots__ = ("moving", "fixed", "transform", "spec", "weights", "loss", "delta", "domain", "needs", "placement", "alignment", "payloads")
    MOVING_FIELD_NUMBER: _ClassVar[int]
    FIXED_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    moving: _tensor_pb2.Tensor
    fixed: _tensor_pb2.Tensor
    transform: _warp_pb2.Transform
    spec: _warp_pb2.WarpSpec
    weights: _tensor_pb2.Tensor
    loss: Loss
    delta: float
    domain: Domain
    needs: _containers.RepeatedScalarFieldContainer[ObjectiveResult]
    placement: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ArenaRef]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, moving: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., fixed: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., transform: _Optional[_Union[_warp_pb2.Transform, _Mapping]] = ..., spec: _Optional[_Union[_warp_pb2.WarpSpec, _Mapping]] = ..., weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., loss: _Optional[_Union[Loss, str]] = ..., delta: _Optional[float] = ..., domain: _Optional[_Union[Domain, str]] = ..., needs: _Optional[_Iterable[_Union[ObjectiveResult, str]]] = ..., placement: _Optional[_Iterable[_Union[_tensor_pb2.ArenaRef, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ObjectiveReply(_message.Message):
    __slots__ = ("value", "count", "gradient", "gauss_newton", "timing", "alignment", "payloads")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    GAUSS_NEWTON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    value: _tensor_pb2.Tensor
    count: _tensor_pb2.Tensor
    gradient: _tensor_pb2.Tensor
    gauss_newton: _tensor_pb2.Tensor
    timing: _warp_pb2.Timing
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., count: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., gradient: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., gauss_newton: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., timing: _Optional[_Union[_warp_pb2.Timing, _Mapping]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...
