"""The torch operators of `stn_client.torch`, `stn_client::warp` and others, and their derivatives.

Operators take neither clients nor classes: a client stands in them as its name in this process, and
a transform as the name of its class and the numbers that it has beside its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch import autograd_function
from torch.autograd import forward_ad

from stn_client._arrays import numpy_to_torch, torch_to_numpy
from stn_client._client import Client
from stn_client._connection import CLIENTS
from stn_client._errors import invalid
from stn_client._layouts import LAYOUTS, output_shape
from stn_client._torch_vmap import TENSORS, one_call
from stn_client._transforms import Flow, SamplingGrid, ThinPlateSpline, Transform
from stn_proto import join_fill

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


def description_of(transform: Transform) -> tuple[str, list[float]]:
    """Returns what a transform has beside its parameters, in types of torch operators."""
    numbers: list[float] = []
    if isinstance(transform, ThinPlateSpline):
        settings = transform.settings
        numbers = [settings["regularization"], *settings["control_points"]]
    return type(transform).__name__, numbers


def transform_of(parameters: Any, kind: str, numbers: list[float]) -> Transform:
    """Returns the described transform with other parameters."""
    if kind != ThinPlateSpline.__name__:
        return KINDS[kind](parameters)
    regularization, *flat = numbers
    # Operators take flat lists of numbers only: x and y in turn, behind the regularization.
    control_points = list(zip(flat[::2], flat[1::2], strict=True))
    return ThinPlateSpline(parameters, control_points=control_points, regularization=regularization)


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


def compute_warp(
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
        transform_of(torch_to_numpy("transform", parameters), transform, numbers),
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


def compute_warp_gradients(
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
        transform_of(torch_to_numpy("transform", parameters), transform, numbers),
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


def compute_objective(
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
        transform_of(torch_to_numpy("transform", parameters), transform, numbers),
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


def are_plain(*tensors: Tensor) -> bool:
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


class EagerWarp(torch.autograd.Function):
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
        where = transform_of(torch_to_numpy("transform", parameters), transform, numbers)
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
        is_one = are_plain(grad_output) and not is_legacy_batchedtensor(grad_output)
        if torch.is_grad_enabled() or not is_one:
            arguments = grad_output, feature_map, parameters, needs, name, transform, numbers
            found = torch.ops.stn_client.warp_gradients(*arguments, **settings)
            of_operands = [g if need else None for g, need in zip(found, needs, strict=True)]
            return *of_operands, None, None, None, None, None
        gradients = ctx.client.warp_gradients(
            _once(ctx.client, torch_to_numpy("grad_output", grad_output)),
            ctx.array,
            transform_of(torch_to_numpy("transform", parameters), transform, numbers),
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
    transform = transform_of(None, kind, numbers)
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


_register("warp", compute_warp, _warp_fake, _Warp)
_register("warp_gradients", compute_warp_gradients, _warp_gradients_fake, _WarpGradients)
_register("objective", compute_objective, _objective_fake, _Objective)
