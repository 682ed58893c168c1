"""Arguments that are valid and look like a mistake: what is warned of, where, and how often."""

import asyncio
import inspect
import warnings

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from stn_client import (
    Affine,
    Attention,
    Flow,
    Homography,
    Rotation,
    SamplingGrid,
    Similarity,
    Translation,
    calls,
    tiling,
)
from stn_client.testing import StubAsyncClient, StubClient
from stn_client.torch import SpatialTransformer, warp

PHOTO = np.ones((1, 1, 60, 80), np.float32)
VOLUME = np.ones((1, 1, 20, 30, 40), np.float32)
TURN = cv2.getRotationMatrix2D((40, 30), 30, 1.0)
SHEET = cv2.getPerspectiveTransform(
    np.float32([[0, 0], [79, 0], [79, 59], [0, 59]]),
    np.float32([[5, 3], [70, 2], [75, 50], [3, 55]]),
)
SHIFT = np.eye(3, 4)
SHIFT[:, 3] = 0, 4, 0
MESSAGE = r"^{}: expected points between -1 and 1, got all of them outside of the map, so that the"


def warped(u, transform, output_size=None, **options):
    """Makes a call; returns how often it was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calls.warp(u, transform, output_size, **options)
    return len(caught)


@pytest.mark.parametrize(
    ("transform", "argument"),
    [
        (Affine(TURN[None]), "theta"),
        (Affine(TURN[None].astype(np.float16)), "theta"),
        (Affine(TURN[None].tolist()), "theta"),
        (Affine(torch.tensor(TURN)[None]), "theta"),
        (Affine(np.stack([TURN, TURN])), "theta"),
        (Homography(SHEET[None]), "theta"),
        (Homography(-7 * SHEET[None]), "theta"),
        (Attention(np.array([[0.5, 12.0, 0]])), "parameters"),
        (Similarity(np.array([[1.0, 0.2, 0, -30]])), "parameters"),
        (Translation(np.array([[10, 5]])), "parameters"),
    ],
)
def test_a_matrix_in_pixels_taken_for_normalized_is_noticed(transform, argument):
    """By each call, whether its envelope is new or kept."""
    for _ in range(2):
        with pytest.warns(UserWarning, match=MESSAGE.format(argument)):
            calls.warp(PHOTO, transform)


def test_matrices_of_single_maps_and_volumes_are_noticed():
    """In every layout."""
    assert warped(PHOTO[0, 0], Affine(TURN), layout="HW") == 1
    assert warped(PHOTO[0, 0, :, :, None], Homography(SHEET), layout="HWC") == 1
    assert warped(VOLUME, Affine(SHIFT[None])) == 1
    assert warped(VOLUME[0, 0], Affine(SHIFT), layout="HW") == 1


@pytest.mark.parametrize(
    ("transform", "options"),
    [
        (Affine(TURN[None]), {"coordinates": "pixel"}),
        (Affine(TURN[None]), {"coordinates": "normalized"}),
        (Affine(TURN[None]), {"padding": "border"}),
        (Affine(TURN[None]), {"padding": "fill", "fill": 1.0}),
        (Affine(np.stack([TURN, np.eye(2, 3)])), {}),
        (Affine(np.stack([np.eye(2, 3), TURN])), {}),
        (Affine(np.array([[[1, 0, 1.5], [0, 1, -1.5]]])), {}),
        (Homography(np.array([[[1, 0, 3.0], [0, 1, 0], [1.1, 0, 1]]])), {}),
        (Homography(np.array([[[1, 0, 0.9], [0, 1, 0], [0, 0, 2]]])), {}),
        (Homography(np.zeros((2, 1, 3))), {}),  # no matrix, which the server says
        (Rotation(np.array([[30.0]])), {}),
    ],
)
def test_what_is_said_or_reads_something_is_no_mistake(transform, options):
    """The unit or the padding, one item of several, a corner, what lies behind the horizon."""
    assert warped(PHOTO, transform, **options) == 0


def test_maps_of_one_pixel_are_read_from_everywhere():
    """With align_corners, where -1 and 1 are its centre."""
    far = Translation(np.array([[10.0, 0]]))
    assert warped(PHOTO[:, :, :, :1], far, align_corners=True) == 0
    assert warped(PHOTO[:, :, :, :1], far) == 1


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_only_outputs_of_zeros_are_warned_of(mode, align_corners):
    """Of random matrices, against what torch makes of them; far ones are all found."""
    rng = np.random.default_rng(6)
    y, x = 2 * np.mgrid[0.5:9, 0.5:7] / np.array([9, 7])[:, None, None] - 1
    if align_corners:
        y, x = np.mgrid[-1:1:9j, -1:1:7j]
    found = 0
    for number in range(300):
        size = tuple(int(n) for n in rng.integers(2, 6, 2))
        u = torch.ones(1, 1, *size, dtype=torch.float64)
        theta = rng.normal(size=(3, 3)) * [[1, 1, 4], [0.5, 0.5, 2], [0.3, 0.3, 1]]
        if number % 2:
            theta[2] = 0, 0, 1
        transform = Affine(theta[None, :2]) if number % 2 else Homography(theta[None])
        options = {"interpolation": mode, "align_corners": align_corners}
        is_noticed = warped(u.numpy(), transform, (9, 7), **options) == 1
        points = np.stack([x, y, np.ones_like(x)], -1) @ theta.T
        grid = torch.tensor(points[None, ..., :2] / points[None, ..., 2:])
        output = functional.grid_sample(u, grid, mode, "zeros", align_corners)
        assert not (is_noticed and output.any())
        found += is_noticed
        far = Affine(theta[None, :2] + np.array([0, 0, 40]))
        assert warped(u.numpy(), far, (9, 7), **options) == 1
    assert 30 < found < 270


MAP_X, MAP_Y = cv2.initUndistortRectifyMap(
    np.float64([[70, 0, 40], [0, 70, 30], [0, 0, 1]]),
    np.float64([-0.3, 0.1, 0, 0, 0]),
    None,
    np.float64([[70, 0, 40], [0, 70, 30], [0, 0, 1]]),
    (80, 60),
    cv2.CV_32FC1,
)
REMAP = np.stack([MAP_X, MAP_Y], axis=-1)
VOXELS = np.stack(np.meshgrid(*map(np.arange, (20, 30, 40)), indexing="ij")[::-1], -1) * 1.0
POINTS = r"^{}: expected points between -1 and 1, got hardly one within the map, so that the output"


@pytest.mark.parametrize(
    ("u", "transform", "argument", "options"),
    [
        (PHOTO, SamplingGrid(REMAP[None]), "grid", {}),
        (PHOTO, SamplingGrid(torch.from_numpy(REMAP)[None]), "grid", {}),
        (PHOTO[0, 0], SamplingGrid(REMAP), "grid", {"layout": "HW"}),
        (PHOTO[0, 0, :, :, None], SamplingGrid(REMAP), "grid", {"layout": "HWC"}),
        (PHOTO, SamplingGrid(REMAP[None]), "grid", {"align_corners": True}),
        (VOLUME, SamplingGrid(VOXELS[None]), "grid", {}),
        (PHOTO, Flow(np.full((1, 60, 80, 2), 3.0)), "displacement", {}),
        (PHOTO, Flow(np.full((1, 60, 80, 2), (0, -2.5), np.float32)), "displacement", {}),
        (VOLUME, Flow(np.full((1, 20, 30, 40, 3), (0, 0, 4.0))), "displacement", {}),
    ],
)
def test_points_in_pixels_taken_for_normalized_are_noticed(u, transform, argument, options):
    """Grids as of `cv2.remap`, and flows of some pixels; by each call."""
    for _ in range(2):
        with pytest.warns(UserWarning, match=POINTS.format(argument)):
            calls.warp(u, transform, **options)
    for meant in ({"coordinates": "pixel"}, {"coordinates": "normalized"}, {"padding": "border"}):
        assert warped(u, transform, **options, **meant) == 0


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", [SamplingGrid, Flow])
def test_points_of_which_more_read_the_map_are_no_mistake(kind, align_corners):
    """Of random windows and displacements, against how much of an output of torch is 0."""
    rng = np.random.default_rng(8)
    y, x = 2 * np.mgrid[0.5:40, 0.5:50] / np.array([40, 50])[:, None, None] - 1
    if align_corners:
        y, x = np.mgrid[-1:1:40j, -1:1:50j]
    target, u = np.stack([x, y], -1), torch.ones(1, 1, 60, 70, dtype=torch.float64)
    at, found = np.stack(np.meshgrid(np.arange(50), np.arange(40)), -1), 0
    for _ in range(200):
        grid = target * rng.uniform(0.5, 12) + rng.uniform(-25, 25, 2)
        output = functional.grid_sample(
            u, torch.tensor(grid)[None], "bicubic", "zeros", align_corners
        )
        given = kind((grid if kind is SamplingGrid else grid - target)[None])
        pixels = grid if kind is SamplingGrid else grid - target + at
        in_map = ((pixels > -1) & (pixels < [70, 60])).all(-1).mean()
        is_noticed = warped(u.numpy(), given, align_corners=align_corners) == 1
        share = float((output != 0).float().mean())
        assert not (is_noticed and share > 0.02)
        assert not (is_noticed and in_map < 0.45)  # of a part of the points
        assert is_noticed or share > 0.001 or (abs(grid[20, 25]) <= 1).all() or in_map < 0.55
        found += is_noticed
    assert 20 < found < 180


def test_a_small_map_that_is_pasted_is_no_mistake():
    """As a mask of 28 px by a normalized grid: its points would be no pixels of the mask."""
    x, y = np.meshgrid(np.arange(800) / 20 - 31, np.arange(800) / 20 - 15)
    mask = np.ones((1, 1, 28, 28), np.float32)
    assert warped(mask, SamplingGrid(np.stack([x, y], -1)[None])) == 0


def test_points_that_are_judged_by_the_server_are_not_warned_of():
    """What has the shape of no field, or is that of another map."""
    with pytest.raises(ValueError, match="grid: expected shape"):
        calls.warp(PHOTO, SamplingGrid(np.full((2, 60, 80), 9.0)))
    assert warped(PHOTO, SamplingGrid(VOXELS[None])) == 0
    assert warped(PHOTO[:, :, :, :1], SamplingGrid(REMAP[None]), align_corners=True) == 0


def line():
    """The number of the line that calls this."""
    return inspect.currentframe().f_back.f_lineno


def places():
    """Calls by every interface, each with the line that it stands in."""
    stn, theta = StubClient(), torch.tensor(TURN)[None].float()
    u = torch.ones(1, 1, 60, 80)
    found = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4800, 6))
    found[1].weight.data.zero_()
    found[1].bias.data = theta.flatten()
    layer = torch.nn.Sequential(SpatialTransformer(found, stn))
    yield stn.warp(PHOTO, Affine(theta)), line()
    yield calls.warp(PHOTO, Affine(theta)), line()
    yield warp(stn, u, Affine(theta)), line()
    yield warp(stn, u, Affine(theta.clone().requires_grad_())), line()
    yield torch.func.vmap(lambda u: warp(stn, u, Affine(theta)))(u[None]), line()
    yield layer(u), line()
    yield tiling.warp(stn, PHOTO, Affine(theta)), line()
    yield stn.vjp(PHOTO, Affine(theta)), line()
    yield stn.warp(PHOTO, SamplingGrid(REMAP[None])), line()
    yield stn.warp(PHOTO, Affine(theta), fill=3.0, coordinates="normalized"), line()


def test_warnings_name_the_line_that_called():
    """Whatever of this package, and of torch, stands between."""
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            lines = [line for _, line in places()]
        assert [one.lineno for one in caught] == lines
        assert {one.filename for one in caught} == {__file__}


def test_warnings_name_the_line_that_awaits():
    """Of calls of tasks there is none."""

    async def main():
        return await StubAsyncClient().warp(PHOTO, Affine(TURN[None])), line()

    with pytest.warns(UserWarning, match=MESSAGE.format("theta")) as caught:
        _, number = asyncio.run(main())
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, number)]


def test_a_line_is_warned_of_once():
    """As Python shows warnings, unless told otherwise."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(5):
            calls.warp(PHOTO, Affine(TURN[None]))
    assert len(caught) == 1
