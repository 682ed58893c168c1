"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar, Unpack

import grpc
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


class Client:
    """A connection to a spatial transformer service; NumPy in, NumPy out.

    Results are read-only views into the reply, without a copy; `.copy()` makes one's own.

    Args:
        target: gRPC target of one server, "host:port" or "unix:/path", or of all replicas,
            "dns:///name:port" or "ipv4:address:port,...": calls take turns over the ready ones.
        timeout_s: For one call with all its retries; None: no limit.
        retry: When a refused or lost call is repeated.
        tls: How to secure the connection; None: not at all.
        token: What the server knows the caller by, or a function that says so before every
            attempt, for tokens that change.
        allow_plaintext_token: Whether the token may cross a network without TLS.

    Raises:
        ValueError: A file cannot be read, or the token cannot be sent (a function's: at the
            call), or not safely.

    Concurrency:
        Thread-safe; calls of several threads run side by side and share batches on the server.

    Example:
        >>> with Client("localhost:50051") as stn:
        ...     v = stn.warp(u, Affine(theta), output_size=(224, 224))
        ...     g = stn.warp_gradients(grad_v, u, Affine(theta))
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
        self._channel = open_channel(grpc, target, self._access)
        self._methods: dict[str, Any] = {}

    def warp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpOptions],
    ) -> Array:
        """Samples a feature map where a transform says (equation 1 of the paper).

        Shapes:
            feature_map   (N, C, [D,] H, W)      float32 | float64 | float16 | bfloat16 | uint8
            returns       (N, C, [D',] H', W')   same dtype; C is last under layout "NHWC"

        Args:
            feature_map: Images or, with a transform in 3-D, volumes. N = 1 serves every transform.
            transform: Where to read, target to source.
            output_size: ([D',] H', W'); None: that of the grid, else of the feature map.
            options: See `WarpOptions`.

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        return self._run(_calls.warp(feature_map, transform, output_size, options))

    def warp_gradients(
        self,
        grad_output: ArrayLike,
        feature_map: ArrayLike,
        transform: Transform,
        *,
        needs: Sequence[str] = ("feature_map", "transform"),
        **options: Unpack[WarpOptions],
    ) -> Gradients:
        """The exact gradients of a loss to the operands of `warp`.

        Shapes:
            grad_output   (N, C, [D',] H', W')   gradient of the loss to the output of the warp

        Args:
            grad_output: See above; the dtype of the feature map.
            feature_map: As given to `warp`.
            transform: As given to `warp`.
            needs: Operands whose gradients are wanted.
            options: As given to `warp`.

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        call = _calls.warp_gradients(grad_output, feature_map, transform, needs, options)
        return self._run(call)

    def vjp(
        self,
        feature_map: ArrayLike,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        **options: Unpack[WarpOptions],
    ) -> tuple[Array, Callable[[ArrayLike], Gradients]]:
        """A warp and its pullback: the function from grad_output to gradients.

        Arguments and errors are those of `warp`. The pullback reads the operands again when it is
        called: leave them as they are until then.
        """

        def pullback(grad_output: ArrayLike) -> Gradients:
            return self.warp_gradients(grad_output, feature_map, transform, **options)

        return self.warp(feature_map, transform, output_size, **options), pullback

    def generate_grid(
        self,
        transform: ParametricTransform,
        output_size: Sequence[int],
        **options: Unpack[GridOptions],
    ) -> Array:
        """The sampling grid of a transform (equation 5).

        Shapes:
            returns   (N, [D',] H', W', 2 or 3)   source points (x, y[, z]), dtype of the parameters

        Args:
            transform: Target to source.
            output_size: ([D',] H', W').
            options: See `GridOptions`.

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        return self._run(_calls.generate_grid(transform, output_size, options))

    def generate_grid_gradients(
        self, grad_grid: ArrayLike, transform: ParametricTransform, **options: Unpack[GridOptions]
    ) -> Array:
        """The gradient of a loss to the parameters of a transform (equations 6 and 7).

        Shapes:
            grad_grid   (N, [D',] H', W', 2 or 3)   gradient of the loss to the grid
            returns     as the parameters of the transform

        Raises:
            InvalidRequestError: An argument breaks a rule; `violations` names it.
            StnClientError: Any other way a call can fail.
        """
        return self._run(_calls.generate_grid_gradients(grad_grid, transform, options))

    def server_info(self) -> GetServerInfoReply:
        """What the server is, offers, allows, and has done so far."""
        return self._run(_calls.server_info())

    def close(self) -> None:
        """Ends the connection; calls under way fail with TransportError."""
        self._open = False
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        """Sends a call, again if the policy says so, and reads the reply."""
        progress = Progress(self._retry, self._timeout_s, lambda: self._open, self._access.metadata)
        while True:
            try:
                attempt = progress.start(call.request)
                reply: bytes = self._method(call.method)(call.request, **attempt)
            except grpc.RpcError as failure:
                time.sleep(progress.pause_s(failure))
            except ValueError:  # what gRPC makes of a channel that another thread just closed
                if self._open:
                    raise
            else:
                return call.parse(reply)

    def _method(self, path: str) -> Any:
        """The stub of a method."""
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(path)
        return self._methods[path]
