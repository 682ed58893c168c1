"""Descriptors without addresses: what the layouts and options of a call come to for kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from stn_engine.backends._constants import constant
from stn_engine.backends.cuda.structures import (
    ADDRESSES,
    DTYPE,
    MOMENTS,
    PATCH_HEIGHT,
    PATCH_WIDTH,
    VECTOR_BYTES,
    VECTOR_CHANNELS,
)
from stn_engine.backends.cuda.tuning import UNITS_PER_TILE
from stn_engine.call import Call, Direction, Layout, contiguous
from stn_engine.coords import pixel_affine, pixel_homography, source_axis, target_axis
from stn_engine.spec import (
    Comparison,
    Coordinates,
    Domain,
    Family,
    Interpolation,
    Loss,
    Padding,
    Subgradient,
)
from stn_engine.transforms import Affine, Homography, SamplingGrid, ThinPlateSpline


class Counts(NamedTuple):
    """How much of everything one problem has: what kernels run over, and what needs memory."""

    target_tiles: int
    """Tiles of the outputs."""
    source_tiles: int
    """Tiles of the gradients of feature maps."""
    field_tiles: int
    """Tiles of the gradients of grids and flows."""
    thetas: int
    """Sets of parameters."""
    unfinished_thetas: int
    """Thetas whose gradient is a sum over tiles."""
    uninverted_thetas: int
    """Thetas whose preimage is sought by many tiles."""
    items: int
    """Items of the batch."""
    sums: int
    """Parts of the gradients of parameters, or of all that objectives sum, one float64 each."""
    maps: int
    """Feature maps."""
    map_values: int
    """Their values."""
    parameters: int
    """Numbers of all thetas."""


@dataclass(frozen=True, eq=False)
class Group:
    """What the problems of one launch table have in common; equal ones are identical."""

    device: torch.device
    dtype: torch.dtype
    dims: int
    interpolation: Interpolation
    family: Family
    layout: str
    """``"planes"`` or ``"interleaved"``."""
    prepares: bool
    """Whether parameters have to become thetas, or to be gathered into one piece, beforehand."""
    direction: Direction
    needs: tuple[bool, bool]
    """Which gradients kernels compute: of feature maps, of transforms."""
    compared: tuple[str, ...]
    """The fields of a descriptor for what a warped map is compared with; of objectives alone."""
    measures: bool
    """Whether moments of the maps are known before gradients are made; of objectives alone."""
    results: tuple[str, ...]
    """The fields of a descriptor for the results of a call."""
    gathers: bool
    """Whether gradients of maps are made by the inverse of the transform."""
    deterministic: bool

    @cached_property
    def columns(self) -> list[int]:
        """Which words of a descriptor hold the addresses of a call, in its order."""
        parameters = "own_parameters" if self.prepares else "parameters"
        names = ["feature_map", "points" if self.family is Family.FIELD else parameters]
        if self.direction is Direction.GRADIENTS:
            names.insert(0, "grad_output")
        return [ADDRESSES[name] for name in (*names, *self.compared, *self.results)]

    @cached_property
    def maps(self) -> list[int]:
        """Which addresses of a call are those of maps."""
        if self.direction is Direction.FORWARD:
            return [0, 2]
        return [0, 1, 3] if self.needs[0] else [0, 1]

    @property
    def adds_in_place(self) -> bool:
        """Whether gradients of maps are sums of floats in the memory of the results."""
        wide = self.dtype in {torch.float32, torch.float64}
        return self.needs[0] and wide and not (self.gathers or self.deterministic)


@dataclass(frozen=True, eq=False)
class Descriptor:
    """A problem without addresses.

    Attributes:
        group: Those that it can share a launch table with.
        words: The bytes of the descriptor and, behind it, of its counts.
        constants: Tensors whose addresses are in it.
    """

    group: Group
    words: bytes
    constants: tuple[Tensor, ...]


class Operands(NamedTuple):
    """The layouts of a call by name."""

    feature_map: Layout
    parameters: Layout
    target: Layout
    """That of the output, or of its gradient; of an objective that of the warped map."""
    grad_feature_map: Layout | None
    grad_parameters: Layout | None
    compared: tuple[Layout, ...] = ()
    """The fixed map of an objective, and its weights, if there are any."""

    @classmethod
    def of(cls, call: Call) -> "Operands":
        """Describes the operands of a warp, its gradients or an objective."""
        if call.comparison is not None:
            feature_map, parameters, *compared = call.operands
            warped = contiguous(feature_map.dtype, call.output_shape)  # which is never in memory
            gradient = call.results[_GRADIENT]
            return cls(feature_map, parameters, warped, None, gradient, tuple(compared))
        if call.direction is Direction.FORWARD:
            feature_map, parameters = call.operands
            return cls(feature_map, parameters, call.needed[0], None, None)
        grad_output, feature_map, parameters = call.operands
        grad_feature_map, grad_parameters = call.results
        return cls(feature_map, parameters, grad_output, grad_feature_map, grad_parameters)

    @property
    def maps(self) -> list[Layout]:
        """All that have channels."""
        maps = self.feature_map, self.target, self.grad_feature_map, *self.compared
        return [layout for layout in maps if layout is not None]


_GROUPS: dict[Group, Group] = {}
_MATRICES = {Affine, Homography}
_GRADIENT = 2
"""Which result of an objective it is."""


def is_flat(call: Call) -> bool:
    """Whether gradients of transforms are 0."""
    return call.spec.interpolation == Interpolation.NEAREST


def can_interleave(layouts: Operands) -> bool:
    """Whether channels lie side by side, in whole vectors, wherever a pixel is.

    The backward kernels have no use for that in volumes, those of objectives none at all.
    """
    if layouts.compared:
        return False
    backward = layouts.grad_feature_map or layouts.grad_parameters
    if len(layouts.feature_map.shape) == 5 and backward:
        return False
    size = vector_size(layouts.feature_map.dtype)
    return (
        layouts.feature_map.shape[1] % size == 0
        and all(layout.strides[1] == 1 for layout in layouts.maps)
        and all(
            stride % size == 0
            for layout in layouts.maps
            for axis, stride in enumerate(layout.strides)
            if axis != 1
        )
    )


def vector_size(dtype: torch.dtype) -> int:
    """Channels that move as one vector."""
    return min(VECTOR_CHANNELS, VECTOR_BYTES // dtype.itemsize)


def describe(call: Call, layouts: Operands, *, interleaved: bool) -> Descriptor:
    """The descriptor of a call, for maps whose channels are interleaved, or for planes."""
    item = np.zeros((), DTYPE)
    chunks = layouts.feature_map.shape[1] // vector_size(layouts.feature_map.dtype)
    groups = chunks if interleaved else 1
    group = _group(call, layouts, interleaved=interleaved)
    _put_maps(item, call, layouts)
    _put_tiling(item["source"], layouts.feature_map.shape[2:], groups)
    _put_tiling(item["target"], layouts.target.shape[2:], groups)
    constants = _put_generator(item, call, layouts, group)
    _put_options(item, call, layouts)
    if call.comparison is not None:
        _put_comparison(item, call.comparison, group)
    item["finishes"], item["inverts"] = _tiles_are_alone(item, call, layouts)
    counts = np.array(_counts(item, layouts), np.int64)
    return Descriptor(group, item.tobytes() + counts.tobytes(), constants)


def _group(call: Call, layouts: Operands, *, interleaved: bool) -> Group:
    """The group of a call."""
    family = call.transform.kind.family
    field = family is Family.FIELD
    names = ["grad_feature_map", "grad_points" if field else "grad_parameters"]
    likes = [layouts.grad_feature_map, layouts.grad_parameters]
    if call.comparison is not None:
        names, likes = ["value", "weight", names[1], "gauss_newton"], list(call.results)
    results = tuple(name for name, like in zip(names, likes, strict=True) if like is not None)
    needs_slopes = layouts.grad_parameters is not None or "gauss_newton" in results
    needs_slopes = needs_slopes and not is_flat(call) and 0 not in layouts.target.shape
    group = Group(
        device=call.device,
        dtype=layouts.feature_map.dtype,
        dims=len(layouts.feature_map.shape) - 2,
        interpolation=call.spec.interpolation,
        family=family,
        layout="interleaved" if interleaved else "planes",
        prepares=not field and not (_is_theta(call) and _is_contiguous(layouts.parameters)),
        direction=call.direction,
        needs=(layouts.grad_feature_map is not None, needs_slopes),
        compared=("fixed", "weights")[: len(layouts.compared)],
        measures=call.comparison is not None
        and (field or not needs_slopes or call.comparison.loss == Loss.NCC),
        results=results or ("output",),
        gathers=family is Family.MATRIX and call.spec.padding != Padding.REFLECTION,
        deterministic=call.spec.deterministic,
    )
    return _GROUPS.setdefault(_fields(group), group)


def _fields(group: Group) -> Any:
    return tuple(getattr(group, name) for name in group.__dataclass_fields__)


def _is_theta(call: Call) -> bool:
    """Whether parameters are what kernels read: theta, or the points of a spline."""
    return call.transform in _MATRICES or call.transform.kind.family is Family.SPLINE


def _is_contiguous(layout: Layout) -> bool:
    steps, expected = _steps(layout), 1
    for size, step in zip(reversed(layout.shape), reversed(steps), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


def _counts(item: Any, layouts: Operands) -> Counts:
    maps, thetas = layouts.feature_map.shape[0], layouts.parameters.shape[0]
    tiles = int(item["target"]["count"])
    targets = layouts.target.shape[0] * tiles
    sums = 0 if item["finishes"] else targets * int(item["terms"] or item["entries"])
    return Counts(
        target_tiles=targets,
        source_tiles=maps * int(item["source"]["count"]),
        field_tiles=thetas * tiles,
        thetas=thetas,
        unfinished_thetas=0 if item["finishes"] else thetas,
        uninverted_thetas=0 if item["inverts"] else thetas,
        items=layouts.target.shape[0],
        sums=sums,
        maps=maps,
        map_values=math.prod(layouts.feature_map.shape),
        parameters=thetas * int(item["count"]),
    )


def _put_maps(item: Any, call: Call, layouts: Operands) -> None:
    _put_map(item["feature_map"], layouts.feature_map)
    for name, compared in zip(("fixed", "weights"), layouts.compared, strict=False):
        _put_map(item[name], compared)
    if not layouts.compared:
        forward = call.direction is Direction.FORWARD
        _put_map(item["output" if forward else "grad_output"], layouts.target)
    if layouts.grad_feature_map is not None:
        _put_map(item["grad_feature_map"], layouts.grad_feature_map)
    field = call.transform.kind.family is Family.FIELD
    names = ("points", "grad_points") if field else ("own_parameters", "grad_parameters")
    for name, layout in zip(names, (layouts.parameters, layouts.grad_parameters), strict=True):
        if layout is not None:
            (_put_points if field else _put_numbers)(item[name], layout)


def _put_map(target: Any, layout: Layout) -> None:
    target["batch"] = layout.shape[0]
    target["batch_stride"], target["channel_stride"] = layout.strides[:2]
    # Kernels count axes from x on, here and below.
    target["stride"][: len(layout.strides) - 2] = _steps(layout)[:1:-1]


def _put_points(target: Any, layout: Layout) -> None:
    target["batch"], target["batch_stride"] = layout.shape[0], layout.strides[0]
    target["channel_stride"] = layout.strides[-1]
    target["stride"][: len(layout.strides) - 2] = _steps(layout)[-2:0:-1]


def _put_numbers(target: Any, layout: Layout) -> None:
    target["batch_stride"], target["column_stride"] = layout.strides[0], layout.strides[-1]
    target["row_stride"] = layout.strides[1] if len(layout.shape) == 3 else 0
    target["columns"], target["wide"] = layout.shape[-1], layout.dtype == torch.float64


def _steps(layout: Layout) -> list[int]:
    """Strides, but 0 of axes of size 1: nobody steps along them, and theirs may be any number."""
    sizes = zip(layout.shape, layout.strides, strict=True)
    return [0 if size == 1 else stride for size, stride in sizes]


def _put_tiling(tiling: Any, size: Sequence[int], groups: int) -> None:
    """Tiles of about as many units, whatever the channels; shaped after the map."""
    patches = UNITS_PER_TILE // groups // (PATCH_WIDTH * PATCH_HEIGHT)
    logs = max(0, patches.bit_length() - 1)
    width, rows = size[-1], math.prod(size[:-1])
    width_log = min(logs // 2, max(0, (width - 1).bit_length() - PATCH_WIDTH.bit_length() + 1))
    height_log = min(logs - width_log, 5)
    across = -(-width // (PATCH_WIDTH << width_log))
    down = -(-rows // (PATCH_HEIGHT << height_log))
    tiling["size"] = [*reversed(size), 1][:3]
    tiling["rows"], tiling["across"], tiling["count"] = rows, across, across * down
    tiling["width_log"], tiling["height_log"] = width_log, height_log


def _put_generator(item: Any, call: Call, layouts: Operands, group: Group) -> tuple[Tensor, ...]:
    kind = call.transform.kind
    factors = _factors(call, layouts) if 0 not in layouts.target.shape[2:] else ()
    count = 0 if kind.family is Family.FIELD else math.prod(layouts.parameters.shape[1:])
    similar = kind.family is Family.MATRIX and call.transform not in _MATRICES
    item["kind"], item["own_kind"] = (Affine.kind if similar else kind).number, kind.number
    item["count"] = 6 if similar else count
    if kind.family is Family.MATRIX:
        item["entries"] = len(factors)
    elif kind.family is Family.SPLINE:
        item["entries"] = count
    item["wide"] = group.prepares or layouts.parameters.dtype == torch.float64
    flat = tuple(factor for factors_of_entry in factors for factor in factors_of_entry)
    on_device = constant(flat, torch.float64, call.device)
    item["factors"] = on_device.data_ptr()
    fill = _fill(call, layouts)
    if fill is None:
        return (on_device,)
    item["fill"] = fill.data_ptr()
    return on_device, fill


def _fill(call: Call, layouts: Operands) -> Tensor | None:
    """Returns one constant per channel, or None if all are 0."""
    fill = tuple(map(float, call.spec.fill))
    if not any(fill):
        return None
    values = fill * (layouts.feature_map.shape[1] if len(fill) == 1 else 1)
    return constant(values, torch.float64, call.device)


def _put_options(item: Any, call: Call, layouts: Operands) -> None:
    spec = call.spec
    item["channels"], item["batch"] = layouts.feature_map.shape[1], layouts.target.shape[0]
    item["parameter_batch"] = layouts.parameters.shape[0]
    item["padding"], item["unit"] = spec.padding.number, spec.unit.number
    item["zero_subgradient"] = spec.subgradient == Subgradient.ZERO
    item["fills"] = spec.padding == Padding.FILL


def _put_comparison(item: Any, how: Comparison, group: Group) -> None:
    """What an objective has beside its warp."""
    dims, entries = group.dims, int(item["entries"])
    item["loss"] = cast("Loss", how.loss).number
    item["domain"] = cast("Domain", how.domain).number
    item["delta"] = how.delta
    item["terms"] = MOMENTS
    if not group.needs[1]:
        return
    item["terms"] += entries
    if "gauss_newton" in group.results:
        item["curves"] = True
        item["terms"] += _pairs(entries // (dims + 1)) * _pairs(dims + 1)


def _pairs(count: int) -> int:
    """Pairs of things without order, a thing with itself included."""
    return count * (count + 1) // 2


def _tiles_are_alone(item: Any, call: Call, layouts: Operands) -> tuple[bool, bool]:
    """Whether each matrix has one tile of the gradient of the output, and one of the map's.

    Parameters of similarities are left to a kernel that knows them.
    """
    if call.comparison is not None:  # its items have gradients of their own
        return False, False
    batch, is_matrix = layouts.target.shape[0], call.transform.kind.family is Family.MATRIX
    has_own_theta = is_matrix and layouts.parameters.shape[0] == batch
    has_own_map = has_own_theta and layouts.feature_map.shape[0] == batch
    finishes = has_own_theta and item["target"]["count"] == 1 and item["kind"] == item["own_kind"]
    return finishes, has_own_map and item["source"]["count"] == 1


def _factors(call: Call, layouts: Operands) -> tuple[tuple[float, ...], ...]:
    """The unit changes around the parameters, as the kernels of each kind expect them."""
    size, source_size = layouts.target.shape[2:], layouts.feature_map.shape[2:]
    unit = call.spec.coordinates, call.spec.align_corners
    if call.transform is Homography:
        return tuple((*row, 0.0) for row in pixel_homography(size, source_size, *unit))
    if call.transform.kind.family is Family.MATRIX:
        return _affine_factors(size, source_size, *unit)
    coordinates, align_corners = unit
    sources = [
        source_axis(n, coordinates, align_corners=align_corners) for n in reversed(source_size)
    ]
    if call.transform is ThinPlateSpline:
        return tuple((x.u / x.w, x.v / x.w) for x in sources)
    if call.transform is SamplingGrid:
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
