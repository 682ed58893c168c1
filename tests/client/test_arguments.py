"""Arguments that the SDK refuses by itself, before anything is sent."""

import re
import typing
from fractions import Fraction
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from stn_client import (
    Affine,
    Client,
    Flow,
    Homography,
    InvalidRequestError,
    Rotation,
    SamplingGrid,
    ThinPlateSpline,
    WarpCallOptions,
)
from stn_client import _calls as calls
from stn_proto.v1 import warp_pb2

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


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("mode", "interpolation"),
        ("padding_mode", "padding"),
        ("timeout", "timeout_s"),
        ("dsize", "output_size"),
    ],
)
def test_arguments_words_of_other_libraries_are_known(word, meant):
    """Those of `grid_sample` and of Python, which say what is wanted."""
    with pytest.raises(TypeError, match=rf"^{word}: .* not exist\. Did you mean {meant}\?$"):
        BUILDERS["warp"]({word: "zeros"})


def test_arguments_a_fill_that_nothing_reads_is_noticed():
    """Whoever wants a white background gets a black one otherwise; both paddings said are fine."""
    with pytest.warns(UserWarning, match=r'^fill: expected padding="fill" beside it, got none'):
        calls.warp(MAP, Affine(THETA), None, {"fill": 255})
    for padding in ("zeros", "fill"):
        calls.warp(MAP, Affine(THETA), None, {"fill": 255, "padding": padding})
    calls.warp(MAP, Affine(THETA), None, {"fill": 0})


def test_arguments_sizes_may_be_those_of_torch():
    """`torch.Size`, which is what `tensor.shape[-2:]` is, as any sequence of integers."""
    size = torch.zeros(1, 1, 6, 7).shape[-2:]
    assert list(calls.warp(MAP, Affine(THETA), size, {}).message.output_size) == [6, 7]
    assert list(calls.generate_grid(Affine(THETA), size, {}).message.output_size) == [6, 7]


def test_arguments_one_angle_turns_one_map():
    """A number is (N, 1) beside a single map."""
    call = calls.warp(MAP[0, 0], Rotation(0.3), None, {"layout": "HW"})
    assert tuple(call.message.transform.rotation.parameters.shape) == (1, 1)


@pytest.mark.parametrize("build", [BUILDERS["generate_grid"], BUILDERS["generate_grid_gradients"]])
def test_arguments_grids_take_no_options_of_the_sampler(build):
    """Padding means nothing to a grid, so that it is refused."""
    with pytest.raises(TypeError, match="padding: expected an option of"):
        build({"padding": "zeros"})


def warp_with(**options):
    return lambda: calls.warp(MAP, Affine(THETA), None, options)


def spline_with(**changes):
    corners = {"control_points": [(0, 0), (1, 0), (0, 1)]}
    spline = ThinPlateSpline(np.zeros((1, 3, 2)), **(corners | changes))
    return lambda: calls.warp(MAP, spline, None, {})


class Elsewhere:
    """Values that are not in this process's memory."""

    def __array__(self, *_arguments, **_keywords):
        raise RuntimeError("elsewhere")


INVALID = {
    "align_corners": (
        warp_with(align_corners="no"),
        "align_corners: expected True or False, got 'no'.",
    ),
    "align_corners of a grid": (
        lambda: calls.generate_grid(Affine(THETA), (2, 2), {"align_corners": 1}),
        "align_corners: expected True or False, got 1.",
    ),
    "deterministic": (
        warp_with(deterministic="no"),
        "deterministic: expected True or False, got 'no'.",
    ),
    "padding in a list": (
        warp_with(padding=["zeros"]),
        "padding: expected one of zeros, border, reflection, fill, got ['zeros'].",
    ),
    "no padding": (
        warp_with(padding=None),
        "padding: expected one of zeros, border, reflection, fill, got None.",
    ),
    "fill of numbers as text": (warp_with(fill="3"), "fill: expected numbers, got '3'."),
    "no fill": (warp_with(fill=None), "fill: expected numbers, got None."),
    "complex fill": (warp_with(fill=1j), "fill: expected numbers, got 1j."),
    "fill beyond floats": (
        warp_with(fill=[0, 10**400], padding="fill"),
        "fill: expected a number that fits a float, got a larger one.",
    ),
    "fill of one thing that is no number": (
        warp_with(fill=[0, None], padding="fill"),
        "fill: expected numbers, got None.",
    ),
    "an array as interpolation": (
        warp_with(interpolation=np.zeros(2)),
        "interpolation: expected one of nearest, bilinear, bicubic, got array([0., 0.]).",
    ),
    "fill without end": (
        warp_with(fill=[0, np.inf], padding="fill"),
        "fill: expected finite numbers, got [0, inf].",
    ),
    "delta beyond floats": (
        lambda: calls.objective(
            MAP,
            MAP,
            Affine(THETA),
            None,
            {"delta": 10**400, "loss": "ssd", "domain": "all"},
            [],
            {},
        ),
        "delta: expected a number that fits a float, got a larger one.",
    ),
    "delta as text": (
        lambda: calls.objective(
            MAP, MAP, Affine(THETA), None, {"delta": "1", "loss": "ssd", "domain": "all"}, [], {}
        ),
        "delta: expected a number, got '1'.",
    ),
    "needs as a number of NumPy": (
        lambda: calls.warp_gradients(MAP, MAP, Affine(THETA), np.array(1), {}),
        "needs: expected a list of feature_map, transform, got array(1).",
    ),
    "needs as text": (
        lambda: calls.warp_gradients(MAP, MAP, Affine(THETA), "transform", {}),
        "needs: expected a list of feature_map, transform, got 'transform'.",
    ),
    "needs as nothing": (
        lambda: calls.warp_gradients(MAP, MAP, Affine(THETA), None, {}),
        "needs: expected a list of feature_map, transform, got None.",
    ),
    "size as text": (
        lambda: calls.warp(MAP, Affine(THETA), "77", {}),
        "output_size: expected integers ([D',] H', W'), got '77'.",
    ),
    "size beyond all numbers": (
        lambda: calls.warp(MAP, Affine(THETA), (2**64, 2), {}),
        f"output_size: expected integers ([D',] H', W'), got ({2**64}, 2).",
    ),
    "size beyond the wire": (
        lambda: calls.warp(MAP, Affine(THETA), (2**63, 2**63), {}),
        f"output_size: expected sizes below 2**63, got ({2**63}, {2**63}).",
    ),
    "array elsewhere": (
        lambda: calls.warp(Elsewhere(), Affine(THETA), None, {}),
        "feature_map: expected an array, got Elsewhere: elsewhere",
    ),
    "no array": (
        lambda: calls.warp(None, Affine(THETA), None, {}),
        (
            "feature_map: expected an array, got NoneType. Could a file not be read? Then "
            "cv2.imread returns None."
        ),
    ),
    "the path of an image": (
        lambda: calls.warp(Path("photo.png"), Affine(THETA), None, {"layout": "HWC"}),
        (
            f"feature_map: expected an array, got {type(Path()).__name__}. Read the file first, as "
            "by PIL.Image.open(path)."
        ),
    ),
    "a transform before the map": (
        lambda: calls.warp_gradients(MAP, Affine(THETA), MAP, ["transform"], {}),
        (
            "feature_map: expected an array, got Affine. Give arguments in the order of the "
            "signature, or by name."
        ),
    ),
    "a transform before the fixed map": (
        lambda: calls.objective(
            MAP, Affine(THETA), MAP, None, {"delta": 1, "loss": "ssd", "domain": "all"}, [], {}
        ),
        (
            "fixed: expected an array, got Affine. Give arguments in the order of the signature, "
            "or by name."
        ),
    ),
    "gradients of another dtype": (
        lambda: calls.warp_gradients(MAP.astype("f8"), MAP, Affine(THETA), ["transform"], {}),
        "grad_output: expected float32, as feature_map, got float64. Cast it.",
    ),
    "fixed map of another dtype": (
        lambda: calls.objective(
            MAP,
            MAP.astype("f8"),
            Affine(THETA),
            None,
            {"delta": 1, "loss": "ssd", "domain": "all"},
            [],
            {},
        ),
        "fixed: expected float32, as moving, got float64. Cast it.",
    ),
    "weights of another dtype": (
        lambda: calls.objective(
            MAP,
            MAP,
            Affine(THETA),
            MAP > 0,
            {"delta": 1, "loss": "ssd", "domain": "all"},
            [],
            {},
        ),
        "weights: expected float32, as moving, got bool. Cast it.",
    ),
    "theta as the network left it": (
        lambda: calls.warp(MAP, Affine(np.zeros((1, 6))), None, {}),
        (
            "theta: expected shape (N, 2, 3) or (N, 3, 4), got (1, 6). Reshape it: "
            "theta.reshape(-1, 2, 3)."
        ),
    ),
    "theta of volumes, flat": (
        lambda: calls.warp(MAP, Affine(np.zeros(12)), None, {}),
        (
            "theta: expected shape (N, 2, 3) or (N, 3, 4), got (12,). Reshape it: "
            "theta.reshape(-1, 3, 4)."
        ),
    ),
    "homography, flat": (
        lambda: calls.warp(MAP, Homography(np.zeros((4, 9))), None, {}),
        "theta: expected shape (N, 3, 3), got (4, 9). Reshape it: theta.reshape(-1, 3, 3).",
    ),
    "an affine map as a square": (
        lambda: calls.warp(MAP, Affine(np.eye(3)[None]), None, {}),
        (
            "theta: expected shape (N, 2, 3) or (N, 3, 4), got (1, 3, 3). Leave out the last row, "
            "theta[..., :2, :] if it is (0, 0, 1), or make it a Homography."
        ),
    ),
    "an affine map of volumes as a square": (
        lambda: calls.warp(MAP, Affine(np.eye(4)), None, {}),
        (
            "theta: expected shape (N, 2, 3) or (N, 3, 4), got (4, 4). Leave out the last row, "
            "theta[..., :3, :]."
        ),
    ),
    "an affine map as a homography": (
        lambda: calls.warp(MAP, Homography(THETA), None, {}),
        f"theta: expected shape (N, 3, 3), got {THETA.shape}. That is an Affine.",
    ),
    "a flow with its channels first": (
        lambda: calls.warp(MAP, Flow(np.zeros((1, 2, 4, 5))), None, {}),
        (
            "displacement: expected shape (N, [D',] H', W', 2 or 3), got (1, 2, 4, 5). Coordinates "
            "are the last axis: np.moveaxis(displacement, 1, -1)."
        ),
    ),
    "a flow of a volume with its channels first": (
        lambda: calls.warp(MAP[0], Flow(np.zeros((3, 6, 4, 5))), None, {"layout": "HW"}),
        (
            "displacement: expected shape (N, [D',] H', W', 2 or 3), got (3, 6, 4, 5). Coordinates "
            "are the last axis: np.moveaxis(displacement, 0, -1)."
        ),
    ),
    "points of a spline, flat": (
        lambda: calls.warp(
            MAP, ThinPlateSpline(np.zeros((1, 8)), control_points=[(0, 0)] * 4), None, {}
        ),
        "points: expected shape (N, K, 2), got (1, 8). Reshape it: points.reshape(1, -1, 2).",
    ),
    "the name of a file": (
        lambda: calls.warp("photo.png", Affine(THETA), None, {}),
        (
            "feature_map: expected an array, got str. Read the file first, as by "
            "PIL.Image.open(path)."
        ),
    ),
    "one angle beside a batch": (
        lambda: calls.warp(MAP, Rotation(0.3), None, {}),
        "parameters: expected a batch axis, got shape (). Reshape it to (N, 1).",
    ),
    "angles in a row": (
        lambda: calls.warp(MAP, Rotation([0.1, 0.2]), None, {}),
        "parameters: expected a batch axis, got shape (2,). Reshape it to (N, 1).",
    ),
    "layout of volumes": (
        warp_with(layout="NCDHW"),
        (
            "layout: expected one of NCHW, NHWC, CHW, HWC, HW, got 'NCDHW'. Of images and volumes "
            "it is 'NCHW'."
        ),
    ),
    "interpolation of PyTorch for volumes": (
        warp_with(interpolation="trilinear"),
        (
            "interpolation: expected one of nearest, bilinear, bicubic, got 'trilinear'. Did you "
            "mean 'bilinear'?"
        ),
    ),
    "padding of OpenCV": (
        warp_with(padding="replicate"),
        (
            "padding: expected one of zeros, border, reflection, fill, got 'replicate'. Did you "
            "mean 'border'?"
        ),
    ),
    "control points in space": (
        spline_with(control_points=[(0, 0, 0), (1, 0, 0), (0, 1, 0)]),
        "control_points: expected points (x, y), got [(0, 0, 0), (1, 0, 0), (0, 1, 0)].",
    ),
    "control points in a row": (
        spline_with(control_points=[0, 0, 1, 0]),
        "control_points: expected points (x, y), got [0, 0, 1, 0].",
    ),
    "control points as text": (
        spline_with(control_points=["00", "10", "01"]),
        "control_points: expected points (x, y), got ['00', '10', '01'].",
    ),
    "no control points": (
        spline_with(control_points=None),
        "control_points: expected points (x, y), got None.",
    ),
    "regularization as text": (
        spline_with(regularization="0"),
        "regularization: expected a number, got '0'.",
    ),
    "regularization beyond floats": (
        spline_with(regularization=10**400),
        "regularization: expected a number that fits a float, got a larger one.",
    ),
    "control points beyond floats": (
        spline_with(control_points=[[10**400, 0], [0, 1], [1, 1]]),
        f"control_points: expected points (x, y), got [[{10**400}, 0], [0, 1], [1, 1]].",
    ),
    "regularization as a flag": (
        spline_with(regularization=True),
        "regularization: expected a number, got True.",
    ),
    "transform class": (
        lambda: calls.warp(MAP, Affine, None, {}),
        (
            "transform: expected Affine or SamplingGrid or Homography or ThinPlateSpline or Flow "
            "or Attention or Similarity or Translation or Rotation, got type."
        ),
    ),
    "interpolation": (
        warp_with(interpolation="cubic"),
        (
            "interpolation: expected one of nearest, bilinear, bicubic, got 'cubic'. "
            "Did you mean 'bicubic'?"
        ),
    ),
    "padding": (
        warp_with(padding="unspecified"),
        "padding: expected one of zeros, border, reflection, fill, got 'unspecified'.",
    ),
    "coordinates": (
        warp_with(coordinates="px"),
        "coordinates: expected one of normalized, pixel, got 'px'. Did you mean 'pixel'?",
    ),
    "subgradient": (
        warp_with(subgradient="left"),
        "subgradient: expected one of right, zero, got 'left'.",
    ),
    "layout": (
        warp_with(layout="nchw"),
        (
            "layout: expected one of NCHW, NHWC, CHW, HWC, HW, got 'nchw'. "
            "Of images and volumes it is 'NCHW'."
        ),
    ),
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
    "size of nothing": (
        lambda: calls.warp(MAP, Affine(THETA), (0, -3), {}),
        "output_size: expected sizes of at least 1, got (0, -3).",
    ),
    "transform": (
        lambda: calls.warp(MAP, THETA, None, {}),
        (
            "transform: expected Affine or SamplingGrid or Homography or ThinPlateSpline or Flow "
            "or Attention or Similarity or Translation or Rotation, got ndarray. Say what the "
            "numbers are, such as Affine(matrix)."
        ),
    ),
    "map without a batch axis": (
        lambda: calls.warp(np.zeros((4, 5, 3)), Affine(THETA), None, {}),
        (
            "feature_map: expected (N, C, [D,] H, W), got shape (4, 5, 3). Of one map without a "
            'batch axis say the layout: "HWC", "CHW" or "HW".'
        ),
    ),
    "parameters without a batch axis": (
        lambda: calls.warp(MAP, Affine(THETA[0]), None, {}),
        "theta: expected a batch axis, got shape (2, 3). Add one: theta[None] has N = 1.",
    ),
    "image of SimpleITK": (
        lambda: calls.warp(SimpleITK.Image(5, 4, SimpleITK.sitkInt16), Affine(THETA), None, {}),
        (
            "feature_map: expected an array, got an image of SimpleITK. Take its voxels: "
            "SimpleITK.GetArrayViewFromImage(image)."
        ),
    ),
    "image of nibabel": (
        lambda: calls.warp(nibabel.Nifti1Image(MAP[0], np.eye(4)), Affine(THETA), None, {}),
        (
            "feature_map: expected an array, got an image of nibabel. Take its voxels: "
            "image.get_fdata()."
        ),
    ),
    "gradients of integers": (
        lambda: calls.warp_gradients(MAP, MAP.astype(np.uint8), Affine(THETA), ["transform"], {}),
        (
            "feature_map: expected one of float32, float64, float16, bfloat16, of which there are "
            "gradients, got uint8. Cast it."
        ),
    ),
    "feature_map": (
        lambda: calls.warp(MAP.astype(int), Affine(THETA), None, {}),
        (
            "feature_map: expected one of float32, float64, float16, bfloat16, uint8, uint16, "
            'int16, got int64. Cast it; if these are labels, pass interpolation="nearest".'
        ),
    ),
    "grad_output": (
        lambda: calls.warp_gradients(MAP > 0, MAP, Affine(THETA), ["transform"], {}),
        (
            "grad_output: expected one of float32, float64, float16, bfloat16, of which there are "
            "gradients, got bool. Cast it."
        ),
    ),
    "theta": (
        lambda: calls.warp(MAP, Affine(THETA > 0), None, {}),
        "theta: expected float32 or float64, got bool. Cast it.",
    ),
    "grid": (
        lambda: calls.warp(MAP, SamplingGrid(GRID.astype("c8")), None, {}),
        "grid: expected float32 or float64, got complex64. Cast it.",
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


@pytest.mark.parametrize("given", [[[1, 2], [3]], {"a": 1}, "text"], ids=repr)
def test_arguments_that_are_no_arrays_are_refused(given):
    """Whatever NumPy says of them, the error names the argument."""
    with pytest.raises(InvalidRequestError, match=r"^feature_map: expected "):
        calls.warp(given, Affine(THETA), None, {})


def test_options_are_all_in_the_documentation_of_warp():
    """`help(Client.warp)` shows every option with its values and its default."""
    shown = Client.warp.__doc__.partition("Options:")[2].partition("Raises:")[0]
    for name, kind in typing.get_type_hints(WarpCallOptions).items():
        described = re.search(
            rf"^ +{name} .*?(?=^ +[a-z_]+  +|\Z)", shown, re.MULTILINE | re.DOTALL
        )
        assert "default" in described[0], name
        values = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        for value in values:
            assert f'"{value}"' in described[0], name


def test_defaults_of_options_are_those_of_the_documentation():
    """Each default, given, makes the same request as none."""
    shown = Client.warp.__doc__.partition("Options:")[2]
    said = re.findall(r'"(\w+)" \(default\)', shown)
    assert sorted(said) == ["NCHW", "bilinear", "normalized", "right", "zeros"]
    defaults = {
        "interpolation": "bilinear",
        "padding": "zeros",
        "coordinates": "normalized",
        "align_corners": False,
        "subgradient": "right",
        "deterministic": True,
        "layout": "NCHW",
    }
    assert warp_with(**defaults)().request == warp_with()().request


@pytest.mark.parametrize(
    ("fill", "sent", "remainder"),
    [
        (2**53, [2.0**53], []),
        (2**53 + 1, [2.0**53], [1]),
        ((2**63 - 1, -5), [2.0**63, -5.0], [-1, 0]),
        (np.uint64(2**64 - 1), [2.0**64], [-1]),
        (np.array([2**62 + 513, 1 - 2**63]), [2.0**62 + 1024, -(2.0**63)], [-511, 1]),
        ([2**53 + 1, 0.5, -1e300], [2.0**53, 0.5, -1e300], [1, 0, 0]),
        ([1, 10**18 + 1], [1.0, 1e18], [0, 1]),
        (True, [1.0], []),
        (2**64, [2.0**64], []),
        ([-(2**63) - 1, 0.5, 2**70], [-(2.0**63), 0.5, 2.0**70], [-1, 0, 0]),
        (Fraction(5, 2), [2.5], []),
    ],
    ids=str,
)
def test_a_fill_is_sent_to_the_last_bit(fill, sent, remainder):
    """Labels of 64 bits are, as the double that is nearest and what is left; by hand."""
    options = {"interpolation": "nearest", "padding": "fill", "fill": fill}
    call = calls.warp(np.ones((1, 2, 2, 2), np.int64), Affine(THETA), None, options)
    spec = warp_pb2.WarpRequest.FromString(call.request).spec
    assert (list(spec.fill), list(spec.fill_remainder)) == (sent, remainder)
