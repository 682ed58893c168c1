"""Windows that zoom, turn and move, and the base of those that do some of it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from stn_engine import reference
from stn_engine.backends._constants import constant
from stn_engine.reference import Array
from stn_engine.transforms.affine import ThetaTransform
from stn_engine.transforms.base import Generator, Kind

IDENTITY = {"s": 1.0, "phi": 0.0, "t_x": 0.0, "t_y": 0.0}
"""The parts of a similarity that changes nothing."""


@dataclass(frozen=True, eq=False)
class SimilarityTransform(ThetaTransform):
    """A kind whose parameters are some of s, φ, t_x and t_y; the others are the identity's."""

    given: ClassVar[tuple[str, ...]]
    """Names of the parts that are parameters, in their order."""
    argument = "parameters"

    parameters: Tensor

    def matrix(self) -> Tensor:
        """Returns θ of the parameters; see ``ThetaTransform``."""
        s, phi, t_x, t_y = self._parts()
        a, b = s * phi.cos(), s * phi.sin()
        return torch.stack((a, -b, t_x, b, a, t_y), -1).view(-1, 2, 3)

    def matrix_adjoint(self, grad_matrix: Tensor) -> Tensor:
        """Returns the gradient of the parameters from that of θ; see ``ThetaTransform``."""
        s, phi, _, _ = self._parts()
        # θ_1 = θ_4 = a and θ_3 = -θ_2 = b, so their gradients add up with these signs (equation 8).
        (by_1, by_2, by_5), (by_3, by_4, by_6) = (row.unbind(-1) for row in grad_matrix.unbind(1))
        by_a, by_b = by_1 + by_4, by_3 - by_2
        gradients = {
            "s": by_a * phi.cos() + by_b * phi.sin(),
            "phi": s * (by_b * phi.cos() - by_a * phi.sin()),
            "t_x": by_5,
            "t_y": by_6,
        }
        stacked = torch.stack([gradients[part] for part in self.given], -1)
        return stacked.to(self.parameters.dtype)

    @classmethod
    def oracle(cls, parameters: Array) -> Array:
        """Returns θ of the parameters in NumPy; see ``ThetaTransform``."""
        return reference.similarity_theta(cls._oracle_parts(parameters))

    @classmethod
    def oracle_adjoint(cls, grad_theta: Array, parameters: Array) -> Array:
        """Returns the gradient of the parameters in NumPy; see ``ThetaTransform``."""
        gradients = reference.similarity_theta_adjoint(grad_theta, cls._oracle_parts(parameters))
        return gradients[:, [list(IDENTITY).index(part) for part in cls.given]]

    @classmethod
    def _oracle_parts(cls, parameters: Array) -> Array:
        """Returns s, φ, t_x and t_y, (N, 4)."""
        parts = np.tile(list(IDENTITY.values()), (len(parameters), 1))
        for part, values in zip(cls.given, parameters.T, strict=True):
            parts[:, list(IDENTITY).index(part)] = values
        return parts

    def _parts(self) -> list[Tensor]:
        """Returns s, φ, t_x and t_y, each (N,), float64."""
        given = dict(zip(self.given, self.parameters.double().unbind(-1), strict=True))
        n, device = self.parameters.shape[0], self.parameters.device
        # Parts that are not parameters come from a shared constant, of which no gradient is asked.
        values = constant(tuple(IDENTITY.values()), torch.float64, device).expand(n, 4).unbind(-1)
        identity = dict(zip(IDENTITY, values, strict=True))
        return [given.get(part, identity[part]) for part in IDENTITY]


@dataclass(frozen=True, eq=False)
class Similarity(SimilarityTransform):
    """A window that zooms, turns and moves.

    ``theta = [[s·cos φ, -s·sin φ, t_x], [s·sin φ, s·cos φ, t_y]]``, then as ``Affine``.

    Shapes:
        parameters   (N, 4)   float32 | float64, (s, φ, t_x, t_y)

    Convention:
        - φ in radians turns the source point from the x axis towards the y axis; as y points
          down, the content of the output appears turned anticlockwise by φ
        - the turn is about the target origin: the centre in normalized units, the first pixel
          in pixel units
        - in normalized units a turn is not rigid where H and W differ: it shears, because 1 is
          half a width along x and half a height along y; the rigid turn of a map into its own
          size is the ``Affine`` of [[cos φ, -sin φ·H/W, 0], [sin φ·W/H, cos φ, 0]]
        - s < 1 reads a smaller window: the output shows it enlarged
        - (t_x, t_y) is the source point of the target origin, in the unit the WarpSpec names; a
          positive t_x reads further right, a positive t_y further down, so that the content moves
          left, or up

    Raises:
        InvalidInputError: parameters are not a tensor.
        ShapeError: parameters are not (N, 4).
        DTypeError: parameters are neither float32 nor float64.
    """

    shapes = (("N", 4),)
    kind = Kind("similarity", 3, Generator.AFFINE)
    given = ("s", "phi", "t_x", "t_y")
