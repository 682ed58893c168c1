"""First light: a real server, a real photograph, its gradients, and two photographs aligned.

Starts the server as its own process (or uses the one given by --target), then

1. warps a photograph by RPC,
2. asks for the gradients by RPC and compares them with local PyTorch autograd,
3. leaves a photograph on the server and warps it again and again by its handle,
4. aligns two photographs that stay on the server, every step one objective by RPC,
5. sends many small calls at once, which go together in few messages, and shows how they were
   batched.

Writes pictures to --output. Exits with 0 only if the gradients agree and the photographs align.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import skimage.color
import skimage.data
import skimage.transform
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - as everyone calls it
from tqdm import tqdm

from stn_client import Affine, AsyncClient, Client
from stn_client.local import LocalServer
from stn_client.registration import Step, align

Array = NDArray[Any]

LARGEST_DIFFERENCE: dict[type[np.floating[Any]], float] = {
    np.float32: 4 * 2.0**-24 * 512,
    np.float64: 4 * 2.0**-53 * 512,
}
"""Of gradients from local autograd, relative to the largest: the rounding of four operations on
coordinates of up to 512 px moves a sample, and so a weight, by as much."""

LARGEST_ERROR_PX = 0.5
SIDE_PX = 320
BURST_CALLS = 2000


def main() -> int:
    """Runs the five parts; returns the exit code."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    with _server(options) as (target, metrics), Client(target) as stn:
        engine = stn.server_info().devices[0].backend
        print(f"Server at {target}: {engine} engine on the CPU. Metrics at {metrics or '-'}")
        differences = [
            (show_gradients(stn, options.output, dtype), bound)
            for dtype, bound in LARGEST_DIFFERENCE.items()
        ]
        show_residents(stn)
        error_px = show_alignment(stn, options.output)
        show_batching(stn, target, metrics)
        print(f"Pictures in {options.output}/")
    if not all(found <= bound for found, bound in [*differences, (error_px, LARGEST_ERROR_PX)]):
        print("FAILED: a number above is out of bounds.", file=sys.stderr)
        return 1
    return 0


def show_gradients(stn: Client, output: Path, dtype: type[np.floating[Any]]) -> float:
    """Warps a photograph and differentiates a loss; returns the difference to local autograd."""
    photo = skimage.data.astronaut().astype(dtype).transpose(2, 0, 1)[None] / 255
    theta: Array = _rotation(30.0, scale=0.8).astype(dtype)
    started = time.perf_counter()
    warped = stn.warp(photo, Affine(theta))
    gradients = stn.warp_gradients(warped, photo, Affine(theta))
    duration_s = time.perf_counter() - started
    expected = _local_gradients(photo, theta)
    found = (gradients.feature_map, gradients.transform)
    difference = max(
        float(np.abs(np.asarray(f) - e).max() / np.abs(e).max())
        for f, e in zip(found, expected, strict=True)
    )
    print(
        f"Warped a photo of {photo.shape[2]} x {photo.shape[3]} in {dtype.__name__} and "
        f"differentiated it in {duration_s * 1e3:.0f} ms; largest relative difference from "
        f"local autograd: {difference:.1e} (bound {LARGEST_DIFFERENCE[dtype]:.1e})"
    )
    grad_u, grad_theta = map(np.asarray, found)
    panels = {
        "feature map U": _picture(photo),
        "output V (30°, 0.8)": _picture(warped),
        "|∂L/∂U| for L = ½ Σ V²;  ∂L/∂θ = " + np.array2string(grad_theta[0], precision=1): np.abs(
            grad_u[0]
        ).mean(0),
    }
    _save(output / "gradients.png", panels)
    return difference


def show_residents(stn: Client) -> None:
    """Uploads a photograph, warps it by many transforms, and tells the bytes that were sent."""
    photo = skimage.data.astronaut().astype(np.float32).transpose(2, 0, 1)[None] / 255
    before = stn.stats.operands_bytes
    resident = stn.upload(photo)
    for angle_deg in range(0, 360, 4):
        stn.warp(resident, Affine(_rotation(angle_deg)), output_size=(64, 64))
    sent_bytes = stn.stats.operands_bytes - before
    print(
        f"Warped a photo of {photo.nbytes / 1e6:.1f} MB 90 times with {sent_bytes / 1e6:.1f} MB "
        "of operands sent: it stays on the server"
    )
    stn.release(resident)


def show_alignment(stn: Client, output: Path) -> float:
    """Aligns two photographs; returns the largest error of a corner in pixels."""
    fixed, moving, truth = _two_photographs()
    steps: list[Step] = []
    progress = tqdm(align(stn, fixed, moving), desc="Aligning", unit=" steps", mininterval=0.5)
    for step in progress:
        steps.append(step)
        progress.set_postfix_str(
            f"{step.stage}, level {step.level}, loss {step.loss:.4f}", refresh=False
        )
    error_px = _corner_error_px(steps[-1].theta, truth)
    print(f"Aligned two photos in {len(steps)} steps; corner error {error_px:.3f} px")
    after = stn.warp(moving, Affine(steps[-1].theta))
    panels = {
        "fixed": fixed[0, 0],
        "moving (before)": moving[0, 0],
        "moving, aligned (after)": after[0, 0],
        "difference before": np.abs(moving - fixed)[0, 0],
        "difference after": np.abs(after - fixed)[0, 0],
    }
    _save(output / "alignment.png", panels)
    _save_convergence(output / "convergence.png", steps, truth)
    return error_px


def show_batching(stn: Client, target: str, metrics: str) -> None:
    """Sends calls of several sizes at once, and prints what the server made of them."""
    before = stn.server_info().statistics
    started = time.perf_counter()
    asyncio.run(_burst(target))
    duration_s = time.perf_counter() - started
    after = stn.server_info().statistics
    items = after.finished_items - before.finished_items
    batches = after.batches - before.batches
    print(
        f"{items} calls at once, packed by the client: {items / duration_s:.0f} requests/s in "
        f"{batches} batches, {items / batches:.1f} calls each"
    )
    if metrics:
        with urllib.request.urlopen(metrics) as reply:  # noqa: S310 - the server's own address
            print(f"Calls per batch since the start: {_histogram(reply.read().decode())}")


async def _burst(target: str) -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((1, 1, side, side), np.float32) for side in (28, 40, 56)]
    transform = Affine(_rotation(10.0))
    async with AsyncClient(target) as stn:
        calls = (stn.warp(images[n % len(images)], transform) for n in range(BURST_CALLS))
        await asyncio.gather(*calls)


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Target and metrics address of a server of our own, unless one was given."""
    if options.target:
        yield options.target, ""
    else:
        with LocalServer(log=options.output / "server.log") as server:
            yield server.target, server.metrics


def _rotation(angle_deg: float, scale: float = 1.0) -> Array:
    """Theta (1, 2, 3) that turns the content anticlockwise and scales it, in a square image."""
    cos, sin = np.cos(np.radians(angle_deg)) / scale, np.sin(np.radians(angle_deg)) / scale
    return np.array([[[cos, -sin, 0], [sin, cos, 0]]], np.float32)


def _local_gradients(photo: Array, theta: Array) -> tuple[Array, Array]:
    """The same gradients from PyTorch on this machine: L = sum V^2 / 2, so that dL/dV = V."""
    u, t = (torch.from_numpy(array).requires_grad_() for array in (photo, theta))
    v = F.grid_sample(u, F.affine_grid(t, list(u.shape), align_corners=False), align_corners=False)
    grad_u, grad_theta = torch.autograd.grad((v**2).sum() / 2, (u, t))
    return grad_u.numpy(), grad_theta.numpy()


def _two_photographs() -> tuple[Array, Array, Array]:
    """A photograph, the same scene under an affine map with other exposure and noise, the map.

    The map takes (x, y, 1) of the fixed photograph to the moving one, in pixels. The moving one
    is made by scikit-image with bicubic interpolation, not by the service.
    """
    scene = skimage.color.rgb2gray(skimage.data.astronaut())
    rng = np.random.default_rng(2015)
    linear = skimage.transform.AffineTransform(
        rotation=np.radians(rng.uniform(8, 15)), scale=rng.uniform(0.85, 0.95), shear=0.06
    ).params
    centre = skimage.transform.AffineTransform(translation=[(SIDE_PX - 1) / 2] * 2).params
    shift = skimage.transform.AffineTransform(translation=rng.uniform(10, 20, 2)).params
    truth = shift @ centre @ linear @ np.linalg.inv(centre)
    corner = (scene.shape[0] - SIDE_PX) // 2
    crop = skimage.transform.AffineTransform(translation=[corner, corner]).params
    fixed = scene[corner : corner + SIDE_PX, corner : corner + SIDE_PX]
    scene_from_moving = skimage.transform.AffineTransform(matrix=crop @ np.linalg.inv(truth))
    moving = skimage.transform.warp(scene, scene_from_moving, output_shape=fixed.shape, order=3)
    moving = 0.9 * moving + 0.05 + rng.normal(0, 0.01, moving.shape)
    return fixed.astype(np.float32)[None, None], moving.astype(np.float32)[None, None], truth


def _corner_error_px(theta: Array, truth: Array) -> float:
    """Largest distance between where theta and the truth send a corner of the photograph."""
    half = SIDE_PX / 2
    norm_from_px = np.array(
        [[1 / half, 0, 0.5 / half - 1], [0, 1 / half, 0.5 / half - 1], [0, 0, 1]]
    )
    found = np.linalg.inv(norm_from_px) @ np.vstack([theta[0], [0, 0, 1]]) @ norm_from_px
    last = SIDE_PX - 1
    corners = np.array([[0, last, 0, last], [0, 0, last, last], [1, 1, 1, 1]])
    return float(np.linalg.norm(((found - truth) @ corners)[:2], axis=0).max())


def _histogram(metrics: str) -> str:
    """Buckets of `stn_batch_items` that are not empty, as `up to n: count`."""
    pattern = r'stn_batch_items_bucket\{le="([^"]+)"\} (\S+)'
    found = [(bound, float(count)) for bound, count in re.findall(pattern, metrics)]
    counts = np.diff([0.0, *(count for _, count in found)])
    shown = zip((bound for bound, _ in found), counts, strict=True)
    return ", ".join(f"≤ {float(bound):g}: {count:.0f}" for bound, count in shown if count)


def _picture(image: Array) -> Array:
    """(1, 3, H, W) in 0..1 as matplotlib wants it."""
    clipped: Array = np.clip(image[0].transpose(1, 2, 0), 0, 1)
    return clipped


def _save(path: Path, panels: dict[str, Array]) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.6))
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel, cmap="gray" if "difference" not in title else "magma")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _save_convergence(path: Path, steps: list[Step], truth: Array) -> None:
    figure, loss_axis = plt.subplots(figsize=(7, 4))
    loss_axis.semilogy([step.loss for step in steps], color="tab:blue")
    loss_axis.set_xlabel("step (one objective, or a few, by RPC)")
    loss_axis.set_ylabel("loss", color="tab:blue")
    error_axis = loss_axis.twinx()
    errors = [_corner_error_px(step.theta, truth) for step in steps]
    error_axis.semilogy(errors, color="tab:red")
    error_axis.set_ylabel("corner error in px", color="tab:red")
    error_axis.axhline(LARGEST_ERROR_PX, color="tab:red", linestyle=":")
    for number, step in enumerate(steps):
        if step.iteration == 0:
            loss_axis.axvline(number, color="lightgray", zorder=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="for pictures")
    parser.add_argument("--target", help="a running server; default: one is started")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
