"""The sampler and its adjoint: section 1 in torch, differentiable as it stands.

Every step is elementwise, a gather, a scatter in a fixed order, or a fixed tree of additions,
so no result depends on what else is in the batch.
"""

import math

import torch
from torch import Tensor

from stn_engine.backends._labels import stored_fill, stored_labels
from stn_engine.backends.torch.lattices import compute_dtype
from stn_engine.backends.torch.points import source_points, source_points_adjoint
from stn_engine.backends.torch.taps import Taps, coordinate_slope, find_taps
from stn_engine.backends.torch.trees import tree_sum
from stn_engine.checks import GRADIENT_DTYPES, LABEL_DTYPES
from stn_engine.problem import Gradients, WarpGradientsProblem, WarpProblem
from stn_engine.spec import Interpolation, Padding


def sample(problem: WarpProblem) -> Tensor:
    """Evaluates equation (1): V, (N, C, [Do,] Ho, Wo)."""
    if 0 in problem.output_shape:
        return problem.feature_map.new_zeros(problem.output_shape)
    taps = find_taps(source_points(problem), problem)
    values = sum_of_taps(problem, taps, read_taps(problem, taps))
    return _stored(values, problem.output_dtype).view(problem.output_shape)


def sample_adjoint(problem: WarpGradientsProblem) -> Gradients:
    """Returns equations (2) to (4), and what of the generator's adjoint is needed after them."""
    warp = problem.warp
    if 0 in warp.output_shape:
        return _no_gradients(problem)
    points = source_points(warp)
    taps = find_taps(points, warp)
    grad = problem.grad_output.to(compute_dtype(warp)).flatten(2)
    grad_feature_map = (
        _feature_map_gradient(warp, taps, grad) if "feature_map" in problem.needs else None
    )
    if "transform" not in problem.needs:
        return Gradients(grad_feature_map, None)
    return Gradients(grad_feature_map, _transform_gradient(warp, points, taps, grad))


def accumulate(index: Tensor, terms: Tensor, size: int, *, ordered: bool) -> Tensor:
    """Sums ``terms`` (N, C, T) into ``size`` bins per channel, by ``index`` (N or 1, T).

    ``ordered`` asks for a reproducible sum where a plain scatter uses atomics.
    """
    n, channels, _ = terms.shape
    bins = terms.new_zeros(n, channels, size)
    index = index[:, None].expand(terms.shape)
    if not ordered:
        return bins.scatter_add_(2, index, terms)
    rows = torch.arange(n * channels, device=terms.device).view(n, channels, 1)
    flat = (rows * size + index).flatten()
    return bins.view(-1).index_put_((flat,), terms.flatten(), accumulate=True).view_as(bins)


def read_taps(problem: WarpProblem, taps: Taps) -> Tensor:
    """Returns U at every tap, (N, C, T, P), in compute dtype; labels as they are stored."""
    n, channels = problem.output_shape[:2]
    pixels = _pixels(problem)
    index = taps.index.flatten(1)[:, None].expand(n, channels, -1)
    return pixels.expand(n, -1, -1).gather(2, index).view(n, channels, *taps.index.shape[1:])


def sum_of_taps(problem: WarpProblem, taps: Taps, values: Tensor) -> Tensor:
    """Returns V, (N, C, P), in compute dtype, of the values of its taps."""
    if problem.spec.interpolation != Interpolation.NEAREST:
        values = values * taps.product[:, None]
    return tree_sum(values, 2)


def _pixels(problem: WarpProblem) -> Tensor:
    """Returns the pixels of U and, behind them, the two constants that taps may name instead."""
    spec, feature_map = problem.spec, problem.feature_map
    if feature_map.dtype in LABEL_DTYPES:
        fill: tuple[float, ...] = stored_fill(spec.fill, feature_map.dtype)
        feature_map = stored_labels(feature_map)
        dtype = feature_map.dtype
    else:
        fill, dtype = tuple(map(float, spec.fill)), compute_dtype(problem)
    outside = fill if spec.padding == Padding.FILL else (0,) * len(fill)
    pairs = tuple(zip(outside, fill, strict=True))
    # Not kept like the constants that sizes decide: callers choose fill, one per channel.
    constants = torch.tensor(pairs, dtype=dtype, device=feature_map.device)
    constants = constants.expand(*feature_map.shape[:2], 2)
    return torch.cat((feature_map.flatten(2).to(dtype), constants), 2)


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype in LABEL_DTYPES:
        return values.view(dtype)
    if dtype not in GRADIENT_DTYPES:
        limits = torch.iinfo(dtype)
        values = values.round().clamp(limits.min, limits.max)
    return values.to(dtype)


def _feature_map_gradient(problem: WarpProblem, taps: Taps, grad: Tensor) -> Tensor:
    """Scatters G times equation (4); what falls on the constants is dropped."""
    feature_map = problem.feature_map
    terms = (grad[:, :, None] * taps.product[:, None]).flatten(2)
    index = taps.index.flatten(1)
    if feature_map.shape[0] != terms.shape[0]:
        # One map read by the whole batch: all terms go straight into its only gradient.
        index = index.expand(terms.shape[0], -1).reshape(1, -1)
        terms = terms.transpose(0, 1).flatten(1)[None]
    pixels = math.prod(feature_map.shape[2:])
    ordered = problem.spec.deterministic and terms.is_cuda
    bins = accumulate(index, terms, pixels + 2, ordered=ordered)
    return bins[:, :, :pixels].to(feature_map.dtype).reshape(feature_map.shape)


def _transform_gradient(problem: WarpProblem, points: Tensor, taps: Taps, grad: Tensor) -> Tensor:
    parameters = problem.transform.parameters
    if problem.spec.interpolation == Interpolation.NEAREST:
        return torch.zeros_like(parameters)
    by_coordinate = coordinate_gradient(read_taps(problem, taps), taps, grad)
    slope = coordinate_slope(points, problem)
    # Selected rather than multiplied: 0 times an infinite gradient would be NaN.
    grad_points = torch.where(slope == 0, 0, by_coordinate * slope)
    if parameters.shape[0] != grad_points.shape[0]:
        grad_points = tree_sum(grad_points, 0)[None]
    return source_points_adjoint(problem, grad_points)


def coordinate_gradient(values: Tensor, taps: Taps, grad: Tensor) -> Tensor:
    """Returns derivatives (2) and (3) of V, or their bicubic form, times G: (N, dims, P)."""
    # Differences to one corner keep a large common offset of the taps out of the sums.
    contrast = tree_sum(grad[:, :, None] * (values - values[:, :, :1]), 1)
    dims, k = taps.weight.shape[1:3]
    contrast = contrast.view(-1, *[k] * dims, contrast.shape[2])  # taps along z first, x last
    return torch.stack([_derivative(contrast, taps, axis) for axis in range(dims)], 1)


def _derivative(contrast: Tensor, taps: Taps, axis: int) -> Tensor:
    """Sums taps times their slopes along one axis and their weights along the others: (N, P)."""
    dims = taps.weight.shape[1]
    others = [taps.weight[:, other] for other in reversed(range(dims)) if other != axis]
    total = contrast.movedim(dims - axis, 1)
    for factor in (taps.slope[:, axis], *others):
        aligned = factor[(..., *[None] * (total.dim() - 3), slice(None))]
        total = tree_sum(total * aligned, 1)
    return total


def _no_gradients(problem: WarpGradientsProblem) -> Gradients:
    operands = {
        "feature_map": problem.warp.feature_map,
        "transform": problem.warp.transform.parameters,
    }
    zeros = {name: torch.zeros_like(operands[name]) for name in problem.needs}
    return Gradients(zeros.get("feature_map"), zeros.get("transform"))
