"""NumPy arrays to and from the wire: nothing is lost, little is copied, bad tensors are refused."""

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_proto import WireFormatError, get_tensor, join, put_tensor, split
from stn_proto.codec import DTYPES, data_type
from stn_proto.limits import MAX_ELEMENTS, MAX_RANK
from stn_proto.v1 import tensor_pb2
from stn_proto.v1.tensor_pb2 import DATA_TYPE_FLOAT32, DATA_TYPE_UINT8, Tensor
from stn_proto.v1.warp_pb2 import WarpRequest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CARRIED = {
    "<f4": tensor_pb2.DATA_TYPE_FLOAT32,
    ">f4": tensor_pb2.DATA_TYPE_FLOAT32,
    "<f8": tensor_pb2.DATA_TYPE_FLOAT64,
    ">f8": tensor_pb2.DATA_TYPE_FLOAT64,
    "<f2": tensor_pb2.DATA_TYPE_FLOAT16,
    ">f2": tensor_pb2.DATA_TYPE_FLOAT16,
    BFLOAT16: tensor_pb2.DATA_TYPE_BFLOAT16,
    "u1": tensor_pb2.DATA_TYPE_UINT8,
    "<u2": tensor_pb2.DATA_TYPE_UINT16,
    ">u2": tensor_pb2.DATA_TYPE_UINT16,
    "<i2": tensor_pb2.DATA_TYPE_INT16,
    "?": tensor_pb2.DATA_TYPE_BOOL,
    "i1": tensor_pb2.DATA_TYPE_INT8,
    "<i4": tensor_pb2.DATA_TYPE_INT32,
    "<u4": tensor_pb2.DATA_TYPE_UINT32,
    "<i8": tensor_pb2.DATA_TYPE_INT64,
    ">i8": tensor_pb2.DATA_TYPE_INT64,
    "<u8": tensor_pb2.DATA_TYPE_UINT64,
}
LAYOUTS_IN_MEMORY = {
    "row major": lambda array: array,
    "transposed": lambda array: np.asarray(array, order="F"),
    "reversed": lambda array: array[..., ::-1] if array.ndim else array,
    "every other": lambda array: np.repeat(array, 2, -1)[..., ::2] if array.ndim else array,
    "broadcast": lambda array: np.broadcast_to(array, (2, *array.shape)),
}


@st.composite
def arrays(draw):
    """Arrays of every type with arbitrary bits, NaNs included, in every layout in memory."""
    dtype = np.dtype(draw(st.sampled_from(sorted(CARRIED, key=str))))
    shape = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    content = generator.bytes(int(np.prod(shape)) * dtype.itemsize)
    array = np.frombuffer(content, dtype).reshape(shape)
    return draw(st.sampled_from(list(LAYOUTS_IN_MEMORY.values())))(array)


def over_the_wire(array):
    """What a receiver of one message with one tensor sees: (message, array)."""
    payloads = []
    tensor = put_tensor(array, payloads)
    envelope = WarpRequest(feature_map=tensor).SerializeToString()
    message = join(envelope, payloads)
    received, views = split(message)
    return message, get_tensor(WarpRequest.FromString(received).feature_map, views, "feature_map")


@given(arrays())
def test_codec_round_trip_keeps_shape_type_and_every_bit(array):
    """What arrives is the array sent, in native byte order."""
    _, received = over_the_wire(array)
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    assert received.shape == array.shape
    assert received.dtype == little_endian.dtype
    assert received.tobytes() == little_endian.tobytes()


@pytest.mark.parametrize(("dtype", "number"), CARRIED.items(), ids=str)
def test_codec_names_every_type_in_either_byte_order(dtype, number):
    """The data type of an array does not depend on its byte order."""
    assert data_type(dtype) == number


def test_codec_knows_every_data_type_of_the_contract():
    """No DataType but UNSPECIFIED lacks a NumPy type."""
    assert set(DTYPES) == {number for number in tensor_pb2.DataType.values() if number}


def test_codec_writes_little_endian_bytes():
    """1 and 2 as float32 are 3f800000 and 40000000, sent last byte first."""
    payloads = []
    tensor = put_tensor(np.array([[1, 2]], ">f4"), payloads)
    assert tensor == Tensor(data_type=DATA_TYPE_FLOAT32, shape=[1, 2], payload=0)
    assert bytes(payloads[0]) == bytes.fromhex("0000803f 00000040")


def test_codec_numbers_payloads_in_order():
    """Tensors of one message name their payloads 0, 1, and so on; index 0 is set, not absent."""
    payloads = []
    tensors = [put_tensor(np.zeros(size, "u1"), payloads) for size in (1, 2)]
    assert [tensor.payload for tensor in tensors] == [0, 1]
    assert tensors[0].WhichOneof("source") == "payload"
    assert [len(payload) for payload in payloads] == [1, 2]


def test_codec_carries_the_layout():
    """The layout of a feature map travels in its description."""
    tensor = put_tensor(np.zeros((1, 2, 2, 1), "u1"), [], layout=tensor_pb2.LAYOUT_NHWC)
    assert tensor.layout == tensor_pb2.LAYOUT_NHWC


def test_codec_sends_the_memory_of_a_contiguous_array():
    """A little-endian row-major array is not copied on its way into the payloads."""
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    payloads = []
    put_tensor(array, payloads)
    assert np.shares_memory(array, np.frombuffer(payloads[0], np.uint8))


def test_codec_reads_a_view_of_the_received_message():
    """An aligned payload is not copied, and cannot be written to."""
    message, received = over_the_wire(np.arange(6, dtype="f4"))
    assert np.shares_memory(received, np.frombuffer(message, np.uint8))
    assert not received.flags.writeable


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BFLOAT16], ids=str)
def test_codec_copies_a_misaligned_payload(dtype):
    """A payload at an odd address becomes an aligned array of the same values."""
    array = np.arange(5).astype(dtype)
    message = bytes(1) + array.tobytes()
    tensor = Tensor(data_type=data_type(dtype), shape=[5], payload=0)
    received = get_tensor(tensor, [memoryview(message)[1:]], "x")
    assert received.flags.aligned
    assert received.ctypes.data % received.dtype.alignment == 0
    assert not np.shares_memory(received, np.frombuffer(message, np.uint8))
    assert not received.flags.writeable
    np.testing.assert_array_equal(received, array)


def test_codec_keeps_the_message_alive():
    """The array stays valid when nobody else holds the message."""
    array = over_the_wire(np.full(1000, 7, "u1"))[1]
    np.testing.assert_array_equal(array, np.full(1000, 7))


FLOATS = {"data_type": DATA_TYPE_FLOAT32, "shape": [2], "payload": 0}
KNOWN_DATA_TYPES = (
    "one of DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT64, DATA_TYPE_FLOAT16, DATA_TYPE_BFLOAT16, "
    "DATA_TYPE_UINT8, DATA_TYPE_UINT16, DATA_TYPE_INT16, DATA_TYPE_BOOL, DATA_TYPE_INT8, "
    "DATA_TYPE_INT32, DATA_TYPE_UINT32, DATA_TYPE_INT64, DATA_TYPE_UINT64"
)
BROKEN_TENSORS = {
    "unspecified data type": (
        {**FLOATS, "data_type": 0},
        "x.data_type",
        KNOWN_DATA_TYPES,
        "DATA_TYPE_UNSPECIFIED",
    ),
    "unknown data type": (
        {**FLOATS, "data_type": 99},
        "x.data_type",
        KNOWN_DATA_TYPES,
        "99",
    ),
    "no payload": (
        {"data_type": DATA_TYPE_FLOAT32, "shape": [2]},
        "x.payload",
        "the index of a payload",
        "none",
    ),
    "index out of range": (
        {**FLOATS, "payload": 1},
        "x.payload",
        "the index of one of 1 payloads",
        "1",
    ),
    "largest index": (
        {**FLOATS, "payload": 2**32 - 1},
        "x.payload",
        "the index of one of 1 payloads",
        "4294967295",
    ),
    "negative size": ({**FLOATS, "shape": [2, -1]}, "x.shape", "sizes of at least 0", "(2, -1)"),
    "two negative sizes": (
        {**FLOATS, "shape": [-2, -1]},
        "x.shape",
        "sizes of at least 0",
        "(-2, -1)",
    ),
    "too many axes": ({**FLOATS, "shape": [1] * 9}, "x.shape", "at most 8 axes", "9"),
    "too many elements": (
        {**FLOATS, "shape": [2**40, 2]},
        "x.shape",
        "at most 1099511627776 elements",
        "(1099511627776, 2)",
    ),
    "too many elements beside a 0": (
        {**FLOATS, "shape": [2**63 - 1, 0, 2**63 - 1]},
        "x.shape",
        "at most 1099511627776 elements",
        "(9223372036854775807, 0, 9223372036854775807)",
    ),
    "too few bytes": (
        {**FLOATS, "shape": [3]},
        "x.payload",
        "12 bytes for shape (3,) of float32",
        "8 bytes",
    ),
    "too many bytes": (
        {**FLOATS, "data_type": DATA_TYPE_UINT8},
        "x.payload",
        "2 bytes for shape (2,) of uint8",
        "8 bytes",
    ),
    "bytes for no element": (
        {**FLOATS, "shape": [0]},
        "x.payload",
        "0 bytes for shape (0,) of float32",
        "8 bytes",
    ),
}


@pytest.mark.parametrize(
    ("fields", "field", "expected", "actual"), BROKEN_TENSORS.values(), ids=BROKEN_TENSORS
)
def test_codec_refuses_a_tensor_that_breaks_the_contract(fields, field, expected, actual):
    """The error says which field, what was expected and what was there, also as attributes."""
    message = f"{field}: expected {expected}, got {actual}."
    with pytest.raises(WireFormatError, match=re.escape(message)) as caught:
        get_tensor(Tensor(**fields), [memoryview(bytes(8))], "x")
    error = caught.value
    assert (error.field, error.expected, error.actual) == (field, expected, actual)


def test_codec_takes_the_largest_rank_and_refuses_none_below():
    """MAX_RANK axes pass; a 0 among the sizes leaves room for the largest others."""
    tensor = Tensor(data_type=DATA_TYPE_UINT8, shape=[1] * MAX_RANK, payload=0)
    assert get_tensor(tensor, [memoryview(b"x")], "x").shape == (1,) * MAX_RANK
    empty = Tensor(data_type=DATA_TYPE_UINT8, shape=[0, MAX_ELEMENTS], payload=0)
    assert get_tensor(empty, [memoryview(b"")], "x").shape == (0, MAX_ELEMENTS)


@pytest.mark.parametrize("dtype", ["c8", "O", "U3", "M8[s]", "f4,f4"])
def test_codec_refuses_a_dtype_that_the_wire_does_not_carry(dtype):
    """Unsupported arrays are refused before anything is appended to the payloads."""
    array, payloads = np.zeros(1, dtype), []
    with pytest.raises(WireFormatError, match=r"data_type: expected one of .*Cast first\.$") as e:
        put_tensor(array, payloads)
    assert e.value.actual == str(array.dtype)
    known = "float32, float64, float16, bfloat16, uint8, uint16, int16, bool, int8, int32"
    assert e.value.expected == f"one of {known}, uint32, int64, uint64"
    assert payloads == []


@given(
    st.binary(max_size=64),
    st.integers(0, 14),
    st.lists(st.integers(-1, 9), max_size=10),
    st.none() | st.integers(0, 3),
)
def test_codec_reads_an_arbitrary_tensor_or_raises(content, number, shape, index):
    """Whatever a description says, the answer is an array of that shape or a WireFormatError."""
    tensor = Tensor(data_type=number, shape=shape, payload=index)
    try:
        array = get_tensor(tensor, [memoryview(content)] * 2, "x")
    except WireFormatError as error:
        assert error.field in {"x.data_type", "x.shape", "x.payload"}  # noqa: PT017
    else:
        assert (array.shape, array.tobytes()) == (tuple(shape), content)
