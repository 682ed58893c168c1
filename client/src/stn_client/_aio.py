"""The asynchronous client: `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from stn_client import _calls
from stn_client._arguments import check_shape_of_output
from stn_client._arrays import AnyArray, Array, M
from stn_client._connection import NOT_READY, ONCE, ReadyWait
from stn_client._errors import StnClientError
from stn_client._mapping import CHUNKS_AHEAD, checked, chunks, is_stack, placed, progress_bar
from stn_client._options import CallOptions, GridCallOptions, WarpCallOptions, takes_options
from stn_client._prepared_call import Call, Gradients, Objective
from stn_client._residents import ResidentTensor
from stn_client._sending import GoAlone, SendQueue, Waiter
from stn_client._sending_aio import Sender
from stn_client._server_info import ServerInfo
from stn_client._stepping_client import SteppingClient
from stn_client._steps import awaited
from stn_client._transforms import ParametricTransform, Transform
from stn_client._transports import Transports
from stn_client._ttrpc_aio import Connection

T = TypeVar("T")


class AsyncClient(SteppingClient):
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
        packing: Whether small calls that wait while others are under way go together in one
            message; each still succeeds, fails and ends for itself.

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
        self._senders: dict[asyncio.AbstractEventLoop, Sender] = {}

    def _abandon(self) -> None:
        for sender in self._senders.values():
            sender.transports.abandon()

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
        """Samples a feature map where a transform says; see `Client.warp`."""
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
        """Returns the exact gradients of a warp; see `Client.warp_gradients`."""
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
        """Returns how far a warp is from a fixed map; see `Client.objective`."""
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
        """Returns a warp and its pullback, which is awaited, too; see `Client.vjp`."""
        shared = await awaited(self._sharing(feature_map))

        output = await self.warp(shared, transform, output_size, **options)
        shape = getattr(output, "shape", None)

        async def pullback(grad_output: AnyArray) -> Gradients:
            check_shape_of_output(grad_output, shape)
            return await self.warp_gradients(grad_output, shared, transform, **options)

        return output, pullback

    @takes_options(GridCallOptions)
    async def generate_grid(
        self,
        transform: ParametricTransform,
        output_size: Sequence[int],
        **options: Unpack[GridCallOptions],
    ) -> Array:
        """Returns the sampling grid of a transform; see `Client.generate_grid`."""
        return await self._run(_calls.generate_grid(transform, output_size, options))

    @takes_options(GridCallOptions)
    async def generate_grid_gradients(
        self,
        grad_grid: AnyArray,
        transform: ParametricTransform,
        **options: Unpack[GridCallOptions],
    ) -> Array:
        """Returns gradients of a grid; see `Client.generate_grid_gradients`."""
        return await self._run(_calls.generate_grid_gradients(grad_grid, transform, options))

    async def map(
        self,
        calls: Iterable[Call[Any]],
        *,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        """Yields the results of many calls, for `async for`; see `Client.map`."""
        waiting: deque[asyncio.Task[list[Any]]] = deque()
        made = chunks(checked(calls), stacks=self._packing)
        position = 0
        with progress_bar(calls, shown=progress) as bar:
            try:
                while True:
                    for chunk in islice(made, CHUNKS_AHEAD - len(waiting)):
                        waiting.append(asyncio.create_task(self._outcomes(chunk)))
                    if not waiting:
                        return
                    outcomes = await waiting[0]
                    waiting.popleft()
                    for outcome in outcomes:
                        if isinstance(outcome, Exception) and not return_exceptions:
                            raise placed(outcome, position)
                        position += 1
                        bar.update(1)
                        yield outcome
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    async def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Returns an array in memory that the server may see; see `Client.empty`."""
        array = np.empty(shape, dtype)  # says what shape and type may be, and takes no page yet
        if array.dtype.hasobject or not array.nbytes:
            return array
        local = await awaited(self._transports().find_local())
        slot = None if local is None else await asyncio.to_thread(local.pool.allocate, array.nbytes)
        if slot is None:
            return array
        return np.ndarray(array.shape, array.dtype, buffer=slot.memory.data)

    @takes_options(CallOptions)
    async def upload(self, array: AnyArray, **options: Unpack[CallOptions]) -> ResidentTensor:
        """Leaves a copy of an array on the server; see `Client.upload`."""
        return await awaited(self._uploading(array, options))

    @takes_options(CallOptions)
    async def download(self, tensor: ResidentTensor, **options: Unpack[CallOptions]) -> Array:
        """Returns the array of a resident tensor; see `Client.download`."""
        return await awaited(self._downloading(tensor, options))

    @takes_options(CallOptions)
    async def release(self, *tensors: ResidentTensor, **options: Unpack[CallOptions]) -> int:
        """Releases resident tensors; see `Client.release`."""
        return await awaited(self._releasing(tensors, options))

    @takes_options(CallOptions)
    async def server_info(self, **options: Unpack[CallOptions]) -> ServerInfo:
        """Returns what the server says about itself; see `Client.server_info`."""
        return await self._run(_calls.server_info(options))

    async def is_ready(self, *, timeout_s: float | None = 1.0) -> bool:
        """Returns whether the server takes calls; see `Client.is_ready`."""
        call = _calls.server_info({"timeout_s": timeout_s}, ONCE)
        try:
            return (await self._run(call)).ready
        except NOT_READY:
            return False

    async def wait_until_ready(self, timeout_s: float | None = 60.0) -> None:
        """Returns when the server takes calls; see `Client.wait_until_ready`."""
        wait = ReadyWait(timeout_s)
        while not (await self._run(wait.inquiry())).ready:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(wait.pause_s())

    async def close(self) -> None:
        """Ends the connection; calls under way fail with TransportError."""
        self._open = False
        running = asyncio.get_running_loop()
        for loop, sender in self._senders.items():
            if loop is running:
                await sender.close()
            elif loop.is_running():  # in another thread
                asyncio.run_coroutine_threadsafe(sender.close(), loop)
        self._senders.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        """Sends a call, again if the policy says so, and reads the reply."""
        progress = self._progress(call)
        sender = self._sender()
        waiter = Waiter(call, progress, sender.wake)
        try:
            if call.residents:
                await awaited(self._preparing(call, progress))
            while True:
                try:
                    reply, places = await sender.answer(waiter)
                except grpc.RpcError as failure:
                    if progress.loses(failure):
                        sender.leave(waiter)
                        await awaited(self._preparing(call, progress))
                    else:
                        await asyncio.sleep(progress.pause_s(failure))
                except GoAlone:
                    continue
                except (asyncio.CancelledError, grpc.aio.UsageError):
                    # gRPC cancels the calls of a channel that is closed, which nobody asked for.
                    if self._open or _is_cancelled():
                        raise
                else:
                    progress.succeed()
                    return call.parse(reply, places)
        finally:
            progress.end()
            sender.leave(waiter)

    async def _outcomes(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Returns the result of each call, or its error."""
        if is_stack(calls) and (results := await awaited(self._stacking(calls))):
            return results
        # All are awaited, so that no call goes on unseen when one of them fails.
        outcomes = await asyncio.gather(*map(self._run, calls), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, StnClientError):
                raise outcome
        return outcomes

    async def _wait_for(self, end: Future[bool], timeout_s: float | None) -> None:
        await asyncio.wait([asyncio.wrap_future(end)], timeout=timeout_s)

    def _transports(self) -> Transports:
        return self._sender().transports

    def _sender(self) -> Sender:
        """Returns the sender of the event loop that runs."""
        loop = asyncio.get_running_loop()
        sender = self._senders.get(loop)
        if sender is None:
            # Loops of past `asyncio.run` would otherwise keep their channels for ever.
            for other in [other for other in self._senders if other.is_closed()]:
                del self._senders[other]
            sender = self._senders[loop] = Sender(
                self._new_transports(grpc.aio, Connection.open, asyncio.to_thread),
                SendQueue(self._max_in_flight, packs=self._packing),
            )
        return sender

    def _is_busy(self) -> bool:
        return bool(self._senders)  # gRPC has a thread for them, even if nobody calls


def _is_cancelled() -> bool:
    """Returns whether the running task has been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
