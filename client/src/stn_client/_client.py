"""The client for programs that wait for their results."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import grpc
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
from stn_client._sending_threads import Sender
from stn_client._server_info import ServerInfo
from stn_client._stepping_client import SteppingClient
from stn_client._steps import completed
from stn_client._transforms import ParametricTransform, Transform
from stn_client._transports import Transports
from stn_client._ttrpc_threads import Connection

T = TypeVar("T")


class Client(SteppingClient):
    """A connection to a spatial transformer service; NumPy in, NumPy out.

    Results are read-only views into the reply, without a copy; `.copy()` makes one's own. Arrays of
    torch, JAX, CuPy, and whatever else has the array API standard, DLPack or `__array_interface__`
    are taken as well; results are of the type of the operand that they belong to, where its library
    makes arrays of others, in memory of its own.

    Args:
        target: gRPC target of one server, "host:port" or "unix:/path", or of all replicas,
            "dns:///name:port" or "ipv4:address:port,...": calls take turns over the ready ones.
        timeout_s: For one call with all its retries, and its wait for others, in seconds; None or
            infinity: no limit.
        retry: How long the pauses are after which a refused or lost call is repeated.
        tls: How to secure the connection; None: not at all.
        token: What the server knows the caller by, or a function that says so before every
            attempt, for tokens that change.
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
        Thread-safe; calls of several threads run side by side and share batches on the server.
        Copies and pickles are new clients of the same settings, a token in clear among them; a
        token that is a function goes into a pickle by its name, as all functions do. After a fork
        the child connects anew; if a call was under way at that moment, calls in the child raise
        TransportError, because gRPC cannot work there.

    Example:
        >>> with Client("localhost:50051") as stn:
        ...     v = stn.warp(u, Affine(theta), output_size=(224, 224))
        ...     g = stn.warp_gradients(grad_v, u, Affine(theta))
    """

    def _disconnect(self) -> None:
        self._sender = Sender(
            self._new_transports(grpc, Connection),
            SendQueue(self._max_in_flight, packs=self._packing),
        )

    def _abandon(self) -> None:
        self._sender.transports.abandon()

    @overload
    def warp(
        self,
        feature_map: M,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> M: ...

    @overload
    def warp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> Array: ...

    @takes_options(WarpCallOptions)
    def warp(
        self,
        feature_map: AnyArray,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> Any:
        """Samples a feature map where a transform says (equation 1 of the paper).

        Shapes:
            feature_map   (N, C, [D,] H, W)      float32 | float64 | float16 | bfloat16 | uint8 |
                                                 uint16 | int16; labels: bool | int8 | int32 |
                                                 uint32 | int64 | uint64
            returns       (N, C, [D',] H', W')   same dtype

        In another order, or without N and C, by the option `layout`. Results of integers are
        rounded half to even and saturated; labels are read by interpolation "nearest" alone, and
        moved bit for bit.

        Arrays may be of any library: the result is an array of the same one as the feature map, on
        the same device. That of an image of Pillow is an image of its mode.

        Args:
            feature_map: Images or, with a transform in 3-D, volumes. N = 1 serves every transform.
            transform: Where to read, target to source.
            output_size: ([D',] H', W'); None: that of the grid, else of the feature map.

        Options:
            interpolation   "bilinear" (default), "nearest" or "bicubic"
            padding         what reads outside the feature map return: "zeros" (default), "border",
                            "reflection" or "fill"
            fill            the constant of padding "fill", or one per channel; default 0
            coordinates     unit of all coordinates: "normalized" (default), [-1, 1], or "pixel"
            align_corners   whether -1 and 1 are centres of the corner pixels (True) or their outer
                            edges (False, default)
            subgradient     derivative at integer coordinates: "right" (default), as PyTorch, or
                            "zero"
            deterministic   whether feature-map gradients must be bit-reproducible: True (default)
                            or False
            layout          order of the axes of the feature map, the output and their gradients:
                            "NCHW" (default), (N, C, [D,] H, W); "NHWC", (N, [D,] H, W, C); of one
                            map, whose parameters need no N either, "CHW", "HWC" or "HW"
            timeout_s       for this call with all its retries, in seconds; None: no limit; default:
                            that of the client
            metadata        names and texts that are sent along, for what is between client and
                            server, such as a proxy or a tracer; default none
            request_id      what errors and the server's log call this call; default None: random

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        return self._run(_calls.warp(feature_map, transform, output_size, options))

    @takes_options(WarpCallOptions)
    def warp_gradients(
        self,
        grad_output: AnyArray,
        feature_map: AnyArray,
        transform: Transform,
        *,
        needs: Sequence[str] = ("feature_map", "transform"),
        **options: Unpack[WarpCallOptions],
    ) -> Gradients:
        """Returns the exact gradients of a loss to the operands of `warp`.

        Shapes:
            grad_output   (N, C, [D',] H', W')   gradient of the loss to the output of the warp

        Args:
            grad_output: See above; the dtype of the feature map.
            feature_map: As given to `warp`.
            transform: As given to `warp`.
            needs: Operands whose gradients are wanted.
            options: As given to `warp`; its documentation lists them.

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        call = _calls.warp_gradients(grad_output, feature_map, transform, needs, options)
        return self._run(call)

    @takes_options(WarpCallOptions)
    def objective(
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
        """Returns how far a warped map is from another, and the gradient, in one pass.

        V is the warp of the moving map to the size of the fixed map F, w the weight of a point and
        M = C·Σw: "ssd" is Σ w(V - F)² / M, "huber" has lines in the place of squares beyond a
        difference of `delta`, and "ncc" is 1 minus the weighted correlation of V and F.

        Shapes:
            moving    (N, C, [D,] H, W)      float32 | float64 | float16 | bfloat16
            fixed     (N, C, [D',] H', W')   same dtype
            weights   (N, 1, [D',] H', W')   same dtype, numbers >= 0
            returns   see `Objective`

        N of each may be 1: many transforms for one pair of maps are one call.

        Args:
            moving: The map that is warped.
            fixed: The map that it shall look like.
            transform: Where to read, target to source.
            weights: How much each target point counts, such as a mask; None: all 1. What the maps
                hold at points of weight 0 does not matter.
            loss: See above.
            delta: Of "huber".
            domain: Whether points that read outside of the moving map count, "all", or not.
            needs: "gradient", and "gauss_newton" for transforms that are matrices and not for
                "ncc"; or nothing.
            options: As of `warp`; its documentation lists them.

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        comparison = {"loss": loss, "delta": delta, "domain": domain}
        call = _calls.objective(moving, fixed, transform, weights, comparison, needs, options)
        return self._run(call)

    @overload
    def vjp(
        self,
        feature_map: M,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> tuple[M, Callable[[AnyArray], Gradients]]: ...

    @overload
    def vjp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> tuple[Array, Callable[[AnyArray], Gradients]]: ...

    @takes_options(WarpCallOptions)
    def vjp(
        self,
        feature_map: AnyArray,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpCallOptions],
    ) -> tuple[Any, Callable[[AnyArray], Gradients]]:
        """Returns a warp and its pullback: the function from grad_output to gradients.

        Arguments and errors are those of `warp`. The pullback reads the operands again when it is
        called: leave them as they are until then.
        """
        shared = self._shared(feature_map)

        output = self.warp(shared, transform, output_size, **options)
        shape = getattr(output, "shape", None)

        def pullback(grad_output: AnyArray) -> Gradients:
            check_shape_of_output(grad_output, shape)
            return self.warp_gradients(grad_output, shared, transform, **options)

        return output, pullback

    @takes_options(GridCallOptions)
    def generate_grid(
        self,
        transform: ParametricTransform,
        output_size: Sequence[int],
        **options: Unpack[GridCallOptions],
    ) -> Array:
        """Returns the sampling grid of a transform (equation 5).

        Shapes:
            returns   (N, [D',] H', W', 2 or 3)   source points (x, y[, z]), dtype of the parameters

        Args:
            transform: Target to source.
            output_size: ([D',] H', W').
            options: `coordinates`, `align_corners`, `timeout_s`, `metadata` and `request_id`, as
                of `warp`.

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        return self._run(_calls.generate_grid(transform, output_size, options))

    @takes_options(GridCallOptions)
    def generate_grid_gradients(
        self,
        grad_grid: AnyArray,
        transform: ParametricTransform,
        **options: Unpack[GridCallOptions],
    ) -> Array:
        """Returns the gradient of a loss to the parameters of a transform (equations 6 and 7).

        Shapes:
            grad_grid   (N, [D',] H', W', 2 or 3)   gradient of the loss to the grid
            returns     as the parameters of the transform

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        return self._run(_calls.generate_grid_gradients(grad_grid, transform, options))

    def map(
        self,
        calls: Iterable[Call[Any]],
        *,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Yields the results of many calls in order, sent a few messages ahead.

        Calls go together: small ones of any kind in a message, and large ones that differ in the
        values of their arrays alone, one behind the other, as one call with a longer batch. Results
        of the latter are views of one piece of memory of at most 4 MiB; `.copy()` frees the rest.

        Args:
            calls: As of `stn_client.calls`; taken as results are, so that there may be any number.
            progress: Whether to show a progress bar on standard error; needs tqdm.
            return_exceptions: Whether a call that fails gives its error as its result. Else it is
                raised when it is its turn, and ends the iteration.

        Raises:
            InvalidRequestError: Something else than a call is among them, or tqdm is missing.
            StnClientError: A call has failed.

        Example:
            >>> pairs = zip(images, thetas)
            >>> warped = list(stn.map(calls.warp(u, Affine(theta)) for u, theta in pairs))
        """
        waiting: deque[Future[list[Any]]] = deque()
        made = chunks(checked(calls), stacks=self._packing)
        position = 0
        with (
            progress_bar(calls, shown=progress) as bar,
            ThreadPoolExecutor(CHUNKS_AHEAD, thread_name_prefix="stn-map") as pool,
        ):
            try:
                while True:
                    # Before results are given out: the server computes while they are used.
                    for chunk in islice(made, CHUNKS_AHEAD - len(waiting)):
                        waiting.append(pool.submit(self._outcomes, chunk))
                    if not waiting:
                        return
                    for outcome in waiting.popleft().result():
                        if isinstance(outcome, Exception) and not return_exceptions:
                            raise placed(outcome, position)
                        position += 1
                        bar.update(1)
                        yield outcome
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Returns an array for operands, in memory that a server of this host sees.

        Calls then need not copy it. In every other case it is an array like any other.

        Args:
            shape: The shape of the array.
            dtype: The type of its elements.
        """
        array = np.empty(shape, dtype)  # says what shape and type may be, and takes no page yet
        if array.dtype.hasobject or not array.nbytes:
            return array
        local = completed(self._transports().find_local())
        slot = None if local is None else local.pool.allocate(array.nbytes)
        if slot is None:
            return array
        return np.ndarray(array.shape, array.dtype, buffer=slot.memory.data)

    @takes_options(CallOptions)
    def upload(self, array: AnyArray, **options: Unpack[CallOptions]) -> ResidentTensor:
        """Leaves a copy of an array on the server, for calls that use it again and again.

        What is returned stands for the array wherever calls of this client take one. Servers hold
        such tensors as long as they are used and there is room; the client keeps the copy and sends
        it again when a server has evicted it.

        Shapes:
            array   any      any dtype of a feature map

        Args:
            array: A feature map, parameters of a transform, weights, or a gradient.
            options: `timeout_s`, `metadata` and `request_id`, as of `warp`, of each message.

        Raises:
            InvalidRequestError: It is no array of these types, or larger than what one caller may
                leave there.
            StnClientError: Any other way a call can fail.

        Example:
            >>> image = stn.upload(u)
            >>> for theta in thetas:
            ...     v = stn.warp(image, Affine(theta), (224, 224))
        """
        return completed(self._uploading(array, options))

    @takes_options(CallOptions)
    def download(self, tensor: ResidentTensor, **options: Unpack[CallOptions]) -> Array:
        """Returns the array of a resident tensor, as the server holds it.

        Args:
            tensor: As `upload` has returned it.
            options: `timeout_s`, `metadata` and `request_id`, as of `warp`, of each message.

        Raises:
            InvalidRequestError: No server holds it any more, or it belongs to another client.
            StnClientError: Any other way a call can fail.
        """
        return completed(self._downloading(tensor, options))

    @takes_options(CallOptions)
    def release(self, *tensors: ResidentTensor, **options: Unpack[CallOptions]) -> int:
        """Releases tensors on the server that are not needed any more.

        They still stand for their arrays, which go with their calls from now on.

        Args:
            tensors: As `upload` has returned them.
            options: `timeout_s`, `metadata` and `request_id`, as of `warp`, of each message.

        Returns:
            How many the server still held.

        Raises:
            StnClientError: Any way a call can fail. Of several replicas all are asked first; notes
                say how others failed, and what is still there goes with its lease.
        """
        return completed(self._releasing(tensors, options))

    @takes_options(CallOptions)
    def server_info(self, **options: Unpack[CallOptions]) -> ServerInfo:
        """Returns what the server is, offers, allows, and has done so far.

        Args:
            options: `timeout_s`, `metadata` and `request_id`, as of `warp`.
        """
        return self._run(_calls.server_info(options))

    def is_ready(self, *, timeout_s: float | None = 1.0) -> bool:
        """Asks a server once whether it takes calls; False if it does not answer in time.

        Raises:
            InvalidRequestError: The timeout is no duration above 0.
            StnClientError: A server is there, and fails or refuses in another way than by having no
                time or room, such as for a token that it does not know.
        """
        call = _calls.server_info({"timeout_s": timeout_s}, ONCE)
        try:
            return self._run(call).ready
        except NOT_READY:
            return False

    def wait_until_ready(self, timeout_s: float | None = 60.0) -> None:
        """Returns as soon as a server answers and takes calls, whatever the retry policy.

        Args:
            timeout_s: How long to wait, in seconds; None: without limit.

        Raises:
            UnavailableError: No server was there until then.
            DeadlineExceededError: One was there, and not ready until then.
            StnClientError: As of `is_ready`.
        """
        wait = ReadyWait(timeout_s)
        while not self._run(wait.inquiry()).ready:
            time.sleep(wait.pause_s())

    def close(self) -> None:
        """Ends the connection; calls under way fail with TransportError."""
        self._open = False
        self._sender.transports.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        """Sends a call, again if the policy says so, and reads the reply."""
        inbox: SimpleQueue[Waiter] = SimpleQueue()
        waiter = Waiter(call, self._progress(call), inbox.put)
        try:
            if call.residents:
                completed(self._preparing(call, waiter.progress))
            self._sender.enter(waiter)
            result: T = self._result(waiter, inbox)
            return result
        finally:
            self._sender.leave(waiter)

    def _outcomes(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Returns the result of each call, or its error."""
        if is_stack(calls) and (results := completed(self._stacking(calls))):
            return results
        inbox: SimpleQueue[Waiter] = SimpleQueue()
        waiters = [Waiter(call, self._progress(call), inbox.put) for call in calls]
        outcomes: list[Any] = []
        try:
            for waiter in waiters:
                if waiter.call.residents:
                    try:
                        completed(self._preparing(waiter.call, waiter.progress))
                    except StnClientError as error:
                        waiter.outcome = error  # of this call alone
            # All at once, so that small calls among them can go in one message.
            self._sender.enter(*(waiter for waiter in waiters if waiter.outcome is None))
            for waiter in waiters:
                try:
                    outcomes.append(self._result(waiter, inbox))
                except StnClientError as error:
                    outcomes.append(error)
        finally:
            for waiter in waiters:
                self._sender.leave(waiter)
        return outcomes

    def _result(self, waiter: Waiter, inbox: SimpleQueue[Waiter]) -> Any:
        """Returns the result of a call that has entered the queue.

        Args:
            waiter: The call.
            inbox: Calls of this thread that go or have their outcome.
        """
        progress = waiter.progress
        while True:
            try:
                reply, places = self._sender.answer(waiter, inbox)
            except grpc.RpcError as failure:
                if progress.loses(failure):
                    # An upload needs a turn itself: holding one meanwhile could block it for ever.
                    self._sender.give_up_turn(waiter)
                    completed(self._preparing(waiter.call, progress))
                else:
                    time.sleep(progress.pause_s(failure))
            except GoAlone:
                pass
            except ValueError:  # what gRPC makes of a channel that another thread just closed
                if self._open:
                    raise
            else:
                progress.succeed()
                return waiter.call.parse(reply, places)
            self._sender.enter(waiter)

    def _shared(self, feature_map: AnyArray) -> Any:
        """Returns a feature map for a warp and its gradients; `stn_client.torch` asks, too."""
        return completed(self._sharing(feature_map))

    def _wait_for(self, end: Future[bool], timeout_s: float | None) -> None:
        wait([end], timeout_s)

    def _transports(self) -> Transports:
        return self._sender.transports

    def _is_busy(self) -> bool:
        return self._sender.is_busy
