"""What people say about images (rotate, scale, shift) as a matrix in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pixel_theta(
    *,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    rotate_deg: float = 0.0,
    scale: float = 1.0,
    translate_px: Sequence[float] = (0.0, 0.0),
) -> NDArray[np.float64]:
    """The 2 x 3 matrix that moves the content of an image about its centre.

    Convention:
        - maps target to source in pixels, x right, y down: the inverse of what the eye sees
        - sizes are (H, W); rotation is anticlockwise; translation is (x, y)
        - the centre of the input goes to the centre of the output, plus the translation

    Raises:
        ValueError: scale is not above 0.
    """
    if not scale > 0:
        raise ValueError(f"scale: expected above 0, got {scale}.")
    cos, sin = math.cos(math.radians(rotate_deg)), math.sin(math.radians(rotate_deg))
    source_from_target = np.array([[cos, -sin], [sin, cos]]) / scale
    offset = _centre(input_size) - source_from_target @ (_centre(output_size) + translate_px)
    return np.column_stack([source_from_target, offset])


def _centre(size: tuple[int, int]) -> NDArray[np.float64]:
    height, width = size
    return np.array([(width - 1) / 2, (height - 1) / 2])
