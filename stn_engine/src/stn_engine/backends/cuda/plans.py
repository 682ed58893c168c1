"""What the backend works out for a call, once, and runs on the addresses of many."""

import math
from collections.abc import Sequence

from torch import Tensor

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
from stn_engine.plan import Reasons
from stn_engine.spec import Family

LARGEST_SIZE = 1 << 24
"""Up to here float32 counts pixels exactly."""
LARGEST_OFFSET = (1 << 31) - 1
"""Within a channel, offsets are 32-bit integers."""


class Plan:
    """How a warp or its gradients are run.

    Args:
        call: What is computed.
        planes: The problem as kernels know it, wherever its maps begin; None if there is nothing
            to compute.
        interleaved: The same where all maps begin at multiples of a vector of channels; None if
            channels do not lie side by side.
        zeroed: Results that are filled with 0 beforehand: which of the addresses, and bytes.

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
        "planes",
        "zeroed",
    )

    def __init__(
        self,
        call: Call,
        planes: Descriptor | None,
        interleaved: Descriptor | None,
        zeroed: Sequence[tuple[int, int]],
    ) -> None:
        self.call, self.planes, self.interleaved, self.zeroed = call, planes, interleaved, zeroed
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
    """The plan of a warp or its gradients on a device that can run them, or why kernels cannot."""
    layouts = Operands.of(call)
    reasons = _reasons_against(call, layouts)
    if reasons:
        return reasons
    if 0 in layouts.target.shape:
        return Plan(call, None, None, _all_results(call))
    planes = describe(call, layouts, interleaved=False)
    interleaved = describe(call, layouts, interleaved=True) if can_interleave(layouts) else None
    return Plan(call, planes, interleaved, _zeroed(call, planes))


def _all_results(call: Call) -> list[tuple[int, int]]:
    """Results, which are the last addresses."""
    first = len(call.operands)
    return [(first + place, layout.size_bytes) for place, layout in enumerate(call.needed)]


def _zeroed(call: Call, descriptor: Descriptor) -> list[tuple[int, int]]:
    """Gradients of transforms that are flat, and of maps that are added to in place."""
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
    if span > LARGEST_OFFSET:
        return (f"a channel spans at most {LARGEST_OFFSET} elements, this one {span}",)
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
