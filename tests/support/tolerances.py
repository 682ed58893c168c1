"""The one table of tolerances of the engine, and where each number comes from.

Everything is relative to the float64 oracle run on the same inputs. No test widens an entry.

Forward, absolute, for a peak value max(|U|, |fill|), a largest difference of neighbouring pixels
|∇U|, and coordinates that reach up to S pixels, on d axes:

    arithmetic   the d factors of a weight, their product with U and a sum of 2^d terms, at most 12
                 roundings or 8e-7 in compute precision: 2e-6·peak for float32; 1e-12·peak for
                 float64, where the coordinate term is below it as well
    coordinate   d products and d sums of size S, 2·d roundings, move the read point by 2·d·2⁻²⁴·S
                 along each of the d axes
    storage      half a unit in the last place of the output dtype: 2⁻¹¹ and 2⁻⁸ relative for the
                 half types, and half a grey level for uint8, uint16 and int16

Bicubic weights are negative in part: their absolute sum is up to 1.375 per axis, that of their
slopes up to 3 where bilinear has 2. Both terms grow by the products, at most 1.5·1.375^(d-1).

Gradients, relative in norm: 1e-5 for float32 (coordinates of a few dozen pixels put 1e-6 into a
weight), 1e-12 for float64, and the storage term of the half types on top.
"""

import torch
from torch import Tensor

from stn_engine import WarpSpec

ARITHMETIC = {torch.float64: 1e-12, torch.float32: 2e-6}
COORDINATE = {torch.float64: 0.0, torch.float32: 2 * 2.0**-24}
"""Per axis of the target that a coordinate is made of."""
STORAGE = {
    torch.float64: 0.0,
    torch.float32: 0.0,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
GREY_LEVEL = {torch.uint8: 0.5, torch.uint16: 0.5, torch.int16: 0.5}
GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-5}
ADJOINT_IDENTITY = 1e-12


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision in which a map of this dtype is warped."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward_tolerance(feature_map: Tensor, spec: WarpSpec, extent: float) -> float:
    """Largest allowed absolute error of a warp of ``feature_map`` read up to ``extent`` pixels."""
    dtype = feature_map.dtype
    computed = compute_dtype(dtype)
    values = torch.cat((feature_map.double().flatten(), torch.tensor((0.0, *spec.fill)).double()))
    dims = feature_map.dim() - 2
    amplification = 1.5 * 1.375 ** (dims - 1) if spec.interpolation == "bicubic" else 1.0
    peak = amplification * values.abs().max().item()
    contrast = amplification * (values.max() - values.min()).item()
    # The error per axis times the largest difference, on every axis.
    moved = dims * (dims * COORDINATE[computed] * max(extent, 1.0)) * contrast
    exact = ARITHMETIC[computed] * peak + moved
    return exact + STORAGE.get(dtype, 0.0) * (peak + exact) + GREY_LEVEL.get(dtype, 0.0)


def gradient_tolerance(feature_map: torch.dtype, result: torch.dtype) -> float:
    """Largest allowed error of a gradient, relative in norm."""
    computed = {compute_dtype(feature_map), compute_dtype(result)}
    return max(GRADIENT[dtype] for dtype in computed) + STORAGE[result]


def assert_close_in_norm(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """‖actual - expected‖ ≤ tolerance·‖expected‖, in float64."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm().item()
    bound = tolerance * expected.double().norm().item()
    assert error <= bound, f"error {error:.3g} exceeds {bound:.3g}"
