"""`stn` with many files, large files, and what ends it early."""

import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import termios

import numpy as np
import pytest
from PIL import Image

from stn_client.cli import main
from stn_client.cli._files import jobs_of
from stn_client.cli._images import ImageError
from stn_client.local import LocalServer
from support.processes import run_python

ABSENT = ("--target=127.0.0.1:1", "--timeout=0.2")
"""Port 1 is privileged and unused."""
STN = [sys.executable, "-c", "import sys; from stn_client.cli import main; sys.exit(main())"]


def picture(path, number=0, size=(8, 6)):
    """A grey image of random pixels; its parent folders, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size[1], size[0]), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def names(folder):
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def jobs(tmp_path, *arguments):
    """What `jobs_of` makes of arguments below a folder, told relative to it."""
    *sources, destination = (f"{tmp_path}/{argument}" for argument in arguments)
    found = jobs_of(sources, destination)
    return [tuple(str(path.relative_to(tmp_path)) for path in job) for job in found]


def test_one_file_goes_to_a_file_or_into_a_folder(tmp_path):
    """As with `cp`; a slash at the end makes a name that of a folder."""
    picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    assert jobs(tmp_path, "a.png", "b.jpg") == [("a.png", "b.jpg")]
    assert jobs(tmp_path, "a.png", "out") == [("a.png", "out/a.png")]
    assert jobs(tmp_path, "a.png", "new/") == [("a.png", "new/a.png")]


def test_folders_stand_for_their_images(tmp_path):
    """With their tree, without what is hidden or no image, and without results of before."""
    for name in ("in/b.png", "in/a.JPG", "in/deep/er/c.tif", "in/.hidden.png", "in/.git/d.png"):
        picture(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("hello")
    expected = ["a.JPG", "b.png", "deep/er/c.tif"]
    assert jobs(tmp_path, "in", "out") == [(f"in/{name}", f"out/{name}") for name in expected]
    picture(tmp_path / "in/out/b.png")
    found = jobs(tmp_path, "in", "in/out")
    assert found == [(f"in/{name}", f"in/out/{name}") for name in expected]


def test_patterns_stand_for_images_that_match(tmp_path):
    """Quoted, so that no shell has done it before; two stars go through folders."""
    for name in ("in/a.png", "in/b.png", "in/c.jpg", "in/deep/d.png"):
        picture(tmp_path / name)
    assert jobs(tmp_path, "in/*.png", "out") == [
        ("in/a.png", "out/a.png"),
        ("in/b.png", "out/b.png"),
    ]
    found = jobs(tmp_path, "in/**/*.png", "out")
    assert [result for _, result in found] == ["out/a.png", "out/b.png", "out/d.png"]
    assert jobs(tmp_path, "in/a.png", "in/*.png", "out") == jobs(tmp_path, "in/*.png", "out")


def test_links_are_no_circles(tmp_path):
    """Two stars go through folders, not links to them; a file of several ways is warped once."""
    for name in ("in/a.png", "in/deep/b.png", "in/.hidden/c.png"):
        picture(tmp_path / name)
    for link in ("in/self", "in/again", "in/deep/up"):
        (tmp_path / link).symlink_to(tmp_path / "in")
    (tmp_path / "in/lost.png").symlink_to("lost.png")
    (tmp_path / "alias").symlink_to("in")
    all_of_it = [("in/a.png", "out/a.png"), ("in/deep/b.png", "out/b.png")]
    for pattern in ("in/**/*.png", "in/**", "in/**/**/*.png", "**/*.png"):
        assert jobs(tmp_path, pattern, "out") == all_of_it
    assert jobs(tmp_path, "in/**/.hidden/*.png", "out") == [("in/.hidden/c.png", "out/c.png")]
    assert jobs(tmp_path, "in/*/a.png", "out") == [("in/again/a.png", "out/a.png")]
    assert jobs(tmp_path, "in", "out") == [all_of_it[0], ("in/deep/b.png", "out/deep/b.png")]
    assert jobs(tmp_path, "alias/**/a.png", "in", "out")[0] == ("alias/a.png", "out/a.png")
    assert jobs(tmp_path, "in", "in/lost.png")[0] == ("in/a.png", "in/lost.png/a.png")


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    """A file that is there is meant, even if it could be a pattern."""
    picture(tmp_path / "a[1].png")
    assert jobs(tmp_path, "a[1].png", "b.png") == [("a[1].png", "b.png")]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("empty", "out"), r"empty: expected images in the folder, got none\."),
        (("in/*.gif", "out"), r"in/\*\.gif: expected images that match, got none\."),
        (
            ("in/a.png", "in", "in/b.png"),
            r"b\.png: expected a folder for several files, got a file",
        ),
        (
            ("in/a.png", "deep/a.png", "out"),
            r"out/a\.png: expected one file to go there, got .*and",
        ),
        (("in/a.png", "in/b.png/"), r"b\.png: expected a folder for several files, got a file"),
        (("in", "in"), r"in: expected images outside of OUT, got only those in .*in\."),
        (("deep", "in/*.png", "in"), r"\*\.png: expected images outside of OUT"),
        (
            ("in/a.png", "no/such/b.png"),
            r"b\.png: expected its folder to exist, got none\. Make it",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(tmp_path, arguments, why):
    """Before any file is read."""
    for name in ("in/a.png", "in/b.png", "deep/a.png"):
        picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=why):
        jobs(tmp_path, *arguments)


@pytest.mark.parametrize("arguments", [["", "b.png"], ["a.png", ""], ["a.png", "", "out"]])
def test_empty_names_are_refused(arguments):
    """To pathlib they are the folder that one is in, with all that it holds."""
    with pytest.raises(ImageError, match=r"expected names of files or folders, got an empty one"):
        jobs_of(arguments[:-1], arguments[-1])


@pytest.mark.parametrize("place", [0, 1])
def test_alignment_of_folders_is_refused(local_server, tmp_path, capsys, place):
    """Even if OUT is a folder, too."""
    picture(tmp_path / "a.png")
    pair = [str(tmp_path / "a.png")] * 2
    pair[place] = str(tmp_path)
    assert main([f"--target={local_server.target}", "align", *pair, str(tmp_path)]) == 1
    expected = f"stn: {tmp_path}: expected an image file, got a folder.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_bad_file_does_not_stop_the_others(local_server, tmp_path, capsys, workers):
    """It has a line of its own, and the exit code says that something failed."""
    expected = {
        f"{number}.png": picture(tmp_path / f"in/{number}.png", number) for number in range(5)
    }
    (tmp_path / "in/bad.png").write_text("no image")
    command = ["warp", str(tmp_path / "in"), str(tmp_path / "out"), "--jobs", workers]
    assert main([f"--target={local_server.target}", *command, "--rotate=180"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("stn: ")
    assert "bad.png: expected an image file" in error
    assert names(tmp_path / "out") == sorted(expected)
    for name, pixels in expected.items():
        np.testing.assert_array_equal(pixels_of(tmp_path / "out" / name), pixels[::-1, ::-1])


def test_refusals_of_the_service_name_the_file(local_server, tmp_path, capsys):
    """And are one line each."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    command = ["warp", str(tmp_path / "in"), str(tmp_path / "out"), "--fill", "1", "2"]
    assert main([f"--target={local_server.target}", *command]) == 1
    lines = sorted(capsys.readouterr().err.splitlines())
    assert [line.split(": ")[1] for line in lines] == [str(tmp_path / f"in/{n}.png") for n in "ab"]
    assert all("fill: expected one value" in line for line in lines)


def test_without_a_server_one_line_is_enough(tmp_path, capsys):
    """Not one for each file."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    command = ["warp", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(["--target=127.0.0.1:1", "--timeout=0.2", *command]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line():
    """What the SDK logs of its attempts is not for who reads a terminal."""
    with socket.socket() as unused:  # bound, but not listening: nobody else can take the port
        unused.bind(("127.0.0.1", 0))
        target = f"--target=127.0.0.1:{unused.getsockname()[1]}"
        told = subprocess.run([*STN, target, "info"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("stn: failed to connect")


def test_a_server_that_speaks_no_tls_is_one_line(local_server):
    """What gRPC's core would write of it is not for who reads a terminal, either."""
    verbose = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    command = [*STN, f"--target={local_server.target}", "--timeout=0.5", "--tls", "info"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=verbose)
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("stn: ")
    assert told.stderr.endswith("The server may speak no TLS: leave out tls, or stn --tls.\n")


def test_a_bar_is_drawn_on_a_terminal_only(local_server, tmp_path):
    """One that counts files; into a pipe, nothing is written."""
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    command = [*STN, f"--target={local_server.target}", "warp", str(tmp_path / "in")]
    piped = subprocess.run([*command, str(tmp_path / "out")], check=True, capture_output=True)
    assert (piped.stdout, piped.stderr) == (b"", b"")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([*command, str(tmp_path / "out")], check=True, stderr=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 4096):
            drawn += piece
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(ours)
    assert b"3/3" in drawn


@pytest.mark.parametrize("source", ["in", "in/0.png"])
def test_an_interrupt_is_one_line(tmp_path, source):
    """Exit code 130 at once, though calls are under way, no traceback, and nothing written."""
    for number in range(6):
        picture(tmp_path / f"in/{number}.png", number)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        target = f"--target=127.0.0.1:{silent.getsockname()[1]}"
        command = [*STN, target, "warp", str(tmp_path / source), f"{tmp_path}/out/"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stn: interrupted\n")
    assert not (tmp_path / "out").exists()


INTERRUPTED_AMID_IMPORTS = """
import os, signal, sys

class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == last:
            os.kill(os.getpid(), signal.SIGINT)

last = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupting)
from stn_client.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "imported", ["stn_client.cli._main", "google.protobuf", "grpc", "numpy", "stn_client.tiling"]
)
def test_an_interrupt_amid_imports_is_one_line(imported):
    """What takes most of the time of a short command is imported when interrupts are handled."""
    done = run_python("-c", INTERRUPTED_AMID_IMPORTS, imported, "info")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stn: interrupted\n")


@pytest.mark.parametrize("arguments", [["--version"], [*ABSENT, "info"]])
def test_an_interrupt_at_the_end_is_one_line(arguments):
    """The interpreter takes its time to end, too, after a result, an error, or an early exit."""
    program = "import atexit, os, signal, sys; from stn_client.cli import main; "
    program += "atexit.register(os.kill, os.getpid(), signal.SIGINT); sys.exit(main())"
    done = run_python("-c", program, *arguments)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "stn: interrupted")
    assert "Traceback" not in done.stderr


def test_a_second_interrupt_waits_for_nothing():
    """Such as a thread that is amid a large file."""
    program = """
import os, signal, sys, threading
from stn_client.cli import main

class Interrupting(list):
    def __getitem__(self, _):
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=threading.Event().wait).start()
threading._register_atexit(os.kill, os.getpid(), signal.SIGINT)
sys.argv = Interrupting(sys.argv)
sys.exit(main())
"""
    done = run_python("-c", program, timeout_s=30)
    assert (done.returncode, done.stderr) == (130, "stn: interrupted\n")


def test_an_interrupt_stays_ignored_where_the_process_was_started_so():
    """As of a command in the background of a script: its terminal means another one."""
    program = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    program += "from stn_client.cli import main; import atexit; "
    program += "atexit.register(os.kill, os.getpid(), signal.SIGINT); sys.exit(main())"
    assert run_python("-c", program, "--version").returncode == 0


def test_a_reader_that_goes_away_is_no_error(local_server):
    """As with `stn info | head -0`."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [*STN, f"--target={local_server.target}", "info"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(local_server, tmp_path, redirection):
    """As of jobs that a scheduler starts; what would be told there is told nowhere else."""
    picture(tmp_path / "a.png")
    command = shlex.join([*STN, f"--target={local_server.target}", "warp"])
    files = f"{tmp_path}/a.png {tmp_path}/b.png"
    done = subprocess.run(
        ["bash", "-c", f"{command} {files} {redirection}"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "b.png").exists()
    lost = f"{command} {tmp_path}/none.png {tmp_path}/c.png 2>&-"
    done = subprocess.run(["bash", "-c", lost], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_bar_needs_tqdm(monkeypatch, local_server, tmp_path, capsys):
    """Without the extra, the error says how to install it."""
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    command = ["warp", str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main([f"--target={local_server.target}", *command]) == 1
    assert "tqdm: expected it, got none. In the checkout: pip" in capsys.readouterr().err


@pytest.mark.slow
def test_a_photo_beyond_the_limits_is_warped(local_server, tmp_path):
    """6000 x 4000, where a call may have 16 Mi samples, by the server's defaults."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (400, 600, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    command = ["warp", str(tmp_path / "a.bmp"), str(tmp_path / "b.bmp"), "--rotate=180"]
    assert main([f"--target={local_server.target}", *command]) == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.bmp"), pixels[::-1, ::-1])


def waves(shape, scale=1.0):
    """Structure in all directions, uint16; a larger scale is the same picture, larger."""
    y, x = np.indices(shape) / (10 * scale)
    values = np.sin(x) + np.cos(1.3 * y + 0.4 * x) + np.sin(0.7 * x - y)
    return (30_000 + 8_000 * values).astype(np.uint16)


def found_theta(output):
    return np.array(json.loads(output.splitlines()[0].removeprefix("theta ")))


def test_alignment_of_16_bits_with_itself_is_the_identity(local_server, tmp_path, capsys):
    """Exactly: what fits already is left alone, and the picture comes out bit for bit."""
    pixels = waves((96, 80))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    names = [str(tmp_path / name) for name in ("a.png", "a.png", "b.png")]
    assert main([f"--target={local_server.target}", "align", *names]) == 0
    np.testing.assert_array_equal(found_theta(capsys.readouterr().out), np.eye(2, 3))
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_alignment_beyond_the_limits_is_found_in_less_detail(tmp_path, capsys):
    """The map is one of normalized coordinates: found at half the size, it holds at the whole."""
    pixels = waves((120, 128))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.roll(pixels, 2, axis=1)).save(tmp_path / "b.png")
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    with LocalServer("--limits-max-output-samples=5000", log=tmp_path / "log") as server:
        assert main([f"--target={server.target}", "align", *files]) == 0
    theta = found_theta(capsys.readouterr().out)
    # 2 px of 128 to the right are 4 / 128 in normalized units
    np.testing.assert_allclose(theta, [[1, 0, 4 / 128], [0, 1, 0]], atol=3e-3)
    with Image.open(tmp_path / "c.png") as image:
        found = np.asarray(image).astype(int)
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(found[inside] - pixels[inside]).mean() < 200


def test_alignment_of_frames_is_refused(tmp_path, capsys):
    """Which of them should fit?"""
    frames = [Image.fromarray(waves((32, 32))) for _ in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    names = [str(tmp_path / name) for name in ("a.tif", "a.tif", "b.tif")]
    assert main(["--target=127.0.0.1:1", "align", *names]) == 1
    assert "a.tif: expected one image to align, got 2 frames" in capsys.readouterr().err


def test_alignment_of_what_is_no_number_is_refused(tmp_path, capsys):
    """One NaN would be in every step."""
    pixels = waves((32, 32)).astype(np.float32)
    pixels[3, 4] = np.nan
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    names = [str(tmp_path / name) for name in ("a.tif", "a.tif", "b.tif")]
    assert main(["--target=127.0.0.1:1", "align", *names]) == 1
    assert (
        "a.tif: expected an image with edges to align, got values from nan"
        in capsys.readouterr().err
    )


def test_help_says_what_users_need(capsys):
    """What the command does, and examples; of subcommands, what goes where."""
    for arguments, needed in (
        (["--help"], ["Warps image files", "stn warp photo.jpg", "Exit codes"]),
        (["warp", "--help"], ["into the folder OUT", "--jobs", "--quality", "(default: 4)"]),
        (["align", "--help"], ["MOVING look like FIXED", "normalized coordinates"]),
    ):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(arguments)
        printed = capsys.readouterr().out
        assert all(part in printed for part in needed)
        assert "Arguments of" not in printed


def test_wrong_arguments_are_one_line(capsys):
    """And name the help that tells more."""
    for arguments in (["warp", "a"], ["align"], ["--no"], ["warp", "a", "b", "--jobs=x"]):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("stn")
        assert error.endswith("--help.\n")


@pytest.mark.parametrize(
    "flags", [("--rotate", "inf"), ("--translate", "0", "nan"), ("--fill", "1", "inf")]
)
def test_numbers_without_an_end_are_refused(capsys, flags):
    """No image has them, and the cosine of infinity is none."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["warp", "a.png", "b.png", *flags])
    assert "expected a finite number, got" in capsys.readouterr().err
