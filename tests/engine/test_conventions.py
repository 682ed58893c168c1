"""Convention pins: asymmetric cases whose expected values are derived by hand."""

import math

import pytest
import torch

from stn_engine import Affine, SamplingGrid, WarpGradientsProblem, WarpProblem, WarpSpec, warp
from stn_engine.backends.reference import ReferenceBackend
from stn_engine.backends.torch import TorchBackend
from support.strategies import CONVENTIONS, PADDINGS, random_values

BACKENDS = [TorchBackend(), ReferenceBackend()]
ROW = torch.tensor([[[[10.0, 20.0, 30.0]]]])  # H = 1, W = 3
TALL = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])  # H = 2, W = 3


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    return request.param


def read(backend, feature_map, points, **options):
    """Values at a list of (x, y) points, as a list."""
    grid = torch.tensor(points, dtype=torch.float64)[None, None]
    problem = WarpProblem(feature_map, SamplingGrid(grid), spec=WarpSpec(**options))
    return backend.warp([problem])[0][0, 0, 0].tolist()


def read_row(backend, xs, **options):
    """Values of ROW at pixel positions xs."""
    return read(backend, ROW, [(x, 0.0) for x in xs], coordinates="pixel", **options)


def test_convention_coordinates_are_x_then_y(backend):
    """The point (2, 1) is column 2 of row 1."""
    assert read(backend, TALL, [(2.0, 1.0), (1.0, 0.0)], coordinates="pixel") == [6.0, 2.0]


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


@pytest.mark.parametrize(("coordinates", "align_corners"), CONVENTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (37, 224)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
def test_convention_identity_is_bit_exact(coordinates, align_corners, size, dtype):
    """An identity theta returns the feature map itself, in every convention, under each padding."""
    feature_map = random_values(3, (1, 2, *size), dtype)
    identity = Affine(torch.eye(2, 3)[None])
    for padding in PADDINGS:
        output = warp(
            feature_map,
            identity,
            padding=padding,
            coordinates=coordinates,
            align_corners=align_corners,
        )
        assert torch.equal(output, feature_map)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -2), (-3, 2), (4, 1)])
def test_convention_integer_shift_is_bit_exact_in_pixels(dx, dy):
    """An integer translation in pixel coordinates moves the pixels, and zeros come in."""
    size = (61, 83)
    feature_map = random_values(4, (1, 2, *size), torch.float32)
    theta = torch.tensor([[[1.0, 0.0, dx], [0.0, 1.0, dy]]])
    expected = torch.zeros_like(feature_map)
    rows, columns = (slice(max(-d, 0), n - max(d, 0)) for d, n in zip((dy, dx), size, strict=True))
    read_rows, read_columns = (
        slice(max(d, 0), n - max(-d, 0)) for d, n in zip((dy, dx), size, strict=True)
    )
    expected[:, :, rows, columns] = feature_map[:, :, read_rows, read_columns]
    assert torch.equal(warp(feature_map, Affine(theta), coordinates="pixel"), expected)


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


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
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
