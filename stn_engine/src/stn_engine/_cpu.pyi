# Operands are addresses or whatever has the buffer protocol; results are addresses, or new bytes.

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

class Storage(Enum):
    float32 = 0
    float64 = 1
    float16 = 2
    bfloat16 = 3
    uint8 = 4
    uint16 = 5
    int16 = 6
    int32 = 7
    int64 = 8

class Loss(Enum):
    ssd = 0
    huber = 1
    ncc = 2

class Domain(Enum):
    overlap = 0
    all = 1

class Family(Enum):
    matrix = 0
    spline = 1
    field = 2

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

class Options:
    def __init__(
        self,
        interpolation: Interpolation,
        padding: Padding,
        unit: Unit,
        zero_subgradient: bool,
        fill: Sequence[float],
        labels: Sequence[int] = (),
    ) -> None: ...

class Layout:
    def __init__(self, dtype: Storage, shape: Sequence[int], strides: Sequence[int]) -> None: ...

class Comparison:
    def __init__(self, loss: Loss, delta: float, domain: Domain) -> None: ...

class Plan:
    @staticmethod
    def warp(
        options: object, kind: Kind, feature_map: Layout, parameters: Layout, output: Layout
    ) -> Plan: ...
    @staticmethod
    def gradients(
        options: object,
        kind: Kind,
        grad_output: Layout,
        feature_map: Layout,
        parameters: Layout,
        grad_feature_map: Layout | None,
        grad_parameters: Layout | None,
    ) -> Plan: ...
    @staticmethod
    def objective(
        options: object,
        comparison: Comparison,
        kind: Kind,
        warped: Layout,
        moving: Layout,
        parameters: Layout,
        fixed: Layout,
        weights: Layout | None,
        gradient: Layout | None,
        gauss_newton: Layout | None,
    ) -> Plan: ...

def run(calls: list[tuple[Any, ...]], threads: int) -> list[tuple[bytes, ...]]: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def instruction_set() -> str: ...
