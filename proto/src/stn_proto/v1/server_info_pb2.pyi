from stn_proto.v1 import tensor_pb2 as _tensor_pb2
from stn_proto.v1 import warp_pb2 as _warp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoReply(_message.Message):
    __slots__ = ("name", "version", "uptime_s", "ready", "devices", "capabilities", "limits", "statistics", "instance_id", "methods", "local_dir")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_DIR_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    uptime_s: float
    ready: bool
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    capabilities: _containers.RepeatedCompositeFieldContainer[Capabilities]
    limits: Limits
    statistics: Statistics
    instance_id: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    local_dir: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., ready: bool = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., capabilities: _Optional[_Iterable[_Union[Capabilities, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., statistics: _Optional[_Union[Statistics, _Mapping]] = ..., instance_id: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ..., local_dir: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "backend")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("dimensions", "data_types", "gradient_data_types", "parameter_data_types", "layouts", "interpolations", "paddings", "coordinates", "subgradients", "transforms")
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_DATA_TYPES_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_DATA_TYPES_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATIONS_FIELD_NUMBER: _ClassVar[int]
    PADDINGS_FIELD_NUMBER: _ClassVar[int]
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    SUBGRADIENTS_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    dimensions: int
    data_types: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DataType]
    gradient_data_types: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DataType]
    parameter_data_types: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DataType]
    layouts: _containers.RepeatedScalarFieldContainer[_tensor_pb2.Layout]
    interpolations: _containers.RepeatedScalarFieldContainer[_warp_pb2.Interpolation]
    paddings: _containers.RepeatedScalarFieldContainer[_warp_pb2.Padding]
    coordinates: _containers.RepeatedScalarFieldContainer[_warp_pb2.Coordinates]
    subgradients: _containers.RepeatedScalarFieldContainer[_warp_pb2.Subgradient]
    transforms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dimensions: _Optional[int] = ..., data_types: _Optional[_Iterable[_Union[_tensor_pb2.DataType, str]]] = ..., gradient_data_types: _Optional[_Iterable[_Union[_tensor_pb2.DataType, str]]] = ..., parameter_data_types: _Optional[_Iterable[_Union[_tensor_pb2.DataType, str]]] = ..., layouts: _Optional[_Iterable[_Union[_tensor_pb2.Layout, str]]] = ..., interpolations: _Optional[_Iterable[_Union[_warp_pb2.Interpolation, str]]] = ..., paddings: _Optional[_Iterable[_Union[_warp_pb2.Padding, str]]] = ..., coordinates: _Optional[_Iterable[_Union[_warp_pb2.Coordinates, str]]] = ..., subgradients: _Optional[_Iterable[_Union[_warp_pb2.Subgradient, str]]] = ..., transforms: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_output_bytes", "max_output_samples", "max_dimension_px", "max_admitted_items", "max_admitted_bytes", "max_payloads", "max_envelope_bytes", "max_control_points", "max_calls", "max_resident_bytes", "resident_lease_s")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_DIMENSION_PX_FIELD_NUMBER: _ClassVar[int]
    MAX_ADMITTED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_ADMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    MAX_ENVELOPE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTROL_POINTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_LEASE_S_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_output_bytes: int
    max_output_samples: int
    max_dimension_px: int
    max_admitted_items: int
    max_admitted_bytes: int
    max_payloads: int
    max_envelope_bytes: int
    max_control_points: int
    max_calls: int
    max_resident_bytes: int
    resident_lease_s: float
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_output_bytes: _Optional[int] = ..., max_output_samples: _Optional[int] = ..., max_dimension_px: _Optional[int] = ..., max_admitted_items: _Optional[int] = ..., max_admitted_bytes: _Optional[int] = ..., max_payloads: _Optional[int] = ..., max_envelope_bytes: _Optional[int] = ..., max_control_points: _Optional[int] = ..., max_calls: _Optional[int] = ..., max_resident_bytes: _Optional[int] = ..., resident_lease_s: _Optional[float] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("queued_items", "running_items", "admitted_bytes", "finished_items", "failed_items", "refused_items", "abandoned_items", "batches", "largest_batch_items")
    QUEUED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    FAILED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    queued_items: int
    running_items: int
    admitted_bytes: int
    finished_items: int
    failed_items: int
    refused_items: int
    abandoned_items: int
    batches: int
    largest_batch_items: int
    def __init__(self, queued_items: _Optional[int] = ..., running_items: _Optional[int] = ..., admitted_bytes: _Optional[int] = ..., finished_items: _Optional[int] = ..., failed_items: _Optional[int] = ..., refused_items: _Optional[int] = ..., abandoned_items: _Optional[int] = ..., batches: _Optional[int] = ..., largest_batch_items: _Optional[int] = ...) -> None: ...
