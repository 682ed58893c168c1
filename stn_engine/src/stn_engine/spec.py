"""The *how* of a warp: interpolation, padding, coordinates. Knows no tensor."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from stn_engine.errors import ParameterError

Choice = TypeVar("Choice", bound=StrEnum)


class Interpolation(StrEnum):
    """How a value between pixel centres is made from its neighbours."""

    NEAREST = "nearest"
    """The closest pixel, ties to the even index; no gradient to coordinates."""
    BILINEAR = "bilinear"
    """Equation (1): the four neighbours weighted by the opposite areas; trilinear in 3-D."""
    BICUBIC = "bicubic"
    """Keys' cubic convolution with a = -0.75 over 4 neighbours per axis; may overshoot."""


class Padding(StrEnum):
    """What a read outside the feature map returns."""

    ZEROS = "zeros"
    """Each tap outside contributes 0."""
    BORDER = "border"
    """The coordinate is clipped to the outermost pixel centres."""
    REFLECTION = "reflection"
    """The coordinate is mirrored at the border until it is inside, then clipped."""
    FILL = "fill"
    """Each tap outside contributes the constant ``fill``."""


class Coordinates(StrEnum):
    """The unit in which theta and grids speak of points."""

    NORMALIZED = "normalized"
    """[-1, 1] across the map; ``align_corners`` says what exactly lies at -1 and 1."""
    PIXEL = "pixel"
    """Pixel centres at integers, the first at 0, as in equation (5)."""


class Subgradient(StrEnum):
    """Which one-sided slope a coordinate that is an exact integer gets."""

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
          ``padding="fill"`` and what a non-finite point reads under every padding
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
    fill: tuple[float, ...]
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


def choice(argument: str, value: Choice | str, choices: type[Choice]) -> Choice:
    """The member of ``choices`` that ``value`` names, or a ParameterError that lists them all."""
    if type(value) is choices:
        return value
    try:
        return choices(value)
    except ValueError:
        raise ParameterError(argument, value, tuple(map(str, choices))) from None


def flag(argument: str, value: object) -> bool:
    """``value`` if it is a bool; numbers and None are refused rather than read as truth."""
    if not isinstance(value, bool):
        raise ParameterError(argument, value, (True, False))
    return value


_NO_FILL = (0.0,)


def _fill(value: float | Iterable[float]) -> tuple[float, ...]:
    if type(value) is float and value == 0.0:  # nearly always, and faster than what follows
        return _NO_FILL
    allowed = ("a finite number", "a sequence with one finite number per channel")
    try:
        values = tuple(map(float, value if isinstance(value, Iterable) else (value,)))
    except (TypeError, ValueError):
        raise ParameterError("fill", value, allowed) from None
    # A fill that is not finite would leak through taps whose weight is zero.
    if not values or not all(-math.inf < value < math.inf for value in values):
        raise ParameterError("fill", value, allowed)
    return tuple(value + 0.0 for value in values)  # -0.0 and 0.0 are equal, so they are one spec
