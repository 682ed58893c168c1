"""Small problems that between them run every kernel of the ``cuda`` backend."""

from collections.abc import Iterator
from itertools import cycle, product

import torch
from torch import Tensor

from stn_engine import ObjectiveProblem, WarpGradientsProblem, WarpProblem, WarpSpec
from stn_engine.backends._results import parts_of
from support.objectives import DOMAINS, LOSSES, random_objective
from support.strategies import IMAGE, VOLUME, random_gradients, random_warp

EveryProblem = WarpGradientsProblem | WarpProblem | ObjectiveProblem

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


def every_kernel() -> Iterator[EveryProblem]:
    """The problems; channels lie apart, or side by side in vectors; integers have no gradients."""
    comparisons = cycle([*product(LOSSES, DOMAINS, (True,)), ("ssd", "all", False)])
    for kind, sizes in KINDS:
        for spec in SPECS:
            for dtype in DTYPES:
                for channels in (3, 8):
                    yield _problem(kind, sizes, spec, dtype, channels)
                if dtype.is_floating_point:
                    loss, domain, weighted = next(comparisons)
                    options = {"loss": loss, "domain": domain, "weighted": weighted}
                    options |= {"kind": kind, "spec": spec, "batch": (1, 2, 1, 1)}
                    yield random_objective(3, dtype=dtype, **options, **sizes)


def results_of(backend, problem: EveryProblem) -> list[Tensor]:
    """All that kernels write for a problem: V with the gradients of it, or an objective."""
    if isinstance(problem, ObjectiveProblem):
        return list(parts_of(backend.objective([problem])[0]))
    results = list(backend.warp([getattr(problem, "warp", problem)]))
    if isinstance(problem, WarpGradientsProblem):
        results += parts_of(backend.warp_gradients([problem])[0])
    return results


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
