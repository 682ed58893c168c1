"""The subcommands `warp` and `align`: image files through a server."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from stn_client import tiling
from stn_client._client import Client
from stn_client._errors import InvalidRequestError
from stn_client._mapping import progress_bar
from stn_client._options import GridOptions
from stn_client._server_info import Limits
from stn_client._transforms import (
    Affine,
    Flow,
    Homography,
    SamplingGrid,
    ThinPlateSpline,
    Transform,
)
from stn_client.cli import _images
from stn_client.cli._files import job_of, jobs_of, run_jobs
from stn_client.cli._geometry import pixel_theta, read_spline, read_transform
from stn_client.cli._report import report
from stn_client.cli._terminal import number
from stn_client.geometry import TransformArguments, from_opencv, from_points
from stn_client.registration import Step, align

_DEFAULT_JOBS = 4

_MODELS = "translation", "similarity", "affine", "homography"
"""What `align` can look for, each beginning with those before it."""

_UNLIKE = 0.8
"""The loss of "ssd" and "ncc" from which on images have nearly nothing in common; unrelated: 1."""

_PLOT_PX = 240, 480
"""Height and width of the picture of convergence."""

_WARP = """\
Rotates, scales and shifts images about their centres, or bends them so that points go where they
shall be.

One file IN is written to the file OUT. Several files, a pattern ('photos/*.jpg', in quotes) or a
folder go into the folder OUT, under their names. Photos come out upright, with their depth (8 or
16 bits, float), resolution, colour profile and EXIF; animations and pages frame by frame. Images of
any size work: those above the limits of the server are warped in tiles."""

_ALIGN = """\
Finds the map that makes MOVING look like FIXED, affine unless --model says otherwise, and writes
MOVING warped by it, in the size of FIXED and with its own channels and depth. Prints the map
(theta: normalized coordinates, from FIXED to MOVING) and what difference is left (loss: in units of
variance). A bar on standard error shows how the search goes on, on a terminal where tqdm is."""


def add_commands(commands: Any) -> None:
    """Adds the parsers of the subcommands, which set `run`."""
    warp = commands.add_parser(
        "warp",
        help="rotate, scale, shift and bend image files",
        description=_WARP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    warp.set_defaults(run=_warp, refuse=warp.error)
    warp.add_argument("sources", nargs="+", metavar="IN", help="image file, folder or pattern")
    warp.add_argument("destination", metavar="OUT", help="file, or folder for several")
    warp.add_argument("--rotate", type=_finite, default=0.0, metavar="DEG", help="anticlockwise")
    warp.add_argument("--scale", type=_positive, default=1.0, metavar="S", help="above 1: larger")
    warp.add_argument(
        "--translate",
        type=_finite,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("X", "Y"),
        help="in px, to the right and down",
    )
    warp.add_argument(
        "--spline",
        type=read_spline,
        metavar="FILE",
        help='JSON {"control_points": [[x, y], ...], "points": [[x, y], ...]}: each of the '
        "control points, in px of OUT, shows what is at its point, in px of IN; pixels between "
        'them go along (a thin-plate spline; "regularization" above 0: less exact and smoother)',
    )
    warp.add_argument(
        "--matrix",
        type=_finite,
        nargs=6,
        metavar=("A", "B", "C", "D", "E", "F"),
        help="where content goes, in px, as of cv2.warpAffine: (x, y) to "
        "(A x + B y + C, D x + E y + F)",
    )
    warp.add_argument(
        "--homography",
        type=_finite,
        nargs=9,
        metavar="H",
        help="where content goes, in px, row by row, as of cv2.warpPerspective",
    )
    warp.add_argument(
        "--corners",
        type=_finite,
        nargs=8,
        metavar="X",
        help="X Y of four points of IN, in px, that become the corners of OUT: from top left "
        "clockwise; rectifies a sheet or a facade",
    )
    warp.add_argument(
        "--transform",
        type=read_transform,
        metavar="FILE",
        help='JSON {"affine": {"theta": [[1, 0, 5], [0, 1, 3]]}}, with any transform of the SDK, '
        'and "coordinates" if not in px; or a matrix or grid of NumPy (.npy); from OUT to IN',
    )
    warp.add_argument(
        "--size",
        type=number(int, 1),
        nargs=2,
        metavar=("W", "H"),
        help="of OUT, in px (default: as IN, or as the grid or flow of --transform)",
    )
    warp.add_argument(
        "--jobs",
        type=number(int, 1),
        default=_DEFAULT_JOBS,
        metavar="N",
        help="files at a time (default: %(default)s)",
    )
    aligned = commands.add_parser(
        "align",
        help="warp an image file so that it fits another",
        description=_ALIGN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    aligned.set_defaults(run=_align)
    aligned.add_argument("fixed", metavar="FIXED", help="image file to fit")
    aligned.add_argument("moving", metavar="MOVING", help="image file to warp")
    aligned.add_argument("destination", metavar="OUT", help="file to write")
    aligned.add_argument(
        "--model",
        default="affine",
        choices=_MODELS,
        help="what to look for (default: %(default)s)",
    )
    aligned.add_argument(
        "--loss",
        default="ssd",
        choices=("ssd", "huber", "ncc"),
        help="how images are compared: huber where some things are in one of them alone, ncc where "
        "they differ by more than exposure (default: %(default)s)",
    )
    aligned.add_argument(
        "--mask", metavar="FILE", help="image of the size of FIXED: what is black does not count"
    )
    aligned.add_argument(
        "--save-transform",
        type=Path,
        metavar="FILE",
        help="JSON to write, which `stn warp --transform` reads",
    )
    aligned.add_argument(
        "--overlay",
        type=Path,
        metavar="FILE",
        help="picture to write: FIXED in red, OUT in green and blue, so that what fits is grey",
    )
    aligned.add_argument(
        "--convergence",
        type=Path,
        metavar="FILE",
        help="picture to write: the loss by steps, on a logarithmic scale",
    )
    for command in (warp, aligned):
        _add_reading(command)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds flags for interpolation, padding and the written files."""
    parser.add_argument(
        "--interpolation",
        default="bilinear",
        choices=("nearest", "bilinear", "bicubic"),
        help="nearest keeps the values of masks and palettes (default: %(default)s)",
    )
    parser.add_argument(
        "--padding",
        choices=("zeros", "border", "reflection", "fill"),
        help="what is outside of the image (default: zeros, or fill where --fill is given)",
    )
    parser.add_argument(
        "--fill",
        type=_finite,
        nargs="+",
        metavar="V",
        help="what padding fill reads: one number or one per channel, as the file counts (0 to "
        "255, 65535)",
    )
    parser.add_argument(
        "--quality",
        type=number(int, 1, 100),
        metavar="1..100",
        help="of JPEG, WebP and AVIF (default: that of a JPEG source, else 95)",
    )


def _finite(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")


_WAYS = ("spline", "matrix", "homography", "corners", "transform")
"""Flags that say all about where pixels go."""


def _warp(client: Client, options: argparse.Namespace) -> int:
    ways = [f"--{name}" for name in _WAYS if getattr(options, name) is not None]
    if (options.rotate, options.scale, *options.translate) != (0, 1, 0, 0):
        ways.append("--rotate, --scale and --translate")
    if len(ways) > 1:
        options.refuse(f"argument {ways[0]}: not allowed with {' and '.join(ways[1:])}")
    try:
        _moved(options, (2, 2), (2, 2))
    except InvalidRequestError as error:  # a matrix without an inverse, corners on a line
        way = ways[0]
        options.refuse(f"argument {way}: {str(error).rstrip('.')}")
    jobs = jobs_of(options.sources, options.destination)
    limits = cache(lambda: client.server_info().limits)
    if len(jobs) > 1:
        limits()  # without a server, one error is enough
    return 1 if run_jobs(jobs, partial(_warp_file, client, options, limits), options.jobs) else 0


def _warp_file(
    client: Client,
    options: argparse.Namespace,
    limits: Callable[[], Limits],
    source: Path,
    destination: Path,
) -> None:
    format_ = _images.format_of(destination)
    picture = _images.read(source, format_, nearest=options.interpolation == "nearest")
    frames = []
    for frame in picture.frames:
        height, width = frame.values.shape[:2]
        size = _output_size(options, (height, width))
        moved = _moved(options, (height, width), size)
        frames.append(_warped(client, limits(), frame, size, options, **moved))
    destination.parent.mkdir(parents=True, exist_ok=True)
    _images.write(destination, replace(picture, frames=frames), quality=options.quality)


def _output_size(options: argparse.Namespace, input_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size of OUT, (H, W): what is said, that of a grid or a flow, or that of IN."""
    if options.size is not None:
        return options.size[1], options.size[0]
    transform = options.transform and options.transform["transform"]
    if isinstance(transform, SamplingGrid | Flow) and transform.parameters.ndim == 4:
        return transform.parameters.shape[1], transform.parameters.shape[2]
    return input_size


def _moved(
    options: argparse.Namespace, input_size: tuple[int, int], output_size: tuple[int, int]
) -> TransformArguments[Any]:
    """Returns the transform that the flags give, for an image of a size, (H, W).

    Raises:
        InvalidRequestError: There is none.
    """
    if options.transform is not None:
        given: TransformArguments[Any] = options.transform
        return given
    if options.matrix is not None:
        return from_opencv(np.reshape(options.matrix, (2, 3)))
    if options.homography is not None:
        return from_opencv(np.reshape(options.homography, (3, 3)))
    if options.corners is not None:
        bottom, right = output_size[0] - 1, output_size[1] - 1
        shown = [(0, 0), (right, 0), (right, bottom), (0, bottom)]
        return from_points(np.reshape(options.corners, (4, 2)), shown, "homography")
    if options.spline is not None:
        return {"transform": options.spline, "coordinates": "pixel"}
    theta = pixel_theta(
        input_size=input_size,
        output_size=output_size,
        rotate_deg=options.rotate,
        scale=options.scale,
        translate_px=options.translate,
    )
    return {"transform": Affine(theta[None]), "coordinates": "pixel"}


def _align(client: Client, options: argparse.Namespace) -> int:
    model, _ = job_of(options.fixed, options.destination)
    source, destination = job_of(options.moving, options.destination)
    format_ = _images.format_of(destination)
    for path in (options.overlay, options.convergence):
        if path is not None:
            _images.format_of(path)  # before anything is computed or written
    fixed, moving = _only_frame(model), _only_frame(source)
    pair = _grey(options.fixed, fixed), _grey(options.moving, moving)
    weights = None if options.mask is None else _mask(Path(options.mask), pair[0].shape)
    nearest = options.interpolation == "nearest"
    picture = _images.read(source, format_, nearest=nearest)
    limits = client.server_info().limits
    halved = _reduced(client, limits, *pair, *([] if weights is None else [weights]))
    steps = _steps(client, options, *halved)
    last = steps[-1]
    size = fixed.values.shape[0], fixed.values.shape[1]
    moved: TransformArguments[Any] = {"transform": cast("Affine | Homography", last.transform)}
    frame = _warped(client, limits, picture.frames[0], size, options, **moved)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _images.write(destination, replace(picture, frames=[frame]), quality=options.quality)
    if options.save_transform is not None:
        kind = "homography" if isinstance(last.transform, Homography) else "affine"
        said = {kind: {"theta": last.theta[0].tolist()}, "coordinates": "normalized"}
        options.save_transform.parent.mkdir(parents=True, exist_ok=True)
        options.save_transform.write_text(json.dumps(said) + "\n", encoding="utf-8")
    if options.overlay is not None:
        shown = tiling.warp(client, pair[1], moved["transform"], size, limits=limits)
        layers = [_stretched(one[0, 0]) for one in (pair[0], shown, shown)]
        _images.write_picture(options.overlay, np.stack(layers, -1))
    if options.convergence is not None:
        _images.write_picture(options.convergence, _plot([step.loss for step in steps]))
    print(f"theta {last.theta[0].tolist()}\nloss {last.loss:.4f}")  # noqa: T201
    if last.loss > _UNLIKE and options.loss != "huber":
        expected = f"expected an image that can be made to look like {options.fixed}"
        report(f"{options.moving}: {expected}, got one that cannot: {destination} is no fit.")
    return 0


def _steps(
    client: Client, options: argparse.Namespace, fixed: Any, moving: Any, weights: Any = None
) -> list[Step]:
    """Yields the steps of the search, and shows them."""
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


def _warped(
    client: Client,
    limits: Limits,
    frame: _images.Frame,
    size: tuple[int, int],
    options: argparse.Namespace,
    transform: Transform,
    **units: Unpack[GridOptions],
) -> _images.Frame:
    """Warps a frame as the options say; in tiles if it is large and its transform allows it."""
    read: Any = {
        "layout": "NHWC",
        "interpolation": options.interpolation,
        "padding": options.padding or ("zeros" if options.fill is None else "fill"),
        "fill": frame.fill(options.fill or [0.0]),
        **units,
    }
    maps = frame.values[None]
    if isinstance(transform, Affine | Homography | ThinPlateSpline):
        values = tiling.warp(client, maps, transform, size, limits=limits, **read)
    else:
        values = client.warp(maps, transform, size, **read)
    return replace(frame, values=values[0])


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


def _reduced(client: Client, limits: Limits, *pair: NDArray[Any]) -> list[NDArray[Any]]:
    """Halves two images until a server takes them and their gradients."""
    images = list(pair)
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
