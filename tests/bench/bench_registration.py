"""What stays on the server, and registration on it, beside sending it each time and OpenCV.

The server is one other process of this host, reached by gRPC. Contenders take turns in every round;
ratios are taken within a round, then their median. Registration has the two photographs of 512 px
that the truth is known of: the descent is that by warps and gradients, every image sent each time,
as the demo had it; ECC is OpenCV's, in this process, from the same start. Two volumes of 128 voxels
a side, made of formulas so that the truth is exact, are registered beside SimpleITK, which runs
here with all cores.

    python -m bench.bench_registration [--rounds 5] [--output FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import SimpleITK
import skimage.color
import skimage.data
import skimage.transform
import torch

import stn_engine
from bench import report
from bench.bench_many import server
from stn_client import Affine, Client, _calls
from stn_client.registration import align

SIDE_PX, SIDE_VOXELS = 512, 128
TIMES, STEP_BYTES, STEP_TIMES, BYTES_SHARE, FASTER, ERROR_PX = 20.0, 1024, 1.5, 0.55, 5.0, 0.05
"""The bars."""


def photographs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two crops of a photograph, and the map between them in px: (x, y, 1) of fixed to moving."""
    scene = skimage.color.rgb2gray(skimage.data.retina())
    centre = skimage.transform.AffineTransform(translation=[(SIDE_PX - 1) / 2] * 2).params
    linear = skimage.transform.AffineTransform(rotation=0.06, scale=0.95, shear=0.03).params
    shift = skimage.transform.AffineTransform(translation=[9.3, -7.6]).params
    truth = shift @ centre @ linear @ np.linalg.inv(centre)
    corner = (scene.shape[0] - SIDE_PX) // 2
    crop = skimage.transform.AffineTransform(translation=[corner, corner]).params
    fixed = scene[corner : corner + SIDE_PX, corner : corner + SIDE_PX]
    back = skimage.transform.AffineTransform(matrix=crop @ np.linalg.inv(truth))
    moving = skimage.transform.warp(scene, back, output_shape=fixed.shape, order=3)
    return fixed.astype(np.float32), moving.astype(np.float32), truth


NORMALIZED = np.array(
    [[2 / SIDE_PX, 0, 1 / SIDE_PX - 1], [0, 2 / SIDE_PX, 1 / SIDE_PX - 1], [0, 0, 1]]
)
"""Normalized coordinates of those in px."""


def error_px(found: np.ndarray, truth: np.ndarray) -> float:
    """How far apart two maps in px take a corner."""
    last = SIDE_PX - 1
    corners = np.array([[0, last, 0, last], [0, 0, last, last], [1, 1, 1, 1]])
    return float(np.linalg.norm(((found - truth) @ corners)[:2], axis=0).max())


def ours(stn: Client, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The map that `align` finds, in px."""
    *_, last = align(stn, fixed[None, None], moving[None, None])
    return np.linalg.inv(NORMALIZED) @ np.vstack([last.theta[0], [0, 0, 1]]) @ NORMALIZED


def descent(stn: Client, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """What the demo did: Adam down a pyramid, a warp and its gradients each step."""
    theta = np.eye(2, 3)[None].astype(np.float32)
    pyramid = [tuple((one[None, None] - one.mean()) / one.std() for one in (fixed, moving))]
    while pyramid[-1][0].shape[2] >= 32:
        half = pyramid[-1][0].shape[2] // 2
        identity = Affine(np.eye(2, 3, dtype=np.float32)[None])
        pyramid.append(tuple(stn.warp(one, identity, (half, half)) for one in pyramid[-1]))
    for level in reversed(range(len(pyramid))):
        target, image = pyramid[level]
        masked = np.concatenate([image, np.ones_like(image)], 1)
        rate, mean, square = 0.02 / 2 ** (len(pyramid) - 1 - level), 0.0, 0.0
        for step in range(80):
            warped = stn.warp(masked, Affine(theta), target.shape[2:])
            mask = warped[:, 1:] >= 0.999 if level == 0 else np.ones_like(target)
            weight = mask / max(1.0, mask.sum())
            grad = np.zeros_like(warped)
            grad[:, :1] = 2 * weight * (warped[:, :1] - target)
            g = stn.warp_gradients(grad, masked, Affine(theta), needs=["transform"]).transform
            mean, square = 0.9 * mean + 0.1 * g, 0.99 * square + 0.01 * g**2
            first, second = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.99 ** (step + 1))
            pace = rate * (1 - step / 80)
            theta = (theta - pace * first / (np.sqrt(second) + 1e-12)).astype(np.float32)
    return np.linalg.inv(NORMALIZED) @ np.vstack([theta[0], [0, 0, 1]]) @ NORMALIZED


def by_ecc(_stn: Client, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """OpenCV's, until it stands still."""
    start = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 500, 1e-8)
    kind = cv2.MOTION_AFFINE
    _, found = cv2.findTransformECC(fixed, moving, start, kind, criteria, None, 5)
    return np.vstack([found, [0, 0, 1]])


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A volume, the same through a map, and that map in voxels: (x, y, z, 1), fixed to moving."""
    rng = np.random.default_rng(2)
    centres = rng.uniform(20, SIDE_VOXELS - 20, (40, 3))
    widths, heights = rng.uniform(5, 12, 40), rng.uniform(0.3, 1.0, 40)
    z, y, x = np.mgrid[:SIDE_VOXELS, :SIDE_VOXELS, :SIDE_VOXELS]
    points = np.stack([x, y, z, np.ones_like(x)], -1).astype(np.float64)

    def seen(matrix: np.ndarray) -> np.ndarray:
        where = points @ matrix[:3].T
        total = np.zeros(where.shape[:-1])
        for centre, width, height in zip(centres, widths, heights, strict=True):
            total += height * np.exp(-((where - centre) ** 2).sum(-1) / (2 * width**2))
        return total.astype(np.float32)

    angle = 0.1
    linear = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0.02],
            [np.sin(angle), np.cos(angle), -0.03],
            [0.01, 0.04, 1.05],
        ]
    )
    truth = np.eye(4)
    middle = np.full(3, (SIDE_VOXELS - 1) / 2)
    truth[:3, :3] = linear
    truth[:3, 3] = middle - linear @ middle + [4.2, -3.1, 2.3]
    return seen(np.eye(4)), seen(np.linalg.inv(truth)), truth


def target_error_voxels(found: np.ndarray, truth: np.ndarray) -> float:
    """How far apart two maps take the points of the inner half of a volume, on average."""
    axis = np.linspace(SIDE_VOXELS / 4, 3 * SIDE_VOXELS / 4, 9)
    points = np.stack([*np.meshgrid(axis, axis, axis), np.ones((9, 9, 9))], -1)
    return float(np.linalg.norm(points @ (found - truth)[:3].T, axis=-1).mean())


def ours_of_volumes(stn: Client, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The map that `align` finds, in voxels."""
    *_, last = align(stn, fixed[None, None], moving[None, None])
    normalized = np.diag([2 / SIDE_VOXELS] * 3 + [1])
    normalized[:3, 3] = 1 / SIDE_VOXELS - 1
    return np.linalg.inv(normalized) @ np.vstack([last.theta[0], [0, 0, 0, 1]]) @ normalized


def by_simpleitk(_stn: Client, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """SimpleITK's affine registration: mean squares of all voxels, three levels."""
    one, other = SimpleITK.GetImageFromArray(fixed), SimpleITK.GetImageFromArray(moving)
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-6, 300, 0.5, 1e-9)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    start = SimpleITK.AffineTransform(3)
    start.SetCenter([(SIDE_VOXELS - 1) / 2] * 3)
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(one, other)
    found, linear = np.eye(4), np.reshape(start.GetMatrix(), (3, 3))
    centre = np.array(start.GetCenter())
    found[:3, :3] = linear
    found[:3, 3] = centre - linear @ centre + start.GetTranslation()
    return found


def registration_of_volumes(stn: Client, rounds: int) -> list[dict]:
    """Two volumes: how long, and how far off on average."""
    fixed, moving, truth = volumes()
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for method in (ours_of_volumes, by_simpleitk):
            began = time.perf_counter()
            found = method(stn, fixed, moving)
            duration_s = time.perf_counter() - began
            seen.setdefault(method.__name__, []).append(
                (duration_s, target_error_voxels(found, truth))
            )
    start = target_error_voxels(np.eye(4), truth)
    own_s = statistics.median(duration_s for duration_s, _ in seen["ours_of_volumes"])
    return [
        {
            "case": f"registration of 128x128x128 from {start:.1f} voxels, {name}",
            "ours": own_s,
            "others": statistics.median(duration_s for duration_s, _ in runs),
            "error_px": max(off for _, off in runs),
            "value": statistics.median(duration_s for duration_s, _ in runs) / own_s,
            "unit": "times ours",
            "bar": None,
        }
        for name, runs in seen.items()
    ]


def took_s(work: Callable[[], object], times: int = 1) -> float:
    """How long it takes, on average."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def resident_warps(stn: Client, rounds: int) -> dict:
    """A large image, resident and sent each time, with a new theta each time."""
    u = np.random.default_rng(0).random((1, 3, 2048, 2048), np.float32)
    held = stn.upload(u)
    thetas = [np.float32([[[0.1, 0, n / 100], [0, 0.1, 0]]]) for n in range(50)]
    ratios, times = [], []
    for _ in range(rounds):
        sent = took_s(lambda: [stn.warp(u, Affine(t), (224, 224)) for t in thetas[:4]]) / 4
        named = took_s(lambda: [stn.warp(held, Affine(t), (224, 224)) for t in thetas]) / 50
        ratios.append(sent / named)
        times.append((named, sent))
    stn.release(held)
    return {
        "case": "resident 2048x2048 to 224x224, against sent each time",
        "ours": statistics.median(one for one, _ in times),
        "others": statistics.median(other for _, other in times),
        "value": statistics.median(ratios),
        "unit": "times",
        "bar": TIMES,
    }


def kept_bytes(stn: Client) -> dict:
    """Bytes of a forward and a backward, with operands that stay, against without."""
    u, theta = np.zeros((1, 3, 512, 512), np.float32), np.float32([[[1, 0, 0], [0, 1, 0]]])
    grad = np.zeros((1, 3, 224, 224), np.float32)
    forward = len(_calls.warp(u, Affine(theta), (224, 224), {}).request)
    plain = len(_calls.warp_gradients(grad, u, Affine(theta), ("transform",), {}).request)
    before = stn.stats.operands_bytes
    _, pullback = stn.vjp(u, Affine(theta), (224, 224))
    pullback(grad)
    share = (stn.stats.operands_bytes - before) / (forward + plain)
    return {
        "case": "bytes of forward and backward, 512x512 to 224x224, kept against sent again",
        "value": share,
        "unit": "of the bytes",
        "bar": BYTES_SHARE,
    }


def objective_step(stn: Client, rounds: int) -> dict:
    """A step with resident images, against the engine in this process and one small call."""
    rng = np.random.default_rng(1)
    fixed, moving = (rng.random((1, 1, SIDE_PX, SIDE_PX), np.float32) for _ in range(2))
    theta = np.array([[[0.97, 0.02, 0.01], [-0.02, 0.98, 0.0]]])
    held = stn.upload(moving), stn.upload(fixed)
    needs = ("gradient", "gauss_newton")
    tensors = torch.from_numpy(moving), torch.from_numpy(fixed)
    small, identity = np.zeros((1, 1, 28, 28), np.float32), Affine(np.eye(2, 3)[None])
    points = stn_engine.Affine(torch.from_numpy(theta))
    ratios = []
    for _ in range(rounds):
        step = took_s(lambda: stn.objective(*held, Affine(theta), needs=needs), 20)
        own = took_s(lambda: stn_engine.objective(*tensors, points, needs=needs), 20)
        call = took_s(lambda: stn.warp(small, identity), 20)
        ratios.append(step / (own + call))
    return {
        "case": "a step of resident 512x512 images, against the engine and a small call",
        "value": statistics.median(ratios),
        "unit": "times as long",
        "bar": STEP_TIMES,
    }


def registration(stn: Client, rounds: int) -> list[dict]:
    """Two photographs: how long, and how far off."""
    fixed, moving, truth = photographs()
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for method in (ours, by_ecc, descent):
            began = time.perf_counter()
            try:
                off_px = error_px(method(stn, fixed, moving), truth)
            except cv2.error:  # ECC has not converged
                off_px = float("nan")
            seen.setdefault(method.__name__, []).append((time.perf_counter() - began, off_px))
    start_px = error_px(np.eye(3), truth)
    own_s = statistics.median(duration_s for duration_s, _ in seen["ours"])
    bars = {"ours": None, "by_ecc": 1.0, "descent": FASTER}
    return [
        {
            "case": f"registration from {start_px:.1f} px, {name}",
            "ours": own_s,
            "others": statistics.median(duration_s for duration_s, _ in runs),
            "error_px": max(off_px for _, off_px in runs),
            "value": statistics.median(duration_s for duration_s, _ in runs) / own_s,
            "unit": "times ours",
            "bar": bars[name],
        }
        for name, runs in seen.items()
    ]


def shown(cell: dict) -> str:
    """A line for people."""
    durations = "".join(f" {cell[key] * 1e3:9.1f} ms" for key in ("others",) if key in cell)
    off = f" {cell['error_px']:.4f} px" if "error_px" in cell else ""
    bar = "" if cell["bar"] is None else f" (bar {cell['bar']:g})"
    return f"{cell['case']:76}{durations}{off} {cell['value']:8.2f} {cell['unit']}{bar}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    with server() as target, Client(target, local=False) as stn:
        cells = [
            resident_warps(stn, options.rounds),
            kept_bytes(stn),
            objective_step(stn, options.rounds),
            *registration(stn, options.rounds),
            *registration_of_volumes(stn, min(options.rounds, 3)),
        ]
    for cell in cells:
        print(shown(cell))
    if options.output:
        packages = ("grpcio", "numpy", "opencv-python-headless", "protobuf", "simpleitk", "torch")
        report.write(options.output, "registration", packages, rounds=options.rounds, cells=cells)


if __name__ == "__main__":
    main()
