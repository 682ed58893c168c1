"""`stn playground`, in a real browser without a window, and what its server refuses."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from stn_client.playground._app import LINES, sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STN = Path(sys.executable).with_name("stn")
RUN = [sys.executable, "-c", "import sys; from stn_client.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def address(local_server):
    """Where a `stn playground` is; it ends in order when it is interrupted."""
    command = [*RUN, f"--target={local_server.target}", "playground", "--port=0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "stn: interrupted\n")


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "chromium: expected it, got none. apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, with its first answer; no errors in the console, and nothing asked elsewhere."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    told, asked = [], []
    page.on("console", lambda message: message.type == "error" and told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    settled(page)
    yield page
    assert told == []
    assert all(url.startswith((address, "data:")) for url in asked)
    page.close()


def settled(page, at_least=1):
    """Waits until so many answers have come, and none is awaited."""
    until(page, f"(document.body.dataset.answers || 0) >= {at_least} && !busy")


def until(page, condition):
    """Waits in the page, frame by frame: its policy lets nobody evaluate texts there."""
    page.evaluate(
        f"""() => new Promise((done) => {{
            const look = () => ({condition}) ? done() : requestAnimationFrame(look);
            look();
        }})"""
    )


def pixels_of(page, canvas):
    """What a canvas shows, (H, W, 4)."""
    width, height, data = page.evaluate(
        """name => {
            const one = document.getElementById(name);
            const data = one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
            return [one.width, one.height, textOf(data)];
        }""",
        canvas,
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)


def points_of(page, name):
    return np.array(page.evaluate(name), np.float32)


def drag(page, number, to):
    """Moves the handle of a number to a place in the image, with the mouse."""
    box = page.locator("#source").bounding_box()
    x, y = points_of(page, "source")[number].tolist()
    answers = int(page.evaluate("document.body.dataset.answers"))
    page.mouse.move(box["x"] + 1 + x, box["y"] + 1 + y)
    page.mouse.down()
    page.mouse.move(box["x"] + 1 + to[0], box["y"] + 1 + to[1], steps=5)
    page.mouse.up()
    settled(page, answers + 1)


def assert_is_opencvs(page, image, border):
    """The output is what OpenCV makes of the same points, but for its 5 bits of fraction."""
    homography = cv2.getPerspectiveTransform(points_of(page, "source"), points_of(page, "target"))
    height, width = image.shape[:2]
    expected = cv2.warpPerspective(image, homography, (width, height), borderMode=border)
    differences = np.abs(pixels_of(page, "output").astype(int) - expected.astype(int))
    assert np.percentile(differences[..., :3], 99) <= 2 * 255 / 32 + 1
    assert differences[..., :3].mean() < 1.5


def test_dragging_a_corner_warps_the_sample(page):
    """As OpenCV does with the points that the page then has."""
    np.testing.assert_array_equal(page.evaluate("[image.width, image.height]"), [400, 300])
    page.select_option("#padding", "border")
    settled(page, 2)
    assert_is_opencvs(page, sample(), cv2.BORDER_REPLICATE)
    before = pixels_of(page, "output")
    drag(page, 2, (250, 200))
    np.testing.assert_allclose(points_of(page, "source")[2], [250, 200], atol=1)
    assert not np.array_equal(pixels_of(page, "output"), before)
    assert_is_opencvs(page, sample(), cv2.BORDER_REPLICATE)
    assert re.search(r"warp [0-9.]+ ms, grid [0-9.]+ ms, gradients", page.inner_text("#latency"))


def test_the_program_that_is_shown_does_the_same(page, tmp_path):
    """Run as it stands, in a folder with the image."""
    page.select_option("#padding", "border")
    settled(page, 2)
    drag(page, 0, (90, 60))
    program = page.inner_text("#python")
    Image.fromarray(sample()).save(tmp_path / "photo.png")
    program += "\nv.save('warped.png')\n"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "warped.png") as image:
        differences = np.abs(np.asarray(image).astype(int) - pixels_of(page, "output").astype(int))
    assert differences[..., :3].mean() < 0.5  # points are shown with one digit
    assert "padding='border'" in program


def test_an_image_that_is_dropped_is_warped(page, tmp_path):
    """Scaled to what the page takes; no image at all is said so."""
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    drop = """([name, text]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
        for (const kind of ["dragover", "drop"])
            canvas.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, cancelable: true }));
    }"""
    data = base64.b64encode((tmp_path / "in.png").read_bytes()).decode()
    page.evaluate(drop, ["in.png", data])
    until(page, "image.width === 40")
    settled(page, 2)
    page.click("#reset")
    settled(page, 3)
    assert pixels_of(page, "output").shape == (30, 40, 4)
    page.evaluate(drop, ["notes.png", base64.b64encode(b"no image").decode()])
    until(page, "document.getElementById('error').textContent !== ''")
    assert page.inner_text("#error").startswith("notes.png: expected an image, got ")


def test_the_gradient_points_to_where_the_output_looks_like_the_input(page):
    """Pulled to one side in the middle, the spline's arrows there point back."""
    page.select_option("#kind", "spline")
    settled(page, 2)
    identity = np.array(page.evaluate("shown.arrows"))
    assert (
        np.abs(identity[:, 2:]).max() == pytest.approx(0, abs=1e-3)
        or page.evaluate("shown.pixels") != base64.b64encode(sample().tobytes()).decode()
    )
    x, y = points_of(page, "source")[4].tolist()
    drag(page, 4, (x + 6, y))
    arrows = np.array(page.evaluate("shown.arrows"))
    assert arrows.shape == (LINES**2, 4)
    assert np.hypot(arrows[:, 2], arrows[:, 3]).max() == pytest.approx(1, abs=2e-3)
    near = np.hypot(arrows[:, 0] - x, arrows[:, 1] - y) < 80
    assert arrows[near, 2].sum() < -0.5
    assert np.array(page.evaluate("shown.lines")).shape == (LINES, LINES, 2)


def test_what_is_drawn_can_be_seen(page, tmp_path):
    """Grid and arrows go away with their boxes; a screenshot has the colours of both."""
    page.select_option("#kind", "spline")
    settled(page, 2)
    drag(page, 4, (230, 170))
    page.locator("#source").screenshot(path=tmp_path / "all.png")
    for name in ("lines", "arrows"):
        page.uncheck(f"#{name}")
    page.locator("#source").screenshot(path=tmp_path / "bare.png")
    seen = [
        np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        for name in ("all.png", "bare.png")
    ]
    blue = [np.abs(image - [25, 100, 220]).max(-1) < 70 for image in seen]
    red = [np.abs(image - [210, 20, 95]).max(-1) < 60 for image in seen]
    assert blue[0].sum() > blue[1].sum() + 1000
    assert red[0].sum() > red[1].sum() + 100


def post(url, body, headers=()):
    request = urllib.request.Request(url, data=body, headers=dict(headers))
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


POINTS = [[0, 0], [3, 0], [0, 2]]
ASKED = {
    "width": 4,
    "height": 3,
    "pixels": base64.b64encode(bytes(48)).decode(),
    "kind": "affine",
    "source": POINTS,
    "target": POINTS,
}
REFUSED = {
    "no JSON": (b"{", 400, "body: expected JSON, got "),
    "no object": (b"[]", 400, "body: expected an object, got list."),
    "kind": (
        {"kind": "flow"},
        400,
        "kind: expected one of affine, homography, spline, got 'flow'.",
    ),
    "kind in a list": ({"kind": []}, 400, "kind: expected one of affine, homography, spline, got"),
    "lists without end": (b"[" * 100_000, 400, "body: expected JSON, got "),
    "points of several images": (
        {"source": [POINTS]},
        400,
        "source: expected points (x, y), got shape (1, 3, 2).",
    ),
    "points of a volume": (
        {"source": [[0, 0, 0]] * 4, "target": [[0, 0, 0]] * 4},
        400,
        "source: expected points (x, y), got shape (4, 3).",
    ),
    "size": ({"width": 10**6}, 400, "width, height: expected 2 to 512 px, got [1000000, 3]."),
    "pixels": ({"pixels": "AAAA"}, 400, "pixels: expected RGBA of that size in base64, got "),
    "points on a line": ({"target": [[0, 0], [1, 1], [2, 2]]}, 400, "target"),
    "no points": ({"target": None}, 400, "source, target: expected points of both, got "),
    "padding": ({"padding": "mirror"}, 400, "padding: expected one of zeros"),
}


@pytest.mark.parametrize(("change", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_said_to_the_page(address, change, status, message):
    body = change if isinstance(change, bytes) else json.dumps(ASKED | change).encode()
    with pytest.raises(HTTPError, match=str(status)) as caught:
        post(f"{address}/warp", body)
    assert json.loads(caught.value.read())["error"].startswith(message)


def test_the_server_serves_its_own_page_alone(address):
    """Not pages of other sites that found a name for this machine, and no more than an image."""
    assert set(post(f"{address}/warp", json.dumps(ASKED).encode())) >= {"pixels", "lines", "arrows"}
    with pytest.raises(HTTPError, match="400"):
        post(f"{address}/warp", json.dumps(ASKED).encode(), {"host": "evil.example"}.items())
    with pytest.raises(HTTPError, match="413"):
        post(f"{address}/warp", bytes(2**21))
