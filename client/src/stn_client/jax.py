"""Remote warps that JAX can differentiate: forward and backward are RPCs of a `Client`.

They are callbacks of the host, so that they work under `jax.jit`, `jax.grad`, `jax.vjp` and
`jax.vmap`, on any device; arrays travel through the memory of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stn_client._aio import AsyncClient
from stn_client._arguments import FLOATS, check_dtype, check_labels, check_options
from stn_client._client import Client
from stn_client._errors import invalid
from stn_client._layouts import layout_of, output_shape, with_batch
from stn_client._options import WarpOptions, takes_options
from stn_client._parameters import PARAMETER_SHAPES, parameters_with_batch
from stn_client._transforms import Flow, SamplingGrid, ThinPlateSpline, Transform

__all__ = ["warp"]


@takes_options(WarpOptions)
def warp(
    client: Client,
    feature_map: Any,
    transform: Transform,
    output_size: Sequence[int] | None = None,
    **options: Unpack[WarpOptions],
) -> jax.Array:
    """Makes the call of `Client.warp` for JAX, differentiable in feature map and transform.

    Shapes:
        feature_map   (N, C, [D,] H, W)      what `jnp.asarray` takes, traced or not
        returns       (N, C, [D',] H', W')   same dtype

    Args:
        client: Where to compute; it must live as long as what is compiled with it.
        feature_map: What is read.
        transform: Any transform; its parameters may be traced, the control points of a spline not.
            Those in half precision are sent as float32.
        output_size: ([D',] H', W'); None: that of the grid, else of the feature map.
        options: As of `Client.warp`, whose documentation lists them.

    Under `jax.vmap` there is one call for each element, one after the other: a batch (N, C, [D,]
    H, W) is one call. There are no second derivatives, and no forward mode.

    Raises:
        InvalidRequestError: An argument breaks a rule that can be told without values; others, and
            all failures of calls, are errors of JAX that tell them, where it compiles.
    """
    if isinstance(client, AsyncClient | type) or not hasattr(client, "warp_gradients"):
        raise invalid("client", f"expected a Client, got one of type {type(client).__name__}.")
    if type(transform) not in get_args(Transform):
        kinds = ", ".join(kind.__name__ for kind in get_args(Transform))
        raise invalid("transform", f"expected one of {kinds}, got {type(transform).__name__}.")
    check_options(options, output_size)
    if isinstance(transform, ThinPlateSpline):
        _ = transform.settings  # which refuses what cannot be
    name = fields(transform)[0].name
    maps = _array("feature_map", feature_map)
    may_be_number = PARAMETER_SHAPES[type(transform)].is_number
    parameters = _array(name, transform.parameters, may_be_number=may_be_number)
    if parameters.dtype.name not in {"float32", "float64"}:
        if parameters.dtype.kind not in "iu" and parameters.dtype.name not in FLOATS:
            raise invalid(name, f"expected float32 or float64, got {parameters.dtype}. Cast it.")
        parameters = parameters.astype(jnp.float32)
    # Only the shapes matter here; what the callback raises would be an error of JAX.
    shape_of: Any = parameters
    layout = layout_of(options.get("layout"), None)
    parameters_with_batch(transform, name, shape_of, layout)
    shape_of = maps
    with_batch("feature_map", shape_of, layout)
    check_dtype("feature_map", maps.dtype)
    check_labels(maps.dtype, options.get("interpolation", "bilinear"))
    size = None if output_size is None else tuple(int(one) for one in output_size)
    blank: Any = {name: None}
    remote = _Remote(client, replace(transform, **blank), name, size, options)
    warped: jax.Array = _warp(remote, maps, parameters)
    return warped


@dataclass(frozen=True, eq=False)
class _Remote:
    """Static arguments of a call; JAX compiles anew for each of them."""

    client: Client
    transform: Transform
    """Without its parameters."""
    name: str
    """Name of the parameters."""
    output_size: tuple[int, ...] | None
    options: WarpOptions

    def of(self, parameters: NDArray[Any]) -> Transform:
        """Returns the transform with parameters."""
        changed: Any = {self.name: parameters}
        return replace(self.transform, **changed)

    def shape(self, maps: jax.Array, parameters: jax.Array) -> tuple[int, ...]:
        """Returns the shape of the output."""
        of_points = isinstance(self.transform, Flow | SamplingGrid)
        layout = self.options.get("layout", "NCHW")
        size, found = self.output_size, list(maps.shape)
        return tuple(
            output_shape(found, parameters.shape, size, layout=layout, of_points=of_points)
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _warp(remote: _Remote, maps: jax.Array, parameters: jax.Array) -> Any:
    def call(maps: Any, parameters: Any) -> NDArray[Any]:
        transform = remote.of(np.asarray(parameters))
        output: NDArray[Any] = remote.client.warp(
            np.asarray(maps), transform, remote.output_size, **remote.options
        )
        return output

    kind = _kind(remote.shape(maps, parameters), maps.dtype)
    return _callback(call, kind, maps, parameters)


def _forward(
    remote: _Remote, maps: jax.Array, parameters: jax.Array
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    return _warp(remote, maps, parameters), (maps, parameters)


def _backward(
    remote: _Remote, operands: tuple[jax.Array, jax.Array], grad_output: jax.Array
) -> tuple[Any, Any]:
    def call(grad_output: Any, maps: Any, parameters: Any) -> tuple[Any, Any]:
        transform = remote.of(np.asarray(parameters))
        gradients = remote.client.warp_gradients(
            np.asarray(grad_output), np.asarray(maps), transform, **remote.options
        )
        return gradients.feature_map, gradients.transform

    kinds = tuple(_kind(one.shape, one.dtype) for one in operands)
    grad_maps, grad_parameters = _callback(call, kinds, grad_output, *operands)
    return grad_maps, grad_parameters


_warp.defvjp(_forward, _backward)


def _kind(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]  # JAX


def _callback(call: Callable[..., Any], kinds: Any, *arrays: jax.Array) -> Any:
    return jax.pure_callback(call, kinds, *arrays, vmap_method="sequential")


def _array(name: str, value: Any, *, may_be_number: bool = False) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise invalid(name, f"expected an array, got {type(value).__name__}: {error}") from error
    if not (array.ndim or may_be_number):  # shapes of results follow from its axes
        raise invalid(name, f"expected an array, got a single number of {array.dtype}.")
    return array
