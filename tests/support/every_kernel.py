"""Small problems that between them run every kernel of the ``cuda`` backend."""

from collections.abc import Iterator

import torch

from stn_engine import WarpGradientsProblem, WarpProblem, WarpSpec
from support.strategies import IMAGE, VOLUME, random_gradients, random_warp

FAR = {"size": (5, 7), "output_size": (33, 29)}
"""Many target pixels read each source pixel."""

WIDE = {"size": (41, 47), "output_size": (6, 5)}
DEEP = {"size": (11, 13, 14), "output_size": (3, 4, 5)}
"""Maps of more than one tile."""

KINDS = (
    ("affine", IMAGE),
    ("affine", FAR),
    ("homography", FAR),
    ("similarity", IMAGE),
    ("thin_plate_spline", IMAGE),
    ("grid", IMAGE),
    ("affine", VOLUME),
    ("flow", VOLUME),
    ("affine", WIDE),
    ("affine", DEEP),
)
SPECS = (
    WarpSpec(padding="zeros"),
    WarpSpec(padding="border", interpolation="bicubic"),
    WarpSpec(padding="reflection", deterministic=False),
    WarpSpec(padding="fill", fill=0.5, interpolation="nearest"),
)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.uint16,
    torch.int16,
)


def every_kernel() -> Iterator[WarpGradientsProblem | WarpProblem]:
    """The problems; channels lie apart, or side by side in vectors; integers have no gradients."""
    for kind, sizes in KINDS:
        for spec in SPECS:
            for dtype in DTYPES:
                for channels in (3, 8):
                    yield _problem(kind, sizes, spec, dtype, channels)


def _problem(kind, sizes, spec, dtype, channels):
    warp = random_warp(1, kind=kind, dtype=dtype, channels=channels, spec=spec, **sizes)
    if channels == 8:
        last = torch.channels_last if len(sizes["size"]) == 2 else torch.channels_last_3d
        source = warp.feature_map.contiguous(memory_format=last)
        warp = warp.bound(source, warp.transform.parameters)
    if not dtype.is_floating_point:
        return warp
    problem = random_gradients(2, warp)
    if channels == 8:
        problem = problem.bound(problem.grad_output.contiguous(memory_format=last), *warp.operands)
    return problem
