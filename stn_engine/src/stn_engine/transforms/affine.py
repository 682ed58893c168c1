"""Affine maps: theta itself, and the base of all kinds that are expanded to a theta."""

from dataclasses import dataclass

from torch import Tensor

from stn_engine.reference import Array
from stn_engine.transforms.base import Generator, Kind, Parametric


class ThetaTransform(Parametric):
    """A kind that is expanded to the theta of an affine map."""

    def matrix(self) -> Tensor:
        """Returns the theta that the parameters stand for, (N, dims, dims + 1), float64."""
        raise NotImplementedError

    def matrix_adjoint(self, grad_matrix: Tensor) -> Tensor:
        """Returns the gradient of the parameters from that of ``matrix``, in their dtype."""
        raise NotImplementedError

    @classmethod
    def oracle(cls, parameters: Array) -> Array:
        """Returns theta of the parameters in NumPy, for the ``reference`` backend."""
        raise NotImplementedError

    @classmethod
    def oracle_adjoint(cls, grad_theta: Array, parameters: Array) -> Array:
        """Returns the gradient of the parameters from that of theta, in NumPy."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Affine(ThetaTransform):
    """Target points to source points by equation (5).

    ``x = theta[0, 0]·x_t + theta[0, 1]·y_t + theta[0, 2]``, and y from the second row; in 3-D each
    row is applied to (x_t, y_t, z_t, 1), and z comes from the third.

    Shapes:
        theta   (N, 2, 3), in 3-D (N, 3, 4)   float32 | float64

    Convention:
        - theta maps target to source (backward mapping), in the unit the WarpSpec names
        - coordinates are (x, y), x to the right, y down; in 3-D (x, y, z), z along the depth

    Raises:
        InvalidInputError: theta is not a tensor.
        ShapeError: theta is neither (N, 2, 3) nor (N, 3, 4).
        DTypeError: theta is neither float32 nor float64.
    """

    argument = "theta"
    shapes = (("N", 2, 3), ("N", 3, 4))
    kind = Kind("affine", 0, Generator.AFFINE)

    theta: Tensor

    @property
    def parameters(self) -> Tensor:
        """The tensor that gradients are taken of: theta."""
        return self.theta

    @property
    def dims(self) -> int:
        """The number of dimensions: as many as theta has rows."""
        return 3 if self.theta.shape[1] == 3 else 2  # a number even where sizes are symbols

    def matrix(self) -> Tensor:
        """Returns θ as an affine matrix; see ``ThetaTransform``."""
        return self.theta.double()

    def matrix_adjoint(self, grad_matrix: Tensor) -> Tensor:
        """Returns the gradient of θ in its dtype; see ``ThetaTransform``."""
        return grad_matrix.to(self.theta.dtype)

    @classmethod
    def oracle(cls, parameters: Array) -> Array:
        """Returns the parameters, which are θ; see ``ThetaTransform``."""
        return parameters

    @classmethod
    def oracle_adjoint(cls, grad_theta: Array, parameters: Array) -> Array:
        """Returns the gradient of θ, which is that of the parameters; see ``ThetaTransform``."""
        del parameters
        return grad_theta
