"""Arguments that the SDK refuses by itself, before anything is sent."""

import re

import numpy as np
import pytest

from stn_client import Affine, InvalidRequestError, SamplingGrid
from stn_client import _calls as calls

MAP = np.zeros((1, 2, 2, 3), np.float32)
THETA = np.eye(2, 3)[None]
GRID = np.zeros((1, 2, 2, 2), np.float32)

BUILDERS = {
    "warp": lambda options: calls.warp(MAP, Affine(THETA), None, options),
    "warp_gradients": lambda options: calls.warp_gradients(
        MAP, MAP, Affine(THETA), ["transform"], options
    ),
    "generate_grid": lambda options: calls.generate_grid(Affine(THETA), (2, 2), options),
    "generate_grid_gradients": lambda options: calls.generate_grid_gradients(
        GRID, Affine(THETA), options
    ),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_arguments_unknown_options_are_type_errors(build):
    """A misspelt option is a programming error, as it is for any function."""
    with pytest.raises(TypeError, match=r"allign_corners: expected an option of .*align_corners"):
        build({"allign_corners": True})


@pytest.mark.parametrize("build", [BUILDERS["generate_grid"], BUILDERS["generate_grid_gradients"]])
def test_arguments_grids_take_no_options_of_the_sampler(build):
    """Padding means nothing to a grid, so that it is refused."""
    with pytest.raises(TypeError, match="padding: expected an option of"):
        build({"padding": "zeros"})


def warp_with(**options):
    return lambda: calls.warp(MAP, Affine(THETA), None, options)


INVALID = {
    "interpolation": (
        warp_with(interpolation="cubic"),
        "interpolation: expected one of nearest, bilinear, bicubic, got 'cubic'.",
    ),
    "padding": (
        warp_with(padding="unspecified"),
        "padding: expected one of zeros, border, reflection, fill, got 'unspecified'.",
    ),
    "coordinates": (
        warp_with(coordinates="px"),
        "coordinates: expected one of normalized, pixel, got 'px'.",
    ),
    "subgradient": (
        warp_with(subgradient="left"),
        "subgradient: expected one of right, zero, got 'left'.",
    ),
    "layout": (warp_with(layout="nchw"), "layout: expected one of NCHW, NHWC, got 'nchw'."),
    "fill text": (warp_with(fill="black"), "fill: expected numbers, got 'black'."),
    "fill matrix": (
        warp_with(fill=[[1, 2]]),
        "fill: expected one number, or one per channel, got [[1, 2]].",
    ),
    "needs": (
        lambda: calls.warp_gradients(MAP, MAP, Affine(THETA), ["theta"], {}),
        "needs: expected one of feature_map, transform, got 'theta'.",
    ),
    "no needs": (
        lambda: calls.warp_gradients(MAP, MAP, Affine(THETA), [], {}),
        "needs: expected at least one of feature_map, transform, got none.",
    ),
    "size": (
        lambda: calls.warp(MAP, Affine(THETA), (2.5, 3), {}),
        "output_size: expected integers ([D',] H', W'), got (2.5, 3).",
    ),
    "size of a grid": (
        lambda: calls.generate_grid(Affine(THETA), 7, {}),
        "output_size: expected integers ([D',] H', W'), got 7.",
    ),
    "transform": (
        lambda: calls.warp(MAP, THETA, None, {}),
        (
            "transform: expected Affine or SamplingGrid or Homography or Flow or Attention or "
            "Similarity or Translation or Rotation, got ndarray."
        ),
    ),
    "feature_map": (
        lambda: calls.warp(MAP.astype(int), Affine(THETA), None, {}),
        (
            "feature_map: expected one of float32, float64, float16, bfloat16, uint8, got int64. "
            "Cast it."
        ),
    ),
    "grad_output": (
        lambda: calls.warp_gradients(MAP > 0, MAP, Affine(THETA), ["transform"], {}),
        (
            "grad_output: expected one of float32, float64, float16, bfloat16, uint8, got bool. "
            "Cast it."
        ),
    ),
    "theta": (
        lambda: calls.warp(MAP, Affine(THETA > 0), None, {}),
        "theta: expected one of float32, float64, float16, bfloat16, uint8, got bool. Cast it.",
    ),
    "grid": (
        lambda: calls.warp(MAP, SamplingGrid(GRID.astype("c8")), None, {}),
        "grid: expected one of float32, float64, float16, bfloat16, uint8, got complex64. Cast it.",
    ),
}


@pytest.mark.parametrize(("build", "message"), INVALID.values(), ids=INVALID)
def test_arguments_invalid_values_are_refused_before_anything_is_sent(build, message):
    """The error names the argument, what was expected and what was given."""
    with pytest.raises(InvalidRequestError, match=f"^{re.escape(message)}$") as caught:
        build()
    field, description = message.split(": ", 1)
    assert caught.value.violations == ((field, description),)
    assert (caught.value.request_id, caught.value.code) == ("", None)
