"""The asynchronous client: `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from stn_client import _calls
from stn_client._calls import Array, Call, Gradients
from stn_client._connection import Progress, open_channel
from stn_client._credentials import Access, Tls, Token
from stn_client._options import GridOptions, WarpOptions
from stn_client._retry import RetryPolicy
from stn_client._transforms import ParametricTransform, Transform
from stn_proto.v1.server_info_pb2 import GetServerInfoReply

T = TypeVar("T")


class AsyncClient:
    """A connection to a spatial transformer service for asyncio.

    Every method takes and returns what the method of the same name of `Client` does.

    Args:
        target: gRPC target of one server, "host:port" or "unix:/path", or of all replicas,
            "dns:///name:port" or "ipv4:address:port,...": calls take turns over the ready ones.
        timeout_s: For one call with all its retries; None: no limit.
        retry: When a refused or lost call is repeated.
        tls: How to secure the connection; None: not at all.
        token: What the server knows the caller by, or a function that says so before every
            attempt, for tokens that change; it must not block.
        allow_plaintext_token: Whether the token may cross a network without TLS.

    Raises:
        ValueError: A file cannot be read, or the token cannot be sent (a function's: at the
            call), or not safely.

    Concurrency:
        Belongs to the event loop it is first used in. Cancelling a call cancels it on the
        server, which drops it if it still waits.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 60.0,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
        token: Token | None = None,
        allow_plaintext_token: bool = False,
    ) -> None:
        self.target = target
        self._access = Access(target, tls, token, allow_plaintext_token=allow_plaintext_token)
        self._open = True
        self._timeout_s = timeout_s
        self._retry = RetryPolicy() if retry is None else retry
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}

    async def warp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpOptions],
    ) -> Array:
        """See `Client.warp`."""
        return await self._run(_calls.warp(feature_map, transform, output_size, options))

    async def warp_gradients(
        self,
        grad_output: ArrayLike,
        feature_map: ArrayLike,
        transform: Transform,
        *,
        needs: Sequence[str] = ("feature_map", "transform"),
        **options: Unpack[WarpOptions],
    ) -> Gradients:
        """See `Client.warp_gradients`."""
        call = _calls.warp_gradients(grad_output, feature_map, transform, needs, options)
        return await self._run(call)

    async def vjp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpOptions],
    ) -> tuple[Array, Callable[[ArrayLike], Awaitable[Gradients]]]:
        """See `Client.vjp`; the pullback is awaited, too."""

        def pullback(grad_output: ArrayLike) -> Awaitable[Gradients]:
            return self.warp_gradients(grad_output, feature_map, transform, **options)

        return await self.warp(feature_map, transform, output_size, **options), pullback

    async def generate_grid(
        self,
        transform: ParametricTransform,
        output_size: Sequence[int],
        **options: Unpack[GridOptions],
    ) -> Array:
        """See `Client.generate_grid`."""
        return await self._run(_calls.generate_grid(transform, output_size, options))

    async def generate_grid_gradients(
        self, grad_grid: ArrayLike, transform: ParametricTransform, **options: Unpack[GridOptions]
    ) -> Array:
        """See `Client.generate_grid_gradients`."""
        return await self._run(_calls.generate_grid_gradients(grad_grid, transform, options))

    async def server_info(self) -> GetServerInfoReply:
        """See `Client.server_info`."""
        return await self._run(_calls.server_info())

    async def close(self) -> None:
        """Ends the connection; calls under way fail with TransportError."""
        self._open = False
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        """Sends a call, again if the policy says so, and reads the reply."""
        progress = Progress(self._retry, self._timeout_s, lambda: self._open, self._access.metadata)
        while True:
            try:
                attempt = progress.start(call.request)
                reply = await self._method(call.method)(call.request, **attempt)
            except grpc.aio.AioRpcError as failure:
                await asyncio.sleep(progress.pause_s(failure))
            except asyncio.CancelledError:
                # gRPC cancels the calls of a channel that is closed, which nobody asked for.
                if self._open or _is_cancelled():
                    raise
            else:
                return call.parse(reply)

    def _method(self, path: str) -> Any:
        """The stub of a method. The first one opens the channel, in the loop that runs then."""
        if self._channel is None:
            self._channel = open_channel(grpc.aio, self.target, self._access)
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(path)
        return self._methods[path]


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
