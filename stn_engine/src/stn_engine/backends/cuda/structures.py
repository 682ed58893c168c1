"""What the host and the kernels know of memory alike: structures and constants.

``.ci/generate_native.py`` writes them into ``native/cuda/structures.h``, so that a field has the
same name, type and place on both sides.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stn_engine.backends.cuda.tuning import UNITS_PER_TILE


class Field(NamedTuple):
    """A field of a structure."""

    name: str
    type: str
    """In C++: ``int``, ``int64``, ``double``, a pointer, or another structure."""
    note: str = ""
    """What it means, if its name does not say it."""
    length: int = 1
    """How many there are, one behind the other."""


CONSTANTS = {
    "kPatchWidthLog": (3, "a patch of pixels, one for each lane of a warp, is 8 wide"),
    "kPatchHeightLog": (2, "and 4 high"),
    "kTilePixels": (UNITS_PER_TILE, "of a tile at most"),
    "kVectorBytes": (16, "of neighbouring channels, which move as one"),
    "kVectorChannels": (8, "of them at most"),
    "kPreimageBytes": (320, "that the host takes for what is known of one theta"),
    "kMomentCount": (6, "of the maps that an objective compares: the first of the sums of a tile"),
    "kComparedBytes": (40, "of what the moments of one item come to"),
}
"""Value and meaning of each."""

PATCH_WIDTH = 1 << CONSTANTS["kPatchWidthLog"][0]
PATCH_HEIGHT = 1 << CONSTANTS["kPatchHeightLog"][0]
VECTOR_BYTES, VECTOR_CHANNELS = CONSTANTS["kVectorBytes"][0], CONSTANTS["kVectorChannels"][0]
PREIMAGE_BYTES = CONSTANTS["kPreimageBytes"][0]
MOMENTS = CONSTANTS["kMomentCount"][0]
COMPARED_BYTES = CONSTANTS["kComparedBytes"][0]
MAP = (
    Field("data", "char*"),
    Field("batch_stride", "int64"),
    Field("channel_stride", "int64"),
    Field("stride", "int", "along x, y, z", 3),
    Field("batch", "int"),
)
TILING = (
    Field("size", "int", "of the map along x, y, z", 3),
    Field("rows", "int", "of the map: size[1]·size[2]"),
    Field("width_log", "int", "a tile has 2^width_log patches side by side"),
    Field("height_log", "int", "and 2^height_log on top of each other"),
    Field("across", "int", "tiles side by side"),
    Field("count", "int", "tiles of the map"),
)
NUMBERS = (
    Field("data", "char*"),
    Field("batch_stride", "int64"),
    Field("row_stride", "int64"),
    Field("column_stride", "int64"),
    Field("columns", "int", "of a row; vectors are one row"),
    Field("wide", "int", "whether they are float64, else float32"),
)
DESCRIPTOR = (
    Field("feature_map", "Map", "U"),
    Field("output", "Map", "V; forward only"),
    Field("grad_output", "Map", "G; backward only"),
    Field("grad_feature_map", "Map"),
    Field("fixed", "Map", "F of an objective"),
    Field("weights", "Map", "of an objective; no data where all are 1"),
    Field("points", "Map", "of a grid or a flow"),
    Field("grad_points", "Map"),
    Field("grad_parameters", "Numbers", "but of fields"),
    Field("own_parameters", "Numbers", "where they are prepared: not theta, or not in one piece"),
    Field("parameters", "char*", "(parameter_batch, count): theta, or the points of a spline"),
    Field(
        "factors", "const double*", "(entries, count + 1), from theta to matrix; or unit changes"
    ),
    Field("basis", "const double*", "(count / 2, target pixels); splines"),
    Field("fill", "const double*", "one per channel; null where all are 0"),
    Field(
        "sums", "double*", "(tiles, entries or terms): parts of what is summed over target pixels"
    ),
    Field("value", "double*", "(batch,); results of objectives"),
    Field("weight", "double*", "(batch,): the sum of the weights"),
    Field("gauss_newton", "double*", "(batch, parameters, parameters)"),
    Field("compared", "Compared*", "(batch,): what is known of items before their gradients"),
    Field("delta", "double", "of the loss"),
    Field("accumulators", "char*", "of a scattered gradient of U"),
    Field("peaks", "uint64*", "(batch of U,): the largest |G|, as bits of a float64"),
    Field("preimages", "PixelPreimage*", "(parameter_batch,)"),
    Field("source", "Tiling", "of U and its gradient"),
    Field("target", "Tiling", "of V and G"),
    Field("channels", "int"),
    Field("batch", "int", "after broadcasting"),
    Field("parameter_batch", "int"),
    Field("count", "int", "parameters of one theta"),
    Field("entries", "int", "of its matrix"),
    Field("padding", "int", "Padding"),
    Field("unit", "int", "Unit"),
    Field("kind", "int", "Kind; that of an affine map for a similarity"),
    Field("own_kind", "int", "Kind as the caller has it"),
    Field("wide", "int", "whether parameters or points are float64"),
    Field("zero_subgradient", "int", "whether coordinates that are integers have no slope"),
    Field("fills", "int", "whether taps outside read `fill`"),
    Field("finishes", "int", "whether a theta has one tile of G, which writes its gradient"),
    Field("inverts", "int", "whether it has one tile of U, which finds its preimage"),
    Field("loss", "int", "Loss"),
    Field("domain", "int", "Domain"),
    Field("terms", "int", "of a tile of an objective: moments, a gradient, and curvatures"),
    Field("curves", "int", "whether there are curvatures"),
)
LAUNCH = (
    Field("problem", "Descriptor", "the only one, if there is one"),
    Field("table", "const Descriptor*", "of several problems"),
    Field("starts", "const int64*", "the first tile of each of them"),
    Field("tiles", "int64", "of all problems"),
    Field("count", "int64", "of problems"),
)
STRUCTURES = {
    "Map": (
        "A batch of maps with channels, or of points. Strides are in elements.",
        MAP,
    ),
    "Tiling": ("How the pixels of a map are cut into tiles.", TILING),
    "Numbers": (
        "Parameters of a batch, a matrix each. Strides are in elements.",
        NUMBERS,
    ),
    "Descriptor": ("One problem of a launch.", DESCRIPTOR),
    "Launch": ("What every kernel is called with, by value.", LAUNCH),
}
"""Meaning and fields of each; one may have those before it as fields."""


def _dtypes() -> dict[str, np.dtype[Any]]:
    """Each structure as NumPy sees it, with the paddings of C++."""
    known: dict[str, Any] = {"int": np.int32, "int64": np.int64, "double": np.float64}
    for name, (_, fields) in STRUCTURES.items():
        known[name] = np.dtype([_member(field, known) for field in fields], align=True)
    return known


def _member(field: Field, known: dict[str, Any]) -> tuple[Any, ...]:
    dtype = np.int64 if field.type.endswith("*") else known[field.type]
    return (field.name, dtype) if field.length == 1 else (field.name, dtype, field.length)


def _addresses(fields: Sequence[Field], dtype: Any) -> dict[str, int]:
    """Which 64-bit word of a descriptor holds the address of what."""
    return {
        field.name: dtype.fields[field.name][1] // 8
        for field in fields
        if field.type in {"Map", "Numbers"} or field.type.endswith("*")
    }


DTYPES = _dtypes()
DTYPE = DTYPES["Descriptor"]
"""A descriptor, byte for byte as kernels read it."""

WORDS = DTYPE.itemsize // 8
"""64-bit words of a descriptor."""

ADDRESSES = _addresses(DESCRIPTOR, DTYPE)
"""Which 64-bit word of a descriptor holds the address of what; that of a structure is its first."""

LAUNCH_WORDS = DTYPES["Launch"].itemsize // 8
"""64-bit words of what a kernel is called with; the first ones are those of the only problem."""

TABLE, STARTS, TILES, COUNT = range(WORDS, LAUNCH_WORDS)
"""Which of them is what: where descriptors and their first tiles are, and how many tiles and
problems there are."""
