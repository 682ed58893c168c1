"""Models: every operation on every kind of transform, with the tensors and options that it has.

No kind and no operation is listed here: tensors and options follow from the messages of `stn.v1`
and from what the engine says of its kinds, so that new ones appear by themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import stn_engine
from stn_engine.spec import Family
from stn_proto.codec import DTYPES
from stn_proto.oip import inference_pb2
from stn_proto.v1 import service_pb2, tensor_pb2, warp_pb2
from stn_server.batching.work import Operation
from stn_server.operands import KINDS, transforms_in
from stn_server.translate import REQUESTS

VERSION = "1"
"""The version of every model."""

ANY = -1
"""The size of an axis that a model leaves open, also of the batch, the first axis of every
tensor."""

DEFAULT_PRIORITY, PRIORITIES = 2, 3
"""The priority of requests that name none, and the number of priorities: 1 goes first."""

_SUFFIXES = {2: "", 3: "_3d"}
"""The suffix of names of models by the number of dimensions of maps."""

_SHARED_NUMBERS = 10
"""Fields from this number on mean the same in all requests of `stn.v1`, and are of no operation."""


def _datatype(dtype: np.dtype[Any]) -> str:
    """Returns the protocol's name of a dtype."""
    if dtype == ml_dtypes.bfloat16:
        return "BF16"
    if dtype == np.bool_:
        return "BOOL"
    return {"f": "FP", "u": "UINT", "i": "INT"}[dtype.kind] + str(8 * dtype.itemsize)


DATA_TYPES = {_datatype(dtype): number for number, dtype in DTYPES.items()}
"""The dtypes by their names in the protocol: those of `stn.v1`."""

DATATYPES = {number: name for name, number in DATA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """An input or an output."""

    name: str
    path: tuple[str, ...]
    """The path of the field in the message of `stn.v1`."""
    shape: tuple[int, ...]
    datatype: str = "FP32"
    """Its datatype, as an example: maps may have others."""
    is_optional: bool = False

    @property
    def is_map(self) -> bool:
        """Whether it has channels, and therefore a layout."""
        return set(self.shape) == {ANY}


@dataclass(frozen=True, slots=True)
class Option:
    """A parameter of a request."""

    name: str
    path: tuple[str, ...]
    """The message of `stn.v1` that has it as a field."""
    field: Any
    """Its field descriptor."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model: an operation on one kind of transform, for maps of so many dimensions."""

    name: str
    operation: Operation
    kind: str
    """The field of `Transform.kind`."""
    inputs: dict[str, ModelTensor]
    outputs: dict[str, ModelTensor]
    options: dict[str, Option]
    has_layout: bool
    """Whether maps are among its tensors."""

    def metadata(self) -> inference_pb2.ModelMetadataResponse:
        """Returns the tensors of the model, as `ModelMetadata` reports them."""
        message = inference_pb2.ModelMetadataResponse
        return message(
            name=self.name,
            versions=[VERSION],
            platform="stn",
            inputs=[_metadata(tensor) for tensor in self.inputs.values()],
            outputs=[_metadata(tensor) for tensor in self.outputs.values()],
        )

    def config(self, max_batch_size: int, window_s: float) -> inference_pb2.ModelConfig:
        """Returns how the model is served, as `ModelConfig` reports it.

        Args:
            max_batch_size: The largest N.
            window_s: How long a free device waits for more calls.
        """
        return inference_pb2.ModelConfig(
            name=self.name,
            platform="stn",
            backend="stn",
            max_batch_size=max_batch_size,
            input=[
                inference_pb2.ModelInput(
                    name=one.name,
                    data_type=f"TYPE_{one.datatype}",
                    dims=one.shape[1:],
                    optional=one.is_optional,
                )
                for one in self.inputs.values()
            ],
            output=[
                inference_pb2.ModelOutput(
                    name=one.name, data_type=f"TYPE_{one.datatype}", dims=one.shape[1:]
                )
                for one in self.outputs.values()
            ],
            dynamic_batching=inference_pb2.ModelDynamicBatching(
                max_queue_delay_microseconds=round(window_s * 1e6),
                priority_levels=PRIORITIES,
                default_priority_level=DEFAULT_PRIORITY,
            ),
            model_transaction_policy=inference_pb2.ModelTransactionPolicy(decoupled=False),
        )


def models() -> dict[str, Model]:
    """Returns all models by their names."""
    made = (
        _model(operation, kind, dimensions)
        for operation in REQUESTS
        for dimensions in _SUFFIXES
        for kind in transforms_in(dimensions)
        if KINDS[kind] is not stn_engine.SamplingGrid or _warps(operation)
    )
    return {model.name: model for model in made}


def _warps(operation: Operation) -> bool:
    """Returns whether an operation is about a feature map, and not about a grid alone."""
    return "spec" in REQUESTS[operation].DESCRIPTOR.fields_by_name


def _model(operation: Operation, kind: str, dimensions: int) -> Model:
    method = service_pb2.DESCRIPTOR.services_by_name["SpatialTransformer"].methods_by_name[
        operation
    ]
    inputs = _inputs(method.input_type, kind, dimensions)
    outputs = [
        _tensor(field.name, kind, dimensions)
        for field in method.output_type.fields
        if field.message_type is tensor_pb2.Tensor.DESCRIPTOR
        and (field.name != "gauss_newton" or KINDS[kind].kind.family is Family.MATRIX)
    ]
    return Model(
        _name(operation, kind, dimensions),
        operation,
        kind,
        {tensor.name: tensor for tensor in inputs},
        {tensor.name: tensor for tensor in outputs},
        {option.name: option for option in _options(method.input_type, kind)},
        has_layout=_warps(operation),
    )


def _name(operation: Operation, kind: str, dimensions: int) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower()
    verb, gradients = words.removesuffix("_gradients"), words.endswith("_gradients")
    if KINDS[kind] is stn_engine.SamplingGrid and verb == "warp":
        stem = "stn_sample"
    else:
        stem = f"stn_{verb}_{KINDS[kind].kind.name}"
    return f"{stem}{_SUFFIXES[dimensions]}{'_gradients' * gradients}"


def _inputs(request: Any, kind: str, dimensions: int) -> Iterator[ModelTensor]:
    """Yields the tensors of a request, given its descriptor."""
    shapes = KINDS[kind].shapes
    for field in _own_fields(request):
        if field.message_type is tensor_pb2.Tensor.DESCRIPTOR:
            yield _tensor(field.name, kind, dimensions)
        elif field.message_type is warp_pb2.Transform.DESCRIPTOR:
            for part in _fields_of(kind):
                path = (field.name, kind, part.name)
                if part.name == KINDS[kind].argument:
                    shape = _sizes(shapes[dimensions - 2])
                    yield ModelTensor(part.name, path, shape)
                elif part.is_repeated:  # points, the same for all items
                    yield ModelTensor(part.name, path, (ANY, ANY, dimensions), "FP64")


def _options(request: Any, kind: str) -> Iterator[Option]:
    """Yields the fields of a request that hold no tensor, given its descriptor."""
    for field in _own_fields(request):
        if field.message_type is warp_pb2.Transform.DESCRIPTOR:
            for part in _fields_of(kind):
                if part.message_type is None and not part.is_repeated:
                    yield Option(part.name, (field.name, kind), part)
        elif field.message_type is warp_pb2.WarpSpec.DESCRIPTOR:
            for part in field.message_type.fields:
                if part.name != "fill_remainder":  # here the parameter of fill has all digits
                    yield Option(part.name, (field.name,), part)
        elif field.message_type is None and field.name != "needs":  # those are requested outputs
            yield Option(field.name, (), field)


def _fields_of(kind: str) -> Any:
    """Returns the fields of the message of a kind."""
    return getattr(warp_pb2.Transform(), kind).DESCRIPTOR.fields


def _own_fields(request: Any) -> Iterator[Any]:
    return (field for field in request.fields if field.number < _SHARED_NUMBERS)


def _tensor(field: str, kind: str, dimensions: int) -> ModelTensor:
    """Returns the tensor of a request or a reply of `stn.v1`, by its field."""
    maps, points = (ANY,) * (dimensions + 2), ((ANY,) * (dimensions + 1) + (dimensions,))
    parameters = _sizes(KINDS[kind].shapes[dimensions - 2])
    count = math.prod(parameters[1:])
    if field == "grad_transform":
        return ModelTensor(f"grad_{KINDS[kind].argument}", (field,), parameters)
    known: dict[str, tuple[Any, ...]] = {
        "feature_map": (maps,),
        "grad_output": (maps,),
        "output": (maps,),
        "grad_feature_map": (maps,),
        "grid": (points,),
        "grad_grid": (points,),
        "moving": (maps,),
        "fixed": (maps,),
        "weights": (maps, "FP32", True),
        "value": ((ANY,), "FP64"),
        "count": ((ANY,), "FP64"),
        "gradient": (parameters,),
        "gauss_newton": ((ANY, count, count), "FP64"),
    }
    return ModelTensor(field, (field,), *known[field])


def _sizes(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(ANY if isinstance(size, str) else size for size in shape)


def _metadata(tensor: ModelTensor) -> inference_pb2.ModelMetadataResponse.TensorMetadata:
    return inference_pb2.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )
