"""`stn_client.geometry` against its namesakes, by its laws, and its refusals."""

import cv2
import kornia.geometry as kornia
import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import skimage.transform
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.interpolate import RBFInterpolator
from scipy.spatial.transform import Rotation as Turn
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

from stn_client import (
    Affine,
    Attention,
    Client,
    Flow,
    Homography,
    InvalidRequestError,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
    tiling,
)
from stn_client.geometry import (
    TransformArguments,
    compose,
    from_opencv,
    from_points,
    from_remap,
    from_voxel,
    invert,
    rotation_about,
    to_normalized,
    to_pixel,
    to_voxel,
)

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=30)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
UNITS = [
    {"coordinates": "pixel"},
    {"coordinates": "normalized", "align_corners": False},
    {"coordinates": "normalized", "align_corners": True},
]

SOURCE = np.array([[3.0, 4.0], [60.0, 2.0], [58.0, 45.0], [5.0, 40.0], [31.0, 20.0], [12.0, 33.0]])
TARGET = np.array([[0.0, 0.0], [49.0, 1.0], [47.0, 39.0], [2.0, 37.0], [22.0, 21.0], [9.0, 30.0]])
"""Six points that no matrix takes to each other."""
VOLUME_SOURCE = np.array(
    [[1.0, 2, 3], [30, 4, 1], [2, 25, 6], [5, 3, 20], [17, 18, 9], [28, 22, 19]]
)


def theta(arguments):
    """The matrix of one transform in pixels, (d + 1, d + 1)."""
    assert arguments["coordinates"] == "pixel"
    found = np.asarray(arguments["transform"].parameters)
    assert found.dtype == np.float64
    assert len(found) == 1
    if isinstance(arguments["transform"], Homography):
        return found[0]
    return np.vstack([found[0], np.eye(found.shape[2])[-1:]])


def read_at(arguments, points):
    """Where target points (K, d) read."""
    images = np.column_stack([points, np.ones(len(points))]) @ theta(arguments).T
    return images[:, :-1] / images[:, -1:]


def numbers(low, high):
    return st.floats(low, high, allow_subnormal=False).map(lambda number: round(number, 6))


@st.composite
def affines(draw, dims=None):
    """Invertible affine transforms in pixels."""
    dims = draw(st.sampled_from([2, 3])) if dims is None else dims
    linear = draw(arrays.arrays(np.float64, (dims, dims), elements=numbers(-0.3, 0.3)))
    shift = draw(arrays.arrays(np.float64, dims, elements=numbers(-50, 50)))
    scale = draw(st.sampled_from([0.25, 1.0, 3.0]))
    matrix = np.column_stack([scale * (np.eye(dims) + linear), shift])
    return TransformArguments(transform=Affine(matrix[None]), coordinates="pixel")


@st.composite
def homographies(draw):
    """Invertible homographies in pixels, whose horizon is far from an image of 64 pixels."""
    affine = theta(draw(affines(2)))
    tilt = draw(arrays.arrays(np.float64, 2, elements=numbers(-0.002, 0.002)))
    matrix = affine @ np.vstack([np.eye(2, 3), [*tilt, 1]])
    return TransformArguments(transform=Homography(matrix[None]), coordinates="pixel")


MATRICES = affines(2) | homographies()


def same_map(first, second, dims=2):
    """Whether two transforms in pixels read the same points."""
    points = 40 * np.vstack([np.eye(dims), -np.eye(dims), np.ones((1, dims))]) + 7
    return np.allclose(read_at(first, points), read_at(second, points), rtol=1e-8, atol=1e-8)


# Namesakes


def test_from_opencv_reads_where_opencv_moves_content_from():
    """A matrix of OpenCV leads back to where `cv2.transform` came from."""
    forward = np.array([[0.8, -0.3, 11.0], [0.2, 1.1, -4.0]])
    moved = cv2.transform(SOURCE[None], forward)[0]
    np.testing.assert_allclose(read_at(from_opencv(forward), moved), SOURCE, **CLOSE)
    np.testing.assert_allclose(read_at(from_opencv(forward, inverse=True), SOURCE), moved, **CLOSE)


def test_from_opencv_takes_homographies():
    """As `cv2.perspectiveTransform` has them; the kind follows the shape, as OpenCV's function."""
    forward = np.array([[0.8, -0.3, 11.0], [0.2, 1.1, -4.0], [0.001, -0.002, 1.0]])
    moved = cv2.perspectiveTransform(SOURCE[None], forward)[0]
    arguments = from_opencv(forward)
    assert isinstance(arguments["transform"], Homography)
    np.testing.assert_allclose(read_at(arguments, moved), SOURCE, **CLOSE)
    np.testing.assert_allclose(read_at(from_opencv(forward, inverse=True), SOURCE), moved, **CLOSE)


@pytest.mark.parametrize("dtype", [np.int8, np.float16, ml_dtypes.bfloat16, np.longdouble])
def test_from_opencv_takes_any_numbers(dtype):
    """Whatever holds them, they are float64 afterwards."""
    forward = np.array([[1, 0, 3], [0, 1, -5]], dtype)
    np.testing.assert_array_equal(theta(from_opencv(forward)), [[1, 0, -3], [0, 1, 5], [0, 0, 1]])


def test_from_opencv_takes_many_matrices():
    """(N, 2, 3) is N transforms."""
    forward = np.stack([cv2.getRotationMatrix2D((3, 4), angle, 1.0) for angle in (10, 20, 30)])
    found = from_opencv(forward)["transform"].theta
    each = [from_opencv(one)["transform"].theta for one in forward]
    np.testing.assert_array_equal(found, np.concatenate(each))


@pytest.mark.parametrize("angle_deg", [0, 30, -75.5, 90, 180, 270, 400])
def test_rotation_about_is_that_of_opencv_and_of_kornia(angle_deg):
    """Of `getRotationMatrix2D`, whose matrices say where the content goes."""
    arguments = rotation_about((31.0, 23.5), angle_deg, 0.8)
    of_opencv = cv2.getRotationMatrix2D((31.0, 23.5), angle_deg, 0.8)
    np.testing.assert_allclose(theta(arguments), theta(from_opencv(of_opencv)), **CLOSE)
    of_kornia = kornia.get_rotation_matrix2d(
        *(
            torch.tensor(each, dtype=torch.float64)
            for each in ([[31.0, 23.5]], [angle_deg], [[0.8, 0.8]])
        ),
    )
    np.testing.assert_allclose(theta(arguments), theta(from_opencv(of_kornia[0])), **CLOSE)


def test_rotation_about_is_exact_for_quarters_of_a_turn():
    """The corners of a 4 x 4 image go to each other to the last bit: right, top, left, bottom."""
    corners = np.array([[0, 0], [3, 0], [3, 3], [0, 3]])
    arguments = rotation_about((1.5, 1.5), 90)
    np.testing.assert_array_equal(read_at(arguments, corners), np.roll(corners, -1, axis=0))
    arguments = rotation_about((1.5, 1.5, 0), (0, 0, 90))
    flat = np.column_stack([corners, np.zeros(4)])
    np.testing.assert_array_equal(read_at(arguments, flat), np.roll(flat, 1, axis=0))


def test_rotation_about_moves_the_content_by_the_shift():
    """What was at the center is at the center plus the shift."""
    arguments = rotation_about((10, 20), 33, 1.7, (5, -2))
    np.testing.assert_allclose(read_at(arguments, [[15, 18]]), [[10, 20]], **CLOSE)


@pytest.mark.parametrize("vectors", [(30, -75, 90), ((20, -35, 50), (0, 90, 0), (0, 0, 0))])
def test_rotation_about_takes_many_angles(vectors):
    """N angles are N transforms, each with its own center, scale and shift, or with that of all."""
    dims = 2 + np.ndim(vectors[0])
    rng = np.random.default_rng(1)
    centers, scales, shifts = rng.random((3, dims)), rng.random(3) + 0.5, rng.random((3, dims))
    for own in (
        (centers, scales, shifts),
        (centers[:1].repeat(3, 0), scales[:1].repeat(3), shifts[:1].repeat(3, 0)),
    ):
        each = [
            rotation_about(center, vector, scale, shift)["transform"].theta
            for center, vector, scale, shift in zip(own[0], vectors, *own[1:], strict=True)
        ]
        found = rotation_about(own[0], vectors, *own[1:])["transform"].theta
        np.testing.assert_array_equal(found, np.concatenate(each))
    found = rotation_about(centers[0], vectors, scales[0], shifts[0])["transform"].theta
    np.testing.assert_array_equal(found, np.concatenate(each))


@pytest.mark.parametrize("vector", [(0, 0, 0), (20, -35, 50), (0, 90, 0), (-120, 30, 200)])
def test_rotation_about_turns_volumes_as_scipy_and_kornia(vector):
    """By a rotation vector in degrees, right-handed in (x, y, z)."""
    center = np.array([7.0, 5.0, 3.0])
    arguments = rotation_about(center, vector, 1.25)
    moved = 1.25 * Turn.from_rotvec(vector, degrees=True).apply(VOLUME_SOURCE - center) + center
    np.testing.assert_allclose(read_at(arguments, moved), VOLUME_SOURCE, **CLOSE)
    projection = kornia.get_projective_transform(
        *(torch.tensor(np.array([each])).double() for each in (center, vector, [1.25] * 3))
    )
    homogeneous = np.column_stack([VOLUME_SOURCE, np.ones(6)])
    np.testing.assert_allclose(moved, homogeneous @ projection[0].numpy().T, rtol=1e-6, atol=1e-4)


def test_compose_is_one_warp_after_the_other(local_server):
    """In whole pixels, so that warping twice loses nothing but what leaves the image."""
    image = np.random.default_rng(3).random((1, 1, 8, 8))
    turn, shift = rotation_about((3.5, 3.5), 90), {**from_opencv(np.array([[1, 0, 2], [0, 1, 1]]))}
    with Client(local_server.target) as stn:
        twice = stn.warp(stn.warp(image, **turn), **shift)
        once = stn.warp(image, **compose(turn, shift))
    expected = np.zeros((8, 8))
    expected[1:, 2:] = np.rot90(image[0, 0])[:-1, :-2]
    np.testing.assert_array_equal(twice[0, 0], expected)
    np.testing.assert_array_equal(once[0, 0], expected)


def test_compose_takes_every_transform_with_a_matrix():
    """Those with few parameters stand for the theta of their documentation."""
    s, phi, t_x, t_y = 0.7, 0.4, 3.0, -2.0
    cos, sin = np.cos(phi), np.sin(phi)
    expected = {
        Similarity([[s, phi, t_x, t_y]]): [[s * cos, -s * sin, t_x], [s * sin, s * cos, t_y]],
        Attention([[s, t_x, t_y]]): [[s, 0, t_x], [0, s, t_y]],
        Translation([[t_x, t_y]]): [[1, 0, t_x], [0, 1, t_y]],
        Rotation([[phi]]): [[cos, -sin, 0], [sin, cos, 0]],
    }
    for transform, matrix in expected.items():
        composed = compose(transform)
        assert composed["coordinates"] == "normalized"
        assert composed["align_corners"] is False
        np.testing.assert_allclose(composed["transform"].theta[0], matrix, **CLOSE)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", [SamplingGrid, Flow])
def test_compose_moves_the_points_of_a_grid(kind, unit):
    """A crop behind a lens' map reads where the map says, in the crop; flows are grids, too."""
    rng = np.random.default_rng(0)
    points = rng.random((2, 4, 5, 2))
    matrix = np.array([[0.9, 0.1, 0.3], [-0.2, 1.1, 0.4], [0.05, 0.02, 1.0]])
    first = TransformArguments(transform=Homography(matrix[None]), **unit)
    found = compose(first, TransformArguments(transform=kind(points), **unit))
    read = points
    if kind is Flow:
        theta_2x3 = torch.eye(2, 3).double()[None]
        lattice = F.affine_grid(theta_2x3, [1, 1, 4, 5], bool(unit.get("align_corners"))).numpy()
        if unit["coordinates"] == "pixel":
            lattice = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1)
        read = points + lattice
    expected = cv2.perspectiveTransform(read.reshape(-1, 1, 2), matrix).reshape(read.shape)
    assert {key: found[key] for key in unit} == unit
    np.testing.assert_allclose(found["transform"].grid, expected, **CLOSE)


def test_compose_moves_a_spline_as_scipy_evaluates_it():
    """The affine image of a spline is the spline through the images."""
    points = SOURCE.astype(np.float64)
    spline = from_points(points, TARGET, "spline", regularization=2.0)
    affine = rotation_about((20, 10), 25, 0.8)
    moved = compose(affine, spline)["transform"]
    assert moved.regularization == 2.0
    np.testing.assert_array_equal(moved.control_points, TARGET)
    probes = np.random.default_rng(1).random((20, 2)) * 50

    def evaluated(values):
        kernel = {"kernel": "thin_plate_spline", "smoothing": 2.0}
        return RBFInterpolator(TARGET, values, **kernel)(probes)

    np.testing.assert_allclose(
        evaluated(moved.points[0]), read_at(affine, evaluated(points)), **CLOSE
    )


def test_from_remap_is_where_opencv_reads():
    """Two maps, both in one, or N of them; float32 unless that would lose digits."""
    y, x = np.mgrid[:4, :5].astype(np.float32)
    for dtype, expected in ((np.float16, np.float32), (np.int16, np.float32), (int, np.float64)):
        assert from_remap(x.astype(dtype), y)["transform"].grid.dtype == expected
    arguments = from_remap(x + 0.25, y - 0.5)
    grid = arguments["transform"].grid
    assert arguments["coordinates"] == "pixel"
    assert grid.dtype == np.float32
    np.testing.assert_array_equal(grid[0, 2, 3], [3.25, 1.5])
    np.testing.assert_array_equal(from_remap(grid[0])["transform"].grid, grid)
    np.testing.assert_array_equal(from_remap(grid)["transform"].grid, grid)
    many = from_remap(np.stack([x, y]), np.stack([y, x]))["transform"].grid
    np.testing.assert_array_equal(many[1, 2, 3], [2, 3])


def test_from_remap_reads_volumes_as_map_coordinates(local_server):
    """SciPy's coordinates are in index order."""
    volume = np.random.default_rng(0).random((6, 7, 8))
    coordinates = np.random.default_rng(1).random((3, 2, 3, 4)) * 4 + 0.5
    with Client(local_server.target) as stn:
        found = stn.warp(volume[None, None], **from_remap(*coordinates[::-1]))
    expected = scipy.ndimage.map_coordinates(volume, coordinates, order=1)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 8)])
def test_from_voxel_is_affine_transform_of_scipy(local_server, shape):
    """In index order, with the offset apart or in the last column."""
    rng = np.random.default_rng(2)
    image, dims = rng.random(shape), len(shape)
    linear = np.eye(dims) + rng.uniform(-0.2, 0.2, (dims, dims))
    offset = rng.uniform(-1, 1, dims)
    expected = scipy.ndimage.affine_transform(
        image, linear, offset, output_shape=shape[::-1], order=1, mode="grid-constant"
    )
    square = np.vstack([np.column_stack([linear, offset]), np.eye(dims + 1)[-1:]])
    with Client(local_server.target) as stn:
        for arguments in (from_voxel(linear, offset), from_voxel(square), from_voxel(square[:-1])):
            found = stn.warp(image[None, None], **arguments, output_size=shape[::-1])
            np.testing.assert_allclose(found[0, 0], expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(to_voxel(from_voxel(linear, offset)), square[None], **CLOSE)
    np.testing.assert_array_equal(
        from_voxel(linear, 2.0)["transform"].theta,
        from_voxel(linear, [2.0] * dims)["transform"].theta,
    )


# Points


@pytest.mark.parametrize(("kind", "theirs"), [("similarity", "similarity"), ("rigid", "euclidean")])
def test_from_points_fits_as_scikit_image(kind, theirs):
    """Least squares where targets read, so that their `src` is our target."""
    estimated = skimage.transform.estimate_transform(theirs, TARGET, SOURCE)
    np.testing.assert_allclose(theta(from_points(SOURCE, TARGET, kind)), estimated.params, **CLOSE)


def test_from_points_solves_linear_least_squares_as_scipy():
    """Of affine maps in the plane and in space."""
    space = VOLUME_SOURCE[::-1] * [1, 1.5, 2] + [4, 0, 1]
    for source, target in ((SOURCE, TARGET), (VOLUME_SOURCE, space)):
        homogeneous = np.column_stack([target, np.ones(6)])
        expected = scipy.linalg.lstsq(homogeneous, source)[0].T
        found = from_points(source, target, "affine")["transform"].theta[0]
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_from_points_fits_homographies_as_opencv_does():
    """`findHomography` refines its first guess by the same sum of squares, to its tolerance."""
    found = from_points(SOURCE, TARGET, "homography")
    of_opencv, _ = cv2.findHomography(TARGET, SOURCE, 0)

    def sum_of_squares(arguments):
        return ((read_at(arguments, TARGET) - SOURCE) ** 2).sum()

    theirs = sum_of_squares(from_opencv(of_opencv, inverse=True))
    assert sum_of_squares(found) <= theirs
    np.testing.assert_allclose(sum_of_squares(found), theirs, rtol=1e-4)
    np.testing.assert_allclose(
        read_at(found, TARGET), cv2.perspectiveTransform(TARGET[None], of_opencv)[0], atol=2e-2
    )


def test_from_points_finds_the_exact_maps_of_opencv_and_kornia():
    """Three and four points, in the order of their arguments."""
    three, four = [SOURCE[:3], TARGET[:3]], [SOURCE[:4], TARGET[:4]]
    affine = cv2.getAffineTransform(*(each.astype(np.float32) for each in three))
    found = from_points(*three, "affine")
    np.testing.assert_allclose(theta(found), theta(from_opencv(affine)), rtol=1e-9, atol=1e-7)
    perspective = cv2.getPerspectiveTransform(*(each.astype(np.float32) for each in four))
    found = from_points(*four, "homography")
    assert same_map(found, from_opencv(perspective))
    of_kornia = kornia.get_perspective_transform(*(torch.tensor(each[None]) for each in four))
    assert same_map(found, from_opencv(of_kornia[0]))


@pytest.mark.parametrize("kind", ["rigid", "similarity"])
def test_from_points_turns_volumes_as_scipy_aligns_vectors(kind):
    """`align_vectors` knows no scale and no shift; both follow from the means, by Umeyama."""
    rng = np.random.default_rng(5)
    turn = Turn.from_rotvec([0.3, -0.8, 0.5])
    target = 1.5 * turn.apply(VOLUME_SOURCE) + [4, 5, 6] + rng.normal(0, 0.5, (6, 3))
    read, shown = VOLUME_SOURCE - VOLUME_SOURCE.mean(0), target - target.mean(0)
    rotation = Turn.align_vectors(read, shown)[0].as_matrix()
    scale = (read * (shown @ rotation.T)).sum() / (shown**2).sum() if kind == "similarity" else 1.0
    found = theta(from_points(VOLUME_SOURCE, target, kind))
    np.testing.assert_allclose(found[:3, :3], scale * rotation, rtol=1e-7, atol=1e-7)
    mean = read_at(from_points(VOLUME_SOURCE, target, kind), target.mean(0)[None])
    np.testing.assert_allclose(mean[0], VOLUME_SOURCE.mean(0), **CLOSE)


def test_from_points_never_mirrors_a_rigid_body():
    """Points that fit best in a mirror get the best turn: this one, of points on one line."""
    target = np.array([[0.0, 0.0], [10.0, 0.0], [4.0, 0.5]])
    source = target * [1, -1]
    found = theta(from_points(source, target, "rigid"))[:2, :2]
    assert np.linalg.det(found) == pytest.approx(1)
    estimated = skimage.transform.estimate_transform("euclidean", target, source).params
    np.testing.assert_allclose(found, estimated[:2, :2], **CLOSE)


def test_from_points_spline_reads_its_points(local_server):
    """Through a server: the grid of the spline is that of SciPy's interpolator."""
    arguments = from_points(SOURCE, TARGET, "spline")
    assert isinstance(arguments["transform"], ThinPlateSpline)
    with Client(local_server.target) as stn:
        grid = stn.generate_grid(**arguments, output_size=(40, 50))
    interpolator = RBFInterpolator(TARGET, SOURCE, kernel="thin_plate_spline")
    y, x = np.mgrid[:40, :50]
    expected = interpolator(np.stack([x, y], -1).reshape(-1, 2)).reshape(40, 50, 2)
    np.testing.assert_allclose(grid[0], expected, rtol=1e-9, atol=1e-8)
    at = TARGET.astype(int)
    np.testing.assert_allclose(grid[0][at[:, 1], at[:, 0]], SOURCE, rtol=1e-9, atol=1e-8)


@PROPERTY
@given(transform=affines())
def test_from_points_finds_an_affine_transform_again(transform):
    dims = len(theta(transform)) - 1
    target = np.vstack([np.zeros(dims), 30 * np.eye(dims), np.full(dims, 20.0)])
    found = from_points(read_at(transform, target), target, "affine")
    np.testing.assert_allclose(theta(found), theta(transform), rtol=1e-8, atol=1e-8)


@PROPERTY
@given(transform=homographies())
def test_from_points_finds_a_homography_again(transform):
    """From four points and from more."""
    for target in (TARGET[:4], TARGET):
        assert same_map(from_points(read_at(transform, target), target, "homography"), transform)


@PROPERTY
@given(
    angle_deg=arrays.arrays(np.float64, 3, elements=numbers(-180, 180)),
    scale=numbers(0.1, 5),
    shift=arrays.arrays(np.float64, 3, elements=numbers(-50, 50)),
)
def test_from_points_finds_a_similarity_again(angle_deg, scale, shift):
    """In the plane and in space; a rigid one if nothing is scaled."""
    space = rotation_about((1, 2, 3), angle_deg, scale, shift)
    found = from_points(read_at(space, VOLUME_SOURCE), VOLUME_SOURCE, "similarity")
    np.testing.assert_allclose(theta(found), theta(space), rtol=1e-7, atol=1e-7)
    plane = rotation_about((1, 2), angle_deg[0], 1.0, shift[:2])
    found = from_points(read_at(plane, TARGET[:2]), TARGET[:2], "rigid")
    np.testing.assert_allclose(theta(found), theta(plane), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine", "homography"])
def test_from_points_is_least_in_the_source(kind):
    """No step along any parameter of the kind makes the sum of squares smaller."""
    found = theta(from_points(SOURCE, TARGET, kind))
    homogeneous = np.column_stack([TARGET, np.ones(6)])
    x, y = homogeneous @ found[0], homogeneous @ found[1]
    w = homogeneous @ found[2]
    residual = np.concatenate([x / w, y / w]) - SOURCE.T.ravel()
    if kind in {"rigid", "similarity"}:
        moved = np.column_stack([-(y - found[1, 2]), x - found[0, 2]])
        steps = [moved.T.ravel(), np.repeat([1.0, 0.0], 6), np.repeat([0.0, 1.0], 6)]
        if kind == "similarity":
            steps.append(np.concatenate([x - found[0, 2], y - found[1, 2]]))
    else:
        zeros = np.zeros((6, 3))
        scaled = homogeneous / w[:, None]
        steps = [*np.vstack([scaled, zeros]).T, *np.vstack([zeros, scaled]).T]
        if kind == "homography":
            tilt = -np.vstack([scaled * (x / w)[:, None], scaled * (y / w)[:, None]])
            steps += [*tilt.T]
    for step in steps:
        assert abs(step @ residual) <= 1e-7 * np.linalg.norm(step) * np.linalg.norm(residual)


def test_from_points_takes_points_of_opencv():
    """(K, 1, 2), as of `cv2.goodFeaturesToTrack` and contours, is K points and not K times one."""
    for kind in ("affine", "homography", "spline"):
        found = from_points(SOURCE[:, None], TARGET[:, None], kind)
        np.testing.assert_array_equal(
            found["transform"].parameters, from_points(SOURCE, TARGET, kind)["transform"].parameters
        )


def test_from_points_fits_every_item():
    """N sets of points, or one for all."""
    sources = np.stack([SOURCE, SOURCE + 3])
    found = from_points(sources, TARGET, "affine")["transform"].theta
    each = [from_points(source, TARGET, "affine")["transform"].theta for source in sources]
    np.testing.assert_array_equal(found, np.concatenate(each))
    assert from_points(sources, TARGET, "spline")["transform"].points.shape == (2, 6, 2)


# Laws


@PROPERTY
@given(transform=MATRICES)
def test_invert_undoes(transform):
    """A transform and its inverse are the identity, on either side; twice is the transform."""
    identity = TransformArguments(transform=Affine(np.eye(2, 3)[None]), coordinates="pixel")
    assert same_map(compose(transform, invert(transform)), identity)
    assert same_map(compose(invert(transform), transform), identity)
    assert same_map(invert(invert(transform)), transform)
    assert type(invert(transform)["transform"]) is type(transform["transform"])


@PROPERTY
@given(first=MATRICES, second=MATRICES, third=MATRICES)
def test_compose_is_associative_and_reverses_under_invert(first, second, third):
    """And is what going through the transforms from the last to the first gives."""
    whole = compose(first, second, third)
    assert same_map(whole, compose(compose(first, second), third))
    assert same_map(whole, compose(first, compose(second, third)))
    points = np.array([[1.0, 2.0], [30.0, 5.0], [12.0, 40.0]])
    through = read_at(first, read_at(second, read_at(third, points)))
    np.testing.assert_allclose(read_at(whole, points), through, rtol=1e-6, atol=1e-6)
    undone = compose(invert(third), invert(second), invert(first))
    assert same_map(compose(invert(whole), whole), compose(undone, whole))


@PROPERTY
@given(transform=affines())
def test_to_voxel_and_from_voxel_undo_each_other(transform):
    found = from_voxel(to_voxel(transform))
    np.testing.assert_array_equal(theta(found), theta(transform))


SIZES = st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(2, 40))


@PROPERTY
@given(transform=affines() | homographies(), sizes=st.tuples(SIZES, SIZES), corners=st.booleans())
def test_to_normalized_and_to_pixel_undo_each_other(transform, sizes, corners):
    """For every pair of sizes and both conventions."""
    dims = len(theta(transform)) - 1
    sizes = [size[:dims] for size in sizes]
    normalized = to_normalized(transform, *sizes, align_corners=corners)
    assert normalized["coordinates"] == "normalized"
    assert normalized["align_corners"] is corners
    assert same_map(to_pixel(normalized, *sizes), transform, dims)
    other = to_normalized(normalized, *sizes, align_corners=not corners)
    assert same_map(to_pixel(other, *sizes), transform, dims)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_to_pixel_reads_where_torch_does(align_corners, dims):
    """The grid of `affine_grid`, in the pixels that `grid_sample` makes of it."""
    rng = np.random.default_rng(dims)
    size, output_size = (5, 7, 9)[:dims], (6, 4, 3)[:dims]
    matrix = np.eye(dims, dims + 1)[None] + rng.uniform(-0.5, 0.5, (2, dims, dims + 1))
    grid = F.affine_grid(torch.tensor(matrix), [2, 1, *output_size], align_corners).numpy()
    lengths = np.array(size[::-1])
    spans = (grid + 1) / 2 * (lengths - 1) if align_corners else ((grid + 1) * lengths - 1) / 2
    given_ = TransformArguments(transform=Affine(matrix), align_corners=align_corners)
    found = to_pixel(given_, size, output_size)["transform"].theta
    pixels = np.stack([*np.indices(output_size)[::-1], np.ones(output_size)], -1)
    read = np.einsum("nij,...j->n...i", found, pixels)
    np.testing.assert_allclose(read, spans, rtol=1e-11, atol=1e-11)
    as_grid = TransformArguments(transform=SamplingGrid(grid), align_corners=align_corners)
    np.testing.assert_allclose(to_pixel(as_grid, size)["transform"].grid, spans, **CLOSE)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "kind", [Affine, Homography, Similarity, Attention, Translation, Rotation, SamplingGrid, Flow]
)
def test_units_make_no_difference_to_a_warp(local_server, kind, unit):
    """What a server makes of a transform in any unit is what it makes of it in any other."""
    rng = np.random.default_rng(4)
    widths = {Similarity: 4, Attention: 3, Translation: 2, Rotation: 1}
    shape = {Affine: (2, 3), Homography: (3, 3), SamplingGrid: (6, 5, 2), Flow: (6, 5, 2)}
    parameters = rng.uniform(-0.2, 0.2, (1, *shape.get(kind, (widths.get(kind),))))
    if kind in {Affine, Homography}:
        parameters += np.eye(*shape[kind])
    elif kind in {Similarity, Attention}:
        parameters[:, 0] += 1
    image = rng.random((1, 2, 7, 9))
    arguments = TransformArguments(transform=kind(parameters), **unit)
    options = {"output_size": (6, 5), "padding": "border"}
    with Client(local_server.target) as stn:
        expected = stn.warp(image, **arguments, **options)
        for changed in (
            to_pixel(arguments, (7, 9), (6, 5)),
            to_normalized(arguments, (7, 9), (6, 5)),
            to_normalized(arguments, (7, 9), (6, 5), align_corners=True),
        ):
            found = stn.warp(image, **changed, **options)
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_a_single_pixel_of_output_is_its_own_middle():
    """Under align_corners it is 0, from where every way back leads to it."""
    given_ = TransformArguments(transform=Affine([[[0.5, 0, 0.25], [0, 2, 0]]]), align_corners=True)
    found = to_pixel(given_, (5, 9), (5, 1))["transform"].theta[0]
    np.testing.assert_allclose(found, [[0, 0, 5], [0, 2, -2]])


def test_sizes_follow_from_the_map_and_the_grid():
    """Output size None: that of the grid, else of the input, as for `Client.warp`."""
    affine = Affine([[[1, 0, 0.5], [0, 1, 0]]])
    np.testing.assert_array_equal(
        to_pixel(affine, (4, 8))["transform"].theta,
        to_pixel(affine, (4, 8), (4, 8))["transform"].theta,
    )
    flow = Flow(np.zeros((1, 2, 3, 2)))
    np.testing.assert_allclose(to_pixel(flow, (2, 3))["transform"].displacement, 0, atol=1e-15)


def test_arguments_fit_every_call(local_server):
    """Whatever takes a transform and options takes both at once."""
    arguments = rotation_about((2, 2), 30)
    theta = arguments["transform"]
    image = np.random.default_rng(0).random((1, 1, 5, 5))
    with Client(local_server.target) as stn:
        expected = stn.warp(image, theta, coordinates="pixel")
        found, pullback = stn.vjp(image, **arguments)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(tiling.warp(stn, image, **arguments), expected)
        by_hand = stn.warp_gradients(expected, image, theta, coordinates="pixel").transform
        np.testing.assert_array_equal(pullback(expected).transform, by_hand)
        gradients = stn.warp_gradients(expected, image, **arguments)
        np.testing.assert_array_equal(gradients.transform, by_hand)
        grid = stn.generate_grid(**arguments, output_size=(5, 5))
        np.testing.assert_array_equal(grid, stn.generate_grid(theta, (5, 5), coordinates="pixel"))
        gradient = stn.generate_grid_gradients(grid, **arguments)
        by_hand = stn.generate_grid_gradients(grid, theta, coordinates="pixel")
        np.testing.assert_array_equal(gradient, by_hand)


def test_arguments_cannot_be_given_another_unit(local_server):
    """Python itself refuses it; forgotten stars are named."""
    arguments = rotation_about((2, 2), 30)
    image = np.zeros((1, 1, 5, 5))
    with Client(local_server.target) as stn:
        with pytest.raises(TypeError, match="multiple values for keyword argument 'coordinates'"):
            stn.warp(image, **arguments, coordinates="normalized")
        with pytest.raises(InvalidRequestError, match=r"got dict\. Unpack it: \*\*transform\."):
            stn.warp(image, arguments)


# Refusals

PIXEL = {"coordinates": "pixel"}
GRID = SamplingGrid(np.zeros((1, 2, 3, 2)))
AFFINE = Affine(np.eye(2, 3)[None])
AFFINE_3D = Affine(np.eye(3, 4)[None])
EIGHT = {**PIXEL, "transform": Affine(np.tile(np.eye(2, 3), (8, 1, 1)))}
LINE = np.array([[0.0, 0], [1, 2], [2, 4], [3, 6]])
CUBE = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
XY = np.zeros((2, 3), np.float32)

REFUSALS = {
    "opencv: shape": (lambda: from_opencv(np.eye(4)), r"matrix: expected \(2, 3\) or \(3, 3\), or"),
    "opencv: volume": (lambda: from_opencv(np.eye(3, 4)), r"matrix: expected \(2, 3\) or \(3, 3\)"),
    "opencv: NaN": (
        lambda: from_opencv(np.full((2, 3), np.nan)),
        r"matrix: expected finite numbers up to 1e\+100, got nan",
    ),
    "opencv: astronomic": (
        lambda: from_opencv(1e200 * np.eye(3)),
        r"matrix: expected finite numbers up to 1e\+100, got 1e\+200",
    ),
    "opencv: text": (lambda: from_opencv("rotate"), "matrix: expected numbers, got <U6"),
    "opencv: ragged": (lambda: from_opencv([[1, 2], [3]]), "matrix: expected an array, got list"),
    "opencv: singular": (
        lambda: from_opencv([[0.1, 0.2, 0], [0.3, 0.6, 0]]),
        r"matrix: expected an invertible matrix, got \[\[0.1, 0.2",
    ),
    "opencv: one of many": (
        lambda: from_opencv([np.eye(3), np.zeros((3, 3))]),
        r"matrix\[1\]: expected an invertible matrix",
    ),
    "opencv: flags": (
        lambda: from_opencv(np.eye(3), cv2.WARP_INVERSE_MAP),
        "inverse: expected True or False, got 16",
    ),
    "opencv: none found": (
        lambda: from_opencv(cv2.findHomography(np.zeros((4, 2)), np.zeros((4, 2)))[0]),
        r"matrix: expected \(2, 3\) or \(3, 3\), got None, which cv2.findHomography",
    ),
    "remap: nothing": (lambda: from_remap(None), "map_x: expected numbers, got NoneType"),
    "remap: fixed point": (
        lambda: from_remap(*cv2.convertMaps(XY, XY, cv2.CV_16SC2)),
        r"map_y: expected \(2, 3, 2\) as map_x, got \(2, 3\). In fixed point\? Convert: cv2.conv",
    ),
    "remap: masks": (lambda: from_remap(XY > 0, XY), "map_x: expected numbers, got bool"),
    "remap: shapes": (lambda: from_remap(XY, XY[:1]), r"map_y: expected \(2, 3\) as map_x, got"),
    "remap: alone": (lambda: from_remap(XY), "map_y: expected the y of every pixel unless"),
    "remap: no y": (lambda: from_remap(XY, None, XY), "map_y: expected the y of every pixel"),
    "remap: axes": (lambda: from_remap(XY[0], XY[0]), r"map_x: expected \(H', W'\), or N of them"),
    "remap: volume": (lambda: from_remap(XY, XY, XY), r"map_x: expected \(D', H', W'\), or N"),
    "rotation: center": (lambda: rotation_about((1,), 30), r"center: expected \(x, y\) or"),
    "rotation: scale": (lambda: rotation_about((1, 2), 30, 0), "scale: expected a number above 0"),
    "rotation: nothing left": (
        lambda: rotation_about((1, 2), 30, 1e-310),
        "scale: expected a number above 0",
    ),
    "rotation: scales": (lambda: rotation_about((1, 2), 3, (1, 2)), "scale: expected a number, or"),
    "rotation: centers": (
        lambda: rotation_about([(1, 2), (3, 4)], 30),
        r"center: expected one, or one for each angle, got shape \(2, 2\)",
    ),
    "rotation: vectors": (
        lambda: rotation_about((1, 2), [(3, 4, 5), (6, 7, 8)]),
        "angle_deg: expected one number",
    ),
    "rotation: no angle": (lambda: rotation_about((1, 2), []), "angle_deg: expected one number"),
    "rotation: scales of others": (
        lambda: rotation_about((1, 2), (3, 4), (1, 2, 3)),
        "scale: expected a number, or one for each angle",
    ),
    "rotation: shifts": (
        lambda: rotation_about((1, 2), (3, 4), 1, [(1, 2)] * 3),
        "translate_px: expected 2 numbers, or as many for each angle",
    ),
    "rotation: angle": (
        lambda: rotation_about((1, 2, 3), 30),
        "angle_deg: expected a rotation vector of 3 numbers",
    ),
    "rotation: endless": (lambda: rotation_about((1, 2), np.inf), "angle_deg: expected finite"),
    "rotation: shift": (
        lambda: rotation_about((1, 2), 30, 1, (1, 2, 3)),
        "translate_px: expected 2 numbers",
    ),
    "compose: none": (compose, "transforms: expected at least one, got none"),
    "compose: units": (
        lambda: compose(rotation_about((1, 2), 3), AFFINE),
        r"transforms\[1\]: expected pixel as the first, got normalized, align_corners=False",
    ),
    "compose: conventions": (
        lambda: compose(AFFINE, {"transform": AFFINE, "align_corners": True}),
        r"transforms\[1\]: expected normalized, align_corners=False as the first, got .*=True",
    ),
    "compose: axes": (
        lambda: compose(AFFINE, AFFINE_3D),
        r"transforms\[1\]: expected points of 2 axes as the first, got 3",
    ),
    "compose: N": (
        lambda: compose(EIGHT, {**PIXEL, "transform": Affine(np.zeros((3, 2, 3)))}),
        r"transforms\[1\]: expected N = 1, or 8 as the longest, got 3",
    ),
    "compose: grid first": (
        lambda: compose(GRID, AFFINE),
        r"transforms\[0\]: expected a transform with a matrix, got SamplingGrid",
    ),
    "compose: horizon": (
        lambda: compose(
            Homography(np.eye(3)[None]), ThinPlateSpline(LINE[None], control_points=LINE)
        ),
        r"transforms\[0\]: expected an affine transform before a spline, got Homography",
    ),
    "compose: array": (
        lambda: compose(np.eye(3)),
        r"transforms\[0\]: expected a transform, alone or with its unit, got ndarray",
    ),
    "compose: options": (
        lambda: compose({"transform": AFFINE, "padding": "border"}),
        r"transforms\[0\]: expected no more than align_corners, .*, got 'padding'",
    ),
    "compose: unit": (
        lambda: compose({"transform": AFFINE, "coordinates": "mm"}),
        r"transforms\[0\].coordinates: expected one of normalized, pixel, got 'mm'",
    ),
    "compose: convention": (
        lambda: compose({"transform": AFFINE, "align_corners": 1}),
        r"transforms\[0\].align_corners: expected True or False, got 1",
    ),
    "invert: grid": (lambda: invert(GRID), "transform: expected a transform with a matrix"),
    "invert: singular": (lambda: invert(Attention([[0, 1, 2]])), "transform: expected an inv"),
    "invert: theta": (lambda: invert(Affine(np.eye(2, 3))), r"of \(N, 2, 3\) or \(N, 3, 4\), got"),
    "invert: homography": (
        lambda: invert(Homography(np.eye(3))),
        r"parameters of \(N, 3, 3\), got",
    ),
    "invert: rotation": (lambda: invert(Rotation([0.5])), r"expected parameters of \(N, 1\), got"),
    "to_pixel: size": (lambda: to_pixel(AFFINE, (4,)), r"input_size: expected \(H, W\), whole"),
    "to_pixel: empty": (lambda: to_pixel(AFFINE, (0, 4)), r"input_size: expected \(H, W\), whole"),
    "to_pixel: halves": (lambda: to_pixel(AFFINE, (4, 4), (1.5, 2)), "output_size: expected"),
    "to_pixel: volume": (lambda: to_pixel(AFFINE_3D, (4, 4)), r"input_size: expected \(D, H, W\)"),
    "to_pixel: grid": (lambda: to_pixel(GRID, (4, 4), (4, 4)), "output_size: expected that of the"),
    "to_pixel: grid of truths": (
        lambda: to_pixel(SamplingGrid(np.zeros((1, 2, 3, 2), bool)), (4, 4)),
        "transform: expected numbers, got bool",
    ),
    "to_pixel: flat grid": (
        lambda: to_pixel(SamplingGrid(np.zeros((2, 3, 2))), (4, 4)),
        r"transform: expected parameters of \(N, H', W', 2\) or",
    ),
    "to_pixel: spline": (
        lambda: to_pixel(ThinPlateSpline(LINE[None], control_points=LINE), (4, 4)),
        "transform: expected a transform with a matrix, got ThinPlateSpline",
    ),
    "to_normalized: one pixel": (
        lambda: to_normalized({**PIXEL, "transform": AFFINE}, (1, 4), align_corners=True),
        "input_size: expected at least 2 pixels along each axis under align_corners=True",
    ),
    "to_normalized: flag": (
        lambda: to_normalized(AFFINE, (4, 4), align_corners="edges"),
        "align_corners: expected True or False, got 'edges'",
    ),
    "voxel: last row": (
        lambda: from_voxel([[1, 0, 0], [0, 1, 0], [1, 0, 1]]),
        r"matrix: expected the last row \[0, 0, 1\], got .*Of a matrix without a last column, say",
    ),
    "voxel: linear": (lambda: from_voxel(np.eye(2)), r"matrix: expected \(2, 3\) or \(3, 3\), of"),
    "voxel: both": (lambda: from_voxel(np.eye(4), 0), r"matrix: expected \(2, 2\) or \(3, 3\) be"),
    "voxel: offset": (lambda: from_voxel(np.eye(3), (1, 2)), "offset: expected 3 numbers"),
    "voxel: unit": (lambda: to_voxel(AFFINE), "transform: expected one in pixels, got a normal"),
    "points: another word": (
        lambda: from_points(SOURCE, TARGET, "perspective"),
        "kind: expected one of rigid, .* got 'perspective'. Did you mean 'homography'",
    ),
    "points: kind": (
        lambda: from_points(SOURCE, TARGET, "tps"),
        "kind: expected one of rigid",
    ),
    "points: number": (lambda: from_points(SOURCE, TARGET[:4], "affine"), r"target: .*\(6, 2\) as"),
    "points: axes": (lambda: from_points(SOURCE[:, :1], TARGET, "affine"), r"source: .*\(K, 2\)"),
    "points: N": (
        lambda: from_points([SOURCE] * 3, [TARGET] * 2, "affine"),
        "target: expected N = 1, or 3 as source, got 2",
    ),
    "points: few": (
        lambda: from_points(SOURCE[:3], TARGET[:3], "homography"),
        "source: expected at least 4 points for homography, got 3",
    ),
    "points: few in space": (
        lambda: from_points(CUBE[:3], CUBE[:3], "affine"),
        "source: expected at least 4 points for affine, got 3",
    ),
    "points: infinite": (
        lambda: from_points(SOURCE, np.full((6, 2), np.inf), "affine"),
        "target: expected finite",
    ),
    "points: line": (
        lambda: from_points(SOURCE[:4], LINE, "affine"),
        "target: expected points that are not all on one line",
    ),
    "points: rounded line": (
        lambda: from_points(SOURCE[:4], (LINE / 7).astype(np.float32), "affine"),
        "target: expected points that are not all on one line",
    ),
    "points: plane": (
        lambda: from_points(VOLUME_SOURCE[:4], CUBE, "affine"),
        "target: expected points that are not all on one plane",
    ),
    "points: one place": (
        lambda: from_points(SOURCE[:2], [[5, 6], [5, 6]], "similarity"),
        r"target: expected different points, got 2 times \[5.0, 6.0\]",
    ),
    "points: mirrored": (
        lambda: from_points(SQUARE, SQUARE[::-1], "rigid"),
        "source: expected points that one turn takes to those of the target; these are mirrored",
    ),
    "points: axis": (
        lambda: from_points(CUBE[:3] * [[1, 0, 0]], CUBE[:3], "rigid"),
        "source: expected points that one turn takes",
    ),
    "points: three on a line": (
        lambda: from_points(SOURCE[:4], [[0, 0], [1, 0], [2, 0], [0, 1]], "homography"),
        "target: expected four points of which no three are on one line",
    ),
    "points: three sources": (
        lambda: from_points([[0, 0], [1, 0], [2, 0], [0, 1]], TARGET[:4], "homography"),
        "target: expected four points of which no three are on one line, here and in source",
    ),
    "points: homography of volumes": (
        lambda: from_points(VOLUME_SOURCE, VOLUME_SOURCE, "homography"),
        "kind: expected rigid, similarity or affine for points",
    ),
    "points: smooth affine": (
        lambda: from_points(SOURCE, TARGET, "affine", regularization=1.0),
        "regularization: expected 0 unless the kind is spline",
    ),
    "spline: twice": (
        lambda: from_points(SOURCE[:4], [[0, 0], [1, 0], [0, 1], [1, 0]], "spline"),
        "target: expected different points, got 1 and 3 in one place",
    ),
    "spline: line": (lambda: from_points(SOURCE[:4], LINE, "spline"), "target: .*on one line"),
    "spline: many": (
        lambda: from_points(SOURCE, [TARGET] * 2, "spline"),
        r"target: .*\(K, 2\), the",
    ),
    "spline: negative": (
        lambda: from_points(SOURCE, TARGET, "spline", regularization=-1.0),
        "regularization: expected a number of at least 0, got -1.0",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_argument(case):
    """What cannot be is refused in the words of the caller, before anything is sent."""
    call, message = REFUSALS[case]
    with pytest.raises(InvalidRequestError, match=message) as caught:
        call()
    assert len(caught.value.violations) == 1
