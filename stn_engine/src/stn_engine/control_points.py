"""Control points of a thin-plate spline: whether there is one through them."""

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from stn_engine.checks import check_memory
from stn_engine.errors import ParameterError

Pairs: TypeAlias = Sequence[tuple[float, float]]

RESOLUTION = 1e-6
"""The least distance of two control points, in radii of all of them: nearer ones count as one, and
thinner bands as a line.

The system of a spline is as ill-conditioned as one over the square of the smallest distance: at
this one, float64 leaves the map three or four digits, and no fewer than rounding of its source
points to float32 does, which it stretches by one over the distance.
"""

_ALLOWED = ("three or more different finite points (x, y), not all on one line",)


def checked_control_points(value: Any, regularization: float) -> Pairs:
    """Returns ``value`` as pairs of floats that a thin-plate spline can be made of.

    In plain numbers: a tracer could not decide by the values of tensors.

    Raises:
        ParameterError: They are not three or more finite pairs of numbers, or no spline goes
            through them but one that is mostly rounding: it names two that are too near to each
            other, or the ends of the line that all are on.
    """
    if isinstance(value, Tensor):
        check_memory("control_points", value)
    try:
        rows = value.tolist() if isinstance(value, Tensor) else value
        points = tuple((float(+x), float(+y)) for x, y in rows)  # + refuses digits in texts
    except (TypeError, ValueError, OverflowError, RuntimeError):
        points = ()
    count = len(points)
    mean_x, mean_y = (sum([point[axis] for point in points]) / max(count, 1) for axis in (0, 1))
    offsets = [(x - mean_x, y - mean_y) for x, y in points]
    radius = max([math.hypot(x, y) for x, y in offsets], default=0.0)
    if count < 3 or not math.isfinite(radius):
        raise ParameterError("control_points", value, _ALLOWED)
    scale = radius or 1.0  # 0 if all are one point
    offsets = [(x / scale, y / scale) for x, y in offsets]
    # A system that is nearly singular for want of distance is stiffened by regularization.
    distance = math.sqrt(max(RESOLUTION**2 - regularization / scale / scale, 0.0))
    for pair, what in (
        (_near_pair(offsets, distance), "nearer to each other than"),
        (_ends_of_line(offsets), "the ends of a line that all points are on up to"),
    ):
        if pair:
            first, second = (f"{points[k]} at {k}" for k in pair)
            actual = f"{first} and {second}, {what} {RESOLUTION} of their radius"
            raise ParameterError("control_points", value, _ALLOWED, actual)
    return points


def check_regularization(value: float) -> None:
    """Checks that ``value`` is a number that keeps the system of a thin-plate spline solvable."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= sys.float_info.max):
        raise ParameterError("regularization", value, ("a finite number >= 0",))


def _near_pair(offsets: Pairs, distance: float) -> tuple[int, int] | None:
    """Returns two points that are no further apart than a distance of at most ``RESOLUTION``."""
    cells: dict[tuple[int, int], list[int]] = {}
    for k, (x, y) in enumerate(offsets):
        column, row = math.floor(x / RESOLUTION), math.floor(y / RESOLUTION)
        for i in (column - 1, column, column + 1):
            for j in (row - 1, row, row + 1):
                for other in cells.get((i, j), ()):
                    other_x, other_y = offsets[other]
                    if math.hypot(x - other_x, y - other_y) <= distance:
                        return other, k
        cells.setdefault((column, row), []).append(k)
    return None


def _ends_of_line(offsets: Pairs) -> tuple[int, int] | None:
    """Returns the ends of a line that all points lie on; the longest offset is 1."""
    radii = [math.hypot(x, y) for x, y in offsets]
    end = radii.index(max(radii))
    end_x, end_y = offsets[end]
    if max([abs(x * end_y - y * end_x) for x, y in offsets]) > RESOLUTION:
        return None
    along = [x * end_x + y * end_y for x, y in offsets]
    first, second = sorted((along.index(min(along)), end))
    return first, second
