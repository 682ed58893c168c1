"""The subcommand `warp`: rotates, scales, shifts and bends image files."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stn_client._client import Client
from stn_client._errors import InvalidRequestError
from stn_client._server_info import Limits
from stn_client._transforms import Affine, Flow, SamplingGrid
from stn_client.cli import _images
from stn_client.cli._files import jobs_of, run_jobs
from stn_client.cli._geometry import pixel_theta, read_spline, read_transform
from stn_client.cli._pictures import add_reading, finite, warped
from stn_client.cli._terminal import number
from stn_client.geometry import TransformArguments, from_opencv, from_points

_DEFAULT_JOBS = 4

_DESCRIPTION = """\
Rotates, scales and shifts images about their centres, or bends them so that points go where they
shall be.

One file IN is written to the file OUT. Several files, a pattern ('photos/*.jpg', in quotes) or a
folder go into the folder OUT, under their names. Photos come out upright, with their depth (8 or
16 bits, float), resolution, colour profile and EXIF; animations and pages frame by frame. Images of
any size work: those above the limits of the server are warped in tiles."""


class _Way(NamedTuple):
    """A flag that says all about where pixels go."""

    transform: Callable[[Any, tuple[int, int]], TransformArguments[Any]]
    """Returns the transform of the flag's value, for an output of a size, (H, W)."""
    argument: dict[str, Any]
    """What argparse has to know of it."""


def _corners(corners: list[float], output_size: tuple[int, int]) -> TransformArguments[Any]:
    bottom, right = output_size[0] - 1, output_size[1] - 1
    shown = [(0, 0), (right, 0), (right, bottom), (0, bottom)]
    return from_points(np.reshape(corners, (4, 2)), shown, "homography")


_WAYS = {
    "spline": _Way(
        lambda spline, _: {"transform": spline, "coordinates": "pixel"},
        {
            "type": read_spline,
            "metavar": "FILE",
            "help": 'JSON {"control_points": [[x, y], ...], "points": [[x, y], ...]}: each of the '
            "control points, in px of OUT, shows what is at its point, in px of IN; pixels between "
            'them go along (a thin-plate spline; "regularization" above 0: less exact and '
            "smoother)",
        },
    ),
    "matrix": _Way(
        lambda numbers, _: from_opencv(np.reshape(numbers, (2, 3))),
        {
            "type": finite,
            "nargs": 6,
            "metavar": ("A", "B", "C", "D", "E", "F"),
            "help": "where content goes, in px, as of cv2.warpAffine: (x, y) to "
            "(A x + B y + C, D x + E y + F)",
        },
    ),
    "homography": _Way(
        lambda numbers, _: from_opencv(np.reshape(numbers, (3, 3))),
        {
            "type": finite,
            "nargs": 9,
            "metavar": "H",
            "help": "where content goes, in px, row by row, as of cv2.warpPerspective",
        },
    ),
    "corners": _Way(
        _corners,
        {
            "type": finite,
            "nargs": 8,
            "metavar": "X",
            "help": "X Y of four points of IN, in px, that become the corners of OUT: from top "
            "left clockwise; rectifies a sheet or a facade",
        },
    ),
    "transform": _Way(
        lambda given, _: given,
        {
            "type": read_transform,
            "metavar": "FILE",
            "help": 'JSON {"affine": {"theta": [[1, 0, 5], [0, 1, 3]]}}, with any transform of the '
            'SDK, and "coordinates" if not in px; or a matrix or grid of NumPy (.npy); from OUT to '
            "IN",
        },
    ),
}
"""Flags that say all about where pixels go, of which there is one at most."""


def add_command(commands: Any) -> None:
    """Adds the parser of the subcommand, which sets `run`."""
    parser = commands.add_parser(
        "warp",
        help="rotate, scale, shift and bend image files",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_warp, refuse=parser.error)
    parser.add_argument("sources", nargs="+", metavar="IN", help="image file, folder or pattern")
    parser.add_argument("destination", metavar="OUT", help="file, or folder for several")
    _add_similarity(parser)
    for name, way in _WAYS.items():
        parser.add_argument(f"--{name}", **way.argument)
    parser.add_argument(
        "--size",
        type=number(int, 1),
        nargs=2,
        metavar=("W", "H"),
        help="of OUT, in px (default: as IN, or as the grid or flow of --transform)",
    )
    parser.add_argument(
        "--jobs",
        type=number(int, 1),
        default=_DEFAULT_JOBS,
        metavar="N",
        help="files at a time (default: %(default)s)",
    )
    add_reading(parser)


def _add_similarity(parser: argparse.ArgumentParser) -> None:
    """Adds flags that move images about their centres, and go together."""
    parser.add_argument("--rotate", type=finite, default=0.0, metavar="DEG", help="anticlockwise")
    parser.add_argument("--scale", type=_positive, default=1.0, metavar="S", help="above 1: larger")
    parser.add_argument(
        "--translate",
        type=finite,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("X", "Y"),
        help="in px, to the right and down",
    )


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")


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
        frames.append(warped(client, limits(), frame, size, options, **moved))
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
    for name, way in _WAYS.items():
        if (value := getattr(options, name)) is not None:
            return way.transform(value, output_size)
    theta = pixel_theta(
        input_size=input_size,
        output_size=output_size,
        rotate_deg=options.rotate,
        scale=options.scale,
        translate_px=options.translate,
    )
    return {"transform": Affine(theta[None]), "coordinates": "pixel"}
