"""Section 3: pixels and their coordinates."""

import numpy as np

from stn_engine.reference.arrays import Array


def target_coordinates(size: int, coordinates: str, *, align_corners: bool) -> Array:
    """Returns the coordinate of each target pixel along one axis (section 3, column 2)."""
    j = np.arange(size, dtype=np.float64)
    if coordinates == "pixel":
        return j
    if not align_corners:
        return (2 * j + 1) / size - 1
    return 2 * j / (size - 1) - 1 if size > 1 else np.zeros(size)


def source_pixels(x: Array, size: int, coordinates: str, *, align_corners: bool) -> Array:
    """Returns the source coordinate in pixels along one axis (section 3, column 3)."""
    if coordinates == "pixel":
        return x
    return (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2


def source_pixels_slope(size: int, coordinates: str, *, align_corners: bool) -> float:
    """Returns the derivative of ``source_pixels`` by the coordinates."""
    if coordinates == "pixel":
        return 1.0
    return (size - 1) / 2 if align_corners else size / 2


def target_points(
    size: tuple[int, ...], coordinates: str, *, align_corners: bool
) -> tuple[Array, ...]:
    """Returns (x_t, y_t[, z_t], 1) of every target pixel; each as large as V."""
    axes = [target_coordinates(n, coordinates, align_corners=align_corners) for n in size]
    return *np.meshgrid(*axes, indexing="ij")[::-1], np.ones(size)
