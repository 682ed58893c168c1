"""Stand-ins for torch.nn.functional: its signatures, values, errors and warnings.

Torch has the first word on arguments: whatever does not look like a call it would take is handed
to torch itself, which raises its own error.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from stn_engine import checks, operators
from stn_engine.modes import is_intercepted, is_scripted, unrecorded
from stn_engine.problem import GridProblem, WarpProblem, spec_of
from stn_engine.spec import Coordinates, Interpolation, Subgradient
from stn_engine.transforms import Affine, SamplingGrid

_ALIGN_CORNERS_WARNING = (
    "Default grid_sample and affine_grid behavior has changed to align_corners=False since "
    "1.3.0. Please specify align_corners=True if the old behavior is desired. "
    "See the documentation of grid_sample for details."
)


def grid_sample(
    input: Tensor,  # noqa: A002 - the signature of torch.nn.functional
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,  # noqa: FBT001 - the signature of torch.nn.functional
) -> Tensor:
    """Replaces ``torch.nn.functional.grid_sample``: same values, gradients and errors.

    Shapes:
        input     (N, C, [D,] H, W)           float32 | float64 | float16 | bfloat16
        grid      (N, [Do,] Ho, Wo, 2 | 3)    same dtype and device
        returns   (N, C, [Do,] Ho, Wo)        same dtype and device

    Convention:
        - that of ``warp`` with normalized coordinates and subgradient "right"
        - a NaN or infinite point reads 0 and has no gradient, on every device

    Args:
        input: The feature map.
        grid: Source points (x, y), for a volume (x, y, z).
        mode: ``"bilinear"``, ``"nearest"`` or, for images only as in torch, ``"bicubic"``.
        padding_mode: ``"zeros"``, ``"border"`` or ``"reflection"``.
        align_corners: None means False and warns, as in torch.

    Raises:
        Exception: whatever torch raises for arguments that it refuses.
    """
    if align_corners is None:
        warnings.warn(_ALIGN_CORNERS_WARNING, stacklevel=2)
        align_corners = False
    feature_map, points = _autocast(input, grid)
    # Whatever torch refuses, or might treat in a way of its own, torch itself gets: its errors are
    # the specification, and a copy of them would age.
    if not _is_grid_sample_call(feature_map, points, mode, padding_mode, align_corners):
        return torch_functional.grid_sample(input, grid, mode, padding_mode, align_corners)
    spec = spec_of(mode, padding_mode, 0.0, _UNIT, align_corners, *_SLOPES)
    problem = WarpProblem(
        _with_contiguous_gradient(feature_map),
        # The engine wants grids in float32 or float64; every half is exact in float32.
        SamplingGrid(_at_least_float32("grid", points)),
        spec=spec,
    )
    # torch's sampler returns contiguous memory, whatever the format of its input.
    result = operators.warp.of_new(problem).contiguous()
    if result.stride(-1) != 1:  # one pixel or none, whose strides could be those of channels last
        return result.clone(memory_format=torch.contiguous_format)
    return result


_MODES = frozenset(Interpolation)
_UNIT = Coordinates.NORMALIZED
_SLOPES = (Subgradient.RIGHT, True)
"""Options behind align_corners that torch's sampler lacks: subgradient, deterministic."""


def affine_grid(
    theta: Tensor,
    size: Sequence[int],
    align_corners: bool | None = None,  # noqa: FBT001 - the signature of torch.nn.functional
) -> Tensor:
    """Replaces ``torch.nn.functional.affine_grid``: same values, gradients and errors.

    Shapes:
        theta     (N, 2, 3), in 3-D (N, 3, 4)    float32 | float64 | float16 | bfloat16
        returns   (N, [Do,] Ho, Wo, 2 | 3)       same dtype and device

    Convention:
        - that of ``generate_grid`` with normalized coordinates

    Args:
        theta: Affine parameters, target to source.
        size: (N, C, [Do,] Ho, Wo).
        align_corners: None means False and warns, as in torch.

    Raises:
        Exception: whatever torch raises for arguments that it refuses.
    """
    if align_corners is None:
        warnings.warn(_ALIGN_CORNERS_WARNING, stacklevel=2)
        align_corners = False
    if not _is_affine_grid_call(theta, size, align_corners):
        # torch takes any sequence and quotes it in its errors.
        return torch_functional.affine_grid(theta, size, align_corners)  # type: ignore[arg-type]
    transform = Affine(_at_least_float32("theta", theta))
    problem = GridProblem(transform, size[2:], Coordinates.NORMALIZED, align_corners)
    # Computed in float32 or more, and rounded once to the type of torch's product.
    return operators.generate_grid(problem).to(_dtype_of_products(theta))


@unrecorded
def _is_grid_sample_call(
    feature_map: object, grid: object, mode: str, padding: str, align_corners: object
) -> bool:
    """Returns whether torch takes these arguments; if in doubt, False."""
    return (
        isinstance(feature_map, Tensor)
        and isinstance(grid, Tensor)
        and not (feature_map.is_nested or grid.is_nested)
        and feature_map.dim() == grid.dim() in {4, 5}
        and feature_map.shape[0] == grid.shape[0]
        # torch allows empty batches and channels, but no empty image.
        and 0 not in feature_map.shape[2:]
        and grid.shape[-1] == grid.dim() - 2
        and feature_map.dtype == grid.dtype
        and feature_map.dtype in checks.GRADIENT_DTYPES
        and feature_map.device == grid.device
        and feature_map.layout == grid.layout == torch.strided
        and not feature_map.is_meta
        and mode in (_MODES if grid.dim() == 4 else {"nearest", "bilinear"})
        and padding in {"zeros", "border", "reflection"}
        and isinstance(align_corners, bool)
    )


@unrecorded
def _is_affine_grid_call(theta: object, size: Sequence[int], align_corners: object) -> bool:
    """Returns whether torch takes these arguments without a warning; if in doubt, False."""
    return (
        isinstance(theta, Tensor)
        and not (theta.is_nested or theta.is_meta)
        and theta.dtype in checks.GRADIENT_DTYPES
        and theta.layout == torch.strided
        and len(size) in {4, 5}
        and all(type(extent) is int and extent > 0 for extent in size)
        and theta.shape == (size[0], len(size) - 2, len(size) - 1)
        and isinstance(align_corners, bool)
        # torch warns of an axis of one pixel, whose corners are the same point.
        and not (align_corners and 1 in size[2:])
    )


def _autocast(feature_map: Any, grid: Any) -> tuple[Any, Any]:
    """Returns both as autocast casts them for torch's sampler; what is no tensor is left as it is.

    On the CPU the sampler is among the operations that run in float32, elsewhere among those that
    run in the widest type of their operands.
    """
    if not (isinstance(feature_map, Tensor) and isinstance(grid, Tensor)):
        return feature_map, grid
    if feature_map.device.type != "cpu" and torch.float32 not in {feature_map.dtype, grid.dtype}:
        return feature_map, grid
    return checks.autocast("input", feature_map, torch.float32), checks.autocast(
        "grid", grid, torch.float32
    )


def _dtype_of_products(theta: Tensor) -> torch.dtype:
    """Returns the dtype of torch's matrix products with theta; autocast has its own."""
    device = theta.device.type
    if theta.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return theta.dtype


def _with_contiguous_gradient(feature_map: Tensor) -> Tensor:
    """Returns ``feature_map`` with a gradient that is contiguous, as torch's is."""
    if feature_map.is_contiguous() or not feature_map.requires_grad or _is_captured():
        return feature_map
    # The hook stands on a view of its own: on the caller's tensor it would stay for later uses.
    alias = feature_map.view_as(feature_map)
    alias.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]  # torch
    return alias


def _is_captured() -> bool:
    """Returns whether a mode records this call; its backward pass has no hooks."""
    return torch.compiler.is_compiling() or is_intercepted() or is_scripted()


def _at_least_float32(argument: str, coordinates: Tensor) -> Tensor:
    if coordinates.dtype in checks.HALF_DTYPES:
        checks.check_memory(argument, coordinates)
        return coordinates.float()
    return coordinates
