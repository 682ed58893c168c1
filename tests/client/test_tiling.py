"""Warps in tiles: the values of the whole warp, and requests within the limits."""

import itertools

import numpy as np
import pytest

from stn_client import (
    Affine,
    Client,
    Flow,
    Homography,
    InvalidRequestError,
    Limits,
    ThinPlateSpline,
)
from stn_client.local import LocalServer
from stn_client.tiling import warp

SIZE, OUTPUT_SIZE = (37, 53), (41, 46)
SMALL = Limits(
    max_message_bytes=4096 + 2000,
    max_output_bytes=3000,
    max_output_samples=300,
    max_dimension_px=29,
)
"""So small that the images below take dozens of tiles."""
ROOMY = Limits(
    max_message_bytes=2**24, max_output_bytes=2**24, max_output_samples=300, max_dimension_px=2**15
)
"""Windows may be whole images, targets not."""

UNITS = [
    {"coordinates": "pixel"},
    {"coordinates": "normalized", "align_corners": False},
    {"coordinates": "normalized", "align_corners": True},
]
MODES = list(
    itertools.product(
        ["nearest", "bilinear", "bicubic"], ["zeros", "border", "reflection", "fill"], UNITS
    )
)


@pytest.fixture(scope="module")
def client(local_server):
    with Client(local_server.target) as client:
        yield client


class Watched:
    """A client that refuses what the limits of its server would, and counts its calls."""

    def __init__(self, client, limits):
        self.client, self.limits, self.calls, self.sent_bytes = client, limits, 0, 0

    def warp(self, feature_map, transform, output_size, **options):
        self.calls += 1
        self.sent_bytes += feature_map.nbytes
        result = self.client.warp(feature_map, transform, output_size, **options)
        assert feature_map.nbytes < self.limits.max_message_bytes
        assert result.nbytes <= self.limits.max_output_bytes
        assert np.prod(output_size) <= self.limits.max_output_samples
        assert max(output_size) <= self.limits.max_dimension_px
        return result

    def generate_grid(self, transform, output_size, **options):
        basis_bytes = 8 * len(transform.control_points) * np.prod(output_size)
        result = self.client.generate_grid(transform, output_size, **options)
        assert result.nbytes + basis_bytes <= self.limits.max_output_bytes
        assert np.prod(output_size) <= self.limits.max_output_samples
        return result


def random_image(dtype=np.float32, channels=2, size=SIZE):
    """(1, C, H, W), uniform in [0, 1], or in all of uint8."""
    rng = np.random.default_rng(7)
    if dtype == np.uint8:
        return rng.integers(0, 256, (1, channels, *size), np.uint8)
    return rng.random((1, channels, *size)).astype(dtype)


def in_units(matrix, units, size=SIZE, output_size=OUTPUT_SIZE):
    """A pixel matrix (3, 3) in the unit of the options, in float64."""
    if units["coordinates"] == "pixel":
        return matrix
    corners = units["align_corners"]

    def to_pixels(shape):
        spans = [n - 1 if corners else n for n in shape[::-1]]
        offsets = [(n - 1) / 2 for n in shape[::-1]]
        return np.array([[spans[0] / 2, 0, offsets[0]], [0, spans[1] / 2, offsets[1]], [0, 0, 1]])

    return np.linalg.inv(to_pixels(size)) @ matrix @ to_pixels(output_size)


TURN = np.array([[0.83171, -0.61437, 11.30719], [0.57193, 0.91337, -7.20871], [0, 0, 1]])
SHRINK = np.array([[5.3173, 0.4159, -120.7219], [-0.3371, 7.1237, -90.4077], [0, 0, 1]])
"""Reads far beyond all four edges: several periods of a reflection."""
AWAY = np.array([[1.10317, 0.20713, -300.30191], [0.10371, 0.90733, 222.40137], [0, 0, 1]])
"""Reads nothing of the image."""
TILT = np.array(
    [[1.21731, 0.11312, -6.10193], [0.22374, 1.13795, -4.20537], [0.00411, 0.00738, 0.91179]]
)
HORIZON = np.array([[1.2, 0.1, -20.3], [0.2, 1.1, -14.7], [0.013, 0.021, -0.7037]])
"""The denominator changes its sign amid the target."""


def assert_tiles_equal_the_whole(client, matrix, options, limits, atol):
    kind, rows = (Affine, 2) if (matrix[2] == (0, 0, 1)).all() else (Homography, 3)
    transform = kind(matrix[None, :rows])
    image = random_image(np.float64)
    watched = Watched(client, limits)
    tiled = warp(watched, image, transform, OUTPUT_SIZE, limits=limits, **options)
    whole = client.warp(image, transform, OUTPUT_SIZE, **options)
    assert watched.calls > 5
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=atol)


@pytest.mark.parametrize(("interpolation", "padding", "units"), MODES)
@pytest.mark.parametrize(
    "matrix", [TURN, SHRINK, AWAY, TILT], ids=["turn", "shrink", "away", "tilt"]
)
def test_tiles_equal_the_whole(client, interpolation, padding, units, matrix):
    """In every mode, with small tiles: in float64, coordinates differ by 1e-12 px at most."""
    options = {"interpolation": interpolation, "padding": padding, **units}
    if padding == "fill":
        options["fill"] = [0.25, 0.75]
    matrix = in_units(matrix, units)
    assert_tiles_equal_the_whole(client, matrix, options, SMALL, atol=1e-10)


@pytest.mark.parametrize(("interpolation", "padding", "units"), MODES)
def test_tiles_equal_the_whole_across_a_horizon(client, interpolation, padding, units):
    """Where points lie everywhere, a window is the whole image, or the tile one pixel."""
    options = {"interpolation": interpolation, "padding": padding, **units}
    matrix = in_units(HORIZON, units)
    assert_tiles_equal_the_whole(client, matrix, options, ROOMY, atol=1e-6)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("units", UNITS[:2])
def test_ties_of_nearest_are_those_of_the_whole(client, padding, units):
    """Halfway between pixels, the even one of the whole image is read, in every mirror image."""
    double = np.array([[2.0, 0, -80.5], [0, 2, -40.5], [0, 0, 1]])
    transform = Affine(in_units(double, units)[None, :2])
    options = {"interpolation": "nearest", "padding": padding, **units}
    image = random_image(np.uint8)
    watched = Watched(client, SMALL)
    tiled = warp(watched, image, transform, OUTPUT_SIZE, limits=SMALL, **options)
    assert watched.calls > 5
    np.testing.assert_array_equal(tiled, client.warp(image, transform, OUTPUT_SIZE, **options))


BENT = ThinPlateSpline(
    np.array([[[-7.3, 4.2], [60.1, -8.7], [20.3, 22.9], [3.7, 50.3], [57.2, 30.4], [35.0, 9.1]]]),
    control_points=[(0, 0), (45, 2), (22.5, 20), (1, 40), (44, 39), (30, 8)],
    regularization=20.0,
)
"""Bends the image beyond its edges, in pixels."""


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection", "fill"])
@pytest.mark.parametrize("limits", [SMALL, ROOMY], ids=["small", "roomy"])
def test_tiles_of_splines_equal_the_whole(client, interpolation, padding, limits):
    """In pixels, where shifts of tiles and windows are shifts of points."""
    options = {"interpolation": interpolation, "padding": padding, "coordinates": "pixel"}
    image = random_image(np.float64)
    watched = Watched(client, limits)
    tiled = warp(watched, image, BENT, OUTPUT_SIZE, limits=limits, **options)
    assert watched.calls > 5
    whole = client.warp(image, BENT, OUTPUT_SIZE, **options)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-10)


def test_tiles_of_splines_send_what_they_can_reach(client):
    """The image is not sent with every tile, and the basis counts as output."""
    control = [(0, 0), (127, 0), (0, 127), (127, 127)]
    spline = ThinPlateSpline(np.array([control], float) + 0.25, control_points=control)
    limits = Limits(
        max_message_bytes=2**24,
        max_output_bytes=1024 * (2 * 4 + 4 * 8),
        max_output_samples=2**24,
        max_dimension_px=2**15,
    )
    image = random_image(size=(128, 128))
    watched = Watched(client, limits)
    warp(watched, image, spline, limits=limits, coordinates="pixel")
    assert watched.calls == 16
    assert watched.sent_bytes < 1.4 * image.nbytes


def test_splines_in_other_units_are_sent_whole(client):
    """Their tiles would be other splines: the server says what is too large."""
    watched = Watched(client, client.server_info().limits)
    warp(watched, random_image(), BENT, OUTPUT_SIZE, limits=SMALL)
    assert watched.calls == 1


@pytest.mark.parametrize(
    ("control_points", "match"),
    [
        (3, r"^control_points: expected points \(x, y\), got 3"),
        ([*BENT.control_points[:5], (44, 39)], r"got \(44.0, 39.0\) at 4 and \(44.0, 39.0\) at 5"),
        (BENT.control_points[:5], r"points: expected shape \(N, 5, 2\), got \(1, 6, 2\)"),
    ],
)
def test_bad_splines_are_told_as_they_were_given(client, control_points, match):
    """Not as one of their tiles has them."""
    spline = ThinPlateSpline(BENT.points, control_points=control_points)
    with pytest.raises(InvalidRequestError, match=match):
        warp(client, random_image(), spline, limits=SMALL, coordinates="pixel")


@pytest.mark.parametrize("units", UNITS, ids=str)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_sizes_are_integers_of_any_kind(client, units, kind):
    """Those of NumPy wrap around in products, silently: an array of them is a size as well."""
    transform, image = Affine(in_units(TURN, units)[None, :2]), random_image(np.float64)
    expected = client.warp(image, transform, OUTPUT_SIZE, **units)
    size = np.array(OUTPUT_SIZE, kind)
    tiled = warp(client, image, transform, size, limits=SMALL, **units)
    np.testing.assert_allclose(tiled, expected, rtol=0, atol=1e-10)


def test_tiles_of_an_identity_are_the_image(client):
    """Bit for bit, in float32."""
    image = random_image()
    tiled = warp(Watched(client, SMALL), image, Affine(np.eye(2, 3)[None]), limits=SMALL)
    np.testing.assert_array_equal(tiled, image)


def test_tiles_of_batches_and_other_layouts(client):
    """Every item has its own transform; N = 1 serves all; channels may come last."""
    images = random_image(np.uint8, channels=6).reshape(2, *SIZE, 3)
    theta = np.stack([TURN[:2], TURN[:2] + 0.137, SHRINK[:2]])
    options = {"coordinates": "pixel", "layout": "NHWC", "interpolation": "bicubic"}
    for maps, thetas in ((images[:1], theta), (images, theta[:2]), (images, theta[:1])):
        tiled = warp(Watched(client, SMALL), maps, Affine(thetas), limits=SMALL, **options)
        whole = client.warp(maps, Affine(thetas), **options)
        assert tiled.shape == whole.shape
        # float32 coordinates: a value in 255 may round to its neighbour
        assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_tiles_send_what_they_can_reach(client):
    """An identity of a large image sends each pixel about once: not the image with every tile."""
    image = random_image(size=(128, 128))
    limits = Limits(
        max_message_bytes=2**24,
        max_output_bytes=2**24,
        max_output_samples=1024,
        max_dimension_px=2**15,
    )
    watched = Watched(client, limits)
    warp(watched, image, Affine(np.eye(2, 3)[None]), limits=limits, padding="reflection")
    assert watched.calls == 16
    assert watched.sent_bytes < 1.4 * image.nbytes


def test_tiles_of_a_point_at_infinity_read_the_fill(client):
    """Where the denominator is exactly 0, in a tile of one pixel."""
    theta = np.array([[[1, 0, 0], [0, 1, 0], [1, 0, -1.0]]])
    one = Limits(
        max_message_bytes=2**20, max_output_bytes=2**20, max_output_samples=1, max_dimension_px=9
    )
    options = {"coordinates": "pixel", "padding": "border", "fill": 0.25}
    image = random_image(size=(4, 4))
    tiled = warp(Watched(client, one), image, Homography(theta), limits=one, **options)
    np.testing.assert_array_equal(tiled[..., 1], np.full((1, 2, 4), 0.25, np.float32))
    np.testing.assert_array_equal(tiled, client.warp(image, Homography(theta), **options))


def test_tiles_obey_the_limits_of_a_real_server(tmp_path):
    """A server that takes 64 x 64 pixels at most warps an image of 150 x 200 by quarter turns."""
    limits = ("--limits-max-output-samples=4096", "--limits-max-message-bytes=60000")
    image = random_image(np.uint8, channels=3, size=(150, 200))
    theta = Affine(np.array([[[0.0, -1, 199], [1, 0, 0]]]))  # (x, y) reads (199 - y, x)
    with (
        LocalServer(*limits, log=tmp_path / "log") as server,
        Client(server.target) as client,
    ):
        with pytest.raises(InvalidRequestError, match=r"expected at most 4096 samples"):
            client.warp(image[..., :9, :9], theta, (200, 150), coordinates="pixel")
        tiled = warp(client, image, theta, (200, 150), coordinates="pixel")
    np.testing.assert_array_equal(tiled, np.rot90(image, axes=(2, 3)))


def test_what_fits_is_one_call(client):
    """As it was given, so that its result is the same to the last bit."""
    image, transform = random_image(), Affine(TURN[None, :2])
    limits = client.server_info().limits
    watched = Watched(client, limits)
    result = warp(watched, image, transform, SIZE, limits=limits, coordinates="pixel")
    assert watched.calls == 1
    assert result.any()
    np.testing.assert_array_equal(result, client.warp(image, transform, SIZE, coordinates="pixel"))


def test_volumes_are_sent_whole(client):
    """Whatever their size."""
    volume = np.random.default_rng(3).random((1, 2, 4, 5, 6), np.float32)
    transform = Affine(np.eye(3, 4)[None])
    np.testing.assert_array_equal(warp(client, volume, transform, limits=SMALL), volume)


def test_other_transforms_are_refused(client):
    """Before anything is sent."""
    with pytest.raises(
        InvalidRequestError,
        match="transform: expected Affine, Homography or ThinPlateSpline, got F",
    ):
        warp(client, random_image(), Flow(np.zeros((1, *SIZE, 2))), limits=SMALL)


@pytest.mark.parametrize(
    ("theta", "size", "why"),
    [
        (np.eye(2, 3)[None], (5,), "output_size"),
        (np.eye(2, 3)[None], (1, 2, 3), "output_size"),
        (np.stack([np.eye(2, 3)] * 2), SIZE, "theta: expected shape"),
        (np.full((1, 2, 3), np.nan), SIZE, "theta: expected finite numbers, got nan"),
        (np.eye(3, 2)[None], SIZE, "theta: expected shape"),
    ],
)
def test_wrong_arguments_are_refused_as_by_the_client(client, theta, size, why):
    """By the server, which knows best."""
    images = random_image(channels=6).reshape(3, 2, *SIZE)
    with pytest.raises(InvalidRequestError, match=why):
        warp(client, images, Affine(theta), size, limits=SMALL)


@pytest.mark.parametrize("output_size", [3, "34", (2.5, 3)])
def test_a_size_that_is_none_is_refused(output_size):
    """Before the server is asked for its limits."""
    client, image = Client("127.0.0.1:1"), np.zeros((1, 1, 4, 4), np.float32)
    with pytest.raises(InvalidRequestError, match=r"^output_size: expected integers \(\[D',\] H'"):
        warp(client, image, Affine(np.eye(2, 3)[None]), output_size)
