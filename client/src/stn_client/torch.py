"""Remote warps that torch can differentiate: forward and backward are RPCs of a `Client`.

They are torch operators, `stn_client::warp` and `stn_client::warp_gradients`, so that whatever
traces, compiles, exports or transforms a network sees one node and never looks inside. Operators
take neither clients nor classes: a client stands in them as its name in this process, and a
transform as the name of its class and the numbers that it has beside its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from numbers import Real
from operator import index
from typing import Any, Self, Unpack, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch import autograd_function
from torch.autograd import forward_ad

from stn_client._aio import AsyncClient
from stn_client._arguments import check_options, no_transform, reject_unknown
from stn_client._arrays import numpy_to_torch, torch_to_numpy
from stn_client._checks import as_float
from stn_client._client import Client
from stn_client._connection import CLIENTS, register
from stn_client._errors import invalid
from stn_client._layouts import LAYOUTS, output_shape
from stn_client._options import WarpOptions, takes_options
from stn_client._torch_vmap import TENSORS, one_call
from stn_client._transforms import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    ThinPlateSpline,
    Transform,
)
from stn_proto import join_fill, split_fill

__all__ = ["SpatialTransformer", "objective", "warp"]

MATRICES: dict[tuple[type[Transform], int], tuple[int, int]] = {
    (Affine, 2): (2, 3),
    (Affine, 3): (3, 4),
    (Homography, 2): (3, 3),
}
"""Transforms whose parameters are matrices, by the axes that they are of."""


KINDS: dict[str, Callable[..., Transform]] = {kind.__name__: kind for kind in get_args(Transform)}

OPTIONS = {
    "coordinates": "str",
    "align_corners": "bool",
    "interpolation": "str",
    "padding": "str",
    "fill": "float[]",
    "subgradient": "str",
    "deterministic": "bool",
    "layout": "str",
}
"""The types of `WarpOptions` as torch operators know types; what is not given is None."""

_PLAIN_TYPES = {Tensor, nn.Parameter}
"""Classes of tensors that do not see what is done with them."""

_OPERANDS = ("feature_map", "transform")
_LOCALLY = "stn_engine.warp, in this process, has derivatives of any order in both modes."
_NO_SECOND = (
    "expected no derivatives of gradients, which are not computed remotely, got some. " + _LOCALLY
)


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
    described, settings = _described(transform), _settings(options, ("output_size",))
    arguments = feature_map, parameters, size, name, *described
    output: Tensor
    # Tracers and modes must see an operator; without them its dispatch is only overhead.
    if not _are_plain(feature_map, parameters):
        output = torch.ops.stn_client.warp(*arguments, **settings)
    elif torch.is_grad_enabled() and (feature_map.requires_grad or parameters.requires_grad):
        output = _EagerWarp.apply(*arguments, settings)  # type: ignore[no-untyped-call]  # torch
    else:
        output = _warp(*arguments, **settings)
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
        *_described(transform),
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
            settings = _described(transform(None))[1]
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


def _described(transform: Transform) -> tuple[str, list[float]]:
    """Returns what a transform has beside its parameters, in types of torch operators."""
    numbers: list[float] = []
    if isinstance(transform, ThinPlateSpline):
        settings = transform.settings
        numbers = [settings["regularization"], *settings["control_points"]]
    return type(transform).__name__, numbers


def _transform(parameters: Any, kind: str, numbers: list[float]) -> Transform:
    """Returns the described transform with other parameters."""
    if kind != ThinPlateSpline.__name__:
        return KINDS[kind](parameters)
    regularization, *flat = numbers
    # Operators take flat lists of numbers only: x and y in turn, behind the regularization.
    control_points = list(zip(flat[::2], flat[1::2], strict=True))
    return ThinPlateSpline(parameters, control_points=control_points, regularization=regularization)


def _size(output_size: Sequence[int]) -> list[Any]:
    try:
        return [_extent(size) for size in output_size]
    except TypeError as error:
        expected = "expected integers ([D',] H', W')"
        raise invalid("output_size", f"{expected}, got {output_size!r}.") from error


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


def _client_of(name: str) -> Client:
    client: Client | None = CLIENTS.get(name)
    if client is None:
        raise invalid(
            "client",
            "expected the client that this graph was made with, got none: it is gone, or the graph "
            "comes from another process. Keep the client, and make graphs where they run.",
        )
    return client


def _given(settings: dict[str, Any]) -> Any:
    """Returns the options of a call as a client takes them: those that are not None."""
    options = {name: value for name, value in settings.items() if value is not None}
    if remainder := options.pop("fill_remainder", None):
        options["fill"] = join_fill(options["fill"], remainder)
    return options


def _warp(
    feature_map: Tensor,
    parameters: Tensor,
    output_size: list[int] | None,
    client: str,
    transform: str,
    numbers: list[float],
    **settings: Any,
) -> Tensor:
    """Computes `stn_client::warp` by a call of the client."""
    output: Any = _client_of(client).warp(
        torch_to_numpy("feature_map", feature_map),
        _transform(torch_to_numpy("transform", parameters), transform, numbers),
        None if output_size is None else tuple(output_size),
        **_given(settings),
    )
    made: Tensor = numpy_to_torch(output, feature_map)
    return made


def _warp_fake(
    feature_map: Tensor,
    parameters: Tensor,
    output_size: list[int] | None,
    client: str,  # noqa: ARG001
    transform: str,
    numbers: list[float],  # noqa: ARG001
    *,
    layout: str | None = None,
    **_settings: Any,
) -> Tensor:
    """Returns an output of the right shape, without values."""
    of_points = KINDS[transform] in {SamplingGrid, Flow}
    shapes = list(feature_map.shape), parameters.shape
    # The shape must follow from shapes alone: a compiler has no values, and may have no server.
    sizes = output_shape(*shapes, output_size, layout=layout or "NCHW", of_points=of_points)
    return feature_map.new_empty(sizes)


def _warp_gradients(
    grad_output: Tensor,
    feature_map: Tensor,
    parameters: Tensor,
    needs: list[bool],
    client: str,
    transform: str,
    numbers: list[float],
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Computes `stn_client::warp_gradients`; a gradient that is not needed is empty."""
    gradients = _client_of(client).warp_gradients(
        torch_to_numpy("grad_output", grad_output),
        torch_to_numpy("feature_map", feature_map),
        _transform(torch_to_numpy("transform", parameters), transform, numbers),
        needs=_named_needs(needs),
        **_given(settings),
    )
    grad_feature_map, grad_transform = gradients.feature_map, gradients.transform
    return (
        # Schemas of operators have no optional results.
        feature_map.new_empty(0)
        if grad_feature_map is None
        else numpy_to_torch(grad_feature_map, feature_map),
        parameters.new_empty(0)
        if grad_transform is None
        else numpy_to_torch(grad_transform, parameters),
    )


def _warp_gradients_fake(
    grad_output: Tensor,  # noqa: ARG001
    feature_map: Tensor,
    parameters: Tensor,
    needs: list[bool],
    client: str,  # noqa: ARG001
    transform: str,  # noqa: ARG001
    numbers: list[float],  # noqa: ARG001
    **_settings: Any,
) -> tuple[Tensor, Tensor]:
    """Gradients of the right shapes, without values."""
    grad_feature_map, grad_transform = needs
    return (
        feature_map.new_empty(feature_map.shape if grad_feature_map else 0),
        parameters.new_empty(parameters.shape if grad_transform else 0),
    )


def _objective(
    moving: Tensor,
    parameters: Tensor,
    fixed: Tensor,
    weights: Tensor | None,
    loss: Any,
    delta: float,
    domain: Any,
    client: str,
    transform: str,
    numbers: list[float],
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Computes `stn_client::objective` by a call of the client: value and gradient."""
    found = _client_of(client).objective(
        torch_to_numpy("moving", moving),
        torch_to_numpy("fixed", fixed),
        _transform(torch_to_numpy("transform", parameters), transform, numbers),
        weights=None if weights is None else torch_to_numpy("weights", weights),
        loss=loss,
        delta=delta,
        domain=domain,
        **_given(settings),
    )
    return numpy_to_torch(found.value, moving), numpy_to_torch(
        np.asarray(found.gradient), parameters
    )


def _objective_fake(
    moving: Tensor,
    parameters: Tensor,
    fixed: Tensor,
    weights: Tensor | None,
    *_: Any,
    layout: str | None = None,
    **_settings: Any,
) -> tuple[Tensor, Tensor]:
    """Results of the right shapes, without values."""
    if LAYOUTS[layout or "NCHW"].added:
        value = parameters.new_empty((1,), dtype=torch.float64)
        return value, parameters.new_empty(parameters.shape)
    operands = moving, parameters, fixed, *(() if weights is None else (weights,))
    batch = next((one.shape[0] for one in operands if one.shape[0] != 1), 1)
    # As the server sums: a loss in float32 would hide late progress of a search.
    value = parameters.new_empty((batch,), dtype=torch.float64)
    return value, parameters.new_empty((batch, *parameters.shape[1:]))


class _Objective(torch.autograd.Function):
    """The differentiation rule of `stn_client::objective`: the gradient is there already."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *positional, settings = arguments
        value, gradient = _below_rule("objective", positional, settings)
        return value, gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, parameters, *_ = inputs
        _, gradient = output
        # The gradient is an output only to be saved: autograd must not ask for derivatives of it.
        ctx.mark_non_differentiable(gradient)
        ctx.save_for_backward(parameters, gradient)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        for needed, name in zip(ctx.needs_input_grad[:4], TENSORS["objective"], strict=True):
            if needed and name != "transform":
                expected = "expected gradients to the transform alone, got one to a tensor."
                raise invalid(name, f"{expected} Detach it. {_LOCALLY}")
        parameters, gradient = ctx.saved_tensors
        of_items = (grad_value.view(-1, *[1] * (gradient.dim() - 1)) * gradient).to(gradient.dtype)
        # Parameters that were broadcast over items get the sum over them.
        if parameters.shape != gradient.shape:
            of_items = of_items.sum(0, keepdim=True)
        # With create_graph the gradient must fail when it is
        # differentiated, and not count as constant.
        if torch.is_grad_enabled():
            of_items = _Gradient.apply(of_items, parameters)  # type: ignore[no-untyped-call]
        return None, of_items, *(9 * (None,))

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Tensor | None) -> Tensor:
        raise invalid("tangents", f"expected reverse mode alone, got forward mode. {_LOCALLY}")


class _Warp(torch.autograd.Function):
    """The differentiation rule of `stn_client::warp`.

    Arguments are those of the operator, its keywords as one dictionary.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *positional, settings = arguments
        output: Tensor = _below_rule("warp", positional, settings)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        feature_map, parameters, _output_size, client, transform, numbers, settings = inputs
        ctx.save_for_backward(feature_map, parameters)
        ctx.call = client, transform, numbers, settings
        ctx.client = CLIENTS.get(client)  # lives as long as the graph, for backward

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        feature_map, parameters = ctx.saved_tensors
        client, transform, numbers, settings = ctx.call
        needs = list(ctx.needs_input_grad[:2])
        arguments = *grad_outputs, feature_map, parameters, needs, client, transform, numbers
        gradients = torch.ops.stn_client.warp_gradients(*arguments, **settings)
        # The operator returns an empty tensor for a gradient
        # that is not needed; autograd wants None.
        of_operands = [g if need else None for g, need in zip(gradients, needs, strict=True)]
        return *of_operands, None, None, None, None, None

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Tensor | None) -> Tensor:
        raise invalid("tangents", f"expected reverse mode alone, got forward mode. {_LOCALLY}")


class _Gradient(torch.autograd.Function):
    """A gradient whose dependence on the parameters cannot be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, _parameters: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Saves nothing, as `_WarpGradients` does."""

    @staticmethod
    def backward(_ctx: Any, *_grad_outputs: Tensor) -> None:
        raise invalid("create_graph", _NO_SECOND)


class _WarpGradients(torch.autograd.Function):
    """The differentiation rule of `stn_client::warp_gradients`: there is none."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        *positional, settings = arguments
        grad_feature_map, grad_transform = _below_rule("warp_gradients", positional, settings)
        return grad_feature_map, grad_transform

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Saves nothing: there are no second derivatives by wire."""

    @staticmethod
    def backward(_ctx: Any, *_grad_outputs: Tensor) -> None:
        raise invalid("create_graph", _NO_SECOND)


def _are_plain(*tensors: Tensor) -> bool:
    """Returns whether only autograd follows tensors, so that the short way may be taken."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES or tensor.is_meta:
            return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state()  # noqa: SLF001 - no public functions tell
        or torch._C._len_torch_dispatch_stack()  # noqa: SLF001
        or torch._C._len_torch_function_stack()  # noqa: SLF001
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001
        or forward_ad._current_level >= 0  # noqa: SLF001
    )


class _EagerWarp(torch.autograd.Function):
    """The rule of `stn_client::warp` for plain tensors, without an operator.

    Its feature map is copied once for forward and backward, to memory that the server sees.
    """

    @staticmethod
    def forward(
        ctx: Any,
        feature_map: Tensor,
        parameters: Tensor,
        output_size: list[int] | None,
        name: str,
        transform: str,
        numbers: list[float],
        settings: dict[str, Any],
    ) -> Tensor:
        client = _client_of(name)
        array = torch_to_numpy("feature_map", feature_map)
        # Backward reads the same array: it must neither be sent nor copied for the second time.
        array = _once(client, array)
        ctx.save_for_backward(feature_map, parameters)
        # Not among the saved tensors: it is no tensor, and autograd need not track it.
        ctx.array, ctx.client = array, client
        ctx.call = name, transform, numbers, settings
        where = _transform(torch_to_numpy("transform", parameters), transform, numbers)
        size = None if output_size is None else tuple(output_size)
        output: Any = client.warp(array, where, size, **_given(settings))
        made: Tensor = numpy_to_torch(output, feature_map)
        return made

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feature_map, parameters = ctx.saved_tensors
        name, transform, numbers, settings = ctx.call
        needs = list(ctx.needs_input_grad[:2])
        # With create_graph, or a mode on, the operator goes instead: its rule refuses in words, and
        # torch calls it for each of several gradients (is_grads_batched).
        is_one = _are_plain(grad_output) and not is_legacy_batchedtensor(grad_output)
        if torch.is_grad_enabled() or not is_one:
            arguments = grad_output, feature_map, parameters, needs, name, transform, numbers
            found = torch.ops.stn_client.warp_gradients(*arguments, **settings)
            of_operands = [g if need else None for g, need in zip(found, needs, strict=True)]
            return *of_operands, None, None, None, None, None
        gradients = ctx.client.warp_gradients(
            _once(ctx.client, torch_to_numpy("grad_output", grad_output)),
            ctx.array,
            _transform(torch_to_numpy("transform", parameters), transform, numbers),
            needs=_named_needs(needs),
            **_given(settings),
        )
        found = gradients.feature_map, gradients.transform
        operands = feature_map, parameters
        return (
            *(
                g if g is None else numpy_to_torch(g, o)
                for g, o in zip(found, operands, strict=True)
            ),
            *(None for _ in range(5)),
        )


def _once(client: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Returns an array that calls of a client do not copy again, if there is such memory."""
    # A fake in a test need not have it.
    shared = getattr(client, "_shared", None)
    return array if shared is None else shared(array)


def _named_needs(needs: list[bool]) -> list[str]:
    return [name for name, need in zip(_OPERANDS, needs, strict=True) if need]


def _vmapped(operator: str, info: Any, in_dims: Any, *arguments: Any, **settings: Any) -> Any:
    """The rule of `torch.func.vmap` for an operator."""
    *_, kind, numbers = arguments
    transform = _transform(None, kind, numbers)
    return one_call(operator, transform, info.batch_size, in_dims, arguments, settings)


_SETTINGS = "str client, str transform, float[] numbers, *, " + ", ".join(
    f"{kind}? {name}=None" for name, kind in {**OPTIONS, "fill_remainder": "int[]"}.items()
)
_SIGNATURES = {
    "warp": "(Tensor feature_map, Tensor parameters, SymInt[]? output_size, "
    f"{_SETTINGS}) -> Tensor",
    "warp_gradients": "(Tensor grad_output, Tensor feature_map, Tensor parameters, bool[2] needs, "
    f"{_SETTINGS}) -> (Tensor, Tensor)",
    "objective": "(Tensor moving, Tensor parameters, Tensor fixed, Tensor? weights, str loss, "
    f"float delta, str domain, {_SETTINGS}) -> (Tensor, Tensor)",
}
LIBRARY = torch.library.Library("stn_client", "DEF")  # type: ignore[no-untyped-call]  # torch


def _below_rule(name: str, arguments: Sequence[Any], settings: dict[str, Any]) -> Any:
    """Calls `stn_client::name` below the rule that records it for one level of transforms.

    The next transform of torch.func outside of that one has a rule of its own, and records as well,
    which is off while a rule runs. If there is none, it is the kernel.
    """
    if not torch._C._are_functorch_transforms_active():  # noqa: SLF001 - as in `_are_plain`
        return getattr(torch.ops.stn_client, f"compute_{name}")(*arguments, **settings)
    with (
        torch.enable_grad(),
        forward_ad._set_fwd_grad_enabled(True),  # noqa: SLF001 - as torch.func does
        torch._C._AutoDispatchBelowAutograd(),  # noqa: SLF001 - as torch.library does
    ):
        return getattr(torch.ops.stn_client, name)(*arguments, **settings)


def _register(name: str, kernel: Callable[..., Any], fake: Callable[..., Any], rule: Any) -> None:
    """Defines `stn_client::name`, and below it the same without the rule."""

    def apply(*arguments: Any, **settings: Any) -> Any:
        # Transforms of torch.func come here with one level of theirs after the other, each to be
        # recorded as autograd records; `rule.apply` itself would begin with all of them anew.
        with autograd_function.enable_single_level_autograd_function():  # type: ignore[attr-defined]
            return super(torch.autograd.Function, rule).apply(*arguments, settings)

    # The second one has no rule of its own: a rule that called the first would call itself.
    for operator in (name, f"compute_{name}"):
        schema = f"{operator}{_SIGNATURES[name]}"
        LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
        LIBRARY.impl(operator, kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"stn_client::{operator}", fake, lib=LIBRARY)
        rule_of_vmap = partial(_vmapped, operator)
        torch.library.register_vmap(f"stn_client::{operator}", rule_of_vmap, lib=LIBRARY)
    LIBRARY.impl(name, apply, "Autograd")  # type: ignore[no-untyped-call]


_register("warp", _warp, _warp_fake, _Warp)
_register("warp_gradients", _warp_gradients, _warp_gradients_fake, _WarpGradients)
_register("objective", _objective, _objective_fake, _Objective)
