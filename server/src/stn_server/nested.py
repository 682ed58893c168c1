"""Decodes the nested calls of a ComputeMany, each into a request of its own, or its error.

Their messages stand in the envelope of the whole, their payloads behind one another after it. As
clients send the same shapes again, templates of nested calls are kept, as those of messages are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from stn_proto import Frame, FrameTooLargeError, WireFormatError, split_many, values
from stn_proto.v1 import many_pb2
from stn_server.batching.work import Operation
from stn_server.errors import InvalidRequestError, ResultTooLargeError
from stn_server.operands import parse
from stn_server.translate import (
    MAX_SIZES,
    MAX_TEMPLATE_BYTES,
    MAX_TEMPLATES,
    REQUESTS,
    Request,
    RequestTemplate,
    Translator,
)

_NESTED_CALL: Any = many_pb2.NestedCall.DESCRIPTOR

NESTED: dict[str, Any] = {
    descriptor.message_type.name.removesuffix("Request"): descriptor
    for descriptor in _NESTED_CALL.oneofs_by_name["request"].fields
}
"""Fields of a call within ComputeMany by operation; its reply has those of the same numbers."""


@dataclass(frozen=True, slots=True)
class _NestedTemplate:
    """A validated nested call of a ComputeMany but for the values of its tensors."""

    method: str
    request: bytes
    """The message of the call, without payloads."""
    sizes_bytes: tuple[int, ...]
    """The sizes of its payloads in bytes."""
    output_bytes: int
    template: RequestTemplate


class Nested(NamedTuple):
    """A call within a ComputeMany."""

    method: str
    """The method of the call; empty if it names none that is known."""
    request: Request | Exception
    """The request of the call, or the error that `Translator.decode` would have raised."""


class NestedTranslator:
    """Decodes the messages of ComputeMany.

    Args:
        translator: Decodes the messages of single calls.
    """

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self._limits = translator.limits
        self._templates: dict[bytes, _NestedTemplate] = {}
        """The latest templates, by the bytes of their calls."""

    def decode(self, message: bytes, caller: str = "") -> list[Nested]:
        """Returns the nested calls of a ComputeMany.

        Args:
            message: Serialized bytes.
            caller: The name of the caller.

        Raises:
            WireFormatError: The bytes do not keep the wire contract.
            FrameTooLargeError: There are more calls or payloads than allowed.
            InvalidRequestError: There is no call.
            UnknownFieldError: The message has a field that this version does not know.
        """
        limits = self._limits
        parts = split_many(message, limits.max_calls, limits.max_calls * limits.max_payloads)
        parse(parts.rest, many_pb2.ComputeManyRequest)
        if not parts.nested:
            raise InvalidRequestError("calls", "expected at least one, got none. Send some.")
        found: list[Nested] = []
        end = output_bytes = 0
        for call in parts.nested:
            known = self._templates.get(call)
            count = _payload_count(call) if known is None else len(known.sizes_bytes)
            start, end = end, end + count
            payloads = parts.payloads[start:end]
            sizes_bytes = tuple(map(len, payloads))
            try:
                # The same bytes may come around payloads of other sizes, of which nothing was
                # validated.
                if known is None or known.sizes_bytes != sizes_bytes:
                    known = self._template(call, sizes_bytes)
                grown_bytes = output_bytes + known.output_bytes
                self._check_output(grown_bytes)
                request = known.template.request(
                    known.request, self._translator.memory, caller, payloads
                )
                found.append(Nested(known.method, request))
                output_bytes = grown_bytes
            except Exception as error:  # noqa: BLE001 - told to the caller in a status of its own
                found.append(Nested(_method_of(call), error))
        if end != len(parts.payloads):
            expected = f"as many as the calls have, {end}"
            raise WireFormatError("payloads", expected, str(len(parts.payloads)))
        return found

    def _check_output(self, output_bytes: int) -> None:
        """Refuses results that would make the reply of a ComputeMany too large."""
        most, unit = self._limits.max_output_bytes, "bytes of output of one message"
        if output_bytes > most:
            raise ResultTooLargeError("calls", most, output_bytes, unit)

    def _template(self, call: bytes, sizes_bytes: tuple[int, ...]) -> _NestedTemplate:
        """Makes the template of a nested call, and keeps it."""
        limits = self._limits
        if len(sizes_bytes) > limits.max_payloads:
            most, actual = limits.max_payloads, str(len(sizes_bytes))
            remedy = "Send fewer tensors at once."
            raise FrameTooLargeError("payload_count", most, "payloads", actual, remedy)
        if len(call) > limits.max_envelope_bytes:
            most, unit = limits.max_envelope_bytes, "bytes without payloads"
            remedy = "Put tensor bytes into `payloads`."
            raise FrameTooLargeError("message", most, unit, f"{len(call)} bytes", remedy)
        method = _method_of(call)
        if not method:
            parse(call, many_pb2.NestedCall)
            names = ", ".join(field.name for field in NESTED.values())
            raise InvalidRequestError("request", f"expected one of {names}, got none. Set one.")
        field = NESTED[method]
        places = values(call, field.number)
        if len(places) != 1:
            raise WireFormatError(field.name, "one field of this name", str(len(places)))
        request = call[places[0]]
        if Frame.of(request).payloads:
            expected = "none, as the bytes of all calls stand in the field of ComputeMany"
            raise WireFormatError("payloads", expected, "some", "Move them.")
        operation = Operation(method)
        parsed = parse(request, REQUESTS[operation])
        parse(call, many_pb2.NestedCall)  # after that, so that paths are those within the request
        template = self._translator.template(
            operation, parsed, _frame_before(request, sizes_bytes), request
        )
        output_bytes = template.output_bytes
        found = _NestedTemplate(method, request, sizes_bytes, output_bytes, template)
        if len(call) <= MAX_TEMPLATE_BYTES:
            if len(self._templates) >= MAX_SIZES * MAX_TEMPLATES:
                # The oldest one, as a dict keeps the order in which it was filled.
                del self._templates[next(iter(self._templates))]
            self._templates[call] = found
        return found


def _payload_count(call: bytes) -> int:
    """Returns how many of the payloads of a ComputeMany belong to this call.

    Raises:
        WireFormatError: It does not say, so that those of the following calls are unknown.
    """
    try:
        return many_pb2.NestedCall.FromString(call).payload_count
    except DecodeError as error:
        raise WireFormatError("calls", "serialized stn.v1.NestedCall", "other bytes") from error


def _method_of(call: bytes) -> str:
    """Returns the method that a nested call names; empty if it names none that is known."""
    name = many_pb2.NestedCall.FromString(call).WhichOneof("request")
    return next((method for method, field in NESTED.items() if field.name == name), "")


def _frame_before(message: bytes, sizes_bytes: Iterable[int]) -> Frame:
    """Returns the frame of a message as if its payloads, which are elsewhere, followed it."""
    starts = list(accumulate(sizes_bytes, initial=len(message)))
    return Frame(message, starts[-1], tuple(map(slice, starts, starts[1:])), ())
