"""The table that describes the problems of a launch, one row each.

``native/cuda/item.cuh`` reads it. Rows depend on shapes, strides and options only, so they are made
once for each combination; what changes from call to call are the addresses in them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.coords import pixel_affine, pixel_homography, source_axis, target_axis
from stn_engine.spec import Coordinates, Interpolation, Padding, Subgradient, WarpSpec
from stn_engine.transforms import (
    Affine,
    Attention,
    Flow,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
)

_MAP = np.dtype(
    [
        ("data", np.int64),
        ("batch_stride", np.int64),
        ("channel_stride", np.int64),
        ("stride", np.int32, 3),
        ("batch", np.int32),
    ]
)
_TILING = np.dtype(
    [
        ("size", np.int32, 3),
        ("rows", np.int32),
        ("width_log", np.int32),
        ("height_log", np.int32),
        ("across", np.int32),
        ("count", np.int32),
    ]
)
_MAPS = ("source", "target", "by_source", "points", "by_points")
_POINTERS = (
    "parameters",
    "by_parameters",
    "own_parameters",
    "factors",
    "basis",
    "fill",
    "sums",
    "accumulators",
    "peaks",
    "reaches",
)
_NUMBERS = (
    "channels",
    "batch",
    "parameter_batch",
    "count",
    "entries",
    "padding",
    "unit",
    "kind",
    "own_kind",
    "wide",
    "own_wide",
    "zero_subgradient",
    "fills",
)
ITEM = np.dtype(
    [
        *((name, _MAP) for name in _MAPS),
        *((name, np.int64) for name in _POINTERS),
        *((name, _TILING) for name in ("from", "to")),
        *((name, np.int32) for name in _NUMBERS),
    ],
    align=True,
)
"""A row, byte for byte the ``Item`` of the kernels."""

ADDRESSES = {name: ITEM.fields[name][1] // 8 for name in (*_MAPS, *_POINTERS)}  # type: ignore[index]
"""Which 64-bit word of a row holds the address of what."""

REACH_BYTES = 384
"""At least the size of the kernels' ``Reach``."""

KINDS = {
    kind: number
    for number, kind in enumerate(
        (
            Affine,
            Homography,
            Attention,
            Similarity,
            Translation,
            Rotation,
            ThinPlateSpline,
            Flow,
            SamplingGrid,
        )
    )
}
SIMILARITIES = (Attention, Similarity, Translation, Rotation)
FIELDS = (Flow, SamplingGrid)
_FAMILIES = {Flow: "field", SamplingGrid: "field", ThinPlateSpline: "spline"}
_PADDINGS = {one: number for number, one in enumerate(Padding)}
_VECTOR_BYTES = 16
_UNITS_PER_TILE = 1024


Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a tensor."""


class Description(NamedTuple):
    """All that a row depends on, but for addresses."""

    kind: type[Any]
    spec: WarpSpec
    dtype: torch.dtype
    device: torch.device
    source: Layout
    target: Layout
    parameters: Layout
    parameter_dtype: torch.dtype
    by_source: Layout | None
    by_parameters: Layout | None
    is_aligned: bool


class Key(NamedTuple):
    """What the items of one batch have in common."""

    device: torch.device
    dtype: torch.dtype
    dims: int
    interpolation: Interpolation
    family: str
    """``"matrix"``, ``"field"`` or ``"spline"``."""
    layout: str
    """``"planes"`` or ``"interleaved"``."""
    expands: bool
    """Whether the parameters of similarities have to become thetas first."""
    needs: tuple[str, ...]
    gathers: bool
    """Whether gradients of maps are made by the inverse of the transform."""
    deterministic: bool


@dataclass(frozen=True)
class Row:
    """A row without addresses, and what the host has to know of it.

    Attributes:
        key: Whom it can share a batch with.
        words: The bytes of the row.
        target_tiles: Tiles of all target maps.
        source_tiles: Tiles of all gradients of maps.
        field_tiles: Tiles of all gradients of grids and flows.
        thetas: Parameters in the batch.
        sums: Partial sums of the parameters' gradient, in float64.
        maps: Feature maps in the batch.
        map_values: Their values.
        constants: Tensors whose addresses are in the row.
    """

    key: Key
    words: bytes
    target_tiles: int
    source_tiles: int
    field_tiles: int
    thetas: int
    sums: int
    maps: int
    map_values: int
    constants: tuple[Tensor, ...]


_ROWS: dict[Description, Row] = {}
_KEYS: dict[Key, Key] = {}
_MOST_ROWS = 4096


def row_of(description: Description) -> Row:
    """The row of this description, kept for the next call."""
    row = _ROWS.get(description)
    if row is None:
        if len(_ROWS) >= _MOST_ROWS:
            _forget_rows(description.device)
        row = _ROWS[description] = _new_row(description)
    return row


def _forget_rows(device: torch.device) -> None:
    """Frees the constants of all rows, once nobody reads them any more."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _ROWS.clear()


def _new_row(one: Description) -> Row:
    item = np.zeros((), ITEM)
    interleaved = _is_interleaved(one)
    chunks = one.source[0][1] // vector_size(one.dtype) if interleaved else 1
    _put_map(item["source"], one.source)
    _put_map(item["target"], one.target)
    _put_tiling(item["from"], one.source[0][2:], chunks)
    _put_tiling(item["to"], one.target[0][2:], chunks)
    if one.by_source is not None:
        _put_map(item["by_source"], one.by_source)
    if issubclass(one.kind, FIELDS):
        _put_points(item, one)
    constants = _put_generator(item, one)
    _put_options(item, one)
    thetas = one.parameters[0][0]
    target_tiles = one.target[0][0] * int(item["to"]["count"])
    return Row(
        key=_key(one, interleaved=interleaved),
        words=item.tobytes(),
        target_tiles=target_tiles,
        source_tiles=one.source[0][0] * int(item["from"]["count"]),
        field_tiles=thetas * int(item["to"]["count"]),
        thetas=thetas,
        sums=target_tiles * int(item["entries"]),
        maps=one.source[0][0],
        map_values=math.prod(one.source[0]),
        constants=constants,
    )


def _key(one: Description, *, interleaved: bool) -> Key:
    """The key of a description; equal ones are identical."""
    family = _FAMILIES.get(one.kind, "matrix")
    needs = ("feature_map",) * (one.by_source is not None)
    needs += ("transform",) * (one.by_parameters is not None)
    key = Key(
        one.device,
        one.dtype,
        len(one.source[0]) - 2,
        one.spec.interpolation,
        family,
        "interleaved" if interleaved else "planes",
        one.kind in SIMILARITIES,
        needs,
        family == "matrix" and one.spec.padding != Padding.REFLECTION,
        one.spec.deterministic,
    )
    return _KEYS.setdefault(key, key)


def vector_size(dtype: torch.dtype) -> int:
    """Channels that move as one vector."""
    return 8 if dtype.itemsize == 1 else _VECTOR_BYTES // dtype.itemsize


def _is_interleaved(one: Description) -> bool:
    """Whether channels lie side by side, in whole vectors, wherever a pixel is.

    The backward kernels have no use for that in volumes.
    """
    if len(one.source[0]) == 5 and (one.by_source or one.by_parameters):
        return False
    size = vector_size(one.dtype)
    maps = [layout for layout in (one.source, one.target, one.by_source) if layout is not None]
    return (
        one.is_aligned
        and one.source[0][1] % size == 0
        and all(layout[1][1] == 1 for layout in maps)
        and all(
            stride % size == 0
            for layout in maps
            for axis, stride in enumerate(layout[1])
            if axis != 1
        )
    )


def _put_map(target: Any, layout: Layout) -> None:
    target["batch"] = layout[0][0]
    target["batch_stride"], target["channel_stride"] = layout[1][:2]
    target["stride"][: len(layout[1]) - 2] = layout[1][:1:-1]


def _put_points(item: Any, one: Description) -> None:
    for name, layout in (("points", one.parameters), ("by_points", one.by_parameters)):
        if layout is not None:
            points = item[name]
            points["batch"], points["batch_stride"] = layout[0][0], layout[1][0]
            points["channel_stride"] = layout[1][-1]
            points["stride"][: len(layout[1]) - 2] = layout[1][-2:0:-1]


def _put_tiling(tiling: Any, size: Sequence[int], chunks: int) -> None:
    """Tiles of about as many pieces of work, whatever the channels; shaped after the map."""
    logs = max(0, (_UNITS_PER_TILE // chunks // 32).bit_length() - 1)
    width, rows = size[-1], math.prod(size[:-1])
    width_log = min(logs // 2, max(0, (width - 1).bit_length() - 3))
    height_log = min(logs - width_log, 5)
    across = -(-width // (8 << width_log))
    down = -(-rows // (4 << height_log))
    tiling["size"] = [*reversed(size), 1][:3]
    tiling["rows"], tiling["across"], tiling["count"] = rows, across, across * down
    tiling["width_log"], tiling["height_log"] = width_log, height_log


def _put_generator(item: Any, one: Description) -> tuple[Tensor, ...]:
    factors = _factors(one)
    entries = len(factors) if one.kind not in FIELDS else 0
    count = math.prod(one.parameters[0][1:]) if one.kind not in FIELDS else 0
    kind = Affine if one.kind in SIMILARITIES else one.kind
    item["kind"], item["own_kind"] = KINDS[kind], KINDS[one.kind]
    item["entries"] = count if one.kind is ThinPlateSpline else entries
    item["count"] = 6 if one.kind in SIMILARITIES else count
    item["own_wide"] = one.parameter_dtype == torch.float64
    item["wide"] = item["own_wide"] or one.kind in SIMILARITIES
    flat = tuple(factor for factors_of_entry in factors for factor in factors_of_entry)
    on_device = constant(flat, torch.float64, one.device)
    item["factors"] = on_device.data_ptr()
    fill = _fill(one)
    if fill is None:
        return (on_device,)
    item["fill"] = fill.data_ptr()
    return on_device, fill


def _fill(one: Description) -> Tensor | None:
    """One constant per channel, or None if all are 0."""
    if not any(one.spec.fill):
        return None
    values = one.spec.fill * (one.source[0][1] if len(one.spec.fill) == 1 else 1)
    return constant(values, torch.float64, one.device)


def _put_options(item: Any, one: Description) -> None:
    spec = one.spec
    item["channels"], item["batch"] = one.source[0][1], one.target[0][0]
    item["parameter_batch"] = one.parameters[0][0]
    item["padding"] = _PADDINGS[spec.padding]
    item["unit"] = 2 if spec.coordinates == Coordinates.PIXEL else int(spec.align_corners)
    item["zero_subgradient"] = spec.subgradient == Subgradient.ZERO
    item["fills"] = spec.padding == Padding.FILL


def _factors(one: Description) -> tuple[tuple[float, ...], ...]:
    """The unit changes around the parameters, as the kernels of each kind expect them."""
    size, source_size = one.target[0][2:], one.source[0][2:]
    unit = one.spec.coordinates, one.spec.align_corners
    if one.kind is Homography:
        return tuple((*row, 0.0) for row in pixel_homography(size, source_size, *unit))
    if one.kind is Affine or one.kind in SIMILARITIES:
        return _affine_factors(size, source_size, *unit)
    coordinates, align_corners = unit
    sources = [
        source_axis(n, coordinates, align_corners=align_corners) for n in reversed(source_size)
    ]
    if one.kind is ThinPlateSpline:
        return tuple((x.u / x.w, x.v / x.w) for x in sources)
    if one.kind is SamplingGrid:
        return tuple((x.u / x.w,) for x in sources)
    targets = [target_axis(n, coordinates, align_corners=align_corners) for n in reversed(size)]
    return tuple(
        (x.u * j.p / (x.w * j.r), (x.u * j.q + x.v * j.r) / (x.w * j.r), x.u / x.w)
        for x, j in zip(sources, targets, strict=True)
    )


def _affine_factors(
    size: tuple[int, ...],
    source_size: tuple[int, ...],
    coordinates: Coordinates | str,
    align_corners: bool,  # noqa: FBT001 - as pixel_affine
) -> tuple[tuple[float, ...], ...]:
    """Per entry of the matrix, the factors of all entries of theta, and a constant."""
    change, dims = pixel_affine(size, source_size, coordinates, align_corners), len(size)
    factors = np.zeros((dims, dims + 1, dims * (dims + 1) + 1))
    for a in range(dims):
        own = a * (dims + 1)
        for b in range(dims):
            factors[a, b, own + b] = change.scales[a][b]
            factors[a, dims, own + b] = change.offsets[a][b]
        factors[a, dims, own + dims], factors[a, dims, -1] = change.scale[a], change.offset[a]
    return tuple(map(tuple, factors.reshape(dims * (dims + 1), -1).tolist()))
