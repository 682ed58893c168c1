"""What a call says beside the values of its tensors, and how replies to it are read.

Callers repeat themselves: the same shapes and options come again around other values. So an
`Envelope` is made once for calls that are alike, and so is what is known of the replies to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from stn_client._arrays import Array
from stn_client._errors import ProtocolMismatchError
from stn_client._words import SERVICE
from stn_proto import Declaration, Frame, WireFormatError, gaps, get_declaration, nested, values
from stn_proto.v1 import many_pb2, tensor_pb2, warp_pb2

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
Payloads = list[memoryview | bytes]
Places = Sequence[NDArray[np.uint8] | None]

METHOD_PREFIX = f"/{SERVICE}/"

_NESTED_CALL: Any = many_pb2.NestedCall.DESCRIPTOR

NESTED: dict[str, Any] = {
    METHOD_PREFIX + descriptor.message_type.name.removesuffix("Request"): descriptor
    for descriptor in _NESTED_CALL.oneofs_by_name["request"].fields
}
"""Fields of the calls that ComputeMany takes, by the path of their method."""

MAX_KEPT = 1024
"""Envelopes that are kept; a few kilobytes each."""

MAX_FORMS = 4
"""The most forms of replies that are kept for similar calls."""

KEPT_FIELD = warp_pb2.WarpReply.KEPT_FIELD_NUMBER

_TIMING_FIELD = warp_pb2.WarpReply.TIMING_FIELD_NUMBER
"""The same in every reply."""


class Reads(Protocol[R_co]):
    """A reader that makes a result of a serialized reply."""

    def read(self, message: bytes, places: Places = ()) -> R_co:
        """Returns the result in a reply; see `Replies.read`."""
        ...


class Result(NamedTuple):
    """A tensor of a reply."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(eq=False)
class Envelope(Generic[T]):
    """Everything that calls have in common which differ in the values of their tensors alone."""

    method: str
    """Full path."""
    message: Message
    """The request without its payloads."""
    operands_bytes: tuple[int, ...]
    """The size of each payload."""
    results: tuple[Result, ...]
    """The tensors of the reply, as far as the request tells; a server may see it otherwise."""
    replies: Reads[T]
    placed: dict[Hashable, Any] = field(default_factory=dict)
    """Requests of these calls by which of their tensors are in arenas."""
    stacks: dict[int, Envelope[Any]] = field(default_factory=dict)
    """Envelopes of so many of these calls as one."""
    most_in_stack: int | None = None
    """The most of these calls that may be stacked; None: not yet known."""
    packed_bytes: int | None = None
    """What one of these calls adds to a message of several; 0: it is too large; None: not yet
    known."""

    def __post_init__(self) -> None:
        envelope = self.message.SerializeToString()
        first, *others = (*gaps(len(envelope), self.operands_bytes), b"")
        self._gaps = envelope + first, *others
        self.own_bytes = len(envelope)
        """The size of the message without payloads."""
        self.results_bytes = tuple(
            math.prod(one.shape) * one.dtype.itemsize for one in self.results
        )
        """The size of each tensor of the reply."""
        self.all_operands_bytes = sum(self.operands_bytes)
        self.all_results_bytes = sum(self.results_bytes)
        self.size_bytes = sum(map(len, self._gaps)) + self.all_operands_bytes
        """The size of the whole request."""

    @cached_property
    def nested(self) -> bytes:
        """The call within ComputeMany, serialized, without its payloads."""
        number, message = NESTED[self.method].number, self.message.SerializeToString()
        return nested(number, message, len(self.operands_bytes))

    def around(self, payloads: Payloads) -> bytes:
        """Serializes the request with these payloads; each is copied exactly once."""
        pieces: list[bytes | memoryview] = []
        for gap, payload in zip(self._gaps, payloads, strict=False):  # of none there is one gap
            pieces += (gap, payload)
        return b"".join(pieces or self._gaps)


class Kept:
    """Cache of envelopes, limited in number.

    Concurrency: thread-safe.
    """

    def __init__(self) -> None:
        self._envelopes: dict[Hashable, Envelope[Any]] = {}

    def get(self, key: Hashable) -> Envelope[Any] | None:
        """Returns the kept envelope of a key; None if there is none."""
        return self._envelopes.get(key)

    def keep(self, key: Hashable, envelope: Envelope[Any]) -> None:
        """Keeps an envelope; drops all others when there are too many."""
        # A new dict, and no lock: a thread that reads at the same moment goes on with the old one.
        if len(self._envelopes) >= MAX_KEPT:
            self._envelopes = {}
        self._envelopes[key] = envelope


class Replies(Generic[T]):
    """Reads replies to calls that are alike.

    Args:
        method: The method, for errors.
        kind: The class of the replies.
        fields: The names of the tensors of a reply.
        result: Makes the result of arrays, one for each field.
        optional: Tensors that may be missing, which are then None.

    Concurrency: thread-safe.
    """

    def __init__(
        self,
        method: str,
        kind: type[Message],
        fields: Sequence[str],
        result: Callable[..., T],
        *,
        optional: Collection[str] = (),
    ) -> None:
        self._method = method
        self._kind = kind
        self._fields = fields
        self._result = result
        self._optional = optional
        self._forms: tuple[_Form, ...] = ()

    def read(self, message: bytes, places: Places = ()) -> T:
        """Returns the result in a serialized reply.

        Args:
            message: The reply.
            places: Where the request wants the tensors of the reply, in their order.

        Raises:
            ProtocolMismatchError: It is no such reply.
        """
        for form in self._forms:
            if form.fits(message, places):
                return self._result(*form.arrays(message, places))
        try:
            form = self._form_of(message, places)
            arrays = form.arrays(message, places)
        except (WireFormatError, DecodeError) as error:
            raise mismatch(self._method, error) from error
        # A new tuple each time: a thread that reads at the same moment sees the old one, or this
        # one.
        self._forms = form, *self._forms[: MAX_FORMS - 1]
        return self._result(*arrays)

    def _form_of(self, message: bytes, places: Places) -> _Form:
        frame = Frame.of(message)
        reply = self._kind.FromString(frame.envelope)
        sizes_bytes = [span.stop - span.start for span in frame.payloads]
        # What differs between replies of one form, beside payloads.
        spans = [*values(message, _TIMING_FIELD), *values(message, KEPT_FIELD)]
        parts: list[_Part | None] = []
        # Places are counted by the tensors that a reply has, not by the fields that it might have.
        present = 0
        for name in self._fields:
            if name in self._optional and not reply.HasField(name):
                parts.append(None)
                continue
            declaration = get_declaration(getattr(reply, name), name)
            place = places[present] if present < len(places) else None
            if declaration.payload is None and place is not None:
                declaration.check_room(len(place))
                spans += _reference(message, reply, name)
                parts.append(_Part(declaration, present, -1))
            else:
                declaration.check(sizes_bytes)
                start = frame.payloads[declaration.payload or 0].start
                parts.append(_Part(declaration, None, start))
            present += 1
        return _Form(frame.opened(message, spans), parts)


@dataclass(frozen=True, slots=True)
class _Part:
    """Position of one tensor in a reply."""

    declaration: Declaration
    place: int | None
    """Index of its place; None: it is a payload."""
    start: int
    """Offset of the tensor in the message, if it is in it."""

    def array(self, message: bytes, places: Places) -> Array:
        """Returns a read-only array: a view, or a copy if it is not aligned for its type."""
        shape, dtype = self.declaration.shape, self.declaration.dtype
        if self.place is None:
            array: Array = np.ndarray(shape, dtype, message, self.start)
            # Offsets in a message are what the lengths before them make them; NumPy reads from any,
            # slowly.
            if array.flags.aligned:
                return array  # read-only, as bytes are
            array = array.copy()
        else:
            array = np.ndarray(shape, dtype, cast("Any", places[self.place]))
        array.flags.writeable = False
        return array


@dataclass(frozen=True, slots=True)
class _Form:
    """What replies have in common that differ in numbers, timing and places alone."""

    frame: Frame
    parts: list[_Part | None]

    def fits(self, message: bytes, places: Places) -> bool:
        """Returns whether a reply has this form."""
        if not self.frame.fits(message):
            return False
        for part in self.parts:
            place = None if part is None else part.place
            if place is not None and (place >= len(places) or places[place] is None):
                return False
        return True

    def arrays(self, message: bytes, places: Places) -> list[Array | None]:
        """Returns the arrays of a reply, one for each field."""
        return [None if part is None else part.array(message, places) for part in self.parts]


def mismatch(method: str, error: Exception) -> ProtocolMismatchError:
    """Returns the error of a reply that cannot be read."""
    return ProtocolMismatchError(f"{method}: expected its reply, got {error}.")


def _reference(message: bytes, reply: Message, name: str) -> list[slice]:
    """Returns the positions in a reply of a tensor's arena id and of its offset there."""
    spans: list[slice] = []
    for tensor in values(message, reply.DESCRIPTOR.fields_by_name[name].number):
        for arena in values(message, tensor_pb2.Tensor.ARENA_FIELD_NUMBER, tensor):
            spans += values(message, tensor_pb2.ArenaRef.ID_FIELD_NUMBER, arena)
            spans += values(message, tensor_pb2.ArenaRef.OFFSET_FIELD_NUMBER, arena)
    return spans


def tensors_of(message: Message) -> Iterator[tensor_pb2.Tensor]:
    """Returns the tensors of a request or a reply, in the order of their fields."""
    for _, value in message.ListFields():
        if isinstance(value, tensor_pb2.Tensor):
            yield value
        elif isinstance(value, Message):
            yield from tensors_of(value)
