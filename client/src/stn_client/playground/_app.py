"""The web application: the page, a sample image, and what the page asks for at every drag."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from stn_client._aio import AsyncClient
from stn_client._errors import InvalidRequestError, StnClientError, invalid
from stn_client._transforms import SamplingGrid
from stn_client.geometry import from_points
from stn_client.geometry._arguments import choice, numbers

Array = NDArray[Any]
T = TypeVar("T")

MAX_SIDE_PX = 512
"""The page scales images down to this."""

MAX_BODY_BYTES = 4 * MAX_SIDE_PX**2 * 4 // 3 + 64 * 1024
"""The largest image in base64, and all else that the page sends."""

LINES = 13
"""Lines of the sampling grid, and arrows, along each axis."""

KINDS = {"affine": 3, "homography": 4, "spline": 9}
"""Number of points by which each kind of transform is given."""

_SIDES = ("source", "target")

HOSTS = ["127.0.0.1", "localhost"]
"""Names that the page may be asked for by, so that no other site's page reaches it."""


def application(client: AsyncClient) -> Starlette:
    """Returns the application for a web server on this machine; closes the client at its end."""

    @asynccontextmanager
    async def lifespan(_application: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def warp(request: Request) -> Response:
        try:
            return JSONResponse(await _warp(client, await _json(request)))
        except StnClientError as error:
            status = 400 if isinstance(error, InvalidRequestError) else 502
            return JSONResponse({"error": str(error)}, status)

    return Starlette(
        routes=[
            Route("/", _page),
            Route("/sample", _sample),
            Route("/warp", warp, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        lifespan=lifespan,
    )


async def _page(_request: Request) -> Response:
    page = files("stn_client.playground").joinpath("page.html").read_text(encoding="utf-8")
    policy = "default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"
    return HTMLResponse(page, headers={"content-security-policy": policy})


async def _sample(_request: Request) -> Response:
    pixels = sample()
    height, width = pixels.shape[:2]
    return JSONResponse({"width": width, "height": height, "pixels": _encoded(pixels)})


def sample(height: int = 300, width: int = 400) -> Array:
    """Returns an image with lines, edges and colours, (H, W, 4), on which warps can be seen."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    board = ((x // 50 + y // 50) % 2)[..., None]
    colours = np.stack([x / width, y / height, 1 - x / width], -1)
    pixels = 255 * (0.35 * board + 0.65 * colours)
    radius = np.hypot(x - width / 2, y - height / 2)
    pixels[np.abs(radius - height / 3) < 4] = (255, 255, 255)
    pixels[radius < height / 12] = (250, 200, 40)
    opaque = np.full((height, width, 1), 255.0)
    return np.concatenate([pixels, opaque], -1).round().astype(np.uint8)


async def _json(request: Request) -> Any:
    """Returns what the page sent.

    Raises:
        HTTPException: It is too large.
        InvalidRequestError: It is no JSON.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"body: expected at most {MAX_BODY_BYTES} bytes, got more.")
    try:
        return json.loads(body)
    except (RecursionError, ValueError) as error:
        raise invalid("body", f"expected JSON, got {error}.") from error


async def _warp(client: AsyncClient, asked: Any) -> dict[str, Any]:
    """Returns the warp, lines of its sampling grid, the gradient, and the Python for the same.

    Raises:
        StnClientError: What was asked for cannot be, or the service failed.
    """
    if not isinstance(asked, dict):
        raise invalid("body", f"expected an object, got {type(asked).__name__}.")
    pixels, kind = _pixels(asked), asked.get("kind", "")
    choice("kind", kind, tuple(KINDS))
    missing = {name: asked.get(name) for name in _SIDES}
    if None in missing.values():
        raise invalid("source, target", f"expected points of both, got {missing}.")
    for name in _SIDES:  # of one image: the program that is shown has no more
        if (shape := numbers(name, asked[name]).shape)[1:] != (2,):
            raise invalid(name, f"expected points (x, y), got shape {shape}.")
    moved = from_points(asked["source"], asked["target"], kind)
    options = {name: asked[name] for name in ("padding", "interpolation") if name in asked}
    size, took_ms = pixels.shape[:2], {}
    warping = client.warp(pixels, **moved, **options, layout="HWC")
    output, took_ms["warp"] = await _timed(warping)
    making = client.generate_grid(moved["transform"], size, coordinates="pixel")
    grid, took_ms["grid"] = await _timed(making)
    maps = [one[..., :3].astype(np.float32) / 255 for one in (pixels, output)]
    asking = client.warp_gradients(
        maps[1] - maps[0],
        maps[0],
        SamplingGrid(grid.astype(np.float32)),
        needs=["transform"],
        layout="HWC",
        coordinates="pixel",
        **options,
    )
    gradients, took_ms["gradients"] = await _timed(asking)
    of_grid: Any = gradients.transform
    return {
        "width": size[1],
        "height": size[0],
        "pixels": _encoded(output),
        "lines": _at_lines(grid[0]).round(2).tolist(),
        "arrows": _arrows(grid[0], of_grid[0]).round(3).tolist(),
        "latency_ms": {name: round(duration_ms, 2) for name, duration_ms in took_ms.items()},
        "python": python(client.target, asked, options),
    }


async def _timed(call: Awaitable[T]) -> tuple[T, float]:
    began_s = time.perf_counter()
    result = await call
    return result, 1e3 * (time.perf_counter() - began_s)


def _pixels(asked: dict[str, Any]) -> Array:
    """Returns the image, (H, W, 4)."""
    sides: list[Any] = [asked.get("height"), asked.get("width")]
    if not all(isinstance(side, int) and 2 <= side <= MAX_SIDE_PX for side in sides):
        raise invalid("width, height", f"expected 2 to {MAX_SIDE_PX} px, got {sides[::-1]}.")
    try:
        data = base64.b64decode(asked["pixels"], validate=True)
        return np.frombuffer(data, np.uint8).reshape(*sides, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise invalid("pixels", f"expected RGBA of that size in base64, got {error}.") from error


def _encoded(pixels: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()


def _at_lines(grid: Array) -> Array:
    """Returns the source points of a lattice of target pixels, (LINES, LINES, 2)."""
    rows, columns = (np.linspace(0, side - 1, LINES).round().astype(int) for side in grid.shape[:2])
    lattice: Array = grid[np.ix_(rows, columns)]
    return lattice


def _arrows(grid: Array, gradient: Array) -> Array:
    """Returns (x, y, dx, dy): source points of parts of the output, and towards the input.

    The steepest descent of half the squared difference between the two, as a mean over a part of
    the output; the longest one has length 1.
    """
    parts = [np.array_split(np.arange(side), LINES) for side in grid.shape[:2]]
    rows = [
        (*grid[block].mean((0, 1)), *-gradient[block].mean((0, 1)))
        for row in parts[0]
        for column in parts[1]
        if len(row) and len(column)
        for block in [np.ix_(row, column)]
    ]
    arrows = np.array(rows, np.float64)
    longest = np.hypot(arrows[:, 2], arrows[:, 3]).max()
    arrows[:, 2:] /= longest or 1.0
    return arrows


def python(target: str, asked: dict[str, Any], options: dict[str, str]) -> str:
    """Returns the program that does what the page shows."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    points = [[[round(float(one), 1) for one in point] for point in asked[name]] for name in _SIDES]
    return f"""\
from PIL import Image
from stn_client import Client
from stn_client.geometry import from_points
from stn_client.geometry._arguments import choice, numbers

source = {points[0]}
target = {points[1]}
moved = from_points(source, target, {asked["kind"]!r})
with Client({target!r}) as stn:
    v = stn.warp(Image.open("photo.png"), **moved{given})
"""
