"""What `stn` makes of image files: modes, depth, opacity, metadata, frames; checked by Pillow."""

import io
import json
import math
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin

from stn_client.cli import main
from stn_client.cli._images import (
    TREATMENTS,
    ImageError,
    codestream_bits,
    format_of,
    read,
    write,
)
from stn_client.local import LocalServer

RNG_SEED = 5
SIZE = (12, 9)
"""(W, H), as Pillow says it."""

EXTREMES = {
    "I;16": np.array([[0, 1, 255], [256, 40_001, 65_535]], "<u2"),
    "I": np.array([[-(2**31), -1, 0], [1, 2**24 + 1, 2**31 - 1]], np.int32),
    "F": np.array([[-1e30, -0.5, 0.0], [1e-7, 0.1, 1e30]], np.float32),
}


def random_pixels(channels, seed=RNG_SEED, size=SIZE):
    shape = (size[1], size[0], channels)[: 3 if channels > 1 else 2]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def image_of(mode, size=SIZE):
    """Random pixels in a mode of 8 bits."""
    if mode == "1":
        return Image.fromarray(random_pixels(1, size=size) > 127)
    if mode == "P":
        image = Image.fromarray(random_pixels(1, size=size) % 7)
        image.putpalette(list(range(40, 61)), "RGB")
        return image
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = random_pixels(channels, size=size)
    return Image.frombytes(mode, size, pixels.tobytes())


def warp(server, source, destination, *flags):
    """The exit code of `stn warp` to a running server."""
    return main([f"--target={server.target}", "warp", str(source), str(destination), *flags])


def pixels_of(path):
    with Image.open(path) as image:
        image.load()
        return image.mode, np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_colours_round_trip(tmp_path, mode, name):
    """Whatever the opacity, what can be seen comes back; what cannot, is black."""
    image = image_of(mode)
    image.save(tmp_path / name)
    write(tmp_path / f"out-{name}", read(tmp_path / name, format_of(tmp_path / name)))
    found, pixels = pixels_of(tmp_path / f"out-{name}")
    expected = np.asarray(image).copy()
    if mode in {"LA", "RGBA"}:
        expected[expected[..., -1] == 0] = 0
    assert found == mode
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("mode", "name"), [("I;16", "a.png"), ("I;16", "a.tif"), ("I", "a.tif"), ("F", "a.tif")]
)
def test_deep_images_keep_every_bit(local_server, tmp_path, mode, name):
    """16 and 32 bits and floats, extremes included, through a server that turns them over."""
    pixels = EXTREMES[mode]
    height, width = pixels.shape
    Image.frombytes(mode, (width, height), pixels.tobytes()).save(tmp_path / name)
    out = tmp_path / f"out-{name}"
    assert warp(local_server, tmp_path / name, out, "--rotate=180") == 0
    found, turned = pixels_of(out)
    assert found == mode
    np.testing.assert_array_equal(turned, pixels[::-1, ::-1])


def test_deep_images_of_big_endian_files_are_read(tmp_path):
    """TIFF in the order of a Macintosh: mode I;16B of Pillow."""
    pixels = EXTREMES["I;16"]
    Image.frombytes("I;16B", (3, 2), pixels.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert pixels_of(tmp_path / "a.tif")[0] == "I;16B"
    write(tmp_path / "out.png", read(tmp_path / "a.tif", "PNG"))
    mode, found = pixels_of(tmp_path / "out.png")
    assert mode == "I;16"
    np.testing.assert_array_equal(found, pixels)


def test_16_bits_are_interpolated_in_their_depth(local_server, tmp_path):
    """Halfway between 1000 and 1003 is 1001.5, rounded to even; eight bits know neither."""
    Image.fromarray(np.array([[1000, 1003, 1003]], np.uint16)).save(tmp_path / "a.png")
    flags = ("--translate", "0.5", "0", "--padding=border")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.png")[1], [[1000, 1002, 1003]])


def test_values_beyond_the_mode_are_clipped(local_server, tmp_path):
    """Cubic interpolation overshoots at an edge: it does not wrap around."""
    pixels = np.array([[0, 0, 0, 65535, 65535, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    flags = ("--translate", "0.5", "0", "--padding=border", "--interpolation=bicubic")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 0
    # by hand, Keys' kernel with a = -0.75: (-3, 19, 19, -3) / 32; rounded half to even
    expected = [[0, 0, 0, 32768, 65535, 65535]]
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.png")[1], expected)


def test_modes_are_one_table():
    """Every mode that Pillow knows is treated or refused, and no other."""
    refused = {"LAB"}
    known = {"1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA"}
    known |= {"RGBX", "RGBa", "La", "I;16", "I;16L", "I;16B", "I;16N"}
    assert known == {*TREATMENTS, *refused}
    for mode in known:
        Image.new(mode, (1, 1))


@pytest.mark.parametrize("mode", ["1", "P"])
def test_labels_become_colours_to_be_interpolated(local_server, tmp_path, mode):
    """Between two labels there is no third: what they look like is mixed."""
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([0, 100, 200, 100, 200, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    flags = ("--translate", "0.5", "0", "--padding=border")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 0
    found, pixels = pixels_of(tmp_path / "b.png")
    if mode == "P":
        assert found == "RGB"
        np.testing.assert_array_equal(pixels, [[[0, 100, 200], [50, 150, 100]]])
    else:
        assert found == "L"
        np.testing.assert_array_equal(pixels, [[0, 128]])


@pytest.mark.parametrize("mode", ["1", "P"])
def test_nearest_keeps_labels(local_server, tmp_path, mode):
    """A mask stays a mask: its mode, its values, its palette and what is transparent in it."""
    image = image_of(mode)
    image.save(tmp_path / "a.png", **({"transparency": 3} if mode == "P" else {}))
    flags = ("--rotate=180", "--interpolation=nearest")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 0
    found, pixels = pixels_of(tmp_path / "b.png")
    assert found == mode
    np.testing.assert_array_equal(pixels, np.asarray(image)[::-1, ::-1])
    if mode == "P":
        with Image.open(tmp_path / "b.png") as back:
            assert back.getpalette()[:21] == list(range(40, 61))
            assert back.info["transparency"] == 3


def test_nearest_writes_colours_where_labels_cannot_be_held(local_server, tmp_path):
    """JPEG knows no palette."""
    Image.new("P", (8, 8), 3).save(tmp_path / "a.png")
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 200, 200])
    image.save(tmp_path / "a.png")
    assert (
        warp(local_server, tmp_path / "a.png", tmp_path / "b.jpg", "--interpolation=nearest") == 0
    )
    found, pixels = pixels_of(tmp_path / "b.jpg")
    assert (found, pixels[4, 4].tolist()) == ("RGB", [200, 200, 200])


def test_opaque_beside_transparent_keeps_its_colour(local_server, tmp_path):
    """Half a pixel of red, and half of nothing, is red of half the opacity."""
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, :2] = 255, 0, 0, 255
    pixels[0, 2:] = 0, 255, 0, 0  # green that nobody can see
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (
        warp(local_server, tmp_path / "a.png", tmp_path / "b.png", "--translate", "0.5", "0") == 0
    )
    found = pixels_of(tmp_path / "b.png")[1]
    edge, red, nothing = (255, 0, 0, 128), (255, 0, 0, 255), (0, 0, 0, 0)
    np.testing.assert_array_equal(found, [[edge, red, edge, nothing]])


def test_opacity_that_overshoots_is_clipped(local_server, tmp_path):
    """Cubic interpolation leaves [0, 255] on both sides of an edge; colours do not follow."""
    pixels = np.zeros((1, 8, 2), np.uint8)
    pixels[0, 2:6] = 90, 255
    pixels[0, 6:] = 90, 0
    Image.frombytes("LA", (8, 1), pixels.tobytes()).save(tmp_path / "a.png")
    flags = ("--translate", "0.25", "0", "--interpolation=bicubic", "--padding=border")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 0
    found = pixels_of(tmp_path / "b.png")[1]
    seen = found[found[..., 1] > 0]
    assert found[0, 3:5, 1].tolist() == [255, 255]
    assert np.unique(seen[:, 0]).tolist() == [90]
    assert len(seen) < 8


def test_fill_of_transparent_images_is_a_colour_and_its_opacity(local_server, tmp_path):
    """As the file counts, not weighted."""
    Image.new("RGBA", (2, 1), (10, 20, 30, 255)).save(tmp_path / "a.png")
    flags = ("--translate", "1", "0", "--padding=fill", "--fill", "200", "100", "50", "128")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 0
    found = pixels_of(tmp_path / "b.png")[1]
    np.testing.assert_array_equal(found, [[(200, 100, 50, 128), (10, 20, 30, 255)]])


def test_fill_of_transparent_images_has_one_value_or_one_per_channel(
    local_server, tmp_path, capsys
):
    """Three colours do not say how opaque they are."""
    Image.new("RGBA", (2, 1)).save(tmp_path / "a.png")
    flags = ("--padding=fill", "--fill", "200", "100", "50")
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", *flags) == 1
    assert "fill: expected 1 or 4 numbers" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "key", "becomes"), [("RGB", (9, 9, 9), "RGBA"), ("L", 9, "LA")])
def test_a_colour_declared_transparent_becomes_opacity(tmp_path, mode, key, becomes):
    """PNG can name one colour transparent: interpolated, others would be that colour by chance."""
    image = image_of(mode)
    image.putpixel((0, 0), key)
    image.save(tmp_path / "a.png", transparency=key)
    write(tmp_path / "b.png", read(tmp_path / "a.png", "PNG"))
    found, pixels = pixels_of(tmp_path / "b.png")
    assert found == becomes
    assert pixels[0, 0].tolist() == [0] * len(becomes)
    assert pixels[0, 1, -1] == 255


def test_a_transparent_value_of_16_bits_is_refused(tmp_path):
    """No mode of Pillow holds grey of 16 bits with an opacity."""
    Image.fromarray(EXTREMES["I;16"]).save(tmp_path / "a.png", transparency=256)
    with pytest.raises(ImageError, match=r"a\.png: expected no transparent value beside mode I;16"):
        read(tmp_path / "a.png")


def test_cmyk_stays_cmyk(local_server, tmp_path):
    """In TIFF exactly; PNG cannot hold it."""
    image = image_of("CMYK")
    image.save(tmp_path / "a.tif")
    assert warp(local_server, tmp_path / "a.tif", tmp_path / "b.tif", "--rotate=180") == 0
    found, pixels = pixels_of(tmp_path / "b.tif")
    assert found == "CMYK"
    np.testing.assert_array_equal(pixels, np.asarray(image)[::-1, ::-1])
    with pytest.raises(ImageError, match=r"expected to be written in a format that holds CMYK"):
        read(tmp_path / "a.tif", "PNG")


def test_modes_that_cannot_be_interpolated_are_refused(tmp_path):
    """The hues of LAB are signed, and Pillow says so nowhere."""
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: expected a mode that can be warped, got LAB"):
        read(tmp_path / "a.tif")


def png_of_16_bits(colour_type, channels):
    """A PNG by hand: Pillow writes no deep colours."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(range(4 * channels))) * 2)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_deep_colours_are_refused(tmp_path, colour_type, channels):
    """Pillow makes 8 bits of them without a word."""
    (tmp_path / "a.png").write_bytes(png_of_16_bits(colour_type, channels))
    with pytest.raises(ImageError, match=r"a\.png: expected colours of 8 bits, got deeper ones"):
        read(tmp_path / "a.png")


def test_deep_colours_of_other_formats_are_refused(tmp_path):
    """PPM says how deep it is in words, JPEG 2000 in a header."""
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 65535\n" + bytes(6))
    with pytest.raises(ImageError, match="expected colours of 8 bits, got deeper ones"):
        read(tmp_path / "a.ppm")
    image_of("RGB", (32, 32)).save(tmp_path / "a.jp2")
    read(tmp_path / "a.jp2")
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 42] = 15  # one less than the bits
    (tmp_path / "a.jp2").write_bytes(data)
    with pytest.raises(ImageError, match="expected colours of 8 bits, got deeper ones"):
        read(tmp_path / "a.jp2")


@pytest.mark.parametrize(("rle", "channels"), [(0, 1), (0, 3), (1, 1)])
def test_deep_colours_of_sgi_are_refused(tmp_path, rle, channels):
    """Its header says how many bytes a value has."""
    head = struct.pack(">HBBHHHH", 474, rle, 2, 1 + (channels > 1) * 2, 2, 1, channels)
    (tmp_path / "a.sgi").write_bytes(head.ljust(512, b"\0") + bytes(64))
    with pytest.raises(ImageError, match="expected colours of 8 bits, got deeper ones"):
        read(tmp_path / "a.sgi")


def test_16_bits_of_netpbm_are_kept(tmp_path):
    """Pillow reads them in mode I, which neither PGM nor PNG holds."""
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + bytes([0, 1, 128, 2, 255, 255]))
    for name in ("out.pgm", "out.png"):
        write(tmp_path / name, read(tmp_path / "a.pgm", format_of(tmp_path / name)))
        np.testing.assert_array_equal(pixels_of(tmp_path / name)[1], [[1, 32770, 65535]])


@pytest.mark.parametrize(
    ("pixels", "tag", "value", "message"),
    [
        (np.array([[1, 60_000]], np.uint16), 262, 0, "with black as 0, got white as 0"),
        (np.array([[1.0, 2.0]], np.float32), 262, 0, "with black as 0, got white as 0"),
        (np.array([[1, 200]], np.uint8), 339, 2, "from 0 on, got signed ones"),
        (np.array([[1, -1]], np.int32), 339, 1, "below 2147483648, got larger ones"),
    ],
)
def test_numbers_that_pillow_takes_for_others_are_refused(tmp_path, pixels, tag, value, message):
    """As TIFF has them: inverted, signed, or too large for an int32."""
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={339: 1})
    data = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHI", tag, 3, 1)  # one SHORT
    begin = data.index(entry) + len(entry)
    (tmp_path / "a.tif").write_bytes(data[:begin] + bytes([value]) + data[begin + 1 :])
    with pytest.raises(ImageError, match=message):
        read(tmp_path / "a.tif")


def test_numbers_that_pillow_takes_for_themselves_are_read(tmp_path):
    """White as 0 of 8 bits, signed numbers of 32."""
    pixels = np.array([[1, -1]], np.int32)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").frames[0].values[..., 0], pixels)
    Image.new("L", (2, 1), 3).save(tmp_path / "b.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read(tmp_path / "b.tif").frames[0].values[..., 0], [[3, 3]])


@pytest.mark.parametrize(("flags", "bits"), [("0c", 8), ("4c", 10)])
def test_depth_of_avif_is_that_of_its_header(tmp_path, flags, bits):
    """By hand, as the specification of AV1 in ISO base media files has it: high_bitdepth is 64."""
    (tmp_path / "a.avif").write_bytes(bytes(20) + b"av1C" + bytes.fromhex(f"8100{flags}00"))
    assert codestream_bits(tmp_path / "a.avif") == bits


EXIF_IFD = ExifTags.IFD.Exif


def oriented(path, orientation, image, **parameters):
    """Saves an image with EXIF: how it is turned, its size, a maker, a moment, a place."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    if path.suffix != ".tif":  # where Pillow takes it at its word
        exif[ExifTags.Base.ImageWidth] = 4711
    details = exif.get_ifd(EXIF_IFD)
    details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight] = image.size
    details[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    image.save(path, exif=exif.tobytes(), **parameters)


UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""By the table of the EXIF standard: orientation to what a viewer shows."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_photos_come_out_upright(local_server, tmp_path, orientation, name):
    """As every viewer shows them, with the tag gone, the size corrected and the rest kept."""
    image = image_of("RGB")
    lossless = {"lossless": True} if name.endswith("webp") else {}
    oriented(tmp_path / name, orientation, image, **lossless)
    out = tmp_path / "out.png"
    assert warp(local_server, tmp_path / name, out) == 0
    expected = UPRIGHT[orientation](np.asarray(image))
    np.testing.assert_array_equal(pixels_of(out)[1], expected)
    with Image.open(out) as back:
        exif = back.getexif()
        details = exif.get_ifd(EXIF_IFD)
    assert ExifTags.Base.Orientation not in exif
    assert exif[ExifTags.Base.Make] == "Maker"
    assert details[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"
    size = details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]
    assert size == expected.shape[1::-1]
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_16_bits_come_out_upright(tmp_path):
    """The orientation of deep images counts, too."""
    oriented(tmp_path / "a.png", 6, Image.fromarray(EXTREMES["I;16"]))
    write(tmp_path / "b.png", read(tmp_path / "a.png", "PNG"))
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.png")[1], np.rot90(EXTREMES["I;16"], -1))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("result", ["b.jpg", "b.png", "b.tif"])
def test_resolution_profile_and_exif_are_kept(tmp_path, name, result):
    """From every one of these formats to every other, with the image whole."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = image_of("RGB", (16, 16))
    oriented(tmp_path / name, 1, image, dpi=(300, 300), icc_profile=profile)
    write(tmp_path / result, read(tmp_path / name, format_of(tmp_path / result)))
    with Image.open(tmp_path / result) as back:
        back.load()
        assert back.size == (16, 16)
        assert [round(dpi) for dpi in back.info["dpi"]] == [300, 300]
        assert back.info["icc_profile"] == profile
        assert back.getexif()[ExifTags.Base.Make] == "Maker"
        assert back.getexif().get(ExifTags.Base.ImageWidth, 16) == 16


def test_compression_of_tiff_is_kept(tmp_path):
    """A small file stays small."""
    Image.new("L", (256, 256)).save(tmp_path / "a.tif", compression="tiff_lzw")
    write(tmp_path / "b.tif", read(tmp_path / "a.tif", "TIFF"))
    with Image.open(tmp_path / "b.tif") as back:
        assert back.info["compression"] == "tiff_lzw"


def test_compression_for_two_values_is_not_kept_for_more(tmp_path):
    """A fax becomes grey."""
    image_of("1").save(tmp_path / "a.tif", compression="group4")
    write(tmp_path / "b.tif", read(tmp_path / "a.tif", "TIFF"))
    mode, pixels = pixels_of(tmp_path / "b.tif")
    assert mode == "L"
    np.testing.assert_array_equal(pixels, np.asarray(image_of("1").convert("L")))


@pytest.mark.parametrize(("quality", "subsampling"), [(35, 2), (90, 0), (75, 1)])
def test_quality_of_jpeg_is_that_of_the_source(tmp_path, quality, subsampling):
    """Its very tables, and how much of the colour it drops."""
    image_of("RGB", (64, 64)).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    write(tmp_path / "b.jpg", read(tmp_path / "a.jpg", "JPEG"))
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "b.jpg") as after:
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == subsampling


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize(("flags", "quality"), [(("--quality=40",), 40), ((), 95)])
def test_quality_of_jpeg_is_an_option(local_server, tmp_path, name, flags, quality):
    """It wins over that of the source; what has none is written at 95."""
    image = image_of("RGB", (32, 32))
    image.save(tmp_path / name, **({"quality": 95} if name == "a.jpg" else {}))
    assert warp(local_server, tmp_path / name, tmp_path / "b.jpg", *flags) == 0
    expected = io.BytesIO()
    image.save(expected, "JPEG", quality=quality)
    with Image.open(tmp_path / "b.jpg") as back, Image.open(expected) as wanted:
        assert back.quantization == wanted.quantization


def animation(path, count=3, **parameters):
    """Frames of one grey each, with a square that moves."""
    frames = []
    for number in range(count):
        pixels = np.full((8, 8, 3), 60 * number, np.uint8)
        pixels[number, 2 * number] = 255, 0, 0
        frames.append(Image.fromarray(pixels))
    frames[0].save(path, save_all=True, append_images=frames[1:], **parameters)
    return [np.asarray(frame) for frame in frames]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("result", ["b.gif", "b.png", "b.webp", "b.tif"])
def test_all_frames_are_warped(local_server, tmp_path, name, result):
    """Of animations with their durations, and of pages."""
    lossless = {"lossless": True} if name.endswith("webp") else {}
    if not name.endswith("tif"):
        lossless |= {"duration": [100, 200, 300], "loop": 2}
    frames = animation(tmp_path / name, **lossless)
    assert warp(local_server, tmp_path / name, tmp_path / result, "--rotate=180") == 0
    with Image.open(tmp_path / result) as back:
        assert back.n_frames == 3
        for number, frame in enumerate(frames):
            back.seek(number)
            found = np.asarray(back.convert("RGB")).astype(int)
            atol = 12 if "webp" in result else 0  # it is lossy
            np.testing.assert_allclose(found[::-1, ::-1][4:], frame[4:], rtol=0, atol=atol)
            if not {name, result} & {"a.tif", "b.tif"}:
                assert back.info["duration"] == 100 * (number + 1)
        if not {name, result} & {"a.tif", "b.tif"}:
            assert back.info["loop"] == 2


@pytest.mark.parametrize("result", ["b.gif", "b.png"])
def test_transparent_frames_do_not_show_the_one_before(local_server, tmp_path, result):
    """Moved half away, a frame uncovers nothing but what is behind the picture."""
    frames = [Image.new("RGBA", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert warp(local_server, tmp_path / "a.png", tmp_path / result, "--translate", "2", "0") == 0
    with Image.open(tmp_path / result) as back:
        back.seek(1)
        pixels = np.asarray(back.convert("RGBA"))
    assert (pixels[:, :2, 3] == 0).all()
    np.testing.assert_array_equal(pixels[:, 2:], np.full((4, 2, 4), (0, 0, 255, 255)))


def test_frames_that_a_format_cannot_hold_are_refused(local_server, tmp_path, capsys):
    """Before anything is written."""
    animation(tmp_path / "a.gif")
    assert warp(local_server, tmp_path / "a.gif", tmp_path / "b.jpg") == 1
    assert (
        "a.gif: expected to be written in a format that holds 3 frames" in capsys.readouterr().err
    )
    assert not (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize("result", ["b.png", "b.gif", "b.webp"])
def test_pages_of_different_sizes_are_no_animation(local_server, tmp_path, capsys, result):
    """They would be cut, or lie upon the one before; with one size they are one."""
    pages = [Image.new("L", (8, height), 200) for height in (9, 8, 7)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert warp(local_server, tmp_path / "a.tif", tmp_path / result) == 1
    error = capsys.readouterr().err
    assert "expected to be written in a format that holds frames of different sizes" in error
    assert not (tmp_path / result).exists()
    assert warp(local_server, tmp_path / "a.tif", tmp_path / "b.tif") == 0
    with Image.open(tmp_path / "b.tif") as back:
        for number, page in enumerate(pages):
            back.seek(number)
            np.testing.assert_array_equal(np.asarray(back), np.asarray(page))
    flags = ("--size", "8", "9", "--padding=fill", "--fill", str(100))
    assert warp(local_server, tmp_path / "a.tif", tmp_path / result, *flags) == 0
    with Image.open(tmp_path / result) as back:
        assert (back.n_frames, back.size) == (3, (8, 9))


def test_pages_of_16_bits_are_no_animation(local_server, tmp_path, capsys):
    """Pillow looks at 8 bits of them to find what has changed, and leaves the rest as it was."""
    pages = [Image.new("I;16", (8, 8), value) for value in (40_000, 50_000)]
    pages[1].putpixel((3, 3), 0)
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert warp(local_server, tmp_path / "a.tif", tmp_path / "b.png") == 1
    error = capsys.readouterr().err
    assert "expected to be written in a format that holds frames of 16 bits, got PNG" in error
    assert warp(local_server, tmp_path / "a.tif", tmp_path / "b.tif") == 0
    with Image.open(tmp_path / "b.tif") as back:
        back.seek(1)
        np.testing.assert_array_equal(np.asarray(back), np.asarray(pages[1]))


def test_nearest_keeps_what_is_transparent_of_two_values(local_server, tmp_path):
    """A mask of a bit may declare one of its values transparent."""
    mask = Image.fromarray(np.arange(16).reshape(4, 4) % 3 == 0)
    mask.save(tmp_path / "a.png", transparency=0)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.mode, image.info["transparency"]) == ("1", 0)
    assert (
        warp(local_server, tmp_path / "a.png", tmp_path / "b.png", "--interpolation=nearest") == 0
    )
    with Image.open(tmp_path / "b.png") as back:
        opacity = np.asarray(back.convert("RGBA"))[..., 3]
    np.testing.assert_array_equal(opacity, np.where(np.asarray(mask), 255, 0))


def test_a_file_without_resolution_gets_none(tmp_path):
    """Pillow makes one dot an inch of it, at which a photo fills a wall."""
    Image.new("L", (4, 4)).save(tmp_path / "a.tif")
    write(tmp_path / "b.png", read(tmp_path / "a.tif", "PNG"))
    with Image.open(tmp_path / "b.png") as back:
        assert "dpi" not in back.info


def test_previews_are_no_frames(tmp_path):
    """Phones put a second picture behind the photo: it is none of an animation."""
    photo, preview = image_of("RGB", (32, 32)), image_of("RGB", (8, 8))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    write(tmp_path / "b.jpg", read(tmp_path / "a.jpg", "JPEG"))
    with Image.open(tmp_path / "b.jpg") as back:
        assert (back.format, back.size) == ("JPEG", (32, 32))


@pytest.mark.parametrize(
    ("mode", "name", "needed"),
    [
        ("RGBA", "old.jpg", "transparency"),
        ("RGBA", "old.ppm", "transparency"),
        ("LA", "old.jpg", "transparency"),
        ("I;16", "old.webp", "16 bits"),
        ("I;16", "old.jpg", "16 bits"),
        ("I", "old.png", "32-bit numbers"),
        ("F", "old.png", "floating-point numbers"),
        ("F", "old.webp", "floating-point numbers"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(local_server, tmp_path, capsys, mode, name, needed):
    """Also where Pillow would write something else; the file that was there stays."""
    source = tmp_path / ("a.tif" if mode in EXTREMES else "a.png")
    Image.new(mode, (4, 4)).save(source)
    (tmp_path / name).write_bytes(b"precious")
    assert warp(local_server, source, tmp_path / name) == 1
    error = capsys.readouterr().err
    assert f"expected to be written in a format that holds {needed}, got" in error
    assert (tmp_path / name).read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, name])


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    """EXIF that is too long for JPEG is found out amid the writing."""
    Image.new("RGB", (8, 8)).save(tmp_path / "old.jpg")
    old = (tmp_path / "old.jpg").read_bytes()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", exif=exif)
    picture = read(tmp_path / "a.png", "JPEG")
    with pytest.raises(ImageError, match=r"old\.jpg: expected a writable image file, got EXIF"):
        write(tmp_path / "old.jpg", picture)
    assert (tmp_path / "old.jpg").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "old.jpg"]


def test_writing_replaces_files_alone(tmp_path):
    """A pipe stays one, and whoever reads from it is not forgotten."""
    os.mkfifo(tmp_path / "pipe.png")
    image_of("L").save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png", "PNG")
    with pytest.raises(ImageError, match=r"pipe\.png: expected a writable .*, got a folder, a"):
        write(tmp_path / "pipe.png", picture)
    assert (tmp_path / "pipe.png").is_fifo()


def test_writing_keeps_links_and_permissions(tmp_path):
    """The file that a link names is replaced, not the link; whoever could read it, still can."""
    image_of("L").save(tmp_path / "real.png")
    (tmp_path / "real.png").chmod(0o640)
    (tmp_path / "link.png").symlink_to("real.png")
    picture = read(tmp_path / "real.png", "PNG")
    write(tmp_path / "link.png", picture)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").stat().st_mode & 0o777 == 0o640
    np.testing.assert_array_equal(pixels_of(tmp_path / "real.png")[1], np.asarray(image_of("L")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("image.unknown", r"expected the name of an image file, got the ending '\.unknown'"),
        ("image", "expected the name of an image file, got no ending"),
        ("image.psd", r"expected the name of an image file, got the ending '\.psd'"),
        ("no/such/folder.png", "expected a writable image file, got .*No such file"),
    ],
)
def test_files_that_cannot_be_written_are_named(tmp_path, name, why):
    """A format or a folder that does not work is an ImageError with the path."""
    image_of("L").save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=rf"{name}: {why}"):
        write(tmp_path / name, read(tmp_path / "a.png"))


def test_files_that_cannot_be_read_are_named(tmp_path):
    """A missing file, one that is no image and one that is cut off are errors with the path."""
    with pytest.raises(ImageError, match=r"none\.png: expected an image file, got .*No su"):
        read(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ImageError, match=r"text\.png: expected an image file, got cannot"):
        read(tmp_path / "text.png")
    image_of("RGB", (64, 64)).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.png: expected an image file, got"):
        read(tmp_path / "cut.png")


def test_images_need_pillow(monkeypatch, tmp_path):
    """Without the extra, the error says how to install it."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImageError, match=r"Pillow: .*pip install '\./client\[images\]'"):
        read(tmp_path / "image.png")


CORNERS = [[0, 0], [11, 0], [0, 8], [11, 8], [5, 4]]
"""Of an image of SIZE, and a point within."""


def spline_file(folder, **changes):
    """The path of a file for `--spline`."""
    path = folder / "spline.json"
    given = {"control_points": CORNERS, "points": CORNERS} | changes
    path.write_text(json.dumps({name: each for name, each in given.items() if each is not None}))
    return path


def test_splines_move_what_is_at_points_to_control_points(local_server, tmp_path):
    """A shift of all points by one pixel is that of Pillow; a point alone goes where it shall."""
    image = image_of("RGB")
    image.save(tmp_path / "a.png")
    shifted = [[x + 1, y] for x, y in CORNERS]
    path = spline_file(tmp_path, points=shifted)
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", f"--spline={path}") == 0
    expected = np.zeros_like(np.asarray(image))
    expected[:, :-1] = np.asarray(image)[:, 1:]
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.png")[1], expected)

    bent = [*CORNERS[:4], [7, 2]]
    path = spline_file(tmp_path, points=bent, regularization=0)
    assert warp(local_server, tmp_path / "a.png", tmp_path / "c.png", f"--spline={path}") == 0
    pixels = pixels_of(tmp_path / "c.png")[1]
    for (x, y), (from_x, from_y) in zip(CORNERS, bent, strict=True):
        np.testing.assert_array_equal(pixels[y, x], np.asarray(image)[from_y, from_x])
    assert (pixels[2, 7] != np.asarray(image)[2, 7]).any()


def test_splines_of_large_images_are_computed_in_tiles(tmp_path):
    """The basis of a photo of many pixels is more than a server holds."""
    image = image_of("RGB", (300, 200))
    image.save(tmp_path / "a.png")
    corners = [[0, 0], [299, 0], [0, 199], [299, 199]]
    turned = [[299 - x, 199 - y] for x, y in corners]
    path = spline_file(tmp_path, control_points=corners, points=turned)
    with LocalServer("--limits-max-output-bytes=500000", log=tmp_path / "log") as server:
        assert warp(server, tmp_path / "a.png", tmp_path / "b.png", f"--spline={path}") == 0
    expected = np.asarray(image)[::-1, ::-1].astype(int)
    # float32 coordinates: a value in 255 may round to its neighbour
    assert np.abs(pixels_of(tmp_path / "b.png")[1] - expected).max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": None}, "expected JSON with control_points and points, each [[x, y], ...]: "),
        ({"control_points": None}, "got "),
        ({"points": "here"}, ": expected numbers, got <U4"),
        ({"points": CORNERS[:4]}, "expected points to have 5 pairs of finite numbers"),
        ({"points": [*CORNERS[:4], [math.nan, 0]]}, ": expected finite numbers, got others"),
        ({"control_points": [1, 2]}, ": control_points: expected points (x, y), got [1, 2]"),
        ({"stiffness": 2}, "got control_points, points, stiffness"),
        ({"control_points": [[10**400, 0]] * 5}, ": control_points: expected points (x, y)"),
        ({"regularization": "x"}, ": regularization: expected a number, got 'x'"),
    ],
)
def test_files_that_hold_no_spline_are_wrong_arguments(
    local_server, tmp_path, capsys, changes, said
):
    """As wrong arguments, with what is wrong in one line."""
    path = spline_file(tmp_path, **changes)
    with pytest.raises(SystemExit, match=r"^2$"):
        warp(local_server, "a.png", "b.png", f"--spline={path}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stn warp: argument --spline: {path}: expected ")
    assert said in line


def test_splines_stand_alone_and_in_readable_files(local_server, tmp_path, capsys):
    """A turn beside one is refused, and so is a file that is not there, or one of no JSON."""
    path = spline_file(tmp_path)
    image_of("L").save(tmp_path / "a.png")
    for arguments in (["--rotate=3"], ["--scale=2"], ["--translate", "0", "1"]):
        with pytest.raises(SystemExit, match=r"^2$"):
            warp(local_server, tmp_path / "a.png", "b.png", f"--spline={path}", *arguments)
        assert "argument --spline: not allowed with --rotate" in capsys.readouterr().err
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SystemExit, match=r"^2$"):
            warp(local_server, "a.png", "b.png", f"--spline={path}")
        assert "argument --spline: expected a readable file, got " in capsys.readouterr().err


def test_bad_control_points_are_told_by_the_server(local_server, tmp_path, capsys):
    """One line, with the points."""
    image_of("L").save(tmp_path / "a.png")
    line = [[x, x] for x in range(5)]
    path = spline_file(tmp_path, control_points=line)
    assert warp(local_server, tmp_path / "a.png", tmp_path / "b.png", f"--spline={path}") == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "got (0.0, 0.0) at 0 and (4.0, 4.0) at 4, the ends of a line" in said
