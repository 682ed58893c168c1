"""The service beside a Triton Inference Server that warps by torch in its Python backend.

Triton runs elsewhere, with a model `stn_warp`: `x` (N, C, H, W) and `theta` (N, 2, 3) in, `y` out
by `affine_grid` and `grid_sample`, batched dynamically. Both are called from this process by gRPC
with bytes that are made once, so that no client's own work counts; the service by its contract and
by the Open Inference Protocol, in which it is asked the same question as Triton. Small calls of one
process are also made through the SDK, which does more: its own work counts. Contenders take turns
in every round; ratios are taken within a round, then their median.

    python -m bench.bench_triton --triton HOST:PORT [--rounds 5] [--seconds 1] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc.aio
import numpy as np
import uvloop

from bench import report
from bench.bench_many import server
from stn_client import Affine, AsyncClient
from stn_client._calls import warp
from stn_proto.oip.inference_pb2 import ModelInferRequest

INFER = "/inference.GRPCInferenceService/ModelInfer"
THETA = np.array([[[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]], np.float32)
CALLERS = 33
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for every turn
]

Turn = Callable[[float], Awaitable[float]]
"""Seconds -> calls a second."""


@dataclass(frozen=True)
class Case:
    """Contenders that do the same; bars are for the ratio to `triton`."""

    name: str
    contenders: dict[str, Turn]
    bars: dict[str, float]


def infer(model: str, names: tuple[str, str], shape: tuple[int, ...]) -> bytes:
    """A request of the Open Inference Protocol for a warp of a map of this shape."""
    request = ModelInferRequest(model_name=model)
    for name, array in zip(names, (feature_map(shape), THETA), strict=True):
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


def feature_map(shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0).random(shape, np.float32)


async def messages(target: str, method: str, message: bytes, callers: int, seconds: float) -> float:
    """Calls a second of so many callers who each send a message and wait for the reply."""
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
        call = channel.unary_unary(method)
        return await rate(lambda: call(message), callers, seconds)


async def through_sdk(target: str, seconds: float, **settings) -> float:
    """The same of small maps by the SDK."""
    async with AsyncClient(target, **settings) as stn:
        u = feature_map((1, 1, 28, 28))
        return await rate(lambda: stn.warp(u, Affine(THETA)), CALLERS, seconds)


async def rate(call: Callable[[], Awaitable[object]], callers: int, seconds: float) -> float:
    """Calls a second of callers of one event loop."""
    await call()
    done, began = 0, time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await call()
            done += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - began)


def cases(ours: str, triton: str) -> list[Case]:
    """The rows of the table."""
    found = []
    for shape, callers, bar in (
        ((1, 1, 28, 28), 1, 3.0),
        ((1, 1, 28, 28), CALLERS, 1.2),
        ((1, 3, 224, 224), 1, 3.0),
        ((1, 3, 224, 224), CALLERS, 2.0),
        ((1, 3, 512, 512), 1, None),
        ((1, 3, 512, 512), CALLERS, 2.0),
    ):
        theirs = infer("stn_warp", ("x", "theta"), shape)
        same = infer("stn_warp_affine", ("feature_map", "theta"), shape)
        own = warp(feature_map(shape), Affine(THETA), None, {})
        contenders = {
            "triton": partial(messages, triton, INFER, theirs, callers),
            "oip": partial(messages, ours, INFER, same, callers),
            "stn.v1": partial(messages, ours, own.method, own.request, callers),
        }
        name = f"{'x'.join(map(str, shape))}, {callers} at a time"
        found.append(Case(name, contenders, {} if bar is None else {"oip": bar}))
    theirs = infer("stn_warp", ("x", "theta"), (1, 1, 28, 28))
    contenders = {
        "triton": partial(messages, triton, INFER, theirs, CALLERS),
        "SDK, local, one a message": partial(through_sdk, ours, packing=False),
        "SDK, gRPC": partial(through_sdk, ours, local=False),
        "SDK, local": partial(through_sdk, ours),
    }
    bars = {"SDK, local, one a message": 2.5, "SDK, gRPC": 5.0}
    found.append(Case(f"1x1x28x28, {CALLERS} tasks with the SDK", contenders, bars))
    return found


def measure(case: Case, rounds: int, seconds: float) -> dict:
    """Medians over rounds that take turns."""
    seen: dict[str, list[float]] = {name: [] for name in case.contenders}
    for number in range(rounds):
        for name in list(case.contenders)[:: 1 if number % 2 == 0 else -1]:
            seen[name].append(uvloop.run(case.contenders[name](seconds)))
    times = {
        name: statistics.median(a / b for a, b in zip(rates, seen["triton"], strict=True))
        for name, rates in seen.items()
        if name != "triton"
    }
    rates = {name: statistics.median(values) for name, values in seen.items()}
    return {"case": case.name, "calls_per_s": rates, "times": times, "bars": case.bars}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triton", required=True, help="HOST:PORT of its gRPC")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn in a round")
    parser.add_argument("--only", default="", help="a pattern for the names of cases")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    cells = []
    with server() as ours:
        for case in cases(ours, options.triton):
            if re.search(options.only, case.name):
                cells.append(measure(case, options.rounds, options.seconds))
                print(f"\n{case.name}: Triton {cells[-1]['calls_per_s']['triton']:.0f} calls/s")
                for name, times in cells[-1]["times"].items():
                    bar = case.bars.get(name)
                    verdict = "" if bar is None else f"   bar {bar:g} "
                    verdict += "" if bar is None else "met" if times >= bar else "missed"
                    print(f"  {name:28}{times:6.2f} x{verdict}", flush=True)
    if options.output:
        packages = ("grpcio", "numpy", "protobuf", "torch")
        report.write(options.output, "triton", packages, rounds=options.rounds, cells=cells)


if __name__ == "__main__":
    main()
