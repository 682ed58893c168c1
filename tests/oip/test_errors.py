"""What is wrong with a request is told with the right status, in the words of its caller."""

import re

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from oip.calls import Peer, same_bits, tensor, tensors, theta
from stn_client import Affine

U = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
GOOD = {"feature_map": U, "theta": theta(1)}
INVALID, MISSING, UNKNOWN = "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"


def request(**changes):
    """A good request as a message."""
    made = service_pb2.ModelInferRequest(model_name="stn_warp_affine")
    for name, array in GOOD.items():
        made.inputs.add(name=name, datatype="FP32", shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def channel(server):
    return grpc.insecure_channel(server.target)


def spoiled(change):
    made = request()
    change(made)
    return made


def clear_second_raw(made):
    del made.raw_input_contents[1]


def mix(made):
    made.inputs[1].contents.fp32_contents.extend(theta(1).ravel().tolist())


def type_all(made):
    del made.raw_input_contents[:]
    for one, array in zip(made.inputs, GOOD.values(), strict=True):
        one.contents.fp32_contents.extend(array.ravel().tolist())


def type_wrongly(made):
    type_all(made)
    made.inputs[0].contents.ClearField("fp32_contents")
    made.inputs[0].contents.fp64_contents.extend(U.ravel().tolist())


def type_too_few(made):
    type_all(made)
    del made.inputs[0].contents.fp32_contents[-1]


def type_bytes(made):
    type_all(made)
    made.inputs[0].datatype = "UINT8"
    made.inputs[0].contents.ClearField("fp32_contents")
    made.inputs[0].contents.uint_contents.extend([256] * 24)


def type_halves(made):
    type_all(made)
    made.inputs[0].datatype = "FP16"


def type_text(made):
    type_all(made)
    made.inputs[0].datatype = "BYTES"
    made.inputs[0].contents.ClearField("fp32_contents")
    made.inputs[0].contents.bytes_contents.append(b"text")


def halve_theta(made):
    made.inputs[1].datatype = "FP16"
    made.raw_input_contents[1] = theta(1).astype(np.float16).tobytes()


def shaped(*sizes):
    def change(made):
        made.inputs[0].shape[:] = sizes

    return change


def typed(datatype):
    def change(made):
        made.inputs[0].datatype = datatype

    return change


def named(name):
    def change(made):
        made.inputs[1].name = name

    return change


def with_parameter(name, **value):
    def change(made):
        made.parameters[name].CopyFrom(service_pb2.InferParameter(**value))

    return change


def with_input_parameter(name, **value):
    def change(made):
        made.inputs[0].parameters[name].CopyFrom(service_pb2.InferParameter(**value))

    return change


def with_output(*names, parameter=""):
    def change(made):
        for name in names:
            one = made.outputs.add(name=name)
            if parameter:
                one.parameters[parameter].int64_param = 1

    return change


BAD = {
    "no model": (lambda made: made.ClearField("model_name"), MISSING, "model_name: "),
    "another version": (lambda made: setattr(made, "model_version", "3"), MISSING, "model_version"),
    "no inputs": (lambda made: made.ClearField("inputs"), INVALID, "inputs: expected feature_map,"),
    "unknown input": (named("phi"), INVALID, "inputs: expected feature_map, theta, each once"),
    "an input twice": (named("feature_map"), INVALID, "inputs: expected feature_map, theta, each"),
    "too few raw": (clear_second_raw, INVALID, "raw_input_contents: expected 2, one for every"),
    "too many raw": (
        lambda made: made.raw_input_contents.append(b""),
        INVALID,
        "raw_input_contents: expected 2, one for every input",
    ),
    "raw and typed": (mix, INVALID, "theta: expected one source of its elements"),
    "wrong typed field": (type_wrongly, INVALID, "feature_map.contents: expected fp32_contents"),
    "too few typed": (type_too_few, INVALID, "feature_map: expected 96 bytes for shape"),
    "typed out of range": (type_bytes, INVALID, "feature_map.contents: expected numbers from 0"),
    "typed halves": (type_halves, UNKNOWN, "feature_map.contents: expected one of raw_input_cont"),
    "bytes for no shape": (shaped(1, 2, 3, 5), INVALID, "feature_map: expected 120 bytes for sha"),
    "an axis less": (shaped(2, 3, 4), INVALID, r"feature_map: expected shape \(-1, -1, -1, -1\)"),
    "a negative axis": (shaped(1, 2, 3, -4), INVALID, "feature_map.shape: expected sizes of at l"),
    "an empty axis": (shaped(1, 2, 0, 4), INVALID, "feature_map.shape: expected sizes of at leas"),
    "beyond 63 bits": (shaped(1, 2**40, 2**40, 1), INVALID, "feature_map.shape: expected at mos"),
    "unknown type": (typed("FLOAT"), UNKNOWN, "feature_map.datatype: expected one of FP32, "),
    "labels between pixels": (
        typed("INT32"),
        INVALID,
        "feature_map: expected FP32 or .*, got INT32. Labels are read by inter",
    ),
    "text": (typed("BYTES"), UNKNOWN, "feature_map.datatype: expected one of FP32, "),
    "typed text": (type_text, UNKNOWN, "feature_map.datatype: .*, got another one, .* Use one of"),
    "theta of halves": (halve_theta, INVALID, "theta: expected FP32 or FP64, got FP16. Convert it"),
    "unknown output": (with_output("phi"), INVALID, "outputs: expected some of output, each once"),
    "an output twice": (with_output("output", "output"), INVALID, "outputs: expected some of outp"),
    "classification": (
        with_output("output", parameter="classification"),
        UNKNOWN,
        "output.parameters: expected one of shared_memory_region",
    ),
    "unknown parameter": (
        with_parameter("paddding", string_param="zeros"),
        UNKNOWN,
        "parameters: expected one of output_size, ",
    ),
    "sequence": (with_parameter("sequence_id", int64_param=3), UNKNOWN, "parameters: expected one"),
    "unknown word": (
        with_parameter("padding", string_param="mirror"),
        INVALID,
        "padding: expected one of zeros, border, reflection, fill, got another word",
    ),
    "number for a word": (
        with_parameter("padding", int64_param=1),
        INVALID,
        "padding: expected string_param, got int64_param",
    ),
    "word for a truth": (
        with_parameter("align_corners", string_param="true"),
        INVALID,
        "align_corners: expected bool_param, got string_param",
    ),
    "parameter without value": (
        with_parameter("align_corners"),
        INVALID,
        "align_corners: expected bool_param, got none",
    ),
    "fill not finite": (
        with_parameter("fill", double_param=float("nan")),
        INVALID,
        "fill: expected a finite number",
    ),
    "size no number": (
        with_parameter("output_size", string_param="4,x"),
        INVALID,
        "output_size: expected numbers with commas between them",
    ),
    "size beyond 63 bits": (
        with_parameter("output_size", string_param=f"4,{2**63}"),
        INVALID,
        "output_size: expected numbers with commas between them",
    ),
    "a number beyond 63 bits": (
        with_parameter("output_size", uint64_param=2**64 - 1),
        INVALID,
        "output_size: expected at most 9223372036854775807, got 18446744073709551615",
    ),
    "size with an underscore": (
        with_parameter("output_size", string_param="1_0,4"),
        INVALID,
        "output_size: expected numbers with commas between them",
    ),
    "digits of another script": (
        with_parameter("output_size", string_param="\N{ARABIC-INDIC DIGIT THREE},4"),
        INVALID,
        "output_size: expected numbers with commas between them",
    ),
    "fill no number": (
        with_parameter("fill", string_param="nan"),
        INVALID,
        "fill: expected numbers with commas between them",
    ),
    "one size": (
        with_parameter("output_size", int64_param=7),
        INVALID,
        "output_size: expected sizes",
    ),
    "size 0": (
        with_parameter("output_size", string_param="0,4"),
        INVALID,
        "output_size: expected sizes of at least 1",
    ),
    "result too large": (
        with_parameter("output_size", string_param="30000,30000"),
        INVALID,
        "output_size: expected at most",
    ),
    "layout": (
        with_parameter("layout", string_param="CHWN"),
        INVALID,
        "layout: expected one of NCHW, NHWC",
    ),
    "negative timeout": (
        with_parameter("timeout", int64_param=-1),
        INVALID,
        "timeout: expected at least 0, got -1",
    ),
    "priority in words": (
        with_parameter("priority", string_param="high"),
        INVALID,
        "priority: expected int64_param, got string_param",
    ),
    "region without size": (
        with_input_parameter("shared_memory_region", string_param="nobody"),
        INVALID,
        "feature_map.shared_memory_byte_size: expected int64_param, got none",
    ),
    "size without region": (
        with_input_parameter("shared_memory_byte_size", int64_param=4),
        INVALID,
        "feature_map.parameters: expected shared_memory_region beside the others",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_field(server, name):
    """And so it does as a message of a stream, which goes on."""
    change, status, match = BAD[name]
    with channel(server) as connected:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(connected)
        made = spoiled(change)
        with pytest.raises(grpc.RpcError, match=f"StatusCode.{status}") as refused:
            stub.ModelInfer(made, timeout=30)
        assert re.match(match, refused.value.details())
        made.id = "bad"
        failed, good = stub.ModelStreamInfer(iter([made, request(id="good")]), timeout=30)
    assert failed.error_message == refused.value.details()
    assert failed.infer_response.id == "bad"
    assert (good.error_message, good.infer_response.id) == ("", "good")


def test_typed_contents_are_as_good_as_raw_ones(server):
    """In the field of their datatype, for every datatype that has one."""
    sent = {
        "FP32": ("fp32_contents", U),
        "FP64": ("fp64_contents", U.astype(np.float64)),
        "UINT8": ("uint_contents", U.astype(np.uint8)),
    }
    with channel(server) as connected, Peer(server.target) as peer:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(connected)
        for datatype, (field, array) in sent.items():
            made = spoiled(type_all)
            contents = made.inputs[0].contents
            contents.ClearField("fp32_contents")
            getattr(contents, field).extend(array.ravel().tolist())
            made.inputs[0].datatype = datatype
            response = stub.ModelInfer(made)
            assert response.outputs[0].datatype == datatype
            expected = peer.stn.warp(array, Affine(theta(1)))
            assert response.raw_output_contents == [expected.tobytes()]


def test_bytes_that_are_no_request_are_refused(server):
    """And a field that nobody knows is not left out."""
    good = request().SerializeToString()
    unknown = good + b"\xa2\x06\x01x"  # field 100
    for message, status in (
        (b"\xff", INVALID),
        (good[:-1], INVALID),
        (b"\x0a\x02\xff\xfe" + good, INVALID),  # a name that is no text
        (unknown, UNKNOWN),
    ):
        with channel(server) as connected:
            infer = connected.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError, match=f"StatusCode.{status}"):
                infer(message)


def test_an_id_that_is_no_text_is_refused_each_time(server):
    """Also where the request is otherwise like an earlier one."""
    good = request(id="aa").SerializeToString()
    assert good.count(b"\x1a\x02aa") == 1
    with channel(server) as connected:
        infer = connected.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        infer(good)
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            infer(good.replace(b"\x1a\x02aa", b"\x1a\x02\xff\xfe"))
        answered = service_pb2.ModelInferResponse.FromString(
            infer(good.replace(b"\x1a\x02aa", b"\x1a\x02bb"))
        )
    assert answered.id == "bb"


def test_many_parameters_and_long_names_are_refused(server):
    with channel(server) as connected:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(connected)
        for made in (
            spoiled(lambda made: [made.parameters[str(n)].SetInParent() for n in range(2000)]),
            spoiled(with_parameter("n" * 100_000, bool_param=True)),
            spoiled(lambda made: setattr(made, "model_name", "n" * 100_000)),
            spoiled(shaped(*[1] * 10_000)),
            spoiled(lambda made: made.raw_input_contents.extend([b""] * 1000)),
            spoiled(lambda made: made.inputs.extend([made.inputs[0]] * 1000)),
        ):
            with pytest.raises(grpc.RpcError, match=r"INVALID_ARG|UNIMPLEMENTED|NOT_FOUND") as bad:
                stub.ModelInfer(made, timeout=30)
            assert len(bad.value.details()) <= 1000


def test_numbers_that_are_not_finite_go_through_maps_alone(server):
    odd = U.copy()
    odd[0, 0] = [np.inf, -np.inf, np.nan, 0]
    with Peer(server.target) as peer:
        expected = peer.stn.warp(odd, Affine(theta(1)))
        assert same_bits(peer.output("stn_warp_affine", GOOD | {"feature_map": odd}), expected)
        for value in (np.inf, np.nan):
            bad = GOOD | {"theta": np.full((1, 2, 3), value, np.float32)}
            with pytest.raises(InferenceServerException, match="theta: expected finite numbers"):
                peer.infer("stn_warp_affine", bad)


def test_control_points_are_sent_once(server):
    points = np.tile(np.float32([[[0, 0], [0, 1], [1, 0]]]), (2, 1, 1))
    arrays = {"feature_map": U, "points": points[:1]}
    with Peer(server.target) as peer:
        for control, match in (
            (points, "control_points: expected N = 1"),
            (points[:1, :2], "control_points: expected three or more"),
            (np.zeros((1, 3, 2)), "control_points: expected"),
            (points[:1].astype(np.float16), "control_points.datatype: expected one of FP64, FP32"),
        ):
            with pytest.raises(InferenceServerException, match=match):
                peer.infer("stn_warp_spline", arrays | {"control_points": control})


def test_an_error_is_told_by_the_client(server):
    """As its exception, with status and text."""
    with triton.InferenceServerClient(server.target) as client:
        inputs = [tensor("feature_map", U), *tensors(theta=theta(1)[:, :1])]
        with pytest.raises(InferenceServerException) as refused:
            client.infer("stn_warp_affine", inputs)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert refused.value.message() == (
        "theta: expected shape (-1, 2, 3), where -1 is any size, got (1, 1, 3). Reshape it."
    )
