"""Every refusal: its type, its words, and its facts as attributes."""

from typing import get_args

import numpy as np
import pytest
import torch

import stn_engine
from stn_engine import (
    Affine,
    Attention,
    DeviceMismatchError,
    DTypeError,
    EngineError,
    Flow,
    GridGradientsProblem,
    GridProblem,
    Homography,
    InvalidInputError,
    ParameterError,
    ParametricTransform,
    Rotation,
    SamplingGrid,
    ShapeError,
    Similarity,
    ThinPlateSpline,
    Translation,
    WarpGradientsProblem,
    WarpProblem,
    WarpSpec,
    generate_grid,
    generate_grid_gradients,
    objective,
    warp,
    warp_gradients,
)
from stn_engine.checks import FEATURE_MAP_DTYPES, INTERPOLATED_DTYPES, LABEL_DTYPES

MAP = torch.zeros(4, 3, 5, 7)
THETA = Affine(torch.eye(2, 3).repeat(4, 1, 1))
GRID = SamplingGrid(torch.zeros(4, 2, 6, 2))
FLOW = Flow(torch.zeros(4, 2, 6, 2))
VOLUME = torch.zeros(4, 3, 2, 5, 7)
DEEP = Affine(torch.eye(3, 4)[None])
THETAS = [("N", 2, 3), ("N", 3, 4)]
GRIDS = [("N", "Ho", "Wo", 2), ("N", "Do", "Ho", "Wo", 3)]
CORNERS = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
WARP = WarpProblem(MAP, THETA, (2, 6))
GENERATION = GridProblem(THETA, (2, 6))


def assert_refused(kind, match, argument, call):
    """``call`` raises exactly ``kind`` about ``argument``; returns the exception."""
    with pytest.raises(InvalidInputError, match=match) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.argument == argument
    return caught.value


@pytest.mark.parametrize(
    ("argument", "expected", "actual", "call"),
    [
        ("theta", THETAS, (2, 3), lambda: Affine(torch.eye(2, 3))),
        ("theta", THETAS, (3, 4), lambda: Affine(torch.eye(3, 4))),
        ("theta", THETAS, (1, 3, 3), lambda: Affine(torch.eye(3)[None])),
        ("theta", [(4, 2, 3)], (3, 2, 3), lambda: warp(MAP, Affine(torch.zeros(3, 2, 3)))),
        ("theta", [("N", 3, 3)], (1, 2, 3), lambda: Homography(torch.zeros(1, 2, 3))),
        ("parameters", [("N", 3)], (3,), lambda: Attention(torch.zeros(3))),
        ("parameters", [("N", 4)], (1, 3), lambda: Similarity(torch.zeros(1, 3))),
        ("parameters", [("N", 2)], (1, 4), lambda: Translation(torch.zeros(1, 4))),
        ("parameters", [("N", 1)], (2,), lambda: Rotation(torch.zeros(2))),
        ("parameters", [(4, 1)], (3, 1), lambda: warp(MAP, Rotation(torch.zeros(3, 1)))),
        ("displacement", GRIDS, (1, 2, 2), lambda: Flow(torch.zeros(1, 2, 2))),
        (
            "points",
            [("N", 4, 2)],
            (1, 3, 2),
            lambda: ThinPlateSpline(torch.zeros(1, 3, 2), control_points=CORNERS),
        ),
        ("output_size", [(2, 6)], (6, 2), lambda: warp(MAP, FLOW, (6, 2))),
        ("output_size", [(2, 6)], (6, 2), lambda: generate_grid(FLOW, (6, 2))),
        ("grid", GRIDS, (1, 2, 3, 3), lambda: SamplingGrid(torch.zeros(1, 2, 3, 3))),
        ("grid", GRIDS, (1, 2, 2, 3, 2), lambda: SamplingGrid(torch.zeros(1, 2, 2, 3, 2))),
        ("grid", [(4, 2, 6, 2)], (3, 2, 6, 2), lambda: warp(MAP, SamplingGrid(GRID.grid[:3]))),
        ("feature_map", [("N", "C", "H", "W")], (3, 5, 7), lambda: warp(MAP[0], THETA)),
        (
            "feature_map",
            [("N", "C", "H > 0", "W > 0")],
            (4, 3, 0, 7),
            lambda: warp(MAP[:, :, :0], THETA),
        ),
        (
            "feature_map",
            [("N", "C", "H > 0", "W > 0")],
            (4, 3, 5, 0),
            lambda: warp(MAP[..., :0], THETA),
        ),
        ("output_size", [(2, 6)], (6, 2), lambda: warp(MAP, GRID, (6, 2))),
        (
            "grad_output",
            [(4, 3, 2, 6)],
            (4, 3, 6, 2),
            lambda: WarpGradientsProblem(WARP, torch.zeros(4, 3, 6, 2)),
        ),
        (
            "grad_output",
            [("N", "C", "Ho", "Wo")],
            (3, 5, 7),
            lambda: warp_gradients(MAP[0], MAP, THETA),
        ),
        (
            "grad_output",
            [(4, 3, 5, 7)],
            (4, 1, 5, 7),
            lambda: warp_gradients(MAP[:, :1], MAP, THETA),
        ),
        (
            "grad_grid",
            [(4, 2, 6, 2)],
            (4, 6, 2, 2),
            lambda: GridGradientsProblem(GENERATION, torch.zeros(4, 6, 2, 2)),
        ),
        (
            "grad_grid",
            [("N", "Ho", "Wo", 2)],
            (2, 6, 2),
            lambda: generate_grid_gradients(GRID.grid[0], THETA),
        ),
        ("feature_map", [("N", "C", "D", "H", "W")], (4, 3, 5, 7), lambda: warp(MAP, DEEP)),
        (
            "feature_map",
            [("N", "C", "D > 0", "H > 0", "W > 0")],
            (4, 3, 0, 5, 7),
            lambda: warp(VOLUME[:, :, :0], DEEP),
        ),
        ("theta", [(4, 3, 4)], (3, 3, 4), lambda: warp(VOLUME, Affine(torch.zeros(3, 3, 4)))),
        (
            "output_size",
            [(1, 2, 6)],
            (1, 6, 2),
            lambda: warp(VOLUME, Flow(torch.zeros(1, 1, 2, 6, 3)), (1, 6, 2)),
        ),
        (
            "grad_output",
            [("N", "C", "Do", "Ho", "Wo")],
            (4, 3, 5, 7),
            lambda: warp_gradients(MAP, VOLUME, DEEP),
        ),
        (
            "grad_grid",
            [("N", "Do", "Ho", "Wo", 3)],
            (4, 2, 6, 2),
            lambda: generate_grid_gradients(GRID.grid, DEEP),
        ),
    ],
)
def test_shape_error(argument, expected, actual, call):
    """A wrong shape is told with the expected one."""
    match = rf"^{argument}: expected shape \(.*\), got \(.*\)\. [A-Z]"
    error = assert_refused(ShapeError, match, argument, call)
    assert (error.expected_shapes, error.actual_shape) == (tuple(expected), actual)


def test_shape_error_tells_all_shapes_that_would_do():
    """A theta of neither kind is told both."""
    match = r"expected shape \(N, 2, 3\) or \(N, 3, 4\), got \(1, 3, 3\)\. Add or remove"
    assert_refused(ShapeError, match, "theta", lambda: Affine(torch.eye(3)[None]))


@pytest.mark.parametrize(
    "transform",
    [
        THETA,
        Homography(torch.eye(3)[None]),
        Attention(torch.zeros(1, 3)),
        Similarity(torch.zeros(1, 4)),
        Translation(torch.zeros(1, 2)),
        Rotation(torch.zeros(1, 1)),
        ThinPlateSpline(torch.zeros(1, 4, 2), control_points=CORNERS),
        FLOW,
        GRID,
    ],
    ids=lambda one: type(one).__name__,
)
def test_shape_error_of_a_volume_under_a_flat_transform(transform):
    """What has parameters for two coordinates reads no third axis, and says so."""
    kind = type(transform).__name__
    match = rf"expected shape \(N, C, H, W\), got .*\. Add or remove axes: this {kind} is 2-D;"
    assert_refused(ShapeError, match, "feature_map", lambda: warp(VOLUME, transform))


@pytest.mark.parametrize(
    ("argument", "expected", "actual", "call"),
    [
        (
            "theta",
            (torch.float32, torch.float64),
            torch.float16,
            lambda: Affine(THETA.theta.half()),
        ),
        (
            "grid",
            (torch.float32, torch.float64),
            torch.int64,
            lambda: SamplingGrid(GRID.grid.long()),
        ),
        (
            "parameters",
            (torch.float32, torch.float64),
            torch.bfloat16,
            lambda: Rotation(torch.zeros(1, 1, dtype=torch.bfloat16)),
        ),
        (
            "feature_map",
            FEATURE_MAP_DTYPES,
            torch.complex64,
            lambda: warp(MAP.cfloat(), THETA),
        ),
        (
            "feature_map",
            (torch.float32, torch.float64, torch.float16, torch.bfloat16),
            torch.uint8,
            lambda: warp_gradients(MAP.byte(), MAP.byte(), THETA),
        ),
        (
            "grad_output",
            (torch.float32,),
            torch.float64,
            lambda: warp_gradients(MAP.double(), MAP, THETA),
        ),
        (
            "grad_grid",
            (torch.float32,),
            torch.float64,
            lambda: generate_grid_gradients(GRID.grid.double(), THETA),
        ),
    ],
)
def test_dtype_error(argument, expected, actual, call):
    """A wrong dtype is told with those that would do."""
    match = rf"^{argument}: expected torch\..*, got {actual}\. Convert it"
    error = assert_refused(DTypeError, match, argument, call)
    assert (error.expected, error.actual) == (expected, actual)


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_labels_are_not_interpolated(dtype, interpolation):
    """The error says how they are read."""
    match = (
        rf'^feature_map: expected torch\..*, got {dtype}\. Labels are read by interpolation="nea'
    )
    labels = torch.zeros(1, 1, 2, 2, dtype=dtype)
    error = assert_refused(
        DTypeError, match, "feature_map", lambda: warp(labels, THETA, interpolation=interpolation)
    )
    assert (error.expected, error.actual) == (INTERPOLATED_DTYPES, dtype)


@pytest.mark.parametrize(
    ("argument", "reference", "call"),
    [
        ("theta", "feature_map", lambda: warp(MAP, Affine(THETA.theta.to("meta")))),
        ("grid", "feature_map", lambda: warp(MAP, SamplingGrid(GRID.grid.to("meta")))),
        ("grad_output", "feature_map", lambda: warp_gradients(MAP.to("meta"), MAP, THETA)),
        ("displacement", "feature_map", lambda: warp(MAP, Flow(GRID.grid.to("meta")))),
        ("grad_grid", "theta", lambda: generate_grid_gradients(GRID.grid.to("meta"), THETA)),
        ("grad_grid", "displacement", lambda: generate_grid_gradients(GRID.grid.to("meta"), FLOW)),
    ],
)
def test_device_mismatch_error(argument, reference, call):
    """Operands on two devices are told one by one."""
    match = f"^{argument}: expected one device, got {reference} on cpu and {argument} on meta"
    error = assert_refused(DeviceMismatchError, match, argument, call)
    assert error.devices == {reference: torch.device("cpu"), argument: torch.device("meta")}


@pytest.mark.parametrize(
    ("argument", "value", "allowed", "call"),
    [
        (
            "interpolation",
            "cubic",
            ("nearest", "bilinear", "bicubic"),
            lambda: WarpSpec(interpolation="cubic"),
        ),
        (
            "padding",
            "wrap",
            ("zeros", "border", "reflection", "fill"),
            lambda: WarpSpec(padding="wrap"),
        ),
        ("coordinates", None, ("normalized", "pixel"), lambda: WarpSpec(coordinates=None)),
        (
            "coordinates",
            "metres",
            ("normalized", "pixel"),
            lambda: generate_grid(THETA, (2, 2), coordinates="metres"),
        ),
        ("subgradient", "left", ("right", "zero"), lambda: WarpSpec(subgradient="left")),
        ("align_corners", None, (True, False), lambda: WarpSpec(align_corners=None)),
        ("align_corners", 1, (True, False), lambda: GridProblem(THETA, (2, 2), "pixel", 1)),
        ("deterministic", 0, (True, False), lambda: WarpSpec(deterministic=0)),
    ],
)
def test_parameter_error_of_options(argument, value, allowed, call):
    """A value outside an option's choices is told with all of them."""
    match = rf"^{argument}: expected {allowed[0]} \| .*, got .*\. Pass an allowed value\."
    error = assert_refused(ParameterError, match, argument, call)
    assert error.value == value
    assert tuple(allowed) == error.allowed


@pytest.mark.parametrize(
    "fill",
    [float("nan"), float("inf"), (0.0, float("nan")), (), "red", None, "12", [b"12"], 10**400],
)
def test_parameter_error_of_fill(fill):
    """A fill is a finite number or a sequence of them."""
    match = r"^fill: expected a finite number \| a sequence"
    assert_refused(ParameterError, match, "fill", lambda: WarpSpec(fill=fill))


def test_parameter_error_of_fill_beyond_the_compute_dtype():
    """A fill that becomes infinite when rounded would turn taps of weight 0 into NaN."""
    match = r"^fill: expected values of magnitude <= 3\.4028234663852886e\+38, got \(1e\+300,\)"
    assert_refused(ParameterError, match, "fill", lambda: warp(MAP, THETA, fill=1e300))
    assert warp(MAP.double(), THETA, padding="fill", fill=1e300).isfinite().all()


def test_parameter_error_of_fill_per_channel():
    """A fill per channel has as many values as there are channels."""
    match = r"^fill: expected one value \| one value per channel \(3\), got \(1\.0, 2\.0\)"
    error = assert_refused(ParameterError, match, "fill", lambda: warp(MAP, THETA, fill=(1, 2)))
    assert error.value == (1.0, 2.0)


@pytest.mark.parametrize("size", [(2,), (2, 3, 4), (2.0, 3), (-1, 3), (3, -1), 5, "ab"])
def test_parameter_error_of_output_size(size):
    """output_size is two non-negative integers."""
    match = "^output_size: expected two integers >= 0, height first"
    for call in (lambda: warp(MAP, THETA, size), lambda: generate_grid(THETA, size)):
        assert assert_refused(ParameterError, match, "output_size", call).value == size


@pytest.mark.parametrize("size", [(2, 3), (2, 3, 4, 5), (-1, 3, 4), (2, 3, 4.0)])
def test_parameter_error_of_output_size_in_3d(size):
    """A volume has three sizes."""
    match = "^output_size: expected three integers >= 0, depth first"
    for call in (lambda: warp(VOLUME, DEEP, size), lambda: generate_grid(DEEP, size)):
        assert assert_refused(ParameterError, match, "output_size", call).value == size


@pytest.mark.parametrize(
    "control_points",
    [
        CORNERS[:2],
        [(0, 0), (1, 1), (2, 2)],
        [*CORNERS, CORNERS[0]],
        [(0, 0, 0), (1, 0, 0), (0, 1, 0)],
        [(0, 0), (1, 0), (0, float("nan"))],
        [0, 1, 2],
        [(0, 0), (1, 0), (0, 10**400)],
        [(0, 0), (1, 0), (2,)],
        ["00", "10", "01"],
        "abc",
        None,
    ],
)
def test_parameter_error_of_control_points(control_points):
    """Control points are three or more different points that span the plane."""
    match = r"^control_points: expected three or more different finite points \(x, y\), not all on"
    points = torch.zeros(1, 4, 2)
    call = lambda: ThinPlateSpline(points, control_points=control_points)  # noqa: E731 - a thunk
    error = assert_refused(ParameterError, match, "control_points", call)
    assert error.value is control_points


@pytest.mark.parametrize(
    "regularization", [-1e-9, float("nan"), float("inf"), 10**400, "0", None, True]
)
def test_parameter_error_of_regularization(regularization):
    """Regularization is a finite number that is not negative."""
    match = "^regularization: expected a finite number >= 0, got"
    points = torch.zeros(1, 4, 2)
    assert_refused(
        ParameterError,
        match,
        "regularization",
        lambda: ThinPlateSpline(points, control_points=CORNERS, regularization=regularization),
    )


@pytest.mark.parametrize(
    "needs", [(), ("theta",), "transform", ("feature_map", "grid"), [["transform"]]]
)
def test_parameter_error_of_needs(needs):
    """Needs name at least one of the two operands, and nothing else."""
    match = "^needs: expected"
    call = lambda: warp_gradients(MAP, MAP, THETA, needs=needs)  # noqa: E731 - a thunk
    assert assert_refused(ParameterError, match, "needs", call).value == needs


@pytest.mark.parametrize(
    "needs", [None, 1, "gradient", torch.zeros(()), np.array("gradient"), np.eye(2), [["gradient"]]]
)
def test_parameter_error_of_what_are_no_names(needs):
    """What cannot be names is told as such, by gradients and objectives alike."""
    for call in (
        lambda: warp_gradients(MAP, MAP, THETA, needs=needs),
        lambda: objective(MAP, MAP, THETA, needs=needs),
    ):
        assert_refused(ParameterError, "^needs: expected", "needs", call)


def test_needs_may_be_an_iterator():
    """It is read once: names that were seen by a check must not be gone after it."""
    gradients = warp_gradients(MAP, MAP, THETA, needs=iter(["transform"]))
    assert gradients.feature_map is None
    assert gradients.transform is not None
    assert objective(MAP, MAP, THETA, needs=iter(["gradient"])).gradient is not None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_weights_are_refused():
    """A nested tensor has no shape, not even one that is wrong."""
    nested = torch.nested.nested_tensor([MAP[0, :1], MAP[0, :1, :1]])
    call = lambda: objective(MAP, MAP, THETA, weights=nested)  # noqa: E731 - a thunk
    assert_refused(InvalidInputError, "^weights: expected a dense tensor", "weights", call)


@pytest.mark.parametrize(
    ("ragged", "kind"),
    [
        (stn_engine.warp_ragged, "WarpProblem"),
        (stn_engine.warp_gradients_ragged, "WarpGradientsProblem"),
        (stn_engine.generate_grid_ragged, "GridProblem"),
        (stn_engine.generate_grid_gradients_ragged, "GridGradientsProblem"),
        (stn_engine.objective_ragged, "ObjectiveProblem"),
    ],
)
@pytest.mark.parametrize(
    ("problems", "got"),
    [([MAP], "Tensor in it"), (iter([]), "list_iterator"), (MAP, "Tensor"), (None, "NoneType")],
    ids=["list of maps", "iterator", "map", "None"],
)
def test_problems_are_a_sequence_of_one_kind(ragged, kind, problems, got):
    """Maps as `warp` takes them, or an iterator, are told what is expected."""
    match = f"^problems: expected a sequence of {kind}, got {got}"
    assert_refused(InvalidInputError, match, "problems", lambda: ragged(problems))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("theta", lambda: Affine(THETA.theta.tolist())),
        ("grid", lambda: SamplingGrid(GRID.grid.numpy())),
        ("theta", lambda: Homography([[1, 0, 0], [0, 1, 0], [0, 0, 1]])),
        ("parameters", lambda: Attention((1, 0, 0))),
        ("displacement", lambda: Flow(None)),
        ("feature_map", lambda: warp(MAP.numpy(), THETA)),
        ("grad_output", lambda: warp_gradients(None, MAP, THETA)),
        ("grad_output", lambda: WarpGradientsProblem(WARP, None)),
        ("grad_grid", lambda: generate_grid_gradients(None, THETA)),
        ("grad_grid", lambda: GridGradientsProblem(GENERATION, None)),
    ],
)
def test_invalid_input_error_of_non_tensors(argument, call):
    """What is not a tensor is told how to become one."""
    match = rf"^{argument}: expected a torch.Tensor, got \w+\. Convert it"
    assert_refused(InvalidInputError, match, argument, call)


def test_invalid_input_error_of_transforms():
    """A bare tensor is not a transform, and a grid has no generator."""
    kinds = " or ".join(kind.__name__ for kind in get_args(ParametricTransform))
    match = f"^transform: expected {kinds} or SamplingGrid, got Tensor"
    assert_refused(InvalidInputError, match, "transform", lambda: warp(MAP, THETA.theta))
    match = f"^transform: expected {kinds}, got SamplingGrid"
    assert_refused(InvalidInputError, match, "transform", lambda: generate_grid(GRID, (2, 6)))
    match = "^transform: expected Affine or .*, got Tensor"
    for call in (
        lambda: warp_gradients(MAP, MAP, THETA.theta),
        lambda: generate_grid_gradients(GRID.grid, THETA.theta),
    ):
        assert_refused(InvalidInputError, match, "transform", call)


def test_error_tree():
    """Callers can catch everything as EngineError, and bad input as ValueError."""
    errors = [
        value
        for value in vars(stn_engine).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert all(issubclass(error, EngineError) for error in errors)
    for error in (ShapeError, DTypeError, DeviceMismatchError, ParameterError):
        assert issubclass(error, InvalidInputError)
        assert issubclass(error, ValueError)
        assert f"├─ {error.__name__}" in stn_engine.errors.__doc__.replace("└", "├")
