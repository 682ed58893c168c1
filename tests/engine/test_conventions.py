"""Convention pins: asymmetric cases whose expected values are derived by hand."""

import itertools
import math
from typing import get_args

import pytest
import torch

from stn_engine import (
    Affine,
    Attention,
    Flow,
    GridProblem,
    Homography,
    ParametricTransform,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    reference,
    warp,
)
from stn_engine.backends.cpu import CpuBackend
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend
from support.strategies import CONVENTIONS, INTERPOLATIONS, PADDINGS, random_values

BACKENDS = [CpuBackend(), TorchBackend(), ReferenceBackend()]
ROW = torch.tensor([[[[10.0, 20.0, 30.0]]]])  # H = 1, W = 3
DEEP = torch.arange(24.0).view(1, 1, 2, 3, 4)  # D = 2, H = 3, W = 4: 12·z + 4·y + x
TALL = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])  # H = 2, W = 3


EXACT = [kind for kind in get_args(ParametricTransform) if kind is not ThinPlateSpline]
"""Transforms whose identity is one to the last bit."""


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


def read(backend, feature_map, points, **options):
    """Values at a list of (x, y) or (x, y, z) points, as a list."""
    points = torch.tensor(points, dtype=torch.float64)
    grid = points.view(1, *[1] * (points.shape[1] - 1), *points.shape)
    problem = WarpProblem(feature_map, SamplingGrid(grid), spec=WarpSpec(**options))
    return backend.warp([problem])[0].flatten().tolist()


def read_row(backend, xs, **options):
    """Values of ROW at pixel positions xs."""
    return read(backend, ROW, [(x, 0.0) for x in xs], coordinates="pixel", **options)


def test_convention_coordinates_are_x_then_y(backend):
    """The point (2, 1) is column 2 of row 1."""
    assert read(backend, TALL, [(2.0, 1.0), (1.0, 0.0)], coordinates="pixel") == [6.0, 2.0]


def test_convention_coordinates_of_volumes_are_x_then_y_then_z(backend):
    """The point (3, 2, 1) is column 3 of row 2 of plane 1; values between are trilinear."""
    values = read(backend, DEEP, [(3.0, 2.0, 1.0), (0.25, 1.5, 0.5)], coordinates="pixel")
    assert values == [23.0, 12 * 0.5 + 4 * 1.5 + 0.25]


def test_convention_theta_of_volumes_takes_x_y_z_1(backend):
    """Rows are x, y, z and columns x_t, y_t, z_t, 1: x = 2·z_t + 1, y = x_t, z = y_t."""
    theta = torch.tensor([[[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    problem = WarpProblem(DEEP, Affine(theta), (2, 1, 3), WarpSpec(coordinates="pixel"))
    # Plane k of one row reads x = 2k + 1, y = j, z = 0.
    assert backend.warp([problem])[0][0, 0].tolist() == [[[1.0, 5.0, 9.0]], [[3.0, 7.0, 11.0]]]
    problem = WarpProblem(DEEP, Affine(theta), (1, 2, 1), WarpSpec(coordinates="pixel"))
    assert backend.warp([problem])[0].flatten().tolist() == [1.0, 13.0]  # z = i


def test_convention_output_size_of_volumes_is_depth_height_width(backend):
    """output_size (2, 1, 5) gives two planes of one row of five columns."""
    identity = Affine(torch.eye(3, 4)[None])
    assert backend.warp([WarpProblem(DEEP, identity, (2, 1, 5))])[0].shape == (1, 1, 2, 1, 5)
    assert backend.generate_grid([GridProblem(identity, (2, 1, 5))])[0].shape == (1, 2, 1, 5, 3)


def test_convention_normalized_volumes(backend):
    """Each axis by its own size: the last centres are at 3/4, 2/3 and 1/2, or at 1."""
    assert read(backend, DEEP, [(0.75, 2 / 3, 0.5)]) == pytest.approx([23.0])
    assert read(backend, DEEP, [(1.0, 1.0, 1.0)], align_corners=True) == [23.0]
    # x_px = 3, y_px = 1, z_px = 1/2 and x_px = (1/3 + 1)/2·3 = 2, y_px = 1, z_px = 1/2
    assert read(backend, DEEP, [(0.75, 0.0, 0.0)]) == pytest.approx([13.0])
    assert read(backend, DEEP, [(1 / 3, 0.0, 0.0)], align_corners=True) == pytest.approx([12.0])


def test_convention_padding_of_planes(backend):
    """A quarter plane above the first, at column 0 and row 0, where the planes hold 0 and 12."""
    volume = DEEP + 4.0  # 4 and 16
    options = {"coordinates": "pixel", "fill": 100.0}
    expected = {"zeros": 3.0, "fill": 28.0, "border": 4.0, "reflection": 7.0}
    for padding, value in expected.items():
        assert read(backend, volume, [(0.0, 0.0, -0.25)], padding=padding, **options) == [value]


def test_convention_nearest_in_volumes_rounds_ties_to_even(backend):
    """(0.5, 1.5, 0.5) reads column 0, row 2, plane 0."""
    points = [(0.5, 1.5, 0.5), (1.5, 0.5, 0.75)]
    assert read(backend, DEEP, points, coordinates="pixel", interpolation="nearest") == [8.0, 14.0]


def test_convention_bicubic_takes_four_planes(backend):
    """At z = 0.5 the planes -1, 0, 1, 2 weigh -3/32, 19/32, 19/32, -3/32, at whole x and y."""
    volume = torch.tensor([10.0, 20.0]).view(1, 1, 2, 1, 1)
    taps = {"zeros": (0.0, 0.0), "border": (10.0, 20.0), "reflection": (20.0, 10.0)}
    for padding, (before, behind) in taps.items():
        options = {"coordinates": "pixel", "interpolation": "bicubic", "padding": padding}
        (value,) = read(backend, volume, [(0.0, 0.0, 0.5)], **options)
        assert value == pytest.approx((19 * 10 + 19 * 20 - 3 * before - 3 * behind) / 32), padding


@pytest.mark.parametrize("rule", ["right", "zero"])
def test_convention_gradient_of_volumes(backend, rule):
    """At (1, 1/2, 0) slopes are those of 12·z + 4·y + x; 0 by rule "zero" where it is whole."""
    grid = SamplingGrid(torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 1, 1, 3))
    spec = WarpSpec(coordinates="pixel", subgradient=rule)
    problem = WarpGradientsProblem(WarpProblem(DEEP, grid, spec=spec), torch.ones(1, 1, 1, 1, 1))
    gradients = backend.warp_gradients([problem])[0]
    expected = {"right": [1.0, 4.0, 12.0], "zero": [0.0, 4.0, 0.0]}[rule]
    assert gradients.transform.flatten().tolist() == expected
    weights = torch.zeros(2, 3, 4)
    weights[0, :2, 1] = 0.5
    assert torch.equal(gradients.feature_map[0, 0], weights)


def test_convention_flow_of_volumes_leads_from_target_to_source(backend):
    """A displacement (1, 0, 1) reads one column further right, one plane deeper."""
    displacement = torch.tensor([1.0, 0.0, 1.0]).expand(1, 2, 3, 4, 3)
    problem = WarpProblem(DEEP, Flow(displacement), spec=WarpSpec(coordinates="pixel"))
    expected = torch.zeros_like(DEEP)
    expected[:, :, 0, :, :3] = DEEP[:, :, 1, :, 1:]
    assert torch.equal(backend.warp([problem])[0], expected)


def test_convention_theta_maps_target_to_source(backend):
    """A positive translation moves the content left: the output reads further right."""
    theta = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    problem = WarpProblem(ROW, Affine(theta), spec=WarpSpec(coordinates="pixel"))
    assert backend.warp([problem])[0].flatten().tolist() == [20.0, 30.0, 0.0]


def test_convention_theta_rows_are_x_then_y(backend):
    """Entry theta[0, 1] makes x depend on the row i, theta[1, 0] makes y depend on the column j."""
    theta = torch.tensor([[[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]])  # x = 2i, y = j
    problem = WarpProblem(TALL, Affine(theta), (2, 2), WarpSpec(coordinates="pixel"))
    # (i, j) reads column 2i of row j: (0,0)→1, (0,1)→4, (1,0)→3, (1,1)→6.
    assert backend.warp([problem])[0][0, 0].tolist() == [[1.0, 4.0], [3.0, 6.0]]


def test_convention_output_size_is_height_then_width(backend):
    """output_size (2, 5) gives two rows of five columns."""
    problem = WarpProblem(TALL, Affine(torch.eye(2, 3)[None]), (2, 5))
    assert backend.warp([problem])[0].shape == (1, 1, 2, 5)


def test_convention_align_corners_false_puts_one_on_outer_edges(backend):
    """-1 is half a pixel left of the first centre, 1/3 is 0.5 px right of the middle of three."""
    values = read(backend, ROW, [(-1.0, 0.0), (0.0, 0.0), (1 / 3, 0.0)])
    # x_px = ((x + 1)·3 - 1)/2 = -0.5, 1, 1.5; y_px = 0: half of 10, then 20, then 25.
    assert values == pytest.approx([5.0, 20.0, 25.0], abs=1e-5)


def test_convention_align_corners_true_puts_one_on_corner_centres(backend):
    """-1 and 1 are the first and last centres, 0.5 is three quarters of the way."""
    points = [(-1.0, 0.0), (1.0, 0.0), (0.5, 0.0)]
    # x_px = (x + 1)/2·2 = 0, 2, 1.5.
    assert read(backend, ROW, points, align_corners=True) == [10.0, 30.0, 25.0]


def test_convention_pixel_centres_are_integers(backend):
    """Pixel x = 0 is the first centre, x = 1.5 lies half-way between the second and third."""
    assert read_row(backend, [0.0, 1.5]) == [10.0, 25.0]


def identity_of(kind, size):
    """The transform of this kind that changes nothing."""
    parameters = {
        Affine: torch.eye(2, 3),
        Homography: 3 * torch.eye(3),  # its scale is free
        Attention: torch.tensor([1.0, 0.0, 0.0]),
        Similarity: torch.tensor([1.0, 0.0, 0.0, 0.0]),
        Translation: torch.zeros(2),
        Rotation: torch.zeros(1),
        Flow: torch.zeros(*size, 2),
    }
    return kind(parameters[kind][None])


@pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (37, 224)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
@pytest.mark.parametrize(
    ("kind", "interpolation"),
    [
        *((kind, "bilinear") for kind in EXACT),
        (Affine, "nearest"),
        (Affine, "bicubic"),
    ],
)
def test_convention_identity_is_bit_exact(
    coordinates, align_corners, size, dtype, kind, interpolation
):
    """An identity returns the feature map itself, in every convention, under each padding."""
    feature_map = random_values(3, (1, 2, *size), dtype)
    identity = identity_of(kind, size)
    for padding in PADDINGS:
        output = warp(
            feature_map,
            identity,
            interpolation=interpolation,
            padding=padding,
            coordinates=coordinates,
            align_corners=align_corners,
        )
        assert torch.equal(output, feature_map)


def shift_of(kind, dx, dy, size):
    """The transform of this kind that reads ``dx`` further right and ``dy`` further down."""
    parameters = {
        Affine: [[1.0, 0.0, dx], [0.0, 1.0, dy]],
        Homography: [[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]],
        Attention: [1.0, dx, dy],
        Similarity: [1.0, 0.0, dx, dy],
        Translation: [float(dx), dy],
        Flow: torch.tensor([float(dx), dy]).expand(*size, 2).tolist(),
    }
    return kind(torch.tensor([parameters[kind]]))


@pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 1, 5), (3, 37, 20)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("kind", [Affine, Flow])
def test_convention_identity_of_volumes_is_bit_exact(
    coordinates, align_corners, size, interpolation, kind
):
    """As that of images."""
    volume = random_values(3, (1, 2, *size), torch.float32)
    parameters = {Affine: torch.eye(3, 4), Flow: torch.zeros(*size, 3)}[kind]
    unit = {"coordinates": coordinates, "align_corners": align_corners}
    for padding in PADDINGS:
        options = {"interpolation": interpolation, "padding": padding, **unit}
        assert torch.equal(warp(volume, kind(parameters[None]), **options), volume)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -2), (-3, 2), (4, 1)])
@pytest.mark.parametrize("kind", [one for one in EXACT if one != Rotation])
def test_convention_integer_shift_is_bit_exact_in_pixels(dx, dy, kind):
    """An integer translation in pixel coordinates moves the pixels, and zeros come in."""
    size = (61, 83)
    feature_map = random_values(4, (1, 2, *size), torch.float32)
    shift = shift_of(kind, dx, dy, size)
    expected = torch.zeros_like(feature_map)
    rows, columns = (slice(max(-d, 0), n - max(d, 0)) for d, n in zip((dy, dx), size, strict=True))
    read_rows, read_columns = (
        slice(max(d, 0), n - max(-d, 0)) for d, n in zip((dy, dx), size, strict=True)
    )
    expected[:, :, rows, columns] = feature_map[:, :, read_rows, read_columns]
    assert torch.equal(warp(feature_map, shift, coordinates="pixel"), expected)


def test_convention_zeros_fades_over_one_pixel(backend):
    """The weight of a tap outside is lost: 3/4·10 at -0.25, 1/4·30 at 2.75, 0 a pixel outside."""
    assert read_row(backend, [-0.25, -1.0, 2.75, 3.0, 9.0]) == [7.5, 0.0, 7.5, 0.0, 0.0]


def test_convention_fill_mixes_in_where_taps_are_outside(backend):
    """A tap outside keeps its weight: 3/4·10 + 1/4·fill at -0.25, 1/4·30 + 3/4·fill at 2.75."""
    values = read_row(backend, [-0.25, -1.0, 2.75, 9.0], padding="fill", fill=100.0)
    assert values == [32.5, 100.0, 82.5, 100.0]


def test_convention_fill_is_per_channel(backend):
    """Each channel reads its own fill value."""
    problem = WarpProblem(
        torch.zeros(1, 2, 1, 1),
        SamplingGrid(torch.full((1, 1, 1, 2), 5.0)),
        spec=WarpSpec(padding="fill", fill=(3.0, -4.0)),
    )
    assert backend.warp([problem])[0].flatten().tolist() == [3.0, -4.0]


def test_convention_border_repeats_the_outermost_centre(backend):
    """Everything left of the first centre reads the first pixel, likewise on the right."""
    values = read_row(backend, [-0.25, -7.0, 2.75, 1e30], padding="border")
    assert values == [10.0, 10.0, 30.0, 30.0]


def test_convention_reflection_in_pixels_is_about_centres(backend):
    """-1 mirrors at 0 to 1, 3 mirrors at 2 to 1, -3 mirrors to 3 and on to 1."""
    values = read_row(backend, [-1.0, 3.0, -3.0, 2.25], padding="reflection")
    assert values == [20.0, 20.0, 20.0, 27.5]


def test_convention_reflection_without_align_corners_is_about_edges(backend):
    """-1 px mirrors at -0.5 to 0, 3 px mirrors at 2.5 to 2, -2 px mirrors to 1."""
    # x = (2·x_px + 1)/3 - 1
    points = [(-4 / 3, 0.0), (4 / 3, 0.0), (-2.0, 0.0)]
    values = read(backend, ROW, points, padding="reflection")
    assert values == pytest.approx([10.0, 30.0, 20.0], abs=1e-5)


def test_convention_nearest_rounds_ties_to_even(backend):
    """0.5 reads pixel 0, 1.5 reads pixel 2, -0.5 reads pixel 0 and 2.5 reads pixel 2."""
    values = read_row(backend, [0.5, 1.5, -0.5, 2.5, 2.75], interpolation="nearest")
    assert values == [10.0, 30.0, 10.0, 30.0, 0.0]


def test_convention_bicubic_is_keys_with_three_quarters(backend):
    """At x = 0.5 the taps -1, 0, 1, 2 weigh -3/32, 19/32, 19/32, -3/32."""
    taps = {"zeros": 0.0, "border": 10.0, "reflection": 20.0, "fill": 100.0}  # at -1
    for padding, outside in taps.items():
        options = {"interpolation": "bicubic", "padding": padding, "fill": 100.0}
        (value,) = read_row(backend, [0.5], **options)
        expected = (-3 * outside + 19 * 10 + 19 * 20 - 3 * 30) / 32
        assert value == pytest.approx(expected), padding


def test_convention_bicubic_reflects_taps_about_edges(backend):
    """Without align_corners tap -1 mirrors to pixel 0; x = 0.5 px is (2·0.5 + 1)/3 - 1."""
    values = read(backend, ROW, [(-1 / 3, 0.0)], interpolation="bicubic", padding="reflection")
    assert values == pytest.approx([(-3 * 10 + 19 * 10 + 19 * 20 - 3 * 30) / 32])


def test_convention_bicubic_fades_over_two_pixels(backend):
    """At -1.5 only tap 0 is inside, with weight -3/32; at -2 nothing is."""
    values = read_row(backend, [-1.5, -2.0, 4.0, 1e30], interpolation="bicubic")
    assert values == [-30 / 32, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["right", "zero"])
def test_convention_bicubic_slope_is_continuous(backend, rule):
    """At x = 1 the slope is 3/4·(30 - 10) by both rules; border keeps a slope at x = 0."""
    grid = SamplingGrid(torch.tensor([[[[1.0, 0.0], [0.0, 0.0], [-9.0, 0.0]]]]))
    options = {"interpolation": "bicubic", "padding": "border", "subgradient": rule}
    warped = WarpProblem(ROW, grid, spec=WarpSpec(coordinates="pixel", **options))
    problem = WarpGradientsProblem(warped, torch.ones(1, 1, 1, 3), ("transform",))
    slopes = backend.warp_gradients([problem])[0].transform[0, 0, :, 0].tolist()
    assert slopes == [15.0, 7.5, 0.0]


def test_convention_bicubic_saturates_where_it_overshoots(backend):
    """Between 0 and 255 the cubic leaves the grey levels on both sides."""
    levels = torch.tensor([[[[0, 0, 255, 255]]]], dtype=torch.uint8)
    options = {"coordinates": "pixel", "interpolation": "bicubic", "padding": "border"}
    assert read(backend, levels, [(0.5, 0.0), (2.5, 0.0)], **options) == [0, 255]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fill", [0.0, 7.0])
def test_convention_non_finite_points_read_fill(backend, padding, interpolation, bad, fill):
    """A point with one bad coordinate reads fill under every padding; its neighbour is normal."""
    values = read(
        backend,
        ROW,
        [(bad, 0.0), (1.0, bad), (1.0, 0.0)],
        coordinates="pixel",
        padding=padding,
        interpolation=interpolation,
        fill=fill,
    )
    assert values == [fill, fill, 20.0]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_convention_non_finite_points_of_volumes_read_fill(backend, padding, interpolation):
    """One bad coordinate of three is enough, and it leaves no gradient."""
    bad = [(math.nan, 0.0, 0.0), (0.0, math.inf, 0.0), (0.0, 0.0, -math.inf), (1.0, 0.0, 1.0)]
    options = {"coordinates": "pixel", "padding": padding, "interpolation": interpolation}
    assert read(backend, DEEP, bad, fill=7.0, **options) == [7.0, 7.0, 7.0, 13.0]
    grid = SamplingGrid(torch.tensor(bad[:3]).view(1, 1, 1, 3, 3))
    warped = WarpProblem(DEEP, grid, spec=WarpSpec(**options))
    problem = WarpGradientsProblem(warped, torch.full((1, 1, 1, 1, 3), math.inf))
    gradients = backend.warp_gradients([problem])[0]
    assert not gradients.feature_map.any()
    assert not gradients.transform.any()


@pytest.mark.parametrize("padding", PADDINGS)
def test_convention_non_finite_points_have_no_gradient(backend, padding):
    """Not even an infinite incoming gradient leaves a non-finite point."""
    grid = torch.tensor([[[[math.nan, 0.0], [math.inf, 0.5], [1.25, 0.0]]]])
    warped = WarpProblem(
        ROW, SamplingGrid(grid), spec=WarpSpec(coordinates="pixel", padding=padding)
    )
    grad_output = torch.tensor([[[[math.inf, -math.inf, 2.0]]]])
    gradients = backend.warp_gradients([WarpGradientsProblem(warped, grad_output)])[0]
    # The third point alone: weights 3/4 and 1/4 of G = 2, slope 30 - 20 along x.
    assert gradients.feature_map.flatten().tolist() == [0.0, 1.5, 0.5]
    assert gradients.transform[0, 0, :2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert gradients.transform[0, 0, 2, 0].item() == 20.0


def test_convention_subgradient_at_integers(backend):
    """At x = 1 the right-hand slope is 30 - 20; "zero" gives 0; between centres both agree."""
    grid = SamplingGrid(torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]], dtype=torch.float64))
    slopes = {}
    for rule in ("right", "zero"):
        warped = WarpProblem(ROW, grid, spec=WarpSpec(coordinates="pixel", subgradient=rule))
        problem = WarpGradientsProblem(warped, torch.ones(1, 1, 1, 2), ("transform",))
        slopes[rule] = backend.warp_gradients([problem])[0].transform[0, 0, :, 0].tolist()
    assert slopes == {"right": [10.0, 10.0], "zero": [0.0, 10.0]}


def test_convention_border_gradient_is_zero_on_the_border_itself(backend):
    """Points at x = 0 and x = W - 1 count as clipped, a point between them does not."""
    grid = torch.tensor([[[[0.0, 0.0], [0.5, 0.0], [2.0, 0.0], [-3.0, 0.0]]]])
    spec = WarpSpec(coordinates="pixel", padding="border")
    warped = WarpProblem(ROW, SamplingGrid(grid), spec=spec)
    gradients = backend.warp_gradients([WarpGradientsProblem(warped, torch.ones(1, 1, 1, 4))])[0]
    assert gradients.transform[0, 0, :, 0].tolist() == [0.0, 10.0, 0.0, 0.0]


def test_convention_reflection_flips_the_gradient(backend):
    """Left of 0 the mirrored point moves the other way, a whole period away it moves along."""
    grid = torch.tensor([[[[-0.5, 0.0], [4.5, 0.0], [2.5, 0.0]]]])
    spec = WarpSpec(coordinates="pixel", padding="reflection")
    warped = WarpProblem(ROW, SamplingGrid(grid), spec=spec)
    gradients = backend.warp_gradients([WarpGradientsProblem(warped, torch.ones(1, 1, 1, 3))])[0]
    assert gradients.transform[0, 0, :, 0].tolist() == [-10.0, 10.0, -10.0]


LARGE = 2**62 + 1
"""Which neither float32 nor float64 holds."""


@pytest.mark.parametrize(
    ("dtype", "labels", "fill", "constant"),
    [
        (torch.bool, [True, False, True], 0.4, False),
        (torch.bool, [True, False, True], 7.0, True),
        (torch.int8, [-128, 0, 127], -100.0, -100),
        (torch.int8, [-128, 0, 127], -300.0, -128),
        (torch.int32, [2**31 - 1, -(2**31), 2**24 + 1], 2.5, 2),
        (torch.uint32, [2**32 - 1, 0, 2**24 + 1], 1e30, 2**32 - 1),
        (torch.int64, [LARGE, -LARGE, 1], -100.0, -100),
        (torch.int64, [LARGE, -LARGE, 1], 1e30, 2**63 - 1),
        (torch.int64, [LARGE, -LARGE, 1], -1e30, -(2**63)),
        (torch.uint64, [2**64 - 1, 0, LARGE], 3.5, 4),
        (torch.uint64, [2**64 - 1, 0, LARGE], 1e30, 2**64 - 1),
        (torch.uint64, [2**64 - 1, 0, LARGE], -1.0, 0),
    ],
)
def test_convention_labels_stay_labels(backend, dtype, labels, fill, constant):
    """Bit for bit, of the nearest pixel, ties to the even one; constants become labels, too."""
    found = read(
        backend,
        torch.tensor([[[labels]]], dtype=dtype),
        [(0.4, 0.0), (0.5, 0.0), (1.5, 0.0), (2.4, 0.3), (3.0, 0.0), (float("nan"), 0.0)],
        coordinates="pixel",
        interpolation="nearest",
        padding="fill",
        fill=fill,
    )
    first, _, last = labels
    assert found == [first, first, last, last, constant, constant]


def test_convention_16_bits_round_half_to_even_and_saturate(backend):
    """As of uint8, but for the range."""
    for dtype, values, fill, expected in (
        (torch.uint16, [65534, 65535, 0], 1e6, [65534, 32768, 65535]),
        (torch.int16, [-32768, -32767, 32767], -1e6, [-32768, 0, -32768]),
    ):
        found = read(
            backend,
            torch.tensor([[[values]]], dtype=dtype),
            [(0.5, 0.0), (1.5, 0.0), (9.0, 0.0)],
            coordinates="pixel",
            padding="fill",
            fill=fill,
        )
        assert found == expected


def test_convention_uint8_rounds_half_to_even_and_saturates(backend):
    """0.5 becomes 0, 1.5 becomes 2, and a fill outside the grey levels is clamped."""
    levels = torch.tensor([[[[0, 1, 2]]]], dtype=torch.uint8)
    values = read(
        backend,
        levels,
        [(0.5, 0.0), (1.5, 0.0), (9.0, 0.0)],
        coordinates="pixel",
        padding="fill",
        fill=300.0,
    )
    assert values == [0, 2, 255]


@pytest.mark.parametrize("kind", [Rotation, Similarity])
def test_convention_rotation_turns_the_content_anticlockwise(backend, kind):
    """A quarter turn: the right edge of the output shows the bottom edge of the map."""
    cross = torch.tensor([[[[0.0, 1.0, 0.0], [2.0, 9.0, 4.0], [0.0, 8.0, 0.0]]]])
    parameters = [math.pi / 2] if kind == Rotation else [1.0, math.pi / 2, 0.0, 0.0]
    problem = WarpProblem(cross, kind(torch.tensor([parameters], dtype=torch.float64)))
    # Top 1, left 2, bottom 8, right 4 become left, bottom, right, top.
    expected = torch.tensor([[0.0, 4.0, 0.0], [1.0, 9.0, 8.0], [0.0, 2.0, 0.0]])
    torch.testing.assert_close(backend.warp([problem])[0][0, 0], expected)


def quarter_turn(kind, width_by_height=1.0):
    """As a rotation, a similarity, or the affine map that the docstrings give for a rigid turn."""
    angle = math.pi / 2
    if kind == Affine:
        cos, sin = math.cos(angle), math.sin(angle)
        rows = [[cos, -sin / width_by_height, 0.0], [sin * width_by_height, cos, 0.0]]
        return Affine(torch.tensor([rows], dtype=torch.float64))
    parameters = [angle] if kind == Rotation else [1.0, angle, 0.0, 0.0]
    return kind(torch.tensor([parameters], dtype=torch.float64))


@pytest.mark.parametrize("kind", [Rotation, Similarity])
def test_convention_a_turn_in_pixel_units_is_about_the_first_pixel(backend, kind):
    """A quarter turn: column j of the first row reads (0, j), the first column downwards."""
    ramp = torch.arange(12.0).view(1, 1, 4, 3)  # 3·y + x
    spec = WarpSpec(coordinates="pixel", padding="border")
    problem = WarpProblem(ramp, quarter_turn(kind), (1, 4), spec)
    assert backend.warp([problem])[0].flatten().tolist() == pytest.approx([0.0, 3.0, 6.0, 9.0])


@pytest.mark.parametrize("kind", [Rotation, Similarity])
def test_convention_a_turn_in_normalized_units_is_not_rigid_unless_square(backend, kind):
    """On 3 rows of 9, a quarter turn shows what is 1 px below the centre 4 px beside it.

    With corners at -1 and 1 the last column is x_t = 1, which reads y = 1, the last row.
    """
    below = torch.zeros(1, 1, 3, 9)
    below[0, 0, 2, 4] = 1.0
    problem = WarpProblem(below, quarter_turn(kind), spec=WarpSpec(align_corners=True))
    row = backend.warp([problem])[0][0, 0, 1]
    torch.testing.assert_close(row, torch.tensor([0.0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0]))


def test_convention_the_rigid_turn_of_a_map_that_is_not_square(backend):
    """By the matrix of the docstrings, what is 1 px below the centre is shown 1 px beside it."""
    below = torch.zeros(1, 1, 3, 9)
    below[0, 0, 2, 4] = 1.0
    problem = WarpProblem(below, quarter_turn(Affine, width_by_height=9 / 3))
    row = backend.warp([problem])[0][0, 0, 1]
    torch.testing.assert_close(row, torch.tensor([0.0, 0, 0, 0, 0, 1.0, 0, 0, 0]))


def test_convention_attention_moves_and_turns_about_the_centre(backend):
    """Normalized: t_x = 2/3 is a column of 3 further right, s = -1 half a turn."""
    square = torch.arange(9.0).view(1, 1, 3, 3)
    right = WarpProblem(square, Attention(torch.tensor([[1.0, 2 / 3, 0.0]])))
    expected = torch.tensor([[1.0, 2.0, 0.0], [4.0, 5.0, 0.0], [7.0, 8.0, 0.0]])
    torch.testing.assert_close(backend.warp([right])[0][0, 0], expected)
    turned = WarpProblem(square, Attention(torch.tensor([[-1.0, 0.0, 0.0]])))
    torch.testing.assert_close(backend.warp([turned])[0], square.flip(2, 3))


def test_convention_attention_stretches_into_other_proportions(backend):
    """Normalized: all of 2 rows of 4 fits a single row of 2, whose columns average two each."""
    ramp = torch.tensor([[[[0.0, 2.0, 4.0, 6.0], [0.0, 2.0, 4.0, 6.0]]]])
    problem = WarpProblem(ramp, Attention(torch.tensor([[1.0, 0.0, 0.0]])), (1, 2))
    assert backend.warp([problem])[0].flatten().tolist() == [1.0, 5.0]


def test_an_identity_passes_maps_on_bit_for_bit_if_they_are_finite(backend):
    """A NaN reaches every point that has it among its taps, whatever its weight: 4 of them."""
    photo = random_values(1, (1, 1, 5, 6), torch.float32)
    identity = Affine(torch.eye(2, 3)[None])
    assert torch.equal(backend.warp([WarpProblem(photo, identity)])[0], photo)
    photo[0, 0, 2, 3] = math.nan
    v = backend.warp([WarpProblem(photo, identity)])[0]
    assert v.isnan().nonzero().tolist() == [[0, 0, 1, 2], [0, 0, 1, 3], [0, 0, 2, 2], [0, 0, 2, 3]]


def test_convention_similarity_parameters_are_s_phi_tx_ty(backend):
    """In pixels: scale 2, half a turn, then (4, 1): column j of row i reads (4 - 2j, 1 - 2i)."""
    ramp = torch.arange(10.0).view(1, 1, 2, 5)  # 5·y + x
    parameters = torch.tensor([[2.0, math.pi, 4.0, 1.0]], dtype=torch.float64)
    problem = WarpProblem(
        ramp, Similarity(parameters), (1, 3), WarpSpec(coordinates="pixel", padding="border")
    )
    assert backend.warp([problem])[0].flatten().tolist() == pytest.approx([9.0, 7.0, 5.0])


def test_convention_attention_parameters_are_s_tx_ty(backend):
    """In pixels: column j of row i reads (2j + 1, 2i + 0.5)."""
    ramp = torch.arange(10.0).view(1, 1, 2, 5)
    transform = Attention(torch.tensor([[2.0, 1.0, 0.5]]))
    problem = WarpProblem(ramp, transform, (1, 2), WarpSpec(coordinates="pixel"))
    assert backend.warp([problem])[0].flatten().tolist() == [3.5, 5.5]


def test_convention_homography_divides_by_the_third_row(backend):
    """In pixels x = 4/(j + 1); y = 0."""
    theta = torch.tensor([[[0.0, 0.0, 4.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]])
    ramp = torch.arange(5.0).view(1, 1, 1, 5)
    problem = WarpProblem(ramp, Homography(theta), (1, 4), WarpSpec(coordinates="pixel"))
    values = backend.warp([problem])[0].flatten().tolist()
    assert values == pytest.approx([4.0, 2.0, 4 / 3, 1.0])


@pytest.mark.parametrize("padding", PADDINGS)
def test_convention_homography_reads_behind_the_horizon(backend, padding):
    """W = j - 1: column 0 reads x = -1/-1 = 1, column 1 has no point, column 2 reads x = 1."""
    theta = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]])
    spec = WarpSpec(coordinates="pixel", padding=padding, fill=7.0)
    problem = WarpProblem(ROW, Homography(theta), (1, 4), spec)
    # x = (2j - 1)/(j - 1) = 1, -, 3, 2.5
    beyond = {"zeros": [0.0, 15.0], "fill": [7.0, 18.5], "border": [30.0, 30.0]}
    expected = [20.0, 7.0, *beyond.get(padding, [20.0, 25.0])]
    assert backend.warp([problem])[0].flatten().tolist() == expected


def test_convention_flow_leads_from_target_to_source(backend):
    """A displacement (1, 0) reads one pixel further right; (0, 0) reads the pixel itself."""
    displacement = torch.tensor([[[[1.0, 0.0], [0.0, 0.0], [-0.5, 0.0]]]])
    problem = WarpProblem(ROW, Flow(displacement), spec=WarpSpec(coordinates="pixel"))
    assert backend.warp([problem])[0].flatten().tolist() == [20.0, 20.0, 25.0]


@pytest.mark.parametrize(("align_corners", "unit"), [(False, 2 / 3), (True, 1.0)])
def test_convention_flow_is_in_the_unit_of_the_grid(backend, align_corners, unit):
    """One pixel of three is 2/3 between edges, and 1 between centres."""
    displacement = torch.tensor([unit, 0.0]).expand(1, 1, 3, 2).contiguous()
    spec = WarpSpec(align_corners=align_corners, padding="border")
    problem = WarpProblem(ROW, Flow(displacement), spec=spec)
    values = backend.warp([problem])[0].flatten().tolist()
    assert values == pytest.approx([20.0, 30.0, 30.0])


CORNERS = [(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0), (0.25, -0.5)]


@pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
def test_convention_spline_takes_control_points_to_points(backend, coordinates, align_corners):
    """A control point that is a target point reads its own source point, the others affinely."""
    lattice = reference.target_coordinates(3, coordinates, align_corners=align_corners)
    control = [
        (x, y) for x, y in itertools.product(lattice, lattice) if (x, y) != (lattice[1],) * 2
    ]
    source = random_values(1, (1, 8, 2), torch.float64)
    spline = ThinPlateSpline(source, control_points=control)
    problem = GridProblem(spline, (3, 3), coordinates, align_corners)
    grid = backend.generate_grid([problem])[0][0]
    expected = torch.cat((source[0, :4], grid[1:2, 1], source[0, 4:])).view(3, 3, 2)
    # The product runs over x first: control point k lies in column k // 3.
    torch.testing.assert_close(grid.transpose(0, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("regularization", [0.0, 0.5])
def test_convention_spline_reproduces_affine_maps(backend, regularization):
    """Points that an affine map makes of the control points give that map, however stiff."""
    theta = torch.tensor([[[0.5, 0.25, 0.125], [-0.75, 1.0, 0.5]]], dtype=torch.float64)
    control = torch.tensor(CORNERS, dtype=torch.float64)
    source = control @ theta[0, :, :2].T + theta[0, :, 2]
    spline = ThinPlateSpline(source[None], control_points=CORNERS, regularization=regularization)
    got, want = (
        backend.generate_grid([GridProblem(one, (4, 5))])[0] for one in (spline, Affine(theta))
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_convention_spline_regularization_flattens(backend):
    """The bump of one point: exact without regularization, gone with a large one."""
    source = torch.tensor([CORNERS], dtype=torch.float64)
    source[0, 4, 0] += 1.0
    heights = []
    for regularization in (0.0, 0.1, 1e9):
        spline = ThinPlateSpline(source, control_points=CORNERS, regularization=regularization)
        problem = GridProblem(spline, (2, 4), "normalized", False)
        grid = backend.generate_grid([problem])[0]
        heights.append(grid[0, 0, 2, 0].item())  # the target point (1/4, -1/2)
    assert heights[0] == pytest.approx(1.25)
    assert 0.25 < heights[2] < heights[1] < heights[0]
