"""What every kind of transform says of itself, for all who compute with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from stn_engine import checks
from stn_engine.errors import Shape
from stn_engine.spec import Family


class Generator(StrEnum):
    """The equations that make source points of parameters."""

    AFFINE = "affine"
    """A matrix of one row per axis, which the kind makes of its parameters."""
    HOMOGRAPHY = "homography"
    """A matrix of three rows, and a division."""
    SPLINE = "spline"
    """A sum over control points."""
    FLOW = "flow"
    """A displacement of every target pixel."""
    GRID = "grid"
    """A source point for every target pixel."""

    @property
    def family(self) -> Family:
        """Family of kernels that find the points."""
        return _FAMILIES[self]


_FAMILIES = {
    Generator.AFFINE: Family.MATRIX,
    Generator.HOMOGRAPHY: Family.MATRIX,
    Generator.SPLINE: Family.SPLINE,
    Generator.FLOW: Family.FIELD,
    Generator.GRID: Family.FIELD,
}


class Kind(NamedTuple):
    """What compiled kernels know of a kind of transform."""

    name: str
    """The name in ``native/shared/numbers.h``."""
    number: int
    """The number there, given for ever."""
    generator: Generator
    """The equations of its source points."""

    @property
    def family(self) -> Family:
        """Family of kernels that find the points."""
        return self.generator.family


@dataclass(frozen=True, eq=False)
class Parametric:
    """What all transforms share: one tensor of parameters, valid from birth."""

    argument: ClassVar[str]
    """Name of the field that holds the parameters."""
    shapes: ClassVar[tuple[Shape, ...]]
    """Shapes that the parameters may have, in 2-D and maybe in 3-D."""
    kind: ClassVar[Kind]
    """The kind of transform, as kernels know it."""
    settings: ClassVar[Any] = None
    """All that must agree, besides the kind, for parameters to be concatenated; hashable."""

    def __post_init__(self) -> None:
        self._check_parameters(self.shapes)

    def _check_parameters(self, shapes: Sequence[Shape]) -> None:
        """Checks the shape of parameters, and makes half types of autocast float32."""
        given = getattr(self, self.argument)
        parameters = checks.checked_parameters(self.argument, given, shapes)
        if parameters is not given:
            object.__setattr__(self, self.argument, parameters)

    @property
    def dims(self) -> int:
        """Coordinates of its points: 2 in images, 3 in volumes."""
        return 2

    @property
    def own_size(self) -> tuple[int, ...] | None:
        """([Do,] Ho, Wo) of transforms with parameters for every target pixel, or else None."""
        return None

    @property
    def basis_size(self) -> int:
        """Numbers in float64 that are worked out for every target pixel before any is read."""
        return 0

    def with_parameters(self, parameters: Tensor) -> Self:
        """Returns the same kind of transform with other parameters."""
        return replace(self, **{self.argument: parameters})
