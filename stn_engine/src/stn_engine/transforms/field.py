"""What kinds share whose parameters are one vector for every target pixel."""

from dataclasses import dataclass

from torch import Tensor

from stn_engine.transforms.base import Parametric


@dataclass(frozen=True, eq=False)
class FieldTransform(Parametric):
    """A kind whose parameters are one vector for every target pixel."""

    shapes = (("N", "Ho", "Wo", 2), ("N", "Do", "Ho", "Wo", 3))

    @property
    def parameters(self) -> Tensor:
        """The tensor that gradients are taken of: all the vectors."""
        vectors: Tensor = getattr(self, self.argument)
        return vectors

    @property
    def dims(self) -> int:
        """The number of dimensions: as many as a vector has coordinates."""
        return self.parameters.dim() - 2

    @property
    def own_size(self) -> tuple[int, ...]:
        """(Ho, Wo) of the vectors, in 3-D (Do, Ho, Wo)."""
        return tuple(self.parameters.shape[1:-1])
