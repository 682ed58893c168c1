"""A model in Ray Serve that warps: by calls of this service, or by the engine in Ray's own batches.

Both deployments take a feature map of shape (C, H, W) and a matrix theta of shape (2, 3), both as
NumPy arrays, and return the warped map. `WarpByService` holds a connection and no numerics:
replicas of it are small, and all of them share the batches, the GPU and the quotas of the servers
behind `target`. `WarpInRay` has torch and the engine in every replica, and batches what comes to
that replica.

    pip install 'ray[serve]'
    stn-server &
    python client/examples/ray_serve.py --target 127.0.0.1:50051
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import serve

import stn_engine
from stn_client import Affine, AsyncClient

Array = NDArray[Any]
Warp: TypeAlias = Callable[[Array, Array], Awaitable[Array]]
CALLERS = 16


QUIET = {"enable_access_log": False}


@serve.deployment(max_ongoing_requests=256, logging_config=QUIET)
class WarpByService:
    """Calls the service.

    Args:
        target: Of the servers, as `dns:///stn:50051`.
    """

    def __init__(self, target: str) -> None:
        self._stn = AsyncClient(target)

    async def __call__(self, feature_map: Array, theta: Array) -> Array:
        """Warps one map."""
        warped: Array = (await self._stn.warp(feature_map[None], Affine(theta[None])))[0]
        return warped


@serve.deployment(max_ongoing_requests=256, logging_config=QUIET)
class WarpInRay:
    """Computes in the replica: maps of any sizes that come together are one call of the engine."""

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)  # type: ignore[untyped-decorator]
    async def __call__(self, feature_maps: Sequence[Array], thetas: Sequence[Array]) -> list[Array]:
        """Warps the maps of a batch."""
        problems = [
            stn_engine.WarpProblem(_tensor(one), stn_engine.transforms.Affine(_tensor(theta)))
            for one, theta in zip(feature_maps, thetas, strict=True)
        ]
        return [one[0].numpy() for one in stn_engine.warp_ragged(problems)]


def _tensor(array: Array) -> torch.Tensor:
    """A batch of one; Ray's arrays are read-only, which torch does not know."""
    return torch.from_numpy(array.copy())[None]


async def calls_per_s(warp: Warp, calls: int, side_px: int) -> float:
    """What CALLERS callers get together, each with one call at a time."""
    rng = np.random.default_rng(0)
    feature_map = rng.random((3, side_px, side_px), np.float32)
    theta = np.array([[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]])
    each = calls // CALLERS

    async def call(count: int) -> None:
        for _ in range(count):
            await warp(feature_map, theta)

    await asyncio.gather(*(call(2) for _ in range(CALLERS)))
    begun = time.perf_counter()
    await asyncio.gather(*(call(each) for _ in range(CALLERS)))
    return each * CALLERS / (time.perf_counter() - begun)


async def main() -> int:
    """Deploys both and prints what they do in a second, beside the service without Ray."""
    parser = argparse.ArgumentParser(description="A model in Ray Serve that warps.")
    parser.add_argument("--target", required=True, help="of a running server")
    parser.add_argument("--calls", type=int, default=1600)
    parser.add_argument("--side-px", type=int, default=224)
    options = parser.parse_args()
    async with AsyncClient(options.target) as stn:

        async def alone(feature_map: Array, theta: Array) -> Array:
            return await stn.warp(feature_map[None], Affine(theta[None]))

        ways: dict[str, Warp] = {"service alone": alone}
        ray.init(include_dashboard=False)
        deployments: dict[str, tuple[Any, tuple[str, ...]]] = {
            "service through Ray": (WarpByService, (options.target,)),
            "engine in Ray": (WarpInRay, ()),
        }
        for name, (deployment, arguments) in deployments.items():
            application = deployment.bind(*arguments)
            handle = serve.run(application, name=name.replace(" ", "-"), route_prefix=None)
            ways[name] = handle.remote
        for name, warp in ways.items():
            per_s = await calls_per_s(warp, options.calls, options.side_px)
            print(f"{name}: {per_s:.0f} calls/s")
    serve.shutdown()
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
