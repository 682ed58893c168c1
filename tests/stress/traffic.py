"""Random calls, valid and as rude as callers can be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import grpc
import grpc.aio
import numpy as np

from stn_client import Affine
from stn_client._calls import generate_grid, warp, warp_gradients
from support.bad_requests import BAD_REQUESTS, theta
from support.harness import METHOD_PREFIX

SIZES = (1, 7, 16, 33, 64, 128)


def random_message(rng: random.Random) -> tuple[str, bytes]:
    """A method, and a request of random sizes for it."""
    height, width, out_height, out_width = (rng.choice(SIZES) for _ in range(4))
    channels, transform = rng.choice((1, 3)), Affine(theta(1))
    feature_map = np.full((1, channels, height, width), rng.random(), np.float32)
    options = {"interpolation": rng.choice(("nearest", "bilinear"))}
    kind = rng.randrange(4)
    if kind == 0:
        bad = rng.choice(BAD_REQUESTS)
        return bad.method, bad.message
    if kind == 1:
        grad_output = np.ones((1, channels, out_height, out_width), np.float32)
        needs = ("feature_map", "transform")
        call = warp_gradients(grad_output, feature_map, transform, needs, options)
        return "WarpGradients", call.request
    if kind == 2:
        return "GenerateGrid", generate_grid(transform, (out_height, out_width), {}).request
    return "Warp", warp(feature_map, transform, (out_height, out_width), options).request


async def rude_call(channel: grpc.aio.Channel, rng: random.Random) -> str:
    """One call with a random deadline, maybe cancelled; how it ended."""
    method, message = random_message(rng)
    timeout = rng.choice((None, 30.0, 1.0, 0.05, 0.002))
    call = channel.unary_unary(METHOD_PREFIX + method)(message, timeout=timeout)
    if rng.random() < 0.1:
        asyncio.get_running_loop().call_later(rng.random() * 0.02, call.cancel)
    return (await asyncio.wait_for(call.code(), timeout=60)).name


async def traffic(target: str, count: int, concurrency: int, seed: int) -> Counter[str]:
    """So many rude calls, over some connections; how they ended."""
    ended: Counter[str] = Counter()
    numbers = iter(range(count))

    async def caller(name: int) -> None:
        rng = random.Random(f"{seed} {name}")
        async with grpc.aio.insecure_channel(target, [("grpc.channel_id", name)]) as channel:
            for _ in numbers:
                ended[await rude_call(channel, rng)] += 1

    await asyncio.gather(*(caller(name) for name in range(concurrency)))
    return ended
