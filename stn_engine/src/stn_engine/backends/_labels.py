"""Label maps as they are stored: integers that are moved bit for bit, whatever they stand for.

Kernels know a label by its size alone: as an integer of as many bytes, which is unsigned if it is
one byte, and signed if it is more.
"""

from dataclasses import replace

import torch
from torch import Tensor

from stn_engine.call import Call, Layout
from stn_engine.checks import LABEL_DTYPES

_BY_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype as which labels are moved; any other dtype is returned as it is."""
    return _BY_BYTES[dtype.itemsize] if dtype in LABEL_DTYPES else dtype


def stored_labels(labels: Tensor) -> Tensor:
    """Returns the same memory in the dtype that labels are moved as."""
    return labels.view(stored_dtype(labels.dtype))


def stored_fill(fill: tuple[float | int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """Returns constants as stored labels: rounded half to even, and saturated."""
    least, most = (0, 1) if dtype == torch.bool else _range(dtype)
    labels = [min(max(round(value), least), most) for value in fill]
    stored_least, stored_most = _range(stored_dtype(dtype))
    count = stored_most - stored_least + 1
    return tuple((label - stored_least) % count + stored_least for label in labels)


def as_stored(call: Call) -> Call:
    """Returns the call that moves the same bytes, for a call on labels; else the call itself."""
    dtype = call.operands[0].dtype
    if dtype not in LABEL_DTYPES:
        return call
    feature_map, parameters = call.operands
    (output,) = call.needed
    return replace(
        call,
        spec=replace(call.spec, fill=stored_fill(call.spec.fill, dtype)),
        operands=(_stored(feature_map), parameters),
        results=(_stored(output),),
    )


def _stored(layout: Layout) -> Layout:
    return layout._replace(dtype=stored_dtype(layout.dtype))


def _range(dtype: torch.dtype) -> tuple[int, int]:
    limits = torch.iinfo(dtype)
    return limits.min, limits.max
