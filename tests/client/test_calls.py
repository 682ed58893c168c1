"""Requests as protobuf reads them, and replies as arrays; no connection anywhere."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.text_format import Parse

from stn_client import (
    Affine,
    Capabilities,
    Device,
    Gradients,
    InvalidRequestError,
    Limits,
    ProtocolMismatchError,
    SamplingGrid,
    ServerInfo,
    ServerStatistics,
    ThinPlateSpline,
)
from stn_client import _calls as calls
from stn_proto.v1 import server_info_pb2, warp_pb2
from stn_proto.v1.tensor_pb2 import Tensor
from support.scripted_service import serialized

MAP = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
THETA = np.array([[[1, 0, 2], [0, 1, 3]]], np.float64)
NORMALIZED = {"coordinates": "normalized"}
"""Said, as THETA reads nothing of most maps, which is warned of otherwise."""
GRID = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)

MAP_TENSOR = "data_type: DATA_TYPE_FLOAT32 shape: [1, 2, 2, 3] layout: LAYOUT_NCHW"
THETA_TENSOR = "data_type: DATA_TYPE_FLOAT64 shape: [1, 2, 3]"
GRID_TENSOR = "data_type: DATA_TYPE_FLOAT32 shape: [1, 2, 2, 2]"
DEFAULT_SPEC = """
    interpolation: INTERPOLATION_BILINEAR padding: PADDING_ZEROS
    coordinates: COORDINATES_NORMALIZED subgradient: SUBGRADIENT_RIGHT
"""


def assert_request(call, method, kind, text, *payloads):
    """Holds a request against its text form and the arrays whose bytes it carries."""
    expected = Parse(text, kind(payloads=[array.tobytes() for array in payloads]))
    actual = kind.FromString(call.request)
    actual.ClearField("alignment")
    assert call.method == f"/stn.v1.SpatialTransformer/{method}"
    assert actual == expected


def test_calls_warp_by_default_asks_for_the_documented_options():
    """A warp without options says bilinear, zeros, normalized, right, NCHW, and no size."""
    assert_request(
        calls.warp(MAP, Affine(THETA), None, {}),
        "Warp",
        warp_pb2.WarpRequest,
        f"""
        feature_map {{ {MAP_TENSOR} payload: 0 }}
        transform {{ affine {{ theta {{ {THETA_TENSOR} payload: 1 }} }} }}
        spec {{ {DEFAULT_SPEC} }}
        """,
        MAP,
        THETA,
    )


def test_calls_warp_sends_every_option():
    """Options become the enumerations and values that the contract names."""
    options = {
        "interpolation": "nearest",
        "padding": "fill",
        "fill": [0.5, -1],
        "coordinates": "pixel",
        "align_corners": True,
        "subgradient": "zero",
        "deterministic": False,
        "layout": "NHWC",
    }
    assert_request(
        calls.warp(MAP, SamplingGrid(GRID), (4, 5), options),
        "Warp",
        warp_pb2.WarpRequest,
        f"""
        feature_map {{ {MAP_TENSOR.replace("NCHW", "NHWC")} payload: 0 }}
        transform {{ sampling_grid {{ grid {{ {GRID_TENSOR} payload: 1 }} }} }}
        output_size: [4, 5]
        spec {{
            interpolation: INTERPOLATION_NEAREST padding: PADDING_FILL fill: [0.5, -1]
            coordinates: COORDINATES_PIXEL align_corners: true subgradient: SUBGRADIENT_ZERO
            allow_nondeterministic: true
        }}
        """,
        MAP,
        GRID,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_calls_send_control_points_in_the_envelope(dtype):
    """As x and y in turn, beside the regularization; source points are a payload."""
    points = np.arange(6, dtype=dtype).reshape(1, 3, 2)
    spline = ThinPlateSpline(
        points, control_points=[(-1, 0.5), (1, 0), (0, 2)], regularization=np.float32(0.25)
    )
    sent = points if dtype == np.float32 else points.astype(np.float64)
    assert_request(
        calls.generate_grid(spline, [2, 3], {}),
        "GenerateGrid",
        warp_pb2.GenerateGridRequest,
        f"""
        transform {{ thin_plate_spline {{
            points {{ data_type: DATA_TYPE_{sent.dtype.name.upper()} shape: [1, 3, 2] payload: 0 }}
            control_points: [-1, 0.5, 1, 0, 0, 2] regularization: 0.25
        }} }}
        output_size: [2, 3] coordinates: COORDINATES_NORMALIZED
        """,
        sent,
    )


def test_calls_gradients_send_three_tensors_and_what_is_needed():
    """Gradients name the operands in the order asked for; both maps have the layout."""
    grad = MAP + 1
    assert_request(
        calls.warp_gradients(grad, MAP, Affine(THETA), ["transform", "feature_map"], {}),
        "WarpGradients",
        warp_pb2.WarpGradientsRequest,
        f"""
        grad_output {{ {MAP_TENSOR} payload: 0 }}
        feature_map {{ {MAP_TENSOR} payload: 1 }}
        transform {{ affine {{ theta {{ {THETA_TENSOR} payload: 2 }} }} }}
        spec {{ {DEFAULT_SPEC} }}
        needs: [OPERAND_TRANSFORM, OPERAND_FEATURE_MAP]
        """,
        grad,
        MAP,
        THETA,
    )


def test_calls_grid_sends_coordinates_and_corners():
    """A grid has a size and the options of the generator, and no sampler."""
    options = {"coordinates": "pixel", "align_corners": True}
    assert_request(
        calls.generate_grid(Affine(THETA), [2, 3], options),
        "GenerateGrid",
        warp_pb2.GenerateGridRequest,
        f"""
        transform {{ affine {{ theta {{ {THETA_TENSOR} payload: 0 }} }} }}
        output_size: [2, 3] coordinates: COORDINATES_PIXEL align_corners: true
        """,
        THETA,
    )


def test_calls_grid_gradients_send_the_gradient_first():
    """The gradient to the grid is payload 0; a grid has no layout."""
    assert_request(
        calls.generate_grid_gradients(GRID, Affine(THETA), {}),
        "GenerateGridGradients",
        warp_pb2.GenerateGridGradientsRequest,
        f"""
        grad_grid {{ {GRID_TENSOR} payload: 0 }}
        transform {{ affine {{ theta {{ {THETA_TENSOR} payload: 1 }} }} }}
        coordinates: COORDINATES_NORMALIZED
        """,
        GRID,
        THETA,
    )


def test_calls_server_info_is_an_empty_request_and_every_field_of_the_reply():
    """Enumerations become the words of options; a number of a newer contract is left out."""
    call = calls.server_info({})
    assert (call.method, call.request) == ("/stn.v1.SpatialTransformer/GetServerInfo", b"")
    reply = Parse(
        """
        name: "stn" version: "0.1.0" uptime_s: 2.5 ready: true
        devices { name: "cuda:0" backend: "cuda" }
        capabilities {
            dimensions: 2 data_types: [DATA_TYPE_FLOAT32, DATA_TYPE_UINT8]
            gradient_data_types: DATA_TYPE_BFLOAT16 parameter_data_types: DATA_TYPE_FLOAT64
            layouts: [LAYOUT_NCHW, LAYOUT_NHWC] interpolations: INTERPOLATION_BICUBIC
            paddings: [PADDING_ZEROS, 77] coordinates: COORDINATES_PIXEL
            subgradients: SUBGRADIENT_RIGHT transforms: ["affine", "flow"]
        }
        limits {
            max_message_bytes: 1 max_output_bytes: 2 max_output_samples: 3 max_dimension_px: 4
            max_admitted_items: 5 max_admitted_bytes: 6 max_payloads: 7 max_envelope_bytes: 8
            max_control_points: 9
        }
        statistics {
            queued_items: 1 running_items: 2 admitted_bytes: 3 finished_items: 4 failed_items: 5
            refused_items: 6 abandoned_items: 7 batches: 8 largest_batch_items: 9
        }
        instance_id: "ab" methods: ["Warp"]
        local_dir: "/run/stn"
        """,
        server_info_pb2.GetServerInfoReply(),
    )
    assert call.parse(reply.SerializeToString()) == ServerInfo(
        name="stn",
        version="0.1.0",
        uptime_s=2.5,
        ready=True,
        devices=(Device("cuda:0", "cuda"),),
        capabilities=(
            Capabilities(
                dimensions=2,
                data_types=("float32", "uint8"),
                gradient_data_types=("bfloat16",),
                parameter_data_types=("float64",),
                layouts=("NCHW", "NHWC"),
                interpolations=("bicubic",),
                paddings=("zeros",),
                coordinates=("pixel",),
                subgradients=("right",),
                transforms=("affine", "flow"),
            ),
        ),
        limits=Limits(
            max_message_bytes=1,
            max_output_bytes=2,
            max_output_samples=3,
            max_dimension_px=4,
            max_admitted_items=5,
            max_admitted_bytes=6,
            max_payloads=7,
            max_envelope_bytes=8,
            max_control_points=9,
        ),
        statistics=ServerStatistics(1, 2, 3, 4, 5, 6, 7, 8, 9),
        instance_id="ab",
        methods=("Warp",),
        local_dir="/run/stn",
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ServerInfo, server_info_pb2.GetServerInfoReply),
        (Capabilities, server_info_pb2.Capabilities),
        (Limits, server_info_pb2.Limits),
        (ServerStatistics, server_info_pb2.Statistics),
        (Device, server_info_pb2.Device),
    ],
)
def test_calls_server_info_has_all_that_the_contract_has(kind, message):
    """A field that is added to the contract is not forgotten here."""
    names = [field.name for field in dataclasses.fields(kind)]
    assert names == list(message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("fill", "sent"),
    [(2, [2]), (0.5, [0.5]), ([1, 2], [1, 2]), (np.float32(3), [3]), (np.arange(2), [0, 1])],
    ids=str,
)
def test_calls_fill_is_a_number_or_one_per_channel(fill, sent):
    """A scalar becomes one value, a sequence as many as it has."""
    call = calls.warp(MAP, Affine(THETA), None, {"padding": "fill", "fill": fill})
    assert warp_pb2.WarpRequest.FromString(call.request).spec.fill == sent


@pytest.mark.parametrize("need", ["feature_map", "transform"])
def test_calls_gradients_can_be_asked_for_one_by_one(need):
    """Only the named operand is on the wire."""
    call = calls.warp_gradients(MAP, MAP, Affine(THETA), (need,), {})
    sent = warp_pb2.WarpGradientsRequest.FromString(call.request).needs
    assert [warp_pb2.Operand.Name(number) for number in sent] == [f"OPERAND_{need.upper()}"]


@pytest.mark.parametrize("array", [MAP.tolist(), MAP[:, ::-1], MAP.astype(">f4")], ids=str)
def test_calls_take_whatever_numpy_takes(array):
    """Lists, strided and big-endian arrays are sent as little-endian rows."""
    call = calls.warp(array, Affine(THETA), None, {})
    expected = np.asarray(array)
    payload = warp_pb2.WarpRequest.FromString(call.request).payloads[0]
    assert payload == expected.astype(expected.dtype.newbyteorder("<")).tobytes()


def test_calls_whole_numbers_are_a_theta():
    """Parameters written as integers are sent as float64."""
    call = calls.warp(MAP, Affine([[[1, 0, 2], [0, 1, 3]]]), None, {})
    assert call.request == calls.warp(MAP, Affine(THETA), None, {}).request


@pytest.mark.parametrize("half", ["f2", ml_dtypes.bfloat16], ids=str)
def test_calls_half_precision_is_a_theta(half):
    """Parameters in half precision are sent as float32, with the values that they have."""
    theta = np.array([[[0.1, 0, 2], [0, 1, 3]]]).astype(half)
    call = calls.warp(MAP, Affine(theta), None, {})
    assert call.request == calls.warp(MAP, Affine(theta.astype(np.float32)), None, {}).request


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "u1", ml_dtypes.bfloat16], ids=str)
def test_calls_warp_reads_a_reply_of_any_dtype(dtype):
    """The output is an array with the values of the reply."""
    output = np.arange(4).reshape(1, 1, 2, 2).astype(dtype)
    result = calls.warp(MAP, Affine(THETA), None, {}).parse(
        serialized(warp_pb2.WarpReply, output=output)
    )
    assert result.dtype == output.dtype
    np.testing.assert_array_equal(result, output)


GRADIENTS = {"feature_map": MAP, "transform": THETA}


@pytest.mark.parametrize(
    "present", [(), ("feature_map",), ("transform",), ("transform", "feature_map")]
)
def test_calls_gradients_absent_from_the_reply_are_none(present):
    """Each gradient is the array of its field, whatever their order in the payloads."""
    arrays = {name: GRADIENTS[name] for name in present}
    call = calls.warp_gradients(MAP, MAP, Affine(THETA), ["transform"], {})
    fields = {f"grad_{name}": array for name, array in arrays.items()}
    gradients = call.parse(serialized(warp_pb2.WarpGradientsReply, **fields))
    assert isinstance(gradients, Gradients)
    for name in GRADIENTS:
        np.testing.assert_equal(getattr(gradients, name), arrays.get(name))


def test_calls_grids_and_their_gradients_are_read():
    """The grid calls return the one tensor of their reply."""
    call = calls.generate_grid(Affine(THETA), (2, 2), {})
    reply = serialized(warp_pb2.GenerateGridReply, grid=GRID)
    np.testing.assert_array_equal(call.parse(reply), GRID)
    call = calls.generate_grid_gradients(GRID, Affine(THETA), {})
    reply = serialized(warp_pb2.GenerateGridGradientsReply, grad_transform=THETA)
    np.testing.assert_array_equal(call.parse(reply), THETA)


PAYLOAD_MISSING = warp_pb2.WarpReply(output=Tensor(data_type="DATA_TYPE_UINT8", payload=0))
UNREADABLE = {
    "not framed": (b"\x7a\x05", "message: expected serialized protobuf"),
    "not protobuf": (b"\x0a\x01\xff", "Error parsing message"),
    "no output": (b"", "output.data_type: expected one of"),
    "no payload": (PAYLOAD_MISSING.SerializeToString(), "output.payload: expected the index"),
}


@pytest.mark.parametrize(("reply", "why"), UNREADABLE.values(), ids=UNREADABLE)
def test_calls_unreadable_replies_are_a_protocol_mismatch(reply, why):
    """The error names the method and what was unreadable, and keeps its cause."""
    call = calls.warp(MAP, Affine(THETA), None, {})
    with pytest.raises(ProtocolMismatchError, match=f"Warp: expected its reply, got .*{why}") as e:
        call.parse(reply)
    assert e.value.__cause__ is not None


CALLS_THAT_DIFFER = {
    "shape": (MAP[:, :, :1], Affine(THETA), None, {}),
    "dtype": (MAP.astype(np.float64), Affine(THETA), None, {}),
    "byte order": (MAP.astype(">f4"), Affine(THETA), None, {}),
    "dtype of the parameters": (MAP, Affine(THETA.astype(np.float32)), None, {}),
    "integers": (MAP, Affine(THETA.astype(np.int64)), None, {}),
    "transform": (MAP, SamplingGrid(GRID), None, {}),
    "size": (MAP, Affine(THETA), (4, 5), {}),
    "another size": (MAP, Affine(THETA), [5, 4], {}),
    "flag": (MAP, Affine(THETA), None, {"align_corners": True}),
    "name": (MAP, Affine(THETA), None, {"padding": "border"}),
    "fill": (MAP, Affine(THETA), None, {"padding": "fill", "fill": 0.0}),
    "negative fill": (MAP, Affine(THETA), None, {"padding": "fill", "fill": -0.0}),
    "strides": (MAP[..., ::-1], Affine(THETA), None, {}),
    "values": (MAP + 1, Affine(THETA / 2), None, {}),
}


def test_what_is_kept_of_a_call_is_used_for_calls_that_are_alike_alone():
    """In any order and again, every request is as protobuf itself reads it the first time."""
    first = {name: calls.warp(*what).request for name, what in CALLS_THAT_DIFFER.items()}
    assert len(set(first.values())) == len(first) - 1  # bytes of numbers are in one order
    for _ in range(2):
        for name, what in reversed(CALLS_THAT_DIFFER.items()):
            assert calls.warp(*what).request == first[name]
    for name, (feature_map, transform, *_) in CALLS_THAT_DIFFER.items():
        request = warp_pb2.WarpRequest.FromString(first[name])
        assert (
            request.payloads[0]
            == np.ascontiguousarray(feature_map, "<" + feature_map.dtype.str[1:]).tobytes()
        )
        assert len(request.payloads[1]) >= transform.parameters.nbytes


@pytest.mark.parametrize("size", [(2.0, 3.0), (True, 3)])
def test_what_was_right_once_lets_nothing_through_that_only_equals_it(size):
    """Numbers of other types are equal to Python, and no sizes."""
    calls.warp(MAP, Affine(THETA), (2, 3), {})
    with pytest.raises(InvalidRequestError, match="align_corners: expected True or False, got 1"):
        calls.warp(MAP, Affine(THETA), (2, 3), {"align_corners": 1})
    if size[0] is True:
        return
    with pytest.raises(InvalidRequestError, match="output_size: expected integers"):
        calls.warp(MAP, Affine(THETA), size, {})


def test_replies_of_another_form_are_read_anew():
    """The same call may be answered by another server, in another order of fields."""
    call = calls.warp(MAP, Affine(THETA), None, {})
    reply = warp_pb2.WarpReply(payloads=[MAP.tobytes()])
    reply.output.CopyFrom(Parse(MAP_TENSOR + " payload: 0", Tensor()))
    plain = reply.SerializeToString()
    reply.timing.compute_s = 1.0
    timed = reply.SerializeToString()
    for message in (plain, timed, plain, timed.replace(MAP.tobytes(), (2 * MAP).tobytes())):
        factor = 1 + (message not in {plain, timed})
        assert np.array_equal(call.parse(message), factor * MAP)
    reply.output.shape[3] = 4
    with pytest.raises(ProtocolMismatchError, match="Warp: expected its reply, got output"):
        call.parse(reply.SerializeToString())


@pytest.mark.parametrize("side_px", [8, 128], ids=["copied", "viewed"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ml_dtypes.bfloat16, "u1"])
def test_a_repeated_call_sends_the_bytes_of_its_map(dtype, side_px):
    """In the wire's order, row by row, whatever the strides, the byte order and the size."""
    numbers = np.arange(2 * side_px**2).reshape(1, 1, side_px, 2 * side_px) % 251
    wide = numbers.astype(dtype)
    for given in (wide, wide[..., ::2], wide.transpose(0, 1, 3, 2)):
        calls.warp(np.zeros_like(given), Affine(THETA), (2, 2), NORMALIZED)
        again = calls.warp(given, Affine(THETA), (2, 2), NORMALIZED)
        expected = given.astype(given.dtype.newbyteorder("<")).tobytes()
        assert [bytes(payload) for payload in again.payloads] == [expected, THETA.tobytes()]


def test_a_small_operand_of_a_repeated_call_is_read_when_the_call_is_made():
    """What is written to its array later concerns later calls; a large one is not copied."""
    small, large = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 64, 64), np.float32)
    for given, expected in ((small, 1), (large, 2)):
        calls.warp(given, Affine(THETA), None, NORMALIZED)
        again = calls.warp(given, Affine(THETA), None, NORMALIZED)
        given[...] = 2
        assert set(np.frombuffer(again.payloads[0], np.float32)) == {expected}
