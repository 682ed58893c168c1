"""Maps that look like (N, H, W, C) are read as (N, C, H, W), with a warning, once."""

import warnings

import pytest
import torch

from stn_engine import (
    Affine,
    WarpGradientsProblem,
    WarpProblem,
    functional,
    generate_grid,
    grid_sample,
    warp,
    warp_gradients,
    warp_gradients_ragged,
    warp_ragged,
)

THETA = Affine(torch.eye(2, 3)[None])
PHOTO = torch.rand(1, 8, 9, 3)
MESSAGE = (
    r"^feature_map: expected \(N, C, \[D,\] H, W\), got \(1, 8, 9, 3\), which looks like "
    r"\(N, \[D,\] H, W, C\)\. If it is, give feature_map\.movedim\(-1, 1\)\.$"
)


@pytest.fixture(autouse=True)
def nobody_was_warned():
    functional._suspected.clear()
    yield
    functional._suspected.clear()


CALLS = {
    "warp": lambda: warp(PHOTO, THETA),
    "warp_gradients": lambda: warp_gradients(PHOTO, PHOTO, THETA),
    "warp_ragged": lambda: warp_ragged([WarpProblem(PHOTO, THETA)]),
    "warp_gradients_ragged": lambda: warp_gradients_ragged(
        [WarpGradientsProblem(WarpProblem(PHOTO, THETA), PHOTO)]
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_map_that_looks_like_channels_last_gets_a_warning_once(call):
    """Blamed on the caller's line; later calls are silent, and the result is as without."""
    with pytest.warns(UserWarning, match=MESSAGE) as record:
        CALLS[call]()
    assert [one.filename for one in record] == [__file__]
    for other in CALLS.values():
        other()
    assert torch.equal(warp(PHOTO, THETA), PHOTO)


def test_a_volume_that_looks_like_channels_last_gets_a_warning():
    """Its last axis is as short."""
    with pytest.warns(UserWarning, match=r"got \(1, 8, 9, 7, 3\), which looks like"):
        warp(torch.rand(1, 8, 9, 7, 3), Affine(torch.eye(3, 4)[None]))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 9, 8),  # a photo
        (1, 4, 9, 3),  # narrow
        (2, 512, 4, 4),  # the last map of a network
        (2, 64, 1, 1),
        (1, 8, 9, 5),
    ],
)
def test_maps_that_look_right_get_no_warning(shape):
    """Small maps of many channels are usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warp(torch.rand(shape), THETA)


def test_others_get_no_warning():
    """Drop-ins warn where torch does; compiled calls were called before; problems are no calls."""
    grid = generate_grid(THETA, (9, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid_sample(PHOTO, grid, align_corners=False)
        WarpProblem(PHOTO, THETA)
        torch.compile(lambda u: warp(u, THETA), backend="eager", fullgraph=True)(PHOTO)
