"""Requests of the Open Inference Protocol, with the server's own messages."""

from stn_proto.oip.inference_pb2 import ModelInferRequest
from support.bad_requests import ramp, theta

SERVICE = "inference.GRPCInferenceService"
DATATYPES = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "uint8": "UINT8"}


def infer_request(model="stn_warp_affine", /, arrays=None, **fields):
    """Raw contents; without arrays (2, 3, 4, 5) is warped to the same size."""
    request = ModelInferRequest(model_name=model, **fields)
    if arrays is None:
        arrays = {"feature_map": ramp(2, 3, 4, 5), "theta": theta()}
    for name, array in arrays.items():
        datatype = DATATYPES[array.dtype.name]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def method(channel, name):
    """A method with one message and one reply, of bytes."""
    return channel.unary_unary(f"/{SERVICE}/{name}")


def infer(channel):
    """The method `ModelInfer`, of messages."""
    return method(channel, "ModelInfer")


def stream_infer(channel):
    """The method `ModelStreamInfer`, of messages."""
    return channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
