"""Messages to problems, and results to messages."""

import ml_dtypes
import numpy as np
import pytest
import torch

import stn_engine
from stn_client import Affine
from stn_client._calls import warp as warp_call
from stn_engine import Coordinates, Interpolation, Padding, Subgradient, WarpSpec
from stn_engine.adapters import on_bytes
from stn_proto import WireFormatError, get_tensor, split
from stn_proto.v1 import objective_pb2, tensor_pb2, warp_pb2
from stn_server.batching.work import Finished, Operation
from stn_server.config import LimitsConfig
from stn_server.costs import BASIS_READS, COORDINATE_READS
from stn_server.errors import InvalidRequestError, ResultTooLargeError
from stn_server.translate import (
    MAX_SIZES,
    MAX_TEMPLATE_BYTES,
    Translator,
)
from support.bad_requests import (
    BASES,
    CONTROL_POINTS,
    deep_warp_request,
    grid_gradients_request,
    grid_request,
    grid_warp_request,
    put,
    ramp,
    replace,
    spline_grid_request,
    spline_warp_request,
    theta,
    volume_warp_request,
    warp_gradients_request,
    warp_request,
)
from support.harness import decode


def encode(task, results, kind):
    """The reply for the bytes of results, and its payloads."""
    envelope, payloads = split(task.encode(Finished(results, 0.25, 0.5, 3)))
    reply = kind.FromString(envelope)
    assert (reply.timing.queue_s, reply.timing.compute_s) == (0.25, 0.5)
    assert reply.timing.batch_items == 3
    return reply, payloads


def test_equal_keys_are_one_object():
    """So that bundling the calls of a message compares none, whatever their sizes."""
    small, large, other = warp_request(), warp_request(), warp_request()
    large.output_size[:] = (7, 9)
    other.spec.padding = warp_pb2.PADDING_BORDER
    small, large, other = map(decode, (small, large, other))
    assert small.template is not large.template
    assert small.key is large.key
    assert small.key != other.key


def test_a_warp_is_what_the_message_says():
    """Operands, size, and what a batch must share."""
    request = warp_request()
    task = decode(request)
    problem, (feature_map, parameters), _ = task.job
    assert task.key.operation is Operation.WARP
    assert feature_map == ramp(2, 3, 4, 5).tobytes()
    assert parameters == theta().tobytes()
    assert problem.output_shape == (2, 3, 6, 7)
    assert (task.key.dtype, task.key.spec) == (torch.float32, (problem.spec, 2, None))
    assert task.cost.size_bytes == request.ByteSize() + 4 * 2 * 3 * 6 * 7
    assert task.cost.samples == 2 * 6 * 7


def test_what_a_message_leaves_out_has_its_default():
    """UNSPECIFIED is the documented value; the size is that of the map."""
    request = warp_request()
    request.ClearField("output_size")
    problem = decode(request).template.problem
    assert problem.spec == WarpSpec()
    assert problem.output_size == (4, 5)


def test_every_field_of_the_spec_arrives():
    """None of them at its default."""
    request = warp_request()
    request.spec.CopyFrom(
        warp_pb2.WarpSpec(
            interpolation=warp_pb2.INTERPOLATION_NEAREST,
            padding=warp_pb2.PADDING_FILL,
            fill=[1.0, 2.0, 3.0],
            coordinates=warp_pb2.COORDINATES_PIXEL,
            align_corners=True,
            subgradient=warp_pb2.SUBGRADIENT_ZERO,
            allow_nondeterministic=True,
        )
    )
    assert decode(request).template.problem.spec == WarpSpec(
        interpolation=Interpolation.NEAREST,
        padding=Padding.FILL,
        fill=(1.0, 2.0, 3.0),
        coordinates=Coordinates.PIXEL,
        align_corners=True,
        subgradient=Subgradient.ZERO,
        deterministic=False,
    )


def test_a_fill_arrives_to_the_last_bit():
    """The number of a channel is the sum of its double and what that leaves."""
    request = warp_request()
    request.spec.fill.extend([2.0**53, 0.5, 2.0**64])
    request.spec.fill_remainder.extend([1, 0, -1])
    fill = decode(request).template.problem.spec.fill
    assert fill == (2**53 + 1, 0.5, 2**64 - 1)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float32, torch.float32),
        (np.float64, torch.float64),
        (np.float16, torch.float16),
        (ml_dtypes.bfloat16, torch.bfloat16),
        (np.uint8, torch.uint8),
        (np.uint16, torch.uint16),
        (np.int16, torch.int16),
        (np.bool_, torch.bool),
        (np.int8, torch.int8),
        (np.int32, torch.int32),
        (np.uint32, torch.uint32),
        (np.int64, torch.int64),
        (np.uint64, torch.uint64),
    ],
    ids=str,
)
def test_every_type_of_the_contract_goes_both_ways(dtype, expected):
    """Bytes to tensor to bytes, unchanged."""
    values = ramp(2, 3, 4, 5, dtype=dtype)
    request = warp_request()
    request.ClearField("output_size")
    request.spec.interpolation = warp_pb2.INTERPOLATION_NEAREST
    replace(request, request.feature_map, values)
    task = decode(request)
    problem, (feature_map, _), _ = task.job
    assert task.key.dtype is problem.feature_map.dtype is expected
    assert feature_map == values.tobytes()
    reply, payloads = encode(task, [feature_map], warp_pb2.WarpReply)
    output = get_tensor(reply.output, payloads, "output")
    assert output.dtype == values.dtype
    assert output.tobytes() == values.tobytes()


def test_channels_last_stay_last():
    """The engine sees (N, C, H, W) in the bytes as they came, and the reply has them last."""
    request = warp_request()
    request.ClearField("output_size")
    values = ramp(2, 4, 5, 3)
    replace(request, request.feature_map, values)
    request.feature_map.layout = tensor_pb2.LAYOUT_NHWC
    task = decode(request)
    problem, (feature_map, _), _ = task.job
    assert problem.feature_map.shape == (2, 3, 4, 5)
    assert problem.feature_map.is_contiguous(memory_format=torch.channels_last)
    reply, payloads = encode(task, [feature_map], warp_pb2.WarpReply)
    assert reply.output.layout == tensor_pb2.LAYOUT_NHWC
    assert np.array_equal(get_tensor(reply.output, payloads, "output"), values)


def test_a_volume_is_what_the_message_says():
    """Its size is that of the grid, and it shares no batch with images."""
    task = decode(volume_warp_request())
    problem = task.template.problem
    assert problem.output_shape == (2, 3, 1, 6, 7)
    assert task.cost.samples == 2 * 6 * 7
    assert task.key.spec == (WarpSpec(), 3, None)
    assert task.key != decode(grid_warp_request()).key


@pytest.mark.parametrize(
    ("make", "values", "kind"),
    [(warp_request, ramp(2, 3, 2, 4, 5), "images"), (volume_warp_request, ramp(2, 3, 4, 5), "vol")],
)
def test_a_map_of_other_axes_than_its_transform_hears_of_them(make, values, kind):
    """A matrix of images before a volume, or the other way round."""
    request = make()
    replace(request, request.feature_map, values)
    match = rf"^feature_map: .*, got .*\. Add or remove axes: this transform reads {kind}"
    with pytest.raises(Exception, match=match):
        decode(request)


def test_channels_of_volumes_may_be_last_as_well():
    """Depth, height and width keep their order."""
    request = deep_warp_request()
    values = ramp(1, 2, 4, 5, 3)
    replace(request, request.feature_map, values)
    request.feature_map.layout = tensor_pb2.LAYOUT_NHWC
    task = decode(request)
    problem, (feature_map, _), _ = task.job
    assert problem.feature_map.shape == (1, 3, 2, 4, 5)
    assert problem.feature_map.is_contiguous(memory_format=torch.channels_last_3d)
    reply, payloads = encode(task, [feature_map], warp_pb2.WarpReply)
    assert np.array_equal(get_tensor(reply.output, payloads, "output"), values)


@pytest.mark.parametrize(
    ("method", "interpolation", "reads"),
    [
        ("Warp", warp_pb2.INTERPOLATION_NEAREST, 3),
        ("Warp", warp_pb2.INTERPOLATION_BILINEAR, 3 * 4),
        ("Warp", warp_pb2.INTERPOLATION_BICUBIC, 3 * 16),
        ("WarpGradients", warp_pb2.INTERPOLATION_BICUBIC, 3 * 16),
        ("GenerateGrid", None, 0),
        ("GenerateGridGradients", None, 0),
    ],
)
def test_work_is_what_is_read_and_what_it_takes_to_find_it(method, interpolation, reads):
    """Of three channels at each of 2 x 6 x 7 points."""
    request = BASES[method]()
    if interpolation is not None:
        request.spec.interpolation = interpolation
    assert decode(request, method).cost.work == 2 * 6 * 7 * (COORDINATE_READS + reads)


def test_a_point_of_a_volume_reads_along_three_axes():
    """Eight values of a channel."""
    assert decode(volume_warp_request()).cost.work == 2 * 6 * 7 * (COORDINATE_READS + 3 * 8)


def test_a_request_costs_all_its_bytes():
    """Also those that no tensor names: the message stays in memory as a whole."""
    request = warp_request()
    lean = decode(request).cost
    request.payloads.append(bytes(1000))
    request.alignment = bytes(100)
    assert decode(request).cost.size_bytes - lean.size_bytes > 1100


def test_operands_are_views_of_the_message():
    """What the SDK sends, aligned, is computed on where it was received."""
    message = warp_call(ramp(2, 3, 4, 5), Affine(theta()), None, {}).request
    _, operands, _ = Translator(LimitsConfig()).decode(Operation.WARP, message).job
    received = np.frombuffer(message, np.uint8)
    for operand in operands:
        array = np.frombuffer(operand, np.float32)
        assert np.shares_memory(array, received)
        assert array.flags.aligned


def test_a_sampling_grid_gives_the_output_size():
    """With or without the request repeating it."""
    request = grid_warp_request()
    assert decode(request).template.problem.output_shape == (2, 3, 6, 7)
    request.output_size[:] = (6, 7)
    assert decode(request).template.problem.output_shape == (2, 3, 6, 7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_points_of_a_sampling_grid_need_not_be_finite(value):
    """They read the fill value."""
    request = grid_warp_request()
    points = np.zeros((2, 6, 7, 2), np.float32)
    points[1, 2, 3] = value
    replace(request, request.transform.sampling_grid.grid, points)
    _, (_, grid), _ = decode(request).job
    assert grid == points.tobytes()


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ([], ("feature_map", "transform")),
        ([warp_pb2.OPERAND_TRANSFORM], ("transform",)),
        ([2, 1, 2], ("feature_map", "transform")),
    ],
)
def test_gradients_are_those_asked_for(needs, expected):
    """None named means all; what was not asked for is absent from the reply."""
    request = warp_gradients_request()
    request.needs[:] = needs
    task = decode(request, "WarpGradients")
    assert task.key.operation is Operation.WARP_GRADIENTS
    problem, (_, *operands), _ = task.job
    assert problem.needs == expected
    gradients = dict(zip(("feature_map", "transform"), operands, strict=True))
    sent = [gradients[name] for name in expected]
    reply, payloads = encode(task, sent, warp_pb2.WarpGradientsReply)
    for name, gradient in gradients.items():
        field = f"grad_{name}"
        assert reply.HasField(field) == (name in expected)
        if name in expected:
            assert get_tensor(getattr(reply, field), payloads, field).tobytes() == gradient


def test_gradients_through_a_sampling_grid_take_its_size():
    """And complain about grad_output, the only field that can be wrong."""
    request = warp_pb2.WarpGradientsRequest()
    put(request, request.feature_map, ramp(2, 3, 4, 5))
    put(request, request.transform.sampling_grid.grid, ramp(2, 6, 7, 2))
    put(request, request.grad_output, ramp(2, 3, 6, 7))
    assert decode(request, "WarpGradients").template.problem.warp.output_shape == (2, 3, 6, 7)
    replace(request, request.grad_output, ramp(2, 3, 7, 6))
    with pytest.raises(Exception, match=r"^grad_output: expected shape \(2, 3, 6, 7\), got"):
        decode(request, "WarpGradients")


def test_layouts_of_gradients_are_those_of_their_operands():
    """A gradient looks like what it belongs to; grad_output may differ."""
    request = warp_gradients_request()
    replace(request, request.feature_map, ramp(2, 4, 5, 3))
    request.feature_map.layout = tensor_pb2.LAYOUT_NHWC
    request.needs.append(warp_pb2.OPERAND_FEATURE_MAP)
    task = decode(request, "WarpGradients")
    _, (_, feature_map, _), _ = task.job
    reply, payloads = encode(task, [feature_map], warp_pb2.WarpGradientsReply)
    gradient = get_tensor(reply.grad_feature_map, payloads, "grad_feature_map")
    assert np.array_equal(gradient, ramp(2, 4, 5, 3))


def test_a_grid_is_what_the_message_says():
    """Spec and size of the generator alone."""
    request = grid_request()
    request.coordinates = warp_pb2.COORDINATES_PIXEL
    request.align_corners = True
    task = decode(request, "GenerateGrid")
    assert task.key.operation is Operation.GENERATE_GRID
    assert task.template.problem.output_shape == (2, 6, 7, 2)
    assert (task.key.dtype, task.key.spec) == (torch.float32, (Coordinates.PIXEL, True, 2, None))
    grid = ramp(2, 6, 7, 2)
    reply, payloads = encode(task, [grid.tobytes()], warp_pb2.GenerateGridReply)
    assert np.array_equal(get_tensor(reply.grid, payloads, "grid"), grid)


def test_grid_gradients_are_what_the_message_says():
    """The size is that of grad_grid; the result has the shape of theta."""
    task = decode(grid_gradients_request(), "GenerateGridGradients")
    assert task.key.operation is Operation.GENERATE_GRID_GRADIENTS
    problem, (grad_grid, parameters), _ = task.job
    assert problem.grid.output_size == (6, 7)
    assert grad_grid == ramp(2, 6, 7, 2).tobytes()
    reply, payloads = encode(task, [parameters], warp_pb2.GenerateGridGradientsReply)
    assert np.array_equal(get_tensor(reply.grad_transform, payloads, "grad_transform"), theta())


@pytest.mark.parametrize("method", BASES)
def test_the_results_of_the_engine_have_a_reply(method):
    """The way of a request, without queue and device thread."""
    task = decode(BASES[method](), method)
    (results,) = on_bytes.compute([task.job])
    module = objective_pb2 if method == "Objective" else warp_pb2
    reply, payloads = encode(task, results, getattr(module, f"{method}Reply"))
    tensors = [value for _, value in reply.ListFields() if isinstance(value, tensor_pb2.Tensor)]
    assert [tensor.payload for tensor in tensors] == list(range(len(payloads)))
    assert all(np.isfinite(get_tensor(tensor, payloads, "")).all() for tensor in tensors)


def test_a_plan_is_bound_to_the_values_of_each_request():
    """Equal envelopes share their validation, not their tensors."""
    translator = Translator(LimitsConfig())
    tasks = []
    for scale in (1, 2):
        request = warp_request()
        replace(request, request.feature_map, scale * ramp(2, 3, 4, 5))
        tasks.append(translator.decode(Operation.WARP, request.SerializeToString()))
    first, second = tasks
    assert first.template is second.template
    doubled, single = (np.frombuffer(task.job[1][0], np.float32) for task in (second, first))
    assert np.array_equal(doubled, 2 * single)


def test_a_kept_plan_still_checks_bytes_and_values():
    """What only the payloads can break is looked at in every request."""
    translator = Translator(LimitsConfig())
    translator.decode(Operation.WARP, warp_request().SerializeToString())
    short = warp_request()
    short.payloads[0] = short.payloads[0][:-1]
    with pytest.raises(WireFormatError, match=r"feature_map.payload: expected 480 bytes .* 479"):
        translator.decode(Operation.WARP, short.SerializeToString())
    infinite = warp_request()
    infinite.payloads[1] = np.full((2, 2, 3), np.inf, np.float32).tobytes()
    with pytest.raises(InvalidRequestError, match=r"theta: expected finite numbers, got inf at"):
        translator.decode(Operation.WARP, infinite.SerializeToString())


def test_templates_are_kept_for_a_bounded_number_of_frames():
    """Those of messages of equal size, the latest first; odd ones are read anew each time."""
    translator = Translator(LimitsConfig())

    def decoded(padding, alignment=b""):
        request = warp_request()
        request.spec.padding = padding
        request.alignment = alignment
        return translator.decode(Operation.WARP, request.SerializeToString())

    first = decoded(warp_pb2.PADDING_ZEROS)
    for padding in (warp_pb2.PADDING_BORDER, warp_pb2.PADDING_REFLECTION, warp_pb2.PADDING_FILL):
        assert decoded(padding).template is not first.template
    assert decoded(warp_pb2.PADDING_ZEROS).template is first.template
    odd = bytes(MAX_TEMPLATE_BYTES)
    assert (
        decoded(warp_pb2.PADDING_ZEROS, odd).template
        is not decoded(warp_pb2.PADDING_ZEROS, odd).template
    )
    for size in range(MAX_SIZES):
        decoded(warp_pb2.PADDING_ZEROS, bytes(1 + size))
    assert decoded(warp_pb2.PADDING_ZEROS).template is not first.template


def test_an_envelope_is_read_as_the_method_it_came_with():
    """Bytes that happen to be equal mean different things to different methods."""
    translator = Translator(LimitsConfig())
    message = warp_request().SerializeToString()
    translator.decode(Operation.WARP, message)
    with pytest.raises((InvalidRequestError, WireFormatError), match="expected"):
        translator.decode(Operation.GENERATE_GRID_GRADIENTS, message)


def test_a_spline_is_what_the_message_says():
    """Control points in pairs, regularization, and source points from a payload."""
    request = spline_warp_request()
    request.transform.thin_plate_spline.regularization = 0.25
    task = decode(request)
    problem, (_, points), _ = task.job
    assert isinstance(problem.transform, stn_engine.ThinPlateSpline)
    assert problem.transform.control_points == CONTROL_POINTS
    assert problem.transform.regularization == 0.25
    assert problem.transform.points.shape == (2, 5, 2)
    assert points == request.payloads[-1]


def test_a_spline_costs_its_basis():
    """Eight bytes for each control point and pixel, once for both items; sums for each of them."""
    plain, spline = warp_request(), spline_warp_request()
    task = decode(spline)
    pixels = 6 * 7
    assert task.cost.work == 2 * pixels * (COORDINATE_READS + 5 * BASIS_READS + 3 * 4)
    added_bytes = len(spline.SerializeToString()) - len(plain.SerializeToString())
    assert task.cost.size_bytes == decode(plain).cost.size_bytes + added_bytes + 8 * 5 * pixels
    grid = decode(spline_grid_request(), "GenerateGrid")
    assert grid.cost.work == 2 * pixels * (COORDINATE_READS + 5 * BASIS_READS)


def test_the_basis_of_a_spline_counts_as_output():
    """The very limit passes, one byte less does not; nor does one control point less."""
    enough = 4 * 2 * 3 * 6 * 7 + 8 * 5 * 6 * 7
    decode(spline_warp_request(), max_output_bytes=enough, max_control_points=5)
    with pytest.raises(ResultTooLargeError, match="at most 2687 bytes of output and basis, got"):
        decode(spline_warp_request(), max_output_bytes=enough - 1)
    match = r"^transform.thin_plate_spline.control_points: expected at most 4 points, got 5\. Ask"
    with pytest.raises(ResultTooLargeError, match=match):
        decode(spline_warp_request(), max_control_points=4)


def test_what_a_launch_has_in_common_is_part_of_the_key():
    """Splines of other control points cannot be laid end to end."""
    other, stiff, same = spline_warp_request(), spline_warp_request(), spline_warp_request()
    other.transform.thin_plate_spline.control_points[0] += 0.5
    stiff.transform.thin_plate_spline.regularization = 0.5
    same.output_size[:] = (9, 8)
    first = decode(spline_warp_request()).key
    assert decode(same).key == first
    assert first not in {decode(other).key, decode(stiff).key, decode(warp_request()).key}
