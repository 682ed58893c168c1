"""Plans of the native module: what is checked once and computed on bytes."""

import numpy as np
import pytest

from stn_engine import _cpu
from support.native_calls import OnBytes
from support.native_items import layout_of, random_operands

HUGE = 2**31 - 1


def layout(*shape, dtype=np.float32):
    return layout_of(_cpu, np.empty(shape, dtype))


def float32(shape, strides):
    return _cpu.Layout(_cpu.Storage.float32, shape, strides)


MAP, THETA, TARGET = layout(2, 3, 4, 5), layout(2, 2, 3), layout(2, 3, 6, 7)


OPTIONS = _cpu.Options(
    _cpu.Interpolation.bilinear, _cpu.Padding.border, _cpu.Unit.normalized, False, [0.0]
)


def plan(*, feature_map=MAP, parameters=THETA, output=TARGET, kind="affine", options=OPTIONS):
    """A good plan of a warp, but for the changes."""
    return _cpu.Plan.warp(options, _cpu.Kind[kind], feature_map, parameters, output)


def gradients(grad_feature_map=MAP, grad_parameters=THETA, feature_map=MAP, output=TARGET):
    """A good plan of gradients, but for the changes."""
    grads = grad_feature_map, grad_parameters
    return _cpu.Plan.gradients(OPTIONS, _cpu.Kind.affine, output, feature_map, THETA, *grads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_map": layout(2, 3, 4)}, "feature_map: .* four or five axes"),
        ({"output": layout(2, 3, 6, 7, dtype=float)}, "output: .* dtype of feature_map"),
        ({"parameters": layout(2, 3, 3)}, "parameters: expected 6 numbers"),
        ({"parameters": layout(2, 2, 3, dtype=np.float16)}, "parameters: expected float32 or"),
        ({"output": float32((2, 3, 6, 7), (252, 84, 14, 2))}, "output: expected dense memory"),
        ({"kind": "rotation"}, "parameters: expected 1 numbers"),
        (
            {
                "feature_map": float32((2, 1, 4, 5), (20, 20, 5, 1)),
                "output": float32((2, 1, HUGE, HUGE), (HUGE**2, HUGE**2, HUGE, 1)),
            },
            r"output: expected fewer than 2\^63 bytes",
        ),
    ],
)
def test_wrong_plans_are_refused(changes, message):
    """Once, before any bytes have come."""
    with pytest.raises(ValueError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": 3}, "options: expected Options, got int"),
        ({"feature_map": np.zeros((2, 3, 4, 5))}, "incompatible function arguments"),
    ],
)
def test_parts_of_other_types_make_no_plan(changes, message):
    """Arrays that are there among them."""
    with pytest.raises(TypeError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("shape", "strides", "message"),
    [
        ((2, 3), (1,), "strides: expected 2 of them, got 1"),
        ((2, -3), (1, 1), "shape: expected sizes of at least 0, got -3"),
        ((4, 2**62), (2**62, 1), r"shape: expected fewer than 2\^63 numbers, got \(4, 46"),
        ((0, 4, 2**62), (1, 1, 1), r"shape: expected fewer than 2\^63 numbers, got \(0, 4,"),
    ],
)
def test_wrong_layouts_are_refused(shape, strides, message):
    """A layout has a stride for every size."""
    with pytest.raises(ValueError, match=message):
        float32(shape, strides)


def test_grey_levels_have_no_gradients():
    """There is no plan of them."""
    grey = layout(2, 3, 4, 5, dtype=np.uint8), layout(2, 3, 6, 7, dtype=np.uint8)
    with pytest.raises(ValueError, match="feature_map: expected a float dtype, got integers"):
        gradients(grey[0], None, *grey)


SUMS = _cpu.Comparison(_cpu.Loss.ssd, 1.0, _cpu.Domain.overlap)


def objective(
    *,
    comparison=SUMS,
    kind="affine",
    parameters=THETA,
    fixed=TARGET,
    weights=None,
    gradient=THETA,
    gauss_newton=None,
):
    """A good plan of an objective, but for the changes."""
    operands = MAP, parameters, fixed, weights
    return _cpu.Plan.objective(
        OPTIONS, comparison, _cpu.Kind[kind], TARGET, *operands, gradient, gauss_newton
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed": layout(2, 3, 6, 8)}, "fixed: expected one number per target pixel"),
        ({"fixed": layout(3, 3, 6, 7)}, "fixed: expected one number per target pixel"),
        ({"fixed": layout(2, 3, 6, 7, dtype=float)}, "fixed: expected the dtype of moving"),
        ({"weights": layout(1, 3, 6, 7)}, "weights: expected one number per target pixel"),
        ({"gradient": layout(1, 2, 3)}, "gradient: expected the parameters of every item"),
        ({"gradient": float32((2, 2, 3), (1, 2, 4))}, "gradient: expected contiguous memory"),
        ({"gradient": layout(2, 2, 3, dtype=np.float16)}, "gradient: expected float32 or float64"),
        ({"gauss_newton": layout(2, 6, 6)}, "gauss_newton: expected a contiguous matrix of float"),
        (
            {
                "comparison": _cpu.Comparison(_cpu.Loss.ncc, 1.0, _cpu.Domain.all),
                "gauss_newton": layout(2, 6, 6, dtype=float),
            },
            "gauss_newton: expected a loss of squares, got ncc",
        ),
        (
            {
                "kind": "flow",
                "parameters": layout(2, 6, 7, 2),
                "gradient": None,
                "gauss_newton": layout(2, 84, 84, dtype=float),
            },
            "gauss_newton: expected a transform that is a matrix",
        ),
    ],
)
def test_wrong_plans_of_objectives_are_refused(changes, message):
    """Before anything has come."""
    with pytest.raises(ValueError, match=message):
        objective(**changes)


def test_grey_levels_have_no_objectives():
    """There is no gradient to sum."""
    grey = layout(2, 3, 4, 5, dtype=np.uint8), layout(2, 3, 6, 7, dtype=np.uint8)
    with pytest.raises(ValueError, match="moving: expected a float dtype, got integers"):
        _cpu.Plan.objective(
            OPTIONS, SUMS, _cpu.Kind.affine, grey[1], grey[0], THETA, grey[1], None, None, None
        )


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_delta_is_above_0(delta):
    """A line has to begin somewhere."""
    with pytest.raises(ValueError, match="delta: expected a number > 0"):
        _cpu.Comparison(_cpu.Loss.huber, delta, _cpu.Domain.all)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (3, TypeError, "call: expected a tuple, got int"),
        ((), ValueError, "call: expected a Plan and operands, got something else"),
        ((3, b"", b""), ValueError, "call: expected a Plan and operands, got something else"),
        ((plan(), bytes(480)), ValueError, "call: expected 3 or 4 entries, got 2"),
        (
            (plan(), 3.5, bytes(48)),
            TypeError,
            "feature_map: expected an address or contiguous bytes, got float",
        ),
        (
            (plan(), np.zeros(240, np.float32)[::2], bytes(48)),
            TypeError,
            "feature_map: expected an address or contiguous bytes, got ndarray",
        ),
        ((plan(), bytes(479), bytes(48)), ValueError, "feature_map: expected 480 bytes, got 479"),
        ((plan(), bytes(480), bytes(49)), ValueError, "parameters: expected 48 bytes, got 49"),
        (
            (plan(feature_map=float32((2, 3, 4, 5), (0, 0, 0, 0))), bytes(480), bytes(48)),
            ValueError,
            "feature_map: expected dense memory",
        ),
        (
            (plan(kind="spline", parameters=layout(2, 4, 2)), bytes(480), bytes(64), bytes(42)),
            ValueError,
            "basis: expected 1344 bytes, got 42",
        ),
    ],
)
def test_wrong_bytes_are_refused(call, error, message):
    """Whatever stands before them."""
    with pytest.raises(error, match=message):
        _cpu.run([(plan(), bytes(480), bytes(48)), call], 1)


def test_gradients_take_the_gradient_of_the_output_first():
    """And complain about it by name."""
    by_map = gradients(grad_parameters=None)
    with pytest.raises(ValueError, match="grad_output: expected 1008 bytes, got 480"):
        _cpu.run([(by_map, bytes(480), bytes(480), bytes(48))], 1)
    with pytest.raises(ValueError, match="call: expected 4 or 5 entries, got 3"):
        _cpu.run([(by_map, bytes(480), bytes(48))], 1)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("differentiated", [False, True])
def test_bytes_are_computed_as_arrays(differentiated, seed):
    """To the same bits, whatever order of memory the bytes are in."""
    rng = np.random.default_rng(seed)
    crowd = [random_operands(rng) for _ in range(2)]
    on_bytes = OnBytes(_cpu, rng, crowd, gradients=differentiated)
    assert on_bytes.bits(int(rng.integers(1, 4))) == on_bytes.expected_bits()
