"""Measures the Open Inference Protocol beside `stn.v1`, on one server, in one run.

The same load process sends the same warps by both, as `bench_server` has it: turns in every round,
ratios within a round, then their median.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench import bench_server
from bench.server_cases import Case, Contender, Message, Quantity, ratio, write
from stn_proto.oip.inference_pb2 import ModelInferRequest

SHAPES = ((1, 1, 28, 28), (1, 3, 224, 224), (1, 3, 512, 512))
CONCURRENCIES = (1, 33)
BAR = 0.95


def main() -> None:
    bench_server.run(all_cases, "the Open Inference Protocol beside stn.v1")


def all_cases(folder: Path) -> Iterator[Case]:
    """Every case; their messages are written to a folder."""
    for shape in SHAPES:
        for concurrency in CONCURRENCIES:
            yield beside(folder, shape, concurrency)


def beside(folder: Path, shape, concurrency: int) -> Case:
    """The same warp by both protocols."""
    ours, theirs = [write(folder, shape)], [written(folder, shape)]
    contenders = {
        "stn.v1": Contender("service", ours, concurrency),
        "oip": Contender(
            "service",
            theirs,
            concurrency,
            method="/inference.GRPCInferenceService/ModelInfer",
        ),
    }
    quantities = [
        Quantity(
            "throughput, oip : stn.v1", partial(ratio, "requests_per_s", "oip", "stn.v1"), bar=BAR
        ),
        Quantity("processor time, oip : stn.v1", partial(ratio, "cpu_ms", "oip", "stn.v1")),
    ]
    name = f"{'x'.join(map(str, shape))} float32, {concurrency} at a time"
    return Case(name, contenders, quantities)


def written(folder: Path, shape) -> Message:
    """The bytes that a client of the Open Inference Protocol sends for the same warp."""
    path = folder / f"oip-{'x'.join(map(str, shape))}"
    request = ModelInferRequest(model_name="stn_warp_affine")
    feature_map = np.random.default_rng(0).random(shape, np.float32)
    theta = np.array([[[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]], np.float32)
    for name, array in (("feature_map", feature_map), ("theta", theta)):
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    path.write_bytes(request.SerializeToString())
    return Message(str(path), int(shape[-2] * shape[-1]))


if __name__ == "__main__":
    main()
