"""Names of the contract: of its service, and the words that users have for its enumerations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

SERVICE = "stn.v1.SpatialTransformer"

_ELSEWHERE = {
    "bilinear": ("linear", "trilinear"),
    "bicubic": ("cubic",),
    "border": ("edge", "replicate", "clamp", "nearest", "repeat"),
    "reflection": ("reflect", "mirror", "symmetric", "reflect_101", "reflect101"),
    "fill": ("constant", "borderValue", "cval", "fill_value", "fillcolor"),
    "pixel": ("pixels", "px", "absolute"),
    "normalized": ("normalised", "relative"),
    "interpolation": ("mode", "order", "flags", "resample", "interp"),
    "padding": ("padding_mode", "borderMode", "border_mode", "boundary"),
    "output_size": ("size", "dsize", "output_shape", "shape"),
    "layout": ("data_format", "channel_axis", "channels_last"),
    "timeout_s": ("timeout", "deadline"),
    "homography": ("perspective", "projective"),
    "rigid": ("euclidean", "euler", "isometry"),
    "spline": ("tps", "thin_plate", "thin_plate_spline"),
    "ssd": ("mse", "l2", "MSE"),
    "huber": ("l1", "smooth_l1"),
}
"""Words of other libraries for ours."""

_INSIDE = re.compile(r"^(?:spec|transform\.\w+)\.(?=[\w.]+)")
"""Where the contract has what callers give as an argument of its own."""


def argument_of(path: str) -> str:
    """Returns a field of a request by the name of the argument that it is made of.

    Texts that begin with a field are taken as well: `transform.affine.theta: expected ...`.
    """
    return _INSIDE.sub("", path)


def meant(word: object, known: Iterable[str]) -> str | None:
    """Returns the known word that somebody seems to have meant by another; None: no idea."""
    text, words = str(word), list(known)
    for ours, theirs in _ELSEWHERE.items():
        if ours in words and text in theirs:
            return ours
    return next(iter(get_close_matches(text.lower(), words, n=1, cutoff=0.75)), None)


@cache
def words_of(enumeration: EnumDescriptor) -> MappingProxyType[int, str]:
    """Returns the word of every number but 0: PADDING_ZEROS is "zeros", LAYOUT_NHWC "NHWC"."""
    values: Any = enumeration.values_by_number
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    names = {number: value.name.removeprefix(prefix) for number, value in values.items() if number}
    if enumeration.name != "Layout":
        names = {number: name.lower() for number, name in names.items()}
    return MappingProxyType(names)
