"""Image files to arrays and back, through Pillow (extra `images`).

Between its two ends a frame is an array that can be interpolated: colours weighted by their
opacity, so that what is transparent lends no colour to its neighbours, and numbers that hold the
depth of the file. Pixels that stand for something else, as those of a palette do, become colours;
the interpolation nearest leaves them as they are.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


INSTALL = "In the checkout: pip install './client[images]'"


class ImageError(Exception):
    """A file cannot be read or written as an image."""


class Treatment(NamedTuple):
    """How the pixels of a Pillow mode are converted."""

    mode: str
    """The mode that they are brought to, interpolated and written in."""
    computed: type
    """The type that the server computes with, which holds every value of the mode."""


TREATMENTS = {
    "1": Treatment("L", np.uint8),
    "L": Treatment("L", np.uint8),
    "LA": Treatment("LA", np.float32),
    "La": Treatment("LA", np.float32),
    "P": Treatment("RGB", np.uint8),
    "PA": Treatment("RGBA", np.float32),
    "RGB": Treatment("RGB", np.uint8),
    "RGBX": Treatment("RGB", np.uint8),
    "RGBA": Treatment("RGBA", np.float32),
    "RGBa": Treatment("RGBA", np.float32),
    "CMYK": Treatment("CMYK", np.uint8),
    "YCbCr": Treatment("RGB", np.uint8),
    "HSV": Treatment("RGB", np.uint8),
    "I;16": Treatment("I;16", np.float32),
    "I;16L": Treatment("I;16", np.float32),
    "I;16B": Treatment("I;16", np.float32),
    "I;16N": Treatment("I;16", np.float32),
    "I": Treatment("I", np.float64),
    "F": Treatment("F", np.float32),
}
"""Pillow's modes; those that are not here (LAB) are refused."""

_LABELS = ("1", "P")
"""Modes that the interpolation nearest keeps: their values need not be colours."""

_WITH_OPACITY = {"L": "LA", "LA": "LA", "RGB": "RGBA", "RGBA": "RGBA"}
"""The modes that have an opacity, also for those in which a value may be declared transparent."""

_STORED: dict[str, np.dtype[Any]] = {
    "I;16": np.dtype("<u2"),
    "I": np.dtype(np.int32),
    "F": np.dtype(np.float32),
}
"""Types of the pixels of a mode, where that is not uint8."""

_NEEDS = {
    "LA": ("transparency", ".png, .webp or .tif"),
    "RGBA": ("transparency", ".png, .webp or .tif"),
    "CMYK": ("CMYK", ".tif or .jpg"),
    "I;16": ("16 bits", ".png or .tif"),
    "I": ("32-bit numbers", ".tif"),
    "F": ("floating-point numbers", ".tif"),
}
"""Features that a format has to have, and the formats that have them."""

_PREVIEWS = ("MPO", "PSD")
"""Formats whose first frame is the picture: the others are previews, depth, or layers of it."""

_MAX_PIXELS = 2**29
"""Pillow's own limit guards services against files of strangers: cameras have passed it."""

_LOSSY = ("JPEG", "WEBP", "AVIF")
_QUALITY = 95

_KEPT_TAGS = frozenset(
    {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246}  # what, with what, when, by whom
    | {33432, 34665, 34853, *range(40091, 40096)}  # copyright, camera, place, the same of Windows
)
"""Tags of EXIF that are as true of the new file. Others, with orientation and thumbnail, tell how
pixels were stored, or, of a map, where they lay."""

_COMPRESSIONS = ("packbits", "tiff_adobe_deflate", "tiff_deflate", "tiff_lzw")
"""Compressions of TIFF that lose nothing and take every mode: they are kept."""

_PHOTOMETRIC, _X_RESOLUTION, _SAMPLE_FORMAT = 262, 282, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
"""Tags of TIFF, and values of theirs."""

_EXIF_IFD, _GPS_IFD, _EXIF_WIDTH, _EXIF_HEIGHT = 0x8769, 0x8825, 0xA002, 0xA003


@dataclass(frozen=True)
class Frame:
    """An image of a file, between being read and written.

    Attributes:
        values: (H, W, C) in a type that can be interpolated; colours times their opacity.
        mode: Of Pillow, to be written in.
        weighted: Whether the colours are weighted by their opacity, the last channel.
        palette: What the values of mode P stand for.
        transparent: Values of mode P that are transparent, as Pillow says it.
        duration_ms: How long it is shown in an animation.
    """

    values: Array
    mode: str
    weighted: bool = False
    palette: Any = None
    transparent: Any = None
    duration_ms: float | None = None

    def straight(self) -> Array:
        """Returns the values with colours not weighted by opacity; 0 where nothing is seen."""
        if not self.weighted:
            return self.values
        weighted, opacity = self.values[..., :-1], self.values[..., -1:]
        colours = np.zeros_like(weighted)
        np.divide(weighted * 255, opacity, out=colours, where=np.rint(opacity) > 0)
        return np.concatenate([colours, opacity], axis=-1)

    def fill(self, constant: Sequence[float]) -> list[float]:
        """Returns a constant, one or one per channel, weighted by opacity as the values are."""
        if not self.weighted or not any(constant):
            return list(constant)
        channels = self.values.shape[-1]
        if len(constant) not in {1, channels}:
            raise ImageError(
                f"fill: expected 1 or {channels} numbers (the last is the opacity) for an image "
                f"with transparency, got {len(constant)}."
            )
        *colours, opacity = constant if len(constant) == channels else constant * channels
        return [*(colour * opacity / 255 for colour in colours), opacity]


@dataclass(frozen=True)
class Picture:
    """The contents of an image file.

    Attributes:
        frames: One, or several of an animation or of pages.
        parameters: What Pillow shall write beside them: resolution, profile, EXIF, and so on.
    """

    frames: list[Frame]
    parameters: dict[str, Any]


def format_of(path: Path) -> str:
    """Returns the format of a file name's ending, one that Pillow can write.

    Raises:
        ImageError: There is none.
    """
    pillow = _pil().Image
    format_ = pillow.registered_extensions().get(path.suffix.lower())
    if format_ not in pillow.SAVE:
        got = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise ImageError(
            f"{path}: expected the name of an image file, got {got}. Write .png, .jpg, .tif, …"
        )
    return str(format_)


def is_image(path: Path) -> bool:
    """Returns whether the ending of a file name is of a format that Pillow can read."""
    pillow = _pil().Image
    return pillow.registered_extensions().get(path.suffix.lower()) in pillow.OPEN


def read(path: Path, format_: str | None = None, *, nearest: bool = False) -> Picture:
    """Reads the frames of a file, upright, in modes that a format holds.

    Args:
        path: The file.
        format_: Where the frames are to go; None: nowhere.
        nearest: Whether pixels will only be moved: then labels are kept, and no colour is weighted.

    Raises:
        ImageError: It is no image, or one whose pixels would lose something.
    """
    pillow = _pil().Image
    try:
        with pillow.open(path) as image:
            return _picture(path, image, format_, nearest=nearest)
    except ImageError:
        raise
    except Exception as error:  # broken files make Pillow's plugins raise almost anything
        raise ImageError(f"{path}: expected an image file, got {error}.") from error


def write_picture(path: Path, values: NDArray[np.uint8]) -> None:
    """Writes colours, (H, W, 3), in the format that the name of a file says."""
    format_ = format_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _pil().Image.fromarray(values).save(path, format=format_)


def write(path: Path, picture: Picture, *, quality: int | None = None) -> None:
    """Writes a file in the format that its ending names, wholly or not at all.

    Args:
        path: The file; one that is there is replaced when the new one is complete.
        picture: Its frames, in modes that the format holds.
        quality: Of lossy formats, 1 to 100; None: that of the source, else 95.

    Raises:
        ImageError: It cannot be written.
    """
    format_ = format_of(path)
    parameters = {**picture.parameters}
    if format_ != "JPEG" or quality is not None:
        for name in ("qtables", "subsampling"):
            parameters.pop(name, None)
    if format_ in _LOSSY and "qtables" not in parameters:
        parameters["quality"] = _QUALITY if quality is None else quality
    images = [_image(frame) for frame in picture.frames]
    if len(images) > 1:
        _check_frames(path, images, format_)
        parameters |= {"save_all": True, "append_images": images[1:]}
        durations = [frame.duration_ms for frame in picture.frames]
        if format_ != "TIFF" and any(durations):
            parameters["duration"] = [duration or 0 for duration in durations]
        if format_ == "GIF":
            parameters["disposal"] = 2  # every frame is whole
    exif = parameters.pop("exif", None)
    if exif is not None:
        parameters["exif"] = _resized(exif, images[0].size)
    try:
        _replace(path, images[0], format_, parameters)
    except Exception as error:  # as when reading
        raise ImageError(f"{path}: expected a writable image file, got {error}.") from error


def _replace(path: Path, image: Any, format_: str, parameters: dict[str, Any]) -> None:
    """Writes beside a file, then takes its place, and leaves nothing beside it."""
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OSError("a folder, a pipe or a device")  # which the file would replace
    beside = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        with beside.open("x+b") as file:  # pages of TIFF are read again while they are written
            image.save(file, format_, **parameters)
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _picture(path: Path, image: Any, format_: str | None, *, nearest: bool) -> Picture:
    count = 1 if image.format in _PREVIEWS else getattr(image, "n_frames", 1)
    if count > 1 and format_ is not None and not _holds_frames(format_, "L"):
        raise _refusal(path, f"{count} frames", ".gif, .png, .webp or .tif", format_)
    frames: list[Frame] = []
    parameters: dict[str, Any] = {}
    for number in range(count):
        image.seek(number)
        if _is_deeper_than_read(path, image):
            raise ImageError(
                f"{path}: expected colours of 8 bits, got deeper ones, of which Pillow reads 8 "
                "bits. Make them 8 bits, or grey of 16."
            )
        _check_numbers(path, image)
        upright = _pil().ImageOps.exif_transpose(image)
        if image.format == "PPM" and upright.mode == "I":  # which has 16 bits at most
            upright = upright.convert("I;16")
        parameters = parameters or _parameters(image)
        kept = nearest and count == 1 and upright.mode in _LABELS
        kept = kept and not (upright.mode == "1" and upright.has_transparency_data)
        if kept and (format_ is None or _holds(format_, upright.mode)):
            frame = _labels(upright)
        else:
            frame = _colours(path, upright, nearest=nearest)
            if format_ is not None and not _holds(format_, frame.mode):
                raise _refusal(
                    path, *_NEEDS.get(frame.mode, (f"mode {frame.mode}", ".png")), format_
                )
        frames.append(replace(frame, duration_ms=image.info.get("duration")))
    return Picture(frames, parameters)


def _labels(image: Any) -> Frame:
    """Returns the values of mode 1 or P as labels."""
    if image.mode == "1":
        return Frame(np.asarray(image.convert("L"))[..., None], "1")
    palette, transparent = image.getpalette("RGB"), image.info.get("transparency")
    return Frame(np.asarray(image)[..., None], "P", palette=palette, transparent=transparent)


def _colours(path: Path, image: Any, *, nearest: bool) -> Frame:
    """Returns values that can be interpolated, by the table of modes."""
    if image.mode not in TREATMENTS:
        raise ImageError(
            f"{path}: expected a mode that can be warped, got {image.mode}. Make it RGB."
        )
    mode, computed = TREATMENTS[image.mode]
    if image.has_transparency_data:  # a channel, or a value that stands for it
        if mode not in _WITH_OPACITY:
            raise ImageError(
                f"{path}: expected no transparent value beside mode {image.mode}, got one. Drop it."
            )
        mode = _WITH_OPACITY[mode]
        computed = TREATMENTS[mode].computed
    weighted = mode in _WITH_OPACITY.values() and not nearest
    if image.mode not in {mode, "I;16L", "I;16B", "I;16N"}:
        image = image.convert(mode)
    values = np.asarray(image)
    values = values.reshape(*values.shape[:2], -1)
    if nearest and mode in _WITH_OPACITY.values():
        return Frame(values, mode)
    values = values.astype(computed)
    if weighted:
        values[..., :-1] *= values[..., -1:] / 255
    return Frame(values, mode, weighted)


def _image(frame: Frame) -> Any:
    """Returns the Pillow image of a frame, rounded and clipped to its mode."""
    values = frame.straight()
    stored: np.dtype[Any] = _STORED.get(frame.mode, np.dtype(np.uint8))
    if values.dtype != stored:
        values = np.clip(np.rint(values), np.iinfo(stored).min, np.iinfo(stored).max)
    height, width, _ = values.shape
    mode = "L" if frame.mode == "1" else frame.mode
    pixels = values.astype(stored).tobytes()
    image = _pil().Image.frombytes(mode, (width, height), pixels)
    if frame.mode == "1":
        return image.convert("1", dither=_pil().Image.Dither.NONE)
    if frame.palette is not None:
        image.putpalette(frame.palette, "RGB")
    if frame.transparent is not None:
        image.info["transparency"] = frame.transparent
    return image


def _parameters(image: Any) -> dict[str, Any]:
    """Returns what Pillow writes beside the pixels; each format takes what it knows."""
    info = image.info
    names = {"dpi", "icc_profile", "loop"}
    if _X_RESOLUTION not in getattr(image, "tag_v2", {_X_RESOLUTION: None}):
        names.remove("dpi")  # Pillow makes one of a TIFF file that has none
    if info.get("compression") in _COMPRESSIONS:
        names.add("compression")
    parameters = {name: info[name] for name in sorted(names) if info.get(name) is not None}
    if exif := _true_exif(image.getexif()):
        parameters["exif"] = exif
    if getattr(image, "default_image", False):
        parameters["default_image"] = True
    if image.format in {"JPEG", "MPO"}:
        parameters["qtables"] = image.quantization
        parameters["subsampling"] = _pil().JpegImagePlugin.get_sampling(image)
    return parameters


def _true_exif(exif: Any) -> Any:
    """Returns the tags of EXIF that are kept; None if there are none."""
    kept = _pil().Image.Exif()
    for tag in _KEPT_TAGS.intersection(exif):
        if tag in {_EXIF_IFD, _GPS_IFD}:
            kept.get_ifd(tag).update(exif.get_ifd(tag))
        kept[tag] = exif[tag]
    return kept if len(kept) else None


def _resized(exif: Any, size: tuple[int, int]) -> bytes:
    """Returns EXIF with the present size, where it states one, and without its thumbnail."""
    details = exif.get_ifd(_EXIF_IFD)
    for tag, length in zip((_EXIF_WIDTH, _EXIF_HEIGHT), size, strict=True):
        if tag in details:
            details[tag] = length
    return bytes(exif.tobytes())


def _is_deeper_than_read(path: Path, image: Any) -> bool:
    """Returns whether a file has more bits than Pillow reads, which does not warn of it."""
    if image.mode.startswith(("I", "F")):
        return False
    if image.format in {"JPEG2000", "AVIF"}:
        return codestream_bits(path) > 8
    for codec, _, _, arguments in image.tile:
        names = arguments if isinstance(arguments, tuple) else (arguments,)
        if any(";16" in name for name in names if isinstance(name, str)):
            return True
        if codec == "SGI16" or (codec == "sgi_rle" and names[-1] == 2):  # bytes of a value
            return True
        if codec.startswith("ppm") and names[-1] > 255:
            return True
    return False


def _check_numbers(path: Path, image: Any) -> None:
    """Checks that Pillow converts the numbers of a TIFF file; some it takes as they are.

    Raises:
        ImageError: They are not.
    """
    tags = getattr(image, "tag_v2", {})
    is_signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    is_deep = image.mode.startswith(("I", "F"))
    if is_deep and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        numbers = "numbers of more than 8 bits with black as 0, got white as 0. Invert them."
    elif is_signed and not is_deep:
        numbers = "numbers of 8 bits from 0 on, got signed ones. Make them 16 bits."
    elif tags and image.mode == "I" and not is_signed and image.getextrema()[0] < 0:
        numbers = "numbers below 2147483648, got larger ones. Make them floating-point numbers."
    else:
        return
    raise ImageError(f"{path}: expected {numbers}")


def codestream_bits(path: Path) -> int:
    """Returns the bits of a colour, from the headers of JPEG 2000 (SIZ) or AVIF (av1C)."""
    with path.open("rb") as file:
        head = file.read(65536)
    if (begin := head.find(b"\xff\x4f\xff\x51")) >= 0:
        return (head[begin + 42] & 0x7F) + 1
    if (begin := head.find(b"av1C")) >= 0:
        return 10 if head[begin + 6] & 0x40 else 8
    return 8


@cache
def _holds(format_: str, mode: str) -> bool:
    """Returns whether a format keeps a mode, by writing and reading a sample.

    Formats that know no such mode raise; others quietly write something else.
    """
    pillow = _pil().Image
    probe = pillow.new(mode, (16, 16), {"I;16": 40_000, "I": -70_000, "F": 0.1}.get(mode, 0))
    buffer = BytesIO()
    try:
        probe.save(buffer, format_)
        with pillow.open(buffer) as back:
            pixels = np.asarray(back)
    except Exception:  # noqa: BLE001 - as its plugins do
        return False
    if mode in _STORED:
        return np.array_equal(pixels, np.asarray(probe))
    if mode in _WITH_OPACITY.values():
        return bool(back.has_transparency_data)
    return mode in {"L", "RGB"} or back.mode == mode


def _check_frames(path: Path, images: Sequence[Any], format_: str) -> None:
    """Checks that a format keeps all frames: animations keep less than single images.

    Raises:
        ImageError: It does not.
    """
    for mode in sorted({image.mode for image in images}):
        if not _holds_frames(format_, mode):
            needed, _ = _NEEDS.get(mode, (f"mode {mode}", ""))
            raise _refusal(path, f"frames of {needed}", ".tif", format_)
    if len({image.size for image in images}) > 1 and not _holds_frames(format_, "L", larger_px=1):
        raise _refusal(path, "frames of different sizes", ".tif, or give --size", format_)


@cache
def _holds_frames(format_: str, mode: str, larger_px: int = 0) -> bool:
    """Returns whether a format keeps two frames of a mode, by writing and reading a sample.

    Args:
        format_: The format.
        mode: The mode of both.
        larger_px: How much the first one is larger than the second one.
    """
    pillow = _pil().Image
    # To what looks at 8 bits of deeper numbers to find what has changed, that is one pixel.
    values = (40_000, 50_000) if mode in _STORED else (0, 255)
    bands = len(pillow.new(mode, (1, 1)).getbands())
    sizes = (16 + larger_px, 16), (16, 16)
    first, second = (
        pillow.new(mode, size, (value,) * bands) for size, value in zip(sizes, values, strict=True)
    )
    second.paste(0, (8, 8, 9, 9))
    buffer = BytesIO()
    try:
        first.save(buffer, format_, save_all=True, append_images=[second])
        with pillow.open(buffer) as back:
            if getattr(back, "n_frames", 1) != 2:
                return False
            back.seek(1)
            same = mode not in _STORED or np.array_equal(np.asarray(back), np.asarray(second))
            return same and back.size == second.size
    except Exception:  # noqa: BLE001 - as its plugins do
        return False


def _refusal(path: Path, needed: str, formats: str, format_: str) -> ImageError:
    return ImageError(
        f"{path}: expected to be written in a format that holds {needed}, got {format_}. "
        f"Write {formats}."
    )


def _pil() -> Any:
    """Returns the module of Pillow with all its plugins loaded."""
    try:
        import PIL.Image  # noqa: PLC0415 - optional
        import PIL.ImageOps  # noqa: PLC0415
        import PIL.JpegImagePlugin  # noqa: PLC0415
    except ImportError as error:
        raise ImageError(f"Pillow: expected it, got none. {INSTALL}") from error
    PIL.Image.init()
    PIL.Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    return PIL
