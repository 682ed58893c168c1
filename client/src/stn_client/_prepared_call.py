"""A call that is ready to be sent: what it sends, how it is made, and what it results in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from stn_client._arguments import OPERANDS, reject_unknown
from stn_client._arrays import Array
from stn_client._checks import checked_metadata, checked_request_id, checked_timeout_s
from stn_client._envelopes import KEPT_FIELD, Envelope, Payloads, Places
from stn_client._options import TIMEOUT_OF_CLIENT, CallOptions
from stn_client._residents import Residents, ResidentTensor, residents_of
from stn_client._retry import RetryPolicy
from stn_proto import values
from stn_proto.v1.tensor_pb2 import ResidentRef

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients to the operands of a warp; None for one that was not asked for.

    Shapes:
        feature_map   as the feature map
        transform     as the parameters of the transform
    """

    feature_map: Array | None
    transform: Array | None


@dataclass(frozen=True, slots=True)
class Objective:
    """How far the warp of one map is from another; None for what was not asked for.

    Shapes:
        value          (N,)         float64
        count          (N,)         float64, the sum of the weights
        gradient       (N, ...)     of each item's value by its own parameters; their dtype
        gauss_newton   (N, K, K)    float64; K parameters an item, row by row
    """

    value: Array
    count: Array
    gradient: Array | None
    gauss_newton: Array | None


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How a call is made, whatever it computes: timeout, retries, metadata."""

    timeout_s: Any = TIMEOUT_OF_CLIENT
    """None: no limit."""
    metadata: tuple[tuple[str, str], ...] = ()
    request_id: str | None = None
    retry: RetryPolicy | None = None
    """None: that of the client."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> tuple[CallSettings, Any]:
        """Checks the call options among all options; returns them and the others.

        Raises:
            InvalidRequestError: A value breaks a rule.
        """
        if _CALL_OPTIONS.isdisjoint(options):
            return _DEFAULT_SETTINGS, options
        given = options.get("timeout_s", TIMEOUT_OF_CLIENT)
        settings = cls(
            given if given is TIMEOUT_OF_CLIENT else checked_timeout_s(given),
            checked_metadata(options.get("metadata", {})),
            checked_request_id(options.get("request_id")),
        )
        return settings, {name: options[name] for name in options if name not in _CALL_OPTIONS}


_CALL_OPTIONS = frozenset(CallOptions.__annotations__)
_DEFAULT_SETTINGS = CallSettings()


def settings_of(options: CallOptions) -> CallSettings:
    """Returns how a call is made that has these options and no other.

    Raises:
        TypeError: There is no such option.
        InvalidRequestError: A value breaks a rule.
    """
    reject_unknown(options, CallOptions.__annotations__)
    return CallSettings.of(options)[0]


@dataclass(eq=False)
class Call(Generic[T]):
    """A call of a method of the service, ready to be sent as often as needed."""

    envelope: Envelope[T]
    payloads: Payloads
    settings: CallSettings = _DEFAULT_SETTINGS
    finish: Callable[[Any], T] | None = None
    """Makes the caller's result of arrays of NumPy as the wire has them; None: it is the same."""
    count: int = 1
    """Number of the caller's calls that it stands for."""
    residents: Residents = ()
    """The resident tensor of each payload, None for one that has none; empty if no payload has."""
    named: Sequence[ResidentRef | None] = ()
    """What the last attempt named in place of each payload; None: it was sent."""
    address: str = ""
    """The replica where its resident tensors are, and to which it goes; empty: to any."""
    kept: Sequence[ResidentTensor] = ()
    """Tensors that the server is asked to keep, which the reply tells the places of."""
    serialized: bytes | None = None
    """The request as it is sent, once it is known; see `request`."""

    @property
    def method(self) -> str:
        """Full path of the method."""
        return self.envelope.method

    @property
    def message(self) -> Message:
        """The request without its payloads; not to be changed."""
        return self.envelope.message

    def reside(self, *operands: Any, keep: Sequence[str] = ()) -> None:
        """Notes which operands are resident tensors.

        Args:
            operands: As they were given, in the order of the payloads.
            keep: Names of those that the server shall keep.
        """
        self.residents = residents_of(*operands)
        if self.residents:
            named = zip(OPERANDS, self.residents, strict=False)
            self.kept = [one for name, one in named if one is not None and name in keep]

    def references(self, client: str) -> list[ResidentRef | None]:
        """Returns, for each payload, its reference at the call's address; None for one to send."""
        found = [
            resident.held.references.get(self.address)
            if resident is not None and resident.held.client == client and resident.is_in(payload)
            else None
            for resident, payload in zip(self.residents, self.payloads, strict=True)
        ]
        self.named = found
        return found

    def choose(self, client: str) -> None:
        """Chooses the replica that has the most bytes of the call's tensors."""
        sizes_bytes: Counter[str] = Counter()
        for resident in self._own(client):
            for address in tuple(resident.held.references):
                sizes_bytes[address] += resident.nbytes
        self.address = max(sizes_bytes, key=sizes_bytes.__getitem__, default="")

    def forget(self, *, for_good: bool) -> None:
        """Notes that the tensors that the last attempt named are no longer there.

        Args:
            for_good: Whether this call sends them from now on, to any replica.
        """
        for resident, reference in zip(self.residents, self.named, strict=False):
            # Another call may have sent it anew meanwhile.
            if resident is not None and resident.held.references.get(self.address) is reference:
                resident.held.references.pop(self.address, None)
        if for_good:
            self.residents, self.named, self.address = (), (), ""

    def missing(self, client: str) -> list[ResidentTensor]:
        """Returns the tensors that have to be uploaded to where the call goes."""
        return [
            resident
            for resident in self._own(client)
            if resident.held.is_uploaded and not resident.held.is_at(self.address)
        ]

    def _own(self, client: str) -> list[ResidentTensor]:
        return [one for one in self.residents if one is not None and one.held.client == client]

    @property
    def sent_bytes(self) -> int:
        """The bytes of the operands that are sent, without those that are resident."""
        all_bytes = self.envelope.all_operands_bytes
        if not self.named:
            return all_bytes
        sizes = zip(self.payloads, self.named, strict=True)
        return all_bytes - sum(len(payload) for payload, one in sizes if one is not None)

    @property
    def request(self) -> bytes:
        """The request as it is sent, serialized at the first attempt."""
        if self.serialized is None:
            self.serialized = self.envelope.around(self.payloads)
        return self.serialized

    def parse(self, reply: bytes, places: Places = ()) -> T:
        """Returns the result in a serialized reply; see `Replies`."""
        result = self.envelope.replies.read(reply, places)
        if self.kept:
            found = values(reply, KEPT_FIELD)  # none, if the server had no room
            for resident, span in zip(self.kept, found, strict=False):
                resident.held.add(ResidentRef.FromString(reply[span]))
        return result if self.finish is None else self.finish(result)
