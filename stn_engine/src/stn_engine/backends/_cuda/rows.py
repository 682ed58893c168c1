"""Rows of the table without addresses: what shapes, strides and options make of an item.

They are made once for each combination and kept; what changes from call to call are the addresses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends._cuda.item import FIELDS, ITEM, KINDS, SIMILARITIES
from stn_engine.coords import pixel_affine, pixel_homography, source_axis, target_axis
from stn_engine.spec import Coordinates, Interpolation, Padding, Subgradient, WarpSpec
from stn_engine.transforms import Affine, Flow, Homography, SamplingGrid, ThinPlateSpline

_FAMILIES = {Flow: "field", SamplingGrid: "field", ThinPlateSpline: "spline"}
_PADDINGS = {one: number for number, one in enumerate(Padding)}
_VECTOR_BYTES = 16
_UNITS_PER_TILE = 1024


Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a tensor."""

Form: TypeAlias = tuple[Layout, torch.dtype]
"""What a tensor is but for its memory."""


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
    packs: bool
    by_source: Layout | None
    by_parameters: Layout | None
    is_aligned: bool


@dataclass(frozen=True, eq=False)
class Key:
    """What the items of one batch have in common; equal ones are identical."""

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
    packs: bool
    """Whether parameters have to be made contiguous first."""
    results: tuple[str, ...]
    """``"target"``, or those of ``"by_source"`` and ``"by_parameters"`` that are needed."""
    gathers: bool
    """Whether gradients of maps are made by the inverse of the transform."""
    deterministic: bool

    @property
    def is_flat(self) -> bool:
        """Whether gradients of transforms are 0."""
        return self.interpolation == Interpolation.NEAREST

    @cached_property
    def columns(self) -> dict[str, str]:
        """Where in an item the transform's own parameters and their gradient are."""
        if self.family == "field":
            return {"parameters": "points", "by_parameters": "by_points"}
        return {"parameters": "own_parameters" if self.expands else "parameters"}


TILES = ("target_tiles", "source_tiles", "field_tiles", "thetas")
"""What kernels run over: tiles of target maps, of gradients of maps, and of those of grids and
flows; parameters."""

SIZES = ("sums", "maps", "map_values", "target", "by_source", "by_parameters")
"""What memory has to hold: partial sums of the parameters' gradient, feature maps, their values;
and the bytes of V, of the gradient of U, and of that of the parameters, each rounded up."""

ALIGNMENT = 256
"""Bytes of which every result begins at a multiple in memory that several share."""


@dataclass(frozen=True, eq=False)
class Row:
    """A row without addresses, and what the host has to know of it.

    Attributes:
        key: Whom it can share a batch with.
        words: The bytes of the row and, behind it, how many ``TILES`` and ``SIZES`` it has.
        forms: Of the key's results.
        constants: Tensors whose addresses are in the row.
    """

    key: Key
    words: bytes
    forms: dict[str, Form]
    constants: tuple[Tensor, ...]


class Rows:
    """All rows that were ever asked for, until they are too many.

    Args:
        most: Rows that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._generation = 0
        self._rows: dict[Description, Row] = {}
        self._former: dict[Description, Row] = {}

    def current(self) -> int:
        """The generation of the rows that are found from here on; no other may be launched.

        Whoever lets go of a row last frees constants that kernels read. Those of one generation
        are therefore held until the next one ends and nothing runs that was launched with them.
        """
        if len(self._rows) >= self._most:
            gpus = {row.key.device for row in self._former.values()} - {torch.device("cpu")}
            if gpus and torch.cuda.is_current_stream_capturing():
                return self._generation  # to wait for a device would end the capture
            for gpu in gpus:
                torch.cuda.synchronize(gpu)
            self._former, self._rows = self._rows, {}
            self._generation += 1
        return self._generation

    def row_of(self, description: Description) -> Row:
        """The row of this description, kept for the next call."""
        row = self._rows.get(description)
        if row is None:
            row = self._rows[description] = _new_row(description)
        return row


ROWS = Rows(most=4096)
_KEYS: dict[tuple[Any, ...], Key] = {}


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
    return Row(
        key=_key(one, interleaved=interleaved),
        words=item.tobytes() + np.array(_counts(item, one), np.int64).tobytes(),
        forms=_forms(one),
        constants=constants,
    )


def _counts(item: Any, one: Description) -> tuple[int, ...]:
    """How many ``TILES`` and ``SIZES`` an item has."""
    maps, targets, thetas = (layout[0][0] for layout in (one.source, one.target, one.parameters))
    tiles, values = int(item["to"]["count"]), math.prod(one.source[0])
    return (
        targets * tiles,
        maps * int(item["from"]["count"]),
        thetas * tiles,
        thetas,
        targets * tiles * int(item["entries"]),
        maps,
        values,
        _rounded_up(math.prod(one.target[0]) * one.dtype.itemsize),
        _rounded_up(values * one.dtype.itemsize),
        _rounded_up(math.prod(one.parameters[0]) * one.parameter_dtype.itemsize),
    )


def _rounded_up(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _forms(one: Description) -> dict[str, Form]:
    """Results of a warp, or of its gradients."""
    forms: dict[str, Form] = {}
    if one.by_source is not None:
        forms["by_source"] = one.by_source, one.dtype
    if one.by_parameters is not None:
        forms["by_parameters"] = one.by_parameters, one.parameter_dtype
    return forms or {"target": (one.target, one.dtype)}


def _key(one: Description, *, interleaved: bool) -> Key:
    """The key of a description."""
    family = _FAMILIES.get(one.kind, "matrix")
    fields = (
        one.device,
        one.dtype,
        len(one.source[0]) - 2,
        one.spec.interpolation,
        family,
        "interleaved" if interleaved else "planes",
        one.kind in SIMILARITIES,
        one.packs,
        tuple(_forms(one)),
        family == "matrix" and one.spec.padding != Padding.REFLECTION,
        one.spec.deterministic,
    )
    return _KEYS.setdefault(fields, Key(*fields))


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
    target["stride"][: len(layout[1]) - 2] = _steps(layout)[:1:-1]


def _put_points(item: Any, one: Description) -> None:
    for name, layout in (("points", one.parameters), ("by_points", one.by_parameters)):
        if layout is not None:
            points = item[name]
            points["batch"], points["batch_stride"] = layout[0][0], layout[1][0]
            points["channel_stride"] = layout[1][-1]
            points["stride"][: len(layout[1]) - 2] = _steps(layout)[-2:0:-1]


def _steps(layout: Layout) -> list[int]:
    """Strides, but 0 of axes of size 1: nobody steps along them, and theirs may be any number."""
    return [0 if size == 1 else stride for size, stride in zip(*layout, strict=True)]


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
