"""Every backend against the float64 reference, over the whole matrix of options."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from stn_engine import (
    Affine,
    GridGradientsProblem,
    GridProblem,
    Homography,
    SamplingGrid,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
)
from stn_engine.checks import LABEL_DTYPES
from support.backends import BACKENDS, FAST
from support.oracles import (
    REFERENCE,
    coordinate_extent,
    exact_gradients,
    exact_warp,
    settled,
    settled_warp,
    torch_gradients,
    torch_warp,
)
from support.strategies import (
    CONVENTIONS,
    DTYPES,
    GENERATORS,
    IMAGE,
    INTERPOLATIONS,
    KINDS,
    KINDS_AND_SIZES,
    PADDINGS,
    SUBGRADIENTS,
    VOLUME,
    VOLUME_KINDS,
    WIDE_LEVELS,
    random_gradients,
    random_transform,
    random_values,
    random_warp,
    volume_options,
)
from support.tolerances import (
    GRADIENT,
    assert_close_in_norm,
    forward_tolerance,
    gradient_tolerance,
)

VOLUME_SIZES = [  # (D, H, W), (Do, Ho, Wo), convention
    ((1, 1, 1), (2, 1, 3), ("normalized", True)),
    ((1, 4, 1), (1, 1, 1), ("pixel", False)),
    ((3, 1, 5), (1, 2, 9), ("normalized", False)),
    ((6, 7, 5), (4, 3, 8), ("normalized", True)),
    ((2, 3, 4), (0, 2, 2), ("pixel", False)),
    ((2, 3, 4), (2, 0, 2), ("normalized", False)),
]
LONG_ROWS = {  # more target pixels than backends work on at once
    **{kind: {"size": (12, 90), "output_size": (11, 200)} for kind in KINDS},
    "affine of volumes": {"size": (3, 4, 90), "output_size": (2, 3, 140)},
}
SIZES = [  # (H, W), (Ho, Wo)
    ((1, 1), (3, 2)),
    ((1, 1), (1, 1)),
    ((1, 6), (2, 3)),
    ((4, 1), (1, 1)),
    ((3, 5), (1, 9)),
    ((17, 20), (6, 19)),
    ((5, 4), (0, 3)),
    ((5, 4), (3, 0)),
]

per_fast_backend = pytest.mark.parametrize("fast", FAST, ids=lambda one: one.name)
per_convention = pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
per_padding = pytest.mark.parametrize("padding", PADDINGS)
per_kind = pytest.mark.parametrize(("kind", "sizes"), KINDS_AND_SIZES)


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


def assert_forward_conforms(backend, problem):
    """V is that of the reference; nearest is compared where rounding cannot jump."""
    output, expected = backend.warp([problem])[0], exact_warp(problem)
    assert output.dtype == problem.feature_map.dtype
    assert output.shape == problem.output_shape
    extent = coordinate_extent(problem)
    tolerance = forward_tolerance(problem.feature_map, problem.spec, extent)
    error = (output.double() - saturated(expected, output.dtype)).abs()
    if problem.spec.interpolation == "nearest":
        error = error * settled(problem)[:, None]
    assert (error <= tolerance).all(), f"error {error.max():.3g} exceeds {tolerance:.3g}"


def saturated(values, dtype):
    """What integers can hold at all; other dtypes hold every value of these tests."""
    if dtype.is_floating_point:
        return values
    return values.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)


def assert_gradients_conform(backend, problem):
    """Both gradients are those of the reference, for G on the settled points only.

    The gradient of a map is continuous in the coordinates, but for nearest, so it is compared for
    the whole G as well.
    """
    mask = settled(problem.warp)[:, None].to(problem.grad_output.dtype)
    calm = replace(problem, grad_output=problem.grad_output * mask)
    dtype = problem.warp.output_dtype
    actual, expected = backend.warp_gradients([calm])[0], exact_gradients(calm)
    for got, want in zip((actual.feature_map, actual.transform), expected, strict=True):
        assert_close_in_norm(got, want, gradient_tolerance(dtype, got.dtype))
    if problem.warp.spec.interpolation != "nearest":
        got = backend.warp_gradients([problem])[0].feature_map
        want = exact_gradients(problem)[0]
        assert_close_in_norm(got, want, gradient_tolerance(dtype, got.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["affine", "grid"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@per_padding
@per_convention
@pytest.mark.parametrize("subgradient", SUBGRADIENTS)
def test_backend_conforms(
    backend, dtype, kind, interpolation, padding, coordinates, align_corners, subgradient
):
    """Forward and gradients agree with the reference for every combination of options."""
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        fill=(0.5, -1.0, 2.0),
        coordinates=coordinates,
        align_corners=align_corners,
        subgradient=subgradient,
    )
    warp = random_warp(11, kind=kind, dtype=dtype, spec=spec)
    assert_forward_conforms(backend, warp)
    if dtype.is_floating_point:
        assert_gradients_conform(backend, random_gradients(12, warp))


@pytest.mark.parametrize("options", volume_options(), ids=str)
def test_backend_conforms_on_volumes(backend, options):
    """Nor does a third axis change that."""
    warp = random_warp(11, **VOLUME, **options)
    assert_forward_conforms(backend, warp)
    if warp.output_dtype.is_floating_point:
        assert_gradients_conform(backend, random_gradients(12, warp))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@per_kind
@per_convention
def test_backend_conforms_for_every_transform(
    backend, dtype, kind, sizes, coordinates, align_corners
):
    """Forward and gradients agree with the reference for every way to make source points."""
    spec = WarpSpec(coordinates=coordinates, align_corners=align_corners)
    warp = random_warp(11, kind=kind, dtype=dtype, spec=spec, **sizes)
    assert_forward_conforms(backend, warp)
    if dtype.is_floating_point:
        assert_gradients_conform(backend, random_gradients(12, warp))


@pytest.mark.parametrize("dtype", WIDE_LEVELS, ids=str)
@pytest.mark.parametrize("sizes", [IMAGE, VOLUME], ids=["images", "volumes"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@per_padding
def test_backend_conforms_in_16_bits(backend, dtype, sizes, interpolation, padding):
    """Numbers of maps of 16 bits are those of the reference, rounded once."""
    spec = WarpSpec(interpolation=interpolation, padding=padding, fill=(0.5, -1e6, 2e4))
    assert_forward_conforms(backend, random_warp(11, dtype=dtype, spec=spec, **sizes))


def bits(labels):
    """Something that torch compares, whatever the dtype."""
    return labels.contiguous().view(torch.uint8).unflatten(-1, (-1, labels.dtype.itemsize))


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
@per_kind
def test_backend_moves_labels(backend, dtype, kind, sizes):
    """Bit for bit, whatever the padding and the order of channels; constants become labels."""
    last = torch.channels_last if len(sizes["size"]) == 2 else torch.channels_last_3d
    for padding, order in itertools.product(PADDINGS, (torch.contiguous_format, last)):
        spec = WarpSpec(interpolation="nearest", padding=padding, fill=(2.5, -1e30, 1e30))
        warp = random_warp(11, kind=kind, dtype=dtype, spec=spec, **sizes)
        warp = replace(warp, feature_map=warp.feature_map.contiguous(memory_format=order))
        output, (expected,) = backend.warp([warp])[0], REFERENCE.warp([warp])
        assert output.dtype == dtype
        differs = (bits(output) != bits(expected)).any(-1)
        assert not (differs & settled(warp)[:, None]).any()


LABELS = {
    torch.int64: [2**53 + 1, 2**63 - 2, 1 - 2**63, -(2**53) - 1, 2**64, 0.5],
    torch.uint64: [2**53 + 1, 2**63 + 1, 2**64 - 2, 2**63 - 1, -1, 1.5],
}
"""Constants of label maps, of which no float is most; the last two become labels."""


@pytest.mark.parametrize("dtype", LABELS, ids=str)
def test_backend_fills_with_labels_that_no_float_is(backend, dtype):
    """To the last bit, outside of the map and where a point is not finite, in either order."""
    expected = LABELS[dtype][:4] + ([2**63 - 1, 0] if dtype == torch.int64 else [0, 2])
    points = torch.tensor([[9.0, 0.0], [math.nan, 0.0], [0.0, 0.0]]).view(1, 1, 3, 2)
    spec = WarpSpec(interpolation="nearest", padding="fill", fill=LABELS[dtype])
    for order in (torch.contiguous_format, torch.channels_last):
        labels = torch.full((1, 6, 2, 2), 7).to(dtype).contiguous(memory_format=order)
        output = backend.warp([WarpProblem(labels, SamplingGrid(points), spec=spec)])[0]
        for channel, label in enumerate(expected):
            assert output[0, channel, 0].tolist() == [label, label, 7]


@pytest.mark.parametrize("kind", LONG_ROWS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@per_padding
def test_backend_conforms_on_long_rows(backend, kind, interpolation, padding):
    """Rows that are cut: pieces that read nothing, the edge of the map, and pixels of it only."""
    spec = WarpSpec(interpolation=interpolation, padding=padding, fill=0.5)
    options = {"kind": kind.split()[0], "spec": spec, **LONG_ROWS[kind]}
    # Coordinates of hundreds of pixels leave float32 too few digits for cubic slopes.
    dtype = torch.float64 if interpolation == "bicubic" else torch.float32
    warp = random_warp(31, dtype=dtype, channels=1, **options)
    assert_gradients_conform(backend, random_gradients(32, warp))
    assert_forward_conforms(backend, replace(warp, feature_map=warp.feature_map.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@per_padding
def test_backend_conforms_with_many_channels_last(backend, dtype, interpolation, padding):
    """Channels that stand side by side, more than backends work on at once and some over."""
    spec = WarpSpec(interpolation=interpolation, padding=padding, fill=0.5)
    warp = random_warp(33, dtype=dtype, channels=37, spec=spec)
    last = warp.feature_map.to(memory_format=torch.channels_last)
    assert_forward_conforms(backend, replace(warp, feature_map=last))


@pytest.mark.parametrize(("size", "output_size"), SIZES)
@pytest.mark.parametrize(("batch", "channels"), [((2, 2), 3), ((1, 3), 2), ((3, 1), 1)])
@pytest.mark.parametrize(
    ("kind", "padding", "interpolation"),
    [
        *((kind, "zeros", "bilinear") for kind in KINDS),
        *(("affine", padding, "bilinear") for padding in PADDINGS[1:]),
        *(("affine", padding, "bicubic") for padding in PADDINGS),
    ],
)
@per_convention
def test_backend_conforms_at_every_size(
    backend,
    size,
    output_size,
    batch,
    channels,
    kind,
    padding,
    interpolation,
    coordinates,
    align_corners,
):
    """Maps of one pixel, outputs of one or no pixel, and broadcast operands."""
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        fill=0.5,
        coordinates=coordinates,
        align_corners=align_corners,
    )
    warp = random_warp(
        13,
        kind=kind,
        dtype=torch.float32,
        batch=batch,
        channels=channels,
        size=size,
        output_size=output_size,
        spec=spec,
    )
    assert_forward_conforms(backend, warp)
    assert_gradients_conform(backend, random_gradients(14, warp))


@pytest.mark.parametrize(("size", "output_size", "convention"), VOLUME_SIZES)
@pytest.mark.parametrize(("batch", "channels"), [((2, 2), 3), ((1, 3), 2), ((3, 1), 1)])
@pytest.mark.parametrize(
    ("kind", "padding", "interpolation"),
    [
        ("affine", "zeros", "bilinear"),
        ("flow", "reflection", "bilinear"),
        ("grid", "border", "bilinear"),
        ("affine", "reflection", "bicubic"),
    ],
)
def test_backend_conforms_on_volumes_of_every_size(
    backend, size, output_size, convention, batch, channels, kind, padding, interpolation
):
    """Volumes of one voxel or one plane, outputs of one or no voxel, and broadcast operands."""
    coordinates, align_corners = convention
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        coordinates=coordinates,
        align_corners=align_corners,
    )
    sizes = {"size": size, "output_size": output_size, "batch": batch, "channels": channels}
    warp = random_warp(13, kind=kind, dtype=torch.float32, spec=spec, **sizes)
    assert_forward_conforms(backend, warp)
    assert_gradients_conform(backend, random_gradients(14, warp))


@pytest.mark.parametrize(
    ("batch", "channels"), [((0, 0), 3), ((0, 1), 3), ((1, 0), 3), ((2, 2), 0), ((0, 0), 0)]
)
@per_kind
def test_backend_conforms_without_items_or_channels(backend, batch, channels, kind, sizes):
    """Nothing in, nothing out, and gradients of zero for whatever operand is not empty."""
    warp = random_warp(15, kind=kind, batch=batch, channels=channels, **sizes)
    assert_forward_conforms(backend, warp)
    gradients = backend.warp_gradients([random_gradients(16, warp)])[0]
    for gradient, operand in (
        (gradients.feature_map, warp.feature_map),
        (gradients.transform, warp.transform.parameters),
    ):
        assert torch.equal(gradient, torch.zeros_like(operand))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.float64])
@per_kind
def test_backend_conforms_with_any_parameter_dtype(backend, dtype, parameter_dtype, kind, sizes):
    """Both theta and grids keep their own dtype, in the gradient too."""
    warp = random_warp(17, kind=kind, dtype=dtype, parameter_dtype=parameter_dtype, **sizes)
    assert_forward_conforms(backend, warp)
    assert_gradients_conform(backend, random_gradients(18, warp))
    gradients = backend.warp_gradients([random_gradients(18, warp)])[0]
    assert (gradients.feature_map.dtype, gradients.transform.dtype) == (dtype, parameter_dtype)


@pytest.mark.parametrize("padding", ["zeros", "fill", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@per_convention
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backend_conforms_far_away(
    backend, padding, interpolation, coordinates, align_corners, dtype
):
    """A theta of 1e30 obeys the padding without overflow."""
    spec = WarpSpec(
        interpolation=interpolation,
        padding=padding,
        fill=0.5,
        coordinates=coordinates,
        align_corners=align_corners,
    )
    flat = [[[1e30, 0, 2e30], [0, 1, 0]], [[1, 0, 0], [0, -1e30, 3e29]]]
    deep = [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1e30, 2e30]]] * 2
    for sizes, theta in ((IMAGE, flat), (VOLUME, deep)):
        warp = random_warp(19, dtype=dtype, spec=spec, **sizes)
        warp = replace(warp, transform=Affine(torch.tensor(theta)))
        output, expected = backend.warp([warp])[0], exact_warp(warp)
        tolerance = forward_tolerance(warp.feature_map, spec, max(warp.feature_map.shape[2:]))
        assert (output.double() - expected).abs().max() <= tolerance


@pytest.mark.parametrize("far", [1e4, 16777216.0, 3e9, 1e18, 1e30, -3e9, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_backend_reflects_exactly_from_far_away(backend, far, dtype, interpolation):
    """A coordinate that float32 holds is mirrored without error, whatever its magnitude."""
    grid = torch.tensor([[[[far, 1.0], [1.0, far], [far, far]]]], dtype=torch.float32)
    spec = WarpSpec(padding="reflection", coordinates="pixel", interpolation=interpolation)
    warp = WarpProblem(random_values(20, (1, 2, 4, 6), dtype), SamplingGrid(grid), spec=spec)
    assert torch.equal(backend.warp([warp])[0].double(), exact_warp(warp))
    deep = torch.cat((grid, torch.ones(1, 1, 3, 1)), 3).flip(3)[:, None]
    volume = warp.feature_map[:, :, :, None].contiguous()
    warp = WarpProblem(volume, SamplingGrid(deep), spec=spec)
    assert torch.equal(backend.warp([warp])[0].double(), exact_warp(warp))


@pytest.mark.parametrize(
    "theta",
    [
        [[0.0, 0, 0.25], [0, 0, -0.25]],
        [[0.0, 0, 0], [0.5, 0.5, 0.1]],
        [[float("nan"), 0, 0], [0, 1, 0]],
        [[1, 0, float("inf")], [0, 1, 0]],
        [[1e38, 0, 0], [0, float("-inf"), 0]],
        [[1, 0, 0, 0.25], [0, 0, 0, -0.25], [0, 0.5, 0, 0.1]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, float("nan"), 0]],
    ],
)
@per_padding
@per_convention
def test_backend_conforms_on_degenerate_theta(backend, theta, padding, coordinates, align_corners):
    """Singular thetas collapse the image; NaN and infinite ones read fill without a gradient."""
    spec = WarpSpec(padding=padding, fill=0.5, coordinates=coordinates, align_corners=align_corners)
    sizes = IMAGE if len(theta) == 2 else VOLUME
    warp = replace(
        random_warp(21, dtype=torch.float32, batch=(1, 1), spec=spec, **sizes),
        transform=Affine(torch.tensor([theta])),
    )
    output, expected = backend.warp([warp])[0], exact_warp(warp)
    tolerance = forward_tolerance(warp.feature_map, spec, max(warp.feature_map.shape[2:]))
    assert (output.double() - expected).abs().max() <= tolerance
    assert_gradients_conform(backend, random_gradients(22, warp))


@per_kind
def test_backend_ignores_memory_layout(backend, kind, sizes):
    """Transposed, sliced and stride-0 operands give the bits of their contiguous copies."""
    warp = random_warp(23, kind=kind, dtype=torch.float32, channels=4, **sizes)
    parameters = warp.transform.parameters
    layouts = replace(
        warp,
        feature_map=warp.feature_map.movedim(1, -1).contiguous().movedim(-1, 1),
        transform=warp.transform.with_parameters(parameters.repeat_interleave(2, 0)[::2]),
    )
    one_channel = warp.feature_map[:, :1]
    constant = replace(warp, feature_map=one_channel.expand(warp.feature_map.shape))
    copied = replace(constant, feature_map=constant.feature_map.contiguous())
    for left, right in ((layouts, warp), (constant, copied)):
        assert torch.equal(*(backend.warp([one])[0] for one in (left, right)))
        grad_output = random_values(24, (), torch.float32).expand(warp.output_shape)
        first, second = (
            backend.warp_gradients([WarpGradientsProblem(one, grad_output)])[0]
            for one in (left, right)
        )
        assert torch.equal(first.feature_map, second.feature_map)
        assert torch.equal(first.transform, second.transform)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("needs", [("feature_map",), ("transform",)])
@per_fast_backend
def test_half_types_are_the_float32_result_rounded_once(fast, dtype, needs):
    """A half-precision map is warped in float32 and rounded at the very end, bit for bit."""
    warp = random_warp(25, dtype=dtype)
    wide = replace(warp, feature_map=warp.feature_map.float())
    assert torch.equal(fast.warp([warp])[0], fast.warp([wide])[0].to(dtype))
    problem = random_gradients(26, warp, needs=needs)
    widened = WarpGradientsProblem(wide, problem.grad_output.float(), needs)
    narrow, full = (fast.warp_gradients([one])[0] for one in (problem, widened))
    got, want = (getattr(gradients, needs[0]) for gradients in (narrow, full))
    assert torch.equal(got, want.to(got.dtype))


@pytest.mark.parametrize(
    ("kind", "sizes", "interpolation"),
    [
        *itertools.product(KINDS, [IMAGE], INTERPOLATIONS),
        *itertools.product(VOLUME_KINDS, [VOLUME], ["nearest", "bilinear"]),
    ],
)
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_backend_agrees_with_torch(backend, interpolation, padding, align_corners, kind, sizes):
    """With subgradient "right", values and gradients are those of torch.nn.functional."""
    spec = WarpSpec(interpolation=interpolation, padding=padding, align_corners=align_corners)
    problem = random_gradients(28, settled_warp(kind=kind, spec=spec, **sizes))
    output = backend.warp([problem.warp])[0]
    assert_close_in_norm(output, torch_warp(problem.warp), GRADIENT[torch.float64])
    gradients = backend.warp_gradients([problem])[0]
    by_map, by_transform = torch_gradients(problem)
    assert_close_in_norm(gradients.feature_map, by_map, GRADIENT[torch.float64])
    assert_close_in_norm(gradients.transform, by_transform, GRADIENT[torch.float64])


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("interpolation", "dims"), [("bilinear", 2), ("bicubic", 2), ("bilinear", 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backend_agrees_with_torch_on_cell_edges(backend, padding, interpolation, dims, dtype):
    """With subgradient "right" gradients are torch's even where all coordinates are integers."""
    steps = torch.arange(-6, 7, dtype=dtype) / 2
    # Half steps from -1 to 1 are the centres of five pixels; beyond lies the padding.
    grid = torch.stack(torch.meshgrid(*dims * [steps], indexing="ij")[::-1], -1)[None]
    spec = WarpSpec(interpolation=interpolation, padding=padding, align_corners=True)
    feature_map = random_values(8, (1, 3, *dims * [5]), dtype)
    problem = random_gradients(9, WarpProblem(feature_map, SamplingGrid(grid), spec=spec))
    by_map, by_transform = torch_gradients(problem)
    gradients = backend.warp_gradients([problem])[0]
    assert_close_in_norm(gradients.feature_map, by_map, GRADIENT[dtype])
    assert_close_in_norm(gradients.transform, by_transform, GRADIENT[dtype])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@per_fast_backend
def test_nearest_ties_fall_where_torch_lets_them_fall(fast, align_corners, padding, dtype):
    """On a lattice of exact ties every read is torch's, bit for bit."""
    steps = torch.arange(-24, 25, dtype=dtype) / 16
    spec = WarpSpec(interpolation="nearest", padding=padding, align_corners=align_corners)
    for size in ((8, 8), (5, 9), (6, 7), (2, 8, 5), (7, 3, 6)):
        axes = len(size) * [steps if len(size) == 2 else steps[::3]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None]
        feature_map = random_values(29, (1, 1, *size), dtype)
        warp = WarpProblem(feature_map, SamplingGrid(grid), spec=spec)
        assert torch.equal(fast.warp([warp])[0], torch_warp(warp))


def product_of(rows):
    """A volume (1, 1, D, H, W) from rows along x, y and z: U[k, i, j] = x[j]·y[i]·z[k]."""
    return torch.einsum("j,i,k->kij", *rows)[None, None]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_product_of_rows_reads_as_the_product_of_reads(
    backend, interpolation, padding, align_corners
):
    """Torch warps no volume by cubic convolution, but it warps the rows that one is made of."""
    rows = [random_values(40 + axis, (n,), torch.float64) for axis, n in enumerate((5, 4, 6))]
    spec = WarpSpec(interpolation=interpolation, padding=padding, align_corners=align_corners)
    warp = settled_warp(kind="grid", batch=(1, 1), channels=1, spec=spec, **VOLUME)
    points = warp.transform.grid
    warp = WarpProblem(product_of(rows), SamplingGrid(points), spec=spec)
    leaves = [leaf.clone().requires_grad_() for leaf in (*rows, points)]
    reads = []
    for row, x in zip(leaves[:3], leaves[3].flatten(0, 3).unbind(1), strict=True):
        along_x = SamplingGrid(torch.stack((x, torch.zeros_like(x)), 1)[None, None])
        reads.append(torch_warp(WarpProblem(row[None, None, None], along_x, spec=spec)).flatten())
    expected = torch.stack(reads).prod(0).view(warp.output_shape)
    assert_close_in_norm(backend.warp([warp])[0], expected.detach(), GRADIENT[torch.float64])
    problem = random_gradients(41, warp)
    gradients = backend.warp_gradients([problem])[0]
    *by_rows, by_points = torch.autograd.grad(expected, leaves, problem.grad_output)
    assert_close_in_norm(gradients.transform, by_points, GRADIENT[torch.float64])
    recorded = [row.clone().requires_grad_() for row in rows]
    through_map = torch.autograd.grad(product_of(recorded), recorded, gradients.feature_map)
    for got, want in zip(through_map, by_rows, strict=True):
        assert_close_in_norm(got, want, GRADIENT[torch.float64])


@pytest.mark.parametrize(
    "row",
    [
        [float("nan"), 0, 0],
        [float("inf"), 0, 1],
        [0, float("-inf"), 1],
        [0, 0, float("inf")],
        [0, 0, 0],
    ],
)
@per_padding
@per_convention
def test_backend_conforms_on_degenerate_homographies(
    backend, row, padding, coordinates, align_corners
):
    """A third row of zeros or with a bad entry leaves no point, hence fill and no gradient."""
    spec = WarpSpec(padding=padding, fill=0.5, coordinates=coordinates, align_corners=align_corners)
    theta = torch.tensor([[[1.0, 0, 1], [0, 1, 1], row]])
    warp = replace(
        random_warp(21, dtype=torch.float32, batch=(1, 1), spec=spec), transform=Homography(theta)
    )
    assert torch.equal(backend.warp([warp])[0], torch.full(warp.output_shape, 0.5))
    gradients = backend.warp_gradients([random_gradients(22, warp)])[0]
    assert torch.equal(gradients.feature_map, torch.zeros_like(warp.feature_map))
    assert torch.equal(gradients.transform, torch.zeros_like(theta))
    grid = GridProblem(warp.transform, (3, 4), coordinates, align_corners)
    assert not backend.generate_grid([grid])[0].isfinite().any()
    problem = GridGradientsProblem(grid, torch.ones(1, 3, 4, 2))
    gradient = backend.generate_grid_gradients([problem])[0]
    assert torch.equal(gradient, torch.zeros_like(theta))


@pytest.mark.parametrize(
    ("kind", "output_size"),
    [
        *itertools.product(GENERATORS, [(4, 5), (1, 1), (1, 3), (0, 2)]),
        *itertools.product(["affine", "flow"], [(2, 4, 3), (1, 3, 1), (2, 0, 2)]),
    ],
)
@per_convention
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_generator_conforms(backend, kind, coordinates, align_corners, dtype, output_size, batch):
    """The grid and the gradient of the parameters agree with the reference."""
    size = (5, 7) if len(output_size) == 2 else (5, 7, 6)
    transform = random_transform(30, kind, batch, size, output_size, coordinates)
    transform = transform.with_parameters(transform.parameters.to(dtype))
    problem = GridProblem(transform, output_size, coordinates, align_corners)
    wide = transform.with_parameters(transform.parameters.double())
    wide = replace(problem, transform=wide)
    got, want = backend.generate_grid([problem])[0], REFERENCE.generate_grid([wide])[0]
    assert got.dtype == dtype
    assert_close_in_norm(got, want, GRADIENT[dtype])
    grad_grid = random_values(31, problem.output_shape, dtype)
    got = backend.generate_grid_gradients([GridGradientsProblem(problem, grad_grid)])[0]
    want = REFERENCE.generate_grid_gradients([GridGradientsProblem(wide, grad_grid.double())])[0]
    assert got.dtype == dtype
    assert_close_in_norm(got, want, GRADIENT[dtype])
