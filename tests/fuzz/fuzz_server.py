"""Sends a server what no client would send; `make fuzz-server` does it a million times.

Raw bytes, valid messages with bytes changed, and valid messages with fields changed, for methods of
both services and by either transport; by the local one also messages whose tensors lie in an arena.
Each must be answered in time, and never with INTERNAL; the server must be ready after. A failing
input is written to `build/`, with the method in its name.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import uvloop

from stn_client import Affine
from stn_client._calls import warp, warp_gradients
from stn_client.local import LocalServer
from stn_proto.oip.inference_pb2 import (
    ModelInferRequest,
    ModelStatisticsRequest,
    ModelStreamInferResponse,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
)
from stn_proto.v1 import resident_pb2, tensor_pb2
from stress.process import Watched
from stress.report import Report
from stress.ways import WAYS, ByGrpc, ByTtrpc
from support.bad_requests import (
    BAD_REQUESTS,
    BASES,
    deep_warp_request,
    put,
    ramp,
    theta,
    volume_warp_request,
)
from support.many import compute_many
from support.oip import SERVICE, infer_request

SEVERAL = infer_request("stn_warp_affine", {"feature_map": ramp(1, 1, 3, 4), "theta": theta(1)})
OIP = {
    "ModelInfer": infer_request,
    "ModelStreamInfer": lambda: ModelInferRequest.FromString(SEVERAL.SerializeToString()),
    "ModelStatistics": ModelStatisticsRequest,
    "SystemSharedMemoryRegister": SystemSharedMemoryRegisterRequest,
    "SystemSharedMemoryUnregister": SystemSharedMemoryUnregisterRequest,
}


def many_request():
    """One call of every method that computes, in one message."""
    return compute_many(*((method, make()) for method, make in BASES.items()))


def upload_request():
    """The first half of a tensor that stays on the server."""
    request = resident_pb2.UploadRequest(data_type=tensor_pb2.DATA_TYPE_FLOAT32, byte_count=120)
    put(request, request.piece, ramp(60, dtype=np.uint8))
    return request


NOBODYS = tensor_pb2.ResidentRef(handle=bytes(16))
RESIDENT = {
    "Upload": upload_request,
    "Download": lambda: resident_pb2.DownloadRequest(resident=NOBODYS, byte_count=60),
    "Release": lambda: resident_pb2.ReleaseRequest(residents=[NOBODYS] * 2),
}
OF_STN = {**BASES, "ComputeMany": many_request, **RESIDENT}
METHODS = (*OF_STN, "GetServerInfo", *OIP)
GOOD = [*OF_STN.items(), ("Warp", volume_warp_request), ("Warp", deep_warp_request), *OIP.items()]
SEEDS = [(name, make().SerializeToString()) for name, make in GOOD]
SEEDS += [(bad.method, bad.message) for bad in BAD_REQUESTS if len(bad.message) < 10_000]
CONCURRENCY = 64
LONGEST_CALL_S = 60.0
MAP = np.ones((1, 2, 64, 64), np.float32)
TRANSFORM = Affine(np.eye(2, 3, dtype=np.float32)[None])
LARGE = (warp(MAP, TRANSFORM, None, {}), warp_gradients(MAP, MAP, TRANSFORM, ["transform"], {}))
"""Calls whose tensors lie in arenas where there are some."""
ENDS = {"OK", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "NOT_FOUND"}
NUMBERS = (0, 1, -1, 2, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
TIMEOUT = "timeout"
"""A parameter that asks for DEADLINE_EXCEEDED where a request waits longer than so many
microseconds, as it may behind others; without it, that code is a call that was late."""
WORDS = ("", "output_size", "padding", "zeros", "2,3", "shared_memory_region", TIMEOUT)
FLAGS = (
    "--oip-shared-memory=true",
    "--log-level=error",
    "--limits-max-output-bytes=1048576",
    "--limits-max-output-samples=65536",
)


def random_input(rng: random.Random) -> tuple[str, bytes]:
    """A method and what to send to it."""
    make = rng.choice((raw_bytes, changed_bytes, changed_bytes, changed_fields, changed_fields))
    return make(rng)


def raw_bytes(rng: random.Random) -> tuple[str, bytes]:
    return rng.choice(METHODS), rng.randbytes(rng.randrange(200))


def changed_bytes(rng: random.Random) -> tuple[str, bytes]:
    """A valid message of this or another method: bytes flipped, cut, repeated, put in."""
    method, message = rng.choice(SEEDS)
    return rng.choice((method, method, method, rng.choice(METHODS))), changed(rng, message)


def changed(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(1, 8)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        change = rng.randrange(5)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            del data[at : min(end, at + 16)]
        elif change == 2:
            data[at:at] = data[at : min(end, at + 64)]
        elif change == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 12))
        else:
            data[at:] = rng.choice(SEEDS)[1][-rng.randrange(1, 64) :]
    return bytes(data)


def changed_references(rng: random.Random, way: ByTtrpc) -> tuple[str, bytes, object]:
    """A message whose tensors lie in an arena, changed, and what holds them there."""
    call = rng.choice(LARGE)
    message, held = way.message_of(call)
    return call.method.rpartition("/")[2], changed(rng, message), held


def changed_fields(rng: random.Random) -> tuple[str, bytes]:
    """A message that is protobuf, with odd values in some of its fields."""
    method, make = rng.choice(GOOD)
    request = make()
    for _ in range(rng.randint(1, 3)):
        change_field(rng, request)
    return method, request.SerializeToString()


def change_field(rng: random.Random, message) -> None:
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None:
        part = getattr(message, field.name)
        if field.message_type.GetOptions().map_entry:
            change_field(rng, part[rng.choice(WORDS)])
            return
        change_field(rng, part.add() if field.is_repeated else part)
        return
    value = random_value(rng, field)
    try:
        if field.is_repeated:
            values = getattr(message, field.name)
            values[:] = [*values, value][-rng.randint(0, 9) :]
        else:
            setattr(message, field.name, value)
    except ValueError:
        pass  # out of the field's range


def random_value(rng: random.Random, field):
    if field.cpp_type in {field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT}:
        return rng.choice((0.0, -1.5, 1e300, float("nan"), float("inf")))
    if field.type == field.TYPE_STRING:
        return rng.choice(WORDS)
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.randrange(100))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return rng.choice(NUMBERS)


async def end_of(way: ByGrpc | ByTtrpc, method: str, message: bytes, held: object) -> str:
    """How a call ends; a stream of one message ends well, as what is wrong is a message, too."""
    path = f"/{SERVICE if method in OIP else 'stn.v1.SpatialTransformer'}/{method}"
    if method != "ModelStreamInfer" or isinstance(way, ByTtrpc):  # which has no streams
        code, _ = await way.answered(path, message, LONGEST_CALL_S, held=held)
        return code
    call = way.channel.stream_stream(path)(timeout=LONGEST_CALL_S)
    await call.write(message)
    await call.done_writing()
    response = ModelStreamInferResponse.FromString(await call.read())
    internal = response.error_message.startswith("server: ")
    return "INTERNAL" if internal else (await call.code()).name


async def fuzz(inputs: int, seed: int, folder: Path) -> Report:
    report, ended, numbers = Report(), Counter(), count()
    with LocalServer(*FLAGS) as running:
        server = Watched(running.process, running.target)

        async def caller(name: int) -> None:
            async with WAYS[name % len(WAYS)].connected(running.target, name) as way:
                while (number := next(numbers)) < inputs and not report.broken:
                    rng = random.Random(f"{seed} {number}")
                    is_placed = isinstance(way, ByTtrpc) and rng.random() < 0.25
                    method, message, held = (
                        changed_references(rng, way) if is_placed else (*random_input(rng), None)
                    )
                    code = await end_of(way, method, message, held)
                    ended[code] += 1
                    wanted = code == "DEADLINE_EXCEEDED" and TIMEOUT.encode() in message
                    if code not in ENDS and not wanted:
                        (folder / f"fuzz-{method}-{code}-{seed}-{number}").write_bytes(message)
                        report.promise(f"{method}: {code} for input {number}", holds=False)

        await asyncio.gather(*(caller(name) for name in range(CONCURRENCY)))
        left, serving = server.settled(), server.is_serving()
    report.note(inputs=ended.total(), seed=seed, ended=dict(ended))
    report.promise("valid and invalid inputs were met", len(ended) >= 3)
    report.promise("nothing is left inside", left.admitted_bytes + left.queued_items == 0)
    report.promise("the server is ready", serving)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build"), help="for failing inputs")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    uvloop.run(fuzz(options.inputs, options.seed, options.folder)).finish()


if __name__ == "__main__":
    main()
