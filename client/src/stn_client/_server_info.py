"""What a server says about itself, as Python has it: the messages of `server_info.proto`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import GenericAlias
from typing import Any, TypeVar, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from stn_client._words import words_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Device:
    """A device on which a server computes.

    Attributes:
        name: Of the device, as "cpu" or "cuda:0".
        backend: The backend of the engine that serves it, as "cpu" or "cuda".
    """

    name: str
    backend: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What can be asked for in maps of so many dimensions, in the words of the options of calls.

    Attributes:
        dimensions: 2 for images, 3 for volumes.
        data_types: Of feature maps, forward, as "float32".
        gradient_data_types: Of feature maps that have gradients.
        parameter_data_types: Of the parameters of transforms and of grids.
        layouts: Of feature maps in messages: "NCHW", "NHWC".
        interpolations: How values between pixels are read, as "bilinear".
        paddings: What reads outside the feature map return, as "zeros".
        coordinates: Units of coordinates, as "pixel".
        subgradients: Derivatives at integer coordinates, as "right".
        transforms: Kinds of transforms, as "affine".
    """

    dimensions: int
    data_types: tuple[str, ...]
    gradient_data_types: tuple[str, ...]
    parameter_data_types: tuple[str, ...]
    layouts: tuple[str, ...]
    interpolations: tuple[str, ...]
    paddings: tuple[str, ...]
    coordinates: tuple[str, ...]
    subgradients: tuple[str, ...]
    transforms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may ask for, and all calls at a time; 0: the server did not say.

    Attributes:
        max_message_bytes: Of a serialized request.
        max_output_bytes: Of all results of a call, and the basis of a thin-plate spline.
        max_output_samples: Source points of a call: N [D'] H' W'.
        max_dimension_px: Of an axis of an output.
        max_admitted_items: Calls at a time, from their arrival until their reply has left.
        max_admitted_bytes: Bytes of operands and results of these calls.
        max_payloads: Payloads of a request.
        max_envelope_bytes: Of a serialized request without its payloads.
        max_control_points: Control points of a thin-plate spline.
        max_calls: Calls that go together in one message.
        max_resident_bytes: Of the tensors that one caller may leave on the server; 0: none.
        resident_lease_s: For how long one stays at most while nobody uses it, in seconds.
    """

    max_message_bytes: int = 0
    max_output_bytes: int = 0
    max_output_samples: int = 0
    max_dimension_px: int = 0
    max_admitted_items: int = 0
    max_admitted_bytes: int = 0
    max_payloads: int = 0
    max_envelope_bytes: int = 0
    max_control_points: int = 0
    max_calls: int = 0
    max_resident_bytes: int = 0
    resident_lease_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What a server has counted since it started, and what is on its way now.

    Attributes:
        queued_items: Calls that wait for a device.
        running_items: Calls on a device.
        admitted_bytes: Bytes of operands and results of all calls whose reply has not left.
        finished_items: Calls with a result.
        failed_items: Calls whose batch failed.
        refused_items: Calls that were refused: for a limit, a deadline, or a server about to stop.
        abandoned_items: Calls that were cancelled, or whose deadline passed, before they ran.
        batches: Launches of a device.
        largest_batch_items: Calls that shared the largest launch.
    """

    queued_items: int
    running_items: int
    admitted_bytes: int
    finished_items: int
    failed_items: int
    refused_items: int
    abandoned_items: int
    batches: int
    largest_batch_items: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is, offers, allows, and has done so far.

    Attributes:
        name: The name of the program.
        version: Of the program, as "0.1.0".
        uptime_s: Since the server started, in seconds.
        ready: Whether it takes calls.
        devices: What it computes on.
        capabilities: What it computes, once for images and once for volumes.
        limits: What one call may ask for, and how much is admitted.
        statistics: Counts since it started.
        instance_id: The same as long as its process lives; 32 hexadecimal digits.
        methods: Names of the methods that it answers, as "Warp".
        local_dir: Folder of the sockets of its local transport; empty: it has none.
    """

    name: str
    version: str
    uptime_s: float
    ready: bool
    devices: tuple[Device, ...]
    capabilities: tuple[Capabilities, ...]
    limits: Limits
    statistics: ServerStatistics
    instance_id: str
    methods: tuple[str, ...]
    local_dir: str


def from_message(kind: type[T], message: Message) -> T:
    """Returns the dataclass of a message with the same fields.

    Enumerations become words: PADDING_ZEROS is "zeros". What a newer server has beyond this
    contract, fields and numbers, is left out.
    """
    types: dict[str, Any] = get_type_hints(kind)
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]  # mypy knows no type of dataclasses
        value: Any = getattr(message, field.name)
        descriptor: Any = message.DESCRIPTOR.fields_by_name[field.name]
        wanted = types[field.name]
        if isinstance(wanted, GenericAlias):
            one = get_args(wanted)[0]
            words = None if descriptor.enum_type is None else words_of(descriptor.enum_type)
            known = value if words is None else [number for number in value if number in words]
            values[field.name] = tuple(_value(one, each, descriptor) for each in known)
        else:
            values[field.name] = _value(wanted, value, descriptor)
    return kind(**values)


def _value(kind: Any, value: Any, field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return words_of(field.enum_type)[value]
    return from_message(kind, value) if isinstance(value, Message) else value
