"""Which rows describe problems, and where their operands lie.

A row is found once for each problem, and kept on it for its next call.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from stn_engine.backends._cuda.item import FIELDS
from stn_engine.backends._cuda.memory import Given, Provided, Words
from stn_engine.backends._cuda.rows import ROWS, Description, Key, Layout, Row
from stn_engine.problem import Gradients, WarpGradientsProblem, WarpProblem, memory_format

Strides: TypeAlias = tuple[int, ...] | None

_UNALIGNED = 15
"""Bits of an address that are 0 where whole vectors of channels can be moved."""


class Found(NamedTuple):
    """What the problems of a call are to kernels."""

    rows: Sequence[Row | None]
    """None for problems of which nothing is to be computed."""
    operands: Mapping[str, Sequence[int] | Words]
    """Addresses of U, in backward problems of G, and of parameters that need not be looked for."""
    provided: Mapping[str, Provided]
    """Memory of the caller for results, by what they are."""


def found_warps(problems: Sequence[WarpProblem], out: Sequence[Tensor] | None) -> Found:
    """Rows of forward problems, whose results go to ``out`` or to new memory."""
    now = ROWS.current() << 4
    sources = [one.feature_map.data_ptr() for one in problems]
    rows: list[Row | None]
    slot: Hashable
    if out is None:
        rows = [
            one.plans.get(slot := now | (u & _UNALIGNED)) or _warp_row(one, slot, u, None)
            for one, u in zip(problems, sources, strict=True)
        ]
        return Found(rows, {"source": sources}, {})
    targets, strides = [one.data_ptr() for one in out], [one.stride() for one in out]
    rows = [
        one.plans.get(slot := (now | ((u | v) & _UNALIGNED), of_v))
        or _warp_row(one, slot, u | v, of_v)
        for one, u, v, of_v in zip(problems, sources, targets, strides, strict=True)
    ]
    return Found(rows, {"source": sources}, {"target": Given(out, targets)})


def found_gradients(
    problems: Sequence[WarpGradientsProblem], out: Sequence[Gradients] | None
) -> Found:
    """Rows of backward problems, whose results go to ``out`` or to new memory."""
    now = ROWS.current() << 4
    sources = [one.warp.feature_map.data_ptr() for one in problems]
    targets = [one.grad_output.data_ptr() for one in problems]
    operands = {"source": sources, "target": targets}
    rows: list[Row | None]
    slot: Hashable
    if out is None:
        rows = [
            one.plans.get(slot := now | ((u | v) & _UNALIGNED))
            or _gradients_row(one, slot, u | v, None)
            for one, u, v in zip(problems, sources, targets, strict=True)
        ]
        return Found(rows, operands, {})
    maps, transforms = [one.feature_map for one in out], [one.transform for one in out]
    by_maps, by_transforms = ([_address(one) for one in some] for some in (maps, transforms))
    strides = [(_strides(one.feature_map), _strides(one.transform)) for one in out]
    rows = [
        one.plans.get(slot := (now | ((u | v | by_u) & _UNALIGNED), of_results))
        or _gradients_row(one, slot, u | v | by_u, of_results)
        for one, u, v, by_u, of_results in zip(
            problems, sources, targets, by_maps, strides, strict=True
        )
    ]
    provided = {
        "by_source": Given(maps, by_maps),
        "by_parameters": Given(transforms, by_transforms),
    }
    return Found(rows, operands, provided)


def grouped(rows: Sequence[Row | None]) -> tuple[list[int], Collection[list[int]]]:
    """The places of None, and those of rows that can run in the same kernels."""
    groups: dict[Key | None, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(None if row is None else row.key, []).append(place)
    return groups.pop(None, []), groups.values()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(tensor: Tensor | None) -> Strides:
    return None if tensor is None else tensor.stride()


def _warp_row(problem: WarpProblem, slot: Hashable, addresses: int, strides: Strides) -> Row | None:
    """The row of a problem, from now on in this slot.

    Args:
        problem: What is computed.
        slot: Where the problem keeps its row.
        addresses: Those of all maps, or'ed.
        strides: Of the result; those of new memory if None.
    """
    shape = problem.output_shape
    if 0 in shape:
        return None
    if strides is None:
        target = _dense(shape, memory_format(problem.feature_map))
    else:
        target = shape, strides
    row = _row_of(problem, addresses, target, None, None)
    problem.plans[slot] = row
    return row


def _gradients_row(
    problem: WarpGradientsProblem,
    slot: Hashable,
    addresses: int,
    strides: tuple[Strides, Strides] | None,
) -> Row | None:
    """As ``_warp_row``; a result has no strides if it is not needed."""
    if 0 in problem.warp.output_shape:
        return None
    grads = problem.grad_output
    results = _new_results(problem) if strides is None else _given_results(problem, strides)
    by_map, by_transform = results
    row = _row_of(problem.warp, addresses, (grads.shape, grads.stride()), by_map, by_transform)
    problem.plans[slot] = row
    return row


def _new_results(problem: WarpGradientsProblem) -> list[Layout | None]:
    source, parameters = problem.warp.operands
    layouts = {
        "feature_map": _dense(source.shape, memory_format(source)),
        "transform": _dense(parameters.shape, torch.contiguous_format),
    }
    return [layout if name in problem.needs else None for name, layout in layouts.items()]


def _given_results(
    problem: WarpGradientsProblem, strides: tuple[Strides, Strides]
) -> list[Layout | None]:
    operands = zip(problem.warp.operands, strides, strict=True)
    return [None if one is None else (operand.shape, one) for operand, one in operands]


@lru_cache(maxsize=4096)
def _dense(shape: tuple[int, ...], order: torch.memory_format) -> Layout:
    return shape, torch.empty(shape, device="meta", memory_format=order).stride()


def _row_of(
    warp: WarpProblem,
    addresses: int,
    target: Layout,
    by_source: Layout | None,
    by_parameters: Layout | None,
    device: torch.device | None = None,
) -> Row:
    """The row of a warp or its gradients; ``device`` if it is not that of its operands."""
    source, parameters = warp.operands
    kind = type(warp.transform)
    description = Description(
        kind,
        warp.spec,
        source.dtype,
        source.device if device is None else device,
        (source.shape, source.stride()),
        target,
        (parameters.shape, parameters.stride()),
        parameters.dtype,
        not (kind in FIELDS or parameters.is_contiguous()),
        by_source,
        by_parameters,
        not addresses & _UNALIGNED,
    )
    return ROWS.row_of(description)
