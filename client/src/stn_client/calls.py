"""Calls to be made later, many at once: what `Client.map` and `AsyncClient.map` take.

    from stn_client import Affine, Client, calls

    with Client("localhost:50051") as stn:
        for v in stn.map(calls.warp(u, Affine(theta)) for u, theta in pairs):
            ...

Arguments are those of the methods of `Client` of the same names, and are checked here and now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

from stn_client import _calls
from stn_client._arrays import AnyArray
from stn_client._options import GridCallOptions, WarpCallOptions, takes_options
from stn_client._prepared_call import Call
from stn_client._transforms import ParametricTransform, Transform

__all__ = [
    "Call",
    "generate_grid",
    "generate_grid_gradients",
    "objective",
    "warp",
    "warp_gradients",
]


@takes_options(WarpCallOptions)
def warp(
    feature_map: AnyArray,
    transform: Transform,
    output_size: Sequence[int] | None = None,
    **options: Unpack[WarpCallOptions],
) -> Call[Any]:
    """Returns the call that `Client.warp` makes.

    Operands are read at some time before it is sent: leave them as they are until it is answered.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it.
    """
    return _calls.warp(feature_map, transform, output_size, options)


@takes_options(WarpCallOptions)
def warp_gradients(
    grad_output: AnyArray,
    feature_map: AnyArray,
    transform: Transform,
    *,
    needs: Sequence[str] = ("feature_map", "transform"),
    **options: Unpack[WarpCallOptions],
) -> Call[Any]:
    """Returns the call that `Client.warp_gradients` makes.

    Operands are read at some time before it is sent: leave them as they are until it is answered.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it.
    """
    return _calls.warp_gradients(grad_output, feature_map, transform, needs, options)


@takes_options(GridCallOptions)
def generate_grid(
    transform: ParametricTransform, output_size: Sequence[int], **options: Unpack[GridCallOptions]
) -> Call[Any]:
    """Returns the call that `Client.generate_grid` makes.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it.
    """
    return _calls.generate_grid(transform, output_size, options)


@takes_options(GridCallOptions)
def generate_grid_gradients(
    grad_grid: AnyArray, transform: ParametricTransform, **options: Unpack[GridCallOptions]
) -> Call[Any]:
    """Returns the call that `Client.generate_grid_gradients` makes.

    Operands are read at some time before it is sent: leave them as they are until it is answered.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it.
    """
    return _calls.generate_grid_gradients(grad_grid, transform, options)


@takes_options(WarpCallOptions)
def objective(
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
) -> Call[Any]:
    """Returns the call that `Client.objective` makes.

    Operands are read at some time before it is sent: leave them as they are until it is answered.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it.
    """
    comparison = {"loss": loss, "delta": delta, "domain": domain}
    return _calls.objective(moving, fixed, transform, weights, comparison, needs, options)
