"""Draws the pictures of the engine's README; with `--check`, fails if one is stale.

Whatever a picture shows of a warp is computed by the engine, through its public operations, in
float64: no grey level hangs on the last bit of a sum, so that every backend draws the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stn_engine import Affine, Padding, SamplingGrid, Similarity, Translation, generate_grid, warp

FOLDER = Path(__file__).parents[1] / "stn_engine/docs"

IDENTITY = Affine(torch.eye(2, 3, dtype=torch.float64)[None])
GAP_PX, CAPTION_PX, CELL_PX, PANEL_PX = 8, 24, 56, 144
PATCH = (slice(None), slice(None), slice(14, 32), slice(48, 66))
ENLARGED = (180, 180)
"""Ten times the patch. Even, so that no target pixel lies halfway between two pixels of it."""
FILL = (255.0, 190.0, 80.0)
INK, ACCENT, PAPER = (40, 40, 40), (200, 30, 30), (255, 255, 255)
LOW, HIGH = np.array([222.0, 235.0, 247.0]), np.array([66.0, 146.0, 198.0])


def padding() -> Image.Image:
    """A photo, zoomed out and turned, under every padding."""
    away = Similarity(torch.tensor([[2.2, 0.2, 0.0, 0.0]], dtype=torch.float64))
    size = (PANEL_PX, PANEL_PX)
    panels = {
        name: _photo_image(warp(_photo(), away, size, padding=name, fill=FILL)) for name in Padding
    }
    return _sheet(panels)


def interpolation() -> Image.Image:
    """A few pixels of a photo, enlarged by every interpolation."""
    patch = _photo()[PATCH]
    panels = {
        name: _photo_image(warp(patch, IDENTITY, ENLARGED, interpolation=name, padding="border"))
        for name in ("nearest", "bilinear", "bicubic")
    }
    return _sheet(panels)


def align_corners() -> Image.Image:
    """Where -1 and 1 lie on a map of four pixels, and where a resize to eight reads it."""
    return _sheet({f"align_corners={flag}": _resize(align=flag) for flag in (False, True)})


def pixel() -> Image.Image:
    """A point in pixel coordinates, and an integer shift."""
    ramp = torch.tensor([[[[10.0 * y + x for x in range(4)] for y in range(3)]]]).double()
    point = torch.tensor([[[[1.25, 1.5]]]], dtype=torch.float64)
    value = warp(ramp, SamplingGrid(point), coordinates="pixel").item()
    read, draw = _cells(ramp)
    x, y = ((1 / 2 + coordinate) * CELL_PX for coordinate in point.flatten().tolist())
    draw.rectangle((CELL_PX, CELL_PX, 3 * CELL_PX, 3 * CELL_PX), outline=ACCENT, width=3)
    _dot(draw, x, y, ACCENT)
    shift = Translation(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    shifted, _ = _cells(warp(ramp, shift, coordinates="pixel"))
    return _sheet({f"(x, y) = (1.25, 1.5) reads {value:g}": read, "t = (1, 0)": shifted})


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "align_corners": align_corners,
    "interpolation": interpolation,
    "padding": padding,
    "pixel": pixel,
}


def main() -> None:
    """Draws all pictures, or compares them with `--check`."""
    for name, draw in PICTURES.items():
        path = FOLDER / f"{name}.png"
        if "--check" not in sys.argv[1:]:
            draw().save(path, optimize=True)
        elif not _equal(Image.open(path), draw()):
            raise SystemExit(f"{path.name}: the picture is not fresh. Run `make docs`.")


def _photo() -> Tensor:
    """A photo, (1, 3, 128, 128), 0 to 255."""
    photo = torch.from_numpy(skimage.data.astronaut()).double().permute(2, 0, 1)[None]
    return torch.nn.functional.avg_pool2d(photo, 4)


def _photo_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(_levels(picture[0].permute(1, 2, 0).numpy()))


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Rounded and saturated; a tie is lifted, so that its last bit does not decide."""
    return np.clip(np.rint(values + 1e-6), 0, 255).astype(np.uint8)


def _shade(value: float, largest: float) -> tuple[int, ...]:
    return tuple(_levels(LOW + (HIGH - LOW) * value / largest).tolist())


def _resize(*, align: bool) -> Image.Image:
    """A map of four pixels, above the points that an identity to eight pixels reads, and V."""
    values = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]], dtype=torch.float64)
    result = warp(values, IDENTITY, (1, 8), padding="border", align_corners=align)
    points = generate_grid(IDENTITY, (1, 8), align_corners=align)[0, 0, :, 0].tolist()
    picture = Image.new("RGB", (5 * CELL_PX, 3 * CELL_PX), PAPER)
    picture.paste(_cells(values)[0], (CELL_PX // 2, 0))
    draw = ImageDraw.Draw(picture)
    for x in (-1.0, 0.0, 1.0):
        _tick(draw, _across(x, align=align), f"{x:g}")
    for x, value in zip(points, result.flatten().tolist(), strict=True):
        across = _across(x, align=align)
        _dot(draw, across, 2.05 * CELL_PX, _shade(value, 3.0))
        _write(draw, (across, 2.5 * CELL_PX), f"{value:.2f}", size=11)
    return picture


def _across(x: float, *, align: bool) -> float:
    """Where a normalized coordinate of a map of four pixels lies in the picture."""
    x_px = (x + 1) / 2 * 3 if align else ((x + 1) * 4 - 1) / 2
    return (x_px + 1) * CELL_PX


def _cells(values: Tensor) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A feature map of one channel, pixel by pixel with its values."""
    rows = values[0, 0].tolist()
    largest = float(values.max())
    picture = Image.new("RGB", (CELL_PX * len(rows[0]) + 1, CELL_PX * len(rows) + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            left, top = j * CELL_PX, i * CELL_PX
            box = (left, top, left + CELL_PX, top + CELL_PX)
            draw.rectangle(box, fill=_shade(value, largest), outline=INK)
            _write(draw, (left + CELL_PX / 2, top + CELL_PX / 2), f"{value:g}")
    return picture, draw


def _tick(draw: ImageDraw.ImageDraw, x: float, text: str) -> None:
    draw.line((x, 0.8 * CELL_PX, x, 1.2 * CELL_PX), fill=ACCENT, width=3)
    _write(draw, (x, 1.45 * CELL_PX), text, colour=ACCENT)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, ...]) -> None:
    draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour, outline=INK)


def _write(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    text: str,
    size: int = 14,
    colour: tuple[int, ...] = INK,
) -> None:
    font = ImageFont.load_default(size)
    draw.text(centre, text, fill=colour, font=font, anchor="mm")


def _sheet(panels: dict[str, Image.Image]) -> Image.Image:
    """Panels side by side, each under its caption."""
    width = sum(panel.width + GAP_PX for panel in panels.values()) + GAP_PX
    height = max(panel.height for panel in panels.values()) + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, left = ImageDraw.Draw(sheet), GAP_PX
    for caption, panel in panels.items():
        _write(draw, (left + panel.width / 2, CAPTION_PX / 2), caption)
        sheet.paste(panel, (left, CAPTION_PX))
        left += panel.width + GAP_PX
    return sheet


def _equal(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.convert("RGB").tobytes() == other.tobytes()


if __name__ == "__main__":
    main()
