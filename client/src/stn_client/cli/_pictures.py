"""What subcommands that warp image files share: flags for how images are read, and the warp."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from dataclasses import replace
from typing import Any, Unpack

from stn_client import tiling
from stn_client._client import Client
from stn_client._options import GridOptions
from stn_client._server_info import Limits
from stn_client._transforms import Affine, Homography, ThinPlateSpline, Transform
from stn_client.cli._images import Frame
from stn_client.cli._terminal import number


def add_reading(parser: argparse.ArgumentParser) -> None:
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
        type=finite,
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


def finite(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")


def warped(
    client: Client,
    limits: Limits,
    frame: Frame,
    size: tuple[int, int],
    options: argparse.Namespace,
    transform: Transform,
    **units: Unpack[GridOptions],
) -> Frame:
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
