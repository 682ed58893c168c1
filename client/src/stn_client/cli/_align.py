"""The subcommand `align`: warps an image file so that it fits another."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stn_client import tiling
from stn_client._client import Client
from stn_client._mapping import progress_bar
from stn_client._server_info import Limits
from stn_client._transforms import Affine, Homography
from stn_client.cli import _images
from stn_client.cli._files import job_of
from stn_client.cli._pictures import add_reading, warped
from stn_client.cli._report import report
from stn_client.registration import Step, align

_MODELS = "translation", "similarity", "affine", "homography"
"""What `align` can look for, each beginning with those before it."""

_UNLIKE = 0.8
"""The loss of "ssd" and "ncc" from which on images have nearly nothing in common; unrelated: 1."""

_PLOT_PX = 240, 480
"""Height and width of the picture of convergence."""

_DESCRIPTION = """\
Finds the map that makes MOVING look like FIXED, affine unless --model says otherwise, and writes
MOVING warped by it, in the size of FIXED and with its own channels and depth. Prints the map
(theta: normalized coordinates, from FIXED to MOVING) and what difference is left (loss: in units of
variance). A bar on standard error shows how the search goes on, on a terminal where tqdm is."""


def add_command(commands: Any) -> None:
    """Adds the parser of the subcommand, which sets `run`."""
    parser = commands.add_parser(
        "align",
        help="warp an image file so that it fits another",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_align)
    parser.add_argument("fixed", metavar="FIXED", help="image file to fit")
    parser.add_argument("moving", metavar="MOVING", help="image file to warp")
    parser.add_argument("destination", metavar="OUT", help="file to write")
    parser.add_argument(
        "--model",
        default="affine",
        choices=_MODELS,
        help="what to look for (default: %(default)s)",
    )
    parser.add_argument(
        "--loss",
        default="ssd",
        choices=("ssd", "huber", "ncc"),
        help="how images are compared: huber where some things are in one of them alone, ncc where "
        "they differ by more than exposure (default: %(default)s)",
    )
    parser.add_argument(
        "--mask", metavar="FILE", help="image of the size of FIXED: what is black does not count"
    )
    parser.add_argument(
        "--save-transform",
        type=Path,
        metavar="FILE",
        help="JSON to write, which `stn warp --transform` reads",
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="FILE",
        help="picture to write: FIXED in red, OUT in green and blue, so that what fits is grey",
    )
    parser.add_argument(
        "--convergence",
        type=Path,
        metavar="FILE",
        help="picture to write: the loss by steps, on a logarithmic scale",
    )
    add_reading(parser)


def _align(client: Client, options: argparse.Namespace) -> int:
    fixed_path, _ = job_of(options.fixed, options.destination)
    moving_path, destination = job_of(options.moving, options.destination)
    format_ = _images.format_of(destination)
    for path in (options.overlay, options.convergence):
        if path is not None:
            _images.format_of(path)  # before anything is computed or written
    fixed_frame, moving_frame = _only_frame(fixed_path), _only_frame(moving_path)
    fixed, moving = _grey(options.fixed, fixed_frame), _grey(options.moving, moving_frame)
    weights = None if options.mask is None else _mask(Path(options.mask), fixed.shape)
    # The search compares grey images; what is written has the colours and the depth of the file.
    picture = _images.read(moving_path, format_, nearest=options.interpolation == "nearest")
    limits = client.server_info().limits
    reduced = _reduced(client, limits, fixed, moving, *([] if weights is None else [weights]))
    steps = _steps(client, options, *reduced)
    last = steps[-1]
    size = fixed.shape[2], fixed.shape[3]
    found = cast("Affine | Homography", last.transform)
    frame = warped(client, limits, picture.frames[0], size, options, found)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _images.write(destination, replace(picture, frames=[frame]), quality=options.quality)
    if options.save_transform is not None:
        _write_transform(options.save_transform, last)
    if options.overlay is not None:
        shown = tiling.warp(client, moving, found, size, limits=limits)
        layers = [_stretched(one[0, 0]) for one in (fixed, shown, shown)]
        _images.write_picture(options.overlay, np.stack(layers, -1))
    if options.convergence is not None:
        _images.write_picture(options.convergence, _plot([step.loss for step in steps]))
    print(f"theta {last.theta[0].tolist()}\nloss {last.loss:.4f}")  # noqa: T201
    if last.loss > _UNLIKE and options.loss != "huber":
        expected = f"expected an image that can be made to look like {options.fixed}"
        report(f"{options.moving}: {expected}, got one that cannot: {destination} is no fit.")
    return 0


def _write_transform(path: Path, step: Step) -> None:
    """Writes what a step has found as `stn warp --transform` reads it."""
    kind = "homography" if isinstance(step.transform, Homography) else "affine"
    said = {kind: {"theta": step.theta[0].tolist()}, "coordinates": "normalized"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said) + "\n", encoding="utf-8")


def _steps(
    client: Client, options: argparse.Namespace, fixed: Any, moving: Any, weights: Any = None
) -> list[Step]:
    """Returns the steps of the search, and shows on a terminal how it goes on."""
    stages = _MODELS[: _MODELS.index(options.model) + 1]
    found: list[Step] = []
    is_seen = sys.stderr.isatty() and find_spec("tqdm") is not None
    with progress_bar(iter(()), shown=is_seen) as bar:
        for step in align(client, fixed, moving, stages=stages, loss=options.loss, weights=weights):
            found.append(step)
            bar.update(1)
    return found


def _mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns 1 where an image is not black, (1, 1, H, W)."""
    values = _only_frame(path).values.max(-1)[None, None]
    if values.shape != shape:
        expected = f"expected {shape[3]} x {shape[2]} px, as FIXED"
        got = f"got {values.shape[3]} x {values.shape[2]}"
        raise _images.ImageError(f"{path}: {expected}, {got}.")
    if not values.any():
        raise _images.ImageError(f"{path}: expected something that counts, got black everywhere.")
    weights: NDArray[np.float32] = (values > 0).astype(np.float32)
    return weights


def _stretched(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales values so that the darkest is 0 and the brightest 255."""
    low, high = float(image.min()), float(image.max())
    levels: NDArray[np.uint8] = ((image - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return levels


def _plot(losses: list[float]) -> NDArray[np.uint8]:
    """Draws losses from left to right, black on white, on a logarithmic scale; up is worse."""
    height, width = _PLOT_PX
    logs = np.log(np.maximum(losses, 1e-12))
    across = np.linspace(0, len(logs) - 1, width)
    heights = np.interp(across, np.arange(len(logs)), logs)
    low, high = logs.min(), logs.max()
    rows = ((high - heights) / max(high - low, 1e-12) * (height - 1)).round().astype(int)
    picture = np.full((height, width, 3), 255, np.uint8)
    for column, row in enumerate(rows):
        before = rows[max(0, column - 1)]
        picture[min(before, row) : max(before, row) + 1, column] = 0
    return picture


def _only_frame(path: Path) -> _images.Frame:
    frames = _images.read(path).frames
    if len(frames) > 1:
        raise _images.ImageError(f"{path}: expected one image to align, got {len(frames)} frames.")
    return frames[0]


def _grey(name: str, frame: _images.Frame) -> NDArray[np.float32]:
    """Returns the mean of the colours, (1, 1, H, W), without the opacity."""
    colours = frame.straight()[..., :-1] if frame.weighted else frame.values
    grey: NDArray[np.float32] = colours.mean(-1, dtype=np.float64).astype(np.float32)
    low, high = grey.min(), grey.max()
    if not low < high or not np.isfinite([low, high]).all():
        got = f"{low} everywhere" if low == high else f"values from {low} to {high}"
        raise _images.ImageError(f"{name}: expected an image with edges to align, got {got}.")
    return grey[None, None]


def _reduced(client: Client, limits: Limits, *given: NDArray[Any]) -> list[NDArray[Any]]:
    """Halves images until a server takes them and their gradients."""
    images = list(given)
    most_px = min(
        limits.max_output_samples, limits.max_output_bytes // 8, limits.max_message_bytes // 20
    )
    identity = Affine(np.eye(2, 3)[None])
    while any(
        image.size > most_px or max(image.shape) > limits.max_dimension_px for image in images
    ):
        for place, image in enumerate(images):
            half = -(-image.shape[2] // 2), -(-image.shape[3] // 2)
            images[place] = tiling.warp(
                client, image, identity, half, limits=limits, padding="border"
            )
    return images
