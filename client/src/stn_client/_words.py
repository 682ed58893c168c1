"""Names of the contract: of its service, and the words that users have for its enumerations."""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

SERVICE = "stn.v1.SpatialTransformer"


@cache
def words_of(enumeration: EnumDescriptor) -> MappingProxyType[int, str]:
    """Returns the word of every number but 0: PADDING_ZEROS is "zeros", LAYOUT_NHWC "NHWC"."""
    values: Any = enumeration.values_by_number
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    names = {number: value.name.removeprefix(prefix) for number, value in values.items() if number}
    if enumeration.name != "Layout":
        names = {number: name.lower() for number, name in names.items()}
    return MappingProxyType(names)
