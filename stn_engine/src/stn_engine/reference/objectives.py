"""Section 7: how far a warped map is from a fixed one, and the gradient of that."""

from dataclasses import dataclass

import numpy as np

from stn_engine.reference.arrays import Array, Mask
from stn_engine.reference.lattices import source_pixels
from stn_engine.reference.sampling import Sampling, sampler_adjoint

CONSTANT_VARIANCE = 2.0**-38
"""A variance below this part of the mean square is 0: what is left of it is rounding."""


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """The options of one comparison."""

    loss: str = "ssd"
    delta: float = 1.0


@dataclass(frozen=True)
class Compared:
    """What the comparison of one item comes to.

    Attributes:
        value: The loss.
        count: The sum of the weights.
        G: The gradient of the loss by V, (C, H', W').
        curvature: The weights in the Gauss-Newton matrix, (C, H', W').
    """

    value: float
    count: float
    G: Array
    curvature: Array


@np.errstate(all="ignore")
def overlap(grid: Array, size: tuple[int, ...], options: Sampling) -> Mask:
    """Returns whether source points are within the outermost pixel centres of a map (H, W)."""
    inside = np.ones(grid.shape[:-1], dtype=bool)
    for axis, width in enumerate(reversed(size)):
        x = source_pixels(
            grid[..., axis], width, options.coordinates, align_corners=options.align_corners
        )
        inside &= (x >= 0) & (x <= width - 1)
    return inside


def compare(V: Array, F: Array, w: Array, options: Comparing) -> Compared:
    """Evaluates the table of section 7 for V and F (C, H', W') and weights (H', W')."""
    count = float(w.sum())
    M = len(V) * count
    none = np.zeros_like(V)
    # What has no weight is left out, whatever it is: 0 times NaN would be NaN.
    V, F = np.where(w == 0, 0.0, V), np.where(w == 0, 0.0, F)
    if options.loss == "ncc":
        return _correlation(V, F, w, count)
    if M == 0:
        return Compared(0.0, count, none, none)
    e, delta = V - F, options.delta
    if options.loss == "ssd":
        return Compared((w * e**2).sum() / M, count, 2 * w * e / M, none + 2 * w / M)
    # Huber: quadratic up to delta, then linear, with one slope at the joint.
    near = np.abs(e) <= delta
    h = np.where(near, e**2 / 2, delta * (np.abs(e) - delta / 2))
    return Compared((w * h).sum() / M, count, w * np.clip(e, -delta, delta) / M, w * near / M)


def _correlation(V: Array, F: Array, w: Array, count: float) -> Compared:
    none, M = np.zeros_like(V), len(V) * count
    if M == 0:
        return Compared(1.0, count, none, none)
    a, b = V - (w * V).sum() / M, F - (w * F).sum() / M
    A, B, S = (w * a**2).sum(), (w * b**2).sum(), (w * a * b).sum()
    # A map that is constant but for rounding has no correlation: its variance is noise.
    if CONSTANT_VARIANCE * (w * V**2).sum() >= A or CONSTANT_VARIANCE * (w * F**2).sum() >= B:
        return Compared(1.0, count, none, none)
    # Each root by itself: A·B is beyond float64 sooner, and the quotient is 1 where maps are equal.
    ratio, gain = S / A, np.sqrt(A) / np.sqrt(B)
    return Compared(1 - ratio * gain, count, -w * (b - ratio * a) * (gain / A), none)


def slopes(U: Array, grid: Array, options: Sampling) -> Array:
    """Evaluates (2) and (3) of every channel, ∂V/∂(x, y), by the unit of the grid: (C, H', W', 2).

    U is (1, C, H, W), grid (1, H', W', 2): a sample depends on its own point and on no other.
    """
    channels = []
    for c in range(U.shape[1]):
        G = np.zeros((1, U.shape[1], *grid.shape[1:-1]))
        G[:, c] = 1.0
        channels.append(sampler_adjoint(G, U, grid, options)[1][0])
    return np.stack(channels)
