"""One call as data: operands, sizes and spec, valid by construction.

Constructing a problem reads shapes only. Its sizes are Python integers, so that a caller can
refuse a monstrous request before anything of its size is allocated.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from stn_engine import checks
from stn_engine.backends._watchers import unrecorded
from stn_engine.spec import Coordinates, WarpSpec, choice, flag
from stn_engine.transforms import ParametricTransform, Transform

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


class Plans(dict[Hashable, Any]):
    """What backends have worked out for a problem; those of a copy begin empty."""

    def kept(self, key: Hashable, work_out: Callable[..., T], *arguments: Any) -> T:
        """What ``work_out`` returned when this was first asked for under ``key``."""
        try:
            found: T = self[key]
        except KeyError:
            found = self[key] = work_out(*arguments)
        return found

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class _Planned:
    """A problem, for which backends keep what they will need again."""

    @cached_property
    def plans(self) -> Plans:
        """Under keys of the backends' own.

        They hold for whatever values the operands have, as long as these keep their shapes,
        strides and device.
        """
        return Plans()


@dataclass(frozen=True, eq=False)
class WarpProblem(_Planned):
    """One warp: generator and sampler applied to one batch.

    Shapes:
        feature_map   (N, C, [D,] H, W)       float32 | float64 | float16 | bfloat16 | uint8
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
    spec: WarpSpec = WarpSpec()  # noqa: RUF009 - immutable, so safe to share
    output_shape: tuple[int, ...] = field(init=False)
    """(N, C, [Do,] Ho, Wo)."""
    is_sized: bool = field(init=False)
    """Whether output_size was given, rather than left to the operands."""

    @unrecorded
    def __post_init__(self) -> None:
        checks.check_transform(self.transform, get_args(Transform))
        kind, argument = type(self.transform).__name__, self.transform.argument
        checks.check_feature_map(self.feature_map, kind, self.transform.dims)
        parameters = self.transform.parameters
        checks.check_device(argument, parameters, "feature_map", self.feature_map)
        checks.check_fill(self.spec.fill, self.feature_map)
        n = checks.broadcast_batch(self.feature_map, argument, parameters)
        shape = (n, self.feature_map.shape[1], *self._resolved_output_size())
        object.__setattr__(self, "is_sized", self.output_size is not None)
        object.__setattr__(self, "output_size", shape[2:])
        object.__setattr__(self, "output_shape", shape)

    def _resolved_output_size(self) -> tuple[int, ...]:
        if self.output_size is not None:
            return _agreed_size(self.output_size, self.transform)
        own = self.transform.own_size
        return tuple(self.feature_map.shape[2:]) if own is None else own

    def bound(self, feature_map: Tensor, parameters: Tensor) -> Self:
        """This problem with other operands of the same shapes and dtypes; nothing is checked.

        For callers that validate a description once, on meta tensors, and then run it often.
        """
        transform = _rebound(self.transform, parameters)
        return _with(self, feature_map=feature_map, transform=transform)

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """What the result depends on, in the order of ``bound``."""
        return self.feature_map, self.transform.parameters

    @property
    def names(self) -> tuple[str, str]:
        """What callers call the operands, in the same order."""
        return "feature_map", self.transform.argument

    @property
    def batch_size(self) -> int:
        """N after broadcasting."""
        return self.output_shape[0]

    @property
    def output_dtype(self) -> torch.dtype:
        """Dtype of the result: the feature map's."""
        return self.feature_map.dtype

    @property
    def output_samples(self) -> int:
        """Points at which the feature map is read: N·Ho·Wo, times Do in 3-D."""
        return self.batch_size * math.prod(self.output_shape[2:])

    @cached_property
    def input_bytes(self) -> int:
        """Bytes of both operands."""
        return _bytes(self.feature_map) + _bytes(self.transform.parameters)

    @property
    def output_bytes(self) -> int:
        """Bytes of the result."""
        return math.prod(self.output_shape) * self.output_dtype.itemsize


@dataclass(frozen=True, eq=False)
class WarpGradientsProblem(_Planned):
    """The vector-Jacobian product of one warp.

    Shapes:
        grad_output   (N, C, [Do,] Ho, Wo)   dtype and device of the warp's result

    Args:
        warp: The warp that is differentiated. A uint8 feature map has no gradients.
        grad_output: Gradient of the loss with respect to the warp's result.
        needs: Which gradients to compute: ``"feature_map"``, ``"transform"``, or both.

    Raises:
        ShapeError: grad_output has not the shape of the result.
        DTypeError: grad_output has not the dtype of the result, or the feature map is uint8.
        DeviceMismatchError: grad_output lives elsewhere.
        ParameterError: needs is empty or names something else.
    """

    warp: WarpProblem
    grad_output: Tensor
    needs: Sequence[str] = ("feature_map", "transform")

    @unrecorded
    def __post_init__(self) -> None:
        checks.check_dtype("feature_map", self.warp.feature_map, checks.GRADIENT_DTYPES)
        shape, dtype = self.warp.output_shape, self.warp.output_dtype
        checks.check_cotangent("grad_output", self.grad_output, shape, dtype)
        checks.check_device("grad_output", self.grad_output, "feature_map", self.warp.feature_map)
        object.__setattr__(self, "needs", checks.checked_needs(self.needs))

    def bound(self, grad_output: Tensor, feature_map: Tensor, parameters: Tensor) -> Self:
        """As ``WarpProblem.bound``."""
        return _with(self, grad_output=grad_output, warp=self.warp.bound(feature_map, parameters))

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """As ``WarpProblem.operands``."""
        return self.grad_output, *self.warp.operands

    @property
    def names(self) -> tuple[str, str, str]:
        """As ``WarpProblem.names``."""
        return "grad_output", *self.warp.names

    @property
    def batch_size(self) -> int:
        """N after broadcasting."""
        return self.warp.batch_size

    @property
    def output_samples(self) -> int:
        """Points at which the feature map is read."""
        return self.warp.output_samples

    @cached_property
    def input_bytes(self) -> int:
        """Bytes of all three operands."""
        return self.warp.input_bytes + _bytes(self.grad_output)

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of the gradients asked for."""
        operands = {
            "feature_map": self.warp.feature_map,
            "transform": self.warp.transform.parameters,
        }
        return sum(_bytes(operands[name]) for name in self.needs)


@dataclass(frozen=True, eq=False)
class GridProblem(_Planned):
    """One run of the grid generator alone.

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
        size = _agreed_size(self.output_size, self.transform)
        coordinates = choice("coordinates", self.coordinates, Coordinates)
        flag("align_corners", self.align_corners)
        object.__setattr__(self, "output_size", size)
        object.__setattr__(self, "coordinates", coordinates)

    def bound(self, parameters: Tensor) -> Self:
        """As ``WarpProblem.bound``."""
        return _with(self, transform=_rebound(self.transform, parameters))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, [Do,] Ho, Wo, dims)."""
        return self.batch_size, *self.output_size, self.transform.dims

    @property
    def operands(self) -> tuple[Tensor]:
        """As ``WarpProblem.operands``."""
        return (self.transform.parameters,)

    @property
    def names(self) -> tuple[str]:
        """As ``WarpProblem.names``."""
        return (self.transform.argument,)

    @property
    def batch_size(self) -> int:
        """N."""
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
    def input_bytes(self) -> int:
        """Bytes of the parameters."""
        return _bytes(self.transform.parameters)

    @property
    def output_bytes(self) -> int:
        """Bytes of the grid."""
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

    def bound(self, grad_grid: Tensor, parameters: Tensor) -> Self:
        """As ``WarpProblem.bound``."""
        return _with(self, grad_grid=grad_grid, grid=self.grid.bound(parameters))

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """As ``WarpProblem.operands``."""
        return self.grad_grid, *self.grid.operands

    @property
    def names(self) -> tuple[str, str]:
        """As ``WarpProblem.names``."""
        return "grad_grid", *self.grid.names

    @property
    def batch_size(self) -> int:
        """N."""
        return self.grid.batch_size

    @property
    def output_samples(self) -> int:
        """Points of the grid."""
        return self.grid.output_samples

    @property
    def input_bytes(self) -> int:
        """Bytes of the parameters and grad_grid."""
        return self.grid.input_bytes + _bytes(self.grad_grid)

    @property
    def output_bytes(self) -> int:
        """Bytes of the gradient."""
        return _bytes(self.grid.transform.parameters)


Problem: TypeAlias = WarpProblem | WarpGradientsProblem | GridProblem | GridGradientsProblem


def _with(instance: T, **fields: object) -> T:
    """A shallow copy of a frozen instance with other values in some fields; runs no checks."""
    clone = object.__new__(type(instance))
    clone.__dict__.update(instance.__dict__, **fields)
    clone.__dict__.pop("plans", None)
    return clone


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _rebound(transform: T_Transform, parameters: Tensor) -> T_Transform:
    return _with(transform, **{transform.argument: parameters})


def _agreed_size(value: Sequence[int], transform: Transform) -> tuple[int, ...]:
    """``value`` as integers, one per axis, and the transform's own size if it has one."""
    size, own = checks.checked_output_size(value, transform.dims), transform.own_size
    if own is not None:
        checks.check_own_size(size, own)
    return size
