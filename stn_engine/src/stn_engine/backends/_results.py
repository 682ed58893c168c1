"""Memory for the results of fused kernels."""

import torch
from torch import Tensor

from stn_engine.problem import Gradients, WarpGradientsProblem, WarpProblem
from stn_engine.spec import Interpolation


def output_of(problem: WarpProblem) -> Tensor:
    """Memory for V."""
    return _memory(problem.feature_map, problem.output_shape)


def _memory(feature_map: Tensor, shape: tuple[int, ...]) -> Tensor:
    """New memory for a map like ``feature_map``: channels last if it is, else contiguous."""
    if not feature_map.is_contiguous():
        last = torch.channels_last if feature_map.dim() == 4 else torch.channels_last_3d
        if feature_map.is_contiguous(memory_format=last):
            return torch.empty(
                shape, dtype=feature_map.dtype, device=feature_map.device, memory_format=last
            )
    return feature_map.new_empty(shape)


def gradients_of(problem: WarpGradientsProblem) -> Gradients:
    """Memory for the gradients that are needed; zeros where the kernels have nothing to add."""
    warp = problem.warp
    feature_map, parameters = warp.feature_map, warp.transform.parameters
    empty = 0 in warp.output_shape
    flat = empty or warp.spec.interpolation == Interpolation.NEAREST
    of_map = of_transform = None
    if "feature_map" in problem.needs:
        of_map = _memory(feature_map, feature_map.shape)
        of_map = of_map.zero_() if empty else of_map
    if "transform" in problem.needs:
        new = parameters.new_zeros if flat else parameters.new_empty
        of_transform = new(parameters.shape)
    return Gradients(of_map, of_transform)
