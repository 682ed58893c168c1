"""The wire contract as readable lines; as a program, writes the golden file.

`PYTHONPATH=tests .venv/bin/python -m support.contract` from the root of the repository.
"""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from stn_proto.v1 import server_info_pb2, service_pb2, tensor_pb2, warp_pb2

GOLDEN = Path(__file__).parents[1] / "golden" / "contract.txt"

FILES = (tensor_pb2, warp_pb2, server_info_pb2, service_pb2)


def contract() -> list[str]:
    """One line per field, enumeration value and method."""
    return [line for file in FILES for line in _file(file.DESCRIPTOR.serialized_pb)]


def _file(serialized: bytes) -> Iterator[str]:
    file = FileDescriptorProto.FromString(serialized)
    for enum in file.enum_type:
        yield from _enum(file.package, enum)
    for message in file.message_type:
        yield from _message(file.package, message)
    for service in file.service:
        yield from _service(file.package, service)


def _enum(scope: str, enum: EnumDescriptorProto) -> Iterator[str]:
    for value in enum.value:
        yield f"enum {scope}.{enum.name}.{value.name} = {value.number}"


def _message(scope: str, message: DescriptorProto) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    yield f"message {name}"
    for field in message.field:
        label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
        kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        kind = field.type_name.removeprefix(".") or kind
        group = ""
        if field.HasField("oneof_index"):
            group = f" oneof {message.oneof_decl[field.oneof_index].name}"
        yield f"field {name}.{field.name} = {field.number} {label} {kind}{group}"
    for enum in message.enum_type:
        yield from _enum(name, enum)
    for nested in message.nested_type:
        yield from _message(name, nested)


def _service(scope: str, service: ServiceDescriptorProto) -> Iterator[str]:
    for method in service.method:
        taken = "stream " * method.client_streaming + method.input_type.removeprefix(".")
        given = "stream " * method.server_streaming + method.output_type.removeprefix(".")
        yield f"method {scope}.{service.name}.{method.name} ({taken}) returns ({given})"


if __name__ == "__main__":
    GOLDEN.write_text("".join(f"{line}\n" for line in contract()))
