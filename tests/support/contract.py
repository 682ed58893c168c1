"""The wire contract as readable lines, as it is and as it was published.

As a program, publishes it:

`PYTHONPATH=tests .venv/bin/python -m support.contract` from the root of the repository.
"""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf import any_pb2, text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from stn_proto.v1 import (
    arena_pb2,
    errors_pb2,
    many_pb2,
    objective_pb2,
    resident_pb2,
    server_info_pb2,
    service_pb2,
    tensor_pb2,
    warp_pb2,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "contract.txtpb"

FILES = (
    any_pb2,  # imported by what follows
    errors_pb2,
    tensor_pb2,
    warp_pb2,
    objective_pb2,
    server_info_pb2,
    many_pb2,
    resident_pb2,
    service_pb2,
    arena_pb2,
)


def present() -> FileDescriptorSet:
    """The contract as it is."""
    contract = FileDescriptorSet()
    for module in FILES:
        file = contract.file.add()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            known = module.DESCRIPTOR.message_types_by_name[message.name].fields_by_name
            for field in message.field:  # generated code leaves out what can be told from the name
                field.json_name = known[field.name].json_name
    return contract


def published() -> FileDescriptorSet:
    """The contract as it was published."""
    return text_format.Parse(GOLDEN.read_text(), FileDescriptorSet())


def lines(contract: FileDescriptorSet) -> list[str]:
    """One line per field, enumeration value and method."""
    return [line for file in contract.file for line in _file(file)]


def _file(file: FileDescriptorProto) -> Iterator[str]:
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
    GOLDEN.write_text(text_format.MessageToString(present()))
