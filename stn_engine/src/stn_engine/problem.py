"""A call as data: operands, sizes and spec, valid by construction.

Constructing a problem reads shapes only. Its sizes are Python integers, so that a caller can
refuse a monstrous request before anything of its size is allocated.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from stn_engine import agreement, checks
from stn_engine.call import Call, Direction, Layout, Operation, Plans, contiguous, map_like
from stn_engine.errors import ShapeError
from stn_engine.modes import PLAIN_TYPES, is_plain_call, unrecorded
from stn_engine.spec import Comparison, Coordinates, WarpSpec, choice, flag, kept_spec
from stn_engine.transforms import KINDS, ParametricTransform, Transform

_DEFAULT = WarpSpec()
_SQUARES = Comparison()
_KEPT = frozenset({"call", "plans"})
"""Attributes that hold what a problem has worked out."""

T = TypeVar("T")
T_Transform = TypeVar("T_Transform", bound=Transform)


@dataclass(frozen=True)
class Gradients:
    """What ``warp_gradients`` returns; None for what was not asked for.

    Shapes:
        feature_map   (N, C, [D,] H, W)   dtype of the feature map
        transform     as its parameters   dtype of the parameters
    """

    feature_map: Tensor | None
    transform: Tensor | None


@dataclass(frozen=True)
class Objective:
    """What ``objective`` returns; None for what was not asked for.

    Shapes:
        value          (N,)                 float64
        count          (N,)                 float64
        gradient       (N, ...)             as one item of the parameters; their dtype
        gauss_newton   (N, K, K)            float64; K parameters an item, row by row
    """

    value: Tensor
    count: Tensor
    gradient: Tensor | None = None
    gauss_newton: Tensor | None = None


class _Planned(ABC):
    """A problem: a call, and the tensors that it is computed on."""

    if TYPE_CHECKING:  # a field of some problems, a property of others

        @property
        def operands(self) -> tuple[Tensor, ...]:
            """Tensors that the result depends on, in the order of ``bound``."""

    @property
    def input_bytes(self) -> int:
        """The size of all operands in bytes."""
        return sum(map(_bytes, self.operands))

    @cached_property
    def call(self) -> Call:
        """The call of this problem, with new results."""
        return self._described()

    @abstractmethod
    def _described(self) -> Call:
        """Returns a call with the present layouts of the operands."""

    def __getstate__(self) -> dict[str, Any]:
        # A copy has memory of its own, of which nothing is known yet.
        return {name: value for name, value in vars(self).items() if name not in _KEPT}

    @cached_property
    def plans(self) -> Plans:
        """Plans of the backends, each under keys of its own.

        They hold for whatever values the operands have, as long as these keep their shapes,
        strides and device.
        """
        return Plans()


@dataclass(frozen=True, eq=False, init=False)
class WarpProblem(_Planned):
    """A warp: generator and sampler applied to one batch.

    Shapes:
        feature_map   (N, C, [D,] H, W)       float32 | float64 | float16 | bfloat16 | uint8 |
                                              uint16 | int16, or, with nearest alone, bool | int8 |
                                              int32 | uint32 | int64 | uint64
        transform     (N, ...)                float32 | float64, same device
        result        (N, C, [Do,] Ho, Wo)    dtype of feature_map

    Whether there is a depth D is up to the transform, by its ``dims``. N of either operand may be 1
    and is then broadcast. N, C, Do, Ho and Wo may be 0; D, H and W may not.

    Args:
        feature_map: The images or volumes that are read.
        transform: Any ``Transform``.
        output_size: ([Do,] Ho, Wo). None means the transform's own size (``SamplingGrid``,
            ``Flow``), or else the feature map's.
        spec: How to read.

    Raises:
        ShapeError: a shape is not as above, or operands disagree.
        DTypeError: a dtype is not as above.
        DeviceMismatchError: the operands live on different devices.
        ParameterError: output_size or fill is not usable with these operands.
    """

    feature_map: Tensor
    transform: Transform
    output_size: Sequence[int] | None = None
    spec: WarpSpec = _DEFAULT
    output_shape: tuple[int, ...] = field(init=False)
    """(N, C, [Do,] Ho, Wo)."""
    is_sized: bool = field(init=False)
    """Whether output_size was given, rather than left to the operands."""

    operands: tuple[Tensor, Tensor] = field(init=False, repr=False)
    """Tensors that the result depends on, in the order of ``bound``: feature map and parameters."""

    def __init__(
        self,
        feature_map: Tensor,
        transform: Transform,
        output_size: Sequence[int] | None = None,
        spec: WarpSpec = _DEFAULT,
    ) -> None:
        is_sized = output_size is not None
        key = call = None
        # Only outside of modes are sizes numbers that a key can hold, and tensors what they seem.
        if not torch.compiler.is_compiling() and is_plain_call():
            key = _warp_key(feature_map, transform, output_size, spec)
            call = None if key is None else _CALLS.get(key)
        if call is None:
            shape = agreement.warp_shape(feature_map, transform, output_size, spec)
        else:
            shape = call.output_shape
        self.__dict__.update(  # at once: this is part of every call
            feature_map=feature_map,
            transform=transform,
            output_size=shape[2:],
            spec=spec,
            output_shape=shape,
            is_sized=is_sized,
            operands=(feature_map, getattr(transform, transform.argument)),
        )
        # A call in the dict marks the problem as one whose operands were plain when it was made.
        if key is not None:
            self.__dict__["call"] = _kept_call(key, self) if call is None else call

    def _described(self) -> Call:
        feature_map, parameters = self.operands
        result = map_like(feature_map, self.output_shape)
        operands = Layout.of(feature_map), Layout.of(parameters)
        return _warp_call(self, Direction.FORWARD, operands, (result,))

    def bound(self, feature_map: Tensor, parameters: Tensor) -> Self:
        """Returns this problem with other operands of equal shapes and dtypes, unchecked.

        For callers that validate a description once, on meta tensors, and then run it often.
        """
        transform = _rebound(self.transform, parameters)
        operands = feature_map, parameters
        bound = _with(self, feature_map=feature_map, transform=transform, operands=operands)
        call = vars(self).get("call")
        # The call, and with it all plans, holds for new
        # operands only if their layouts are the same.
        if call is not None and _have_layouts_of(call, operands):
            vars(bound)["call"] = call
        return bound

    def recheck(self) -> None:
        """Checks the operands again, which may have changed since the problem was made.

        Raises:
            InvalidInputError: The problem could not be made of them, or would be another one.
        """
        # A transform checks its parameters when it is made: they may have been resized since.
        self.transform.__post_init__()
        shape = agreement.warp_shape(self.feature_map, self.transform, self.output_size, self.spec)
        if shape == self.output_shape:
            return
        n, channels, *_ = self.output_shape
        changed = int(shape[1] == channels and self.feature_map.shape[0] != shape[0])
        own = n, *([channels, *self.feature_map.shape[2:]], self.operands[1].shape[1:])[changed]
        remedy = "It was of this shape when the problem was made: make a new one."
        raise ShapeError(self.names[changed], [own], self.operands[changed].shape, remedy)

    def without_data(self) -> Self:
        """Returns this problem and its call without operands, to be bound to others."""
        if "call" not in vars(self):
            return self.bound(NOWHERE, NOWHERE)
        call = self.call
        kept: Self | None = call.plans.get("without_data")  # the same for all of this call
        if kept is None:
            # Bound to empty tensors the problem would lose its call, as these have another layout.
            kept = self.bound(NOWHERE, NOWHERE)
            vars(kept)["call"] = call
            call.plans["without_data"] = kept
        return kept

    @property
    def names(self) -> tuple[str, str]:
        """Names of the operands as callers know them, in the same order."""
        return "feature_map", self.transform.argument

    @property
    def batch_size(self) -> int:
        """The N of the result, after broadcasting."""
        return self.output_shape[0]

    @property
    def output_dtype(self) -> torch.dtype:
        """Dtype of the result: the feature map's."""
        return self.feature_map.dtype

    @property
    def output_samples(self) -> int:
        """Points at which the feature map is read: N·Ho·Wo, times Do in 3-D."""
        return self.batch_size * math.prod(self.output_shape[2:])

    @property
    def output_bytes(self) -> int:
        """The size of the result in bytes."""
        return math.prod(self.output_shape) * self.output_dtype.itemsize


@dataclass(frozen=True, eq=False, init=False)
class WarpGradientsProblem(_Planned):
    """The vector-Jacobian product of one warp.

    Shapes:
        grad_output   (N, C, [Do,] Ho, Wo)   dtype and device of the warp's result

    Args:
        warp: The warp that is differentiated. A feature map of integers has no gradients.
        grad_output: Gradient of the loss with respect to the warp's result.
        needs: Which gradients to compute: ``"feature_map"``, ``"transform"``, or both.

    Raises:
        ShapeError: grad_output has not the shape of the result.
        DTypeError: grad_output has not the dtype of the result, or the feature map is integers.
        DeviceMismatchError: grad_output lives elsewhere.
        ParameterError: needs is empty or names something else.
    """

    warp: WarpProblem
    grad_output: Tensor
    needs: Sequence[str] = checks.NEEDS

    operands: tuple[Tensor, Tensor, Tensor] = field(init=False, repr=False)
    """The operands of the ``WarpProblem``, behind grad_output."""

    def __init__(
        self, warp: WarpProblem, grad_output: Tensor, needs: Sequence[str] = checks.NEEDS
    ) -> None:
        key = call = None
        if not torch.compiler.is_compiling() and is_plain_call():
            key = _gradients_key(warp, grad_output, needs)
            call = None if key is None else _CALLS.get(key)
        if call is None:
            needs = agreement.gradient_needs(
                warp.feature_map, warp.output_shape, grad_output, needs
            )
        else:
            needs = call.needs
        operands = grad_output, *warp.operands
        self.__dict__.update(warp=warp, grad_output=grad_output, needs=needs, operands=operands)
        if key is not None:
            self.__dict__["call"] = _kept_call(key, self) if call is None else call

    def _described(self) -> Call:
        grad_output, feature_map, parameters = self.operands
        results = (
            map_like(feature_map, feature_map.shape) if "feature_map" in self.needs else None,
            contiguous(parameters.dtype, parameters.shape) if "transform" in self.needs else None,
        )
        operands = Layout.of(grad_output), Layout.of(feature_map), Layout.of(parameters)
        return _warp_call(self.warp, Direction.GRADIENTS, operands, results)

    def bound(self, grad_output: Tensor, feature_map: Tensor, parameters: Tensor) -> Self:
        """Returns this problem with other operands, as ``WarpProblem.bound`` does."""
        warp = self.warp.bound(feature_map, parameters)
        operands = grad_output, feature_map, parameters
        return _with(self, grad_output=grad_output, warp=warp, operands=operands)

    def recheck(self) -> None:
        """Checks the operands again, as ``WarpProblem.recheck`` does."""
        self.warp.recheck()
        warp = self.warp
        agreement.gradient_needs(warp.feature_map, warp.output_shape, self.grad_output, self.needs)

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of the operands as callers know them, in the order of ``bound``."""
        return "grad_output", *self.warp.names

    @property
    def batch_size(self) -> int:
        """The N of the result, after broadcasting."""
        return self.warp.batch_size

    @property
    def output_samples(self) -> int:
        """Points at which the feature map is read."""
        return self.warp.output_samples

    @cached_property
    def output_bytes(self) -> int:
        """The size of the gradients that are asked for, in bytes."""
        operands = {
            "feature_map": self.warp.feature_map,
            "transform": self.warp.transform.parameters,
        }
        return sum(_bytes(operands[name]) for name in self.needs)


@dataclass(frozen=True, eq=False)
class GridProblem(_Planned):
    """A run of the grid generator alone.

    Shapes:
        transform   (N, ...)                   float32 | float64
        result      (N, [Do,] Ho, Wo, dims)    same dtype and device

    Args:
        transform: Any ``ParametricTransform``.
        output_size: (Ho, Wo), or (Do, Ho, Wo) for a transform in 3-D.
        coordinates: Unit of the transform and of the result.
        align_corners: Where -1 and 1 lie, for normalized coordinates.

    Raises:
        InvalidInputError: transform is not parametric.
        ShapeError: output_size is not the transform's own.
        ParameterError: output_size, coordinates or align_corners is not allowed.
    """

    transform: ParametricTransform
    output_size: Sequence[int]
    coordinates: Coordinates | str = Coordinates.NORMALIZED
    align_corners: bool = False

    @unrecorded
    def __post_init__(self) -> None:
        checks.check_transform(self.transform, get_args(ParametricTransform))
        size = agreement.output_size(self.output_size, self.transform)
        coordinates = choice("coordinates", self.coordinates, Coordinates)
        flag("align_corners", self.align_corners)
        object.__setattr__(self, "output_size", size)
        object.__setattr__(self, "coordinates", coordinates)

    def _described(self) -> Call:
        operands = (Layout.of(self.transform.parameters),)
        return _grid_call(self, Direction.FORWARD, operands, self.output_dtype, self.output_shape)

    def without_data(self) -> Self:
        """Returns this problem without its tensors, as ``WarpProblem.without_data`` does."""
        return self.bound(NOWHERE)

    def bound(self, parameters: Tensor) -> Self:
        """Returns this problem with other operands, as ``WarpProblem.bound`` does."""
        return _with(self, transform=_rebound(self.transform, parameters))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the grid, (N, [Do,] Ho, Wo, dims)."""
        return self.batch_size, *self.output_size, self.transform.dims

    @property
    def operands(self) -> tuple[Tensor]:
        """Tensors that the result depends on, in the order of ``bound``."""
        return (self.transform.parameters,)

    @property
    def names(self) -> tuple[str]:
        """Names of the operands as callers know them, in the order of ``bound``."""
        return (self.transform.argument,)

    @property
    def batch_size(self) -> int:
        """The N of the parameters and the grid."""
        return self.transform.parameters.shape[0]

    @property
    def output_dtype(self) -> torch.dtype:
        """Dtype of the grid: the parameters'."""
        return self.transform.parameters.dtype

    @property
    def output_samples(self) -> int:
        """Points of the grid: N·Ho·Wo, times Do in 3-D."""
        return math.prod(self.output_shape[:-1])

    @property
    def output_bytes(self) -> int:
        """The size of the grid in bytes."""
        return math.prod(self.output_shape) * self.output_dtype.itemsize


@dataclass(frozen=True, eq=False)
class GridGradientsProblem(_Planned):
    """The vector-Jacobian product of the grid generator.

    Shapes:
        grad_grid   (N, [Do,] Ho, Wo, dims)   dtype and device of the parameters
        result      as the parameters         same dtype and device

    Args:
        grid: The generation that is differentiated.
        grad_grid: Gradient of the loss with respect to the generated grid.

    Raises:
        ShapeError: grad_grid has not the shape of the grid.
        DTypeError: grad_grid has not the dtype of the parameters.
        DeviceMismatchError: grad_grid lives elsewhere.
    """

    grid: GridProblem
    grad_grid: Tensor

    @unrecorded
    def __post_init__(self) -> None:
        shape, dtype = self.grid.output_shape, self.grid.output_dtype
        checks.check_cotangent("grad_grid", self.grad_grid, shape, dtype)
        transform = self.grid.transform
        checks.check_device("grad_grid", self.grad_grid, transform.argument, transform.parameters)

    def _described(self) -> Call:
        grad_grid, parameters = self.operands
        operands = Layout.of(grad_grid), Layout.of(parameters)
        like = parameters.dtype, parameters.shape
        return _grid_call(self.grid, Direction.GRADIENTS, operands, *like)

    def bound(self, grad_grid: Tensor, parameters: Tensor) -> Self:
        """Returns this problem with other operands, as ``WarpProblem.bound`` does."""
        return _with(self, grad_grid=grad_grid, grid=self.grid.bound(parameters))

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """Tensors that the result depends on, in the order of ``bound``."""
        return self.grad_grid, *self.grid.operands

    @property
    def names(self) -> tuple[str, str]:
        """Names of the operands as callers know them, in the order of ``bound``."""
        return "grad_grid", *self.grid.names

    @property
    def batch_size(self) -> int:
        """The N of the parameters and the grid."""
        return self.grid.batch_size

    @property
    def output_samples(self) -> int:
        """Points of the grid."""
        return self.grid.output_samples

    @property
    def output_bytes(self) -> int:
        """The size of the gradient in bytes."""
        return _bytes(self.grid.transform.parameters)


@dataclass(frozen=True, eq=False, init=False)
class ObjectiveProblem(_Planned):
    """How far one warp is from a fixed map, with the gradient of that; section 7.

    Shapes:
        fixed     (N, C, [Do,] Ho, Wo)   dtype and device of the warp's feature map
        weights   (N, 1, [Do,] Ho, Wo)   the same; numbers >= 0

    N of the feature map, the transform, fixed and weights may each be 1 and is then broadcast:
    many thetas for one pair of maps are one problem.

    Args:
        warp: The warp of the moving map, to the size of fixed. A map of integers has none.
        fixed: What the result of the warp is compared with.
        weights: How much each target point counts; None: all alike.
        comparison: How.
        needs: What is wanted besides value and count: ``"gradient"``, ``"gauss_newton"``, both or
            nothing. The matrix is there for transforms that are matrices, and not for ``"ncc"``.

    Raises:
        ShapeError: fixed or weights have not the shape of the warp's result.
        DTypeError: fixed or weights have not the dtype of the feature map, or it is integers.
        DeviceMismatchError: fixed or weights live elsewhere.
        ParameterError: needs names something else, or what there is not.
    """

    warp: WarpProblem
    fixed: Tensor
    weights: Tensor | None = None
    comparison: Comparison = _SQUARES
    needs: Sequence[str] = checks.OBJECTIVE_NEEDS[:1]

    output_shape: tuple[int, ...] = field(init=False)
    """(N, C, [Do,] Ho, Wo) of the maps that are compared, which no tensor ever has."""
    operands: tuple[Tensor, ...] = field(init=False, repr=False)
    """The operands of the ``WarpProblem``, then fixed and, if there are any, weights."""

    def __init__(
        self,
        warp: WarpProblem,
        fixed: Tensor,
        weights: Tensor | None = None,
        comparison: Comparison = _SQUARES,
        needs: Sequence[str] = checks.OBJECTIVE_NEEDS[:1],
    ) -> None:
        key = call = None
        if not torch.compiler.is_compiling() and is_plain_call():
            key = _objective_key(warp, fixed, weights, comparison, needs)
            call = None if key is None else _CALLS.get(key)
        if call is None:
            shape = agreement.objective_shape(warp.feature_map, warp.output_shape, fixed, weights)
            needs = agreement.objective_needs(warp.transform, comparison, needs)
        else:
            # The kept call has both as the checks brought them into canonical form.
            shape, needs = call.output_shape, call.needs
        self.__dict__.update(
            warp=warp,
            fixed=fixed,
            weights=weights,
            comparison=comparison,
            needs=needs,
            output_shape=shape,
            operands=(*warp.operands, fixed, *(() if weights is None else (weights,))),
        )
        if key is not None:
            self.__dict__["call"] = _kept_call(key, self) if call is None else call

    def _described(self) -> Call:
        _, parameters, *_ = self.operands
        n, count = self.batch_size, math.prod(parameters.shape[1:])
        sizes = {
            "gradient": contiguous(parameters.dtype, (n, *parameters.shape[1:])),
            # Normal equations square the condition number: float32 would be too little.
            "gauss_newton": contiguous(torch.float64, (n, count, count)),
        }
        return Call(
            operation=Operation.OBJECTIVE,
            direction=Direction.FORWARD,
            transform=type(self.warp.transform),
            settings=self.warp.transform.settings,
            spec=self.warp.spec,
            operands=tuple(map(Layout.of, self.operands)),
            results=(
                # Value and count are always computed.
                *2 * (contiguous(torch.float64, (n,)),),
                *(sizes[name] if name in self.needs else None for name in checks.OBJECTIVE_NEEDS),
            ),
            output_shape=self.output_shape,
            device=self.warp.feature_map.device,
            comparison=self.comparison,
        )

    def bound(self, feature_map: Tensor, parameters: Tensor, *others: Tensor) -> Self:
        """Returns this problem with other operands, as ``WarpProblem.bound`` does."""
        fixed, *weights = others
        return _with(
            self,
            warp=self.warp.bound(feature_map, parameters),
            fixed=fixed,
            weights=weights[0] if weights else None,
            operands=(feature_map, parameters, *others),
        )

    def recheck(self) -> None:
        """Checks the operands again, as ``WarpProblem.recheck`` does."""
        self.warp.recheck()
        warp = self.warp
        shape = agreement.objective_shape(
            warp.feature_map, warp.output_shape, self.fixed, self.weights
        )
        if shape != self.output_shape:
            remedy = "It was of this shape when the problem was made: make a new one."
            raise ShapeError("fixed", [self.output_shape], self.fixed.shape, remedy)

    def without_data(self) -> Self:
        """Returns this problem without its tensors, as ``WarpProblem.without_data`` does."""
        return self.bound(*(NOWHERE for _ in self.operands))

    def needing(self, needs: Sequence[str]) -> Self:
        """Returns the same problem with other needs, which must be allowed."""
        return _with(self, needs=tuple(needs))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the operands as callers know them, in the order of ``bound``."""
        # In errors of an objective its feature map has the name of the argument.
        names = "moving", self.warp.transform.argument, "fixed", "weights"
        return names[: len(self.operands)]

    @property
    def batch_size(self) -> int:
        """The N of the results, after broadcasting."""
        return self.output_shape[0]

    @property
    def output_samples(self) -> int:
        """Points at which the feature map is read."""
        return self.batch_size * math.prod(self.output_shape[2:])

    @property
    def output_bytes(self) -> int:
        """The size of the results in bytes."""
        parameters = self.warp.transform.parameters
        count = math.prod(parameters.shape[1:])
        sizes = {"gradient": count * parameters.dtype.itemsize, "gauss_newton": 8 * count * count}
        return self.batch_size * (2 * 8 + sum(sizes[name] for name in self.needs))


Problem: TypeAlias = (
    WarpProblem | WarpGradientsProblem | GridProblem | GridGradientsProblem | ObjectiveProblem
)


_SCALARS = frozenset({float, int})


def spec_of(*options: Any) -> WarpSpec:
    """Returns the spec of options in the order of ``WarpSpec``; kept where its key is exact."""
    # A key must say all: a fill that is a sequence may have no hash, or change later.
    if type(options[2]) in _SCALARS and not torch.compiler.is_compiling():
        try:
            return kept_spec(*options)
        except TypeError:  # of no hash, and hardly an option
            pass
    return WarpSpec(**dict(zip(WarpSpec.__dataclass_fields__, options, strict=True)))


MAX_CALLS = 4096
"""Calls that are kept: as many as a training with images of all sizes needs, some 10 MB."""

_CALLS: dict[Hashable, Call] = {}
"""The latest calls of operands that were found valid, by all that decides about them."""


def _kept_call(key: Hashable, problem: _Planned) -> Call:
    """Keeps the call of a problem that was found valid under this key, and returns it."""
    if len(_CALLS) >= MAX_CALLS:
        _CALLS.clear()  # seldom, and what is used is soon there again
    call = _CALLS[key] = problem.call
    return call


NOWHERE = torch.empty(0, device="cpu")
"""Stands for operands in problems that must not keep any."""


def _have_layouts_of(call: Call, operands: Sequence[Tensor]) -> bool:
    """Returns whether operands have the layouts of a call; when in doubt, False."""
    if not is_plain_call():
        return False
    try:
        for operand, layout in zip(operands, call.operands, strict=True):  # loops: often run
            if not (
                type(operand) in PLAIN_TYPES
                and operand.layout == torch.strided
                and operand.shape == layout.shape
                and operand.stride() == layout.strides
                and operand.dtype == layout.dtype
                and operand.device == call.device
            ):
                return False
    except RuntimeError:  # sparse and the like: nothing has strides
        return False
    return True


def _warp_key(feature_map: Any, transform: Any, output_size: Any, spec: WarpSpec) -> Hashable:
    """Returns all that decides the validity and the call of a warp; None when in doubt."""
    if type(transform) not in _EXACT_KINDS:  # calls keep no more than what the kinds have
        return None
    parameters = vars(transform)[transform.argument]  # no call: this is part of every warp
    if not (type(feature_map) in PLAIN_TYPES and type(parameters) in PLAIN_TYPES):
        return None
    size = output_size
    if size is not None and not (type(size) is tuple and set(map(type, size)) == _INTEGERS):
        if isinstance(size, Iterator):  # it can be read once, by the checks
            return None
        # Lists, NumPy integers and the like are brought to the one form that keys have.
        size = checks.checked_output_size(size, transform.dims)
    if not feature_map.layout == parameters.layout == torch.strided:
        return None
    try:
        return (
            type(transform),
            transform.settings,
            size,
            spec,
            feature_map.dtype,
            feature_map.shape,
            feature_map.stride(),
            feature_map.device,
            parameters.dtype,
            parameters.shape,
            parameters.stride(),
            parameters.device,
        )
    except RuntimeError:  # nested ones: no shape
        return None


def _gradients_key(warp: WarpProblem, grad_output: Any, needs: Any) -> Hashable:
    """Returns the key of the gradients of a warp, as ``_warp_key`` does of a warp."""
    if "call" not in vars(warp) or type(grad_output) not in PLAIN_TYPES:
        return None
    # An iterator could be read once only, by the checks.
    if type(needs) not in _SEQUENCES or grad_output.layout != torch.strided:
        return None
    try:
        layout = grad_output.dtype, grad_output.shape, grad_output.stride(), grad_output.device
        # Calls are compared by identity, so the key of a gradient includes all that of its warp.
        key = warp.call, tuple(needs), *layout
        hash(key)
    except (RuntimeError, TypeError):
        return None
    return key


def _objective_key(
    warp: WarpProblem, fixed: Any, weights: Any, comparison: Comparison, needs: Any
) -> Hashable:
    """Returns the key of an objective, as ``_warp_key`` does of a warp."""
    if "call" not in vars(warp) or type(needs) not in _SEQUENCES:
        return None
    layouts = []
    try:
        for one in (fixed,) if weights is None else (fixed, weights):
            if type(one) not in PLAIN_TYPES or one.layout != torch.strided:
                return None
            layouts.append((one.dtype, one.shape, one.stride(), one.device))
        key = Operation.OBJECTIVE, warp.call, comparison, tuple(needs), *layouts
        hash(key)
    except (RuntimeError, TypeError):
        return None
    return key


_EXACT_KINDS = frozenset(KINDS)
_INTEGERS = {int}
_SEQUENCES = {tuple, list}


def _warp_call(
    warp: WarpProblem,
    direction: Direction,
    operands: tuple[Layout, ...],
    results: tuple[Layout | None, ...],
) -> Call:
    return Call(
        operation=Operation.WARP,
        direction=direction,
        transform=type(warp.transform),
        settings=warp.transform.settings,
        spec=warp.spec,
        operands=operands,
        results=results,
        output_shape=warp.output_shape,
        device=warp.feature_map.device,
    )


def _grid_call(
    grid: GridProblem,
    direction: Direction,
    operands: tuple[Layout, ...],
    dtype: torch.dtype,
    shape: Sequence[int],
) -> Call:
    return Call(
        operation=Operation.GENERATE_GRID,
        direction=direction,
        transform=type(grid.transform),
        settings=grid.transform.settings,
        spec=WarpSpec(coordinates=grid.coordinates, align_corners=grid.align_corners),
        operands=operands,
        results=(contiguous(dtype, shape),),
        output_shape=grid.output_shape,
        device=grid.transform.parameters.device,
    )


def _with(instance: T, **fields: object) -> T:
    """Returns a shallow copy of a frozen instance with some fields replaced; runs no checks."""
    clone = object.__new__(type(instance))
    state = clone.__dict__
    state.update(instance.__dict__, **fields)
    # What was worked out for the original holds no longer: fields that it depends on may differ.
    state.pop("call", None)
    state.pop("plans", None)
    return clone


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _rebound(transform: T_Transform, parameters: Tensor) -> T_Transform:
    return _with(transform, **{transform.argument: parameters})
