"""The command `stn`: its geometry, its images, and its subcommands against a real server."""

import io
import json
import re
from importlib.metadata import entry_points, version

import cv2
import numpy as np
import pytest
from PIL import Image

from stn_client import Client, ServerInfo
from stn_client.cli import main
from stn_client.cli._geometry import pixel_theta

ABSENT = ("--target=127.0.0.1:1", "--timeout=0.2")
"""Port 1 is privileged and unused."""


def source_of(x, y, **arguments):
    """Where a target pixel reads from."""
    return (pixel_theta(**arguments) @ (x, y, 1)).round(12).tolist()


def test_convention_rotation_is_anticlockwise():
    """A quarter turn of 3 x 3: what was right of the centre (2, 1) stands above it (1, 0)."""
    sizes = {"input_size": (3, 3), "output_size": (3, 3)}
    assert source_of(1, 0, rotate_deg=90, **sizes) == [2, 1]
    assert source_of(0, 1, rotate_deg=90, **sizes) == [1, 0]


def test_convention_scale_above_one_enlarges():
    """Twice as large about (2, 1): what was 1 px right of the centre stands 2 px right of it."""
    sizes = {"input_size": (3, 5), "output_size": (3, 5)}
    assert source_of(4, 1, scale=2, **sizes) == [3, 1]
    assert source_of(2, 3, scale=2, **sizes) == [2, 2]


def test_convention_translation_moves_the_content():
    """By (2, -1): what was at (3, 4) stands at (5, 3)."""
    sizes = {"input_size": (6, 8), "output_size": (6, 8)}
    assert source_of(5, 3, translate_px=(2, -1), **sizes) == [3, 4]


def test_convention_centres_meet_whatever_the_sizes():
    """Sizes are (H, W): the centre (2, 1) of 3 x 5 goes to the centre (4, 3) of 7 x 9."""
    assert source_of(4, 3, input_size=(3, 5), output_size=(7, 9)) == [2, 1]
    assert source_of(5, 5, input_size=(3, 5), output_size=(7, 9)) == [3, 3]


def test_convention_translation_comes_after_rotation_and_scale():
    """Turned, doubled, then moved by (10, 20): 1 px right of centre is 2 px above the new one."""
    arguments = {"rotate_deg": 90, "scale": 2, "translate_px": (10, 20)}
    sizes = {"input_size": (3, 5), "output_size": (7, 9)}
    assert source_of(4 + 10, 3 + 20, **arguments, **sizes) == [2, 1]
    assert source_of(4 + 10, 3 + 20 - 2, **arguments, **sizes) == [3, 1]


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0.0, r"scale: expected a number above 0, got 0\.0\."),
        (-1.0, r"scale: expected a number above 0, got -1\.0\."),
        (float("nan"), r"scale: expected finite numbers up to 1e\+100, got nan\."),
    ],
)
def test_geometry_refuses_a_scale_that_is_not_positive(scale, message):
    """Nothing can be made 0 times as large."""
    with pytest.raises(ValueError, match=message):
        pixel_theta(input_size=(2, 2), output_size=(2, 2), scale=scale)


def save(path, pixels):
    """(H, W, C) uint8 to a file, by Pillow alone."""
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def load(path):
    """A file as (H, W, C), by Pillow alone."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def test_cli_is_the_installed_command():
    """The distribution installs `stn` as this function."""
    (command,) = entry_points(group="console_scripts", name="stn")
    assert command.load() is main


def test_cli_info_prints_what_the_server_says(local_server, capsys):
    """For people names and values, with parts further in; for programs all of it as JSON."""
    with Client(local_server.target) as client:
        limit = client.server_info().limits.max_message_bytes
    assert main([f"--target={local_server.target}", "info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name: stn-server"
    assert lines[lines.index("limits:") + 1] == f"  max_message_bytes: {limit}"
    assert lines[lines.index("devices:") + 1] == "  name: cpu"
    assert "  interpolations: nearest, bilinear, bicubic" in lines
    assert main([f"--target={local_server.target}", "info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    assert told["limits"]["max_message_bytes"] == limit
    assert told["capabilities"][1]["dimensions"] == 3
    assert list(told) == list(ServerInfo.__dataclass_fields__)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cli_warp_turns_an_image(local_server, tmp_path, channels):
    """A quarter turn anticlockwise of an asymmetric image is exactly NumPy's rot90."""
    pixels = np.random.default_rng(1).integers(0, 256, (3, 5, channels), np.uint8)
    source, destination = tmp_path / "in.png", tmp_path / "out.png"
    save(source, pixels)
    command = ["warp", str(source), str(destination), "--rotate=90", "--size", "3", "5"]
    command += ["--interpolation=nearest"]
    assert main([f"--target={local_server.target}", *command]) == 0
    np.testing.assert_array_equal(load(destination), np.rot90(pixels))


def test_cli_a_fill_is_read_without_another_word(local_server, tmp_path):
    """What is outside has the colour that was said; a padding that is said stays."""
    Image.new("L", (4, 4), 10).save(tmp_path / "in.png")
    for padding, outside in (((), 200), (("--padding=border",), 10)):
        command = ["--target", local_server.target, "warp", str(tmp_path / "in.png")]
        command += [str(tmp_path / "out.png"), "--translate", "2", "0", "--fill", "200", *padding]
        assert main(command) == 0
        assert np.asarray(Image.open(tmp_path / "out.png"))[0].tolist() == [
            outside,
            outside,
            10,
            10,
        ]


def test_cli_warp_shifts_and_fills(local_server, tmp_path):
    """Translated by (1, 0), the first column is the colour given, one value per channel."""
    pixels = np.random.default_rng(2).integers(0, 256, (2, 3, 3), np.uint8)
    source, destination = tmp_path / "in.png", tmp_path / "out.png"
    save(source, pixels)
    command = ["warp", str(source), str(destination), "--translate", "1", "0"]
    command += ["--padding=fill", "--fill", "10", "20", "30"]
    assert main([f"--target={local_server.target}", *command]) == 0
    expected = np.roll(pixels, 1, axis=1)
    expected[:, 0] = 10, 20, 30
    np.testing.assert_array_equal(load(destination), expected)


def write_waves(path, shape, channels=1):
    """A picture with structure in all directions."""
    y, x = np.indices(shape) / 10
    waves = np.sin(x) + np.cos(1.3 * y + 0.4 * x) + np.sin(0.7 * x - y)
    save(path, np.repeat((128 + 40 * waves).astype(np.uint8)[..., None], channels, -1))


@pytest.mark.parametrize("channels", [1, 4])
def test_cli_align_undoes_a_warp(local_server, tmp_path, capsys, channels):
    """In the size of the fixed image, with all channels of the moving one."""
    fixed, moving, out = (tmp_path / name for name in ("fixed.png", "moving.png", "out.png"))
    target = f"--target={local_server.target}"
    write_waves(fixed, (64, 72))
    write_waves(moving, (64, 72), channels)
    turn = ["--rotate=4", "--translate", "2", "-1", "--size", "68", "66"]
    assert main([target, "warp", str(moving), str(moving), *turn, "--padding=border"]) == 0
    assert main([target, "align", str(fixed), str(moving), str(out)]) == 0
    aligned, expected = load(out), load(fixed)
    assert aligned.shape == (64, 72, channels)
    inside = np.s_[8:-8, 8:-8, :1]
    assert np.abs(aligned[inside].astype(int) - expected[inside]).mean() < 2
    theta, loss = capsys.readouterr().out.splitlines()
    found = np.array(json.loads(theta.removeprefix("theta ")))
    zoom = np.diag([72 / 68, 64 / 66]) * np.cos(np.radians(4))  # of normalized units
    np.testing.assert_allclose(np.diag(found), np.diag(zoom), atol=0.005)
    assert float(loss.removeprefix("loss ")) < 0.01


@pytest.mark.parametrize("model", ["affine", "homography"])
def test_cli_align_writes_a_transform_that_warp_reads(local_server, tmp_path, capsys, model):
    """And pictures of how it fits, and how it was found."""
    names = ("fixed.png", "moving.png", "out.png", "again.png", "overlay.png", "loss.png")
    fixed, moving, out, again, overlay, losses = (tmp_path / name for name in names)
    target, theta = f"--target={local_server.target}", tmp_path / "theta.json"
    write_waves(fixed, (64, 72))
    assert main([target, "warp", str(fixed), str(moving), "--rotate=4", "--padding=border"]) == 0
    flags = [f"--save-transform={theta}", f"--overlay={overlay}", f"--convergence={losses}"]
    asked = [target, "align", str(fixed), str(moving), str(out), f"--model={model}", *flags]
    assert main(asked) == 0
    assert list(json.loads(theta.read_text())) == [model, "coordinates"]
    assert main([target, "warp", str(moving), str(again), f"--transform={theta}"]) == 0
    np.testing.assert_array_equal(load(again), load(out))
    shown = load(overlay).astype(int)
    assert shown.shape == (64, 72, 3)
    inside = shown[8:-8, 8:-8]
    assert np.abs(inside[..., 0] - inside[..., 1]).mean() < 10  # what fits is grey
    assert np.array_equal(shown[..., 1], shown[..., 2])
    black = (load(losses) == 0).all(-1)
    assert black.any(0).all()  # a line from the first step to the last
    assert np.argmax(black[:, -1]) > np.argmax(black[:, 0])  # downwards
    capsys.readouterr()


def test_cli_align_leaves_out_what_a_mask_covers(local_server, tmp_path, capsys):
    """Which has the size of the fixed image."""
    names = ("fixed.png", "moving.png", "mask.png", "small.png", "out.png")
    fixed, moving, mask, small, out = (tmp_path / name for name in names)
    target = f"--target={local_server.target}"
    write_waves(moving, (64, 72))
    covered = load(moving).copy()
    covered[:32, :30] = 255
    save(fixed, covered)
    kept = np.full((64, 72, 1), 255, np.uint8)
    kept[:32, :30] = 0
    save(mask, kept)
    save(small, kept[:10])
    asked = [target, "align", str(fixed), str(moving), str(out)]
    assert main([*asked, f"--mask={mask}", "--loss=huber"]) == 0
    theta, _ = capsys.readouterr().out.splitlines()
    found = np.array(json.loads(theta.removeprefix("theta ")))
    np.testing.assert_allclose(found, np.eye(2, 3), atol=1e-3)
    assert main([*asked, f"--mask={small}"]) == 1
    assert "small.png: expected 72 x 64 px, as FIXED, got 72 x 10." in capsys.readouterr().err


def test_cli_align_refuses_an_image_without_edges(capsys, tmp_path):
    """Before any server is asked."""
    write_waves(tmp_path / "fixed.png", (32, 32))
    save(tmp_path / "flat.png", np.full((32, 32, 3), 7, np.uint8))
    names = [str(tmp_path / name) for name in ("flat.png", "fixed.png", "out.png")]
    assert main([*ABSENT, "align", *names]) == 1
    assert "flat.png: expected an image with edges to align, got 7" in capsys.readouterr().err


def test_cli_align_refuses_a_mask_that_leaves_nothing(capsys, tmp_path):
    """In the name of its file."""
    write_waves(tmp_path / "fixed.png", (32, 32))
    Image.new("L", (32, 32)).save(tmp_path / "mask.png")
    names = [str(tmp_path / name) for name in ("fixed.png", "fixed.png", "out.png", "mask.png")]
    assert main([*ABSENT, "align", *names[:3], "--mask", names[3]]) == 1
    assert "mask.png: expected something that counts, got black" in capsys.readouterr().err


def test_cli_align_says_that_images_do_not_fit(local_server, tmp_path, capsys):
    """One that shows something else; whoever reads no numbers would take the result for one."""
    noise = np.random.default_rng(3).integers(0, 256, (2, 48, 48, 3), np.uint8)
    for name, pixels in zip(("fixed.png", "moving.png"), noise, strict=True):
        save(tmp_path / name, pixels)
    names = [str(tmp_path / name) for name in ("fixed.png", "moving.png", "out.png")]
    command = [f"--target={local_server.target}", "align"]
    assert main([*command, *names]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.match(r"stn: .*moving.png: expected an image that can be made to look like", told)
    assert main([*command, names[0], names[0], names[2]]) == 0
    assert capsys.readouterr().err == ""


def test_cli_align_checks_all_that_it_writes_before_it_writes(local_server, tmp_path, capsys):
    """A picture without a format leaves no other file behind; folders are made for all."""
    write_waves(tmp_path / "in.png", (32, 32))
    names = [str(tmp_path / name) for name in ("in.png", "in.png", "out.png")]
    command = [f"--target={local_server.target}", "align", *names]
    assert main([*command, "--overlay", str(tmp_path / "fit.xyz")]) == 1
    assert "fit.xyz: expected the name of an image file" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    assert main([*command, "--save-transform", str(tmp_path / "new" / "t.json")]) == 0
    assert json.loads((tmp_path / "new" / "t.json").read_text())["coordinates"] == "normalized"


def test_cli_without_a_server_fails_with_a_message(capsys):
    """Exit code 1, one line on standard error, no traceback, nothing on standard output."""
    assert main([*ABSENT, "info"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("stn: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_cli_with_a_bad_image_fails_with_a_message(capsys, tmp_path):
    """A file that cannot be read is reported before any server is asked."""
    assert main([*ABSENT, "warp", str(tmp_path / "none.png"), str(tmp_path / "out.png")]) == 1
    assert "none.png: expected an image file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "required: COMMAND"),
        (["warp", "a", "b", "--scale=0"], "--scale: expected a number above 0, got 0"),
        (["warp", "a", "b", "--padding=mirror"], "--padding: invalid choice: 'mirror'"),
        (["warp", "a", "b", "--rot=3"], "unrecognized arguments: --rot=3"),
    ],
)
def test_cli_refuses_wrong_arguments(capsys, arguments, why):
    """Misuse is exit code 2 and says what is wrong; flags are not guessed."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    assert why in capsys.readouterr().err


def test_the_version_is_told(capsys):
    """That of the package, without a command and without a server."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"stn {version('stn-client')}\n"


PIXELS = np.random.default_rng(9).integers(0, 256, (30, 40, 3), np.uint8)


def warped(local_server, tmp_path, *flags):
    """What `stn warp` makes of a photo of 40 x 30."""
    Image.fromarray(PIXELS).save(tmp_path / "in.png")
    command = [f"--target={local_server.target}", "warp", tmp_path / "in.png", tmp_path / "out.png"]
    assert main([str(part) for part in (*command, *flags)]) == 0
    with Image.open(tmp_path / "out.png") as image:
        return np.asarray(image).astype(int)


def assert_close_to_opencv(result, expected):
    """OpenCV has 5 bits of fraction in coordinates: by a 32nd of a pixel in both directions."""
    assert result.shape == expected.shape
    assert np.abs(result - expected.astype(int))[2:-2, 2:-2].max() <= 2 * 255 / 32 + 1


MATRIX = [[0.9, 0.2, 3.5], [-0.1, 1.1, 2.25]]
HOMOGRAPHY = [[0.9, 0.2, 3.5], [-0.1, 1.1, 2.25], [0.001, 0.002, 1]]
CORNERS = [[3, 2], [36, 4], [33, 27], [6, 25]]


def test_cli_warp_takes_the_matrices_of_opencv(local_server, tmp_path):
    """The same numbers that `cv2.warpAffine` and `cv2.warpPerspective` take."""
    flags = ["--matrix", *np.ravel(MATRIX), "--size", "50", "35"]
    expected = cv2.warpAffine(PIXELS, np.array(MATRIX), (50, 35))
    assert_close_to_opencv(warped(local_server, tmp_path, *flags), expected)
    flags = ["--homography", *np.ravel(HOMOGRAPHY)]
    expected = cv2.warpPerspective(PIXELS, np.array(HOMOGRAPHY), (40, 30))
    assert_close_to_opencv(warped(local_server, tmp_path, *flags), expected)


def test_cli_warp_rectifies_what_is_between_four_corners(local_server, tmp_path):
    """As `cv2.getPerspectiveTransform` of the corners does."""
    shown = np.array([[0, 0], [24, 0], [24, 19], [0, 19]], np.float32)
    homography = cv2.getPerspectiveTransform(np.array(CORNERS, np.float32), shown)
    result = warped(local_server, tmp_path, "--corners", *np.ravel(CORNERS), "--size", "25", "20")
    assert_close_to_opencv(result, cv2.warpPerspective(PIXELS, homography, (25, 20)))


TRANSFORMS = {
    "affine": ({"affine": {"theta": [[0, -1, 39], [1, 0, 0]]}}, np.rot90),
    "normalized": (
        {"affine": {"theta": [[-1, 0, 0], [0, 1, 0]]}, "coordinates": "normalized"},
        lambda pixels: pixels[:, ::-1],
    ),
    "translation": (
        {"translation": {"parameters": [3, 2]}},
        lambda pixels: np.pad(pixels[2:, 3:], ((0, 2), (0, 3), (0, 0))),
    ),
    "with a batch axis": (
        {"affine": {"theta": [[[0, -1, 39], [1, 0, 0]]]}, "align_corners": False},
        np.rot90,
    ),
    "an angle alone": ({"rotation": {"parameters": 0}}, lambda pixels: pixels),
}


@pytest.mark.parametrize(("given", "expected"), TRANSFORMS.values(), ids=TRANSFORMS)
def test_cli_warp_takes_any_transform_of_a_file(local_server, tmp_path, given, expected):
    """In JSON by its name, in pixels unless it says otherwise."""
    (tmp_path / "t.json").write_text(json.dumps(given))
    right = expected(PIXELS)
    size = ["--size", right.shape[1], right.shape[0]]
    result = warped(local_server, tmp_path, "--transform", tmp_path / "t.json", *size)
    np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_cli_warp_takes_json_as_editors_write_it(local_server, tmp_path, encoding):
    """Those of Windows begin with a mark, and shells there write UTF-16 and end lines their way."""
    text = '{"affine":\r\n {"theta": [[0, -1, 39], [1, 0, 0]]}}\r\n'
    (tmp_path / "t.json").write_bytes(text.encode(encoding))
    flags = ["--transform", tmp_path / "t.json", "--size", "30", "40"]
    np.testing.assert_array_equal(warped(local_server, tmp_path, *flags), np.rot90(PIXELS))


@pytest.mark.parametrize("kind", ["matrix", "homography", "grid"])
def test_cli_warp_takes_arrays_of_numpy(local_server, tmp_path, kind):
    """A quarter turn, from the output to the image."""
    y, x = np.mgrid[0:40, 0:30]
    arrays = {
        "matrix": np.array([[0, -1, 39], [1, 0, 0]]),
        "homography": np.array([[0, -1, 39], [1, 0, 0], [0, 0, 1]]),
        "grid": np.stack([39 - y, x], -1),
    }
    np.save(tmp_path / "t.npy", arrays[kind])
    flags = ["--transform", tmp_path / "t.npy"]
    if kind != "grid":  # which has a size of its own
        flags += ["--size", "30", "40"]
    np.testing.assert_array_equal(warped(local_server, tmp_path, *flags), np.rot90(PIXELS))


def array_file(*, dtype="<f8", shape):
    """A file of NumPy that says it holds this, with a hundred bytes of it."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)


NO_FILE = "argument --transform: expected a readable file, got "
BAD_FILES = {
    "t.json": ("{", "t.json: expected JSON, got Expecting property name"),
    "deep.json": ("[" * 100_000, "deep.json: expected JSON, got lists within lists"),
    "latin.json": (b'{"\xe4": 1}', "latin.json: expected JSON, got 'utf-8' codec"),
    "text.json": (
        '{"affine": {"theta": [["1", 0, 0], [0, 1, 0]]}}',
        "text.json: expected numbers, got <U",
    ),
    "huge.json": (
        f'{{"affine": {{"theta": [[{10**400}, 0, 0], [0, 1, 0]]}}}}',
        "huge.json: expected numbers, got object",
    ),
    "none.json": ('{"affine": {}}', "none.json: expected fields theta, got nothing"),
    "empty.npy": (b"", "empty.npy: expected an array in the format of NumPy, got "),
    "cut.npy": (
        b"\x93NUMPY\x01\x00\x10\x00{'shape': (2, 3  ",
        "cut.npy: expected an array in the format of NumPy, got ",
    ),
    "indented.npy": (
        b"\x93NUMPY\x01\x00\x10\x00if 1:\n    a\n  b\n",
        "indented.npy: expected an array in the format of NumPy, got ",
    ),
    "zip.npy": (b"PK\x03\x04" + bytes(60), "zip.npy: expected an array in the format of NumPy"),
    "claims.npy": (
        array_file(shape=(2**40, 3)),
        "claims.npy: expected an array in the format of NumPy",
    ),
    "complex.npy": (array_file(dtype="<c16", shape=(2, 3)), "expected numbers, got complex128"),
    "objects.npy": (array_file(dtype="|O", shape=(2, 3)), "expected an array in the format of"),
    "two.json": (
        '{"affine": {}, "flow": {}}',
        "two.json: expected one of affine, .* got affine, flow",
    ),
    "word.json": (
        '{"affine": {"theta": [[1, 0, 0], [0, 1, 0]]}, "unit": "px"}',
        "beside coordinates and align_corners, got affine, unit",
    ),
    "nan.json": (
        '{"affine": {"theta": [[1, 0, NaN], [0, 1, 0]]}}',
        "nan.json: expected finite numbers, got others",
    ),
    "more.json": (
        '{"rotation": {"parameters": [1], "angle": 3}}',
        "more.json: expected fields parameters, got parameters, angle",
    ),
    "several.json": (
        json.dumps({"affine": {"theta": [[[1, 0, 0], [0, 1, 0]]] * 2}}),
        r"several.json: theta: expected .* of one image, N = 1 or left out, got \(2, 2, 3\)\.",
    ),
    "flat.json": (
        '{"affine": {"theta": [1, 0, 0, 0, 1, 0]}}',
        r"flat.json: theta: expected .*, got \(6,\)\. Reshape it: theta\.reshape\(-1, 2, 3\)\.",
    ),
    "unit.json": (
        '{"affine": {"theta": [[1, 0, 0], [0, 1, 0]]}, "coordinates": "px"}',
        "unit.json: coordinates: expected one of normalized, pixel, got 'px'",
    ),
    "flag.json": (
        '{"affine": {"theta": [[1, 0, 0], [0, 1, 0]]}, "align_corners": 1}',
        "flag.json: align_corners: expected True or False, got 1",
    ),
    "spline.json": (
        '{"thin_plate_spline": {"points": [[0, 0]], "control_points": 3}}',
        "spline.json: control_points: expected points",
    ),
    "list.json": ("[[1, 0, 0], [0, 1, 0]]", r'list.json: expected \{"affine": .*\}, got a list'),
    "bare.json": (
        '{"affine": [[1, 0, 0], [0, 1, 0]]}',
        "bare.json: affine: expected an object with theta, got a list",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_cli_warp_refuses_files_that_hold_no_transform(tmp_path, capsys, name):
    """In one line, before anything is asked of a server."""
    text, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit, match="2"):
        main([*ABSENT, "warp", "a.png", "b.png", "--transform", str(tmp_path / name)])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(message, told), told


REFUSED = {
    "no inverse": (
        ["--matrix", *"100000"],
        "argument --matrix: matrix: expected",
    ),
    "corners on a line": (["--corners", *"00112233"], "argument --corners: "),
    "part of a pixel": (
        ["--size", "5", "5.5"],
        "argument --size: expected a whole number of at least 1, got 5.5",
    ),
    "two ways": (
        ["--matrix", *"100010", "--rotate", "3"],
        "argument --matrix: not allowed with --rotate, --scale and --translate",
    ),
    "three ways": (
        ["--matrix", *"100010", "--corners", *"00112233", "--homography", *"100010001"],
        "argument --matrix: not allowed with --homography and --corners",
    ),
    "too few numbers": (["--matrix", *"100"], "argument --matrix: expected 6 arguments"),
    "no number": (["--matrix", *"10001x"], "argument --matrix: expected a finite number, got x"),
    "no file": (["--transform", "nowhere.json"], NO_FILE),
}


@pytest.mark.parametrize(("flags", "message"), REFUSED.values(), ids=REFUSED)
def test_cli_warp_refuses_what_is_no_map(capsys, flags, message):
    """In one line that names the flag, before anything is asked of a server."""
    with pytest.raises(SystemExit, match="2"):
        main([*ABSENT, "warp", "a.png", "b.png", *flags])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told
