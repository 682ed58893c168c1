"""The public operations. Builds problems from arguments and hands them on.

Coordinates are (x, y), x to the right, y down, sizes are (height, width) and every transform
maps target to source: it says where a pixel of the output is read. In 3-D coordinates are (x, y, z)
and sizes (depth, height, width); a transform of volumes has parameters for three coordinates.
"""

import warnings
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, get_args

import torch
from torch import Tensor

from stn_engine import checks, dispatch, operators
from stn_engine.adapters.tensors import check_apart, check_out
from stn_engine.backends._results import delivered
from stn_engine.errors import Shape, ShapeError
from stn_engine.modes import (
    PLAIN_TYPES,
    has_tangents,
    is_intercepted,
    is_scripted,
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
    spec_of,
)
from stn_engine.spec import (
    Comparison,
    Coordinates,
    Domain,
    Interpolation,
    Loss,
    Padding,
    Subgradient,
    WarpSpec,
)
from stn_engine.transforms import KINDS, ParametricTransform, Transform


def warp(
    feature_map: Tensor,
    transform: Transform,
    output_size: Sequence[int] | None = None,
    *,
    interpolation: Interpolation | str = Interpolation.BILINEAR,
    padding: Padding | str = Padding.ZEROS,
    fill: float | Iterable[float] = 0.0,
    coordinates: Coordinates | str = Coordinates.NORMALIZED,
    align_corners: bool = False,
    subgradient: Subgradient | str = Subgradient.RIGHT,
    deterministic: bool = True,
) -> Tensor:
    """Returns the feature map read wherever the transform says, equations (1) and (5) in one step.

    Shapes:
        feature_map   (N, C, [D,] H, W)       float32 | float64 | float16 | bfloat16 | uint8 |
                                              uint16 | int16, or, with nearest alone, bool | int8 |
                                              int32 | uint32 | int64 | uint64
        transform     (N, ...)                float32 | float64, same device
        returns       (N, C, [Do,] Ho, Wo)    dtype and device of feature_map

    Convention:
        - the transform maps target to source; coordinates are (x, y), x right, y down; in 3-D, for
          an ``Affine`` of (N, 3, 4) and ``Flow`` or ``SamplingGrid`` of (..., 3), (x, y, z)
        - coordinates "normalized", align_corners False: -1 and 1 are the outer edges of the map
        - coordinates "normalized", align_corners True: -1 and 1 are the corner pixels' centres
        - coordinates "pixel": pixel centres at integers, the first at 0
        - padding: taps outside the map read 0 ("zeros") or fill ("fill"); coordinates outside
          are clipped ("border") or mirrored ("reflection"), those of each tap under "bicubic"
        - a point that is NaN or infinite reads fill, under every padding, and has no gradient
        - gradient: at integer coordinates that of the cell to the right and below, or 0 with
          subgradient "zero"; to the transform always 0 under "nearest", and continuous under
          "bicubic"
        - in 3-D "bilinear" is trilinear and "bicubic" tricubic: one more factor per tap

    Coordinates and sums are float64 for a float64 feature map and float32 for all others; the
    result is rounded once, a uint8 result half to even and saturated. The result is
    differentiable in the feature map (unless uint8) and the transform, to any order, in reverse
    and in forward mode, and the call can be captured by ``torch.compile(fullgraph=True)``.

    Args:
        feature_map: The images or volumes that are read. N = 1 broadcasts over the transform's N.
        transform: Any ``Transform``. N = 1 broadcasts over the feature map's N.
        output_size: ([Do,] Ho, Wo). None means the size of the transform, if it has one as
            ``SamplingGrid`` and ``Flow`` do, or else the feature map's own.
        interpolation: See ``WarpSpec``, as for all that follow.
        padding: What reads outside the feature map return.
        fill: One finite value, or one per channel.
        coordinates: Unit of the transform.
        align_corners: Where -1 and 1 lie, for normalized coordinates.
        subgradient: Slope at integer coordinates.
        deterministic: False allows unordered sums in the feature-map gradient.

    Returns:
        A new tensor.

    Raises:
        InvalidInputError: an operand is not what its type promises.
        ShapeError: operands disagree in shape, or the feature map has no pixels.
        DTypeError: a dtype is not among those above.
        DeviceMismatchError: the operands live on different devices.
        ParameterError: an option or output_size is not among the allowed values.
        BackendUnavailableError: ``STN_BACKEND`` names a backend that cannot run this.

    Example:
        >>> import torch
        >>> from stn_engine import Affine, warp
        >>> shift_right = Affine(torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]]))
        >>> warp(torch.tensor([[[[1.0, 2.0, 3.0]]]]), shift_right, coordinates="pixel")
        tensor([[[[0., 1., 2.]]]])
    """
    spec = spec_of(
        interpolation, padding, fill, coordinates, align_corners, subgradient, deterministic
    )
    _tell_tracer(output_size)
    problem = WarpProblem(feature_map, transform, output_size, spec)
    if "call" not in vars(problem) or problem.call.looks_channels_last:
        _warn_of_channels_last(problem)
    return operators.warp.of_new(problem)


def warp_gradients(  # noqa: PLR0913 - the options of warp, and needs
    grad_output: Tensor,
    feature_map: Tensor,
    transform: Transform,
    *,
    interpolation: Interpolation | str = Interpolation.BILINEAR,
    padding: Padding | str = Padding.ZEROS,
    fill: float | Iterable[float] = 0.0,
    coordinates: Coordinates | str = Coordinates.NORMALIZED,
    align_corners: bool = False,
    subgradient: Subgradient | str = Subgradient.RIGHT,
    deterministic: bool = True,
    needs: Sequence[str] = ("feature_map", "transform"),
) -> Gradients:
    """Returns the gradients of ``warp`` without running it, equations (2) to (4), (6) and (7).

    Shapes:
        grad_output   (N, C, [Do,] Ho, Wo)    dtype and device of feature_map
        feature_map   (N, C, [D,] H, W)       float32 | float64 | float16 | bfloat16
        transform     (N, ...)                float32 | float64, same device

    Convention:
        - that of ``warp``; its output size is the size of grad_output
        - the gradient of a broadcast operand is the sum over the batch

    Args:
        grad_output: Gradient of the loss with respect to the result of ``warp``.
        feature_map: As it was warped.
        transform: As it was used.
        interpolation: As for ``warp``, like all options up to needs.
        padding: What reads outside the feature map return.
        fill: One finite value, or one per channel.
        coordinates: Unit of the transform.
        align_corners: Where -1 and 1 lie, for normalized coordinates.
        subgradient: Slope at integer coordinates.
        deterministic: False allows unordered sums in the feature-map gradient.
        needs: ``"feature_map"``, ``"transform"``, or both; the rest costs nothing.

    Returns:
        ``Gradients``, shaped like the operands; None for what is not needed. Differentiable in
        grad_output, feature_map and transform, as ``warp`` is.

    Raises:
        InvalidInputError: as ``warp``, and for a grad_output that does not fit its result.
    """
    spec = spec_of(
        interpolation, padding, fill, coordinates, align_corners, subgradient, deterministic
    )
    problem = _warp_of_gradients(grad_output, feature_map, transform, spec)
    if "call" not in vars(problem) or problem.call.looks_channels_last:
        _warn_of_channels_last(problem)
    grad_output = checks.autocast("grad_output", grad_output, problem.output_dtype)
    return operators.warp_gradients.of_new(WarpGradientsProblem(problem, grad_output, needs))


@unrecorded
def _warp_of_gradients(
    grad_output: Tensor, feature_map: Tensor, transform: Transform, spec: WarpSpec
) -> WarpProblem:
    """Returns the warp problem whose result has the size of ``grad_output``."""
    checks.check_transform(transform, KINDS)
    checks.check_tensor("grad_output", grad_output)
    dims = transform.dims
    if grad_output.dim() != 2 + dims:
        expected = ("N", "C", *checks.target_axes(dims))
        checks.check_shape("grad_output", grad_output, [expected], "Add or remove axes.")
    return WarpProblem(feature_map, transform, tuple(grad_output.shape[2:]), spec)


_suspected: list[Sequence[int]] = []
"""The first map of the process that looked wrong: one warning is enough."""

_BEHIND_NO_GRAD = 4
"""Frames from a warning to the caller of a function that torch.no_grad wraps."""


def _warn_of_channels_last(problem: WarpProblem, stacklevel: int = 3) -> None:
    """Warns once of a map with sizes as of (N, H, W, C).

    Such are more than 4 channels and rows, but at most 4 columns.
    """
    if torch.compiler.is_compiling() or problem.output_shape[1] <= 4 or _suspected:
        return
    shape = _shape(problem.feature_map)
    if min(shape[2:-1]) > 4 >= shape[-1]:
        _suspected.append(shape)
        warnings.warn(
            f"feature_map: expected (N, C, [D,] H, W), got {shape}, which looks like "
            "(N, [D,] H, W, C). If it is, give feature_map.movedim(-1, 1).",
            stacklevel=stacklevel,
        )


@unrecorded
def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def generate_grid(
    transform: ParametricTransform,
    output_size: Sequence[int],
    *,
    coordinates: Coordinates | str = Coordinates.NORMALIZED,
    align_corners: bool = False,
) -> Tensor:
    """Returns the source point of every target pixel, such as equation (5) for ``Affine``.

    Shapes:
        transform   (N, ...)                   float32 | float64
        returns     (N, [Do,] Ho, Wo, dims)    same dtype and device, last axis (x, y[, z])

    Convention:
        - the transform maps target to source; it and the grid are in the same unit
        - target pixel (i, j) lies at x_t = (2j + 1)/Wo - 1 (normalized), at 2j/(Wo - 1) - 1
          (normalized, align_corners; 0 if Wo = 1), or at j (pixel); y_t likewise from i and Ho,
          and z_t from the plane and Do

    Args:
        transform: Any ``Transform`` but ``SamplingGrid``.
        output_size: (Ho, Wo), or (Do, Ho, Wo) for a transform in 3-D.
        coordinates: Unit of the transform and of the grid.
        align_corners: Where -1 and 1 lie, for normalized coordinates.

    Returns:
        A new tensor, differentiable in the transform as the result of ``warp`` is.

    Raises:
        InvalidInputError: transform is not parametric.
        ShapeError: output_size is not that of a ``Flow``.
        ParameterError: an option or output_size is not among the allowed values.
    """
    _tell_tracer(output_size)
    return operators.generate_grid(GridProblem(transform, output_size, coordinates, align_corners))


def _tell_tracer(output_size: object) -> None:
    """Makes ``torch.jit.trace`` warn of a size that it would record as a constant."""
    if is_scripted() and isinstance(output_size, Sequence):
        for size in output_size:
            if isinstance(size, Tensor) and not size.is_floating_point():
                int(size)


def generate_grid_gradients(
    grad_grid: Tensor,
    transform: ParametricTransform,
    *,
    coordinates: Coordinates | str = Coordinates.NORMALIZED,
    align_corners: bool = False,
) -> Tensor:
    """Returns the gradient of the parameters through ``generate_grid``, equations (6) to (8).

    Shapes:
        grad_grid   (N, [Do,] Ho, Wo, dims)   dtype and device of the parameters
        transform   (N, ...)                  float32 | float64
        returns     as the parameters         same dtype and device

    Convention:
        - that of ``generate_grid``; its output size is the size of grad_grid
        - sums run in float64 over a fixed tree

    Args:
        grad_grid: Gradient of the loss with respect to the grid.
        transform: As it was used.
        coordinates: Unit of the transform and of the grid.
        align_corners: Where -1 and 1 lie, for normalized coordinates.

    Returns:
        A new tensor, differentiable in grad_grid and the transform as that of ``warp`` is.

    Raises:
        InvalidInputError: as ``generate_grid``, and for a grad_grid that does not fit its result.
    """
    problem = _generation_into(grad_grid, transform, coordinates, align_corners)
    grad_grid = checks.autocast("grad_grid", grad_grid, problem.output_dtype)
    return operators.generate_grid_gradients(GridGradientsProblem(problem, grad_grid))


@unrecorded
def _generation_into(grad_grid: Tensor, transform: ParametricTransform, *unit: Any) -> GridProblem:
    """Returns the grid problem whose grid has the size of ``grad_grid``."""
    checks.check_transform(transform, get_args(ParametricTransform))
    checks.check_tensor("grad_grid", grad_grid)
    expected: Shape = ("N", *checks.target_axes(transform.dims), transform.dims)
    checks.check_shape("grad_grid", grad_grid, [expected], "Add or remove axes.")
    return GridProblem(transform, grad_grid.shape[1:-1], *unit)


def objective(  # noqa: PLR0913 - the options of warp, and how maps are compared
    moving: Tensor,
    fixed: Tensor,
    transform: Transform,
    *,
    weights: Tensor | None = None,
    loss: Loss | str = Loss.SSD,
    delta: float = 1.0,
    domain: Domain | str = Domain.OVERLAP,
    interpolation: Interpolation | str = Interpolation.BILINEAR,
    padding: Padding | str = Padding.ZEROS,
    fill: float | Iterable[float] = 0.0,
    coordinates: Coordinates | str = Coordinates.NORMALIZED,
    align_corners: bool = False,
    subgradient: Subgradient | str = Subgradient.RIGHT,
    needs: Sequence[str] = ("gradient",),
) -> Objective:
    """Returns how far the warp of one map is from another, with gradients, in one pass (section 7).

    What a registration asks for at every step. V is the warp of the moving map to the size of the
    fixed map F, e = V - F at every target point and channel, w the weight of the point, and
    M = C·Σw:

    - ``"ssd"``: Σ w·e² / M
    - ``"huber"``: Σ w·h(e) / M with h(e) = e²/2 up to |e| = delta, and delta·(|e| - delta/2) beyond
    - ``"ncc"``: 1 - r, where r is the weighted correlation of V and F over all channels

    Neither V nor its gradient is ever in memory on backends with kernels for it.

    Shapes:
        moving      (N, C, [D,] H, W)       float32 | float64 | float16 | bfloat16
        fixed       (N, C, [Do,] Ho, Wo)    dtype and device of moving
        transform   (N, ...)                float32 | float64, same device
        weights     (N, 1, [Do,] Ho, Wo)    dtype and device of moving; numbers >= 0
        value       (N,)                    float64
        count       (N,)                    float64, Σw
        gradient    (N, ...)                of each item's value by its own parameters; their dtype
        gauss_newton   (N, K, K)            float64; K parameters an item, row by row

    Convention:
        - that of ``warp``; N of every operand may be 1: many thetas for one pair are one call
        - with domain "overlap" points that read outside [0, W - 1] x [0, H - 1] (in 3-D, and the
          depth) weigh nothing, with "all" they read what padding says; the boundary of the
          overlap has no gradient
        - points of weight 0 are left out whatever the maps hold there, NaN included
        - where nothing is counted the value is 0, for "ncc" 1, and the gradient 0, as for "ncc"
          where a map is constant: its deviation below 2e-6 of its root mean square
        - gauss_newton is 2/M·Σ w·JᵀJ for "ssd" and 1/M·Σ w·JᵀJ over |e| <= delta for "huber",
          J the gradient of V by the parameters

    Args:
        moving: The map that is warped.
        fixed: The map that it shall look like.
        transform: Any ``Transform``.
        weights: How much each target point counts, such as a mask of 0 and 1; None: all 1.
        loss: ``"ssd"``, ``"huber"`` or ``"ncc"``.
        delta: Where ``"huber"`` becomes a line.
        domain: ``"overlap"`` or ``"all"``.
        interpolation: As for ``warp``, like all options up to needs.
        padding: What reads outside the moving map return.
        fill: One finite value, or one per channel.
        coordinates: Unit of the transform.
        align_corners: Where -1 and 1 lie, for normalized coordinates.
        subgradient: Slope at integer coordinates.
        needs: ``"gradient"``, ``"gauss_newton"``, both or nothing; the rest costs nothing. The
            matrix is there for transforms that are matrices, by ``"ssd"`` and ``"huber"``.

    Returns:
        An ``Objective``. Its value is differentiable: in the transform by the gradient that is
        computed anyway, in all operands and to any order by composition. All else is constant.

    Raises:
        InvalidInputError: an operand is not what its type promises.
        ShapeError: operands disagree in shape, or the moving map has no pixels.
        DTypeError: a dtype is not among those above; integer maps have no gradients.
        DeviceMismatchError: the operands live on different devices.
        ParameterError: an option is not among the allowed values.
        BackendUnavailableError: ``STN_BACKEND`` names a backend that cannot run this.

    Example:
        >>> import torch
        >>> from stn_engine import Translation, objective
        >>> ramp = torch.arange(6.0).view(1, 1, 1, 6)
        >>> right = Translation(torch.tensor([[1.0, 0.0]]))  # reads one pixel further right
        >>> found = objective(ramp, ramp, right, coordinates="pixel", padding="border")
        >>> found.value.item(), found.count.item()
        (1.0, 5.0)
        >>> found.gradient  # 2·1·1 at four points; the fifth reads the border, without a slope
        tensor([[1.6000, 0.0000]])
    """
    spec = spec_of(interpolation, padding, fill, coordinates, align_corners, subgradient, True)
    comparison = Comparison(loss=loss, delta=delta, domain=domain)
    warped = _warp_of_objective(moving, fixed, transform, spec)
    problem = ObjectiveProblem(warped, fixed, weights, comparison, needs)
    if "call" not in vars(warped) or warped.call.looks_channels_last:
        _warn_of_channels_last(warped)
    return operators.objective.of_new(problem)


@unrecorded
def _warp_of_objective(
    moving: Tensor, fixed: Tensor, transform: Transform, spec: WarpSpec
) -> WarpProblem:
    """Returns the warp problem of a moving map to the size of a fixed one."""
    checks.check_transform(transform, KINDS)
    dims = transform.dims
    checks.check_feature_map(moving, type(transform).__name__, dims, "moving")
    checks.check_dtype("moving", moving, checks.GRADIENT_DTYPES)
    checks.check_tensor("fixed", fixed)
    if fixed.dim() != 2 + dims:
        expected: Shape = ("N", "C", *checks.target_axes(dims))
        checks.check_shape("fixed", fixed, [expected], "Add or remove axes.")
    own = transform.own_size
    if own is not None and tuple(fixed.shape[2:]) != own:
        expected = ("N", moving.shape[1], *own)
        raise ShapeError("fixed", [expected], fixed.shape, "Pass the transform's own size.")
    checks.check_device(transform.argument, transform.parameters, "moving", moving)
    return WarpProblem(moving, transform, tuple(fixed.shape[2:]), spec)


@torch.no_grad()
def objective_ragged(problems: Sequence[ObjectiveProblem]) -> list[Objective]:
    """Computes ``objective`` of many problems of any sizes and options; records no graph.

    Args:
        problems: One call each.

    Returns:
        One result per problem, in order, each bit for bit that of ``objective`` alone.

    Raises:
        BackendUnavailableError: no backend can run one of the problems.
    """
    checks.check_problems(problems, ObjectiveProblem)
    if _are_watched(problems):
        return [operators.objective(one) for one in problems]
    return dispatch.objective(problems)


@torch.no_grad()
def warp_ragged(
    problems: Sequence[WarpProblem], out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Computes ``warp`` of many problems of any sizes, dtypes and specs; records no graph.

    Args:
        problems: One call each.
        out: Where to write the results, one dense tensor per problem of the result's shape, dtype
            and device, contiguous or channels last. None: new memory.

    Returns:
        One result per problem, in order, each bit for bit that of ``warp`` alone; ``out``, if it
        was given. New results may share storage with each other, never with operands.

    Raises:
        BackendUnavailableError: no backend can run one of the problems.
        InvalidInputError: ``out`` does not fit, or shares memory with operands or with itself.
    """
    checks.check_problems(problems, WarpProblem)
    if out is not None:
        checks.check_count("out", out, len(problems))
        for i, (problem, memory) in enumerate(zip(problems, out, strict=True)):
            check_out(f"out[{i}]", memory, problem.output_shape, problem.feature_map)
        memories = [(f"out[{i}]", memory) for i, memory in enumerate(out)]
        _claim(memories, problems)
    # A call that is known and does not look so is not looked at again: the way of steady callers.
    for problem in problems:
        if "call" not in vars(problem) or problem.call.looks_channels_last:
            _warn_of_channels_last(problem, _BEHIND_NO_GRAD)
    if _are_watched(problems):
        return delivered([operators.warp(one) for one in problems], out)
    return dispatch.warp(problems, out=out)


@torch.no_grad()
def warp_gradients_ragged(
    problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None = None
) -> list[Gradients]:
    """Computes ``warp_gradients`` of many problems; otherwise as ``warp_ragged``.

    Of ``out``, parts that a problem does not need are ignored and may be None.
    """
    checks.check_problems(problems, WarpGradientsProblem)
    if out is not None:
        checks.check_count("out", out, len(problems))
        out = [
            _needed(f"out[{i}]", *pair) for i, pair in enumerate(zip(problems, out, strict=True))
        ]
        memories = [
            (f"out[{i}].{name}", memory)
            for i, gradients in enumerate(out)
            for name, memory in vars(gradients).items()
            if memory is not None
        ]
        _claim(memories, problems)
    for problem in problems:
        warped = problem.warp
        if "call" not in vars(warped) or warped.call.looks_channels_last:
            _warn_of_channels_last(warped, _BEHIND_NO_GRAD)
    if _are_watched(problems):
        return delivered([operators.warp_gradients(one) for one in problems], out)
    return dispatch.warp_gradients(problems, out=out)


def _claim(memories: Sequence[tuple[str, Tensor]], problems: Sequence[Problem]) -> None:
    """Checks that results overlap nothing else, and marks their memory as changed for autograd."""
    check_apart(memories, (operand for problem in problems for operand in problem.operands))
    for _, memory in memories:
        if not memory.is_inference():
            torch.autograd.graph.increment_version(memory)


def _are_watched(problems: Sequence[Problem]) -> bool:
    """Returns whether a mode of torch follows operations, and so must see them one by one."""
    return (
        is_intercepted()
        or is_scripted()
        or has_tangents()
        or not PLAIN_TYPES.issuperset(
            map(type, chain.from_iterable([one.operands for one in problems]))
        )
    )


def _needed(argument: str, problem: WarpGradientsProblem, out: Gradients) -> Gradients:
    """Returns the parts of ``out`` that a problem writes, checked."""
    _, *operands = problem.operands
    parts: list[Tensor | None] = []
    for name, like in zip(checks.NEEDS, operands, strict=True):
        memory = getattr(out, name) if name in problem.needs else None
        if name in problem.needs:
            check_out(f"{argument}.{name}", memory, tuple(like.shape), like)
        parts.append(memory)
    return Gradients(*parts)


@torch.no_grad()
def generate_grid_ragged(problems: Sequence[GridProblem]) -> list[Tensor]:
    """Computes ``generate_grid`` of many problems; otherwise as ``warp_ragged``."""
    checks.check_problems(problems, GridProblem)
    if _are_watched(problems):
        return [operators.generate_grid(one) for one in problems]
    return dispatch.generate_grid(problems)


@torch.no_grad()
def generate_grid_gradients_ragged(problems: Sequence[GridGradientsProblem]) -> list[Tensor]:
    """Computes ``generate_grid_gradients`` of many problems, else as ``warp_ragged``."""
    checks.check_problems(problems, GridGradientsProblem)
    if _are_watched(problems):
        return [operators.generate_grid_gradients(one) for one in problems]
    return dispatch.generate_grid_gradients(problems)
