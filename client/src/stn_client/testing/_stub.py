"""Clients that answer in the process: arguments are checked and sent nowhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import ArrayLike, NDArray

from stn_client._aio import AsyncClient
from stn_client._client import Client
from stn_client._connection import Progress
from stn_client._envelopes import METHOD_PREFIX, Result
from stn_client._errors import StnClientError, invalid
from stn_client._prepared_call import Call
from stn_proto import get_tensor, join, put_tensor
from stn_proto.codec import DTYPES
from stn_proto.v1 import objective_pb2, server_info_pb2, warp_pb2
from stn_proto.v1.tensor_pb2 import Tensor

T = TypeVar("T")
Array = NDArray[Any]
Answer: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike] | StnClientError | None
"""What a call ends with: the values of its results, an error to raise, or None: zeros."""

_TARGET = "stub"
_PLENTY = 2**40

_REPLIES: dict[str, Callable[..., Message]] = {
    "Warp": warp_pb2.WarpReply,
    "WarpGradients": warp_pb2.WarpGradientsReply,
    "GenerateGrid": warp_pb2.GenerateGridReply,
    "GenerateGridGradients": warp_pb2.GenerateGridGradientsReply,
    "Objective": objective_pb2.ObjectiveReply,
}
"""The message that answers a method."""


@dataclass(frozen=True)
class StubCall:
    """A call that a stub received, whose arguments were found right.

    Attributes:
        method: Of the service, as "Warp" or "WarpGradients".
        arrays: The arrays given, by their names in the contract, as "feature_map", or "theta" of an
            `Affine`; maps have the axes (N, C, [D,] H, W) or (N, [D,] H, W, C).
        transform: The kind, as "affine"; empty if there is none.
        results: The shape of every result.
        request_id: The call's own, or a random one.
        metadata: What is sent along.
    """

    method: str
    arrays: dict[str, Array]
    transform: str
    results: tuple[tuple[int, ...], ...]
    request_id: str
    metadata: dict[str, str]


class _Script:
    """The behaviour that both stubs share."""

    def __init__(
        self, answer: Callable[[StubCall], Answer] | None, errors: Iterable[StnClientError]
    ) -> None:
        self._answer = answer
        self._errors = deque(errors)
        self.calls: list[StubCall] = []

    def run(self, call: Call[T], progress: Progress) -> T:
        """Returns the result of a call, or raises its error.

        Raises:
            StnClientError: The script says so, or the client is closed.
        """
        metadata = dict(progress.start()["metadata"])
        try:
            reply = self._reply(call, metadata)
            progress.succeed()
            return call.parse(reply)
        finally:
            progress.end()

    def outcomes(
        self, calls: Sequence[Call[Any]], progress: Callable[[Call[Any]], Progress]
    ) -> list[Any]:
        """Returns results and errors of several calls."""
        outcomes: list[Any] = []
        for call in calls:
            try:
                outcomes.append(self.run(call, progress(call)))
            except StnClientError as error:
                outcomes.append(error)
        return outcomes

    def _reply(self, call: Call[Any], metadata: dict[str, str]) -> bytes:
        method = call.method.removeprefix(METHOD_PREFIX)
        if method == "GetServerInfo":
            return _info()
        names, results = zip(*_results(method, call), strict=True)
        noted = StubCall(
            method,
            {
                name: get_tensor(tensor, call.payloads, name)
                for name, tensor in _named(call.message)
            },
            str(call.message.transform.WhichOneof("kind")),  # type: ignore[attr-defined]
            tuple(result.shape for result in results),
            metadata.pop("x-request-id"),
            metadata,
        )
        self.calls.append(noted)
        if self._errors:
            raise self._errors.popleft()
        answer = None if self._answer is None else self._answer(noted)
        if isinstance(answer, StnClientError):
            raise answer
        values = answer if isinstance(answer, tuple) else (answer,) * len(results)
        payloads: list[memoryview] = []
        tensors = [
            put_tensor(_filled(value, result.shape, result.dtype), payloads)
            for value, result in zip(values, results, strict=True)
        ]
        fields = dict(zip(names, tensors, strict=True))
        return join(_REPLIES[method](**fields).SerializeToString(), payloads)


def _results(method: str, call: Call[Any]) -> list[tuple[str, Result]]:
    """Returns the tensors of the reply by the names of their fields."""
    message: Any = call.message
    if method == "Objective":
        return list(_of_objective(message))
    names = {
        "Warp": ["output"],
        "GenerateGrid": ["grid"],
        "GenerateGridGradients": ["grad_transform"],
    }
    if method in names:
        return list(zip(names[method], call.envelope.results, strict=True))
    of_operands = {
        warp_pb2.OPERAND_FEATURE_MAP: "grad_feature_map",
        warp_pb2.OPERAND_TRANSFORM: "grad_transform",
    }
    needed = [name for operand, name in of_operands.items() if operand in message.needs]
    return list(zip(needed, call.envelope.results, strict=True))


def _of_objective(message: objective_pb2.ObjectiveRequest) -> Iterator[tuple[str, Result]]:
    """Yields the tensors of the reply to an objective, which envelopes do not tell."""
    tensors = [tensor for _, tensor in _named(message)]
    batch = max(tensor.shape[0] for tensor in tensors)
    parameters = next(tensor for _, tensor in _named(message.transform))
    float64 = np.dtype(np.float64)
    yield "value", Result((batch,), float64)
    yield "count", Result((batch,), float64)
    if objective_pb2.OBJECTIVE_RESULT_GRADIENT in message.needs:
        yield "gradient", Result((batch, *parameters.shape[1:]), DTYPES[parameters.data_type])
    if objective_pb2.OBJECTIVE_RESULT_GAUSS_NEWTON in message.needs:
        count = math.prod(parameters.shape[1:])
        yield "gauss_newton", Result((batch, count, count), float64)


def _named(message: Message) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a request by the names of their fields."""
    for field, value in message.ListFields():
        if isinstance(value, Tensor):
            yield field.name, value
        elif isinstance(value, Message):
            yield from _named(value)


def _filled(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Returns the values of a result; None: zeros."""
    given = np.asarray(0 if value is None else value)
    try:
        return np.broadcast_to(given, shape).astype(dtype)
    except ValueError as error:
        expected = f"expected values that can be broadcast to {shape}"
        raise invalid("answer", f"{expected}, got shape {given.shape}.") from error


def _info() -> bytes:
    """Returns the info of a server without limits."""
    names = server_info_pb2.Limits.DESCRIPTOR.fields_by_name
    limits = server_info_pb2.Limits(**dict.fromkeys(names, _PLENTY))
    info = server_info_pb2.GetServerInfoReply(name=_TARGET, ready=True, limits=limits)
    return info.SerializeToString()


class StubClient(Client):
    """A `Client` that checks calls as any other, and sends nothing.

    Arguments are checked, and results have the type, shape and dtype that a server's would have;
    their values are zeros unless `answer` says otherwise. For right values take a server: the
    fixture `stn_client`, or `LocalServer`.

    Args:
        answer: Asked for the values of every call: an array, or for two gradients a tuple of two,
            which are broadcast to the shapes in `StubCall.results`; an error is raised; None is
            zeros.
        errors: Raised by the first calls, one each, as they are: nothing is repeated.

    Attributes:
        calls: What was asked, in order, but for questions about the server, which is always ready.

    Example:
        >>> stn = StubClient(lambda call: call.arrays["feature_map"] + 1)
    """

    def __init__(
        self,
        answer: Callable[[StubCall], Answer] | None = None,
        *,
        errors: Iterable[StnClientError] = (),
    ) -> None:
        super().__init__(_TARGET, local=False)
        self._script = _Script(answer, errors)

    @property
    def calls(self) -> list[StubCall]:
        """The calls so far, in order."""
        return self._script.calls

    def _run(self, call: Call[T]) -> T:
        return self._script.run(call, self._progress(call))

    def _outcomes(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return self._script.outcomes(calls, self._progress)


class StubAsyncClient(AsyncClient):
    """An `AsyncClient` that checks calls as any other, and sends nothing; see `StubClient`."""

    def __init__(
        self,
        answer: Callable[[StubCall], Answer] | None = None,
        *,
        errors: Iterable[StnClientError] = (),
    ) -> None:
        super().__init__(_TARGET, local=False)
        self._script = _Script(answer, errors)

    @property
    def calls(self) -> list[StubCall]:
        """The calls so far, in order."""
        return self._script.calls

    async def _run(self, call: Call[T]) -> T:
        return self._script.run(call, self._progress(call))

    async def _outcomes(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return self._script.outcomes(calls, self._progress)
