"""The asynchronous client: `Client`, awaited."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from stn_client import _calls
from stn_client._arguments import check_shape_of_output
from stn_client._arrays import AnyArray, Array, M
from stn_client._calls import Call, Gradients, Objective
from stn_client._channels import Channels
from stn_client._connection import NOT_READY, ONCE, Progress, ReadyWait
from stn_client._credentials import Metadata
from stn_client._envelopes import Places
from stn_client._errors import StnClientError
from stn_client._mapping import CHUNKS_AHEAD, checked, chunks, is_stack, placed, progress_bar
from stn_client._options import CallOptions, GridCallOptions, WarpCallOptions, takes_options
from stn_client._placing import MAX_FRAMED_BYTES, by_message, place
from stn_client._replicas import Replicas
from stn_client._residents import ResidentTensor
from stn_client._sending import MAX_MESSAGE_BYTES, GoAlone, Packet, SendQueue, Waiter
from stn_client._server_info import ServerInfo
from stn_client._steps import SteppingClient, Steps, finding_local
from stn_client._transforms import ParametricTransform, Transform
from stn_client._ttrpc import (
    FAILURES,
    INFO,
    ConnectionLostError,
    Discovery,
    inquiry,
    no_answer_in_time,
    who_asks,
)
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
        shared = await _completed(self._sharing(feature_map))

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
        local = await self._local_connection()
        memory = None if local is None else await asyncio.to_thread(local.pool.take, array.nbytes)
        if memory is None:
            return array
        return np.ndarray(array.shape, array.dtype, buffer=memory.data)

    @takes_options(CallOptions)
    async def upload(self, array: AnyArray, **options: Unpack[CallOptions]) -> ResidentTensor:
        """Leaves a copy of an array on the server; see `Client.upload`."""
        return await _completed(self._uploading(array, options))

    @takes_options(CallOptions)
    async def download(self, tensor: ResidentTensor, **options: Unpack[CallOptions]) -> Array:
        """Returns the array of a resident tensor; see `Client.download`."""
        return await _completed(self._downloading(tensor, options))

    @takes_options(CallOptions)
    async def release(self, *tensors: ResidentTensor, **options: Unpack[CallOptions]) -> int:
        """Releases resident tensors; see `Client.release`."""
        return await _completed(self._releasing(tensors, options))

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
        waiter = Waiter(call, progress, connection.wake)
        try:
            if call.residents:
                await _completed(self._preparing(call, progress))
            while True:
                try:
                    reply, places = await connection.answer(waiter)
                except grpc.RpcError as failure:
                    if progress.loses(failure):
                        connection.leave(waiter)
                        await _completed(self._preparing(call, progress))
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
            connection.leave(waiter)

    async def _outcomes(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Returns the result of each call, or its error."""
        if is_stack(calls) and (results := await _completed(self._stacking(calls))):
            return results
        # All are awaited, so that no call goes on unseen when one of them fails.
        outcomes = await asyncio.gather(*map(self._run, calls), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, StnClientError):
                raise outcome
        return outcomes

    async def _local_connection(self) -> Connection | None:
        """Returns a connection by the local transport; None if there is none."""
        return await self._connection().local_connection()

    async def _wait_for(self, end: Future[bool], timeout_s: float | None) -> None:
        await asyncio.wait([asyncio.wrap_future(end)], timeout=timeout_s)

    def _connection(self) -> _Connection:
        """Returns the connection of the event loop that runs."""
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            # Loops of past `asyncio.run` would otherwise keep their channels for ever.
            for other in [other for other in self._connections if other.is_closed()]:
                del self._connections[other]
            connection = self._connections[loop] = _Connection(
                Channels(grpc.aio, self.target, self._access, self._replicas),
                self._replicas,
                Discovery(self.target, is_wanted=self._is_local_wanted),
                self._access.metadata,
                SendQueue(self._max_in_flight, packs=self._packing),
                self._name,
            )
        return connection

    def _is_busy(self) -> bool:
        return bool(self._connections)  # gRPC has a thread for them, even if nobody calls


class _Connection:
    """The connections to a server, and the queue of calls, of one event loop."""

    def __init__(
        self,
        channels: Channels,
        replicas: Replicas,
        discovery: Discovery,
        metadata: Callable[[], Metadata],
        queue: SendQueue,
        client: str,
    ) -> None:
        self._client = client
        self._channels = channels
        self._replicas = replicas
        self._metadata = metadata
        self._discovery = discovery
        self._local: Connection | None = None
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._woken: dict[Waiter, asyncio.Future[None]] = {}
        self._looks_at_s = math.inf
        """The instant at which the timer fires; infinity if there is none."""
        self._timer: asyncio.TimerHandle | None = None
        self._sending: dict[Packet, asyncio.Task[None]] = {}
        self._starts_soon = False
        """Whether calls are started at the end of this turn of the event loop."""

    async def answer(self, waiter: Waiter) -> tuple[bytes, Places]:
        """Returns the reply to a call, which is sent in its turn, alone or with others.

        Raises:
            RpcError: The attempt failed.
            DeadlineExceededError: Its time was over before its turn came.
            GoAlone: It has to be tried again.
            StnClientError: It cannot be sent.
        """
        self._queue.add(waiter)
        is_soon = self._starts_soon or (self._gathers and self._queue.is_packing)
        if is_soon and not waiter.goes_alone:
            self._start_soon()
        else:
            self._start()
        # `_start` may have woken it within this very call; then there is nothing to wait for.
        if waiter.goes is None and waiter.outcome is None:
            woken = self._woken[waiter] = self._loop.create_future()
            self._watch(waiter.progress.deadline_s)
            try:
                await woken
            finally:
                del self._woken[waiter]
                # The task was cancelled while a packet carries its call:
                # perhaps it was the last one to wait.
                if waiter.outcome is None and waiter.goes is None:
                    self._give_up()
        if waiter.outcome is None:
            try:
                attempt = waiter.progress.start(waiter.call.envelope.size_bytes)
                waiter.outcome = await self.send(waiter.call, attempt, waiter.progress)
            finally:
                self._sent(waiter)
        # Taken, as the same waiter may enter the queue again for another attempt.
        outcome, waiter.outcome = waiter.outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def leave(self, waiter: Waiter) -> None:
        """Removes a call that has ended from the queue, however it ended."""
        self._sent(waiter)
        if waiter.is_in_queue:  # those that were answered have left
            self._queue.leave(waiter)
            self._start()

    def wake(self, waiter: Waiter) -> None:
        """Resumes a call that is to be sent or has its outcome, or sends its packet."""
        if isinstance(waiter.goes, Packet):
            packet, waiter.goes = waiter.goes, None
            # A task of its own: the cancellation of one call must
            # not cancel the message of the others.
            task = self._loop.create_task(self._send_together(packet))
            # Referred to as long as it runs: an event loop holds its tasks weakly.
            self._sending[packet] = task
            # It ends there, and not in itself: a task that is cancelled before
            # its first step runs nothing of its own.
            task.add_done_callback(partial(self._ended, packet))
            return
        woken = self._woken.get(waiter)
        if woken is not None and not woken.done():
            woken.set_result(None)

    def _watch(self, deadline_s: float) -> None:
        """Sets the one timer of all waiting calls, as a timer for each would cost more."""
        if deadline_s < self._looks_at_s:
            if self._timer is not None:
                self._timer.cancel()
            self._looks_at_s = deadline_s
            self._timer = self._loop.call_later(deadline_s - time.monotonic(), self._expire)

    def _expire(self) -> None:
        """Ends waiting calls whose deadlines have passed, and sets the timer anew."""
        # First, so that `_watch` below sets a new timer, whatever the old one was set to.
        self._timer, self._looks_at_s = None, math.inf
        now_s, next_s = time.monotonic(), math.inf
        for waiter, woken in self._woken.items():
            deadline_s = waiter.progress.deadline_s
            if deadline_s > now_s:
                next_s = min(next_s, deadline_s)
            elif not woken.done():
                # What was sent already had its turn: its time was
                # over on the server, not in the queue.
                waited = self._queue.leave(waiter)
                waiter.outcome = waiter.progress.no_turn() if waited else no_answer_in_time()
                woken.set_result(None)
        self._watch(next_s)

    def _give_up(self) -> None:
        """Cancels messages all of whose calls have been cancelled."""
        if self._loop.is_closed():  # and with it every message
            return
        for packet, task in self._sending.items():
            if not any(waiter in self._woken for waiter in packet.waiters):
                task.cancel()

    def _start(self, *, splits: bool = False) -> None:
        """Starts the calls whose turn it is, unless the loop was closed while they waited."""
        if not self._loop.is_closed():
            most_bytes = MAX_MESSAGE_BYTES if self._local is None else MAX_FRAMED_BYTES
            self._queue.start(most_bytes, splits=splits)

    @property
    def _gathers(self) -> bool:
        """Whether calls of one turn of the event loop start together, at its end.

        They do by gRPC alone: by the local transport a message costs less than that would save.
        """
        return self._local is None

    def _start_soon(self) -> None:
        """Starts calls when all that come in this turn of the event loop are there."""
        if not self._starts_soon:
            self._starts_soon = True
            self._loop.call_soon(self._start_turn)

    def _start_turn(self) -> None:
        """Starts the calls of a turn in parts: callers that come together come back together."""
        self._starts_soon = False
        self._start(splits=True)

    def _sent(self, waiter: Waiter) -> None:
        """Notes that a call that was sent alone is no longer under way."""
        if waiter.goes is not None:
            self._queue.answered(waiter.goes)
            waiter.goes = None
            self._start()

    async def _send_together(self, packet: Packet) -> None:
        """Sends a message of several calls, and gives each its outcome."""
        try:
            attempt = packet.start()
            reply, _ = await self.send(packet.call, attempt, packet.lead.progress)
            packet.succeed(reply)
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            packet.fail(error, is_lost=True)
        except Exception as error:  # noqa: BLE001 - raised by each of its calls
            packet.fail(error, is_lost=False)

    def _ended(self, packet: Packet, _task: asyncio.Task[None]) -> None:
        """Notes that a message is no longer under way, and resumes its calls."""
        del self._sending[packet]
        self._queue.answered(packet)
        # The next message first: the server computes it while these calls read their replies.
        # But one of few calls waits for what their owners ask next: else they would stay few.
        try:
            if not (self._gathers and self._queue.waits_for(packet)):
                self._start()
        finally:  # they have their outcomes, whatever becomes of the next ones
            packet.wake()
        if self._gathers:
            self._start_soon()

    async def send(
        self, call: Call[T], attempt: dict[str, Any], progress: Progress
    ) -> tuple[bytes, Places]:
        """Makes one attempt by the best transport; see `Client._send`."""
        local = await self.local_connection(attempt["timeout"])
        if local is not None:
            # Slots that are there are taken at once; only growth,
            # which asks the server, needs a thread.
            placed = place(call, local.pool, self._client, may_grow=False)
            if placed is None:  # to ask for more memory takes a while
                placed = await asyncio.to_thread(place, call, local.pool, self._client)
            if placed is not None:
                attempt["timeout"] = progress.remaining_s()
                try:
                    request = placed.request
                    reply = await local.call(call.method, request, held=placed.held, **attempt)
                except ConnectionLostError:
                    # Another task may have seen the loss first, and have connected anew.
                    if self._local is local:
                        self._local = None
                    local.close()
                    self._discovery.lost()
                else:
                    progress.is_local = True
                    return reply, placed.places
        progress.address = ""
        if call.address:
            progress.address = await self._reached(call.address, progress)
        request = by_message(call, self._client)
        if call.residents:
            attempt = progress.resized(attempt, len(request))
        # Last, as all of the above may have used some of the call's time.
        attempt["timeout"] = progress.remaining_s()
        # Kept until the reply is there, see `Channels`.
        link = self._channels.link(progress.address)
        return await link.method(call.method)(request, **attempt), ()

    async def _reached(self, address: str, progress: Progress) -> str:
        """Returns where a call goes whose tensors are at an address; see `Replicas.reached`."""
        if self._replicas.is_due(address):
            await asyncio.to_thread(self._replicas.look_up, progress.remaining_s())
        return self._replicas.reached(address)

    async def close(self) -> None:
        """Ends every connection that was made."""
        if self._timer is not None:
            self._timer.cancel()
        if self._local is not None:
            self._local.close()
            # Else the loop may end with a socket that is open, of which asyncio warns.
            await self._local.wait_closed()
        await asyncio.gather(*self._channels.close())

    def abandon(self) -> None:
        """Closes this process's copies of local sockets after a fork; the parent keeps its own."""
        if self._local is not None:
            self._local.abandon()

    async def local_connection(self, timeout_s: float | None = None) -> Connection | None:
        """Returns a connection by the local transport; None if there is none."""
        if self._local is None and self._discovery.is_due():
            try:
                self._local = await _completed(
                    finding_local(
                        self._channels.link().method(INFO),
                        lambda folder: Connection.open(folder, lambda: who_asks(self._metadata())),
                        self._discovery,
                        inquiry(self._metadata(), timeout_s),
                    )
                )
            except FAILURES as error:
                self._discovery.failed(error)
        return self._local


async def _completed(steps: Steps[T]) -> T:
    """Takes steps whose calls have to be awaited; returns the result."""
    try:
        step = next(steps)
        while True:
            try:
                result = await step
            except BaseException as error:  # noqa: BLE001 - raised where the step was taken
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        found: T = done.value
        return found


def _is_cancelled() -> bool:
    """Returns whether the running task has been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
