"""Alignment by gradient descent, with every forward and backward through a real server."""

import numpy as np
import pytest
import torch
from PIL import Image

from stn_client import Affine, Client, InvalidRequestError, ThinPlateSpline
from stn_client.local import LocalServer
from stn_client.registration import align

pytestmark = pytest.mark.slow

SIDE = 64


def scene(points):
    """A smooth scene with structure in all directions, at points (2, ...) in normalized units."""
    x, y = points
    rings = np.cos(9 * np.hypot(x - 0.3, y + 0.2))
    return (rings + np.sin(5 * x - 3 * y) + np.cos(4 * y)).astype(np.float32)


def lattice():
    """Normalized pixel centres, (3, SIDE, SIDE): x, y and 1."""
    axis = (2 * np.arange(SIDE) + 1) / SIDE - 1
    return np.stack([*np.meshgrid(axis, axis), np.ones((SIDE, SIDE))])


def visited(steps):
    """Stages and levels of the pyramid, in their order."""
    return list(dict.fromkeys((step.stage, step.level) for step in steps))


def test_align_finds_an_affine_map_under_another_exposure():
    """To a twentieth of a pixel, from six pixels away."""
    truth = np.array([[0.95, -0.12, 0.06], [0.10, 1.04, -0.08], [0.0, 0.0, 1.0]])
    points = lattice()
    fixed = scene(points[:2])[None, None]
    seen = np.einsum("ij,jhw->ihw", np.linalg.inv(truth), points)
    moving = 0.5 * scene(seen[:2])[None, None] + 3
    with LocalServer() as server, Client(server.target) as stn:
        steps = list(align(stn, fixed, moving))
    assert visited(steps) == [
        ("translation", 2),
        ("similarity", 2),
        ("affine", 2),
        ("affine", 1),
        ("affine", 0),
    ]
    assert len(steps) < 100
    assert steps[-1].loss < 0.1 * steps[0].loss
    corners = np.array([[-1, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    identity = np.eye(2, 3)
    errors_px = [
        SIDE / 2 * np.abs((theta - truth[:2]) @ corners).max()
        for theta in (identity, steps[-1].theta[0])
    ]
    assert errors_px[0] > 6
    assert errors_px[1] < 0.05


def test_align_finds_a_map_that_bends():
    """To a tenth of a pixel, where the affine map that fits best is off by more than one."""
    side = np.linspace(-0.9, 0.9, 4)
    control = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    x, y = control.T
    bends = np.stack([0.04 * np.sin(3 * y), 0.05 * np.cos(2.5 * x) - 0.02], 1)
    truth = ThinPlateSpline((control + bends)[None], control_points=control)
    moving = scene(lattice()[:2])[None, None]
    with LocalServer() as server, Client(server.target) as stn:
        grid = stn.generate_grid(truth, (SIDE, SIDE))
        fixed = 2 * scene(np.moveaxis(grid[0], -1, 0))[None, None] + 1
        steps = list(align(stn, fixed, moving, iterations=120, control_points=control))
        found = [
            stn.generate_grid(step.transform, (SIDE, SIDE)) for step in (affine(steps), steps[-1])
        ]
    assert visited(steps)[-3:] == [("affine", 0), ("spline", 1), ("spline", 0)]
    assert np.array_equal(steps[-1].theta, affine(steps).theta)
    assert isinstance(affine(steps).transform, Affine)
    inner = np.s_[:, 8:-8, 8:-8]
    affine_px, spline_px = (SIDE / 2 * np.abs(each - grid)[inner].max() for each in found)
    assert affine_px > 1
    assert spline_px < 0.1


def affine(steps):
    """The last step of the affine map."""
    return [step for step in steps if step.stage == "affine"][-1]


IMAGE = scene(np.mgrid[-1:1:64j, -1:1:64j][::-1])[None, None]


def test_volumes_are_not_aligned_by_splines():
    """Which are of images only."""
    volume = np.arange(512, dtype=np.float32).reshape(1, 1, 8, 8, 8)
    client = Client("127.0.0.1:1")
    match = r"^control_points: expected stages of volumes, translation, affine, flow, got 'spline'"
    with pytest.raises(InvalidRequestError, match=match):
        next(align(client, volume, volume, control_points=np.zeros((4, 2))))


def dense(points):
    """A smooth scene with structure in all directions, at points (3, ...) in normalized units."""
    x, y, z = points
    return (scene((x, y)) * np.cos(3 * z - x) + np.sin(5 * z + 2 * y)).astype(np.float32)


def test_align_finds_an_affine_map_between_volumes():
    """To a tenth of a voxel, from two voxels away."""
    side = 32
    axis = (2 * np.arange(side) + 1) / side - 1
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack([x, y, z, np.ones_like(x)])
    truth = np.eye(4)
    truth[:3] += [[-0.04, 0.05, 0.0, 0.04], [-0.05, 0.03, 0.02, -0.05], [0.02, 0.0, -0.03, 0.06]]
    fixed = dense(points[:3])[None, None]
    seen = np.einsum("ij,jdhw->idhw", np.linalg.inv(truth), points)
    moving = 2 * dense(seen[:3])[None, None] - 1
    with LocalServer() as server, Client(server.target) as stn:
        steps = list(align(stn, fixed, moving))
    assert visited(steps) == [("translation", 1), ("affine", 1), ("affine", 0)]
    corners = np.stack([*np.meshgrid(*[(-1, 1)] * 3), np.ones((2, 2, 2))]).reshape(4, 8)
    errors_px = [
        side / 2 * np.abs((theta - truth[:3]) @ corners).max()
        for theta in (np.eye(3, 4), steps[-1].theta[0])
    ]
    assert errors_px[0] > 2
    assert errors_px[1] < 0.1


def test_a_constant_image_cannot_be_aligned():
    """It is refused before anything is sent."""
    flat = np.full((1, 1, SIDE, SIDE), 0.5, np.float32)
    client = Client("127.0.0.1:1")
    with pytest.raises(
        InvalidRequestError, match=r"^fixed: expected edges to align, got 0\.5 ever"
    ):
        next(align(client, flat, flat))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fixed": None}, "^fixed: expected real numbers, got object"),
        (
            {"fixed": IMAGE[0]},
            r"^fixed: expected \(N, C, .*got shape \(1, 64, 64\).* layout: \"HWC\"",
        ),
        (
            {"fixed": np.ones((2, 1, 64, 64))},
            r"^fixed: expected one image \(N, C, .*, N = 1, got .*2",
        ),
        ({"fixed": IMAGE[0, 0], "layout": "HWC"}, r"^fixed: expected .* beside layout 'HWC'"),
        ({"moving": IMAGE.repeat(3, 1)}, "^moving: expected an image of 1 channels, as fixed, got"),
        ({"moving": np.ones((1, 1, 4, 4, 4))}, "^moving: expected an image of 1 channels, as fix"),
        (
            {"moving": IMAGE * np.float32(np.nan)},
            "^moving: expected finite numbers, got some that are not",
        ),
        (
            {"moving": np.broadcast_to(np.float32(1), (1, 1, 10**6, 10**6))},
            "^moving: expected at most 2147483647 bytes, as no message holds more, got 4000000000",
        ),
        ({"moving": 1j * IMAGE}, "^moving: expected real numbers, got complex64"),
        (
            {"weights": np.ones((3, 64))},
            r"^weights: expected one .*, \(64, 64\), got shape \(3, 64\)",
        ),
        ({"control_points": 4}, r"^control_points: expected at least three .*, got shape \(\)"),
        ({"control_points": (3, 3)}, r"^control_points: expected at least three .* shape \(2,\)"),
        ({"control_points": [[0, 0]]}, r"^control_points: expected at least three .* \(1, 2\)"),
        ({"control_points": [[0, np.nan]] * 3}, "^control_points: expected finite numbers up to"),
        ({"control_points": "corners"}, "^control_points: expected numbers, got <U7"),
        ({"weights": 0 * IMAGE}, r"^weights: expected finite .* got numbers from 0\.0 to 0\.0"),
        ({"weights": -IMAGE}, r"^weights: expected finite .* got numbers from -\d"),
        ({"weights": IMAGE > 1e9}, r"^weights: expected finite numbers of at least 0, some above"),
        (
            {"weights": np.equal(IMAGE, IMAGE.max())},
            "^fixed: expected edges .* wherever weights are",
        ),
        ({"iterations": 0}, "^iterations: expected at least 1, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_arguments_are_checked_when_they_are_given(change, text):
    """In the words of the call, before a step is asked for."""
    with pytest.raises(InvalidRequestError, match=text):
        align(Client("127.0.0.1:1"), **{"fixed": IMAGE, "moving": IMAGE, **change})


def same_pair(kind, array):
    """An image (H, W, 3) as people have it, and the options that say so."""
    if kind == "pillow":
        return Image.fromarray(array), {}
    if kind == "torch":
        return torch.from_numpy(array.transpose(2, 0, 1)[None].copy()), {}
    return (array, {"layout": "HWC"}) if kind == "HWC" else (array[None], {"layout": "NHWC"})


@pytest.mark.parametrize("kind", ["pillow", "torch", "HWC", "NHWC"])
def test_images_are_taken_as_calls_take_them(kind):
    """And aligned as the arrays (1, C, H, W) that they stand for, bit for bit."""
    planes = np.concatenate(pair(AFFINE)).repeat(3, 1) * [[[0.3]], [[0.2]], [[-0.1]]] * 80 + 100
    fixed, moving = planes.round().astype(np.uint8)
    given, options = zip(
        *(same_pair(kind, one.transpose(1, 2, 0)) for one in (fixed, moving)), strict=True
    )
    counted = np.ones(fixed.shape[1:], bool)
    with LocalServer() as server, Client(server.target) as stn:
        *_, found = align(stn, *given, weights=counted, stages="translation", **options[0])
        counted = counted[None, None].astype(np.float32)
        *_, expected = align(
            stn, fixed[None], moving[None], weights=counted, stages=["translation"]
        )
    np.testing.assert_array_equal(found.theta, expected.theta)


@pytest.mark.parametrize("power", [-600, -90, 70, 600])
def test_the_unit_of_numbers_does_not_matter(power):
    """Squares of numbers in it may be too large or too small for any float, bit for bit."""
    dtype = np.float32 if abs(power) < 120 else np.float64
    fixed, moving = (one.astype(dtype) for one in pair(AFFINE))
    weights = np.ones_like(fixed[0, 0])
    weights[:20, :24] = 0.5
    options = {"stages": ["translation", "affine"], "iterations": 5}
    with LocalServer() as server, Client(server.target) as stn:
        *_, expected = align(stn, fixed, moving, weights=weights, **options)
        scaled = [np.ldexp(one, power) for one in (fixed, moving, weights)]
        *_, found = align(stn, *scaled[:2], weights=scaled[2], **options)
    np.testing.assert_array_equal(found.theta, expected.theta)
    assert found.loss == expected.loss
    assert corner_error_px(np.vstack([found.theta[0], [0, 0, 1]]), AFFINE) < 0.1


def test_numbers_that_do_not_count_need_not_be_finite():
    """As those outside of a scan, which the mask leaves out."""
    fixed, moving = pair(AFFINE)
    weights = np.ones_like(fixed[0, 0])
    weights[:20, :24] = 0
    fixed[..., :20, :24] = np.nan
    with LocalServer() as server, Client(server.target) as stn:
        *_, last = align(stn, fixed, moving, weights=weights)
    assert corner_error_px(np.vstack([last.theta[0], [0, 0, 1]]), AFFINE) < 0.1


def pair(homography, size=(SIDE, SIDE + 16)):
    """Two images of a scene, the second one seen through a map of normalized coordinates."""
    axes = [(2 * np.arange(count) + 1) / count - 1 for count in size]
    y, x = np.meshgrid(*axes, indexing="ij")
    points = np.stack([x, y, np.ones_like(x)])
    seen = np.einsum("ij,jhw->ihw", np.linalg.inv(homography), points)
    return scene(points[:2])[None, None], scene(seen[:2] / seen[2])[None, None]


def corner_error_px(found, truth, size=(SIDE, SIDE + 16)):
    """How far apart two maps take a corner, in px."""
    corners = np.array([[-1, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    ends = [m[:2] / m[2] for m in (found @ corners, truth @ corners)]
    return np.abs((ends[0] - ends[1]) * np.array([[size[1] / 2], [size[0] / 2]])).max()


AFFINE = np.array([[0.97, -0.08, 0.05], [0.07, 1.03, -0.06], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("loss", ["huber", "ncc"])
def test_other_losses_find_the_same_map(loss):
    """Huber by Levenberg and Marquardt's method, correlation by Adam."""
    fixed, moving = pair(AFFINE)
    with LocalServer() as server, Client(server.target) as stn:
        *_, last = align(stn, fixed, moving, loss=loss)
    assert corner_error_px(np.vstack([last.theta[0], [0, 0, 1]]), AFFINE) < 0.1


def test_a_homography_is_found():
    """In images that are not square."""
    truth = AFFINE.copy()
    truth[2, :2] = [0.06, -0.05]
    fixed, moving = pair(truth)
    stages = ["translation", "similarity", "affine", "homography"]
    with LocalServer() as server, Client(server.target) as stn:
        *_, last = align(stn, fixed, moving, stages=stages)
    assert last.stage == "homography"
    assert corner_error_px(last.theta[0] / last.theta[0, 2, 2], truth) < 0.05


def test_a_similarity_stays_one():
    """A turn in px, whatever the sides of the image."""
    turn, (height, width) = 0.1, (SIDE, SIDE + 16)
    cos, sin = 1.05 * np.cos(turn), 1.05 * np.sin(turn)
    truth = np.array([[cos, -sin * height / width, 0.03], [sin * width / height, cos, 0.04]])
    fixed, moving = pair(np.vstack([truth, [0, 0, 1]]))
    with LocalServer() as server, Client(server.target) as stn:
        *_, last = align(stn, fixed, moving, stages=["translation", "similarity"])
    theta = last.theta[0]
    assert theta[0, 0] == pytest.approx(theta[1, 1], rel=1e-9)
    assert theta[0, 1] * width == pytest.approx(-theta[1, 0] * height * height / width, rel=1e-9)
    assert corner_error_px(np.vstack([theta, [0, 0, 1]]), np.vstack([truth, [0, 0, 1]])) < 0.05


def test_pixels_of_no_weight_do_not_matter():
    """Whatever covers a quarter of the image."""
    fixed, moving = pair(AFFINE)
    weights = np.ones_like(fixed)
    weights[..., :32, :40] = 0
    fixed[..., :32, :40] = 9
    with LocalServer() as server, Client(server.target) as stn:
        *_, masked = align(stn, fixed, moving, weights=weights)
        *_, misled = align(stn, fixed, moving)
    thetas = [np.vstack([step.theta[0], [0, 0, 1]]) for step in (masked, misled)]
    assert corner_error_px(thetas[0], AFFINE) < 0.1
    assert corner_error_px(thetas[1], AFFINE) > 0.5


def test_a_flow_is_found():
    """A bend that no matrix is, to less than half a pixel within the image."""
    points = lattice()[:2]
    bend = np.stack([0.04 * np.sin(3 * points[1]), 0.05 * np.cos(2.5 * points[0])])
    fixed, moving = scene(points + bend)[None, None], scene(points)[None, None]
    with LocalServer() as server, Client(server.target) as stn:
        steps = list(align(stn, fixed, moving, stages=["translation", "flow"]))
    found = np.moveaxis(steps[-1].transform.displacement[0], -1, 0)
    inner = np.s_[:, 8:-8, 8:-8]
    before_px, after_px = (
        SIDE / 2 * np.sqrt((error[inner] ** 2).sum(0).mean()) for error in (bend, found - bend)
    )
    assert before_px > 1
    assert after_px < 0.45


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stages": ["afine"]}, r"^stages: expected some of translation, .* got \['afine'\]"),
        ({"stages": ["flow"]}, r"^stages: expected some of translation, .* got \['flow'\]"),
        ({"stages": 3}, r"^stages: expected some of translation, .* got 3\."),
        ({"stages": np.eye(2)}, r"^stages: expected some of translation, .* got array"),
        ({"stages": iter(["flow"])}, r"^stages: expected some of translation, .* got \['flow'\]"),
        ({"stages": ["affine", "spline"]}, "^control_points: expected some for stage"),
        ({"stages": ["affine"], "control_points": [[0, 0]]}, "^control_points: expected some"),
    ],
    ids=["unknown", "of volumes alone", "number", "array", "iterator", "no points", "no spline"],
)
def test_stages_that_make_no_sense_are_refused(options, text):
    """Before anything is computed."""
    image = np.arange(4096, dtype=np.float32).reshape(1, 1, 64, 64)
    with pytest.raises(InvalidRequestError, match=text):
        next(align(Client("127.0.0.1:1"), image, image, **options))
