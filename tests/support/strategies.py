"""Makes problems: one seeded builder, and Hypothesis strategies on top of it."""

import itertools

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import stn_engine
from stn_engine import (
    Affine,
    Attention,
    Flow,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
)

DETERMINISTIC = settings(derandomize=True, deadline=None, database=None, max_examples=60)
"""The same examples on every run."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
PADDINGS = ("zeros", "border", "reflection", "fill")
CONVENTIONS = (("normalized", False), ("normalized", True), ("pixel", False))
SUBGRADIENTS = ("right", "zero")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
"""Those of the whole matrix of options."""
WIDE_LEVELS = (torch.uint16, torch.int16)


def random_values(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Standard normal values; all that integers may be."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    if not dtype.is_floating_point:
        last = 2 if dtype == torch.bool else 256
        size = (*shape[:-1], shape[-1] * dtype.itemsize)
        return torch.randint(0, last, size, generator=generator, dtype=torch.uint8).view(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def random_warp(
    seed: int,
    *,
    kind: str = "affine",
    dtype: torch.dtype = torch.float64,
    parameter_dtype: torch.dtype | None = None,
    batch: tuple[int, int] = (2, 2),
    channels: int = 3,
    size: tuple[int, ...] = (5, 7),
    output_size: tuple[int, ...] = (4, 6),
    spec: WarpSpec | None = None,
) -> WarpProblem:
    """A warp that reads mostly inside its feature map and a bit outside, all around.

    ``batch`` is (N of the feature map, N of the transform).
    """
    spec = WarpSpec() if spec is None else spec
    if parameter_dtype is None:
        parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    feature_map = random_values(seed, (batch[0], channels, *size), dtype)
    transform = random_transform(seed + 1, kind, batch[1], size, output_size, spec.coordinates)
    transform = transform.with_parameters(transform.parameters.to(parameter_dtype))
    return WarpProblem(feature_map, transform, output_size, spec)


def random_transform(seed, kind, n, size, output_size, coordinates):
    """A float64 transform of ``n`` items that reads a map of ``size`` into ``output_size``."""
    return MAKERS[kind](seed, n, size, output_size, coordinates == "pixel")


def random_gradients(seed: int, warp: WarpProblem, **options) -> WarpGradientsProblem:
    """The gradients of ``warp`` for a random gradient of its output."""
    grad_output = random_values(seed, warp.output_shape, warp.output_dtype)
    return WarpGradientsProblem(warp, grad_output, **options)


def as_function(problem):
    """The warp as a function of its two operands, and these operands, both recorded."""
    spec = problem.spec
    options = {name: getattr(spec, name) for name in WarpSpec.__dataclass_fields__}

    def function(feature_map, parameters):
        transform = problem.transform.with_parameters(parameters)
        return stn_engine.warp(feature_map, transform, problem.output_size, **options)

    operands = problem.feature_map, problem.transform.parameters
    return function, tuple(operand.clone().requires_grad_() for operand in operands)


def _random_affine(seed, n, size, output_size, in_pixels):
    dims = len(size)
    noise = random_values(seed, (n, dims, dims + 1), torch.float64)
    identity = torch.eye(dims, dims + 1).double()
    if not in_pixels:
        return Affine(identity + 0.25 * noise)
    stretch = [read / max(written, 1) for read, written in zip(size, output_size, strict=True)]
    spread = torch.tensor([*dims * [0.25], 1.0]).double()
    return Affine(identity * torch.tensor(stretch[::-1]).double()[:, None] + noise * spread)


def _random_homography(seed, n, size, output_size, in_pixels):
    """W stays between 0.6 and 1.4: the horizon is elsewhere."""
    affine = _random_affine(seed, n, size, output_size, in_pixels).theta
    tilt = 0.2 * random_values(seed + 1, (n, 1, 2), torch.float64).tanh()
    if in_pixels:
        tilt = tilt / torch.tensor([max(output_size[1], 1), max(output_size[0], 1)]).double()
    row = torch.cat((tilt, torch.ones(n, 1, 1).double()), 2)
    return Homography(torch.cat((affine, row), 1))


def _random_similarity(seed, n, size, output_size, in_pixels):
    noise = random_values(seed, (n, 4), torch.float64)
    zoom = size[0] / max(output_size[0], 1) if in_pixels else 1.0
    spread = torch.tensor([0.25, 0.5, *((1.0, 1.0) if in_pixels else (0.3, 0.3))]).double()
    return Similarity(torch.tensor([zoom, 0.0, 0.0, 0.0]).double() + spread * noise)


def _random_part(kind, columns):
    """A maker of transforms whose parameters are some of those of a similarity."""
    return lambda *args: kind(_random_similarity(*args).parameters[:, columns])


def _random_spline(seed, n, size, output_size, in_pixels):
    control = torch.cartesian_prod(*2 * [torch.linspace(-0.9, 0.9, 3).double()])
    control = control + 0.1 * random_values(0, control.shape, torch.float64)
    source, noise = control, 0.15 * random_values(seed, (n, 9, 2), torch.float64)
    if in_pixels:
        target_extent, source_extent = (
            torch.tensor([max(width, 2), max(height, 2)]).double()
            for height, width in (output_size, size)
        )
        control = (control + 1) / 2 * target_extent
        source, noise = (source + 1) / 2 * source_extent, noise * source_extent / 2
    return ThinPlateSpline(source + noise, control_points=control, regularization=0.01)


def _random_flow(seed, n, size, output_size, in_pixels):
    del size
    noise = random_values(seed, (n, *output_size, len(output_size)), torch.float64)
    return Flow((1.5 if in_pixels else 0.4) * noise)


def _random_grid(seed, n, size, output_size, in_pixels):
    grid = 0.9 * random_values(seed, (n, *output_size, len(size)), torch.float64)
    if in_pixels:
        extent = torch.tensor(size[::-1]).double()
        grid = (grid + 1) * extent / 2
    return SamplingGrid(grid)


MAKERS = {
    "affine": _random_affine,
    "homography": _random_homography,
    "attention": _random_part(Attention, [0, 2, 3]),
    "similarity": _random_similarity,
    "translation": _random_part(Translation, [2, 3]),
    "rotation": _random_part(Rotation, [1]),
    "thin_plate_spline": _random_spline,
    "flow": _random_flow,
    "grid": _random_grid,
}
"""Every kind of transform."""

KINDS = tuple(MAKERS)
VOLUME_KINDS = ("affine", "flow", "grid")
"""Those that read volumes as well as images."""
GENERATORS = tuple(kind for kind in KINDS if kind != "grid")

IMAGE = {"size": (5, 7), "output_size": (4, 6)}
VOLUME = {"size": (3, 4, 5), "output_size": (2, 3, 4)}
KINDS_AND_SIZES = [
    *(pytest.param(kind, IMAGE, id=kind) for kind in KINDS),
    *(pytest.param(kind, VOLUME, id=f"{kind} of volumes") for kind in VOLUME_KINDS),
]
"""Every kind of transform, in two dimensions and where possible in three."""


def volume_options() -> list[dict]:
    """Interpolation x padding x convention, with all else dealt out among them.

    The subgradients, kinds and batches meet every value of those three; dtypes go round.
    """
    dtypes = itertools.cycle(DTYPES)
    batches = ((2, 2), (1, 2), (2, 1))
    return [
        {
            "kind": VOLUME_KINDS[(i + p + c) % 3],
            "dtype": next(dtypes),
            "batch": batches[(i + 2 * p + c) % 3],
            "spec": WarpSpec(
                interpolation=interpolation,
                padding=padding,
                fill=0.5,
                coordinates=coordinates,
                align_corners=align_corners,
                subgradient=SUBGRADIENTS[(i + p + c) // 2 % 2],
            ),
        }
        for i, interpolation in enumerate(INTERPOLATIONS)
        for p, padding in enumerate(PADDINGS)
        for c, (coordinates, align_corners) in enumerate(CONVENTIONS)
    ]


@st.composite
def specs(draw, channels: int = 3, **fixed) -> WarpSpec:
    """Any spec; ``fixed`` pins some of its fields."""
    coordinates, align_corners = draw(st.sampled_from(CONVENTIONS))
    fill = draw(st.sampled_from([0.0, 0.75, tuple(0.5 * c - 1 for c in range(channels))]))
    fields = {
        "interpolation": draw(st.sampled_from(INTERPOLATIONS)),
        "padding": draw(st.sampled_from(PADDINGS)),
        "fill": fill,
        "coordinates": coordinates,
        "align_corners": align_corners,
        "subgradient": draw(st.sampled_from(SUBGRADIENTS)),
    }
    return WarpSpec(**(fields | fixed))


@st.composite
def layouts(draw, dtypes=DTYPES) -> dict:
    """All that must agree for warps to share a batch, but for the spec."""
    is_volume = draw(st.booleans())
    sizes = [(1, 1, 1), (1, 4, 1), (2, 3, 4)] if is_volume else [(1, 1), (1, 4), (3, 5)]
    nothing = (2, 0, 1) if is_volume else (0, 2)
    return {
        "kind": draw(st.sampled_from(VOLUME_KINDS if is_volume else KINDS)),
        "dtype": draw(st.sampled_from(dtypes)),
        "parameter_dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "size": draw(st.sampled_from(sizes)),
        "output_size": draw(st.sampled_from([*sizes, nothing])),
    }


@st.composite
def warps(draw, dtypes=DTYPES, **fixed) -> WarpProblem:
    """Any small warp in 2-D or 3-D, broadcast or not; ``fixed`` pins some fields of its spec."""
    return draw(_warps(draw(layouts(dtypes)), draw(specs(**fixed))))


@st.composite
def crowds(draw, dtypes=DTYPES, max_size: int = 8) -> list[WarpProblem]:
    """Small warps of few layouts and few specs, so that many of them can share a batch."""
    few_layouts = st.sampled_from(draw(st.lists(layouts(dtypes), min_size=1, max_size=2)))
    few_specs = st.sampled_from(draw(st.lists(specs(), min_size=1, max_size=2)))
    size = draw(st.integers(0, max_size))
    return [draw(_warps(draw(few_layouts), draw(few_specs))) for _ in range(size)]


@st.composite
def _warps(draw, layout, spec):
    n = draw(st.integers(0, 3))
    batch = draw(st.sampled_from([(n, n), (1, n), (n, 1)]))
    return random_warp(draw(st.integers(0, 2**16)), batch=batch, spec=spec, **layout)
