from stn_proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Interpolation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_UNSPECIFIED: _ClassVar[Interpolation]
    INTERPOLATION_NEAREST: _ClassVar[Interpolation]
    INTERPOLATION_BILINEAR: _ClassVar[Interpolation]
    INTERPOLATION_BICUBIC: _ClassVar[Interpolation]

class Padding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PADDING_UNSPECIFIED: _ClassVar[Padding]
    PADDING_ZEROS: _ClassVar[Padding]
    PADDING_BORDER: _ClassVar[Padding]
    PADDING_REFLECTION: _ClassVar[Padding]
    PADDING_FILL: _ClassVar[Padding]

class Coordinates(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COORDINATES_UNSPECIFIED: _ClassVar[Coordinates]
    COORDINATES_NORMALIZED: _ClassVar[Coordinates]
    COORDINATES_PIXEL: _ClassVar[Coordinates]

class Subgradient(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBGRADIENT_UNSPECIFIED: _ClassVar[Subgradient]
    SUBGRADIENT_RIGHT: _ClassVar[Subgradient]
    SUBGRADIENT_ZERO: _ClassVar[Subgradient]

class Operand(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERAND_UNSPECIFIED: _ClassVar[Operand]
    OPERAND_FEATURE_MAP: _ClassVar[Operand]
    OPERAND_TRANSFORM: _ClassVar[Operand]
INTERPOLATION_UNSPECIFIED: Interpolation
INTERPOLATION_NEAREST: Interpolation
INTERPOLATION_BILINEAR: Interpolation
INTERPOLATION_BICUBIC: Interpolation
PADDING_UNSPECIFIED: Padding
PADDING_ZEROS: Padding
PADDING_BORDER: Padding
PADDING_REFLECTION: Padding
PADDING_FILL: Padding
COORDINATES_UNSPECIFIED: Coordinates
COORDINATES_NORMALIZED: Coordinates
COORDINATES_PIXEL: Coordinates
SUBGRADIENT_UNSPECIFIED: Subgradient
SUBGRADIENT_RIGHT: Subgradient
SUBGRADIENT_ZERO: Subgradient
OPERAND_UNSPECIFIED: Operand
OPERAND_FEATURE_MAP: Operand
OPERAND_TRANSFORM: Operand

class WarpSpec(_message.Message):
    __slots__ = ("interpolation", "padding", "fill", "coordinates", "align_corners", "subgradient", "allow_nondeterministic", "fill_remainder")
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    ALIGN_CORNERS_FIELD_NUMBER: _ClassVar[int]
    SUBGRADIENT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NONDETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    FILL_REMAINDER_FIELD_NUMBER: _ClassVar[int]
    interpolation: Interpolation
    padding: Padding
    fill: _containers.RepeatedScalarFieldContainer[float]
    coordinates: Coordinates
    align_corners: bool
    subgradient: Subgradient
    allow_nondeterministic: bool
    fill_remainder: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, interpolation: _Optional[_Union[Interpolation, str]] = ..., padding: _Optional[_Union[Padding, str]] = ..., fill: _Optional[_Iterable[float]] = ..., coordinates: _Optional[_Union[Coordinates, str]] = ..., align_corners: bool = ..., subgradient: _Optional[_Union[Subgradient, str]] = ..., allow_nondeterministic: bool = ..., fill_remainder: _Optional[_Iterable[int]] = ...) -> None: ...

class Affine(_message.Message):
    __slots__ = ("theta",)
    THETA_FIELD_NUMBER: _ClassVar[int]
    theta: _tensor_pb2.Tensor
    def __init__(self, theta: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SamplingGrid(_message.Message):
    __slots__ = ("grid",)
    GRID_FIELD_NUMBER: _ClassVar[int]
    grid: _tensor_pb2.Tensor
    def __init__(self, grid: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Homography(_message.Message):
    __slots__ = ("theta",)
    THETA_FIELD_NUMBER: _ClassVar[int]
    theta: _tensor_pb2.Tensor
    def __init__(self, theta: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ThinPlateSpline(_message.Message):
    __slots__ = ("points", "control_points", "regularization")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_POINTS_FIELD_NUMBER: _ClassVar[int]
    REGULARIZATION_FIELD_NUMBER: _ClassVar[int]
    points: _tensor_pb2.Tensor
    control_points: _containers.RepeatedScalarFieldContainer[float]
    regularization: float
    def __init__(self, points: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., control_points: _Optional[_Iterable[float]] = ..., regularization: _Optional[float] = ...) -> None: ...

class Flow(_message.Message):
    __slots__ = ("displacement",)
    DISPLACEMENT_FIELD_NUMBER: _ClassVar[int]
    displacement: _tensor_pb2.Tensor
    def __init__(self, displacement: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Attention(_message.Message):
    __slots__ = ("parameters",)
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    parameters: _tensor_pb2.Tensor
    def __init__(self, parameters: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Similarity(_message.Message):
    __slots__ = ("parameters",)
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    parameters: _tensor_pb2.Tensor
    def __init__(self, parameters: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Translation(_message.Message):
    __slots__ = ("parameters",)
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    parameters: _tensor_pb2.Tensor
    def __init__(self, parameters: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Rotation(_message.Message):
    __slots__ = ("parameters",)
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    parameters: _tensor_pb2.Tensor
    def __init__(self, parameters: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Transform(_message.Message):
    __slots__ = ("affine", "sampling_grid", "homography", "thin_plate_spline", "flow", "attention", "similarity", "translation", "rotation")
    AFFINE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_GRID_FIELD_NUMBER: _ClassVar[int]
    HOMOGRAPHY_FIELD_NUMBER: _ClassVar[int]
    THIN_PLATE_SPLINE_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    TRANSLATION_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    affine: Affine
    sampling_grid: SamplingGrid
    homography: Homography
    thin_plate_spline: ThinPlateSpline
    flow: Flow
    attention: Attention
    similarity: Similarity
    translation: Translation
    rotation: Rotation
    def __init__(self, affine: _Optional[_Union[Affine, _Mapping]] = ..., sampling_grid: _Optional[_Union[SamplingGrid, _Mapping]] = ..., homography: _Optional[_Union[Homography, _Mapping]] = ..., thin_plate_spline: _Optional[_Union[ThinPlateSpline, _Mapping]] = ..., flow: _Optional[_Union[Flow, _Mapping]] = ..., attention: _Optional[_Union[Attention, _Mapping]] = ..., similarity: _Optional[_Union[Similarity, _Mapping]] = ..., translation: _Optional[_Union[Translation, _Mapping]] = ..., rotation: _Optional[_Union[Rotation, _Mapping]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_s", "compute_s", "batch_items")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    compute_s: float
    batch_items: int
    def __init__(self, queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., batch_items: _Optional[int] = ...) -> None: ...

class WarpRequest(_message.Message):
    __slots__ = ("feature_map", "transform", "output_size", "spec", "keep_for_gradients", "placement", "alignment", "payloads")
    FEATURE_MAP_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    KEEP_FOR_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    feature_map: _tensor_pb2.Tensor
    transform: Transform
    output_size: _containers.RepeatedScalarFieldContainer[int]
    spec: WarpSpec
    keep_for_gradients: _containers.RepeatedScalarFieldContainer[Operand]
    placement: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ArenaRef]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, feature_map: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., transform: _Optional[_Union[Transform, _Mapping]] = ..., output_size: _Optional[_Iterable[int]] = ..., spec: _Optional[_Union[WarpSpec, _Mapping]] = ..., keep_for_gradients: _Optional[_Iterable[_Union[Operand, str]]] = ..., placement: _Optional[_Iterable[_Union[_tensor_pb2.ArenaRef, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WarpReply(_message.Message):
    __slots__ = ("output", "kept", "timing", "alignment", "payloads")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    output: _tensor_pb2.Tensor
    kept: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ResidentRef]
    timing: Timing
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, output: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., kept: _Optional[_Iterable[_Union[_tensor_pb2.ResidentRef, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WarpGradientsRequest(_message.Message):
    __slots__ = ("grad_output", "feature_map", "transform", "spec", "needs", "placement", "alignment", "payloads")
    GRAD_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FEATURE_MAP_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    grad_output: _tensor_pb2.Tensor
    feature_map: _tensor_pb2.Tensor
    transform: Transform
    spec: WarpSpec
    needs: _containers.RepeatedScalarFieldContainer[Operand]
    placement: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ArenaRef]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, grad_output: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., feature_map: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., transform: _Optional[_Union[Transform, _Mapping]] = ..., spec: _Optional[_Union[WarpSpec, _Mapping]] = ..., needs: _Optional[_Iterable[_Union[Operand, str]]] = ..., placement: _Optional[_Iterable[_Union[_tensor_pb2.ArenaRef, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WarpGradientsReply(_message.Message):
    __slots__ = ("grad_feature_map", "grad_transform", "timing", "alignment", "payloads")
    GRAD_FEATURE_MAP_FIELD_NUMBER: _ClassVar[int]
    GRAD_TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    grad_feature_map: _tensor_pb2.Tensor
    grad_transform: _tensor_pb2.Tensor
    timing: Timing
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, grad_feature_map: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., grad_transform: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GenerateGridRequest(_message.Message):
    __slots__ = ("transform", "output_size", "coordinates", "align_corners", "placement", "alignment", "payloads")
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    ALIGN_CORNERS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    transform: Transform
    output_size: _containers.RepeatedScalarFieldContainer[int]
    coordinates: Coordinates
    align_corners: bool
    placement: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ArenaRef]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, transform: _Optional[_Union[Transform, _Mapping]] = ..., output_size: _Optional[_Iterable[int]] = ..., coordinates: _Optional[_Union[Coordinates, str]] = ..., align_corners: bool = ..., placement: _Optional[_Iterable[_Union[_tensor_pb2.ArenaRef, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GenerateGridReply(_message.Message):
    __slots__ = ("grid", "timing", "alignment", "payloads")
    GRID_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    grid: _tensor_pb2.Tensor
    timing: Timing
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, grid: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GenerateGridGradientsRequest(_message.Message):
    __slots__ = ("grad_grid", "transform", "coordinates", "align_corners", "placement", "alignment", "payloads")
    GRAD_GRID_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    ALIGN_CORNERS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    grad_grid: _tensor_pb2.Tensor
    transform: Transform
    coordinates: Coordinates
    align_corners: bool
    placement: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.ArenaRef]
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, grad_grid: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., transform: _Optional[_Union[Transform, _Mapping]] = ..., coordinates: _Optional[_Union[Coordinates, str]] = ..., align_corners: bool = ..., placement: _Optional[_Iterable[_Union[_tensor_pb2.ArenaRef, _Mapping]]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GenerateGridGradientsReply(_message.Message):
    __slots__ = ("grad_transform", "timing", "alignment", "payloads")
    GRAD_TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    grad_transform: _tensor_pb2.Tensor
    timing: Timing
    alignment: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, grad_transform: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., alignment: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...
