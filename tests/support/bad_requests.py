"""Requests that break one rule each, and what the service must answer.

Built with plain protobuf messages, as any client in any language would build them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import StatusCode

from stn_proto import FrameTooLargeError, WireFormatError
from stn_proto.codec import data_type
from stn_proto.v1 import objective_pb2, warp_pb2
from stn_server.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    UnknownFieldError,
    UnsupportedError,
)

INVALID, UNIMPLEMENTED = StatusCode.INVALID_ARGUMENT, StatusCode.UNIMPLEMENTED
THETA, GRID = "transform.affine.theta", "transform.sampling_grid.grid"
LEFT = "spec.fill_remainder"
F32 = np.float32


def put(request, tensor, array):
    """Gives a tensor of a request its description, and its bytes as one more payload."""
    tensor.data_type = data_type(array.dtype)
    tensor.shape[:] = array.shape
    tensor.payload = len(request.payloads)
    request.payloads.append(array.tobytes())


def replace(request, tensor, array):
    """Gives a tensor of a request another array in the place of its old one."""
    tensor.data_type = data_type(array.dtype)
    tensor.shape[:] = array.shape
    request.payloads[tensor.payload] = array.tobytes()


def theta(count=2):
    """So many affine transforms, all different and none trivial."""
    first = np.array([[0.8, 0.1, 0.05], [-0.2, 0.9, -0.1]], F32)
    return np.stack([first * (1 + n / 10) for n in range(count)])


def ramp(*shape, dtype=F32):
    """Different values everywhere."""
    return (np.arange(math.prod(shape)) % 251).reshape(shape).astype(dtype)


def warp_request():
    """(2, 3, 4, 5) warped to (6, 7)."""
    request = warp_pb2.WarpRequest(output_size=(6, 7))
    put(request, request.feature_map, ramp(2, 3, 4, 5))
    put(request, request.transform.affine.theta, theta())
    return request


def grid_warp_request():
    """(2, 3, 4, 5) read at the points of a (2, 6, 7, 2) grid."""
    request = warp_pb2.WarpRequest()
    put(request, request.feature_map, ramp(2, 3, 4, 5))
    put(request, request.transform.sampling_grid.grid, ramp(2, 6, 7, 2) / 200 - 0.5)
    return request


def volume_warp_request():
    """(2, 3, 2, 4, 5) read at the points of a (2, 1, 6, 7, 3) grid."""
    request = warp_pb2.WarpRequest()
    put(request, request.feature_map, ramp(2, 3, 2, 4, 5))
    put(request, request.transform.sampling_grid.grid, ramp(2, 1, 6, 7, 3) / 200 - 0.5)
    return request


def deep_warp_request():
    """(1, 1, 2, 4, 5) as it is."""
    request = warp_pb2.WarpRequest()
    put(request, request.feature_map, ramp(1, 1, 2, 4, 5))
    put(request, request.transform.affine.theta, np.eye(3, 4, dtype=F32)[None])
    return request


def warp_gradients_request():
    """The gradients of `warp_request`."""
    request = warp_pb2.WarpGradientsRequest()
    put(request, request.grad_output, ramp(2, 3, 6, 7))
    put(request, request.feature_map, ramp(2, 3, 4, 5))
    put(request, request.transform.affine.theta, theta())
    return request


def grid_request():
    """Two grids of (6, 7)."""
    request = warp_pb2.GenerateGridRequest(output_size=(6, 7))
    put(request, request.transform.affine.theta, theta())
    return request


def grid_gradients_request():
    """The gradient of `grid_request`."""
    request = warp_pb2.GenerateGridGradientsRequest()
    put(request, request.grad_grid, ramp(2, 6, 7, 2))
    put(request, request.transform.affine.theta, theta())
    return request


def objective_request():
    """(1, 3, 4, 5) under two transforms, compared with one map of (6, 7)."""
    request = objective_pb2.ObjectiveRequest()
    put(request, request.moving, ramp(1, 3, 4, 5))
    put(request, request.fixed, ramp(1, 3, 6, 7))
    put(request, request.transform.affine.theta, theta())
    put(request, request.weights, ramp(1, 1, 6, 7))
    return request


CONTROL_POINTS = ((-0.9, -0.8), (0.8, -0.7), (0.1, 0.2), (-0.7, 0.9), (0.6, 0.8))


def spline_of(request, points=None, control_points=CONTROL_POINTS, regularization=0.0):
    """Gives a request of two items a thin-plate spline."""
    request.transform.Clear()
    spline = request.transform.thin_plate_spline
    spline.control_points.extend(number for point in control_points for number in point)
    spline.regularization = regularization
    if points is None:
        offsets = ramp(2, len(control_points), 2) / 100
        points = (np.asarray(control_points, F32) * 0.9 + offsets).astype(F32)
    request.payloads.pop()
    put(request, spline.points, points)


def spline_warp_request():
    """(2, 3, 4, 5) warped to (6, 7) by splines of five points."""
    request = warp_request()
    spline_of(request)
    return request


def spline_grid_request():
    """Two grids of (6, 7) by splines of five points."""
    request = grid_request()
    spline_of(request)
    return request


BASES: dict[str, Callable[[], Any]] = {
    "Warp": warp_request,
    "WarpGradients": warp_gradients_request,
    "GenerateGrid": grid_request,
    "GenerateGridGradients": grid_gradients_request,
    "Objective": objective_request,
}


@dataclass(frozen=True)
class BadRequest:
    """A request and its answer."""

    name: str
    method: str
    message: bytes
    error: type[Exception]
    field: str
    text: str
    """What follows the field in the message, or the beginning of it."""

    @property
    def code(self) -> StatusCode:
        """The status it must end with."""
        return UNIMPLEMENTED if issubclass(self.error, UnsupportedError) else INVALID


def bad(name, method, spoil, error, field, text, *, base=None):
    """A good request, spoiled."""
    request = (base or BASES[method])()
    spoil(request)
    return BadRequest(name, method, request.SerializeToString(), error, field, text)


def assign(path, value):
    """Spoils by setting one field, scalar or repeated."""
    *parents, name = path.split(".")

    def spoil(request):
        for parent in parents:
            request = getattr(request, parent)
        if isinstance(value, list):
            getattr(request, name)[:] = value
        else:
            setattr(request, name, value)

    return spoil


def array(path, value):
    """Spoils by giving a tensor another array."""

    def spoil(request):
        tensor = request
        for name in path.split("."):
            tensor = getattr(tensor, name)
        replace(request, tensor, value)

    return spoil


def clear(path):
    """Spoils by leaving a field out."""
    *parents, name = path.split(".")

    def spoil(request):
        for parent in parents:
            request = getattr(request, parent)
        request.ClearField(name)

    return spoil


def with_value(shape, index, value):
    """Affine parameters with one odd number."""
    parameters = theta(shape[0]) if shape[1:] == (2, 3) else np.zeros(shape, F32)
    parameters[index] = value
    return parameters


def transform_of(kind):
    """Spoils by asking for a transform that the contract has and the server has not."""

    def spoil(request):
        request.transform.Clear()
        getattr(request.transform, kind).SetInParent()

    return spoil


def remainder(fill, numbers):
    """Spoils by constants, and what is said to be left of them."""

    def spoil(request):
        request.spec.fill[:] = fill
        request.spec.fill_remainder[:] = numbers

    return spoil


def control_points(numbers):
    """Spoils a spline by giving it other control points."""
    return assign("transform.thin_plate_spline.control_points", list(map(float, numbers)))


def sampling_grid(request):
    """Spoils by giving a grid where parameters are needed."""
    request.transform.Clear()
    put(request, request.transform.sampling_grid.grid, np.zeros((2, 6, 7, 2), F32))


def many_payloads(request):
    request.payloads.extend([b""] * 20)


def unknown_field(path, number, encoded):
    """Spoils by setting a field that the contract does not have: its value, tag included."""

    def spoil(request):
        message = request
        for name in path.split(".") if path else ():
            message = getattr(message, name)
        message.MergeFromString(encoded)
        assert number in {unknown.field_number for unknown in UnknownFieldSet(message)}

    return spoil


WIRE, WRONG, LARGE = WireFormatError, InvalidRequestError, RequestTooLargeError
UNSUPPORTED, UNKNOWN = UnsupportedError, UnknownFieldError
SPLINE, CONTROL, STIFFNESS = (
    f"transform.thin_plate_spline.{field}"
    for field in ("points", "control_points", "regularization")
)
THREE = "expected three or more different finite points (x, y), not all on one line"
NOT_KNOWN = "expected a field that this server knows, got one that it does not. Leave it out"
TRANSFORMS = (
    "affine",
    "sampling_grid",
    "homography",
    "thin_plate_spline",
    "flow",
    "attention",
    "similarity",
    "translation",
    "rotation",
)
OPTIONS = "expected one of "

BAD_REQUESTS = [
    # Shapes.
    bad("map of rank 3", "Warp", array("feature_map", ramp(3, 4, 5)), WRONG, "feature_map",
        "expected shape (N, C, H, W), got (3, 4, 5)."),
    bad("map of rank 0", "Warp", array("feature_map", np.float32(1)), WRONG, "feature_map",
        "expected shape (N, C, H, W), got ()."),
    bad("theta of rank 2", "Warp", array(THETA, theta()[0]), WRONG, THETA,
        "expected shape (N, 2, 3) or (N, 3, 4), got (2, 3)."),
    bad("theta 3 x 3", "GenerateGrid", array(THETA, ramp(2, 3, 3)), WRONG, THETA,
        "expected shape (N, 2, 3) or (N, 3, 4), got (2, 3, 3)."),
    bad("theta for others", "Warp", array(THETA, theta(3)), WRONG, THETA,
        "expected shape (2, 2, 3), got (3, 2, 3)."),
    bad("grid of 3 coordinates", "Warp", array(GRID, ramp(2, 6, 7, 3)), WRONG, GRID,
        "expected shape (N, Ho, Wo, 2) or (N, Do, Ho, Wo, 3), got (2, 6, 7, 3).",
        base=grid_warp_request),
    bad("grid of another size", "Warp", assign("output_size", [6, 8]), WRONG, "output_size",
        "expected shape (6, 7), got (6, 8).", base=grid_warp_request),
    bad("grad_output of rank 3", "WarpGradients", array("grad_output", ramp(3, 6, 7)), WRONG,
        "grad_output", "expected shape (N, C, H', W'), got (3, 6, 7)."),
    bad("grad_output of other channels", "WarpGradients", array("grad_output", ramp(2, 4, 6, 7)),
        WRONG, "grad_output", "expected shape (2, 3, 6, 7), got (2, 4, 6, 7)."),
    bad("grad_grid of rank 3", "GenerateGridGradients", array("grad_grid", ramp(6, 7, 2)), WRONG,
        "grad_grid", "expected shape (N, H', W', 2), got (6, 7, 2)."),
    bad("grad_grid of others", "GenerateGridGradients", array("grad_grid", ramp(3, 6, 7, 2)),
        WRONG, "grad_grid", "expected shape (2, 6, 7, 2), got (3, 6, 7, 2)."),
    # Images and volumes.
    bad("volume by a theta of images", "Warp", array("feature_map", ramp(2, 3, 2, 4, 5)), WRONG,
        "feature_map", "expected shape (N, C, H, W), got (2, 3, 2, 4, 5)."),
    bad("image by a theta of volumes", "Warp", array(THETA, ramp(2, 3, 4)), WRONG, "feature_map",
        "expected shape (N, C, D, H, W), got (2, 3, 4, 5)."),
    bad("grad_output of images by a theta of volumes", "WarpGradients", array(THETA, ramp(2, 3, 4)),
        WRONG, "grad_output", "expected shape (N, C, D', H', W'), got (2, 3, 6, 7)."),
    bad("size of images by a theta of volumes", "GenerateGrid", array(THETA, ramp(2, 3, 4)), WRONG,
        "output_size", "expected sizes (D', H', W'), got 2."),
    bad("grad_grid of images by a theta of volumes", "GenerateGridGradients",
        array(THETA, ramp(2, 3, 4)), WRONG, "grad_grid",
        "expected shape (N, D', H', W', 3), got (2, 6, 7, 2)."),
    bad("image by a grid of volumes", "Warp", array(GRID, ramp(2, 1, 6, 7, 3)), WRONG,
        "feature_map", "expected shape (N, C, D, H, W), got (2, 3, 4, 5).", base=grid_warp_request),
    bad("grad_grid of volumes", "GenerateGridGradients", array("grad_grid", ramp(2, 1, 6, 7, 3)),
        WRONG, "grad_grid", "expected shape (N, H', W', 2), got (2, 1, 6, 7, 3)."),
    bad("grad_output of volumes", "WarpGradients", array("grad_output", ramp(2, 3, 1, 6, 7)),
        WRONG, "grad_output", "expected shape (N, C, H', W'), got (2, 3, 1, 6, 7)."),
    bad("volume of another grid", "Warp", assign("output_size", [2, 6, 7]), WRONG, "output_size",
        "expected shape (1, 6, 7), got (2, 6, 7).", base=volume_warp_request),
    bad("volume of much depth", "Warp", assign("output_size", [40_000, 1, 1]), LARGE,
        "output_size", "expected at most 32768 px, got 40000.", base=deep_warp_request),
    # Sizes.
    bad("too few bytes", "Warp", assign("feature_map.shape", [2, 3, 4, 6]), WIRE,
        "feature_map.payload", "expected 576 bytes for shape (2, 3, 4, 6) of float32, got 480"),
    bad("too many bytes", "GenerateGrid", assign(f"{THETA}.shape", [1, 2, 3]), WIRE,
        f"{THETA}.payload", "expected 24 bytes for shape (1, 2, 3) of float32, got 48 bytes."),
    bad("negative size", "Warp", assign("feature_map.shape", [2, -3, 4, 5]), WIRE,
        "feature_map.shape", "expected sizes of at least 0, got (2, -3, 4, 5)."),
    bad("two negative sizes", "Warp", assign("feature_map.shape", [2, 3, -4, -5]), WIRE,
        "feature_map.shape", "expected sizes of at least 0"),
    bad("overflowing sizes", "Warp", assign("feature_map.shape", [2**62, 2**62, 4, 0]), WIRE,
        "feature_map.shape", "expected at most 1099511627776 elements"),
    bad("wrapping sizes", "Warp", assign("feature_map.shape", [2**33, 2**31, 1, 1]), WIRE,
        "feature_map.shape", "expected at most 1099511627776 elements"),
    bad("nine axes", "Warp", assign("feature_map.shape", [1] * 9), WIRE, "feature_map.shape",
        "expected at most 8 axes, got 9."),
    bad("empty batch", "Warp", array("feature_map", ramp(0, 3, 4, 5)), WRONG,
        "feature_map.shape", "expected sizes of at least 1, got (0, 3, 4, 5)."),
    bad("map without pixels", "Warp", array("feature_map", ramp(2, 3, 0, 5)), WRONG,
        "feature_map.shape", "expected sizes of at least 1, got (2, 3, 0, 5)."),
    bad("no theta", "Warp", array(THETA, theta()[:0]), WRONG, f"{THETA}.shape",
        "expected sizes of at least 1, got (0, 2, 3)."),
    bad("empty grid", "Warp", array(GRID, ramp(2, 0, 7, 2)), WRONG, f"{GRID}.shape",
        "expected sizes of at least 1", base=grid_warp_request),
    # Output sizes.
    bad("output of one size", "Warp", assign("output_size", [6]), WRONG, "output_size",
        "expected sizes (H', W'), got 1."),
    bad("output of three sizes", "GenerateGrid", assign("output_size", [6, 7, 8]), WRONG,
        "output_size", "expected sizes (H', W'), got 3."),
    bad("output without height", "Warp", assign("output_size", [0, 7]), WRONG, "output_size",
        "expected sizes of at least 1, got (0, 7)."),
    bad("negative output", "Warp", assign("output_size", [6, -7]), WRONG, "output_size",
        "expected sizes of at least 1, got (6, -7)."),
    bad("grid of no size", "GenerateGrid", clear("output_size"), WRONG, "output_size",
        "expected (H', W'), got ()."),
    bad("output of 2**62", "Warp", assign("output_size", [2**62, 2**62]), LARGE, "output_size",
        f"expected at most 32768 px, got {2**62}. Ask for less."),
    bad("output of many bytes", "Warp", assign("output_size", [30_000, 30_000]), LARGE,
        "output_size", "expected at most 268435456 bytes of output, got 21600000000."),
    bad("grid of many bytes", "GenerateGrid", assign("output_size", [30_000, 30_000]), LARGE,
        "output_size", "expected at most 268435456 bytes of output, got 14400000000."),
    # Values.
    bad("NaN in theta", "Warp", array(THETA, with_value((2, 2, 3), (1, 0, 2), np.nan)), WRONG,
        THETA, "expected finite numbers, got nan at (1, 0, 2)."),
    bad("infinite theta", "GenerateGrid", array(THETA, with_value((2, 2, 3), (0, 1, 1), np.inf)),
        WRONG, THETA, "expected finite numbers, got inf at (0, 1, 1)."),
    bad("fill of two channels", "Warp", assign("spec.fill", [1.0, 2.0]), WRONG, "spec.fill",
        "expected one value | one value per channel (3), got (1.0, 2.0)."),
    bad("very long fill", "Warp", assign("spec.fill", [0.123456789] * 20_000), WRONG,
        "spec.fill", "expected one value | one value per channel (3), got (0.123456789,"),
    bad("infinite fill", "Warp", assign("spec.fill", [math.inf]), WRONG, "spec.fill",
        "expected a finite number"),
    bad("remainder of another length", "Warp", remainder([1.0], [1, 2]), WIRE, LEFT,
        "expected as many as spec.fill has integers, got 2. Send none for others."),
    bad("remainder of no integers", "Warp", remainder([0.5], [1]), WIRE, LEFT,
        "expected as many as spec.fill has integers, got 1."),
    bad("remainder of infinity", "Warp", remainder([math.inf], [1]), WIRE, LEFT,
        "expected as many as spec.fill has integers, got 1."),
    # Splines.
    bad("spline of one number too many", "Warp", control_points([*range(9)]), WRONG, CONTROL,
        "expected x and y of every point, got 9 numbers.", base=spline_warp_request),
    bad("spline of no points", "Warp", control_points([]), WRONG, CONTROL, f"{THREE}, got [].",
        base=spline_warp_request),
    bad("spline of two points", "GenerateGrid", control_points([0, 0, 1, 1]), WRONG, CONTROL,
        f"{THREE}, got [(0.0, 0.0), (1.0, 1.0)].", base=spline_grid_request),
    bad("spline on a line", "Warp", control_points([0, 0, 5, 5, 1, 1, 2, 2, 3, 3]), WRONG, CONTROL,
        f"{THREE}, got (0.0, 0.0) at 0 and (5.0, 5.0) at 1, the ends of a line that all points are",
        base=spline_warp_request),
    bad("spline of equal points", "Warp", control_points([0, 0, 1, 0, 0, 1, 1, 1, 1, 0]), WRONG,
        CONTROL, f"{THREE}, got (1.0, 0.0) at 1 and (1.0, 0.0) at 4, nearer to each other than",
        base=spline_warp_request),
    bad("spline of near points", "Warp", control_points([0, 0, 1, 0, 0, 1, 1, 1, 0, 1e-7]), WRONG,
        CONTROL, f"{THREE}, got (0.0, 0.0) at 0 and (0.0, 1e-07) at 4, nearer to each other than",
        base=spline_warp_request),
    bad("spline of NaN", "Warp", control_points([0, 0, 1, 0, 0, math.nan, 1, 1, 2, 2]), WRONG,
        CONTROL, f"{THREE}, got [(0.0, 0.0), (1.0, 0.0), (0.0, nan)", base=spline_warp_request),
    bad("spline of huge points", "Warp", control_points([1e308, 0, -1e308, 0, 0, 1e308, 0, 0, 1,
        1]), WRONG, CONTROL, f"{THREE}, got ", base=spline_warp_request),
    bad("spline of very many points", "Warp", control_points([*range(514)]), LARGE, CONTROL,
        "expected at most 256 points, got 257.", base=spline_warp_request),
    bad("spline of points for others", "Warp", control_points([0, 0, 1, 0, 0, 1, 1, 1]), WRONG,
        SPLINE, "expected shape (N, 4, 2), got (2, 5, 2).", base=spline_warp_request),
    bad("spline of points in space", "Warp", array(SPLINE, ramp(2, 5, 3)), WRONG, SPLINE,
        "expected shape (N, 5, 2), got (2, 5, 3).", base=spline_warp_request),
    bad("spline of infinite points", "Warp",
        array(SPLINE, with_value((2, 5, 2), (1, 3, 0), np.inf)), WRONG, SPLINE,
        "expected finite numbers, got inf at (1, 3, 0).", base=spline_warp_request),
    bad("spline of negative regularization", "Warp", assign(STIFFNESS, -0.5), WRONG, STIFFNESS,
        "expected a finite number >= 0, got -0.5.", base=spline_warp_request),
    bad("spline of NaN regularization", "GenerateGrid", assign(STIFFNESS, math.nan), WRONG,
        STIFFNESS, "expected a finite number >= 0, got nan.", base=spline_grid_request),
    bad("spline of bytes", "Warp", array(SPLINE, ramp(2, 5, 2, dtype=np.uint8)), WRONG, SPLINE,
        "expected torch.float32 or torch.float64, got torch.uint8.", base=spline_warp_request),
    bad("spline of volumes", "Warp", array("feature_map", ramp(2, 3, 2, 4, 5)), WRONG,
        "feature_map", "expected shape (N, C, H, W), got (2, 3, 2, 4, 5).",
        base=spline_warp_request),
    bad("basis of many bytes", "GenerateGrid", assign("output_size", [2600, 2500]), LARGE,
        "output_size", "expected at most 268435456 bytes of output and basis, got 364000000.",
        base=spline_grid_request),
    bad("empty spline", "Warp", transform_of("thin_plate_spline"), WIRE, f"{SPLINE}.data_type",
        OPTIONS),
    # Types.
    bad("no data type", "Warp", clear("feature_map.data_type"), WIRE, "feature_map.data_type",
        f"{OPTIONS}DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT64,"),
    bad("unknown data type", "Warp", assign("feature_map.data_type", 99), UNSUPPORTED,
        "feature_map.data_type", f"{OPTIONS}DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT64, "
        "DATA_TYPE_FLOAT16, DATA_TYPE_BFLOAT16, DATA_TYPE_UINT8, DATA_TYPE_UINT16, "
        "DATA_TYPE_INT16, DATA_TYPE_BOOL, DATA_TYPE_INT8, DATA_TYPE_INT32, DATA_TYPE_UINT32, "
        "DATA_TYPE_INT64, DATA_TYPE_UINT64, got 99, which this server does"),
    bad("interpolated labels", "Warp", array("feature_map", np.zeros((1, 1, 4, 5), np.int32)),
        WRONG, "feature_map", "expected torch.float32 or torch.float64 or torch.float16 or "
        "torch.bfloat16 or torch.uint8 or torch.uint16 or torch.int16, got torch.int32. Labels"),
    bad("unknown data type of theta", "GenerateGrid", assign(f"{THETA}.data_type", 99), UNSUPPORTED,
        f"{THETA}.data_type", OPTIONS),
    bad("theta of bytes", "Warp", array(THETA, theta().astype(np.uint8)), WRONG, THETA,
        "expected torch.float32 or torch.float64, got torch.uint8."),
    bad("theta of float16", "Warp", array(THETA, theta().astype(np.float16)), WRONG, THETA,
        "expected torch.float32 or torch.float64, got torch.float16."),
    bad("theta of bfloat16", "GenerateGrid", array(THETA, theta().astype(ml_dtypes.bfloat16)),
        WRONG, THETA, "expected torch.float32 or torch.float64, got torch.bfloat16."),
    bad("grad_output of another type", "WarpGradients",
        array("grad_output", ramp(2, 3, 6, 7, dtype=np.float64)), WRONG, "grad_output",
        "expected torch.float32, got torch.float64."),
    bad("gradients of bytes", "WarpGradients",
        array("feature_map", ramp(2, 3, 4, 5, dtype=np.uint8)), WRONG, "feature_map",
        "expected torch.float32 or torch.float64"),
    # Enumerations and choices.
    bad("unknown interpolation", "Warp", assign("spec.interpolation", 99), UNSUPPORTED,
        "spec.interpolation", f"{OPTIONS}INTERPOLATION_NEAREST, INTERPOLATION_BILINEAR, "
        "INTERPOLATION_BICUBIC, got 99, which this server does not offer."),
    bad("unknown padding", "Warp", assign("spec.padding", -1), UNSUPPORTED, "spec.padding",
        OPTIONS),
    bad("unknown coordinates", "GenerateGrid", assign("coordinates", 7), UNSUPPORTED,
        "coordinates", OPTIONS),
    bad("unknown subgradient", "WarpGradients", assign("spec.subgradient", 7), UNSUPPORTED,
        "spec.subgradient", OPTIONS),
    bad("unknown layout", "Warp", assign("feature_map.layout", 7), UNSUPPORTED,
        "feature_map.layout", f"{OPTIONS}LAYOUT_NCHW, LAYOUT_NHWC, got 7, which"),
    bad("unknown layout of a grid", "Warp", assign(f"{GRID}.layout", 7), UNSUPPORTED,
        f"{GRID}.layout", OPTIONS, base=grid_warp_request),
    bad("layout of a grid", "Warp", assign(f"{GRID}.layout", 2), WRONG, f"{GRID}.layout",
        "expected LAYOUT_UNSPECIFIED, as only maps have a layout, got LAYOUT_NHWC.",
        base=grid_warp_request),
    bad("layout of theta", "GenerateGridGradients", assign(f"{THETA}.layout", 1), WRONG,
        f"{THETA}.layout", "expected LAYOUT_UNSPECIFIED"),
    bad("unknown need", "WarpGradients", assign("needs", [1, 9]), UNSUPPORTED, "needs",
        f"{OPTIONS}OPERAND_FEATURE_MAP, OPERAND_TRANSFORM, got 9, which this server does not"),
    bad("unspecified need", "WarpGradients", assign("needs", [0]), WRONG, "needs",
        "expected OPERAND_FEATURE_MAP or OPERAND_TRANSFORM, got OPERAND_UNSPECIFIED."),
    # Fields of a newer contract; tags by hand: number << 3 | wire type.
    bad("unknown field", "Warp", unknown_field("", 13, b"\x68\x01"), UNKNOWN, "13", NOT_KNOWN),
    bad("unknown field of gradients", "WarpGradients", unknown_field("", 12, b"\x62\x01x"), UNKNOWN,
        "12", NOT_KNOWN),
    bad("unknown field of grids", "GenerateGrid", unknown_field("", 9, b"\x4d1234"), UNKNOWN, "9",
        NOT_KNOWN),
    bad("unknown field of a spec", "Warp", unknown_field("spec", 99, b"\x98\x06\x00"), UNKNOWN,
        "spec.99", NOT_KNOWN),
    bad("unknown source of a tensor", "Warp", unknown_field("feature_map", 7, b"\x3a\x00"), UNKNOWN,
        "feature_map.7", NOT_KNOWN),
    bad("unknown source of a theta", "GenerateGridGradients", unknown_field(THETA, 7, b"\x3a\x00"),
        UNKNOWN, f"{THETA}.7", NOT_KNOWN),
    bad("unknown transform", "Warp", unknown_field("transform", 10, b"\x52\x00"), UNKNOWN,
        "transform.10", NOT_KNOWN),
    bad("unknown field of a transform", "Warp",
        unknown_field("transform.affine", 2, b"\x11" + bytes(8)), UNKNOWN, "transform.affine.2",
        NOT_KNOWN),
    bad("field of another type", "Warp", unknown_field("spec", 1, b"\x0d1234"), WIRE,
        "spec.interpolation", "expected the wire type of field 1 of stn.v1.WarpSpec, got another"),
    bad("payload that is a number", "Warp", unknown_field("", 15, b"\x78\x05"), WIRE, "payloads",
        "expected the wire type of field 15 of stn.v1.WarpRequest, got another one."),
    bad("no transform", "Warp", clear("transform"), WRONG, "transform",
        f"{OPTIONS}{', '.join(TRANSFORMS)}, got none."),
    bad("empty homography", "Warp", transform_of("homography"), WIRE,
        "transform.homography.theta.data_type", OPTIONS),
    bad("a grid from a grid", "GenerateGrid", sampling_grid, WRONG, "transform",
        "expected parameters to generate a grid from, got a sampling grid."),
    # Payloads and framing.
    bad("missing map", "Warp", clear("feature_map"), WIRE, "feature_map.data_type", OPTIONS),
    bad("missing theta", "Warp", clear(THETA), WIRE, f"{THETA}.data_type", OPTIONS),
    bad("missing grad_output", "WarpGradients", clear("grad_output"), WIRE,
        "grad_output.data_type", OPTIONS),
    bad("no payload index", "Warp", clear("feature_map.payload"), WIRE, "feature_map.payload",
        "expected the index of a payload, got none."),
    bad("payload out of range", "Warp", assign(f"{THETA}.payload", 2), WIRE, f"{THETA}.payload",
        "expected the index of one of 2 payloads, got 2."),
    bad("no payloads", "Warp", clear("payloads"), WIRE, "feature_map.payload",
        "expected the index of one of 0 payloads, got 0."),
    bad("many payloads", "Warp", many_payloads, FrameTooLargeError, "payloads",
        "expected at most 16 payloads, got more."),
    bad("long envelope", "Warp", assign("spec.fill", [0.5] * 40_000), FrameTooLargeError, "message",
        "expected at most 262144 bytes without payloads, got 320"),
    BadRequest("empty message", "Warp", b"", WRONG, "transform", OPTIONS),
    BadRequest("garbage", "Warp", b"\xff" * 40, WIRE, "message", "expected serialized protobuf"),
    BadRequest("cut off", "Warp", warp_request().SerializeToString()[:-1], WIRE, "message",
               "expected serialized protobuf"),
    BadRequest("garbage inside", "Warp", b"\x0a\x02\xff\xff", WIRE, "message",
               "expected a serialized stn.v1.WarpRequest"),
]  # fmt: skip
"""One a rule."""
