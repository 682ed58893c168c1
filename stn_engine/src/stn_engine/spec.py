"""The *how* of a warp: interpolation, padding, coordinates. Knows no tensor.

It also has the numbers by which compiled kernels know each choice: ``.ci/generate_native.py``
writes them, and those of the transforms, into ``native/shared/numbers.h``.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self, TypeVar

from stn_engine.errors import ParameterError

Choice = TypeVar("Choice", bound=StrEnum)


class NumberedChoice(StrEnum):
    """Choices that compiled kernels know by a number; each member is ``value, number``.

    A number is given for ever: tables in the memory of a device hold it.

    Attributes:
        number: The number in ``native/shared/numbers.h``.
    """

    number: int
    __hash__ = str.__hash__  # that of Enum runs in Python, and every call looks its plan up

    def __new__(cls, value: str, number: int) -> Self:
        """Makes a member with its number."""
        member = str.__new__(cls, value)
        member._value_, member.number = value, number
        return member


class Interpolation(NumberedChoice):
    """How a value between pixel centres is made from its neighbours."""

    NEAREST = "nearest", 0
    """The closest pixel, ties to the even index; no gradient to coordinates."""
    BILINEAR = "bilinear", 1
    """Equation (1): the four neighbours weighted by the opposite areas; trilinear in 3-D."""
    BICUBIC = "bicubic", 2
    """Keys' cubic convolution with a = -0.75 over 4 neighbours per axis; may overshoot."""


class Padding(NumberedChoice):
    """What a read outside the feature map returns."""

    ZEROS = "zeros", 0
    """Each tap outside contributes 0."""
    BORDER = "border", 1
    """The coordinate is clipped to the outermost pixel centres."""
    REFLECTION = "reflection", 2
    """The coordinate is mirrored at the border until it is inside, then clipped."""
    FILL = "fill", 3
    """Each tap outside contributes the constant ``fill``."""


class Coordinates(StrEnum):
    """The unit in which theta and grids speak of points."""

    __hash__ = str.__hash__  # as of numbered choices

    NORMALIZED = "normalized"
    """[-1, 1] across the map; ``align_corners`` says whether edges or pixel centres are at -1 and
    1."""
    PIXEL = "pixel"
    """Pixel centres at integers, the first at 0, as in equation (5)."""


class Unit(NumberedChoice):
    """Combination of ``coordinates`` and ``align_corners``, as kernels know it."""

    NORMALIZED = "normalized", 0
    """-1 and 1 are the outer edges of the map."""
    NORMALIZED_CORNERS = "normalized_corners", 1
    """-1 and 1 are the centres of the corner pixels."""
    PIXEL = "pixel", 2
    """Pixel centres at integers, the first at 0."""


class Storage(NumberedChoice):
    """What an element of a feature map is stored as; the values are names of torch's dtypes.

    Those of INT32 and INT64 are labels: moved, never computed with.
    """

    FLOAT32 = "float32", 0
    FLOAT64 = "float64", 1
    FLOAT16 = "float16", 2
    BFLOAT16 = "bfloat16", 3
    UINT8 = "uint8", 4
    UINT16 = "uint16", 5
    INT16 = "int16", 6
    INT32 = "int32", 7
    INT64 = "int64", 8


class Loss(NumberedChoice):
    """How far a warped map is from a fixed one, section 7; sums run over channels and pixels."""

    SSD = "ssd", 0
    """The weighted mean of squared differences."""
    HUBER = "huber", 1
    """The weighted mean of squares halved, of lines beyond a difference of ``delta``."""
    NCC = "ncc", 2
    """1 minus the correlation of both maps: blind to brightness and contrast."""


class Domain(NumberedChoice):
    """Which target points an objective counts."""

    OVERLAP = "overlap", 0
    """Target points that read within the outermost pixel centres of the moving map."""
    ALL = "all", 1
    """All target points; what reads outside is what padding says."""


class Family(NumberedChoice):
    """How kernels find the source points of a transform; every kind of transform is in one."""

    MATRIX = "matrix", 0
    """Points are found by a matrix that is applied to the target pixel, with a division for
    homographies."""
    SPLINE = "spline", 1
    """Points are found by a sum over control points of a basis that depends on the target pixel."""
    FIELD = "field", 2
    """Points are found by one vector for every target pixel."""


class Subgradient(StrEnum):
    """Which one-sided slope a coordinate that is an exact integer gets."""

    __hash__ = str.__hash__  # as of numbered choices

    RIGHT = "right"
    """The slope of the cell [x, x + 1], as PyTorch has it."""
    ZERO = "zero"
    """0, as equations (2) and (3) give when floor and ceil coincide."""


@dataclass(frozen=True, kw_only=True, init=False)
class WarpSpec:
    """Everything about a warp that is not a tensor or a size; hashable, valid by construction.

    Convention:
        - coordinates are (x, y), x to the right, y down, pixel centres at integers; in 3-D
          (x, y, z), z along the depth
        - align_corners matters only for normalized coordinates: True puts -1 and 1 on the
          centres of the corner pixels, False on their outer edges
        - bicubic pads each of its taps instead of the coordinate; its slope is continuous, so
          that subgradient makes no difference, and border has no edge without a slope
        - fill is one value, or one per channel; it is what taps outside contribute under
          ``padding="fill"`` and what a non-finite point reads under every padding; kept as floats,
          but for integers of 64 bits that no float is, which may be labels
        - gradients that would flow to fill, or out of a non-finite point, are dropped

    Args:
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
        padding: ``"zeros"``, ``"border"``, ``"reflection"`` or ``"fill"``.
        fill: A finite number, or a sequence with one finite number per channel.
        coordinates: ``"normalized"`` or ``"pixel"``.
        align_corners: See above.
        subgradient: ``"right"`` (PyTorch) or ``"zero"`` (the paper to the letter).
        deterministic: False allows unordered sums in the feature-map gradient where they are
            faster; every other result is reproducible anyway.

    Raises:
        ParameterError: a value is not among those allowed.
    """

    interpolation: Interpolation
    padding: Padding
    fill: tuple[float | int, ...]
    coordinates: Coordinates
    align_corners: bool
    subgradient: Subgradient
    deterministic: bool

    def __init__(
        self,
        *,
        interpolation: Interpolation | str = Interpolation.BILINEAR,
        padding: Padding | str = Padding.ZEROS,
        fill: float | Iterable[float] = 0.0,
        coordinates: Coordinates | str = Coordinates.NORMALIZED,
        align_corners: bool = False,
        subgradient: Subgradient | str = Subgradient.RIGHT,
        deterministic: bool = True,
    ) -> None:
        self.__dict__.update(  # at once: this is part of every call
            interpolation=choice("interpolation", interpolation, Interpolation),
            padding=choice("padding", padding, Padding),
            fill=_fill(fill),
            coordinates=choice("coordinates", coordinates, Coordinates),
            align_corners=flag("align_corners", align_corners),
            subgradient=choice("subgradient", subgradient, Subgradient),
            deterministic=flag("deterministic", deterministic),
        )

    @property
    def unit(self) -> Unit:
        """The unit of the transform, as kernels know it."""
        return unit_of(self.coordinates, align_corners=self.align_corners)


@lru_cache(maxsize=256, typed=True)  # typed: 1 is no flag
def kept_spec(*options: Any) -> WarpSpec:
    """Returns the spec of options in the order of ``WarpSpec``, the same one for the same ones."""
    return WarpSpec(**dict(zip(WarpSpec.__dataclass_fields__, options, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How an objective compares two maps; hashable, valid by construction.

    Args:
        loss: ``"ssd"``, ``"huber"`` or ``"ncc"``.
        delta: The difference from which on ``"huber"`` is a line; finite and above 0.
        domain: ``"overlap"`` or ``"all"``.

    Raises:
        ParameterError: a value is not among those allowed.
    """

    loss: Loss | str = Loss.SSD
    delta: float = 1.0
    domain: Domain | str = Domain.OVERLAP

    def __post_init__(self) -> None:
        allowed = ("a finite number > 0",)
        try:
            delta = float(+self.delta)  # + refuses digits in texts
        except (TypeError, ValueError, OverflowError):
            raise ParameterError("delta", self.delta, allowed) from None
        if not 0 < delta < math.inf:
            raise ParameterError("delta", self.delta, allowed)
        object.__setattr__(self, "loss", choice("loss", self.loss, Loss))
        object.__setattr__(self, "delta", delta)
        object.__setattr__(self, "domain", choice("domain", self.domain, Domain))


def unit_of(coordinates: Coordinates | str, *, align_corners: bool) -> Unit:
    """Returns the unit that ``coordinates`` and ``align_corners`` together mean."""
    if coordinates == Coordinates.PIXEL:
        return Unit.PIXEL
    return Unit.NORMALIZED_CORNERS if align_corners else Unit.NORMALIZED


def choice(argument: str, value: Choice | str, choices: type[Choice]) -> Choice:
    """Returns the member of ``choices`` that ``value`` names, or raises a ParameterError."""
    if type(value) is choices:
        return value
    try:
        return choices(value)
    except ValueError:
        raise ParameterError(argument, value, tuple(map(str, choices))) from None


def flag(argument: str, value: object) -> bool:
    """Returns ``value`` if it is a bool; numbers and None are refused rather than read as truth."""
    if not isinstance(value, bool):
        raise ParameterError(argument, value, (True, False))
    return value


_NO_FILL = (0.0,)


def _fill(value: float | Iterable[float]) -> tuple[float | int, ...]:
    if type(value) is float and value == 0.0:  # nearly always, and faster than what follows
        return _NO_FILL
    allowed = ("a finite number", "a sequence with one finite number per channel")
    try:
        values = tuple(map(_constant, value if isinstance(value, Iterable) else (value,)))
    except (TypeError, ValueError, OverflowError):
        raise ParameterError("fill", value, allowed) from None
    # A fill that is not finite would leak through taps whose weight is zero.
    if not values or not all(-math.inf < value < math.inf for value in values):
        raise ParameterError("fill", value, allowed)
    return tuple(value + 0 for value in values)  # -0.0 and 0.0 are equal, so they are one spec


_ALL_INTEGERS = 1 << 53
"""Up to here floats hold all integers."""
_LABELS = 1 << 64
"""No label is larger."""


def _constant(value: Any) -> float | int:
    """Returns a constant as a float, or as the integer that no float is."""
    if isinstance(
        value, str | bytes | bytearray
    ):  # one that may be a number, or several of a digit each
        raise TypeError(value)
    number = float(value)
    if not _ALL_INTEGERS <= abs(number) <= _LABELS:
        return number
    try:
        exact = operator.index(value)
    except TypeError:
        return number
    return number if number == exact else exact
