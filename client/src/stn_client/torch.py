"""Remote warps that torch can differentiate: forward and backward are RPCs of a `Client`.

They are torch operators, `stn_client::warp` and `stn_client::warp_gradients`, so that whatever
traces, compiles, exports or transforms a network sees one node and never looks inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from numbers import Real
from operator import index
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from stn_client._aio import AsyncClient
from stn_client._arguments import check_options, no_transform, reject_unknown
from stn_client._checks import as_float
from stn_client._client import Client
from stn_client._connection import register
from stn_client._errors import invalid
from stn_client._layouts import LAYOUTS
from stn_client._options import WarpOptions, takes_options
from stn_client._torch_operators import (
    KINDS,
    OPTIONS,
    EagerWarp,
    are_plain,
    compute_warp,
    description_of,
)
from stn_client._transforms import Affine, Homography, ThinPlateSpline, Transform
from stn_proto import split_fill

__all__ = ["SpatialTransformer", "objective", "warp"]

MATRICES: dict[tuple[type[Transform], int], tuple[int, int]] = {
    (Affine, 2): (2, 3),
    (Affine, 3): (3, 4),
    (Homography, 2): (3, 3),
}
"""Transforms whose parameters are matrices, by the axes that they are of."""


@takes_options(WarpOptions)
def warp(
    client: Client,
    feature_map: Tensor,
    transform: Transform,
    output_size: Sequence[int] | None = None,
    **options: Unpack[WarpOptions],
) -> Tensor:
    """Makes the call of `Client.warp` for tensors, differentiable in feature map and transform.

    Shapes:
        feature_map   (N, C, [D,] H, W)      any device; results come back to it
        returns       (N, C, [D',] H', W')   same dtype and device

    Args:
        client: Where to compute.
        feature_map: What is read.
        transform: Any transform, of a tensor or, without gradients, of what NumPy takes.
        output_size: ([D',] H', W'); None: that of the grid, else of the feature map.
        options: As of `Client.warp`, whose documentation lists them.

    Parameters in half precision, such as autocast makes, are sent as float32. On the host of the
    server the result may lie in memory that the server wrote it to; a process that is forked shares
    it, as after `Tensor.share_memory_`.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it.
        StnClientError: As the methods of `Client`; from `backward` as well. Second derivatives:
            the service computes none.
    """
    _check_client(client)
    parameters = _checked(feature_map, transform)
    name = getattr(client, "_name", None) or _named(client)
    size = None if output_size is None else _size(output_size)
    description, settings = description_of(transform), _settings(options, ("output_size",))
    arguments = feature_map, parameters, size, name, *description
    output: Tensor
    # Tracers and modes must see an operator; without them its dispatch is only overhead.
    if not are_plain(feature_map, parameters):
        output = torch.ops.stn_client.warp(*arguments, **settings)
    elif torch.is_grad_enabled() and (feature_map.requires_grad or parameters.requires_grad):
        output = EagerWarp.apply(*arguments, settings)  # type: ignore[no-untyped-call]  # torch
    else:
        output = compute_warp(*arguments, **settings)
    return output


def objective(
    client: Client,
    moving: Tensor,
    fixed: Tensor,
    transform: Transform,
    *,
    weights: Tensor | None = None,
    loss: str = "ssd",
    delta: float = 1.0,
    domain: str = "overlap",
    **options: Unpack[WarpOptions],
) -> Tensor:
    """Makes the call of `Client.objective` for tensors: the value, differentiable in the transform.

    Its gradient comes with it, so that `backward` sends nothing.

    Shapes:
        moving    (N, C, [D,] H, W)      any device; results come back to it
        fixed     (N, C, [D',] H', W')   same dtype
        weights   (N, 1, [D',] H', W')   same dtype
        returns   (N,)                   float64, device of moving

    Args:
        client: Where to compute.
        moving: The map that is warped.
        fixed: The map that it shall look like.
        transform: Any transform of a tensor.
        weights: How much each target point counts; None: all alike.
        loss: "ssd", "huber" or "ncc".
        delta: Of "huber".
        domain: "overlap" or "all".
        options: As of `Client.warp`, whose documentation lists them.

    Raises:
        InvalidRequestError: An argument breaks a rule; `violations` names it. From `backward`: a
            gradient to the maps or the weights, or a second derivative; the service computes none.
        StnClientError: As the methods of `Client`.
    """
    _check_client(client)
    parameters = _checked(moving, transform)
    _check_tensor("fixed", fixed, "a torch.Tensor")
    if weights is not None:
        _check_tensor("weights", weights, "a torch.Tensor or None")
    words: dict[str, Any] = {"loss": loss, "domain": domain}
    for argument, word in words.items():  # operators tell types of theirs
        if not isinstance(word, str):
            raise invalid(argument, f"expected a word, got {word!r}.")
    name = getattr(client, "_name", None) or _named(client)
    arguments = (
        moving,
        parameters,
        fixed,
        weights,
        loss,
        as_float("delta", delta),
        domain,
        name,
        *description_of(transform),
    )
    value: Tensor = torch.ops.stn_client.objective(*arguments, **_settings(options))[0]
    return value


class SpatialTransformer(nn.Module):
    """A localisation network whose transform is applied by the service.

    Args:
        localization: Feature map -> parameters of the transform; those of a matrix may be flat,
            (N, 6) of an `Affine`, or (N, 12) of one in 3-D, and (N, 9) of a `Homography`; so may
            the points of a `ThinPlateSpline`, (N, 2 K).
        client: Where to compute.
        output_size: Of the output; None: that of the grid, else of the feature map.
        transform: What the parameters are those of: a class, or one with the rest of its arguments,
            as ``functools.partial(ThinPlateSpline, control_points=...)``.
        options: As of `Client.warp`, whose documentation lists them.

    Shapes:
        feature_map   (N, C, [D,] H, W)
        returns       (N, C, [D',] H', W')

    Source: Jaderberg et al., Spatial Transformer Networks, 2015, figure 2.
    """

    @takes_options(WarpOptions)
    def __init__(
        self,
        localization: nn.Module,
        client: Client,
        output_size: Sequence[int] | None = None,
        transform: Callable[..., Transform] = Affine,
        **options: Unpack[WarpOptions],
    ) -> None:
        super().__init__()
        kind = transform.func if isinstance(transform, partial) else transform
        if kind not in KINDS.values():
            raise invalid("transform", f"expected one of {', '.join(KINDS)}, got {transform!r}.")
        try:
            settings = description_of(transform(None))[1]
        except TypeError as error:
            expected = f"expected all but the parameters of {transform!r}, got fewer: {error}."
            raise invalid("transform", f"{expected} Pass functools.partial.") from error
        if isinstance(localization, type) or not callable(localization):
            raise invalid("localization", f"expected a module, got {localization!r}.")
        _check_client(client)
        check_options(options, output_size)
        self.localization = localization
        self._client = client
        self._output_size = output_size
        self._transform = transform
        self._name = kind.__name__
        self._shapes = {dims: shape for (one, dims), shape in MATRICES.items() if one is kind}
        if kind is ThinPlateSpline:
            self._shapes[2] = len(settings) // 2, 2
        self._options = options

    def forward(self, feature_map: Tensor) -> Tensor:
        """Warps every feature map by what the localisation network finds for it."""
        _check_tensor("feature_map", feature_map, "a torch.Tensor")
        parameters = self.localization(feature_map)
        _check_tensor("localization", parameters, "it to return a torch.Tensor")
        of = LAYOUTS.get(self._options.get("layout", "NCHW"), LAYOUTS["NCHW"])
        matrix = self._shapes.get(feature_map.dim() - of.others)
        if matrix:
            rows, columns = matrix
            if parameters.shape[1:].numel() != rows * columns:
                raise invalid(
                    "localization",
                    f"expected it to return (N, {rows * columns}) or (N, {rows}, {columns}) for "
                    f"{self._name}, got {tuple(parameters.shape)}.",
                )
            parameters = parameters.reshape(-1, *matrix)
        transform = self._transform(parameters)
        return warp(self._client, feature_map, transform, self._output_size, **self._options)

    def extra_repr(self) -> str:
        """Returns what `print` shows of the layer beside its network."""
        said = {"output_size": self._output_size, **self._options}
        shown = [f"{name}={value!r}" for name, value in said.items() if value is not None]
        return ", ".join([repr(self._client), self._name, *shown])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns a copy of the localisation network before the same client."""
        memo[id(self._client)] = self._client
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied


def _check_client(client: object) -> None:
    """Checks that a client has the methods of `Client`; a fake in a test may have them."""
    if isinstance(client, AsyncClient | type) or not hasattr(client, "warp_gradients"):
        got = (
            client.__name__ if isinstance(client, type) else f"one of type {type(client).__name__}"
        )
        raise invalid("client", f"expected a Client, got {got}.")


def _checked(feature_map: Tensor, transform: Any) -> Tensor:
    """Returns the parameters of the transform, in a precision that the service takes."""
    kind = type(transform)
    if kind.__name__ not in KINDS or not hasattr(transform, "parameters"):
        raise no_transform(transform)
    parameters: Any = transform.parameters
    _check_tensor("feature_map", feature_map, "a torch.Tensor")
    if not isinstance(parameters, Tensor) and isinstance(parameters, np.ndarray | list | tuple):
        try:
            array = np.asarray(parameters)  # as those of `stn_client.geometry`
        except ValueError as error:  # rows of several lengths
            raise invalid("transform", f"expected parameters in an array: {error}.") from error
        real = array.astype(np.float64) if array.dtype.kind in "iu" else array
        parameters = torch.tensor(real, device=feature_map.device)
    _check_tensor("transform", parameters, "parameters in a torch.Tensor")
    # Autocast makes half types of parameters, which the service does not take; float32 holds them.
    halves = {torch.float16, torch.bfloat16}
    checked: Tensor = parameters.float() if parameters.dtype in halves else parameters
    return checked


def _check_tensor(argument: str, value: object, expected: str) -> None:
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise invalid(
            argument, f"expected {expected}, got {got}. Convert it: torch.as_tensor(...)."
        )
    if value.is_nested:
        raise invalid(argument, f"expected {expected}, got a nested one. Warp its parts.")


def _size(output_size: Sequence[int]) -> list[Any]:
    try:
        sizes = [_extent(size) for size in output_size]
    except TypeError as error:
        expected = "expected integers ([D',] H', W')"
        raise invalid("output_size", f"{expected}, got {output_size!r}.") from error
    # Before tracers make a tensor of this size; of a symbol they know nothing yet.
    if any(type(size) is int and size < 1 for size in sizes):
        raise invalid("output_size", f"expected sizes of at least 1, got {output_size!r}.")
    return sizes


def _extent(size: Any) -> Any:
    """Returns a number, or the symbol that a compiler has put in its place."""
    if isinstance(size, torch.SymInt):
        return size
    number = index(size)
    # What `torch.jit.trace` follows is a tensor; of its end torch warns here, and not above.
    return int(size) if isinstance(size, Tensor) else number


def _settings(options: WarpOptions, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Returns options as the operators take them: one number for all channels is a list."""
    reject_unknown(options, OPTIONS, arguments)
    settings: dict[str, Any] = dict(options)
    for name, value in settings.items():
        if name == "fill":
            continue
        if isinstance(value, np.bool_):
            settings[name] = bool(value)
        elif not isinstance(value, {"str": str, "bool": bool}[OPTIONS[name]]):
            raise invalid(name, f"expected {OPTIONS[name]}, got {value!r}.")
    if "fill" in settings:
        settings["fill"], remainder = _fill(settings["fill"])
        if remainder:
            settings["fill_remainder"] = remainder
    return settings


def _fill(fill: Any) -> tuple[list[float], list[int]]:
    given = fill.tolist() if isinstance(fill, np.ndarray | Tensor) else fill
    values: Any = [given] if isinstance(given, Real) else given
    if not isinstance(values, Sequence) or not all(isinstance(value, Real) for value in values):
        raise invalid("fill", f"expected a number, or a list of numbers, got {fill!r}.")
    try:
        return split_fill(values)
    except OverflowError as error:
        raise invalid("fill", "expected numbers that fit a float, got a larger one.") from error


def _named(client: Any) -> str:
    """Returns the name of a client, or of what stands in for it in a test."""
    client._name = register(client)  # noqa: SLF001 - as clients do
    return str(client._name)  # noqa: SLF001
