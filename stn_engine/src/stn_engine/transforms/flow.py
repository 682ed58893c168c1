"""Displacements of target pixels."""

from dataclasses import dataclass

from torch import Tensor

from stn_engine.transforms.base import Generator, Kind
from stn_engine.transforms.field import FieldTransform


@dataclass(frozen=True, eq=False)
class Flow(FieldTransform):
    """Source points as displacements from the target points.

    ``x = x_t + displacement[n, i, j, 0]`` and ``y = y_t + displacement[n, i, j, 1]``; z likewise.

    Shapes:
        displacement   (N, Ho, Wo, 2), in 3-D (N, Do, Ho, Wo, 3)   float32 | float64

    Convention:
        - the displacement leads from target to source, (x, y) or (x, y, z), in the unit the
          WarpSpec names
        - it says how large the output is

    Raises:
        InvalidInputError: displacement is not a tensor.
        ShapeError: displacement is neither (N, Ho, Wo, 2) nor (N, Do, Ho, Wo, 3).
        DTypeError: displacement is neither float32 nor float64.
    """

    argument = "displacement"
    kind = Kind("flow", 7, Generator.FLOW)

    displacement: Tensor
