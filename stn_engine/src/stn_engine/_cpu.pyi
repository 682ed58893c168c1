# Arrays are whatever DLPack or the buffer protocol hands over, capsules included. Strides are free,
# but memory that is written to must be dense.

from collections.abc import Sequence
from enum import Enum
from typing import Any

class Interpolation(Enum):
    nearest = 0
    bilinear = 1
    bicubic = 2

class Padding(Enum):
    zeros = 0
    border = 1
    reflection = 2
    fill = 3

class Unit(Enum):
    normalized = 0
    normalized_corners = 1
    pixel = 2

class Kind(Enum):
    affine = 0
    homography = 1
    attention = 2
    similarity = 3
    translation = 4
    rotation = 5
    spline = 6
    flow = 7
    grid = 8

class Storage(Enum):
    float32 = 0
    float64 = 1
    float16 = 2
    bfloat16 = 3
    uint8 = 4

class Options:
    def __init__(
        self,
        interpolation: Interpolation,
        padding: Padding,
        unit: Unit,
        zero_subgradient: bool,
        fill: Sequence[float],
    ) -> None: ...

class Layout:
    def __init__(self, dtype: Storage, shape: Sequence[int], strides: Sequence[int]) -> None: ...

class Form:
    def __init__(
        self,
        options: object,
        kind: Kind,
        feature_map: object,
        parameters: object,
        output: object,
    ) -> None: ...
    def differentiate(self, feature_map: bool, parameters: bool) -> None: ...

def compute(calls: list[tuple[Any, ...]], threads: int) -> list[tuple[bytes, ...]]: ...
def warp(items: list[tuple[Any, ...]], threads: int) -> None: ...
def warp_gradients(items: list[tuple[Any, ...]], threads: int) -> None: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def instruction_set() -> str: ...
