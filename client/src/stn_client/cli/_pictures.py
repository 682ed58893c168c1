"""The subcommands `warp` and `align`: image files through a server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_client._client import Client
from stn_client._transforms import Affine
from stn_client.cli import _images
from stn_client.cli._geometry import pixel_theta
from stn_client.registration import align


def add_commands(commands: Any) -> None:
    """Adds the parsers of the subcommands, which set `run`."""
    warp = commands.add_parser(
        "warp", help="rotate, scale and shift an image file", allow_abbrev=False
    )
    warp.set_defaults(run=_warp)
    warp.add_argument("source", type=Path, metavar="IN")
    warp.add_argument("destination", type=Path, metavar="OUT")
    warp.add_argument("--rotate", type=float, default=0.0, metavar="DEG", help="anticlockwise")
    warp.add_argument("--scale", type=_positive, default=1.0, metavar="S", help="above 1: larger")
    warp.add_argument(
        "--translate", type=float, nargs=2, default=(0.0, 0.0), metavar=("X", "Y"), help="in px"
    )
    warp.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="of OUT, in px")
    aligned = commands.add_parser(
        "align", help="warp an image file so that it fits another", allow_abbrev=False
    )
    aligned.set_defaults(run=_align)
    aligned.add_argument("fixed", type=Path, metavar="FIXED")
    aligned.add_argument("moving", type=Path, metavar="MOVING")
    aligned.add_argument("destination", type=Path, metavar="OUT")
    for command in (warp, aligned):
        _add_reading(command)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How the server reads between pixels, and outside."""
    parser.add_argument(
        "--interpolation", default="bilinear", choices=("nearest", "bilinear", "bicubic")
    )
    parser.add_argument(
        "--padding", default="zeros", choices=("zeros", "border", "reflection", "fill")
    )
    parser.add_argument("--fill", type=float, nargs="+", default=[0.0], metavar="V")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "layout": "NHWC",
        "interpolation": options.interpolation,
        "padding": options.padding,
        "fill": options.fill,
    }


def _warp(client: Client, options: argparse.Namespace) -> None:
    image = _images.read(options.source)
    height, width = image.shape[:2]
    size = (height, width) if options.size is None else (options.size[1], options.size[0])
    theta = pixel_theta(
        input_size=(height, width),
        output_size=size,
        rotate_deg=options.rotate,
        scale=options.scale,
        translate_px=options.translate,
    )
    transform = Affine(theta[None])
    warped = client.warp(image[None], transform, size, coordinates="pixel", **_reading(options))
    _images.write(options.destination, warped[0])


def _align(client: Client, options: argparse.Namespace) -> None:
    fixed, moving = _images.read(options.fixed), _images.read(options.moving)
    try:
        *_, last = align(client, _grey(fixed), _grey(moving))
    except ValueError as error:
        raise _images.ImageError(error) from error
    aligned = client.warp(moving[None], Affine(last.theta), fixed.shape[:2], **_reading(options))
    _images.write(options.destination, aligned[0])
    print(f"theta {last.theta[0].tolist()}\nloss {last.loss:.4f}")  # noqa: T201


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(1, 1, H, W), the mean of the colours; opacity is none."""
    grey: NDArray[np.float32] = image[..., :3].mean(-1, dtype=np.float32)
    return grey[None, None]
