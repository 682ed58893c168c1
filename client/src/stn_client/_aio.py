"""The asynchronous client: `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from stn_client import _calls
from stn_client._arrays import AnyArray, Array, M, operand
from stn_client._calls import Call, Gradients, Objective
from stn_client._connection import (
    NOT_READY,
    ONCE,
    BaseClient,
    Progress,
    ReadyWait,
    open_channel,
)
from stn_client._credentials import Metadata
from stn_client._envelopes import Places
from stn_client._options import CallOptions, GridCallOptions, WarpCallOptions, takes_options
from stn_client._placing import MIN_PLACED_BYTES, place
from stn_client._server_info import ServerInfo
from stn_client._transforms import ParametricTransform, Transform
from stn_client._ttrpc import (
    FAILURES,
    INFO,
    CallError,
    ConnectionLostError,
    Discovery,
    Offer,
    inquiry,
    who_asks,
)
from stn_client._ttrpc_aio import Connection

T = TypeVar("T")


class AsyncClient(BaseClient):
    """A connection to a spatial transformer service for asyncio.

    Every method takes and returns what the method of the same name of `Client` does.

    Args:
        target: gRPC target of one server, "host:port" or "unix:/path", or of all replicas,
            "dns:///name:port" or "ipv4:address:port,...": calls take turns over the ready ones.
        timeout_s: For one call with all its retries, and its wait for others, in seconds; None or
            infinity: no limit.
        retry: How long the pauses are after which a refused or lost call is repeated.
        tls: How to secure the connection; None: not at all.
        token: What the server knows the caller by, or a function that says so before every
            attempt, for tokens that change; it must not block.
        allow_plaintext_token: Whether the token may cross a network without TLS.
        proxy: Whether to go through the HTTP proxy that the environment names for the target
            (`grpc_proxy`, `https_proxy` or `http_proxy`, unless `no_proxy` has it); None: unless
            the target is a unix socket or a loopback address.
        max_in_flight: Calls that are under way at the same time; more wait here, in the order
            they came in.
        local: Whether to take the server's local transport, which is faster, where the target is
            an address of this host without TLS and the server has one that can be reached; else,
            and whenever it is lost, calls go by gRPC.

    Raises:
        InvalidRequestError: An argument breaks a rule, a file cannot be read or is no PEM, or the
            token cannot be sent (a function's: at the call), or not safely.

    Concurrency:
        Has a connection of its own for every event loop it is used in. Cancelling a call cancels
        it on the server, which drops it if it still waits; by the local transport it only drops the
        answer. Copies, pickles and forks are as of
        `Client`.
    """

    def _disconnect(self) -> None:
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}

    def _abandon(self) -> None:
        for connection in self._connections.values():
            connection.abandon()

    @overload
    async def warp(
        self,
        feature_map: M,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> M: ...

    @overload
    async def warp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> Array: ...

    @takes_options(WarpCallOptions)
    async def warp(
        self,
        feature_map: AnyArray,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> Any:
        """Does what `Client.warp` does, awaited."""
        return await self._run(_calls.warp(feature_map, transform, output_size, options))

    @takes_options(WarpCallOptions)
    async def warp_gradients(
        self,
        grad_output: AnyArray,
        feature_map: AnyArray,
        transform: Transform,
        *,
        needs: Sequence[str] = ("feature_map", "transform"),
        **options: Unpack[WarpCallOptions],
    ) -> Gradients:
        """Does what `Client.warp_gradients` does, awaited."""
        call = _calls.warp_gradients(grad_output, feature_map, transform, needs, options)
        return await self._run(call)

    @takes_options(WarpCallOptions)
    async def objective(
        self,
        moving: AnyArray,
        fixed: AnyArray,
        transform: Transform,
        *,
        weights: AnyArray | None = None,
        loss: Literal["ssd", "huber", "ncc"] = "ssd",
        delta: float = 1.0,
        domain: Literal["overlap", "all"] = "overlap",
        needs: Sequence[str] = ("gradient",),
        **options: Unpack[WarpCallOptions],
    ) -> Objective:
        """Does what `Client.objective` does, awaited."""
        comparison = {"loss": loss, "delta": delta, "domain": domain}
        call = _calls.objective(moving, fixed, transform, weights, comparison, needs, options)
        return await self._run(call)

    @overload
    async def vjp(
        self,
        feature_map: M,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> tuple[M, Callable[[AnyArray], Awaitable[Gradients]]]: ...

    @overload
    async def vjp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> tuple[Array, Callable[[AnyArray], Awaitable[Gradients]]]: ...

    @takes_options(WarpCallOptions)
    async def vjp(
        self,
        feature_map: AnyArray,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> tuple[Any, Callable[[AnyArray], Awaitable[Gradients]]]:
        """Does what `Client.vjp` does, awaited; the pullback is awaited, too."""
        shared = await self._shared(feature_map)

        def pullback(grad_output: AnyArray) -> Awaitable[Gradients]:
            return self.warp_gradients(grad_output, shared, transform, **options)

        return await self.warp(shared, transform, output_size, **options), pullback

    @takes_options(GridCallOptions)
    async def generate_grid(
        self,
        transform: ParametricTransform,
        output_size: Sequence[int],
        **options: Unpack[GridCallOptions],
    ) -> Array:
        """Does what `Client.generate_grid` does, awaited."""
        return await self._run(_calls.generate_grid(transform, output_size, options))

    @takes_options(GridCallOptions)
    async def generate_grid_gradients(
        self,
        grad_grid: AnyArray,
        transform: ParametricTransform,
        **options: Unpack[GridCallOptions],
    ) -> Array:
        """Does what `Client.generate_grid_gradients` does, awaited."""
        return await self._run(_calls.generate_grid_gradients(grad_grid, transform, options))

    async def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Does what `Client.empty` does, awaited."""
        array = np.empty(shape, dtype)  # says what shape and type may be, and takes no page yet
        if array.dtype.hasobject or not array.nbytes:
            return array
        local = await self._connection().local_connection()
        memory = None if local is None else await asyncio.to_thread(local.pool.take, array.nbytes)
        if memory is None:
            return array
        return np.ndarray(array.shape, array.dtype, buffer=memory.data)

    @takes_options(CallOptions)
    async def server_info(self, **options: Unpack[CallOptions]) -> ServerInfo:
        """Does what `Client.server_info` does, awaited."""
        return await self._run(_calls.server_info(options))

    async def is_ready(self, *, timeout_s: float | None = 1.0) -> bool:
        """Does what `Client.is_ready` does, awaited."""
        call = _calls.server_info({"timeout_s": timeout_s}, ONCE)
        try:
            return (await self._run(call)).ready
        except NOT_READY:
            return False

    async def wait_until_ready(self, timeout_s: float | None = 60.0) -> None:
        """Does what `Client.wait_until_ready` does, awaited."""
        wait = ReadyWait(timeout_s)
        while not (await self._run(wait.inquiry())).ready:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(wait.pause_s())

    async def close(self) -> None:
        """Ends the connection; calls under way fail with TransportError."""
        self._open = False
        running = asyncio.get_running_loop()
        for loop, connection in self._connections.items():
            if loop is running:
                await connection.close()
            elif loop.is_running():  # in another thread
                asyncio.run_coroutine_threadsafe(connection.close(), loop)
        self._connections.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        """Sends a call, again if the policy says so, and reads the reply."""
        progress = self._progress(call)
        connection = self._connection()
        await connection.take_turn(progress)
        try:
            while True:
                try:
                    attempt = progress.start(call.envelope.size_bytes)
                    reply, places = await connection.send(call, attempt, progress)
                except grpc.RpcError as failure:
                    await asyncio.sleep(progress.pause_s(failure))
                except (asyncio.CancelledError, grpc.aio.UsageError):
                    # gRPC cancels the calls of a channel that is closed, which nobody asked for.
                    if self._open or _is_cancelled():
                        raise
                else:
                    progress.succeed()
                    return call.parse(reply, places)
        finally:
            progress.end()
            connection.turns.release()

    async def _shared(self, feature_map: AnyArray) -> Any:
        """Does what `Client._shared` does."""
        given = operand("feature_map", feature_map)
        local = await self._connection().local_connection()
        if given.array.nbytes < MIN_PLACED_BYTES or local is None:
            return given
        copied = await self.empty(given.array.shape, given.array.dtype)
        copied[...] = given.array
        return replace(given, array=copied)

    def _connection(self) -> _Connection:
        """The connection of the loop that runs."""
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            for other in [other for other in self._connections if other.is_closed()]:
                del self._connections[other]
            channel = open_channel(grpc.aio, self.target, self._access)
            discovery = Discovery(self.target, is_wanted=self._is_local_wanted)
            connection = _Connection(channel, discovery, self._access.metadata, self._max_in_flight)
            self._connections[loop] = connection
        return connection

    def _is_busy(self) -> bool:
        return bool(self._connections)  # gRPC has a thread for them, even if nobody calls


class _Connection:
    """The ways to a server, and how many calls are under way on them, for one event loop."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        discovery: Discovery,
        metadata: Callable[[], Metadata],
        limit: int,
    ) -> None:
        self._channel = channel
        self._metadata = metadata
        self._discovery = discovery
        self._local: Connection | None = None
        self.turns = asyncio.Semaphore(limit)  # keeps the order
        self._methods: dict[str, Any] = {}

    async def take_turn(self, progress: Progress) -> None:
        """Waits until few enough calls are under way."""
        if not self.turns.locked():
            await self.turns.acquire()
            return
        try:
            async with asyncio.timeout(progress.remaining_s()):
                await self.turns.acquire()
        except TimeoutError:
            raise progress.no_turn() from None

    async def send(
        self, call: Call[T], attempt: dict[str, Any], progress: Progress
    ) -> tuple[bytes, Places]:
        """Does what `Client._send` does, awaited."""
        local = await self.local_connection(attempt["timeout"])
        if local is not None:
            placed = place(call, local.pool, may_grow=False)
            if placed is None:  # to ask for more memory takes a while
                placed = await asyncio.to_thread(place, call, local.pool)
            if placed is not None:
                attempt["timeout"] = progress.remaining_s()
                try:
                    request = placed.request
                    reply = await local.call(call.method, request, held=placed.held, **attempt)
                except (ConnectionLostError, CallError) as failure:
                    if isinstance(failure, CallError) and not failure.is_about_arenas:
                        raise
                    if self._local is local:
                        self._local = None
                    local.close()
                    self._discovery.lost()
                else:
                    progress.is_local = True
                    return reply, placed.places
        attempt["timeout"] = progress.remaining_s()
        return await self._method(call.method)(call.request, **attempt), ()

    async def close(self) -> None:
        """Ends every connection that was made."""
        if self._local is not None:
            self._local.close()
            await self._local.wait_closed()
        await self._channel.close()

    def _who(self) -> Metadata:
        return who_asks(self._metadata())

    def abandon(self) -> None:
        """Lets go of the local one in a process that has it from its parent."""
        if self._local is not None:
            self._local.abandon()

    async def local_connection(self, timeout_s: float | None = None) -> Connection | None:
        """A connection by the local transport, if there is one or can be one."""
        if self._local is None and self._discovery.is_due():
            try:
                self._local = await self._found(timeout_s)
            except FAILURES as error:
                self._discovery.failed(error)
        return self._local

    async def _found(self, timeout_s: float | None) -> Connection | None:
        """Asks the server for its local transport, and takes that if it leads to the same one."""
        about = inquiry(self._metadata(), timeout_s)
        offer = Offer.of(await self._method(INFO)(b"", **about))
        if offer is None:
            self._discovery.failed("the server has none")
            return None
        connection = await Connection.open(offer.folder, self._who)
        try:
            if offer.is_from(await connection.call(INFO, b"", **about)):
                self._discovery.found(offer)
                return connection
        except (*FAILURES, asyncio.CancelledError):
            connection.close()
            raise
        connection.close()
        self._discovery.failed("another server is there")
        return None

    def _method(self, path: str) -> Any:
        """The stub of a method."""
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(path)
        return self._methods[path]


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
