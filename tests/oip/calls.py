"""Calls by NVIDIA's client, and the same by ours."""

import numpy as np
import tritonclient.grpc as triton

from stn_client import (
    Affine,
    Attention,
    Client,
    Flow,
    Homography,
    RetryPolicy,
    Rotation,
    SamplingGrid,
    Similarity,
    ThinPlateSpline,
    Translation,
)

CONTROL_POINTS = ((-0.9, -0.8), (0.8, -0.7), (0.9, 0.9), (-0.7, 0.8), (0.1, 0.0))
DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "int16": "INT16",
    "bool": "BOOL",
    "int8": "INT8",
    "int32": "INT32",
    "uint32": "UINT32",
    "int64": "INT64",
    "uint64": "UINT64",
}


def theta(count=2, dtype=np.float32):
    """So many affine transforms, all different and none trivial."""
    first = np.array([[0.8, 0.1, 0.05], [-0.2, 0.9, -0.1]], dtype)
    return np.stack([first * dtype(1 + n / 10) for n in range(count)])


def kinds(rng, count=2, size=(6, 7)):
    """One transform of every kind: the tail of its model's name, our object, its tensors."""
    square = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    homography = square + rng.uniform(-0.1, 0.1, (count, 3, 3)).astype(np.float32)
    moved = np.array(CONTROL_POINTS) + rng.uniform(-0.1, 0.1, (count, 5, 2))
    points = moved.astype(np.float32)
    displacement = rng.uniform(-0.2, 0.2, (count, *size, 2)).astype(np.float32)
    grid = rng.uniform(-1, 1, (count, *size, 2)).astype(np.float32)
    attention = rng.uniform(0.2, 0.8, (count, 3)).astype(np.float32)
    similarity = rng.uniform(0.2, 0.8, (count, 4)).astype(np.float32)
    translation = rng.uniform(-0.5, 0.5, (count, 2)).astype(np.float32)
    rotation = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    spline = {"points": points, "control_points": np.array([CONTROL_POINTS])}
    return [
        ("affine", Affine(theta(count)), {"theta": theta(count)}),
        ("homography", Homography(homography), {"theta": homography}),
        ("spline", ThinPlateSpline(points, control_points=CONTROL_POINTS), spline),
        ("flow", Flow(displacement), {"displacement": displacement}),
        ("sample", SamplingGrid(grid), {"grid": grid}),
        ("attention", Attention(attention), {"parameters": attention}),
        ("similarity", Similarity(similarity), {"parameters": similarity}),
        ("translation", Translation(translation), {"parameters": translation}),
        ("rotation", Rotation(rotation), {"parameters": rotation}),
    ]


KINDS = [name for name, _, _ in kinds(np.random.default_rng(0))]


def tensor(name, array):
    """An input with raw contents."""
    made = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
    made.set_data_from_numpy(array)
    return made


def tensors(**arrays):
    """Inputs by name."""
    return [tensor(name, array) for name, array in arrays.items()]


class Peer:
    """Both clients of one server."""

    def __init__(self, target):
        self.triton = triton.InferenceServerClient(target)
        self.stn = Client(target, retry=RetryPolicy(attempts=1))

    def infer(self, model, arrays, options=None, **more):
        """The result of a model."""
        return self.triton.infer(model, tensors(**arrays), parameters=options, **more)

    def output(self, model, arrays, options=None, **more):
        """The one output of a model."""
        return self.infer(model, arrays, options, **more).as_numpy("output")

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.triton.close()
        self.stn.close()


def same_bits(one, other):
    """Whether two arrays are the same, bit for bit."""
    one, other = np.asarray(one), np.asarray(other)
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
