"""The operations as torch operators: their schemas, shapes and differentiation rules.

Decides who computes and what is recorded; computes nothing itself. A recorded operation saves its
operands and nothing else, and its backward is one fused vector-Jacobian product. Whatever
differentiates further, be it a backward that is itself recorded, a tangent or a torch.func
transform, meets the composition of torch operators, which torch differentiates to any order.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

from stn_engine import dispatch
from stn_engine.adapters.tensors import check_operands, readable
from stn_engine.backends._results import parts_of
from stn_engine.backends.base import Backend
from stn_engine.backends.kernels import KernelBackend
from stn_engine.backends.torch import TorchBackend
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.checks import NEEDS, OBJECTIVE_NEEDS
from stn_engine.errors import ParameterError
from stn_engine.modes import (
    has_tangents,
    is_plain,
    is_scripted,
    is_traced,
    is_transformed,
    unrecorded,
)
from stn_engine.problem import (
    Gradients,
    GridGradientsProblem,
    GridProblem,
    Objective,
    ObjectiveProblem,
    Problem,
    WarpGradientsProblem,
    WarpProblem,
)
from stn_engine.spec import Comparison, WarpSpec, kept_spec
from stn_engine.transforms import KINDS, ThinPlateSpline, Transform

P = TypeVar("P", bound=Problem)
R = TypeVar("R", bound=Tensor | Gradients | Objective)
Packed = Tensor | list[Tensor] | tuple[Tensor, Tensor]
"""What a torch operator returns."""
Needs = Sequence[bool]
"""Whether the gradient of each operand of a problem is needed."""

COMPOSITION = TorchBackend()
"""The backend whose results are graphs of differentiable operators."""

LIBRARY = torch.library.Library("stn_engine", "DEF")  # type: ignore[no-untyped-call]  # torch
TRANSFORM = "str transform, float[] settings"
UNIT = "str coordinates, bool align_corners"
FILL = "float[] fill, int[] fill_remainder"
SPEC = f"str interpolation, str padding, {FILL}, {UNIT}, str subgradient, bool deterministic"
TRANSFORMS: dict[str, Callable[[Tensor], Any]] = {kind.__name__: kind for kind in KINDS}
_requires_grad = attrgetter("requires_grad")


class Operator(Generic[P, R]):
    """An operation: a torch operator for tracers and transforms, else a plain function.

    Args:
        schema: Of the torch operator; its name is that of a method of all backends.
        arguments: A problem as the arguments of the torch operator.
        problem: The way back, with all checks.
        empty: A result of the right shapes, without values.
        adjoint: The gradients of the operands that need one, by a problem and the gradient of its
            result. None: what is recorded is composed.
    """

    def __init__(
        self,
        schema: str,
        *,
        arguments: Callable[[P], tuple[Any, ...]],
        problem: Callable[..., P],
        empty: Callable[[P], R],
        adjoint: Callable[[P, Tensor, Needs], tuple[Tensor | None, ...]] | None = None,
    ) -> None:
        name = schema.partition("(")[0]
        self.arguments, self.adjoint = arguments, adjoint
        self._name, self._problem, self._empty = name, problem, empty
        tag = torch.Tag.pt2_compliant_tag  # opcheck finds nothing wrong
        LIBRARY.define(schema, tags=tag)  # type: ignore[no-untyped-call]  # torch
        # The kernel runs below autograd on every device; the rule above it records.
        LIBRARY.impl(name, self._kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, self._rule, "Autograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{LIBRARY.ns}::{name}", self._fake, lib=LIBRARY)
        self.torch_operator = getattr(getattr(torch.ops, LIBRARY.ns), name).default

    def __call__(self, problem: P) -> R:
        """Returns the result of ``problem``, differentiable in all of its operands."""
        if torch.compiler.is_compiling() or is_scripted():
            return self._traced(problem)
        return self._differentiable(problem)

    def of_new(self, problem: P) -> R:
        """Returns the result of a problem made just now, whose call tells that no mode is on."""
        if "call" not in vars(problem):
            return self(problem)
        # No mode is on, so there is nothing to ask about but gradients.
        if not (torch.is_grad_enabled() and any(map(_requires_grad, problem.operands))):
            return self._run_by_best(problem)
        return self._composed(problem) if self.adjoint is None else self._recorded(problem)

    def of_gradient(self, problem: P, gradient: Tensor) -> R:
        """Returns the result of a problem made just now in a backward pass, from its gradient."""
        # One of several (is_grads_batched): torch's loop over them knows operators alone.
        if is_legacy_batchedtensor(gradient):
            return self._traced(problem)
        return self.of_new(problem)

    def _differentiable(self, problem: P) -> R:
        operands = problem.operands
        # Kernels know neither tangents nor batches of vmap; the
        # composition of torch operators does.
        if is_transformed() or (has_tangents() and any(map(_has_tangent, operands))):
            return self._composed(problem)
        if not (torch.is_grad_enabled() and any(map(_requires_grad, operands))):
            return self._computed(problem)
        if self.adjoint is None:
            return self._composed(problem)
        return self._recorded(problem)

    def _recorded(self, problem: P) -> R:
        return cast("R", _Recorded.apply(self, problem, *problem.operands))  # type: ignore[no-untyped-call]  # torch

    def _composed(self, problem: P) -> R:
        if is_traced():
            problem = self._problem(*map(_settled, self.arguments(problem)))
        check_operands(problem)
        return self._run_by(COMPOSITION, problem)

    def _computed(self, problem: P) -> R:
        # The torch operator costs as much as a small warp: only those who trace are shown it.
        if is_traced() or not all(map(is_plain, problem.operands)):
            with torch._C._AutoDispatchBelowAutograd():  # noqa: SLF001 - as torch.library does
                return self._traced(problem)
        return self._run_by_best(problem)

    def _run_by_best(self, problem: P) -> R:
        is_known = "call" in vars(problem)
        backend = dispatch.select_once(problem) if is_known else dispatch.select(problem)
        if isinstance(backend, KernelBackend):  # it checks addresses itself
            return self._run_by(backend, problem)
        return self._run_by(backend, readable(problem))

    def _run_by(self, backend: Backend, problem: P) -> R:
        result: R = getattr(backend, self._name)([problem])[0]
        return result

    def _traced(self, problem: P) -> R:
        return cast("R", _unpacked(problem, self.torch_operator(*self.arguments(problem))))

    def _kernel(self, *arguments: Any) -> Packed:
        return _packed(self._run_unrecorded(self._problem(*arguments)))

    @unrecorded
    def _run_unrecorded(self, problem: P) -> R:
        return self._run_by_best(problem)

    def _rule(self, *arguments: Any) -> Packed:
        return _packed(self._differentiable(self._problem(*arguments)))

    def _fake(self, *arguments: Any) -> Packed:
        return _packed(self._empty(self._problem(*arguments)))


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: Operator[Any, Any], problem: Any, *operands: Tensor) -> Any:
        ctx.save_for_backward(*operands)
        # Without its operands: hooks on saved tensors, such as checkpoints, must see all there is.
        ctx.operator, ctx.problem = operator, problem.without_data()
        if "call" in vars(problem):  # no mode is on
            return operator._run_by_best(problem)  # noqa: SLF001 - one class in two
        return operator._computed(problem)  # noqa: SLF001

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        problem = ctx.problem.bound(*ctx.saved_tensors)
        # The first two arguments of forward are the operator and the problem.
        needs = ctx.needs_input_grad[2:]
        return None, None, *ctx.operator.adjoint(problem, grad_outputs[0], needs)


class _Compared(torch.autograd.Function):
    """The value of an objective, differentiable in the parameters by the gradient beside it."""

    @staticmethod
    def forward(ctx: Any, problem: ObjectiveProblem, *operands: Tensor) -> Any:
        needs = tuple(name for name in OBJECTIVE_NEEDS if name in {"gradient", *problem.needs})
        # The gradient costs little beside the value in one
        # pass, and a second pass in backward much.
        whole = problem if needs == problem.needs else problem.needing(needs)
        found = objective._computed(whole)  # noqa: SLF001 - one class in two
        ctx.save_for_backward(*operands, found.gradient)
        ctx.problem = problem.without_data()
        others = found.count, found.gradient, found.gauss_newton
        # Count, gradient and matrix are constants to autograd: only the value has a graph.
        ctx.mark_non_differentiable(*(one for one in others if one is not None))
        return found.value, *others

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        *operands, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            value = objective._composed(ctx.problem.bound(*operands)).value  # noqa: SLF001
            (grad_parameters,) = torch.autograd.grad(
                value, operands[1], grad_value, create_graph=True
            )
        else:
            # The chain rule, item by item; in float64, rounded once, as all sums of the engine.
            aligned = grad_value.view(-1, *[1] * (gradient.dim() - 1))
            grad_parameters = (aligned * gradient.double()).to(gradient.dtype)
            # Parameters that were broadcast over items get the sum, in an order that is fixed.
            if len(operands[1]) != len(gradient):
                grad_parameters = tree_sum(grad_parameters, 0)[None]
        return None, None, grad_parameters, *(None for _ in operands[2:])


class _ObjectiveOperator(Operator[ObjectiveProblem, Objective]):
    """The operator of objectives, whose forward pass computes the gradient as well."""

    def _recorded(self, problem: ObjectiveProblem) -> Objective:
        moving, _, *others = problem.operands
        # The gradient beside the value is that of the parameters; of the maps there is none.
        if any(map(_requires_grad, (moving, *others))):
            return self._composed(problem)
        value, count, *parts = _Compared.apply(problem, *problem.operands)  # type: ignore[no-untyped-call]  # torch
        found = zip(OBJECTIVE_NEEDS, parts, strict=True)
        return Objective(
            value, count, *(one if name in problem.needs else None for name, one in found)
        )


def _has_tangent(operand: Tensor) -> bool:
    dual = forward_ad.unpack_dual(operand)  # type: ignore[no-untyped-call]  # torch
    return dual.tangent is not None


def _settled(argument: Any) -> Any:
    """Returns an argument without symbolic sizes: constants are computed from sizes."""
    if isinstance(argument, Tensor):
        return argument.view([int(size) for size in argument.shape])
    if isinstance(argument, tuple):
        return tuple(int(one) if isinstance(one, torch.SymInt) else one for one in argument)
    return argument


def _packed(result: Tensor | Gradients | Objective) -> Packed:
    """Returns a result as a torch operator does: dense.

    Of an objective the parts that are needed, of gradients both, one that is not needed empty:
    torch loops over batches of gradients only for operators without lists of tensors.
    """
    if isinstance(result, Tensor):
        return result.contiguous()
    parts = [part.contiguous() for part in parts_of(result)]
    if isinstance(result, Objective):
        return parts
    grad_feature_map, grad_transform = (
        parts[0].new_empty(0) if part is None else part.contiguous()
        for part in (result.feature_map, result.transform)
    )
    return grad_feature_map, grad_transform


def _unpacked(problem: Any, packed: Any) -> Any:
    """Inverts ``_packed``: returns a result as plain functions do."""
    if isinstance(packed, Tensor):
        return packed
    if isinstance(problem, ObjectiveProblem):
        value, count, *others = packed
        return Objective(value, count, **dict(zip(problem.needs, others, strict=True)))
    named = zip(NEEDS, packed, strict=True)
    return Gradients(*(part if name in problem.needs else None for name, part in named))


def _transform_arguments(transform: Transform) -> tuple[str, list[float]]:
    settings: list[float] = []
    if isinstance(transform, ThinPlateSpline):
        settings = [*itertools.chain(*transform.control_points), transform.regularization]
    return type(transform).__name__, settings


def _transform(parameters: Tensor, kind: str, settings: Sequence[float]) -> Any:
    if kind not in TRANSFORMS:
        raise ParameterError("transform", kind, tuple(TRANSFORMS))
    if kind != ThinPlateSpline.__name__:
        return TRANSFORMS[kind](parameters)
    *flat, regularization = settings
    dims = parameters.shape[-1]
    control_points = [flat[k : k + dims] for k in range(0, len(flat), dims)]
    return ThinPlateSpline(parameters, control_points=control_points, regularization=regularization)


def _spec_arguments(spec: WarpSpec) -> tuple[Any, ...]:
    fill = [float(value) for value in spec.fill]
    # Operators take no lists of floats and integers: what no float is comes in two parts.
    parts = zip(spec.fill, fill, strict=True)
    remainder = [value - int(part) if isinstance(value, int) else 0 for value, part in parts]
    return (
        spec.interpolation.value,
        spec.padding.value,
        fill,
        remainder if any(remainder) else [],
        spec.coordinates.value,
        spec.align_corners,
        spec.subgradient.value,
        spec.deterministic,
    )


def _warp_arguments(problem: WarpProblem) -> tuple[Any, ...]:
    return (
        *problem.operands,
        # What follows from the operands must go on to follow from them in a captured graph.
        problem.output_size if problem.is_sized else None,
        *_transform_arguments(problem.transform),
        *_spec_arguments(problem.spec),
    )


def _warp_problem(
    feature_map: Tensor,
    parameters: Tensor,
    output_size: Sequence[int] | None,
    kind: str,
    settings: Sequence[float],
    *spec: Any,
) -> WarpProblem:
    transform = _transform(parameters, kind, settings)
    interpolation, padding, fill, remainder, *others = spec
    if remainder and not (len(remainder) == len(fill) and all(map(math.isfinite, fill))):
        allowed = ("none, or as many as fill has finite numbers",)
        raise ParameterError("fill_remainder", remainder, allowed)
    parts = zip(fill, remainder or [0] * len(fill), strict=True)
    whole = tuple(int(part) + more if more else part for part, more in parts)
    options = kept_spec(interpolation, padding, whole, *others)
    return WarpProblem(feature_map, transform, output_size, options)


def _empty_warp(problem: WarpProblem) -> Tensor:
    return problem.feature_map.new_empty(problem.output_shape)


def _warp_adjoint(
    problem: WarpProblem, grad_output: Tensor, needs: Needs
) -> tuple[Tensor | None, ...]:
    names = [name for name, need in zip(NEEDS, needs, strict=True) if need]
    found = WarpGradientsProblem(problem, grad_output, names)
    gradients = warp_gradients.of_gradient(found, grad_output)
    return gradients.feature_map, gradients.transform


def _warp_gradients_arguments(problem: WarpGradientsProblem) -> tuple[Any, ...]:
    return (
        *problem.operands,
        *(name in problem.needs for name in NEEDS),
        *_transform_arguments(problem.warp.transform),
        *_spec_arguments(problem.warp.spec),
    )


def _warp_gradients_problem(
    grad_output: Tensor, feature_map: Tensor, parameters: Tensor, *how: Any
) -> WarpGradientsProblem:
    needed, how = how[: len(NEEDS)], how[len(NEEDS) :]
    needs = [name for name, need in zip(NEEDS, needed, strict=True) if need]
    warp = _warp_problem(feature_map, parameters, grad_output.shape[2:], *how)
    return WarpGradientsProblem(warp, grad_output, needs)


def _empty_warp_gradients(problem: WarpGradientsProblem) -> Gradients:
    _, *operands = problem.operands
    grad_feature_map, grad_transform = (
        operand.new_empty(operand.shape) if name in problem.needs else None
        for name, operand in zip(NEEDS, operands, strict=True)
    )
    return Gradients(grad_feature_map, grad_transform)


def _grid_arguments(problem: GridProblem) -> tuple[Any, ...]:
    return (
        *problem.operands,
        problem.output_size,
        *_transform_arguments(problem.transform),
        *_unit_arguments(problem),
    )


def _unit_arguments(problem: GridProblem) -> tuple[str, bool]:
    return str(problem.coordinates), problem.align_corners


def _grid_problem(
    parameters: Tensor, output_size: Sequence[int], kind: str, settings: Sequence[float], *unit: Any
) -> GridProblem:
    return GridProblem(_transform(parameters, kind, settings), output_size, *unit)


def _empty_grid(problem: GridProblem) -> Tensor:
    return problem.transform.parameters.new_empty(problem.output_shape)


def _grid_adjoint(problem: GridProblem, grad_grid: Tensor, _: Needs) -> tuple[Tensor | None, ...]:
    found = GridGradientsProblem(problem, grad_grid)
    return (generate_grid_gradients.of_gradient(found, grad_grid),)


def _grid_gradients_arguments(problem: GridGradientsProblem) -> tuple[Any, ...]:
    return (
        *problem.operands,
        *_transform_arguments(problem.grid.transform),
        *_unit_arguments(problem.grid),
    )


def _grid_gradients_problem(
    grad_grid: Tensor, parameters: Tensor, *how: Any
) -> GridGradientsProblem:
    return GridGradientsProblem(_grid_problem(parameters, grad_grid.shape[1:-1], *how), grad_grid)


def _empty_grid_gradients(problem: GridGradientsProblem) -> Tensor:
    parameters = problem.grid.transform.parameters
    return parameters.new_empty(parameters.shape)


def _objective_arguments(problem: ObjectiveProblem) -> tuple[Any, ...]:
    moving, parameters, *_ = problem.operands
    how = problem.comparison
    return (
        moving,
        parameters,
        problem.fixed,
        problem.weights,
        str(how.loss),
        how.delta,
        str(how.domain),
        *(name in problem.needs for name in OBJECTIVE_NEEDS),
        *_transform_arguments(problem.warp.transform),
        *_spec_arguments(problem.warp.spec),
    )


def _objective_problem(
    moving: Tensor, parameters: Tensor, fixed: Tensor, weights: Tensor | None, *how: Any
) -> ObjectiveProblem:
    loss, delta, domain, *how = how  # type: ignore[assignment]
    needed, how = how[: len(OBJECTIVE_NEEDS)], how[len(OBJECTIVE_NEEDS) :]
    needs = [name for name, need in zip(OBJECTIVE_NEEDS, needed, strict=True) if need]
    warp = _warp_problem(moving, parameters, fixed.shape[2:], *how)
    comparison = Comparison(loss=loss, delta=delta, domain=domain)
    return ObjectiveProblem(warp, fixed, weights, comparison, needs)


def _empty_objective(problem: ObjectiveProblem) -> Objective:
    parameters, n = problem.warp.transform.parameters, problem.batch_size
    size = math.prod(parameters.shape[1:])
    wide = parameters.new_empty((n,), dtype=torch.float64)
    parts = {
        "gradient": parameters.new_empty((n, *parameters.shape[1:])),
        "gauss_newton": wide.new_empty((n, size, size)),
    }
    return Objective(wide, wide.new_empty((n,)), **{name: parts[name] for name in problem.needs})


objective = _ObjectiveOperator(
    "objective(Tensor moving, Tensor parameters, Tensor fixed, Tensor? weights, str loss,"
    " float delta, str domain, bool needs_gradient, bool needs_gauss_newton,"
    f" {TRANSFORM}, {SPEC}) -> Tensor[]",
    arguments=_objective_arguments,
    problem=_objective_problem,
    empty=_empty_objective,
    adjoint=lambda *_: (),  # it is recorded in a way of its own
)
"""The comparison of a warp; its value is differentiable in all operands, all else constant."""

warp = Operator[WarpProblem, Tensor](
    f"warp(Tensor feature_map, Tensor parameters, SymInt[]? output_size, {TRANSFORM}, {SPEC})"
    " -> Tensor",
    arguments=_warp_arguments,
    problem=_warp_problem,
    empty=_empty_warp,
    adjoint=_warp_adjoint,
)
"""V, differentiable in the feature map and the transform's parameters."""

warp_gradients = Operator[WarpGradientsProblem, Gradients](
    "warp_gradients(Tensor grad_output, Tensor feature_map, Tensor parameters,"
    f" bool needs_feature_map, bool needs_transform, {TRANSFORM}, {SPEC}) -> (Tensor, Tensor)",
    arguments=_warp_gradients_arguments,
    problem=_warp_gradients_problem,
    empty=_empty_warp_gradients,
)
"""The gradients of one warp, differentiable in all three operands."""

generate_grid = Operator[GridProblem, Tensor](
    f"generate_grid(Tensor parameters, SymInt[] output_size, {TRANSFORM}, {UNIT}) -> Tensor",
    arguments=_grid_arguments,
    problem=_grid_problem,
    empty=_empty_grid,
    adjoint=_grid_adjoint,
)
"""The sampling grid, differentiable in the transform's parameters."""

generate_grid_gradients = Operator[GridGradientsProblem, Tensor](
    f"generate_grid_gradients(Tensor grad_grid, Tensor parameters, {TRANSFORM}, {UNIT}) -> Tensor",
    arguments=_grid_gradients_arguments,
    problem=_grid_gradients_problem,
    empty=_empty_grid_gradients,
)
"""The gradient of the parameters, differentiable in them and in the grid's gradient."""
