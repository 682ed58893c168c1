"""Plans of the ``cpu`` backend: what the native module has worked out for a call."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from stn_engine.backends._labels import as_stored
from stn_engine.backends.torch.thin_plate import warp_basis_of
from stn_engine.call import Call, Direction, Layout, contiguous
from stn_engine.plan import Reasons
from stn_engine.spec import Family, Subgradient, WarpSpec

with suppress(ImportError):  # the backend says so
    from stn_engine import _cpu


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """How the native module runs a call."""

    native: Any
    operands: int
    """Number of operands of the call; the basis of a spline stands behind them."""
    basis: Callable[[], Tensor] | None
    """Makes the basis of a spline, or finds it; None for all others."""


LARGEST_SIZE = (1 << 31) - 1
"""The most pixels along an axis that the native module can count."""
LARGEST_MAP_BYTES = (1 << 63) - 1
"""The most bytes of a map, and the largest stride, that it can count."""


def new_plan(call: Call) -> CpuPlan | Reasons:
    """Returns the plan of a warp, of its gradients or of an objective, in host memory."""
    # A call of gradients has grad_output before the feature map.
    feature_map = call.operands[call.direction == Direction.GRADIENTS]
    maps = feature_map.shape, call.output_shape
    # Refused as a reason and not as an error, so that another backend can take over.
    if max(max(shape[2:]) for shape in maps) > LARGEST_SIZE:
        return (f"maps are at most {LARGEST_SIZE} pixels wide, high or deep",)
    call = as_stored(call)
    itemsize = feature_map.dtype.itemsize
    # An empty axis counts as 1: strides of the others are as large as if it had a pixel.
    if max(math.prod(size or 1 for size in shape) for shape in maps) * itemsize > LARGEST_MAP_BYTES:
        return (f"maps take at most {LARGEST_MAP_BYTES} bytes",)
    kind = call.transform.kind
    if kind.family == Family.SPLINE:  # which has a double for every control point and target pixel
        points = call.operands[1 + (call.direction == Direction.GRADIENTS)].shape[1]
        if 8 * points * math.prod(call.output_shape[2:]) > LARGEST_MAP_BYTES:
            return (f"the basis of a spline takes at most {LARGEST_MAP_BYTES} bytes",)
    native = _native(call)
    basis = partial(warp_basis_of, call) if kind.family == Family.SPLINE else None
    return CpuPlan(native, len(call.operands), basis)


def _native(call: Call) -> Any:
    dtype = call.operands[0].dtype
    # Of other labels and numbers, doubles have all.
    labels = {"labels": tuple(map(int, call.spec.fill))} if dtype == torch.int64 else {}
    options, kind = _options(call.spec, **labels), _cpu.Kind[call.transform.kind.name]
    operands, results = list(map(_layout, call.operands)), list(map(_layout, call.results))
    if call.comparison is None:
        make = _cpu.Plan.warp if call.direction == Direction.FORWARD else _cpu.Plan.gradients
        return make(options, kind, *operands, *results)
    how, weights = call.comparison, operands[3:] or [None]
    warped = _layout(contiguous(call.operands[0].dtype, call.output_shape))
    comparison = _cpu.Comparison(_cpu.Loss[how.loss], how.delta, _cpu.Domain[how.domain])
    _, _, *wanted = results
    return _cpu.Plan.objective(options, comparison, kind, warped, *operands[:3], *weights, *wanted)


def _layout(layout: Layout | None) -> Any:
    if layout is None:
        return None
    dtype = str(layout.dtype).removeprefix("torch.")
    return _cpu.Layout(_cpu.Storage[dtype], layout.shape, layout.strides)


@lru_cache(maxsize=256)
def _options(spec: WarpSpec, **labels: tuple[int, ...]) -> Any:
    return _cpu.Options(
        interpolation=_cpu.Interpolation[spec.interpolation.value],
        padding=_cpu.Padding[spec.padding.value],
        unit=_cpu.Unit[spec.unit.value],
        zero_subgradient=spec.subgradient == Subgradient.ZERO,
        fill=list(map(float, spec.fill)),
        **labels,
    )
