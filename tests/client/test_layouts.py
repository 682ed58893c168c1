"""Maps that look like (N, H, W, C) are sent as (N, C, H, W), with a warning, once."""

import warnings

import numpy as np
import pytest

from stn_client import Affine, _warnings
from stn_client import _calls as calls
from stn_client import calls as made_by_users

THETA = Affine(np.eye(2, 3, dtype=np.float32)[None])
PHOTO = np.zeros((1, 8, 9, 3), np.uint8)
MESSAGE = (
    r"^feature_map: expected \(N, C, \[D,\] H, W\), got \(1, 8, 9, 3\), which looks like "
    r"\(N, \[D,\] H, W, C\)\. If it is, pass layout=\"NHWC\"\.$"
)


@pytest.fixture(autouse=True)
def nobody_was_warned():
    _warnings._suspected.clear()
    yield
    _warnings._suspected.clear()


def test_a_map_that_looks_like_channels_last_gets_a_warning_once():
    """Later calls are silent."""
    with pytest.warns(UserWarning, match=MESSAGE):
        calls.warp(PHOTO, THETA, None, {})
    calls.warp(PHOTO, THETA, None, {})
    photo = PHOTO.astype(np.float32)
    calls.warp_gradients(photo, photo, THETA, ["transform"], {})


def test_the_warning_names_the_argument():
    """As the caller of an objective, who has no feature map, knows it."""
    photo = PHOTO.astype(np.float32)
    with pytest.warns(UserWarning, match="^moving: expected"):
        made_by_users.objective(photo, photo, THETA)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 8, 9, 3), "NHWC"),
        ((1, 3, 9, 8), "NCHW"),
        ((2, 512, 4, 4), "NCHW"),
        ((2, 64, 1, 1), "NCHW"),
    ],
)
def test_maps_that_look_right_get_no_warning(shape, layout):
    """What says its layout, and small maps of many channels, which are usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls.warp(np.zeros(shape, np.uint8), THETA, None, {"layout": layout})
