"""Image files to arrays and back, through Pillow (extra `images`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ImageError(Exception):
    """A file cannot be read or written as an image."""


def read(path: Path) -> NDArray[np.uint8]:
    """An image as (H, W, C) uint8; grey has one channel, colour three, with opacity four."""
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            mode = image.mode if image.mode in {"L", "RGB", "RGBA"} else "RGB"
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, pillow.DecompressionBombError) as error:
        raise ImageError(f"{path}: expected an image file, got {error}.") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def write(path: Path, pixels: NDArray[Any]) -> None:
    """Writes (H, W, C) uint8 in the format that the file's ending names."""
    image = _pillow().fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: expected a writable image file, got {error}.") from error


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImageError(
            "Pillow: expected it, got none. In the checkout: pip install './client[images]'"
        ) from error
    return Image
