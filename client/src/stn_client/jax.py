"""Remote warps that JAX can differentiate: forward and backward are RPCs of a `Client`.

They are callbacks of the host, so that they work under `jax.jit`, `jax.grad`, `jax.vjp` and
`jax.vmap`, on any device; arrays travel through the memory of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Unpack, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stn_client._aio import AsyncClient
from stn_client._arguments import FLOATS, check_dtype, check_labels, check_options
from stn_client._arrays import as_array
from stn_client._client import Client
from stn_client._errors import invalid
from stn_client._layouts import layout_of, output_shape, with_batch
from stn_client._options import WarpOptions, takes_options
from stn_client._parameters import PARAMETER_SHAPES, parameters_with_batch
from stn_client._transforms import Flow, SamplingGrid, ThinPlateSpline, Transform
from stn_proto import join_fill, split_fill

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
    others = _others(transform)
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
    remote = _Remote(client, type(transform), name, others, size, _hashable(options))
    warped: jax.Array = _warp(remote, maps, parameters)
    return warped


def _others(transform: Transform) -> tuple[tuple[str, Any], ...]:
    """Returns what a transform has beside its parameters, checked, as pairs."""
    if not isinstance(transform, ThinPlateSpline):
        return ()
    settings = transform.settings
    flat = settings["control_points"]
    points = tuple(zip(flat[::2], flat[1::2], strict=True))
    return ("control_points", points), ("regularization", settings["regularization"])


def _hashable(options: WarpOptions) -> tuple[tuple[str, Any], ...]:
    """Returns checked options as pairs, constants as a tuple of Python's numbers."""
    given: dict[str, Any] = dict(options)
    if "fill" in given:
        fill = given["fill"]
        listed: Any = fill if isinstance(fill, list | tuple) else np.ravel(as_array("fill", fill))
        given["fill"] = join_fill(*split_fill(listed))
    return tuple(given.items())


@dataclass(frozen=True)
class _Remote:
    """Static arguments of a call.

    JAX compiles anew for each that is not equal to an earlier one, outside of `jit`, too, and keeps
    them all: so those of equal calls are equal, and the callbacks below with them.
    """

    client: Client
    kind: type[Transform]
    name: str
    """Name of the parameters."""
    others: tuple[tuple[str, Any], ...]
    """What the transform has beside its parameters."""
    output_size: tuple[int, ...] | None
    options: tuple[tuple[str, Any], ...]

    def of(self, parameters: Any) -> Transform:
        """Returns the transform with parameters."""
        given: Any = {self.name: np.asarray(parameters), **dict(self.others)}
        return self.kind(**given)

    def shape(self, maps: jax.Array, parameters: jax.Array) -> tuple[int, ...]:
        """Returns the shape of the output."""
        of_points = self.kind in {Flow, SamplingGrid}
        layout = dict(self.options).get("layout") or "NCHW"
        size, found = self.output_size, list(maps.shape)
        return tuple(
            output_shape(found, parameters.shape, size, layout=layout, of_points=of_points)
        )


@dataclass(frozen=True)
class _Warp:
    """The callback of a warp."""

    remote: _Remote

    def __call__(self, maps: Any, parameters: Any) -> NDArray[Any]:
        """Returns the output of the call, computed remotely."""
        remote, options = self.remote, cast("WarpOptions", dict(self.remote.options))
        output: NDArray[Any] = remote.client.warp(
            np.asarray(maps), remote.of(parameters), remote.output_size, **options
        )
        return output


@dataclass(frozen=True)
class _WarpGradients:
    """The callback of the gradients of a warp."""

    remote: _Remote

    def __call__(self, grad_output: Any, maps: Any, parameters: Any) -> tuple[Any, Any]:
        """Returns the gradients to the maps and to the parameters."""
        remote, options = self.remote, cast("WarpOptions", dict(self.remote.options))
        gradients = remote.client.warp_gradients(
            np.asarray(grad_output), np.asarray(maps), remote.of(parameters), **options
        )
        return gradients.feature_map, gradients.transform


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _warp(remote: _Remote, maps: jax.Array, parameters: jax.Array) -> Any:
    kind = _kind(remote.shape(maps, parameters), maps.dtype)
    return _callback(_Warp(remote), kind, maps, parameters)


def _forward(
    remote: _Remote, maps: jax.Array, parameters: jax.Array
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    return _warp(remote, maps, parameters), (maps, parameters)


def _backward(
    remote: _Remote, operands: tuple[jax.Array, jax.Array], grad_output: jax.Array
) -> tuple[Any, Any]:
    kinds = tuple(_kind(one.shape, one.dtype) for one in operands)
    grad_maps, grad_parameters = _callback(_WarpGradients(remote), kinds, grad_output, *operands)
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
