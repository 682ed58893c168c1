"""Random calls, valid and as rude as callers can be.

Now and then one is large: a leak of small messages drowns in what a heap breathes anyhow.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter

import numpy as np

from stn_client import Affine
from stn_client._calls import generate_grid, warp, warp_gradients
from stress.ways import WAYS, ByGrpc, ByTtrpc
from support.bad_requests import BAD_REQUESTS, theta
from support.harness import METHOD_PREFIX
from support.oip import SERVICE, infer_request

SIZES = (1, 7, 16, 33, 64, 128)
KNOWN = random.Random(0)
SMALL_SHAPES = [(KNOWN.choice((1, 3)), *KNOWN.choices(SIZES, k=4)) for _ in range(20)]
"""Channels, sizes of a feature map and of its output. So few that the server, which keeps plans for
calls of known sizes, knows all after some hundred calls; what it takes from then on is a leak."""
LARGE_SIDES = {512: 0.2, 1024: 0.015, 1440: 0.005}
"""Of maps, and how often they come. Requests and replies have up to 16 MiB."""


def random_shape(rng: random.Random) -> tuple[int, ...]:
    """One of the small ones, or now and then a large one."""
    if rng.random() < sum(LARGE_SIDES.values()):
        (side,) = rng.choices(list(LARGE_SIDES), list(LARGE_SIDES.values()))
        return 1, side, side, side, side
    return rng.choice(SMALL_SHAPES)


def random_call(way: ByGrpc | ByTtrpc, rng: random.Random) -> tuple[str, bytes, object]:
    """A path, a request of random sizes, of images or of volumes of one plane, and what to hold."""
    channels, height, width, out_height, out_width = random_shape(rng)
    depth = rng.choice(((), (), (), (1,)))
    transform = Affine(np.eye(3, 4, dtype=np.float32)[None] if depth else theta(1))
    feature_map = np.full((1, channels, *depth, height, width), rng.random(), np.float32)
    size = *depth, out_height, out_width
    options = {"interpolation": rng.choice(("nearest", "bilinear"))}
    kind = rng.randrange(5)
    if kind == 0:
        bad = rng.choice(BAD_REQUESTS)
        return METHOD_PREFIX + bad.method, bad.message, None
    if kind == 1:
        grad_output = np.ones((1, channels, *size), np.float32)
        needs = ("feature_map", "transform")
        return of_sdk(way, warp_gradients(grad_output, feature_map, transform, needs, options))
    if kind == 2:
        return of_sdk(way, generate_grid(transform, size, {}))
    if kind == 3 and not depth and isinstance(way, ByGrpc):
        arrays = {"feature_map": feature_map, "theta": theta(1)}
        request = infer_request("stn_warp_affine", arrays)
        request.parameters["output_size"].string_param = f"{out_height},{out_width}"
        return f"/{SERVICE}/ModelInfer", request.SerializeToString(), None
    return of_sdk(way, warp(feature_map, transform, size, options))


def of_sdk(way: ByGrpc | ByTtrpc, call) -> tuple[str, bytes, object]:
    return call.method, *way.message_of(call)


async def rude_call(way: ByGrpc | ByTtrpc, rng: random.Random) -> str:
    """One call with a random deadline, maybe cancelled; how it ended."""
    path, message, held = random_call(way, rng)
    timeout_s = rng.choice((None, 30.0, 1.0, 0.05, 0.002))
    cancelled_after_s = rng.random() * 0.02 if rng.random() < 0.1 else None
    return await way.ended(path, message, timeout_s, cancelled_after_s, held)


async def traffic(target: str, count: int, concurrency: int, seed: int) -> Counter[str]:
    """So many rude calls, over some connections by either transport; how they ended."""
    ended: Counter[str] = Counter()
    numbers = iter(range(count))

    async def caller(name: int) -> None:
        rng = random.Random(f"{seed} {name}")
        async with WAYS[name % len(WAYS)].connected(target, name) as way:
            for _ in numbers:
                ended[await rude_call(way, rng)] += 1

    await asyncio.gather(*(caller(name) for name in range(concurrency)))
    gc.collect()  # gRPC ties cancelled calls into rings, and their connections stay open meanwhile
    return ended
