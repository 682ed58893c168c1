"""A row of the table that describes the problems of a launch, byte for byte as kernels read it.

``native/cuda/item.cuh`` says what its fields mean.
"""

import numpy as np

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

WORDS = ITEM.itemsize // 8
"""64-bit words of a row."""

REACH_BYTES = 384
"""At least the size of the kernels' ``Reach``."""

THETA_BYTES = 6 * 8
"""Of a similarity that has become an affine map."""

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
