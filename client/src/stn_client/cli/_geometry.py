"""What people say about images (rotate, scale, shift, bend) as transforms in pixels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stn_client._transforms import ThinPlateSpline
from stn_client.geometry import rotation_about


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
        InvalidRequestError: scale is not above 0.
    """
    centre = _centre(input_size)
    shift = _centre(output_size) - centre + translate_px
    turned = rotation_about(centre, rotate_deg, scale, shift)["transform"]
    theta: NDArray[np.float64] = turned.theta[0]
    return theta


def read_spline(path: str) -> ThinPlateSpline:
    """The spline of a JSON file, for argparse: its fields by their names, `points` of one image.

    Raises:
        ArgumentTypeError: The file cannot be read, or does not hold one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        given = json.loads(text)
        points = np.array([given.pop("points")], np.float64)
        spline = ThinPlateSpline(points, **given)
        count = len(spline.settings["control_points"]) // 2
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a readable file, got {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = "expected JSON with control_points and points, each [[x, y], ...]"
        got = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise argparse.ArgumentTypeError(f"{path}: {expected}, got {got}") from error
    if points.shape != (1, count, 2) or not np.isfinite(points).all():
        expected = f"expected points to have {count} pairs of finite numbers, as control_points do"
        raise argparse.ArgumentTypeError(f"{path}: {expected}, got other ones")
    return spline


def _centre(size: tuple[int, int]) -> NDArray[np.float64]:
    height, width = size
    return np.array([(width - 1) / 2, (height - 1) / 2])
