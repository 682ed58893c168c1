"""What the backend works out for a call, once, and runs on the addresses of many."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stn_engine.backends._labels import as_stored
from stn_engine.backends.cuda.descriptors import (
    Descriptor,
    Operands,
    can_interleave,
    describe,
    is_flat,
)
from stn_engine.backends.cuda.launches import Launches
from stn_engine.backends.torch.thin_plate import warp_basis_of
from stn_engine.call import Call, Direction, Layout
from stn_engine.plan import Addresses, Reasons
from stn_engine.spec import Family

LARGEST_SIZE = 1 << 24
"""Up to here float32 counts pixels exactly."""
LARGEST_OFFSET = (1 << 31) - 1
"""Within a channel, offsets are 32-bit integers."""
WIDE_LABELS = (torch.int32, torch.int64)
"""Labels that no kernel moves as one: it would have to compute in integers."""
PART_BYTES = 2
"""Labels too wide for that are moved as integers of so many bytes, each of which float32 holds."""


class Plan:
    """How a warp, its gradients or an objective are run.

    Args:
        call: What is computed.
        planes: The problem as kernels know it, wherever its maps begin; None if there is nothing
            to compute.
        interleaved: The same where all maps begin at multiples of a vector of channels; None if
            channels do not lie side by side.
        zeroed: Results that are filled with 0 beforehand: which of the addresses, and bytes.
        parts: What the plan is made of in the place of all that: of labels that are larger than the
            kernels' integers a plan for every ``PART_BYTES`` of them.

    Attributes:
        group: Those that it is launched with where its maps are aligned; None if nothing is
            launched.
    """

    __slots__ = (
        "_alone",
        "call",
        "group",
        "has_basis",
        "held_on",
        "interleaved",
        "parts",
        "planes",
        "zeroed",
    )

    def __init__(
        self,
        call: Call,
        planes: Descriptor | None,
        interleaved: Descriptor | None,
        zeroed: Sequence[tuple[int, int]],
        parts: "Sequence[Plan]" = (),
    ) -> None:
        self.call, self.planes, self.interleaved, self.zeroed = call, planes, interleaved, zeroed
        self.parts = parts
        best = interleaved or planes
        self.group = None if best is None else best.group
        self._alone: dict[str, Launches] = {}

    def alone(self, layout: str) -> Launches:
        """The launches of this plan alone, in a layout of channels that it has."""
        found = self._alone.get(layout)
        if found is None:
            found = self._alone[layout] = Launches([getattr(self, layout)])
        return found

    def basis(self) -> Tensor:
        """What a spline multiplies its points with, which a cache keeps for some time."""
        return warp_basis_of(self.call)


def new_plan(call: Call) -> Plan | Reasons:
    """The plan of a call on a device that can run it, or why kernels cannot."""
    call = as_stored(call)
    layouts = Operands.of(call)
    reasons = _reasons_against(call, layouts)
    if reasons:
        return reasons
    if 0 in layouts.target.shape and call.comparison is None:
        return Plan(call, None, None, _all_results(call))
    if layouts.feature_map.dtype in WIDE_LABELS:
        return Plan(call, None, None, (), _parts(call))
    return _new_plan(call, layouts)


def in_parts(plans: Sequence[Plan], addresses: Sequence[Addresses]) -> tuple[Any, Any]:
    """Plans of which none has parts, with their addresses, in the place of any plans."""
    pairs: list[tuple[Plan, Addresses]] = []
    for plan, where in zip(plans, addresses, strict=True):
        if not plan.parts:
            pairs.append((plan, where))
        for number, part in enumerate(plan.parts):
            feature_map, parameters, output = map(int, where)
            offset = number * PART_BYTES
            pairs.append((part, (feature_map + offset, parameters, output + offset)))
    return tuple([plan for plan, _ in pairs]), [where for _, where in pairs]


def _parts(call: Call) -> list[Plan]:
    """Plans that move a label as several integers of the kernels, which lie between each other."""
    feature_map, parameters = call.operands
    (output,) = call.needed
    count = feature_map.dtype.itemsize // PART_BYTES
    size_bytes = feature_map.dtype.itemsize
    fills = [int(value).to_bytes(size_bytes, "little", signed=True) for value in call.spec.fill]
    parts = []
    for number in range(count):
        spot = slice(number * PART_BYTES, (number + 1) * PART_BYTES)
        fill = tuple(float(int.from_bytes(one[spot], "little", signed=True)) for one in fills)
        part = replace(
            call,
            spec=replace(call.spec, fill=fill),
            operands=(_part(feature_map, count), parameters),
            results=(_part(output, count),),
        )
        parts.append(_new_plan(part, Operands.of(part)))
    return parts


def _part(layout: Layout, count: int) -> Layout:
    strides = tuple(count * stride for stride in layout.strides)
    return Layout(torch.int16, layout.shape, strides)


def _new_plan(call: Call, layouts: Operands) -> Plan:
    """The plan of what kernels compute, once nothing speaks against it."""
    planes = describe(call, layouts, interleaved=False)
    interleaved = describe(call, layouts, interleaved=True) if can_interleave(layouts) else None
    return Plan(call, planes, interleaved, _zeroed(call, planes))


def _all_results(call: Call) -> list[tuple[int, int]]:
    """Results, which are the last addresses."""
    first = len(call.operands)
    return [(first + place, layout.size_bytes) for place, layout in enumerate(call.needed)]


def _zeroed(call: Call, descriptor: Descriptor) -> list[tuple[int, int]]:
    """Gradients that are 0 everywhere, and those of maps that are added to in place."""
    if call.comparison is not None:
        computed = 4 if descriptor.group.needs[1] else 2  # value and count always are
        return _all_results(call)[computed:]
    if call.direction is Direction.FORWARD:
        return []
    needed = [place for place, layout in enumerate(call.results) if layout is not None]
    is_zeroed = descriptor.group.adds_in_place, is_flat(call)
    return [one for one, place in zip(_all_results(call), needed, strict=True) if is_zeroed[place]]


def _reasons_against(call: Call, layouts: Operands) -> Reasons | tuple[()]:
    """Why the kernels' integers cannot hold a problem, or their sums not lie in its results."""
    for layout in call.needed:
        if not _is_dense(layout):
            return (f"writes dense memory, a result has strides {tuple(layout.strides)}",)
    source, target = layouts.feature_map, layouts.target
    field = call.transform.kind.family is Family.FIELD
    points = [layouts.parameters] if field else []
    if max(*source.shape[2:], *target.shape[2:]) > LARGEST_SIZE:
        return (f"maps are at most {LARGEST_SIZE} pixels wide, high or deep",)
    channels = source.shape[1] if source.strides[1] == 1 else 1
    span = max(
        *(_span(one.shape[2:], one.strides[2:]) for one in layouts.maps),
        *(_span(one.shape[1:-1], one.strides[1:-1]) for one in points),
        math.prod(source.shape[2:]) * channels,
        math.prod(target.shape[2:]) * channels,
    )
    largest = LARGEST_OFFSET
    if source.dtype in WIDE_LABELS:  # each part of a label is an element to the kernels
        largest //= source.dtype.itemsize // PART_BYTES
    if span > largest:
        return (f"a channel spans at most {largest} elements, this one {span}",)
    return ()


def _span(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """The largest offset of an element along some axes."""
    return sum((n - 1) * abs(step) for n, step in zip(sizes, strides, strict=True))


def _is_dense(layout: Layout) -> bool:
    """Whether elements lie side by side, in whatever order of the axes."""
    if 0 in layout.shape:
        return True
    steps = sorted(
        (stride, size)
        for size, stride in zip(layout.shape, layout.strides, strict=True)
        if size > 1
    )
    expected = 1
    for stride, size in steps:
        if stride != expected:
            return False
        expected *= size
    return True
